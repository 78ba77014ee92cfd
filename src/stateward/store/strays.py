"""Strays: guests that a host has to be rid of before it is used again, one being made elsewhere."""

from __future__ import annotations

import msgspec
import sqlalchemy as sa

from stateward.store.host_tables import STRAYS

_COLUMNS = STRAYS.c


class Stray(msgspec.Struct, frozen=True, kw_only=True):
    """One of them."""

    host: str
    instance_id: str
    #: Nothing that is older may act on the instance there.
    fence: int


def note(connection: sa.Connection, host: str, instance_id: str, fence: int, now: float) -> None:
    """Note what a host has to be rid of; one that was noted before is so by the newer fence."""
    connection.execute(sa.delete(STRAYS).where(_COLUMNS.host == host, _COLUMNS.instance_id == instance_id))
    connection.execute(sa.insert(STRAYS).values(host=host, instance_id=instance_id, fence=fence, at=now))


def on(connection: sa.Connection, host: str) -> list[Stray]:
    """Return what a host has to be rid of, oldest first."""
    rows = connection.execute(
        sa.select(STRAYS).where(_COLUMNS.host == host).order_by(_COLUMNS.at, _COLUMNS.instance_id)
    )
    return [Stray(host=row.host, instance_id=row.instance_id, fence=row.fence) for row in rows]


def gone(connection: sa.Connection, stray: Stray) -> None:
    """Forget one that is gone, unless the instance was taken off the host again since."""
    connection.execute(
        sa.delete(STRAYS).where(
            _COLUMNS.host == stray.host,
            _COLUMNS.instance_id == stray.instance_id,
            _COLUMNS.fence == stray.fence,
        )
    )
