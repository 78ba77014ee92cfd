"""Operations across instances, as their owners and operators look for them.

An operation belongs to the project of its instance: what the provider does to a server is its owner's to see.
"""

from __future__ import annotations

from typing import Any

import msgspec
import sqlalchemy as sa

from stateward.domain.records import Operation, OperationState
from stateward.store.operations import operation_of
from stateward.store.tables import INSTANCES, OPERATIONS

_COLUMNS = OPERATIONS.c
_FOUND = sa.select(
    OPERATIONS, INSTANCES.c.project_id.label("owner"), INSTANCES.c.name.label("instance_name")
).join(INSTANCES, INSTANCES.c.id == _COLUMNS.instance_id)


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """An operation and what is told of its instance."""

    operation: Operation
    #: The instance's project, which need not be the actor's.
    project_id: str
    instance_name: str


class OperationQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Which operations are asked for; None and the empty tuple do not narrow."""

    project_id: str | None = None
    instance_id: str | None = None
    states: tuple[OperationState, ...] = ()
    #: Keys of the action table.
    actions: tuple[str, ...] = ()
    #: Begun or finished at or after this time, in seconds since the epoch.
    since: float | None = None
    #: So many at most.
    limit: int
    #: Those after this operation.
    marker: str | None = None


def get(connection: sa.Connection, operation_id: str, project_id: str | None) -> Found | None:
    """Return an operation on an instance of a project; of any when that is None."""
    statement = _FOUND.where(_COLUMNS.id == operation_id)
    if project_id is not None:
        statement = statement.where(INSTANCES.c.project_id == project_id)
    row = connection.execute(statement).one_or_none()
    return None if row is None else _found(row)


def page(connection: sa.Connection, query: OperationQuery) -> list[Found]:
    """Return the operations that are asked for, newest first.

    Raises:
        LookupError: there is no operation of the marker's id that the query could find.
    """
    statement = _FOUND
    if query.project_id is not None:
        statement = statement.where(INSTANCES.c.project_id == query.project_id)
    if query.instance_id is not None:
        statement = statement.where(_COLUMNS.instance_id == query.instance_id)
    if query.states:
        statement = statement.where(_COLUMNS.state.in_([state.value for state in query.states]))
    if query.actions:
        statement = statement.where(_COLUMNS.action.in_(query.actions))
    if query.since is not None:
        statement = statement.where(
            sa.func.coalesce(_COLUMNS.finished_at, _COLUMNS.started_at) >= query.since
        )
    if query.marker is not None:
        last = get(connection, query.marker, query.project_id)
        if last is None:
            raise LookupError(query.marker)
        statement = statement.where(
            sa.tuple_(_COLUMNS.started_at, _COLUMNS.id) < (last.operation.started_at, last.operation.id)
        )
    statement = statement.order_by(_COLUMNS.started_at.desc(), _COLUMNS.id.desc())
    return [_found(row) for row in connection.execute(statement.limit(query.limit))]


def _found(row: sa.Row[Any]) -> Found:
    return Found(operation=operation_of(row), project_id=row.owner, instance_name=row.instance_name)
