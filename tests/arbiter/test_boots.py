"""A host that boots, from the guests that went off with it to those that run again, on virtual time (R14)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, TypeVar

import looptime
import pytest
import pytest_asyncio
import sqlalchemy as sa

from stateward.agent.simulated import guests
from stateward.bus.memory import Disorder
from stateward.domain.boots import PRIORITY, Pace
from stateward.domain.hosts import Frozen
from stateward.domain.locks import OperationClass
from stateward.domain.policies import Policies, Policy, Rule, check
from stateward.domain.states import Cause, Observed, VmState
from stateward.domain.verdicts import Kind
from stateward.store import boots, hosts
from stateward.store.engine import Database, StoreUnavailable, Work
from stateward.store.tables import AUDIT, INSTANCES
from tests.rows import actor
from tests.stack import Stack

T = TypeVar("T")

pytestmark = [pytest.mark.asyncio, pytest.mark.looptime]

SLOWLY = Pace(parallel=2, delay=20.0, patience=30.0)


@pytest_asyncio.fixture
async def stack(inline_database: Database, swift_folder: Path) -> AsyncIterator[Stack]:
    """Give a running stack that starts two guests at once, behind a bus that doubles and delays."""
    stack = Stack(inline_database, swift_folder, Disorder(seed=1, duplicate=0.3), pace=SLOWLY)
    with looptime.enabled(strict=True):
        await stack.start()
    yield stack
    with looptime.enabled(strict=True):
        await stack.stop()


async def lock(stack: Stack, instance_id: str) -> None:
    await stack.immediate.lock(instance_id, actor(), reason=None, project_id="p")


async def inventory(stack: Stack) -> dict[str, str]:
    """Make an instance of each kind, and return their ids by what they are."""
    found: dict[str, str] = {}
    for name in ("ran", "ran too", "locked", "paused", "suspended", "stopped", "rescued", "rescued, locked"):
        found[name] = await stack.create()
    for name, action in (
        ("paused", "pause"),
        ("suspended", "suspend"),
        ("stopped", "stop"),
        ("rescued", "rescue"),
        ("rescued, locked", "rescue"),
    ):
        await stack.do(action, found[name])
    await lock(stack, found["locked"])
    await lock(stack, found["rescued, locked"])
    found["error"] = await stack.create()
    await stack.database.write(
        lambda connection: connection.execute(
            sa.update(INSTANCES).where(INSTANCES.c.id == found["error"]).values(vm_state="error")
        )
    )
    return found


#: What each of them is at the end, and the last thing that was done to it.
AFTER = {
    "ran": "active running, boot_start succeeded",
    "ran too": "active running, boot_start succeeded",
    "locked": "stopped shutoff, adopt succeeded",
    "paused": "stopped shutoff, adopt succeeded",
    "suspended": "suspended suspended, suspend succeeded",
    "stopped": "stopped shutoff, stop succeeded",
    "rescued": "rescued running, boot_rescue succeeded",
    "rescued, locked": "rescued shutoff, lock succeeded",
    "error": "error shutoff, create succeeded",
}


async def seen(stack: Stack, found: dict[str, str]) -> dict[str, str]:
    said: dict[str, str] = {}
    for name, instance_id in found.items():
        row = await stack.idle(instance_id)
        assert stack.guest(instance_id) is row.observed
        said[name] = f"{row.vm_state} {row.observed}, {(await stack.history(instance_id))[-1]}"
    return said


async def records(stack: Stack, event: str) -> list[dict[str, Any]]:
    await stack.database.seal()
    query = sa.select(AUDIT.c.detail).where(AUDIT.c.event == event).order_by(AUDIT.c.number)
    return list(await stack.database.read(lambda connection: connection.execute(query).scalars().all()))


def started(stack: Stack) -> list[str | None]:
    """Return which guests were booted, in this order."""
    return [call.instance_id for call in stack.hypervisor.calls if call.name == "power_on"]


def reboot(stack: Stack) -> None:
    stack.hypervisor.calls.clear()
    stack.hypervisor.reboot_host()


async def test_each_by_its_previous_state(stack: Stack) -> None:
    """What ran runs, what was off or saved stays so, a lock keeps off, and the trail says all of it."""
    found = await inventory(stack)
    reboot(stack)
    await asyncio.sleep(60)
    assert await seen(stack, found) == AFTER
    (booted,) = await records(stack, "host.booted")
    assert booted["plan"] == {"start": 3, "adopt": 2, "leave": 1, "in flight": 0, "table": 3}
    assert (booted["host"], booted["instances"], booted["priorities"]) == ("h", 9, [[0, 3]])
    assert booted["boot_id"] == stack.hypervisor.boot_id != booted["boot_before"]
    (restarted,) = await records(stack, "host.restarted")
    assert restarted["outcomes"] == {"succeeded": 3, "left": 1}
    told = {name: (await stack.verdicts(instance_id))[-1:] for name, instance_id in found.items()}
    assert {
        name: [(each["cause"], each["verdict"]) for each in said] for name, said in told.items() if said
    } == {
        "ran": [("host reboot", "restore")],
        "ran too": [("host reboot", "restore")],
        "locked": [("host reboot", "adopt")],
        "paused": [("host reboot", "adopt")],
        "rescued": [("host reboot", "restore")],
        "rescued, locked": [("host reboot", "alert")],
    }
    (*_, operation) = await stack.operations(found["locked"])
    assert operation.message == (
        "Its host has rebooted, and a lock keeps it from being started: it is recorded as stopped. "
        "Release the lock and start it."
    )


async def test_what_a_lock_keeps_off_stays_off(stack: Stack) -> None:
    """For as long as nothing is admitted for it: then it is as any other."""
    instance_id = await stack.create()
    await stack.do("rescue", instance_id)
    await lock(stack, instance_id)
    reboot(stack)
    await asyncio.sleep(300)
    assert stack.guest(instance_id) is Observed.SHUTOFF
    await stack.immediate.unlock(instance_id, actor(), project_id="p")
    await asyncio.sleep(60)
    assert stack.guest(instance_id) is Observed.SHUTOFF
    assert (await stack.do("unrescue", instance_id)).vm_state is VmState.ACTIVE
    stack.hypervisor.destroy(instance_id)
    await asyncio.sleep(5)
    assert (await stack.history(instance_id))[-1] == "restore_start succeeded"


async def test_nothing_is_started_before_the_whole_is_known(stack: Stack) -> None:
    """A host that says that it has booted, and whose hypervisor answers nothing yet, is frozen and left."""
    instance_id = await stack.create()
    stack.hypervisor.unavailable()
    reboot(stack)
    await asyncio.sleep(60)
    (host,) = await stack.database.read(hosts.every)
    assert (host.frozen, host.booted_id) == (Frozen.BOOT, stack.hypervisor.boot_id)
    # A report of a few says nothing of the rest.
    assert host.boot_id != host.booted_id
    assert started(stack) == []
    stack.hypervisor.available()
    await asyncio.sleep(2)
    assert started(stack) == [instance_id]
    (host,) = await stack.database.read(hosts.every)
    assert (host.frozen, host.boot_id) == (None, stack.hypervisor.boot_id)


async def prioritised(stack: Stack, *priorities: int) -> list[str]:
    return [
        await stack.create("stateward.boot=1", **({PRIORITY: str(each)} if each else {}))
        for each in priorities
    ]


async def test_the_order(stack: Stack) -> None:
    """Higher priorities first, two at once, and the delay between one priority and the next."""
    found = await prioritised(stack, 0, 5, 5, 5, 9, 0)
    stack.hypervisor.set_latency(2.0, "power_on")
    reboot(stack)
    await asyncio.sleep(120)
    calls = [call for call in stack.hypervisor.calls if call.name == "power_on"]
    began = min(call.began for call in calls)
    assert [(found.index(str(call.instance_id)), round(call.began - began)) for call in calls] == [
        (4, 0),
        (1, 22),
        (2, 22),
        (3, 24),
        (0, 46),
        (5, 46),
    ]
    (booted,) = await records(stack, "host.booted")
    assert booted["priorities"] == [[9, 1], [5, 3], [0, 2]]


async def test_one_that_takes_long_holds_up_one_place_only(stack: Stack) -> None:
    """A guest that hangs as it is started takes one of the places; lower priorities wait for the patience."""
    found = await prioritised(stack, 9, 0, 0, 0)
    hang = stack.hypervisor.hang_next("power_on")
    reboot(stack)
    await asyncio.sleep(110)
    calls = [call for call in stack.hypervisor.calls if call.name == "power_on"]
    assert [call.instance_id for call in calls] == found
    # After the patience and the delay, one after the other.
    assert round(calls[1].began - calls[0].began) == 50
    assert calls[0].ended is None
    assert [stack.guest(each) for each in found[1:]] == [Observed.RUNNING] * 3
    hang.release()
    await asyncio.sleep(1)
    assert stack.guest(found[0]) is Observed.RUNNING


async def test_what_waits_for_its_turn_is_nobody_else_s(stack: Stack) -> None:
    """The table does not start it meanwhile; its owner can, and then its turn is over."""
    first, second, third = await prioritised(stack, 9, 0, 0)
    reboot(stack)
    await asyncio.sleep(10)
    for _ in range(3):
        stack.arbiter.wake(second)
        await asyncio.sleep(1)
    assert started(stack) == [first]
    row = await stack.instance(second)
    turn = await stack.database.read(lambda connection: boots.awaited(connection, row))
    assert turn is not None
    assert turn.says == "Its host has rebooted, and it is started again when its turn comes."
    row = await stack.do("reboot_hard", second)
    assert (row.vm_state, row.observed) == (VmState.ACTIVE, Observed.RUNNING)
    await asyncio.sleep(60)
    assert started(stack) == [first, second, third]
    assert await stack.history(second) == ["create succeeded", "reboot_hard succeeded"]
    (restarted,) = await records(stack, "host.restarted")
    assert restarted["outcomes"] == {"succeeded": 2, "overtaken": 1}


async def test_a_lock_that_comes_before_its_turn(stack: Stack) -> None:
    """Counts: it is in the condition of the start (R1)."""
    first, second = await prioritised(stack, 9, 0)
    reboot(stack)
    await asyncio.sleep(10)
    await lock(stack, second)
    await asyncio.sleep(60)
    assert started(stack) == [first]
    row = await stack.instance(second)
    assert (row.vm_state, row.observed, row.owner_blocks) == (
        VmState.STOPPED,
        Observed.SHUTOFF,
        OperationClass.START | OperationClass.STOP | OperationClass.DELETE | OperationClass.CHANGE,
    )


async def test_a_second_boot_in_the_middle(stack: Stack) -> None:
    """It begins anew: each is started once in the last boot, and none in a boot that is over."""
    found = await prioritised(stack, 9, 5, 0)
    reboot(stack)
    await asyncio.sleep(25)
    assert started(stack) == found[:2]
    reboot(stack)
    await asyncio.sleep(120)
    assert started(stack) == found
    assert [stack.guest(each) for each in found] == [Observed.RUNNING] * 3
    assert [(await stack.history(each)).count("boot_start succeeded") for each in found] == [2, 2, 1]
    assert len(await records(stack, "host.booted")) == 2


async def test_boots_are_no_crash_loop(stack: Stack) -> None:
    """A guest whose host boots more often than a loop allows is as healthy as any other."""
    instance_id = await stack.create()
    for _ in range(7):
        reboot(stack)
        await asyncio.sleep(60)
        row = await stack.idle(instance_id)
        assert (row.vm_state, row.observed) == (VmState.ACTIVE, Observed.RUNNING)
    stack.hypervisor.crash(instance_id)
    await asyncio.sleep(2)
    assert (await stack.history(instance_id))[-1] == "restore_start succeeded"


async def test_a_start_that_fails_is_tried_by_the_table(stack: Stack) -> None:
    """As any guest's that is off and should run; the plan goes on without it."""
    found = await prioritised(stack, 9, 0)
    failure = RuntimeError("made by a test")
    stack.hypervisor.fail_next("power_on", failure)
    reboot(stack)
    await asyncio.sleep(60)
    assert [stack.guest(each) for each in found] == [Observed.RUNNING] * 2
    assert (await stack.history(found[0]))[-2:] == ["boot_start failed", "restore_start succeeded"]


