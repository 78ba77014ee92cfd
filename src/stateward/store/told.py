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
    if place.number > last:
        return Told([], last, more=False)
    statement = (
        _SOURCES.where(_COLUMNS.number >= place.number, _COLUMNS.number <= last, *_narrowed(wanted, reader))
        .order_by(_COLUMNS.number)
        .limit(records)
    )
    rows = connection.execute(statement).all()
    more = len(rows) == records
    events = [event for row in rows for event in _events(row, wanted, reader) if event.place > place]
    return Told(events, rows[-1].number if more else last, more=more)


def newest(connection: sa.Connection, count: int, wanted: Filter, reader: Reader) -> list[Event]:
    """Return the newest events that a reader wants and sees, oldest first, so many at most."""
    found: list[Event] = []
    before = head(connection) + 1
    statement = _SOURCES.where(*_narrowed(wanted, reader)).order_by(_COLUMNS.number.desc()).limit(BATCH)
    while len(found) < count:
        rows = connection.execute(statement.where(_COLUMNS.number < before)).all()
        for row in rows:
            found += reversed(list(_events(row, wanted, reader)))
        if len(rows) < BATCH:
            break
        before = rows[-1].number
    return found[:count][::-1]


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
