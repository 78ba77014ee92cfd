"""Intervals of states: whoever changes a state, in whatever way, ends one and begins the next, in one transaction."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise

import pytest
import sqlalchemy as sa

from stateward.domain.records import Observation
from stateward.domain.states import Cause, Observed, VmState
from stateward.store import instances, intervals, observations
from stateward.store.intervals import OBSERVED, RECORDED, Interval
from stateward.store.tables import INSTANCES
from tests.rows import NOW, insert

FOREVER = NOW * 2


def were(connection: sa.Connection, instance_id: str, kind: str) -> list[Interval]:
    found = intervals.of_instances(connection, [instance_id], begin=0, end=FOREVER)[instance_id]
    return [each for each in found if each.kind == kind]


def said(found: list[Interval]) -> list[tuple[str, float, float | None]]:
    return [
        (each.state, each.began - NOW, None if each.ended is None else each.ended - NOW) for each in found
    ]


def write(connection: sa.Connection, instance_id: str, at: float, state: VmState, **more: object) -> None:
    instances.guarded_update(connection, instance_id, (), {"vm_state": state.value, "updated_at": at, **more})


def see(connection: sa.Connection, instance_id: str, at: float, observed: Observed, seq: int) -> None:
    seen = Observation(instance_id=instance_id, observed=observed, cause=Cause.OTHER, seq=seq, at=at)
    assert observations.observe(connection, seen, host="h")


def test_a_life(connection: sa.Connection) -> None:
    """Each state begins where the one before it ended; the deleted one is none."""
    one = insert(connection, vm_state=VmState.BUILDING.value, observed=Observed.UNKNOWN.value).id
    write(connection, one, NOW + 2, VmState.ACTIVE)
    see(connection, one, NOW + 1.5, Observed.RUNNING, 1)
    write(connection, one, NOW + 5, VmState.ACTIVE)
    write(connection, one, NOW + 9.25, VmState.STOPPED)
    see(connection, one, NOW + 9, Observed.SHUTOFF, 2)
    write(connection, one, NOW + 20, VmState.DELETED)
    see(connection, one, NOW + 21, Observed.MISSING, 3)
    assert said(were(connection, one, RECORDED)) == [
        ("building", 0.0, 2.0),
        ("active", 2.0, 9.25),
        ("stopped", 9.25, 20.0),
    ]
    assert said(were(connection, one, OBSERVED)) == [
        ("unknown", 0.0, 1.5),
        ("running", 1.5, 9.0),
        ("shutoff", 9.0, 20.0),
    ]


@pytest.mark.parametrize("seen", [Observed.UNKNOWN, Observed.MISSING])
def test_a_deleted_one_that_lives_again(connection: sa.Connection, seen: Observed) -> None:
    """What it was meanwhile is nothing."""
    one = insert(connection, observed=seen.value).id
    write(connection, one, NOW + 2, VmState.DELETED)
    write(connection, one, NOW + 9, VmState.BUILDING, observed=Observed.UNKNOWN.value)
    assert said(were(connection, one, RECORDED)) == [("active", 0.0, 2.0), ("building", 9.0, None)]
    assert said(were(connection, one, OBSERVED)) == [(seen.value, 0.0, 2.0), ("unknown", 9.0, None)]


def test_what_was_seen_is_adopted_as_of_then(connection: sa.Connection) -> None:
    """But not before the state before it began, nor after now: an agent's clock is its own."""
    one = insert(connection).id
    write(connection, one, NOW + 9, VmState.STOPPED, state_since=NOW + 4)
    assert said(were(connection, one, RECORDED)) == [("active", 0.0, 4.0), ("stopped", 4.0, None)]
    write(connection, one, NOW + 10, VmState.ACTIVE)
    write(connection, one, NOW + 12, VmState.STOPPED, state_since=NOW + 99)
    write(connection, one, NOW + 13, VmState.PAUSED, state_since=NOW - 50)
    assert said(were(connection, one, RECORDED))[2:] == [
        ("active", 10.0, 12.0),
        ("stopped", 12.0, 12.0),
        ("paused", 12.0, None),
    ]


def by_guarded(connection: sa.Connection, instance_id: str, state: VmState, at: float) -> None:
    write(connection, instance_id, at, state)


def by_held(connection: sa.Connection, instance_id: str, state: VmState, at: float) -> None:
    held = instances.get(connection, instance_id)
    assert held is not None
    instances.change_held(connection, held, {"vm_state": state.value, "updated_at": at})


def by_hand(connection: sa.Connection, instance_id: str, state: VmState, at: float) -> None:
    connection.execute(
        sa.text("UPDATE instances SET vm_state = :state, updated_at = :at WHERE id = :id"),
        {"state": state.value, "at": at, "id": instance_id},
    )


def by_bulk(connection: sa.Connection, instance_id: str, state: VmState, at: float) -> None:
    connection.execute(sa.update(INSTANCES).values(vm_state=state.value, updated_at=at))


WAYS: tuple[Callable[[sa.Connection, str, VmState, float], None], ...] = (
    by_guarded,
    by_held,
    by_hand,
    by_bulk,
)


@pytest.mark.parametrize("way", WAYS)
def test_no_way_passes_it(
    connection: sa.Connection, way: Callable[[sa.Connection, str, VmState, float], None]
) -> None:
    """Not even a statement that knows of no intervals."""
    ids = [insert(connection).id for _number in range(2)]
    way(connection, ids[0], VmState.ERROR, NOW + 3)
    assert said(were(connection, ids[0], RECORDED)) == [("active", 0.0, 3.0), ("error", 3.0, None)]


@pytest.mark.parametrize("seed", range(6))
def test_whatever_happens_they_follow_one_another(connection: sa.Connection, seed: int) -> None:
    """Random changes of several instances, with clocks that jump: no gap, no overlap, and the last is what is so."""
    dice = random.Random(seed)
    ids = [insert(connection, name=f"i{number}").id for number in range(3)]
    recorded = {each: ["active"] for each in ids}
    observed = {each: ["running"] for each in ids}
    at, seq = NOW, 0
    living = [state for state in VmState if state is not VmState.DELETED]
    for _turn in range(60):
        at += dice.choice([0, 0.001, 1, 30, -20])
        one = dice.choice(ids)
        if dice.random() < 0.5:
            state = dice.choice(living)
            since = dice.choice([{}, {"state_since": at - dice.random() * 40}])
            if recorded[one][-1] != state.value:
                recorded[one].append(state.value)
            write(connection, one, at, state, **since)
        else:
            seq += 1
            seen = dice.choice(list(Observed))
            if observed[one][-1] != seen.value:
                observed[one].append(seen.value)
            see(connection, one, at + dice.uniform(-5, 5), seen, seq)
    for one in ids:
        row = instances.get(connection, one)
        assert row is not None
        for kind, expected, now in (
            (RECORDED, recorded[one], row.vm_state.value),
            (OBSERVED, observed[one], row.observed.value),
        ):
            found = were(connection, one, kind)
            assert [each.state for each in found] == expected
            assert (found[0].began, found[-1].ended, found[-1].state) == (NOW, None, now)
            assert all(before.ended == after.began for before, after in pairwise(found))
            assert all(each.ended is None or each.ended >= each.began for each in found)
