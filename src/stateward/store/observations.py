"""The observation columns: written only from agents' reports, only forwards."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec
import sqlalchemy as sa

from stateward.domain.networks import PortAddress
from stateward.domain.records import Instance, Observation
from stateward.domain.states import Cause, Observed, VmState, deviation
from stateward.domain.verdicts import Verdict, judge
from stateward.store.tables import HOSTS, INSTANCES

_COLUMNS = INSTANCES.c
#: Parameters of one statement: SQLite allows 32,766.
_IDS_AT_ONCE: Final = 1000
_AS_BEFORE = sa.and_(
    _COLUMNS.observed == sa.bindparam("b_observed"), _COLUMNS.cause == sa.bindparam("b_cause")
)
_OBSERVE = (
    sa.update(INSTANCES)
    .where(
        _COLUMNS.id == sa.bindparam("b_id"),
        _COLUMNS.host == sa.bindparam("b_host"),
        _COLUMNS.observed_seq < sa.bindparam("b_seq"),
    )
    .values(
        observed=sa.bindparam("b_observed"),
        cause=sa.bindparam("b_cause"),
        # What was told of has passed where something else was seen.
        alerted=sa.case((_AS_BEFORE, _COLUMNS.alerted)),
        observed_seq=sa.bindparam("b_seq"),
        # Since when it is seen so: what follows, however much later, is as of then (R16).
        observed_at=sa.func.coalesce(sa.case((_AS_BEFORE, _COLUMNS.observed_at)), sa.bindparam("b_at")),
    )
)


def observe(connection: sa.Connection, observation: Observation, *, host: str) -> bool:
    """Keep what a host saw if it is news; False when a later one is there, or no such instance on that host."""
    result = connection.execute(
        _OBSERVE,
        {
            "b_id": observation.instance_id,
            "b_host": host,
            "b_seq": observation.seq,
            "b_observed": observation.observed.value,
            "b_cause": observation.cause.value,
            "b_at": observation.at,
        },
    )
    return result.rowcount == 1


def note_alert(connection: sa.Connection, instance: Instance, deviation: str | None) -> bool:
    """Note what a person is told of an instance, or that it has passed; False when it is not as it was read."""
    statement = (
        sa.update(INSTANCES)
        .where(
            _COLUMNS.id == instance.id,
            _COLUMNS.fence == instance.fence,
            _COLUMNS.observed_seq == instance.observed_seq,
        )
        .values(alerted=deviation)
    )
    return connection.execute(statement).rowcount == 1


def addresses_of(
    connection: sa.Connection, host: str
) -> dict[str, tuple[tuple[PortAddress, ...], frozenset[str]]]:
    """Return the addresses kept of a host's living instances, by id, each with the networks of its ports."""
    rows = connection.execute(
        sa.select(_COLUMNS.id, _COLUMNS.addresses, _COLUMNS.ports).where(
            _COLUMNS.host == host, _COLUMNS.vm_state != VmState.DELETED.value
        )
    )
    return {row.id: (row.addresses, frozenset(port.network_id for port in row.ports)) for row in rows}


def keep_addresses(
    connection: sa.Connection, instance_id: str, host: str, addresses: tuple[PortAddress, ...], seq: int
) -> bool:
    """Keep what an instance is reached by if it is news; False when later news is there, or it is elsewhere."""
    statement = (
        sa.update(INSTANCES)
        .where(_COLUMNS.id == instance_id, _COLUMNS.host == host, _COLUMNS.addresses_seq < seq)
        .values(addresses=addresses, addresses_seq=seq)
    )
    return connection.execute(statement).rowcount == 1


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """The columns of an instance's row that a report is compared with; far cheaper than the whole row."""

    id: str
    host: str
    vm_state: VmState
    task_state: str | None
    locked_by: str | None
    hold_blocks: int
    kept_off: bool
    observed: Observed
    cause: Cause
    observed_seq: int
    alerted: str | None

    @property
    def told(self) -> bool:
        """Whether a person was told of it as it is."""
        return self.alerted == deviation(self.vm_state, self.observed, self.cause)

    def verdict(self, observed: Observed, cause: Cause) -> Verdict:
        """Say what the arbiter's table makes of it, were this seen."""
        return judge(
            self.vm_state,
            observed,
            cause,
            locked=self.locked_by is not None,
            held=bool(self.hold_blocks),
            kept_off=self.kept_off,
        )


_SEEN: Final[sa.Select[Any]] = sa.select(*(_COLUMNS[name] for name in Seen.__struct_fields__))


def _seen_of(rows: Iterable[sa.Row[Any]]) -> list[Seen]:
    return [
        Seen(
            id=row.id,
            host=row.host,
            vm_state=VmState(row.vm_state),
            task_state=row.task_state,
            locked_by=row.locked_by,
            hold_blocks=row.hold_blocks,
            kept_off=bool(row.kept_off),
            observed=Observed(row.observed),
            cause=Cause(row.cause),
            observed_seq=row.observed_seq,
            alerted=row.alerted,
        )
        for row in rows
    ]


def seen_on(connection: sa.Connection, host: str) -> list[Seen]:
    """Return what is known of the living instances of a host: those that a complete report must name."""
    return _seen_of(
        connection.execute(_SEEN.where(_COLUMNS.host == host, _COLUMNS.vm_state != VmState.DELETED.value))
    )


def seen_by_id(connection: sa.Connection, ids: Sequence[str]) -> list[Seen]:
    """Return what is known of some instances, deleted ones too; what never was is left out."""
    found: list[Seen] = []
    for begin in range(0, len(ids), _IDS_AT_ONCE):
        some = ids[begin : begin + _IDS_AT_ONCE]
        found += _seen_of(connection.execute(_SEEN.where(_COLUMNS.id.in_(some))))
    return found


def living(connection: sa.Connection, host: str) -> int:
    """Count the living instances of a host."""
    return connection.execute(
        sa.select(sa.func.count()).where(_COLUMNS.host == host, _COLUMNS.vm_state != VmState.DELETED.value)
    ).scalar_one()


def highest(connection: sa.Connection, host: str) -> int:
    """Return the largest number that is known of a host's observations and heartbeats; 0 when there is none."""
    seen = sa.select(sa.func.coalesce(sa.func.max(_COLUMNS.observed_seq), 0)).where(_COLUMNS.host == host)
    heard = sa.select(HOSTS.c.heard_seq).where(HOSTS.c.name == host)
    return max(int(connection.execute(seen).scalar_one()), int(connection.execute(heard).scalar() or 0))
