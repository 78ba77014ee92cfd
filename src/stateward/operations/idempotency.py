"""A request that names a key is admitted once, however often it is sent.

``Keyed`` is a database for that one request: whatever admission writes through it first claims the key, and leaves
the request's answer under it, in the same transaction. So no row of the action table and no handler knows of keys.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, Final, TypeVar

import sqlalchemy as sa
import structlog

from stateward.clock import Clock
from stateward.store import idempotency
from stateward.store.engine import Database, StoreUnavailable, Work
from stateward.store.idempotency import Kept, Ticket

T = TypeVar("T")

log = structlog.get_logger()

#: Seconds between two times that old keys are forgotten.
_PERIOD: Final = 3600.0


class Replayed(Exception):
    """The request was answered before: nothing was done now, and ``kept`` is the answer."""

    def __init__(self, kept: Kept) -> None:
        """Keep the answer."""
        self.kept = kept
        super().__init__("the request was answered before")


class Keyed:
    """A database whose one write is done once for a key."""

    def __init__(
        self, database: Database, clock: Clock, ticket: Ticket, answer: Callable[[Any], Kept]
    ) -> None:
        """Write to a database under a key.

        Args:
            database: the real one.
            clock: for how long the key is kept.
            ticket: the key.
            answer: makes the request's answer of what the write results in.
        """
        self._database = database
        self._clock = clock
        self._ticket = ticket
        self._answer = answer
        self._written = False
        self.dialect = database.dialect

    async def read(self, work: Work[T]) -> T:
        """Read, as the database does."""
        return await self._database.read(work)

    async def write(self, work: Work[T]) -> T:
        """Write and keep the answer.

        Raises:
            Replayed: the request was answered before.
            KeyReused: the key is another request's.
            StoreUnavailable: the database cannot be written.
        """
        if self._written:
            # The key could not speak for both: a kill between them would keep one and answer for two.
            msg = "a request with an Idempotency-Key writes once"
            raise RuntimeError(msg)

        def once(connection: sa.Connection) -> T:
            kept = idempotency.claim(connection, self._ticket, self._clock.now())
            if kept is not None:
                raise Replayed(kept)
            result = work(connection)
            idempotency.keep(connection, self._ticket, self._answer(result))
            return result

        result = await self._database.write(once)
        self._written = True
        return result

    async def seal(self) -> None:
        """Seal, as the database does."""
        await self._database.seal()

    async def close(self) -> None:
        """Leave the closing to whoever opened the database."""


class OldKeys:
    """Forgets the keys whose time is over, once an hour."""

    def __init__(self, database: Database, clock: Clock) -> None:
        """Keep the ports."""
        self._database = database
        self._clock = clock
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin, with what ended while nothing ran."""
        self._task = asyncio.create_task(self._run(), name="old idempotency keys")

    async def stop(self) -> None:
        """End."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _run(self) -> None:
        while True:
            try:
                await self._database.write(
                    lambda connection: idempotency.purge(connection, self._clock.now())
                )
            except StoreUnavailable as error:
                log.warning("old idempotency keys are kept for another hour", error=str(error))
            except Exception:
                log.exception("old idempotency keys could not be forgotten; it is tried again in an hour")
            await asyncio.sleep(_PERIOD)
