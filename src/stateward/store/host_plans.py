"""Plans for hosts and their lines: durable, so that a kill between any two lines goes on with the next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec
import sqlalchemy as sa

from stateward.domain.evacuation import Move, MoveState, PlanKind, PlanState
from stateward.domain.states import VmState
from stateward.store.host_tables import HOST_MOVES, HOST_PLANS

T = TypeVar("T")

_PLANS = HOST_PLANS.c
_MOVES = HOST_MOVES.c


class KeptPlan(msgspec.Struct, frozen=True, kw_only=True):
    """A plan. Times are seconds since the epoch."""

    id: str
    host: str
    kind: PlanKind
    state: PlanState
    made_at: float
    made_by: str
    approved_at: float | None = None
    approved_by: str | None = None
    ended_at: float | None = None
    detail: dict[str, Any] = {}


class KeptMove(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a plan."""

    plan_id: str
    number: int
    instance_id: str
    name: str
    project_id: str
    vm_state: VmState
    action: str | None
    to_host: str | None
    says: str
    state: MoveState
    operation_id: str | None
    #: Why it ended as it did.
    message: str | None


def insert(connection: sa.Connection, plan: KeptPlan, moves: Sequence[Move]) -> None:
    """Keep a plan and its lines."""
    values = msgspec.structs.asdict(plan) | {"kind": plan.kind.value, "state": plan.state.value}
    connection.execute(sa.insert(HOST_PLANS).values(**values))
    if not moves:
        return
    connection.execute(
        sa.insert(HOST_MOVES),
        [
            {
                "plan_id": plan.id,
                "number": number,
                "instance_id": move.instance_id,
                "name": move.name,
                "project_id": move.project_id,
                "vm_state": move.vm_state.value,
                "action": move.action,
                "to_host": move.to,
                "says": move.says,
                "state": (MoveState.LEFT if move.action is None else MoveState.WAITING).value,
            }
            for number, move in enumerate(moves, start=1)
        ],
    )


def get(connection: sa.Connection, plan_id: str) -> KeptPlan | None:
    """Return a plan; None when there is none."""
    return _plan_of(connection.execute(sa.select(HOST_PLANS).where(_PLANS.id == plan_id)))


def of_host(connection: sa.Connection, host: str, kind: PlanKind) -> KeptPlan | None:
    """Return the newest plan of a kind for a host; None when there was none."""
    row = connection.execute(
        sa.select(HOST_PLANS)
        .where(_PLANS.host == host, _PLANS.kind == kind.value)
        .order_by(_PLANS.made_at.desc(), _PLANS.id)
        .limit(1)
    )
    return _plan_of(row)


def in_state(connection: sa.Connection, state: PlanState) -> list[KeptPlan]:
    """Return the plans in a state, oldest first."""
    rows = connection.execute(
        sa.select(HOST_PLANS).where(_PLANS.state == state.value).order_by(_PLANS.made_at, _PLANS.id)
    )
    return [_read(row, KeptPlan) for row in rows.mappings()]


def moves(connection: sa.Connection, plan_id: str) -> list[KeptMove]:
    """Return a plan's lines in their order."""
    rows = connection.execute(sa.select(HOST_MOVES).where(_MOVES.plan_id == plan_id).order_by(_MOVES.number))
    return [_read(row, KeptMove) for row in rows.mappings()]


def approve(connection: sa.Connection, plan_id: str, by: str, now: float) -> bool:
    """Approve a plan that waits for that; False when it does not."""
    return _become(
        connection, plan_id, PlanState.PLANNED, PlanState.APPROVED, approved_at=now, approved_by=by
    )


def end(connection: sa.Connection, plan_id: str, now: float) -> bool:
    """End a plan that was approved; False when it was not, or is over."""
    return _become(connection, plan_id, PlanState.APPROVED, PlanState.DONE, ended_at=now)


def cancel(connection: sa.Connection, host: str, kind: PlanKind, now: float, *, approved: bool) -> list[str]:
    """Give up a host's plans that are not over; return their ids.

    Args:
        connection: in a transaction.
        host: whose.
        kind: of plans.
        now: seconds since the epoch.
        approved: also those that were approved; what was admitted goes on.
    """
    states = [PlanState.PLANNED.value, *([PlanState.APPROVED.value] if approved else [])]
    rows = connection.execute(
        sa.update(HOST_PLANS)
        .where(_PLANS.host == host, _PLANS.kind == kind.value, _PLANS.state.in_(states))
        .values(state=PlanState.CANCELLED.value, ended_at=now)
        .returning(_PLANS.id)
    )
    return sorted(row.id for row in rows)


def still(connection: sa.Connection, plan_id: str, state: PlanState) -> bool:
    """Hold a plan's row until the transaction ends, if it is in a state; False when it is not."""
    return _become(connection, plan_id, state, state)


def move_on(
    connection: sa.Connection,
    move: KeptMove,
    state: MoveState,
    *,
    operation_id: str | None = None,
    to_host: str | None = None,
    message: str | None = None,
) -> bool:
    """Have a line come further; False when it is not as it was read."""
    changed = connection.execute(
        sa.update(HOST_MOVES)
        .where(_MOVES.plan_id == move.plan_id, _MOVES.number == move.number, _MOVES.state == move.state.value)
        .values(
            state=state.value,
            operation_id=operation_id or move.operation_id,
            to_host=to_host or move.to_host,
            message=message,
        )
    )
    return changed.rowcount == 1


def _become(
    connection: sa.Connection, plan_id: str, was: PlanState, state: PlanState, **changes: Any
) -> bool:
    changed = connection.execute(
        sa.update(HOST_PLANS)
        .where(_PLANS.id == plan_id, _PLANS.state == was.value)
        .values(state=state.value, **changes)
    )
    return changed.rowcount == 1


def _plan_of(rows: sa.CursorResult[Any]) -> KeptPlan | None:
    row = rows.mappings().one_or_none()
    return None if row is None else _read(row, KeptPlan)


def _read(row: sa.RowMapping, kind: type[T]) -> T:
    # SQLAlchemy's names are a kind of str of its own, which msgspec does not take.
    return msgspec.convert({str(name): value for name, value in row.items()}, kind)
