"""One server for a database: the bus is inside a server, so another one's agents would never hear what it dispatches.

Both would also judge every host, and tell every webhook everything. So a server takes the database before it touches
it, and whoever comes second is refused. What it holds dies with its process: on PostgreSQL a session's advisory lock,
on SQLite a lock of the file.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from collections.abc import Callable
from typing import Final

import sqlalchemy as sa
import structlog
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from stateward.threads import on_thread

log = structlog.get_logger()

#: The lock's name, in PostgreSQL's space of two numbers; those of one number are ``store.locks``'.
_KEY: Final = (0x57A7E, 1)
#: Seconds until PostgreSQL has noticed that the process before this one was killed.
_PATIENCE: Final = 2.0
#: Seconds between two attempts of a start, and between two looks whether it is still held.
_PAUSE: Final = 0.1
_PERIOD: Final = 5.0
#: Seconds in which PostgreSQL notices that a machine has gone: it asks after 10 silent ones, and three times more.
_GONE: Final = 60.0
_ALIVE: Final = (
    "SET tcp_keepalives_idle = 10",
    "SET tcp_keepalives_interval = 5",
    "SET tcp_keepalives_count = 3",
)


class DatabaseTaken(Exception):
    """Another server has the database."""


def sole(url: str) -> Sole | SoleFile:
    """Return what takes a database, by its SQLAlchemy URL."""
    parsed = sa.make_url(url)
    return SoleFile(parsed.database or "") if parsed.get_backend_name() == "sqlite" else Sole(parsed)


class SoleFile:
    """An SQLite database's file; for as long as the process lives nobody else takes it."""

    def __init__(self, path: str) -> None:
        """Take nothing yet."""
        self._path = path
        self._descriptor: int | None = None

    async def take(self, lost: Callable[[], None]) -> None:
        """Take it; ``lost`` is never called.

        Raises:
            DatabaseTaken: another server has it.
        """
        del lost
        if self._path.startswith((":memory:", "file:")) or not self._path:
            return
        try:
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError:
            # Whoever opens the database says why.
            return
        try:
            # Of another kind than SQLite's own.
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise DatabaseTaken from None

    async def release(self) -> None:
        """Let go of it; after the database is closed, whose own locks on the file end with this."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


class Sole:
    """A PostgreSQL database, by a connection of its own."""

    def __init__(
        self, url: sa.URL, *, patience: float = _PATIENCE, period: float = _PERIOD, gone: float = _GONE
    ) -> None:
        """Take nothing yet.

        Args:
            url: which database.
            patience: seconds in which a start tries again.
            period: seconds between two looks whether it is still held.
            gone: seconds that a server whose connection broke has to take it again: so long its own may hold it.
        """
        self._engine = sa.create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
        self._patience = patience
        self._period = period
        self._gone = gone
        self._connection: sa.Connection | None = None
        self._task: asyncio.Task[None] | None = None

    async def take(self, lost: Callable[[], None]) -> None:
        """Take it, and see from now on that it stays so.

        Args:
            lost: called when somebody else has it: this server must end.

        Raises:
            DatabaseTaken: another server has it.
            DBAPIError: it cannot be reached.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + self._patience
        while not await on_thread(self._try):
            if loop.time() > until:
                raise DatabaseTaken
            await asyncio.sleep(_PAUSE)
        self._task = asyncio.create_task(self._watch(lost), name="sole server")

    async def release(self) -> None:
        """Let go of it."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        await on_thread(self._leave)

    async def _watch(self, lost: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()
        since: float | None = None
        while True:
            await asyncio.sleep(self._period)
            try:
                held = await on_thread(self._hold)
            except DBAPIError as error:
                # Nobody else can take it now either.
                log.warning("the database is away; it is taken again when it is back", error=str(error.orig))
                continue
            except Exception:
                # No thread for it, say: who looks no more never says that another server has it.
                log.exception(
                    "whether this server has its database could not be looked at; it is tried again"
                )
                continue
            if held:
                since = None
                continue
            # As a rule it is this server's own connection, whose end PostgreSQL has not noticed yet.
            since = loop.time() if since is None else since
            if loop.time() - since >= self._gone:
                log.error("another server has taken the database; this one ends")
                lost()
                return

    def _hold(self) -> bool:
        """Say whether it is held still, or again.

        Raises:
            DBAPIError: the database cannot be reached.
        """
        if self._connection is not None:
            try:
                self._connection.exec_driver_sql("SELECT 1")
            except DBAPIError:
                self._leave()
            else:
                return True
        return self._try()

    def _try(self) -> bool:
        connection = self._engine.connect()
        try:
            for each in _ALIVE:
                connection.exec_driver_sql(each)
            taken = bool(connection.execute(sa.select(sa.func.pg_try_advisory_lock(*_KEY))).scalar_one())
        except BaseException:
            connection.close()
            raise
        if taken:
            self._connection = connection
        else:
            connection.close()
        return taken

    def _leave(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(DBAPIError):
                connection.close()
