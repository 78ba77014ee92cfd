"""Operations, the audit trail and the outbox: what is written beside every change of an instance."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import sqlalchemy as sa

from stateward.domain.audit import Entry, pack
from stateward.domain.events import FROM, TO
from stateward.domain.locks import ActorKind
from stateward.domain.records import Actor, Instance, Operation, OperationState, Order, ProgressReport
from stateward.store import audit
from stateward.store.tables import INSTANCES, OPERATIONS, OUTBOX

_COLUMNS = OPERATIONS.c
_INSERT = sa.insert(OPERATIONS)
_INSERT_OUTBOX = sa.insert(OUTBOX)
_SUPERSEDE = (
    sa.update(OPERATIONS)
    .where(_COLUMNS.instance_id == sa.bindparam("b_instance"), _COLUMNS.finished_at.is_(None))
    .values(
        state=OperationState.SUPERSEDED.value,
        finished_at=sa.bindparam("b_now"),
        message=sa.bindparam("b_message"),
    )
    .returning(_COLUMNS.id)
)
_FINISH = (
    sa.update(OPERATIONS)
    .where(_COLUMNS.id == sa.bindparam("b_id"), _COLUMNS.finished_at.is_(None))
    .values(
        state=sa.bindparam("b_state"),
        finished_at=sa.bindparam("b_now"),
        message=sa.bindparam("b_message"),
    )
)
_PROGRESS = (
    sa.update(OPERATIONS)
    .where(
        _COLUMNS.id == sa.bindparam("b_id"),
        _COLUMNS.finished_at.is_(None),
        _COLUMNS.progress_seq < sa.bindparam("b_seq"),
    )
    .values(
        state=OperationState.RUNNING.value,
        progress=sa.bindparam("b_progress"),
        progress_seq=sa.bindparam("b_seq"),
    )
)


def operation_of(row: sa.Row[Any]) -> Operation:
    """Make the record of a row."""
    return Operation(
        id=row.id,
        instance_id=row.instance_id,
        action=row.action,
        actor_kind=ActorKind(row.actor_kind),
        user_id=row.user_id,
        project_id=row.project_id,
        request_id=row.request_id,
        fence=row.fence,
        host=row.host,
        state=OperationState(row.state),
        started_at=row.started_at,
        finished_at=row.finished_at,
        message=row.message,
        params=row.params,
        progress=row.progress,
        order=row.standing_order,
    )


def insert(connection: sa.Connection, operation: Operation) -> None:
    """Write a new operation."""
    connection.execute(
        _INSERT,
        {
            "id": operation.id,
            "instance_id": operation.instance_id,
            "action": operation.action,
            "actor_kind": operation.actor_kind.value,
            "user_id": operation.user_id,
            "project_id": operation.project_id,
            "request_id": operation.request_id,
            "fence": operation.fence,
            "host": operation.host,
            "state": operation.state.value,
            "started_at": operation.started_at,
            "finished_at": operation.finished_at,
            "message": operation.message,
            "params": operation.params,
        },
    )


def supersede(connection: sa.Connection, instance_id: str, now: float, message: str) -> list[str]:
    """End every unfinished operation of an instance as superseded and return their ids."""
    rows = connection.execute(
        _SUPERSEDE, {"b_instance": instance_id, "b_now": now, "b_message": message}
    ).all()
    return [row.id for row in rows]


def give_order(
    connection: sa.Connection,
    operation: Operation,
    order: Order,
    *,
    unheld: bool,
    project_id: str | None,
) -> Operation | None:
    """Write an order to an unfinished operation and return it; None when it is not as it was read.

    Args:
        connection: where to write.
        operation: as the order was decided on.
        order: what it is told.
        unheld: only while no hold keeps its instance off (R6).
        project_id: only on an instance of this project; None: of any.
    """
    instance = [INSTANCES.c.id == _COLUMNS.instance_id]
    if unheld:
        instance.append(INSTANCES.c.hold_blocks == 0)
    if project_id is not None:
        instance.append(INSTANCES.c.project_id == project_id)
    row = connection.execute(
        sa.update(OPERATIONS)
        .where(
            _COLUMNS.id == operation.id,
            _COLUMNS.finished_at.is_(None),
            _COLUMNS.order_number == order.number - 1,
            _COLUMNS.progress_seq == (0 if operation.progress is None else operation.progress.seq),
            sa.exists().where(*instance),
        )
        .values(standing_order=order, order_number=order.number)
        .returning(OPERATIONS)
    ).one_or_none()
    return None if row is None else operation_of(row)


def note_progress(connection: sa.Connection, report: ProgressReport) -> bool:
    """Keep how far an unfinished operation is; False when that is no news."""
    progress = report.progress
    result = connection.execute(
        _PROGRESS, {"b_id": report.operation_id, "b_progress": progress, "b_seq": progress.seq}
    )
    return result.rowcount == 1


def finish(
    connection: sa.Connection, operation_id: str, state: OperationState, now: float, message: str | None
) -> bool:
    """Give an unfinished operation its final state; False when it has one already."""
    result = connection.execute(
        _FINISH, {"b_id": operation_id, "b_state": state.value, "b_now": now, "b_message": message}
    )
    return result.rowcount == 1


def get(connection: sa.Connection, operation_id: str) -> Operation | None:
    """Return one operation."""
    row = connection.execute(sa.select(OPERATIONS).where(_COLUMNS.id == operation_id)).one_or_none()
    return None if row is None else operation_of(row)


def of_instance(
    connection: sa.Connection,
    instance_id: str,
    *,
    limit: int | None = None,
    marker: str | None = None,
    since: float | None = None,
    before: float | None = None,
    followers: bool = True,
) -> list[Operation]:
    """Return an instance's operations, newest first.

    Args:
        connection: where to look.
        instance_id: whose.
        limit: so many at most.
        marker: those after the operation of this request.
        since: last changed at or after this time, in seconds since the epoch.
        before: last changed at or before it.
        followers: also those that followed another one of the same request by themselves.

    Raises:
        LookupError: there is no operation of the marker's request.
    """
    changed = sa.func.coalesce(_COLUMNS.finished_at, _COLUMNS.started_at)
    statement = sa.select(OPERATIONS).where(_COLUMNS.instance_id == instance_id)
    if not followers:
        first = OPERATIONS.alias("first")
        statement = statement.where(
            ~sa.exists().where(
                first.c.instance_id == instance_id,
                first.c.request_id == _COLUMNS.request_id,
                first.c.fence < _COLUMNS.fence,
            )
        )
    if since is not None:
        statement = statement.where(changed >= since)
    if before is not None:
        statement = statement.where(changed <= before)
    if marker is not None:
        asked = of_request(connection, instance_id, marker)
        if not asked:
            raise LookupError(marker)
        last = asked[0]
        statement = statement.where(
            sa.or_(
                _COLUMNS.started_at < last.started_at,
                sa.and_(_COLUMNS.started_at == last.started_at, _COLUMNS.id < last.id),
            )
        )
    statement = statement.order_by(_COLUMNS.started_at.desc(), _COLUMNS.id.desc())
    return [operation_of(row) for row in connection.execute(statement.limit(limit))]


def of_request(connection: sa.Connection, instance_id: str, request_id: str) -> list[Operation]:
    """Return an instance's operations of a request: the one it asked for, and then what followed by itself."""
    rows = connection.execute(
        sa.select(OPERATIONS)
        .where(_COLUMNS.instance_id == instance_id, _COLUMNS.request_id == request_id)
        .order_by(_COLUMNS.fence, _COLUMNS.started_at)
    )
    return [operation_of(row) for row in rows]


