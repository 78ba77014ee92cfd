"""The database: one way to read and one way to write, the same for SQLite and PostgreSQL.

A piece of work is a plain function of a SQLAlchemy connection. ``read`` runs it and gives its result; ``write``
runs it in a transaction and gives its result only when that is durable, so an answered 202 survives power loss.

On SQLite the functions run on the event loop (they take microseconds; a thread would only add the hand-over),
and the writes that wait while a commit is being synced to disk share the next one: group commit. Each has a
savepoint of its own, so a refused one leaves no trace in its neighbours' transaction. On PostgreSQL each piece
of work runs in a thread with a transaction of its own. ADR 0003 has the measurements behind this.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, Protocol, TypeVar

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.pool import NullPool

T = TypeVar("T")
Work = Callable[[sa.Connection], T]

#: Writes that share a commit at most: a bound on how long the loop is busy with one batch.
_BATCH: Final = 64
#: Seconds to wait for another process that holds the database before giving up.
_PATIENCE_SECONDS: Final = 5.0


class StoreUnavailable(Exception):
    """The database could not be read or written now; nothing of the work was kept. ``str()`` says why."""


class Database(Protocol):
    """What the rest of the control plane sees of a database."""

    dialect: str

    async def read(self, work: Work[T]) -> T:
        """Run a function that only reads.

        Raises:
            StoreUnavailable: the database cannot be reached.
        """
        ...

    async def write(self, work: Work[T]) -> T:
        """Run a function in a transaction and return when it is durable; an exception undoes it.

        Raises:
            StoreUnavailable: the database cannot be reached, or the disk is full.
        """
        ...

    async def close(self) -> None:
        """Finish what was begun and let go of every connection."""
        ...


def open_database(url: str, *, inline_commit: bool = False) -> Database:
    """Open a database by its SQLAlchemy URL (``sqlite:///FILE`` or ``postgresql+psycopg://…``).

    Args:
        url: which database.
        inline_commit: commit on the event loop as well: for tests on virtual time, where no thread may work
            unseen by the clock.
    """
    parsed = sa.make_url(url)
    if parsed.get_backend_name() == "sqlite":
        return SqliteDatabase(parsed, inline_commit=inline_commit)
    return PostgresDatabase(parsed)


class SqliteDatabase:
    """SQLite in WAL mode with ``synchronous=FULL``: a commit that returned is on the disk."""

    dialect = "sqlite"

    def __init__(self, url: sa.URL, *, inline_commit: bool = False) -> None:
        """Connect twice: once to write, once to read beside a commit that is being synced."""
        self._writer_engine = _sqlite_engine(url)
        self._reader_engine = _sqlite_engine(url)
        self._writer = self._writer_engine.connect()
        self._reader = self._reader_engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        self._waiting: deque[tuple[Work[Any], asyncio.Future[Any]]] = deque()
        self._pump: asyncio.Task[None] | None = None
        self._commits = None if inline_commit else ThreadPoolExecutor(1, thread_name_prefix="commit")

    async def read(self, work: Work[T]) -> T:
        """Run on the loop, on a connection that sees all that was committed."""
        try:
            return work(self._reader)
        except OperationalError as error:
            raise StoreUnavailable(_sentence(error)) from error

    async def write(self, work: Work[T]) -> T:
        """Queue the work; it shares a commit with whatever else waits."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.append((work, future))
        if self._pump is None:
            self._pump = asyncio.create_task(self._drain(), name="database writes")
        return await future

    async def close(self) -> None:
        """Wait for the writes under way, then close."""
        if self._pump is not None:
            await self._pump
        self._writer.close()
        self._reader.close()
        self._writer_engine.dispose()
        self._reader_engine.dispose()
        if self._commits is not None:
            self._commits.shutdown()

    async def _drain(self) -> None:
        try:
            while self._waiting:
                batch = [self._waiting.popleft() for _ in range(min(_BATCH, len(self._waiting)))]
                await self._commit_batch(batch)
        finally:
            self._pump = None

    async def _commit_batch(self, batch: list[tuple[Work[Any], asyncio.Future[Any]]]) -> None:
        answers: list[tuple[asyncio.Future[Any], Any, BaseException | None]] = []
        try:
            transaction = await self._begin()
            try:
                for work, future in batch:
                    answers.append((future, *self._run(work)))
                await self._commit(transaction)
            except BaseException:
                if transaction.is_active:
                    with contextlib.suppress(DBAPIError):
                        transaction.rollback()
                raise
        except DBAPIError as error:
            # SQLite itself gave up (disk full, I/O error): nothing of the batch was kept, everybody is told so.
            unavailable = StoreUnavailable(_sentence(error))
            unavailable.__cause__ = error
            answers = [(future, None, unavailable) for _work, future in batch]
        except BaseException:
            for _work, future in batch:
                future.cancel()
            raise
        for future, result, failure in answers:
            if future.done():
                continue
            if failure is not None:
                future.set_exception(failure)
            else:
                future.set_result(result)

    async def _begin(self) -> sa.RootTransaction:
        """Take the database's write lock; another process (a command-line tool) may hold it for a moment."""
        deadline = asyncio.get_running_loop().time() + _PATIENCE_SECONDS
        while True:
            try:
                return self._writer.begin()
            except OperationalError as error:
                if not _is_busy(error) or asyncio.get_running_loop().time() > deadline:
                    raise
                await asyncio.sleep(0.005)

    def _run(self, work: Work[T]) -> tuple[T | None, BaseException | None]:
        """Run one piece of work under a savepoint; its own exceptions are its answer.

        Raises:
            DBAPIError: from the savepoint itself, when SQLite has rolled the whole transaction back.
        """
        self._savepoint("SAVEPOINT work")
        try:
            result = work(self._writer)
        except Exception as failure:  # noqa: BLE001 (handed to whoever asked for the work)
            try:
                self._savepoint("ROLLBACK TO work")
            except OperationalError:
                # The savepoint went with the whole transaction; what people must read is why (a full disk).
                if isinstance(failure, DBAPIError):
                    raise failure from None
                raise
            self._savepoint("RELEASE work")
            return None, failure
        self._savepoint("RELEASE work")
        return result, None

    def _savepoint(self, statement: str) -> None:
        """Speak to the driver itself: through SQLAlchemy this costs as much as the work it surrounds."""
        connection: Any = self._writer.connection.dbapi_connection
        try:
            connection.execute(statement)
        except sqlite3.Error as error:
            raise OperationalError(statement, None, error) from error

    async def _commit(self, transaction: sa.RootTransaction) -> None:
        if self._commits is None:
            transaction.commit()
            return
        # Nothing else touches the connection meanwhile: the pump awaits this before its next batch.
        await asyncio.get_running_loop().run_in_executor(self._commits, transaction.commit)


class PostgresDatabase:
    """PostgreSQL, one transaction and one thread for each piece of work."""

    dialect = "postgresql"

    def __init__(self, url: sa.URL, *, connections: int = 12) -> None:
        """Make the pool; nothing is connected yet."""
        self._engine = sa.create_engine(
            url, pool_size=connections, max_overflow=0, pool_pre_ping=True, isolation_level="READ COMMITTED"
        )
        self._threads = ThreadPoolExecutor(connections, thread_name_prefix="postgresql")

    async def read(self, work: Work[T]) -> T:
        """Run in a thread, in a transaction that is rolled back."""
        return await self._in_thread(self._read, work)

    async def write(self, work: Work[T]) -> T:
        """Run in a thread; PostgreSQL's own group commit does the rest."""
        return await self._in_thread(self._write, work)

    async def close(self) -> None:
        """Close the pool."""
        self._threads.shutdown()
        self._engine.dispose()

    async def _in_thread(self, run: Callable[[Work[T]], T], work: Work[T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, run, work)
        except (OperationalError, InterfaceError) as error:
            raise StoreUnavailable(_sentence(error)) from error

    def _read(self, work: Work[T]) -> T:
        with self._engine.connect() as connection:
            return work(connection)

    def _write(self, work: Work[T]) -> T:
        with self._engine.begin() as connection:
            return work(connection)


def _sqlite_engine(url: sa.URL) -> sa.Engine:
    engine = sa.create_engine(
        url, poolclass=NullPool, connect_args={"check_same_thread": False, "timeout": 0.05}
    )

    @event.listens_for(engine, "connect")
    def set_up(connection: sqlite3.Connection, _record: object) -> None:
        # The driver's own idea of when to begin a transaction is switched off: "begin" below says it.
        connection.isolation_level = None
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")

    @event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        # A reader (autocommit) takes no transaction: its statement is its snapshot.
        if connection.get_execution_options().get("isolation_level") != "AUTOCOMMIT":
            connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def _is_busy(error: OperationalError) -> bool:
    return isinstance(error.orig, sqlite3.OperationalError) and error.orig.sqlite_errorname == "SQLITE_BUSY"


def _sentence(error: DBAPIError) -> str:
    return f"The database cannot be used now: {str(error.orig).strip()}"
