"""Figures for metrics: what there is now, by few statements, and what happened in all, counted on from the trail."""

from __future__ import annotations

from typing import Any, Final

import msgspec
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from stateward.domain.states import VmState
from stateward.domain.tallies import Detail, Line, Tally
from stateward.domain.webhooks import Webhook
from stateward.store import hosts, told, webhooks
from stateward.store.hosts import Host
from stateward.store.tables import AUDIT, INSTANCES, OPERATIONS
from stateward.store.webhook_tables import TALLIES

_COLUMNS: Final = AUDIT.c
_LINES: Final[sa.Select[Any]] = sa.select(
    *(_COLUMNS[name] for name in Line.__struct_fields__ if name != "detail"),
    sa.type_coerce(_COLUMNS.detail, sa.Text).label("detail"),
).order_by(_COLUMNS.number)
_STATES: Final = (
    sa.select(INSTANCES.c.vm_state, sa.func.count())
    .where(INSTANCES.c.vm_state != VmState.DELETED.value)
    .group_by(INSTANCES.c.vm_state)
)
_UNFINISHED: Final = (
    sa.select(OPERATIONS.c.action, sa.func.count(), sa.func.min(OPERATIONS.c.started_at))
    .where(OPERATIONS.c.finished_at.is_(None))
    .group_by(OPERATIONS.c.action)
)
_detail = msgspec.json.Decoder(Detail)


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """What there is at a moment."""

    #: Living instances by vm state.
    states: dict[str, int]
    #: Unfinished operations by action: how many, and when the oldest began (seconds since the epoch).
    unfinished: dict[str, tuple[int, float]]
    hosts: list[Host]
    webhooks: list[Webhook]
    dead_letters: dict[str, int]
    #: The number of the trail's last record.
    head: int


def figures(connection: sa.Connection) -> Figures:
    """Look at everything that is shown as it is now."""
    return Figures(
        states={row[0]: row[1] for row in connection.execute(_STATES)},
        unfinished={row[0]: (row[1], row[2]) for row in connection.execute(_UNFINISHED)},
        hosts=hosts.every(connection),
        webhooks=webhooks.every(connection),
        dead_letters=webhooks.count_letters(connection),
        head=told.head(connection),
    )


def tally(connection: sa.Connection) -> Tally:
    """Return what was counted and kept; an empty one before the first time."""
    found: Tally | None = connection.execute(sa.select(TALLIES.c.counted)).scalar_one_or_none()
    return Tally() if found is None else found


def lines(connection: sa.Connection, after: int, most: int) -> list[Line]:
    """Return the records after one, so many at most."""
    rows = connection.execute(_LINES.where(_COLUMNS.number > after).limit(most))
    return [
        Line(
            number=row.number,
            at=row.at,
            event=row.event,
            action=row.action,
            actor_kind=row.actor_kind,
            instance_id=row.instance_id,
            operation_id=row.operation_id,
            detail=_detail_of(row.detail),
        )
        for row in rows
    ]


def _detail_of(text: str) -> Detail:
    try:
        return _detail.decode(text)
    except msgspec.ValidationError:
        # Another kind of record has another kind of thing under one of these names.
        return Detail()


def keep(connection: sa.Connection, counted: Tally, *, since: int) -> bool:
    """Keep a tally that went on from a record, 0 for none; False when somebody else has counted on meanwhile."""
    values = {"number": counted.number, "counted": counted}
    if connection.execute(sa.update(TALLIES).where(TALLIES.c.number == since).values(values)).rowcount:
        return True
    if since:
        return False
    try:
        with connection.begin_nested():
            connection.execute(sa.insert(TALLIES).values(id=1, **values))
    except IntegrityError:
        return False
    return True