def unfinished(connection: sa.Connection, instance_id: str | None = None) -> list[Operation]:
    """Return the operations without a final state, oldest first; of one instance or of all."""
    statement = sa.select(OPERATIONS).where(_COLUMNS.finished_at.is_(None))
    if instance_id is not None:
        statement = statement.where(_COLUMNS.instance_id == instance_id)
    return [operation_of(row) for row in connection.execute(statement.order_by(_COLUMNS.started_at))]


def since(
    connection: sa.Connection, instance_id: str, actions: Iterable[str], seconds: float, now: float
) -> list[Operation]:
    """Return an instance's operations of some actions that began within the last ``seconds``, newest first.

    What lies ahead of ``now`` was written by a clock that was set back since: it is not of the last seconds.
    """
    rows = connection.execute(
        sa.select(OPERATIONS)
        .where(
            _COLUMNS.instance_id == instance_id,
            _COLUMNS.action.in_(sorted(actions)),
            _COLUMNS.started_at.between(now - seconds, now),
        )
        .order_by(_COLUMNS.started_at.desc())
    )
    return [operation_of(row) for row in rows]


def newest(connection: sa.Connection, instance_id: str, actions: Iterable[str]) -> Operation | None:
    """Return an instance's operation of some actions that was admitted last; None when there was none."""
    row = connection.execute(
        sa.select(OPERATIONS)
        .where(_COLUMNS.instance_id == instance_id, _COLUMNS.action.in_(sorted(actions)))
        .order_by(_COLUMNS.fence.desc())
        .limit(1)
    ).one_or_none()
    return None if row is None else operation_of(row)


