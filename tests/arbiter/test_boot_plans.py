"""The rows of a boot's plan, on both databases: made with the judging, and carried out by whoever comes (R14)."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec
import pytest
import sqlalchemy as sa

from stateward.arbiter.reconcile import Arbiter
from stateward.domain.boots import Pace, Turn, TurnState
from stateward.domain.hosts import Condition, Event, Frozen
from stateward.domain.records import Observation, Operation, OperationState, Report
from stateward.domain.states import Cause, Observed, VmState
from stateward.operations.admission import Admission, ShutdownDefaults
from stateward.store import boots, hosts, instances, operations
from stateward.store.engine import Database
from stateward.store.tables import BOOT_TURNS
from tests.arbiter.test_reports import Overtaking, add, row_of
from tests.rows import NOW, SetClock


def make_arbiter(database: Database, **pace: Any) -> Arbiter:
    """Make an arbiter that does what the test says and nothing by itself."""
    return Arbiter(
        Admission(database, SetClock(), ShutdownDefaults(), lambda: None),
        pace=Pace(**({"parallel": 2} | pace)),
    )


def report(seq: int, boot_id: str, *off: str, complete: bool = True) -> Report:
    return Report(
        host="h",
        complete=complete,
        observations=tuple(
            Observation(instance_id=each, observed=Observed.SHUTOFF, cause=Cause.OTHER, seq=seq, at=NOW + seq)
            for each in off
        ),
        seq=seq,
        at=NOW + seq,
        boot_id=boot_id,
    )


async def known(database: Database) -> None:
    """Make the host known, in its first boot."""
    await database.write(lambda connection: hosts.register(connection, "h", "nova"))
    await database.write(lambda connection: hosts.note_boot(connection, "h", "one", 1, NOW))


async def turns(database: Database) -> list[Turn]:
    found = await database.read(lambda connection: boots.turns(connection, "h"))
    return sorted(found, key=lambda turn: turn.number)


async def operations_of(database: Database, instance_id: str) -> list[Operation]:
    return await database.read(lambda connection: operations.of_instance(connection, instance_id))


async def end_operations(database: Database) -> int:
    """End what is under way, as well as it can."""
    unfinished = await database.read(operations.unfinished)
    for each in unfinished:
        await _end(database, each)
    return len(unfinished)


async def _end(database: Database, each: Operation) -> None:
    await database.write(
        lambda connection: operations.finish(connection, each.id, OperationState.SUCCEEDED, NOW, each.message)
    )


async def test_a_plan_is_made_by_the_first_complete_report(database: Database) -> None:
    """Not by one of a few, and not by one of the boot before that comes late."""
    await known(database)
    ran = [await add(database) for _ in range(3)]
    stopped = await add(database, vm_state="stopped")
    arbiter = make_arbiter(database)
    await arbiter.intake.take(report(10, "two", ran[0], complete=False))
    await arbiter.intake.take(report(9, "one", *ran, stopped))
    assert await turns(database) == []
    await arbiter.boots.step("h")
    assert await end_operations(database) == 0
    await arbiter.intake.take(report(11, "two", *ran, stopped))
    assert [(turn.instance_id, turn.state, turn.boot_id) for turn in await turns(database)] == [
        (each, TurnState.WAITING, "two") for each in ran
    ]
    for each in ran:
        assert await arbiter.reconcile(each) is None


async def test_steps_start_so_many_and_no_more(database: Database) -> None:
    """However often they are done, and by however many at once."""
    await known(database)
    ran = [await add(database) for _ in range(5)]
    arbiters = [make_arbiter(database) for _ in range(3)]
    await arbiters[0].intake.take(report(10, "two", *ran))
    counts: list[int] = []
    for _ in range(4):
        for _ in range(2):
            await asyncio.gather(*(arbiter.boots.step("h") for arbiter in arbiters))
        counts.append(await end_operations(database))
    assert counts == [2, 2, 1, 0]
    assert await turns(database) == []
    for each in ran:
        found = await operations_of(database, each)
        assert [operation.action for operation in found] == ["boot_start"]
        assert found[0].message == "Its host has rebooted and it ran before; it is started again."


@pytest.mark.parametrize("returned", [False, True])
async def test_a_silent_host_s_inventory_is_judged_and_waits_for_its_heartbeat(
    database: Database, *, returned: bool
) -> None:
    """What the boot explains is written, and in the same transaction the host is frozen for its silence (ADR 0020)."""
    await known(database)
    ran, paused = await add(database), await add(database, vm_state="paused")
    arbiter = make_arbiter(database)
    await arbiter.intake.take(report(10, "two", complete=False))
    events = [Event.SILENT, *([Event.CONFIRMED, Event.HEARD] if returned else [])]
    for event in events:
        becomes = functools.partial(
            hosts.become, name="h", event=event, detail=f"It is {event}.", now=NOW + 5
        )
        await database.write(becomes)
    await arbiter.intake.take(report(11, "two", ran, paused))
    (host,) = await database.read(hosts.every)
    assert (host.condition, host.boot_id) == (Condition.RETURNED if returned else Condition.SUSPECT, "two")
    assert (host.frozen, host.frozen_at, host.frozen_detail) == (
        Frozen.SILENT,
        NOW + 5,
        f"It is {events[-1]}.",
    )
    assert (await row_of(database, paused)).vm_state is VmState.STOPPED
    assert [turn.instance_id for turn in await turns(database)] == [ran]
    await arbiter.boots.step("h")
    assert await operations_of(database, ran) == []
    back = Event.CLEAN if returned else Event.HEARD
    await database.write(lambda connection: hosts.become(connection, "h", back, "It is back.", NOW + 6))
    assert await database.write(lambda connection: hosts.thaw(connection, "h", Frozen.SILENT))
    assert (await database.read(lambda connection: hosts.frozen(connection, "h"))) is None
    await arbiter.boots.step("h")
    assert [operation.action for operation in await operations_of(database, ran)] == ["boot_start"]


@pytest.mark.parametrize("left", ["frozen", "moved"])
async def test_what_is_not_this_plan_s_any_more(database: Database, left: str) -> None:
    """A host whose instances are not judged, or an instance that something was admitted for, is left."""
    await known(database)
    instance_id = await add(database)
    arbiter = make_arbiter(database)
    await arbiter.intake.take(report(10, "two", instance_id))
    if left == "frozen":
        await database.write(lambda connection: hosts.note_boot(connection, "h", "three", 11, NOW))
    else:
        turn = (await turns(database))[0]
        await database.write(lambda connection: boots.change(connection, turn, fence=turn.fence - 1))
    await arbiter.boots.step("h")
    assert await end_operations(database) == 0
    assert (await row_of(database, instance_id)).task_state is None
    assert [turn.state for turn in await turns(database)] == (["waiting"] if left == "frozen" else [])


async def test_the_record_follows_in_the_same_transaction(database: Database) -> None:
    """Of those that are not started: a paused one, and one with a lock."""
    await known(database)
    paused, locked = (
        await add(database, vm_state="paused", observed="paused"),
        await add(database, owner_blocks=1, locked_by="owner"),
    )
    await make_arbiter(database).intake.take(report(10, "two", paused, locked))
    assert [(await row_of(database, each)).vm_state for each in (paused, locked)] == [VmState.STOPPED] * 2


def test_a_turn_is_its_row() -> None:
    """No field without a column."""
    assert set(Turn.__struct_fields__) == set(BOOT_TURNS.c.keys())
    assert msgspec.structs.fields(Turn)[0].name == "instance_id"


class Planning(Overtaking):
    """A database in which a plan is made between a verdict's look and its write."""

    def __init__(self, database: Database, turn: Turn) -> None:
        super().__init__(database)
        self._turn = turn

    async def overtake(self) -> None:
        """Make it."""
        await self._database.write(lambda connection: boots.begin(connection, "h", [self._turn]))


