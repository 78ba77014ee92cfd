"""Sweeps that are not believed yet: what a host says of the instances that it would change (B5)."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import sqlalchemy as sa

from stateward.domain.records import Observation
from stateward.store.tables import SWEEPS

_COLUMNS = SWEEPS.c


class Sweep(msgspec.Struct, frozen=True, kw_only=True):
    """One host's."""

    observations: tuple[Observation, ...]
    #: How many living instances the host has.
    total: int


def put(connection: sa.Connection, host: str, observations: Sequence[Observation], total: int) -> None:
    """Keep a host's sweep, in the stead of the one before; the transaction holds the host's row."""
    values = {"observations": tuple(observations), "total": total}
    if connection.execute(sa.update(SWEEPS).where(_COLUMNS.host == host).values(**values)).rowcount == 0:
        connection.execute(sa.insert(SWEEPS).values(host=host, **values))


def of_host(connection: sa.Connection, host: str) -> Sweep | None:
    """Return a host's sweep; None when it has none."""
    row = connection.execute(sa.select(SWEEPS).where(_COLUMNS.host == host)).one_or_none()
    return None if row is None else Sweep(observations=row.observations, total=row.total)


def drop(connection: sa.Connection, host: str) -> None:
    """Forget a host's sweep."""
    connection.execute(sa.delete(SWEEPS).where(_COLUMNS.host == host))
