"""What is told to the outside, read from the audit trail: in its order, from any place, and what it is about (R15)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec
import sqlalchemy as sa

from stateward.domain.audit import Entry
from stateward.domain.events import Event, Filter, Place, Reader, Source, events_of
from stateward.store.tables import AUDIT, AUDIT_HEAD, INSTANCES, OPERATIONS

_COLUMNS: Final = AUDIT.c
_HEAD: Final = sa.select(AUDIT_HEAD.c.number)
_SOURCES: Final[sa.Select[Any]] = (
    sa.select(
        *(
            sa.type_coerce(_COLUMNS[name], sa.Text) if name == "detail" else _COLUMNS[name]
            for name in ("number", *Entry.__struct_fields__)
        ),
        INSTANCES.c.project_id.label("owner"),
        INSTANCES.c.name.label("instance_name"),
        sa.func.coalesce(OPERATIONS.c.host, INSTANCES.c.host).label("host"),
    )
    .outerjoin(INSTANCES, INSTANCES.c.id == _COLUMNS.instance_id)
    .outerjoin(OPERATIONS, OPERATIONS.c.id == _COLUMNS.operation_id)
)
#: Records that are read at once: on SQLite the event loop waits for that.
BATCH: Final = 100
#: Records that are looked through at once for those that are wanted.
WINDOW: Final = 5000


class Told(msgspec.Struct, frozen=True):
    """Events in their order, and how far in the trail they go: what comes next comes after ``upto``."""

    events: list[Event]
    upto: int
    #: There may be more that is committed already.
    more: bool


def head(connection: sa.Connection) -> int:
    """Return the number of the last record."""
    return int(connection.execute(_HEAD).scalar_one_or_none() or 0)


def after(
    connection: sa.Connection, place: Place, wanted: Filter, reader: Reader, *, records: int = BATCH
) -> Told:
    """Return the events after a place that a reader wants and sees, oldest first, of some records at most."""
    last = head(connection)
    upto = min(last, place.number + WINDOW)
    if place.number > last:
        return Told([], last, more=False)
    statement = (
        _SOURCES.where(_COLUMNS.number >= place.number, _COLUMNS.number <= upto, *_narrowed(wanted, reader))
        .order_by(_COLUMNS.number)
        .limit(records)
    )
    rows = connection.execute(statement).all()
    full = len(rows) == records
    events = [event for row in rows for event in _events(row, wanted, reader) if event.place > place]
    return Told(events, rows[-1].number if full else upto, more=full or upto < last)


def newest(connection: sa.Connection, before: int, wanted: Filter, reader: Reader) -> Told:
    """Return events of some records before one, newest first; ``upto``: how far back that went, 1 at the begin."""
    since = max(before - WINDOW, 1)
    statement = (
        _SOURCES.where(_COLUMNS.number < before, _COLUMNS.number >= since, *_narrowed(wanted, reader))
        .order_by(_COLUMNS.number.desc())
        .limit(BATCH)
    )
    rows = connection.execute(statement).all()
    events = [event for row in rows for event in reversed(_events(row, wanted, reader))]
    back = rows[-1].number if len(rows) == BATCH else since
    return Told(events, back, more=back > 1)


def one(connection: sa.Connection, place: Place) -> Event | None:
    """Return the event at a place; None when there is none."""
    row = connection.execute(_SOURCES.where(_COLUMNS.number == place.number)).one_or_none()
    if row is None:
        return None
    return next((event for event in events_of(_source(row)) if event.place == place), None)


def _events(row: sa.Row[Any], wanted: Filter, reader: Reader) -> Sequence[Event]:
    source = _source(row)
    if not wanted.about(source):
        return ()
    return [event for event in events_of(source) if wanted.wants(event.row) and reader.sees(event)]


def _narrowed(wanted: Filter, reader: Reader) -> list[sa.ColumnElement[bool]]:
    """Leave out in the database what is surely not asked for; the rest is looked at here."""
    clauses: list[sa.ColumnElement[bool]] = []
    if wanted.instance_id is not None:
        clauses.append(_COLUMNS.instance_id == wanted.instance_id)
    clauses += [
        INSTANCES.c.project_id == project
        for project in (wanted.project_id, reader.project_id)
        if project is not None
    ]
    if wanted.host is not None:
        clauses.append(
            sa.or_(
                sa.func.coalesce(OPERATIONS.c.host, INSTANCES.c.host) == wanted.host,
                _COLUMNS.instance_id.is_(None),
            )
        )
    return clauses


def _source(row: sa.Row[Any]) -> Source:
    number, *facts, detail, owner, instance_name, host = tuple(row)
    raw = msgspec.Raw(detail.encode())
    fields: dict[str, Any] = dict(zip(Entry.__struct_fields__, (*facts, raw), strict=True))
    return Source(
        number=number, entry=Entry(**fields), project_id=owner, instance_name=instance_name, host=host
    )