@pytest.mark.parametrize("cause", ["guest", "destroyed"], ids=["adopt", "restore"])
async def test_a_plan_goes_before_a_verdict(database: Database, cause: str) -> None:
    """That is in the condition of the verdict's write, by the fence."""
    await known(database)
    instance_id = await add(database, observed="shutoff", cause=cause)
    turn = Turn(
        instance_id=instance_id,
        host="h",
        boot_id="one",
        fence=1,
        priority=0,
        number=1,
        state=TurnState.WAITING,
    )
    await make_arbiter(Planning(database, turn)).reconcile(instance_id)
    row = await row_of(database, instance_id)
    assert (row.vm_state, row.task_state, row.fence) == (VmState.ACTIVE, None, 1)
    assert await operations_of(database, instance_id) == []


async def test_a_second_boot_forgets_the_first_one_s_plan(database: Database) -> None:
    """What waited for its turn has a lock by then: it is recorded as stopped, whatever the old plan says."""
    await known(database)
    instance_id = await add(database)
    arbiter = make_arbiter(database)
    await arbiter.intake.take(report(10, "two", instance_id))
    assert [turn.state for turn in await turns(database)] == [TurnState.WAITING]
    await database.write(
        lambda connection: instances.guarded_update(
            connection, instance_id, (), {"owner_blocks": 1, "locked_by": "owner"}
        )
    )
    await arbiter.intake.take(report(20, "three", instance_id))
    assert (await row_of(database, instance_id)).vm_state is VmState.STOPPED
    assert await turns(database) == []


