"""Maintenance ends by itself: a host whose time is up is judged again. Until that is written it is maintained."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import uuid

import sqlalchemy as sa
import structlog

from stateward.clock import Clock
from stateward.operations.immediate import system_actor
from stateward.store import hosts, operations
from stateward.store.engine import Database, StoreUnavailable

log = structlog.get_logger()

#: Seconds between two looks at most: a clock that was set forward is noticed then.
_LONGEST_PAUSE = 10.0
#: Seconds until a look that failed is taken again.
_RETRY_SECONDS = 1.0


class Maintenance:
    """Ends maintenances whose time is up."""

    def __init__(self, database: Database, clock: Clock) -> None:
        """Keep the ports."""
        self._database = database
        self._clock = clock
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def wake(self) -> None:
        """Look again now: a maintenance has begun."""
        self._wake.set()

    async def start(self) -> None:
        """Look from now on."""
        self._task = asyncio.create_task(self._run(), name="maintenance of hosts")

    async def stop(self) -> None:
        """Stop; what is due is done by the next start."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def look(self) -> float:
        """End what is due, and return the seconds until something is due next.

        Raises:
            StoreUnavailable: the database cannot be used.
        """
        pause = _LONGEST_PAUSE
        for name, until in await self._database.read(hosts.maintained):
            now = self._clock.now()
            if until > now:
                pause = min(pause, until - now)
                continue
            try:
                await self._database.write(functools.partial(_end, name=name, until=until, now=now))
            except StoreUnavailable:
                raise
            except Exception:
                # One host's fault must not keep all others for ever.
                log.exception("a maintenance could not be ended; it is tried again", host=name)
                pause = min(pause, _RETRY_SECONDS)
            else:
                log.info("a maintenance ended", host=name)
        return pause

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            pause = _RETRY_SECONDS
            try:
                pause = await self.look()
            except StoreUnavailable as error:
                log.warning("maintenances cannot be looked at now", error=str(error))
            except Exception:
                log.exception("maintenances could not be looked at; it is tried again")
            # Not wait_for: on Python 3.11 it loses a cancellation that comes together with the event.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._wake.wait()


def _end(connection: sa.Connection, *, name: str, until: float, now: float) -> None:
    if hosts.end_maintenance(connection, name, until=until):
        operations.record(
            connection,
            at=now,
            event="host",
            actor=system_actor(f"req-{uuid.uuid4()}"),
            instance_id=None,
            action="maintenance_ended",
            detail={"host": name, "says": "Its time was up."},
        )
