"""What instances were, from when to when (R16): written by triggers on their rows, and read here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec
import sqlalchemy as sa

from stateward.store.tables import INSTANCES, STATE_INTERVALS

_COLUMNS: Final = STATE_INTERVALS.c
RECORDED: Final = "recorded"
OBSERVED: Final = "observed"


class Interval(msgspec.Struct, frozen=True, kw_only=True):
    """That an instance was something, in seconds since the epoch; ``ended`` None: it is so now."""

    instance_id: str
    #: ``recorded``: a vm state. ``observed``: what its host saw of the guest.
    kind: str
    state: str
    began: float
    ended: float | None


class Used(msgspec.Struct, frozen=True, kw_only=True):
    """An instance that was something at a time, deleted or not."""

    number: int
    id: str
    name: str
    project_id: str


def page(
    connection: sa.Connection,
    *,
    begin: float,
    end: float,
    project_id: str | None,
    instance_id: str | None,
    marker: str | None,
    limit: int,
) -> list[Used]:
    """Return instances that were there between two times, oldest first.

    Args:
        connection: where to look.
        begin: seconds since the epoch.
        end: seconds since the epoch.
        project_id: only this project's; None: all.
        instance_id: only this one.
        marker: those after this one.
        limit: so many at most.

    Raises:
        LookupError: there is no such marker.
    """
    columns = INSTANCES.c
    statement = sa.select(columns.number, columns.id, columns.name, columns.project_id).where(
        sa.exists().where(_COLUMNS.instance_id == columns.id, *_within(begin, end))
    )
    if project_id is not None:
        statement = statement.where(columns.project_id == project_id)
    if instance_id is not None:
        statement = statement.where(columns.id == instance_id)
    if marker is not None:
        last = connection.execute(sa.select(columns.number).where(columns.id == marker)).scalar_one_or_none()
        if last is None:
            raise LookupError(marker)
        statement = statement.where(columns.number > last)
    rows = connection.execute(statement.order_by(columns.number).limit(limit))
    return [Used(number=row.number, id=row.id, name=row.name, project_id=row.project_id) for row in rows]


def of_instances(
    connection: sa.Connection, ids: Sequence[str], *, begin: float, end: float
) -> dict[str, list[Interval]]:
    """Return what instances were between two times, by id, each kind oldest first, as it was and not cut off there."""
    found: dict[str, list[Interval]] = {each: [] for each in ids}
    statement = (
        sa.select(STATE_INTERVALS)
        .where(_COLUMNS.instance_id.in_(ids), *_within(begin, end))
        .order_by(_COLUMNS.instance_id, _COLUMNS.kind, _COLUMNS.number)
    )
    for row in connection.execute(statement):
        found[row.instance_id].append(_interval(row))
    return found


def at(connection: sa.Connection, instance_id: str, moment: float) -> dict[str, str]:
    """Return what an instance was at a time (seconds since the epoch), by kind; of several the last that began."""
    statement = (
        sa.select(_COLUMNS.kind, _COLUMNS.state)
        .where(_COLUMNS.instance_id == instance_id, _COLUMNS.began <= moment)
        .order_by(_COLUMNS.number)
    )
    return {row.kind: row.state for row in connection.execute(statement)}


def _within(begin: float, end: float) -> Sequence[sa.ColumnElement[bool]]:
    return _COLUMNS.began < end, sa.or_(_COLUMNS.ended.is_(None), _COLUMNS.ended > begin)


def _interval(row: sa.Row[Any]) -> Interval:
    return Interval(
        instance_id=row.instance_id, kind=row.kind, state=row.state, began=row.began, ended=row.ended
    )