#: How an instance that waits for its turn is locked, and what is written of its row between a look at it and what is
#: done by that.
MEANWHILE: Final[Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]]] = {
    "locked": ({}, {"owner_blocks": 1, "locked_by": "owner"}),
    "locked, and locked by another too": (
        {"owner_blocks": 1, "locked_by": "owner"},
        {"admin_blocks": 3, "locked_by": "admin"},
    ),
    "locked, and seen anew": (
        {"owner_blocks": 1, "locked_by": "owner"},
        {"observed_seq": 99},
    ),
}


def look_away(monkeypatch: pytest.MonkeyPatch, name: str, then: Callable[[sa.Connection], object]) -> None:
    """Have something happen once, right after a look at rows that are not held: PostgreSQL lets others commit then."""
    look, due = getattr(instances, name), [then]

    def looked(connection: sa.Connection, *arguments: Any) -> Any:
        found = look(connection, *arguments)
        if due:
            due.pop()(connection)
        return found

    monkeypatch.setattr(instances, name, looked)


def written(instance_id: str, columns: Mapping[str, Any]) -> Callable[[sa.Connection], object]:
    """Return what writes columns of a row past everything."""
    return lambda connection: instances.guarded_update(
        connection, instance_id, (), {"updated_at": NOW, **columns}
    )


@pytest.mark.parametrize(("recorded", "then"), MEANWHILE.values(), ids=MEANWHILE.keys())
@pytest.mark.parametrize("looks", ["get", "on_host"])
async def test_what_comes_between_a_look_and_what_follows(
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
    *,
    looks: str,
    recorded: Mapping[str, Any],
    then: Mapping[str, Any],
) -> None:
    """Counts: left to the table, an instance would be started against a lock."""
    await known(database)
    instance_id = await add(database)
    arbiter = make_arbiter(database)
    if looks == "get":
        await arbiter.intake.take(report(10, "two", instance_id))
        await database.write(written(instance_id, recorded))
        look_away(monkeypatch, looks, written(instance_id, then))
        await arbiter.boots.step("h")
    else:
        await database.write(written(instance_id, recorded))
        look_away(monkeypatch, looks, written(instance_id, then))
        await arbiter.intake.take(report(10, "two", instance_id))
        await arbiter.boots.step("h")
    assert [each.action for each in await operations_of(database, instance_id)] == ["adopt"]
    assert (await row_of(database, instance_id)).vm_state is VmState.STOPPED
    assert await turns(database) == []


async def test_what_is_left_as_it_is_is_told_whatever_is_seen_meanwhile(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody judges it after that, so that a person would never know."""
    await known(database)
    instance_id = await add(database, vm_state="resized", was="active")
    arbiter = make_arbiter(database)
    await arbiter.intake.take(report(10, "two", instance_id))
    await database.write(written(instance_id, {"owner_blocks": 1, "locked_by": "owner"}))
    look_away(monkeypatch, "get", written(instance_id, {"observed_seq": 99}))
    await arbiter.boots.step("h")
    assert [turn.state for turn in await turns(database)] == [TurnState.LEFT]
    row = await row_of(database, instance_id)
    assert row.alerted == row.deviation


@pytest.mark.parametrize("locked", [{}, {"owner_blocks": 1, "locked_by": "owner"}], ids=["start", "adopt"])
async def test_a_host_that_is_frozen_in_the_middle_of_a_step(
    database: Database, monkeypatch: pytest.MonkeyPatch, locked: Mapping[str, Any]
) -> None:
    """Its instances wait for their turns until it is thawed; they are not left to the table, which has no pace."""
    await known(database)
    instance_id = await add(database)
    arbiter = make_arbiter(database)
    await arbiter.intake.take(report(10, "two", instance_id))
    await database.write(written(instance_id, locked))
    look_away(
        monkeypatch,
        "get",
        lambda connection: hosts.freeze(connection, "h", Frozen.MAINTENANCE, "for a test", NOW),
    )
    await arbiter.boots.step("h")
    assert [turn.state for turn in await turns(database)] == [TurnState.WAITING]
    assert await operations_of(database, instance_id) == []
    await database.write(lambda connection: hosts.thaw(connection, "h", Frozen.MAINTENANCE))
    await arbiter.boots.step("h")
    done = "adopt" if locked else "boot_start"
    assert [each.action for each in await operations_of(database, instance_id)] == [done]
