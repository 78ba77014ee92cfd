"""Heartbeats: what hosts say of themselves is kept.

Those that come together are written together: a thousand hosts make two hundred a second, which are then one
transaction. One that is lost between its arrival and its write is one of many.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools

import msgspec
import sqlalchemy as sa
import structlog

from stateward.bus.port import HOSTS, Bus
from stateward.clock import Clock
from stateward.domain.hosts import SILENT
from stateward.domain.records import HostReport
from stateward.operations.lives import heard_again
from stateward.store import hosts
from stateward.store.engine import Database, StoreUnavailable

log = structlog.get_logger()

#: Seconds between two writes at least; the first of a while is written at once.
_TOGETHER = 0.5

_decoder = msgspec.json.Decoder(HostReport)


async def keep_heartbeats(bus: Bus, database: Database, clock: Clock) -> Heartbeats:
    """Keep every heartbeat from now on, with when it was received; to be stopped before the database is closed."""
    heartbeats = Heartbeats(database, clock)
    await bus.subscribe(HOSTS, heartbeats.handle)
    return heartbeats


class Heartbeats:
    """Gathers heartbeats, and writes them."""

    def __init__(self, database: Database, clock: Clock) -> None:
        """Keep the ports."""
        self._database = database
        self._clock = clock
        #: The latest of each host that is not written yet, and when it was received.
        self._waiting: dict[str, tuple[HostReport, float]] = {}
        self._writer: asyncio.Task[None] | None = None

    async def handle(self, payload: bytes) -> None:
        """Take one."""
        report = _decoder.decode(payload)
        before = self._waiting.get(report.host)
        if before is None or before[0].number < report.number:
            self._waiting[report.host] = report, self._clock.now()
        if self._writer is None:
            self._writer = asyncio.create_task(self._write(), name="heartbeats")

    async def stop(self) -> None:
        """Write no more; hosts that live are heard of again."""
        if self._writer is not None:
            self._writer.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._writer

    async def _write(self) -> None:
        try:
            while self._waiting:
                heard, self._waiting = self._waiting, {}
                try:
                    await self._database.write(functools.partial(_keep, heard=heard))
                except StoreUnavailable as error:
                    log.warning("heartbeats could not be kept", hosts=len(heard), error=str(error))
                except Exception:
                    # A fault of ours in one of them must not end the hearing of all hosts.
                    log.exception("heartbeats could not be kept", hosts=len(heard))
                await asyncio.sleep(_TOGETHER)
        finally:
            self._writer = None


def _keep(connection: sa.Connection, heard: dict[str, tuple[HostReport, float]]) -> None:
    # In one order, in which everybody holds several rows.
    for _name, (report, now) in sorted(heard.items()):
        # Of nearly all heartbeats nothing follows, and nothing more is asked.
        if hosts.heard(connection, report, now) in SILENT:
            heard_again(connection, report.host, "It was heard of again.", now)
        boots = hosts.boots_of(connection, report.host)
        if boots is not None and boots.latest != report.boot_id:
            hosts.note_boot(connection, report.host, report.boot_id, report.seq, now)