def record(
    connection: sa.Connection,
    *,
    at: float,
    event: str,
    actor: Actor,
    instance_id: str | None,
    operation_id: str | None = None,
    action: str | None = None,
    detail: Mapping[str, Any] | None = None,
    lasting: bool = False,
) -> None:
    """Append to the audit trail, at the end of the transaction (B7).

    Args:
        connection: of a transaction of ``Database.write``.
        at: seconds since the epoch.
        event: what kind of thing happened.
        actor: who did it.
        instance_id: to which instance, if to one.
        operation_id: by which operation, if by one.
        action: by which row of the action table, or which verdict.
        detail: whatever else is worth keeping, as JSON.
        lasting: keep it also when the rest of the transaction is undone: what was refused, say.
    """
    entry = Entry(
        at=float(at),
        event=event,
        instance_id=instance_id,
        operation_id=operation_id,
        action=action,
        actor_kind=actor.kind.value,
        user_id=actor.user_id,
        project_id=actor.project_id,
        request_id=actor.request_id,
        detail=pack(detail or {}),
    )
    audit.append(connection, entry, lasting=lasting)


def alert(
    connection: sa.Connection,
    says: str,
    *,
    at: float,
    actor: Actor,
    action: str,
    instance_id: str | None = None,
    operation_id: str | None = None,
    detail: Mapping[str, Any] | None = None,
) -> None:
    """Record that a person has to look, in the transaction that makes it true (R15).

    Args:
        connection: of a transaction of ``Database.write``.
        says: what is the matter, and what to do about it.
        at: seconds since the epoch.
        actor: who did what it is about; the control plane itself for most.
        action: what it is about: a row of the action table, a verdict, or a word such as ``host``.
        instance_id: of which instance; None: of none in particular.
        operation_id: of which operation, if of one.
        detail: whatever else helps the person, as JSON.
    """
    record(
        connection,
        at=at,
        event="alert",
        actor=actor,
        instance_id=instance_id,
        operation_id=operation_id,
        action=action,
        detail={**(detail or {}), "says": says},
    )


def moved(before: Instance | None, after: Instance | None) -> dict[str, Any]:
    """Return what a record says of an instance that went from one vm state to another; nothing of one that stayed.

    Events of state changes are made of it (``domain/events``), so each path that writes a vm state records it.

    Args:
        before: the row as it was; None: it is new.
        after: the row as it is; None: it was not written.
    """
    if after is None or (before is not None and before.vm_state is after.vm_state):
        return {}
    return {FROM: None if before is None else before.vm_state.value, TO: after.vm_state.value}


def post(connection: sa.Connection, subject: str, message_id: str, payload: bytes) -> None:
    """Put a message into the outbox; it is published after the transaction is durable."""
    connection.execute(_INSERT_OUTBOX, {"subject": subject, "message_id": message_id, "payload": payload})


def posted(connection: sa.Connection, limit: int | None = None) -> list[tuple[int, str, str, bytes]]:
    """Return the oldest messages in the outbox as (number, subject, message id, payload)."""
    statement = sa.select(OUTBOX).order_by(OUTBOX.c.number)
    rows = connection.execute(statement if limit is None else statement.limit(limit))
    return [(row.number, row.subject, row.message_id, row.payload) for row in rows]


def sent(connection: sa.Connection, numbers: Iterable[int]) -> None:
    """Take published messages out of the outbox."""
    connection.execute(sa.delete(OUTBOX).where(OUTBOX.c.number.in_(list(numbers))))
