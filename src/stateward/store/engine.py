"""The database: one way to read and one way to write, the same for SQLite and PostgreSQL.

A piece of work is a plain function of a SQLAlchemy connection. ``read`` runs it and gives its result; ``write``
runs it in a transaction and gives its result only when that is durable, so an answered 202 survives power loss.

On SQLite the functions run on the event loop (they take microseconds; a thread would only add the hand-over),
and the writes that wait while a commit is being synced to disk share the next one: group commit. Each has a
savepoint of its own, so a refused one leaves no trace in its neighbours' transaction. On PostgreSQL each piece
of work runs in a thread with a transaction of its own. ADR 0003 has the measurements behind this.

What the work records for the audit trail is chained to it just before the commit on SQLite, once for all that share
one, and just after it on PostgreSQL (ADR 0015).
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, Protocol, TypeVar, cast

import sqlalchemy as sa
import structlog
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError, InterfaceError, InternalError, OperationalError
from sqlalchemy.pool import NullPool

from stateward.domain.audit import Entry
from stateward.store import audit
from stateward.store.sealing import Sealer

log = structlog.get_logger()

T = TypeVar("T")
Work = Callable[[sa.Connection], T]

#: Writes that share a commit at most: a bound on how long the loop is busy with one batch.
_BATCH: Final = 64
#: Seconds to wait for another process that holds the database before giving up.
_PATIENCE_SECONDS: Final = 5.0
#: Times that a write which PostgreSQL ended in a deadlock is done again. Rows are locked in one order everywhere, as
#: far as is known; where they are not, no client must be told 503 for it.
_ENDED_AT_MOST: Final = 5
#: PostgreSQL's word for a deadlock.
_DEADLOCK: Final = "40P01"


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

        It may be run more than once, each time after it was undone: what it does, it does to the connection only.

        Raises:
            StoreUnavailable: the database cannot be reached, or the disk is full.
        """
        ...

    async def seal(self) -> None:
        """Return when every audit record that was committed before is chained to the trail (ADR 0015).

        Raises:
            StoreUnavailable: the database cannot be reached, or the trail is broken.
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
        self._engine = sqlite_engine(url)
        self._writer = self._engine.connect()
        self._reader = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
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

    async def seal(self) -> None:
        """Do nothing: here records are chained in the transaction that writes them."""

    async def close(self) -> None:
        """Wait for the writes under way, then close."""
        if self._pump is not None:
            await self._pump
        self._writer.close()
        self._reader.close()
        self._engine.dispose()
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
        recorded: list[Entry] = []
        try:
            transaction = await self._begin()
            for work, future in batch:
                answers.append((future, *self._run(work, recorded)))
            self._chain(recorded)
            await self._commit(transaction)
        except Exception as error:
            # SQLite itself gave up (disk full, I/O error), or the trail did: nothing of the batch was kept,
            # everybody is told so.
            self._undo()
            if not isinstance(error, DBAPIError | audit.TrailBroken):
                log.exception("a batch of writes failed as nobody foresaw", writes=len(batch))
            unavailable = StoreUnavailable(_sentence(error))
            unavailable.__cause__ = error
            answers = [(future, None, unavailable) for _work, future in batch]
        except BaseException:
            self._undo()
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

    def _undo(self) -> None:
        """Leave nothing of a transaction that failed, wherever it did, so that the next one can begin.

        After a commit that failed SQLAlchemy takes its transaction for ended but keeps it, and refuses to begin
        another until it was rolled back; and that rollback does not reach SQLite, whose transaction may be open still.
        """
        with contextlib.suppress(DBAPIError):
            self._writer.rollback()
        with contextlib.suppress(DBAPIError, sqlite3.Error):
            if self._driver().in_transaction:
                self._driver().rollback()

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

    def _run(self, work: Work[T], recorded: list[Entry]) -> tuple[T | None, BaseException | None]:
        """Run one piece of work under a savepoint; its own exceptions are its answer.

        What is to be added to the audit trail is added to ``recorded``.

        Raises:
            DBAPIError: from the savepoint itself, when SQLite has rolled the whole transaction back.
        """
        self._savepoint("SAVEPOINT work")
        with audit.collecting(self._writer) as collected:
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
                recorded += collected.lasting
                return None, failure
        self._savepoint("RELEASE work")
        recorded += collected.entries
        return result, None

    def _savepoint(self, statement: str) -> None:
        """Speak to the driver itself: through SQLAlchemy this costs as much as the work it surrounds."""
        try:
            self._driver().execute(statement)
        except sqlite3.Error as error:
            raise OperationalError(statement, None, error) from error

    def _chain(self, recorded: list[Entry]) -> None:
        try:
            audit.chain_sqlite(self._driver(), recorded)
        except sqlite3.Error as error:
            statement = "the audit trail"
            raise OperationalError(statement, None, error) from error

    def _driver(self) -> sqlite3.Connection:
        return cast("sqlite3.Connection", self._writer.connection.dbapi_connection)

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
        # One more than there are threads: the sealer's.
        self._engine = postgres_engine(url, connections=connections + 1)
        self._threads = ThreadPoolExecutor(connections, thread_name_prefix="postgresql")
        self._sealer = Sealer(self._engine)

    async def read(self, work: Work[T]) -> T:
        """Run in a thread, in a transaction that is rolled back."""
        return await self._in_thread(lambda: self._read(work))

    async def write(self, work: Work[T]) -> T:
        """Run in a thread; PostgreSQL's own group commit does the rest."""
        return await self._in_thread(lambda: self._write_again(work))

    async def seal(self) -> None:
        """Do now what is done within a moment after each commit."""
        await self._in_thread(self._sealer.seal)

    async def close(self) -> None:
        """Seal what is there and close the pool."""
        self._threads.shutdown()
        self._sealer.close()
        self._engine.dispose()

    async def _in_thread(self, run: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, run)
        except (OperationalError, InterfaceError, audit.TrailBroken) as error:
            raise StoreUnavailable(_sentence(error)) from error
        except InternalError as error:
            # Its own trouble, as where another server leads now and this one only reads: new connections find out.
            self._engine.dispose()
            raise StoreUnavailable(_sentence(error)) from error

    def _read(self, work: Work[T]) -> T:
        with self._engine.connect() as connection:
            return work(connection)

    def _write_again(self, work: Work[T]) -> T:
        """Write; where PostgreSQL ended it in favour of another, once more: that one is through by then."""
        for _ in range(_ENDED_AT_MOST):
            try:
                return self._write(work)
            except OperationalError as error:
                if not _gave_way(error):
                    raise
                log.info("a transaction gave way to another one and is done again", error=_sentence(error))
        return self._write(work)

    def _write(self, work: Work[T]) -> T:
        with self._engine.connect() as connection:
            with audit.collecting(connection) as collected:
                try:
                    result = work(connection)
                except DBAPIError:
                    raise
                except Exception:
                    connection.rollback()
                    self._commit(connection, collected.lasting)
                    raise
            self._commit(connection, collected.entries)
            return result

    def _commit(self, connection: sa.Connection, entries: Sequence[Entry]) -> None:
        if entries:
            self._sealer.check()
        audit.commit_unsealed(connection, entries)
        self._sealer.wake(recorded=bool(entries))


def sqlite_engine(url: sa.URL) -> sa.Engine:
    """Return what connects to an SQLite file, durably."""
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


def postgres_engine(url: sa.URL, *, connections: int) -> sa.Engine:
    """Return a pool of so many connections to PostgreSQL at most; nothing is connected yet."""
    return sa.create_engine(
        url, pool_size=connections, max_overflow=0, pool_pre_ping=True, isolation_level="READ COMMITTED"
    )


def _is_busy(error: OperationalError) -> bool:
    return isinstance(error.orig, sqlite3.OperationalError) and error.orig.sqlite_errorname == "SQLITE_BUSY"


def _gave_way(error: OperationalError) -> bool:
    """Say whether PostgreSQL undid a transaction only because it and another one waited for each other."""
    return getattr(error.orig, "sqlstate", None) == _DEADLOCK


def _sentence(error: Exception) -> str:
    if isinstance(error, audit.TrailBroken):
        return str(error)
    reason = error.orig if isinstance(error, DBAPIError) else error
    return f"The database cannot be used now: {str(reason).strip()}"
