"""The instances' rows as adopting needs them: one that may be there already, and whom a host's guests are known as."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from stateward.domain.records import Instance
from stateward.domain.states import VmState
from stateward.store.instances import instance_of
from stateward.store.rows import insert_new
from stateward.store.tables import INSTANCES

_COLUMNS = INSTANCES.c


def insert_unless_known(connection: sa.Connection, values: Mapping[str, Any]) -> Instance | None:
    """Insert a row and return it; None when there is one of its id, deleted or not."""
    row = insert_new(connection, INSTANCES, values)
    return None if row is None else instance_of(row)


def living_at(connection: sa.Connection, host: str) -> dict[str, str | None]:
    """Return the ids of the living instances of a host, each with its host's name for it if it was adopted."""
    rows = connection.execute(
        sa.select(_COLUMNS.id, _COLUMNS.adopted_as).where(
            _COLUMNS.host == host, _COLUMNS.vm_state != VmState.DELETED.value
        )
    )
    return {row.id: row.adopted_as for row in rows}
