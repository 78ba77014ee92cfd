"""Expiry: a lock whose time is up is taken away, and those who care are told before (B2).

Until that is written the lock holds: an admission never looks at a clock, so no clock that is wrong frees anything
early, and the history of a lock has one moment at which it ended (B1).
"""

from __future__ import annotations

import asyncio
import contextlib

import structlog

from stateward.clock import Clock
from stateward.domain.locks import Lock
from stateward.operations.locking import Locking
from stateward.store import locks
from stateward.store.engine import Database, StoreUnavailable

log = structlog.get_logger()

#: Seconds between two looks at most: a clock that was set forward is noticed then.
_LONGEST_PAUSE = 10.0
#: Seconds until a look that failed is taken again.
_RETRY_SECONDS = 1.0


class Expiry:
    """Takes away locks whose time is up. ``warning``: seconds before that in which it is told."""

    def __init__(self, database: Database, clock: Clock, warning: float) -> None:
        """Keep the ports; ``start`` is given what places and takes away."""
        self._database = database
        self._clock = clock
        self._warning = warning
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def wake(self) -> None:
        """Look again now: a lock was placed that expires."""
        self._wake.set()

    async def start(self, locking: Locking) -> None:
        """Look from now on."""
        self._task = asyncio.create_task(self._run(locking), name="expiry of locks")

    async def stop(self) -> None:
        """Stop; what is due is done by the next start."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def look(self, locking: Locking) -> float:
        """Do what is due, and return the seconds until something is due next.

        Raises:
            StoreUnavailable: the database cannot be used.
        """
        pause = _LONGEST_PAUSE
        for lock in await self._database.read(locks.expiring):
            try:
                rest = await self._look_at(locking, lock)
            except StoreUnavailable:
                raise
            except Exception:
                # One lock's fault must not keep all others for ever.
                log.exception("a lock could not be expired; it is tried again", **_told(lock))
                rest = _RETRY_SECONDS
            pause = min(pause, rest)
        return pause

    async def _look_at(self, locking: Locking, lock: Lock) -> float:
        """Do what is due of one lock, and return the seconds until something is due of it next."""
        now = self._clock.now()
        expires = lock.expires_at or now
        if expires <= now:
            if await locking.expire(lock):
                log.info("a lock expired", **_told(lock))
            return _LONGEST_PAUSE
        if lock.warned_at is None:
            if expires - self._warning > now:
                return expires - self._warning - now
            if await locking.warn(lock):
                log.warning("a lock expires soon", seconds=round(expires - now, 1), **_told(lock))
        return expires - now

    async def _run(self, locking: Locking) -> None:
        while True:
            self._wake.clear()
            pause = _RETRY_SECONDS
            try:
                pause = await self.look(locking)
            except StoreUnavailable as error:
                log.warning("locks cannot be looked at now", error=str(error))
            except Exception:
                log.exception("locks could not be looked at; it is tried again")
            # Not wait_for: on Python 3.11 it loses a cancellation that comes together with the event.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._wake.wait()


def _told(lock: Lock) -> dict[str, str]:
    return {"lock": lock.id, "scope": lock.scope, "name": lock.name, "holder": lock.holder}
