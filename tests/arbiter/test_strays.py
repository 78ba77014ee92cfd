"""A guest that is seen on another host than its record's: never two running, and never the only good one removed."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import looptime
import msgspec
import pytest
import pytest_asyncio
import sqlalchemy as sa

from stateward.agent.agent import Agent
from stateward.agent.driver import DriverError
from stateward.agent.simulated import SimulatedDriver, SimulatedHypervisor
from stateward.agent.simulated.guests import Origin
from stateward.bus.memory import Disorder
from stateward.bus.port import operations_subject
from stateward.domain.actions import BY_KEY
from stateward.domain.locks import ActorKind
from stateward.domain.records import Observation, Operation, OperationState
from stateward.domain.states import Cause, Observed, VmState
from stateward.domain.strays import stray_of
from stateward.domain.verdicts import Stray
from stateward.operations.dispatch import repost
from stateward.operations.preparing import Wanted
from stateward.store import hosts, operations, strays
from stateward.store.engine import Database
from stateward.store.tables import INSTANCES, OUTBOX
from tests.agent.simulated_bench import spec_of
from tests.rows import NOW, actor, instance
from tests.stack import Stack


class TwoHosts:
    """A stack, and a second host ``g`` with an agent of its own."""

    def __init__(self, stack: Stack, folder: Path) -> None:
        self.stack = stack
        self.hypervisor = SimulatedHypervisor()
        self.agent = Agent(
            host="g",
            driver=SimulatedDriver(self.hypervisor),
            bus=stack.bus,
            clock=stack.clock,
            journal=folder / "g.db",
            consoles=stack.consoles,
        )

    async def copy(self, instance_id: str, *, fence: int | None, runs: bool) -> None:
        """Put a guest of an instance on ``g``, as of an operation there with a fence, or behind everybody's back."""
        if fence is not None:
            done = made(instance_id, "g", fence)
            await self.stack.database.write(lambda connection: operations.insert(connection, done))
        driver = SimulatedDriver(self.hypervisor)
        await driver.open(lambda _instance_id: None)
        await driver.prepare_disk(spec_of(instance_id))
        await driver.define(spec_of(instance_id))
        await driver.close()
        if runs:
            self.hypervisor.start(instance_id)

    def there(self, instance_id: str) -> Observed:
        found = self.hypervisor.guest(instance_id)
        return Observed.MISSING if found.spec is None else found.observed


def made(
    instance_id: str,
    host: str,
    fence: int,
    state: OperationState = OperationState.SUCCEEDED,
    action: str = "create",
) -> Operation:
    who = actor()
    return Operation(
        id=str(uuid.uuid4()),
        instance_id=instance_id,
        action=action,
        actor_kind=who.kind,
        user_id="u",
        project_id="p",
        request_id="req-0",
        fence=fence,
        host=host,
        state=state,
        started_at=1.0,
        finished_at=None if state is OperationState.RUNNING else 2.0,
        message=None,
        params={},
    )


@pytest_asyncio.fixture
async def two(inline_database: Database, swift_folder: Path) -> AsyncIterator[TwoHosts]:
    """Give two hosts, behind a bus that doubles and delays."""
    stack = Stack(inline_database, swift_folder, Disorder(seed=1, duplicate=0.5))
    two = TwoHosts(stack, swift_folder)
    with looptime.enabled(strict=True):
        await stack.start()
        await stack.database.write(lambda connection: hosts.register(connection, "g", "nova"))
        await two.agent.start()
    yield two
    with looptime.enabled(strict=True):
        await two.agent.stop()
        await stack.stop()


