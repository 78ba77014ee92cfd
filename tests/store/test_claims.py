"""Claims: taken by a guarded UPDATE and given back once, on both databases."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings, strategies as st

from stateward.domain.placement import NOTHING, Candidate, Room, Wanted, objection
from stateward.store import claims, hosts
from stateward.store.claims import Claim, Purpose
from stateward.store.tables import HOSTS
from tests.rows import NOW, insert

NEED = Room(vcpus=2, memory=100, disk=3)
CAPACITY = Room(vcpus=5, memory=1000, disk=100)


@pytest.fixture(autouse=True)
def two_hosts(connection: sa.Connection) -> None:
    """Register ``a`` and ``b``, both just heard of."""
    for name in ("a", "b"):
        hosts.register(connection, name, "nova")
    connection.execute(sa.update(HOSTS).values(seen_at=NOW))


def take(connection: sa.Connection, host: str, *ids: str, **changes: Any) -> bool:
    facts: dict[str, Any] = {"purpose": Purpose.HOME, "need": NEED, "capacity": CAPACITY, "since": NOW}
    return claims.take(connection, host, ids, **(facts | changes))


def sums(connection: sa.Connection) -> dict[str, tuple[Room, int]]:
    return {host.name: (host.claimed, host.claims) for host in hosts.every(connection)}


def test_taken_until_it_is_full(connection: sa.Connection) -> None:
    """The third would need six of five vCPUs: nothing of it is kept."""
    assert take(connection, "a", "1")
    assert take(connection, "a", "2")
    assert not take(connection, "a", "3")
    assert sums(connection) == {"a": (NEED.times(2), 2), "b": (NOTHING, 0)}
    assert claims.of_instance(connection, "3") == {}
    assert claims.of_instance(connection, "2") == {
        Purpose.HOME: Claim(instance_id="2", purpose=Purpose.HOME, host="a", room=NEED)
    }


def test_several_at_once_or_none(connection: sa.Connection) -> None:
    """Their sum must fit."""
    assert not take(connection, "a", "1", "2", "3")
    assert sums(connection)["a"] == (NOTHING, 0)
    assert take(connection, "a", "1", "2")
    assert sums(connection)["a"] == (NEED.times(2), 2)


@pytest.mark.parametrize(
    "change", [{"enabled": False}, {"forced_down": True}, {"seen_at": NOW - 1}, {"seen_at": None}]
)
def test_a_host_that_went_away(connection: sa.Connection, change: dict[str, Any]) -> None:
    """Between the choice and the claim: the claim itself sees it."""
    connection.execute(sa.update(HOSTS).where(HOSTS.c.name == "a").values(**change))
    assert not take(connection, "a", "1")
    assert take(connection, "b", "1")


def test_given_back_once(connection: sa.Connection) -> None:
    """Again, or for somebody who holds nothing, it changes nothing."""
    take(connection, "a", "1")
    take(connection, "a", "2")
    assert [claim.instance_id for claim in claims.release(connection, "1")] == ["1"]
    for instance_id in ("1", "nobody"):
        assert claims.release(connection, instance_id) == []
    assert sums(connection)["a"] == (NEED, 1)


def test_a_host_with_less_than_is_claimed_keeps_what_it_has(connection: sa.Connection) -> None:
    """Nothing more fits, and what leaves is given back as it was taken."""
    take(connection, "a", "1")
    take(connection, "a", "2")
    shrunk = Room(vcpus=1, memory=10, disk=1)
    assert not take(connection, "a", "3", capacity=shrunk)
    assert sums(connection)["a"] == (NEED.times(2), 2)
    claims.release(connection, "1")
    assert sums(connection)["a"] == (NEED, 1)


LARGER = Room(vcpus=4, memory=200, disk=3)


def test_a_move_that_is_confirmed(connection: sa.Connection) -> None:
    """Both are held until then; the old one is given back, once."""
    take(connection, "a", "1")
    take(connection, "b", "1", purpose=Purpose.MOVE, need=LARGER)
    assert sums(connection) == {"a": (NEED, 1), "b": (LARGER, 1)}
    assert claims.settle_move(connection, "1")
    assert not claims.settle_move(connection, "1")
    assert sums(connection) == {"a": (NOTHING, 0), "b": (LARGER, 1)}
    assert [claim.host for claim in claims.release(connection, "1", Purpose.HOME)] == ["b"]
    assert sums(connection) == {"a": (NOTHING, 0), "b": (NOTHING, 0)}


def test_a_move_that_is_reverted(connection: sa.Connection) -> None:
    """Only what was claimed for it is given back; deleting in the middle gives back all."""
    take(connection, "a", "1")
    take(connection, "b", "1", purpose=Purpose.MOVE, need=LARGER)
    claims.release(connection, "1", Purpose.MOVE)
    assert sums(connection) == {"a": (NEED, 1), "b": (NOTHING, 0)}
    take(connection, "b", "1", purpose=Purpose.MOVE, need=LARGER)
    assert [claim.host for claim in claims.release(connection, "1")] == ["a", "b"]
    assert sums(connection) == {"a": (NOTHING, 0), "b": (NOTHING, 0)}


def test_where_a_group_is(connection: sa.Connection) -> None:
    """Each member once on each host it holds anything on, but for one that is asked about itself."""
    for instance_id, group in (("1", "g"), ("2", "g"), ("3", "other"), ("4", "g")):
        insert(connection, id=instance_id, group_id=group)
    take(connection, "a", "1", "2", need=Room())
    take(connection, "a", "1", need=Room(), purpose=Purpose.MOVE)
    take(connection, "b", "3", need=Room())
    take(connection, "b", "2", need=Room(), purpose=Purpose.MOVE)
    assert claims.spread_of(connection, "g") == {"a": 2, "b": 1}
    assert claims.spread_of(connection, "g", "1") == {"a": 1, "b": 1}
    assert claims.spread_of(connection, "none") == {}
    assert claims.hosts_of(connection, ["2", "x"], "p") == {"a", "b"}
    assert claims.hosts_of(connection, ["2"], "another project") == frozenset()


small = st.integers(0, 6)
rooms = st.builds(Room, vcpus=small, memory=small, disk=small)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(claimed=rooms, need=rooms, capacity=rooms)
def test_the_claim_and_the_choice_agree(
    connection: sa.Connection, claimed: Room, need: Room, capacity: Room
) -> None:
    """What the pure rules say fits is what the WHERE clause says fits: otherwise one would ask again for ever."""
    connection.execute(
        sa.update(HOSTS).values(
            claimed_vcpus=claimed.vcpus, claimed_memory=claimed.memory, claimed_disk=claimed.disk
        )
    )
    candidate = Candidate(
        name="a",
        zone="nova",
        enabled=True,
        up=True,
        reachable=True,
        capacity=capacity,
        claimed=claimed,
    )
    taken = take(connection, "a", "1", need=need, capacity=capacity)
    assert taken == (objection(candidate, Wanted(need=need)) is None)
    claims.release(connection, "1")
    assert sums(connection)["a"][0] == claimed
