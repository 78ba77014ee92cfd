"""Heartbeats: what hosts say of themselves is kept."""

from __future__ import annotations

import msgspec
import sqlalchemy as sa

from stateward.bus.port import HOSTS, Bus
from stateward.clock import Clock
from stateward.domain.hosts import SILENT
from stateward.domain.records import HostReport
from stateward.operations.lives import heard_again
from stateward.store import hosts
from stateward.store.engine import Database

_decoder = msgspec.json.Decoder(HostReport)


async def keep_heartbeats(bus: Bus, database: Database, clock: Clock) -> None:
    """Keep every heartbeat from now on, with when it was received."""

    async def handle(payload: bytes) -> None:
        report = _decoder.decode(payload)
        await database.write(lambda connection: _keep(connection, report, clock.now()))

    await bus.subscribe(HOSTS, handle)


def _keep(connection: sa.Connection, report: HostReport, now: float) -> None:
    # Of nearly all heartbeats nothing follows, and nothing more is asked.
    if hosts.heard(connection, report, now) in SILENT:
        heard_again(connection, report.host, "It was heard of again.", now)
    boots = hosts.boots_of(connection, report.host)
    if boots is not None and boots.latest != report.boot_id:
        hosts.note_boot(connection, report.host, report.boot_id, report.seq, now)