@pytest.mark.asyncio
@pytest.mark.looptime
class TestOnTwoHosts:
    """From a copy that appears to what becomes of both guests."""

    async def test_what_was_given_back_is_its_owner_s_on_any_host(self, two: TwoHosts) -> None:
        """It runs on there without the mark: adopted, given back, and defined anew from what its owner had kept."""
        instance_id = await two.stack.create()
        await two.stack.do("delete", instance_id)
        theirs = sa.update(INSTANCES).where(INSTANCES.c.id == instance_id).values(adopted_as="theirs")
        await two.stack.database.write(lambda connection: connection.execute(theirs))
        await two.copy(instance_id, fence=None, runs=True)
        run = two.hypervisor.guest(instance_id).run
        two.hypervisor.change(
            instance_id, lambda found, _now: msgspec.structs.replace(found, origin=Origin(adopted=True))
        )
        await asyncio.sleep(15)
        left = two.hypervisor.guest(instance_id)
        assert (left.observed, left.run, left.origin) == (Observed.RUNNING, run, Origin(adopted=False))
        assert await two.stack.history(instance_id) == [
            "create succeeded",
            "delete succeeded",
            "release_stray succeeded",
        ]

    async def test_an_older_copy_is_removed(self, two: TwoHosts) -> None:
        """As on a host that was down while the instance went elsewhere; its own guest is not touched."""
        instance_id = await two.stack.create()
        await two.copy(instance_id, fence=0, runs=True)
        await asyncio.sleep(5)
        assert two.there(instance_id) is Observed.PAUSED
        await asyncio.sleep(35)
        assert two.there(instance_id) is Observed.MISSING
        row = await two.stack.idle(instance_id)
        assert (row.vm_state, row.host, row.fault) == (VmState.ACTIVE, "h", None)
        assert two.stack.guest(instance_id) is Observed.RUNNING
        assert await two.stack.history(instance_id) == [
            "create succeeded",
            "create succeeded",
            "halt_stray succeeded",
            "remove_stray succeeded",
        ]
        (verdict, removed) = await two.stack.verdicts(instance_id)
        assert (verdict["verdict"], verdict["observed"], verdict["host"], verdict["seen"]) == (
            "restore",
            "duplicate",
            "g",
            "running",
        )
        assert await two.stack.verdicts(instance_id, "alert") == []
        # Customers read what their operations say, and are told no hosts.
        assert (await two.stack.operations(instance_id))[-1].message == removed["says"]

    async def test_a_copy_that_may_be_the_right_one_is_halted(self, two: TwoHosts) -> None:
        """Nobody knows where it comes from: neither guest is lost, one runs at most, and a person is told once."""
        instance_id = await two.stack.create()
        await two.copy(instance_id, fence=None, runs=True)
        await asyncio.sleep(60)
        assert two.there(instance_id) is Observed.PAUSED
        assert two.stack.guest(instance_id) is Observed.RUNNING
        row = await two.stack.idle(instance_id)
        assert row.vm_state is VmState.ERROR
        assert row.fault is not None
        assert row.fault.message.startswith("A copy of the guest runs on another host than the record's")
        assert (await two.stack.history(instance_id))[-1] == "halt_stray succeeded"
        (told,) = await two.stack.verdicts(instance_id, "alert")
        assert (told["verdict"], told["host"], told["decided_by"]) == ("quarantine", "g", "table")
        # It is not let run again behind our back either.
        two.hypervisor.resume(instance_id)
        await asyncio.sleep(15)
        assert two.there(instance_id) is Observed.PAUSED

    async def test_a_newer_copy_is_never_removed(self, two: TwoHosts) -> None:
        """The last that was done, was done there: the record is wrong, or the operation that moved it was."""
        instance_id = await two.stack.create()
        await two.copy(instance_id, fence=1000, runs=True)
        await asyncio.sleep(15)
        assert two.there(instance_id) is Observed.PAUSED
        assert two.stack.guest(instance_id) is Observed.RUNNING

    async def test_a_copy_that_is_off_is_kept_and_told_once(self, two: TwoHosts) -> None:
        instance_id = await two.stack.create()
        await two.copy(instance_id, fence=None, runs=False)
        await asyncio.sleep(60)
        assert two.there(instance_id) is Observed.SHUTOFF
        row = await two.stack.idle(instance_id)
        assert (row.vm_state, row.fault) == (VmState.ACTIVE, None)
        (verdict,) = await two.stack.verdicts(instance_id)
        assert (verdict["verdict"], verdict["host"]) == ("alert", "g")

    async def test_a_copy_that_comes_back_is_told_again(self, two: TwoHosts) -> None:
        """It was removed by hand since, and somebody's script put it there anew."""
        instance_id = await two.stack.create()
        for number in (1, 2):
            await two.copy(instance_id, fence=None, runs=False)
            await asyncio.sleep(30)
            assert len(await two.stack.verdicts(instance_id)) == number
            two.hypervisor.undefine(instance_id)
            await asyncio.sleep(15)

    async def test_that_it_was_tried_in_vain_is_told_too(self, two: TwoHosts) -> None:
        """Though a person was told of the copy before: this says that nobody but a person will do it."""
        instance_id = await two.stack.create()
        for _ in range(9):
            two.hypervisor.fail_next("pause", DriverError("No."))
        await two.copy(instance_id, fence=None, runs=True)
        await asyncio.sleep(120)
        assert two.there(instance_id) is Observed.RUNNING
        said = [each["says"] for each in await two.stack.verdicts(instance_id, "alert")]
        assert [each.endswith("do it by hand.") for each in said] == [False] * 5 + [True]

    async def test_what_was_migrated_away_by_hand_is_started_nowhere(self, two: TwoHosts) -> None:
        """The only guest that there is may be halted, even where an older one was, and no second one is started."""
        instance_id = await two.stack.create()
        await two.copy(instance_id, fence=0, runs=True)
        await asyncio.sleep(5)
        two.stack.hypervisor.undefine(instance_id)
        await asyncio.sleep(60)
        assert two.there(instance_id) is Observed.PAUSED
        assert two.stack.guest(instance_id) is Observed.MISSING

    async def test_a_copy_of_what_is_deleted_is_removed(self, two: TwoHosts) -> None:
        """On a host that was down when it was deleted."""
        instance_id = await two.stack.create()
        await two.stack.do("delete", instance_id)
        await two.copy(instance_id, fence=0, runs=True)
        await asyncio.sleep(60)
        assert two.there(instance_id) is Observed.MISSING
        assert (await two.stack.instance(instance_id)).vm_state is VmState.DELETED

    async def test_what_a_fenced_host_is_rid_of_by_others_is_left_to_them(self, two: TwoHosts) -> None:
        """It was noted when the guest was made anew."""
        instance_id = await two.stack.create()
        await two.stack.database.write(
            lambda connection: strays.note(connection, "g", instance_id, 1, two.stack.clock.now())
        )
        await two.copy(instance_id, fence=0, runs=True)
        await asyncio.sleep(60)
        assert two.there(instance_id) is Observed.RUNNING
        assert await two.stack.verdicts(instance_id) == []

    async def test_killed_before_it_is_sent_a_removal_is_sent_to_its_host(self, two: TwoHosts) -> None:
        """Not to the instance's own, whose guest it would remove."""
        instance_id = await two.stack.create()
        admitted = await two.stack.admission.admit(
            BY_KEY["remove_stray"], instance_id, actor(ActorKind.SYSTEM), wanted=Wanted(host="g")
        )
        assert admitted.operation.host == "g"

        def lose(connection: sa.Connection) -> list[str]:
            connection.execute(sa.delete(OUTBOX))
            repost(connection)
            return [subject for _number, subject, _id, _payload in operations.posted(connection)]

        assert await two.stack.database.write(lose) == [operations_subject("g")]
        await two.stack.idle(instance_id)
        assert two.stack.guest(instance_id) is Observed.RUNNING

    async def test_a_host_that_takes_its_time_is_asked_once(self, two: TwoHosts) -> None:
        """However often it tells of the copy meanwhile."""
        instance_id = await two.stack.create()
        hang = two.hypervisor.hang_next("pause")
        await two.copy(instance_id, fence=0, runs=True)
        await asyncio.sleep(60)
        assert (await two.stack.history(instance_id))[-1] == "halt_stray running"
        assert (await two.stack.history(instance_id)).count("halt_stray running") == 1
        assert "halt_stray superseded" not in await two.stack.history(instance_id)
        hang.release()
        await asyncio.sleep(60)
        assert two.there(instance_id) is Observed.MISSING

    async def test_nothing_is_done_while_something_is_in_flight(self, two: TwoHosts) -> None:
        """It may be what brings the guest there."""
        instance_id = await two.stack.create()
        hang = two.stack.hypervisor.hang_next("pause")
        await two.stack.act("pause", instance_id)
        await hang.reached.wait()
        await two.copy(instance_id, fence=0, runs=True)
        await asyncio.sleep(5)
        assert two.there(instance_id) is Observed.RUNNING
        assert await two.stack.verdicts(instance_id) == []
        hang.release()
        await asyncio.sleep(60)
        assert two.there(instance_id) is Observed.MISSING

    async def test_a_question_to_the_guest_keeps_no_copy_running(self, two: TwoHosts) -> None:
        """However long that takes: it is asked of the instance's own guest."""
        instance_id = await two.stack.create()
        asked = made(instance_id, "h", 1, OperationState.RUNNING, action="changePassword")
        await two.stack.database.write(lambda connection: operations.insert(connection, asked))
        await two.copy(instance_id, fence=None, runs=True)
        await asyncio.sleep(15)
        assert two.there(instance_id) is Observed.PAUSED
        assert two.stack.guest(instance_id) is Observed.RUNNING


