"""Hosts: what each agent last said of itself, and what the operator said of it."""

from __future__ import annotations

import uuid
from typing import Any

import msgspec
import sqlalchemy as sa

from stateward.domain.hosts import Frozen
from stateward.domain.placement import NOTHING, Room
from stateward.domain.records import HostReport
from stateward.store.rows import insert_new
from stateward.store.tables import HOSTS

_COLUMNS = HOSTS.c
_EVERY = sa.select(HOSTS).order_by(_COLUMNS.name)


_decode_report = msgspec.json.Decoder(HostReport).decode


class Host(msgspec.Struct, frozen=True, kw_only=True):
    """One host; ``report`` is None until it was heard of."""

    id: str
    number: int
    name: str
    zone: str
    report: HostReport | None
    #: Seconds since the epoch.
    seen_at: float | None
    enabled: bool
    disabled_reason: str | None
    forced_down: bool
    #: What instances hold there, and how many claims that is.
    claimed: Room = NOTHING
    claims: int = 0
    #: The boot of the machine that its instances were last judged in.
    boot_id: str | None = None
    #: Why its instances are not judged now; None: they are.
    frozen: Frozen | None = None
    frozen_at: float | None = None
    frozen_detail: str | None = None

    def up(self, now: float, patience: float) -> bool:
        """Whether it was heard of within ``patience`` seconds and nobody said it is down."""
        return self.seen_at is not None and now - self.seen_at <= patience and not self.forced_down


def _host_of(row: sa.Row[Any]) -> Host:
    return Host(
        id=row.id,
        number=row.number,
        name=row.name,
        zone=row.zone,
        report=None if row.report is None else _decode_report(row.report),
        seen_at=row.seen_at,
        enabled=row.enabled,
        disabled_reason=row.disabled_reason,
        forced_down=row.forced_down,
        claimed=Room(vcpus=row.claimed_vcpus, memory=row.claimed_memory, disk=row.claimed_disk),
        claims=row.claims,
        boot_id=row.boot_id,
        frozen=None if row.frozen is None else Frozen(row.frozen),
        frozen_at=row.frozen_at,
        frozen_detail=row.frozen_detail,
    )


def every(connection: sa.Connection) -> list[Host]:
    """Return all hosts by name."""
    return [_host_of(row) for row in connection.execute(_EVERY)]


def register(connection: sa.Connection, name: str, zone: str) -> None:
    """Make a host known, unless it is."""
    insert_new(
        connection,
        HOSTS,
        {"id": str(uuid.uuid4()), "name": name, "zone": zone, "enabled": True, "forced_down": False},
    )


def heard(connection: sa.Connection, report: HostReport) -> None:
    """Keep a heartbeat; an older one than the last changes nothing."""
    connection.execute(
        sa.update(HOSTS)
        .where(
            _COLUMNS.name == report.host,
            sa.or_(_COLUMNS.seen_at.is_(None), _COLUMNS.seen_at < report.at),
        )
        .values(report=msgspec.json.encode(report).decode(), seen_at=report.at)
    )


def change(connection: sa.Connection, host_id: str, changes: dict[str, Any]) -> bool:
    """Change what the operator says of a host; False when there is none of this id."""
    return connection.execute(sa.update(HOSTS).where(_COLUMNS.id == host_id).values(**changes)).rowcount == 1


def freeze(connection: sa.Connection, name: str, why: Frozen, detail: str, now: float) -> bool:
    """Have a host's instances judged no more; False when that is so already, for whatever reason."""
    return (
        connection.execute(
            sa.update(HOSTS)
            .where(_COLUMNS.name == name, _COLUMNS.frozen.is_(None))
            .values(frozen=why.value, frozen_at=now, frozen_detail=detail)
        ).rowcount
        == 1
    )


def thaw(connection: sa.Connection, name: str, why: Frozen) -> bool:
    """Have a host's instances judged again; False when they were not frozen for this reason."""
    return (
        connection.execute(
            sa.update(HOSTS)
            .where(_COLUMNS.name == name, _COLUMNS.frozen == why.value)
            .values(frozen=None, frozen_at=None, frozen_detail=None)
        ).rowcount
        == 1
    )
