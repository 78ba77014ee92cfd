"""Plans for hosts, on both databases: each step happens once."""

from __future__ import annotations

import sqlalchemy as sa

from stateward.domain.evacuation import Move, MoveState, PlanKind, PlanState
from stateward.domain.hosts import Condition, Event
from stateward.domain.states import VmState
from stateward.store import host_plans, hosts, strays
from stateward.store.host_plans import KeptPlan
from stateward.store.strays import Stray
from tests.rows import NOW


def plan(plan_id: str, at: float = NOW, host: str = "h") -> KeptPlan:
    return KeptPlan(
        id=plan_id, host=host, kind=PlanKind.EVACUATE, state=PlanState.PLANNED, made_at=at, made_by="u"
    )


def move(name: str, action: str | None = "evacuate") -> Move:
    return Move(
        instance_id=name,
        name=name,
        project_id="p",
        vm_state=VmState.ACTIVE,
        action=action,
        to=None if action is None else "x",
        says="why",
    )


def test_a_plan_is_approved_once(connection: sa.Connection) -> None:
    """And ended once; one that was cancelled is neither."""
    host_plans.insert(connection, plan("1"), [move("a"), move("b", None)])
    assert [each.state for each in host_plans.moves(connection, "1")] == [MoveState.WAITING, MoveState.LEFT]
    assert not host_plans.end(connection, "1", NOW)
    assert host_plans.approve(connection, "1", "v", NOW + 1)
    assert not host_plans.approve(connection, "1", "w", NOW + 2)
    kept = host_plans.get(connection, "1")
    assert kept is not None
    assert (kept.state, kept.approved_by, kept.approved_at) == (PlanState.APPROVED, "v", NOW + 1)
    assert [each.id for each in host_plans.in_state(connection, PlanState.APPROVED)] == ["1"]
    assert host_plans.cancel(connection, "h", PlanKind.EVACUATE, NOW, approved=False) == []
    assert host_plans.cancel(connection, "h", PlanKind.EVACUATE, NOW, approved=True) == ["1"]
    assert not host_plans.end(connection, "1", NOW)
    assert not host_plans.still(connection, "1", PlanState.APPROVED)


def test_the_newest_counts(connection: sa.Connection) -> None:
    """Of its host and kind."""
    for each in (plan("1"), plan("2", NOW + 5), plan("3", NOW + 9, "other")):
        host_plans.insert(connection, each, [])
    found = host_plans.of_host(connection, "h", PlanKind.EVACUATE)
    assert found is not None
    assert found.id == "2"
    assert host_plans.of_host(connection, "h", PlanKind.DRAIN) is None


def test_a_line_goes_on_from_where_it_was_read(connection: sa.Connection) -> None:
    """Who comes second changes nothing."""
    host_plans.insert(connection, plan("1"), [move("a")])
    (line,) = host_plans.moves(connection, "1")
    assert host_plans.move_on(connection, line, MoveState.ADMITTED, operation_id="o")
    assert not host_plans.move_on(connection, line, MoveState.REFUSED, message="No.")
    (line,) = host_plans.moves(connection, "1")
    assert (line.state, line.operation_id, line.to_host, line.message) == (
        MoveState.ADMITTED,
        "o",
        "x",
        None,
    )


def test_strays(connection: sa.Connection) -> None:
    """One of an instance and host, by its newest fence; what is gone by an older one stays."""
    strays.note(connection, "h", "a", 3, NOW)
    strays.note(connection, "h", "b", 1, NOW + 1)
    strays.note(connection, "h", "a", 5, NOW + 2)
    assert strays.on(connection, "h") == [
        Stray(host="h", instance_id="b", fence=1),
        Stray(host="h", instance_id="a", fence=5),
    ]
    strays.gone(connection, Stray(host="h", instance_id="a", fence=3))
    assert len(strays.on(connection, "h")) == 2
    strays.gone(connection, Stray(host="h", instance_id="a", fence=5))
    assert [each.instance_id for each in strays.on(connection, "h")] == ["b"]


def test_conditions(connection: sa.Connection) -> None:
    """Only by a row of the table, and silence only as of the heartbeat that was looked at."""
    hosts.register(connection, "h", "z")

    def now(event: Event, seq: int | None = None) -> Condition | None:
        return hosts.become(connection, "h", event, "why", NOW, seq=seq)

    assert now(Event.FENCED) is None
    assert now(Event.SILENT, seq=7) is None
    assert now(Event.SILENT, seq=0) is Condition.SUSPECT
    assert hosts.hold_fenced(connection, "h") is None
    assert now(Event.CONFIRMED) is Condition.DEAD
    assert now(Event.FENCED) is Condition.FENCED
    held = hosts.hold_fenced(connection, "h")
    assert held is not None
    assert (held.name, held.condition_detail) == ("h", "why")
    assert now(Event.CLEAN) is None
    assert now(Event.HEARD) is Condition.RETURNED
    assert hosts.hold_fenced(connection, "h") is None
    assert now(Event.CLEAN) is Condition.UP