async def test_a_host_that_is_kept_frozen_waits(stack: Stack) -> None:
    """A maintenance stops a plan in its middle, and its end goes on with it."""
    found = await prioritised(stack, 9, 0)
    reboot(stack)
    await asyncio.sleep(10)
    database = stack.database
    await database.write(
        lambda connection: hosts.freeze(connection, "h", Frozen.MAINTENANCE, "for a test", stack.clock.now())
    )
    await asyncio.sleep(100)
    assert started(stack) == found[:1]
    await database.write(lambda connection: hosts.thaw(connection, "h", Frozen.MAINTENANCE))
    await asyncio.sleep(10)
    assert started(stack) == found


async def test_a_boot_in_a_maintenance_is_judged_after_it(stack: Stack) -> None:
    """Nothing is started meanwhile, and the whole plan is made when it ends, though nothing changes then."""
    found = await prioritised(stack, 9, 0)
    database = stack.database
    await database.write(
        lambda connection: hosts.freeze(connection, "h", Frozen.MAINTENANCE, "for a test", stack.clock.now())
    )
    reboot(stack)
    await asyncio.sleep(100)
    assert started(stack) == []
    await database.write(lambda connection: hosts.thaw(connection, "h", Frozen.MAINTENANCE))
    await asyncio.sleep(60)
    assert started(stack) == found
    assert len(await records(stack, "host.booted")) == 1