# ---- what is certain


def seen(observed: Observed = Observed.RUNNING) -> Observation:
    return Observation(instance_id="i", observed=observed, cause=Cause.OTHER, seq=1, at=NOW)


OURS = instance(id="i", host="h", vm_state=VmState.ACTIVE, observed=Observed.RUNNING)


@pytest.mark.parametrize(
    ("history", "stray"),
    [
        ([("h", 5), ("g", 4)], Stray.OLDER_RUNNING),
        ([("g", 4), ("g", 3), ("h", 5)], Stray.OLDER_RUNNING),
        ([("h", 5), ("g", 6)], Stray.RUNNING),
        ([("h", 5), ("g", 4), ("g", 6)], Stray.RUNNING),
        # Never made by us: a person's, or an older Stateward's.
        ([("h", 5)], Stray.RUNNING),
        ([], Stray.RUNNING),
        # Nothing of it is known to be here.
        ([("g", 4)], Stray.RUNNING),
        ([("x", 5), ("g", 4)], Stray.RUNNING),
    ],
)
def test_fences_decide(history: list[tuple[str, int]], stray: Stray) -> None:
    """Only what was done to its guest on the record's host after all that was done there."""
    done = [made("i", host, fence) for host, fence in history]
    assert stray_of(OURS, "g", seen(), done, shared=False) is stray


