"""The observation columns: written only from agents' reports, only forwards."""

from __future__ import annotations

import sqlalchemy as sa

from stateward.domain.records import Observation
from stateward.domain.states import VmState
from stateward.store.tables import INSTANCES

_COLUMNS = INSTANCES.c
_OBSERVE = (
    sa.update(INSTANCES)
    .where(_COLUMNS.id == sa.bindparam("b_id"), _COLUMNS.observed_seq < sa.bindparam("b_seq"))
    .values(
        observed=sa.bindparam("b_observed"),
        cause=sa.bindparam("b_cause"),
        observed_seq=sa.bindparam("b_seq"),
        observed_at=sa.bindparam("b_at"),
    )
)


def observe(connection: sa.Connection, observation: Observation) -> bool:
    """Keep an observation if it is news; False when a later one is there, or no such instance."""
    result = connection.execute(
        _OBSERVE,
        {
            "b_id": observation.instance_id,
            "b_seq": observation.seq,
            "b_observed": observation.observed.value,
            "b_cause": observation.cause.value,
            "b_at": observation.at,
        },
    )
    return result.rowcount == 1


def known_on(connection: sa.Connection, host: str, before_seq: int) -> list[tuple[str, VmState]]:
    """Return the instances a complete report of a host must name: living, and not seen since it was begun."""
    rows = connection.execute(
        sa.select(_COLUMNS.id, _COLUMNS.vm_state).where(
            _COLUMNS.host == host,
            _COLUMNS.observed_seq < before_seq,
            _COLUMNS.vm_state != VmState.DELETED.value,
        )
    )
    return [(row.id, VmState(row.vm_state)) for row in rows]