async def test_what_a_boot_does_not_explain_is_the_table_s(stack: Stack) -> None:
    """A saved memory that is gone is no work of the boot; neither is a guest that nobody knows any more."""
    suspended, missing = await stack.create(), await stack.create()
    await stack.do("suspend", suspended)
    stack.hypervisor.unavailable()
    stack.hypervisor.change(suspended, lambda guest, _: guests.discard_memory(guest))
    stack.hypervisor.undefine(missing)
    reboot(stack)
    stack.hypervisor.available()
    await asyncio.sleep(30)
    (booted,) = await records(stack, "host.booted")
    assert booted["plan"] == {"start": 0, "adopt": 0, "leave": 0, "in flight": 0, "table": 2}
    assert [each["verdict"] for each in await stack.verdicts(missing)] == ["alert"]
    assert (await stack.instance(suspended)).vm_state is VmState.STOPPED


# What is killed on the way.


class Dying:
    """A database that lets a process write so often and no more, as its death does."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.dialect = database.dialect
        #: None: as often as it likes.
        self.left: int | None = None
        self.dead = asyncio.Event()

    async def read(self, work: Work[T]) -> T:
        return await self._database.read(work)

    async def write(self, work: Work[T]) -> T:
        if self.left == 0:
            self.dead.set()
            raise StoreUnavailable("killed by a test")
        if self.left is not None:
            self.left -= 1
        return await self._database.write(work)

    async def seal(self) -> None:
        await self._database.seal()

    async def close(self) -> None:
        return


#: Writes after the boot; beyond these everything is as it was to be.
WRITES = 40


@pytest.mark.parametrize(
    "writes",
    [pytest.param(count, marks=() if count % 16 == 3 else pytest.mark.slow) for count in range(WRITES)],
)
async def test_killed_between_any_two_writes(
    inline_database: Database, swift_folder: Path, writes: int
) -> None:
    """Control plane and agent killed at any moment of it: the next ones go on with the rest, and nothing is twice."""
    dying = Dying(inline_database)
    pace = Pace(parallel=2, delay=1.0)
    stack = Stack(dying, swift_folder, None, pace=pace)
    await stack.start()
    found = await inventory(stack)
    dying.left = writes
    reboot(stack)
    async with asyncio.timeout(1000):
        await dying.dead.wait()
    await stack.stop()
    after = Stack(inline_database, swift_folder, None, pace=pace, after=stack)
    await after.start()
    await asyncio.sleep(60)
    assert await seen(after, found) == AFTER
    assert sorted(map(str, started(after))) == sorted(found[each] for each in ("ran", "ran too", "rescued"))
    assert len(await records(after, "host.booted")) == 1
    assert len(await records(after, "host.restarted")) == 1
    await after.stop()


class Unanswered(Dying):
    """A database that does not answer the commit which makes a plan, nor the first who looks for plans after that."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.failed: list[str] = []

    async def read(self, work: Work[T]) -> T:
        if work is boots.open_on and self.failed == ["write"]:
            self._fail("read")
        return await super().read(work)

    async def write(self, work: Work[T]) -> T:
        done = await super().write(work)
        planned = await super().read(boots.open_on)
        if planned and not self.failed:
            self._fail("write")
        return done

    def _fail(self, what: str) -> None:
        self.failed.append(what)
        raise StoreUnavailable("made by a test")