def test_what_was_not_done_to_the_guest_proves_nothing() -> None:
    """Nor what failed, nor what only changed the record, nor what was done to a copy."""
    there = made("i", "g", 4)
    for done in (
        made("i", "h", 5, OperationState.FAILED),
        made("i", "h", 5, OperationState.SUPERSEDED),
        made("i", "h", 5, action="update_metadata"),
        made("i", "h", 5, action="remove_stray"),
    ):
        assert stray_of(OURS, "g", seen(), [there, done], shared=False) is Stray.RUNNING
    halted = made("i", "g", 6, action="halt_stray")
    assert (
        stray_of(OURS, "g", seen(), [there, made("i", "h", 5), halted], shared=False) is Stray.OLDER_RUNNING
    )


def test_what_is_under_way_there_is_waited_for() -> None:
    under_way = made("i", "g", 4, OperationState.RUNNING)
    assert stray_of(OURS, "g", seen(), [under_way, made("i", "h", 5)], shared=False) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"observed": Observed.MISSING},
        {"observed": Observed.UNKNOWN},
        {"observed": Observed.SHUTOFF, "cause": Cause.MIGRATION},
        # A hold keeps every copy that there is (R6).
        {"hold_blocks": 15, "locked_by": "admin"},
        # Its disks are its owner's.
        {"adopted_as": "web"},
    ],
)
def test_the_record_s_own_guest_must_be_there(changes: dict[str, object]) -> None:
    """Else the other may be all that is left."""
    history = [made("i", "h", 5), made("i", "g", 4)]
    row = msgspec.structs.replace(OURS, **changes)
    assert stray_of(row, "g", seen(), history, shared=False) is Stray.RUNNING
    assert stray_of(row, "g", seen(Observed.SHUTOFF), history, shared=False) is Stray.RESTING
    assert stray_of(row, "g", seen(Observed.PAUSED), history, shared=False) is Stray.RESTING


def test_a_shared_disk_is_not_removed() -> None:
    """It may be the instance's own; a guest that runs on it is halted all the same."""
    history = [made("i", "h", 5), made("i", "g", 4)]
    assert stray_of(OURS, "g", seen(Observed.PAUSED), history, shared=True) is Stray.RESTING
    assert stray_of(OURS, "g", seen(), history, shared=True) is Stray.OLDER_RUNNING
    assert stray_of(OURS, "g", seen(Observed.PAUSED), history, shared=False) is Stray.OLDER


def test_what_is_no_copy() -> None:
    """A guest on its own host, and one that is not there."""
    assert stray_of(OURS, "h", seen(), [], shared=False) is None
    assert stray_of(OURS, "g", seen(Observed.MISSING), [], shared=False) is None
    assert stray_of(OURS, "g", seen(Observed.UNKNOWN), [], shared=False) is None


@pytest.mark.parametrize("state", [VmState.DELETED, VmState.SHELVED_OFFLOADED])
def test_what_is_on_no_host_has_no_newer_copy(state: VmState) -> None:
    """What removed it came after all that was done on any host."""
    row = msgspec.structs.replace(OURS, host="", vm_state=state, observed=Observed.MISSING)
    gone = "delete" if state is VmState.DELETED else "shelveOffload"
    for host in ("g", "h"):
        history = [made("i", "g", 4), made("i", host, 5, action=gone)]
        assert stray_of(row, "g", seen(), history, shared=False) is Stray.OLDER_RUNNING
    assert stray_of(row, "g", seen(), [made("i", "g", 4)], shared=False) is Stray.RUNNING
