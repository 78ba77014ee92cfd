"""Server groups: which instances shall share a host, or shall not. Their members are the instances that name them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import sqlalchemy as sa

from stateward.domain.placement import GroupPolicy
from stateward.domain.states import VmState
from stateward.store.placement_tables import SERVER_GROUPS
from stateward.store.tables import INSTANCES

_COLUMNS = SERVER_GROUPS.c


class NewServerGroup(msgspec.Struct, frozen=True, kw_only=True):
    """A server group to be made."""

    id: str
    project_id: str
    user_id: str
    name: str
    policy: GroupPolicy
    #: Nova's rule ``max_server_per_host``; None: none was given.
    most_per_host: int | None = None


class ServerGroup(NewServerGroup, frozen=True, kw_only=True):
    """A server group."""

    #: Counts up over all groups.
    number: int


def _group_of(row: sa.Row[Any]) -> ServerGroup:
    return ServerGroup(
        number=row.number,
        id=row.id,
        project_id=row.project_id,
        user_id=row.user_id,
        name=row.name,
        policy=GroupPolicy(row.policy),
        most_per_host=row.most_per_host,
    )


def create(connection: sa.Connection, new: NewServerGroup) -> ServerGroup:
    """Make a group; names need not be unique, as in Nova."""
    values = msgspec.structs.asdict(new) | {"policy": new.policy.value}
    return _group_of(
        connection.execute(sa.insert(SERVER_GROUPS).values(**values).returning(SERVER_GROUPS)).one()
    )


def get(
    connection: sa.Connection, group_id: str, project_id: str | None = None, *, hold: bool = False
) -> ServerGroup | None:
    """Return a group.

    Args:
        connection: in a transaction when the group is to be held.
        group_id: which one.
        project_id: only this project's; None: whosever it is.
        hold: keep others from placing members, or deleting it, until the transaction ends. On SQLite every
            transaction that writes does that by itself.

    Returns:
        None when there is none.
    """
    statement = sa.select(SERVER_GROUPS).where(_COLUMNS.id == group_id)
    if project_id is not None:
        statement = statement.where(_COLUMNS.project_id == project_id)
    if hold:
        statement = statement.with_for_update()
    row = connection.execute(statement).one_or_none()
    return None if row is None else _group_of(row)


def page(
    connection: sa.Connection, project_id: str | None, *, limit: int, offset: int = 0
) -> list[ServerGroup]:
    """Return groups, the oldest first; of one project, or of all."""
    statement = sa.select(SERVER_GROUPS).order_by(_COLUMNS.number).limit(limit).offset(offset)
    if project_id is not None:
        statement = statement.where(_COLUMNS.project_id == project_id)
    return [_group_of(row) for row in connection.execute(statement)]


def count(connection: sa.Connection, project_id: str) -> int:
    """Count a project's groups."""
    statement = sa.select(sa.func.count()).where(_COLUMNS.project_id == project_id)
    return int(connection.execute(statement).scalar_one())


def members(connection: sa.Connection, group_ids: Sequence[str]) -> dict[str, list[str]]:
    """Return the ids of the living members of some groups, the oldest first."""
    rows = connection.execute(
        sa.select(INSTANCES.c.group_id, INSTANCES.c.id)
        .where(INSTANCES.c.group_id.in_(group_ids), INSTANCES.c.vm_state != VmState.DELETED.value)
        .order_by(INSTANCES.c.number)
    )
    found: dict[str, list[str]] = {group_id: [] for group_id in group_ids}
    for row in rows:
        found[row.group_id].append(row.id)
    return found


def delete(connection: sa.Connection, group_id: str, project_id: str | None) -> bool:
    """Delete a group; its members stay as and where they are. False when there is none."""
    statement = sa.delete(SERVER_GROUPS).where(_COLUMNS.id == group_id)
    if project_id is not None:
        statement = statement.where(_COLUMNS.project_id == project_id)
    return connection.execute(statement).rowcount == 1