async def test_a_plan_whose_commit_was_not_answered(inline_database: Database, swift_folder: Path) -> None:
    """It is there, though whoever made it was told otherwise: it is found and carried out, by the same process."""
    unanswered = Unanswered(inline_database)
    stack = Stack(unanswered, swift_folder, None, pace=SLOWLY)
    await stack.start()
    found = await inventory(stack)
    reboot(stack)
    await asyncio.sleep(120)
    assert unanswered.failed == ["write", "read"]
    assert await seen(stack, found) == AFTER
    assert (len(await records(stack, "host.booted")), len(await records(stack, "host.restarted"))) == (1, 1)
    await stack.stop()


@pytest.mark.parametrize(
    ("state", "verdict", "after"),
    [
        ("paused", Kind.RESTORE, "paused paused, boot_paused succeeded"),
        ("active", Kind.ADOPT, "stopped shutoff, adopt succeeded"),
        ("active", Kind.ALERT, "active shutoff, create succeeded"),
        ("active", Kind.IGNORE, "active shutoff, create succeeded"),
        ("active", Kind.QUARANTINE, "error shutoff, adopt succeeded"),
    ],
)
async def test_a_policy_decides(
    inline_database: Database, swift_folder: Path, state: str, verdict: Kind, after: str
) -> None:
    """What becomes of guests that went off with their host is a cell of the arbiter's table like any other (R13)."""
    rule = Rule(expected=VmState(state), observed=Observed.SHUTOFF, cause=Cause.HOST, verdict=verdict)
    policies = Policies(named={"base": Policy(rule=(rule,))}, default="base")
    check(policies)
    stack = Stack(inline_database, swift_folder, None, policies=policies)
    await stack.start()
    instance_id = await stack.create()
    if state == "paused":
        await stack.do("pause", instance_id)
    reboot(stack)
    await asyncio.sleep(120)
    assert (await seen(stack, {"it": instance_id}))["it"] == after
    alerts = len(await records(stack, "alert"))
    assert alerts == (1 if verdict is Kind.QUARANTINE else 0)
    told = [each["verdict"] for each in await stack.verdicts(instance_id)]
    assert told == {Kind.IGNORE: [], Kind.QUARANTINE: ["adopt"]}.get(verdict, [verdict.value])
    await stack.stop()
