"""The observation columns go only forwards, on both databases."""

from __future__ import annotations

import itertools

import pytest
import sqlalchemy as sa

from stateward.domain.records import Observation
from stateward.domain.states import Cause, Observed
from stateward.store import instances, observations
from tests.rows import NOW, insert


def observation(instance_id: str, seq: int, observed: Observed = Observed.SHUTOFF) -> Observation:
    return Observation(
        instance_id=instance_id, observed=observed, cause=Cause.DESTROYED, seq=seq, at=NOW + seq
    )


def test_an_observation_changes_its_own_columns_only(connection: sa.Connection) -> None:
    """The record and the intent are others' to write (ADR 0001)."""
    before = insert(connection, task_state="pausing")
    assert observations.observe(connection, observation(before.id, 5), host="h")
    after = instances.get(connection, before.id)
    assert after is not None
    changed = {name for name in after.__struct_fields__ if getattr(after, name) != getattr(before, name)}
    assert changed == {"observed", "cause", "observed_seq", "observed_at"}
    assert (after.observed, after.cause) == (Observed.SHUTOFF, Cause.DESTROYED)
    assert (after.observed_seq, after.observed_at) == (5, NOW + 5)


def test_what_was_alerted_passes_with_what_was_seen(connection: sa.Connection) -> None:
    """The same seen again keeps that a person was told of it."""
    instance_id = insert(
        connection, observed="shutoff", cause="destroyed", alerted="active shutoff destroyed"
    ).id
    for seq, observed, alerted in (
        (5, Observed.SHUTOFF, "active shutoff destroyed"),
        (6, Observed.PAUSED, None),
        (7, Observed.SHUTOFF, None),
    ):
        assert observations.observe(connection, observation(instance_id, seq, observed), host="h")
        (seen,) = observations.seen_by_id(connection, [instance_id])
        assert (seen.alerted, seen.told) == (alerted, alerted is not None)


def test_a_sequence_number_may_be_large(connection: sa.Connection) -> None:
    """Epoch seconds shifted by 28 bits still fit, for the next two hundred years."""
    seq = 8_000_000_000 << 28
    instance_id = insert(connection).id
    assert observations.observe(connection, observation(instance_id, seq), host="h")
    found = instances.get(connection, instance_id)
    assert found is not None
    assert found.observed_seq == seq


@pytest.mark.parametrize("order", list(itertools.permutations((1, 2, 3))), ids=str)
def test_any_order_ends_the_same(connection: sa.Connection, order: tuple[int, ...]) -> None:
    """The latest is kept, and only what was news says so; twice the same is news once."""
    states = {1: Observed.RUNNING, 2: Observed.PAUSED, 3: Observed.SHUTOFF}
    instance_id = insert(connection).id
    highest = 0
    for seq in order:
        news = observations.observe(connection, observation(instance_id, seq, states[seq]), host="h")
        assert news is (seq > highest)
        highest = max(seq, highest)
        assert not observations.observe(connection, observation(instance_id, seq, states[seq]), host="h")
    found = instances.get(connection, instance_id)
    assert found is not None
    assert (found.observed, found.observed_seq) == (Observed.SHUTOFF, 3)


def test_nobody_is_observed(connection: sa.Connection) -> None:
    """An agent may see a guest that this database does not know."""
    assert not observations.observe(connection, observation("nobody", 1), host="h")


def test_what_another_host_saw_is_nothing(connection: sa.Connection) -> None:
    """Hosts count by themselves: a late word of the one that an instance has left must not hide the new one's."""
    before = insert(connection)
    assert not observations.observe(connection, observation(before.id, 5), host="elsewhere")
    assert instances.get(connection, before.id) == before
