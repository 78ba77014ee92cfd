"""The audit trail's writing side (B7): what a transaction records is written at its very end.

While a transaction works, its records are only collected. On SQLite, where one writes at a time anyway, they are
chained to the trail just before the commit: numbered, hashed, inserted, and the row with the chain's head moves. On
PostgreSQL that would make every commit wait for the one before it, so there they are left unsealed, and chained a
moment after the commit (``sealing``).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import sqlite
from sqlalchemy.exc import DBAPIError

from stateward.domain.audit import Entry, Head, link
from stateward.store.tables import AUDIT

_COLLECTED: Final = "audit records of this transaction"
#: The columns with what a record says.
SAID: Final = Entry.__struct_fields__
_LEAVE: Final = f"INSERT INTO audit_unsealed ({', '.join(SAID)}) VALUES "  # noqa: S608 (names of columns)
_PLACES: Final = f"({', '.join(['%s'] * len(SAID))})"
_CHAIN: Final = str(sa.insert(AUDIT).compile(dialect=sqlite.dialect(), column_keys=["number", *SAID, "hash"]))


class TrailBroken(Exception):
    """Nothing can be added to the audit trail, and so nothing can be done; ``str()`` says why."""


class Collected:
    """What one piece of work recorded, not written yet."""

    def __init__(self) -> None:
        """Nothing yet."""
        self.entries: list[Entry] = []
        #: Those that stay when the work is undone.
        self.lasting: list[Entry] = []


@contextmanager
def collecting(connection: sa.Connection) -> Generator[Collected]:
    """Take what is recorded on a connection; whoever opens this writes it."""
    collected = Collected()
    # Kept, because a connection that breaks meanwhile cannot be asked for it any more.
    info = connection.info
    info[_COLLECTED] = collected
    try:
        yield collected
    finally:
        info.pop(_COLLECTED, None)


@contextmanager
def part(connection: sa.Connection) -> Generator[None]:
    """Do a part of a piece of work that is undone alone when it raises; what it recorded goes with it.

    What it recorded as lasting stays.
    """
    collected: Collected = connection.info[_COLLECTED]
    entries, lasting = len(collected.entries), len(collected.lasting)
    try:
        with connection.begin_nested():
            yield
    except BaseException:
        collected.entries[entries:] = collected.lasting[lasting:]
        raise


def append(connection: sa.Connection, entry: Entry, *, lasting: bool = False) -> None:
    """Have a record written with the transaction.

    Args:
        connection: of a transaction of ``Database.write``.
        entry: what it says.
        lasting: written also when the work ends in an exception and everything else of it is undone.

    Raises:
        RuntimeError: nobody would write it.
    """
    collected: Collected | None = connection.info.get(_COLLECTED)
    if collected is None:
        msg = "an audit record can be made only in a transaction of Database.write"
        raise RuntimeError(msg)
    collected.entries.append(entry)
    if lasting:
        collected.lasting.append(entry)


def commit_unsealed(connection: sa.Connection, entries: Sequence[Entry]) -> None:
    """Commit, and leave records to be chained after it (``sealing``): PostgreSQL's way.

    Both in one message to the server, so that the trail costs no round trip: this is what its share of an admission is
    made of.

    Raises:
        DBAPIError: nothing was committed.
    """
    if entries:
        statement = f"{_LEAVE}{', '.join([_PLACES] * len(entries))}; COMMIT"
        values = [value for entry in entries for value in _said(entry)]
        psycopg: Any = connection.dialect.dbapi
        try:
            # Of psycopg's cursors the one that can send two statements at once; SQLAlchemy uses the other.
            psycopg.ClientCursor(connection.connection.dbapi_connection).execute(statement, values)
        except psycopg.Error as error:
            raise DBAPIError.instance(
                statement, values, error, psycopg.Error, dialect=connection.dialect
            ) from error
    connection.commit()


def chain_sqlite(connection: sqlite3.Connection, entries: Sequence[Entry]) -> None:
    """Chain records to the trail: SQLite's way, the last thing before a commit.

    Through the driver itself: a fifth of the time that SQLAlchemy takes, in what every admission does.

    Raises:
        TrailBroken: the trail's end is not what its head says.
        sqlite3.Error: SQLite itself gave up.
    """
    if not entries:
        return
    row = connection.execute("SELECT number, hash FROM audit_head").fetchone()
    heads = chained(None if row is None else Head(*row), entries)
    rows = [(head.number, *_said(entry), head.hash) for head, entry in zip(heads, entries, strict=True)]
    try:
        connection.executemany(_CHAIN, rows)
    except sqlite3.IntegrityError as error:
        raise ahead(error) from error
    connection.execute("UPDATE audit_head SET number = ?, hash = ?", (heads[-1].number, heads[-1].hash))


def chained(head: Head | None, entries: Sequence[Entry]) -> list[Head]:
    """Return the numbers and hashes of records that follow a head.

    Raises:
        TrailBroken: there is no head.
    """
    if head is None:
        raise TrailBroken("The audit trail has lost its head.")
    number, digest = head.number, head.hash
    heads: list[Head] = []
    for entry in entries:
        number += 1
        digest = link(digest, number, entry)
        heads.append(Head(number, digest))
    return heads


def ahead(error: object) -> TrailBroken:
    """Return what is wrong when the next record's number is taken."""
    return TrailBroken(f"The audit trail has records past its head: {' '.join(str(error).split())}")


def _said(entry: Entry) -> tuple[Any, ...]:
    *facts, detail = msgspec.structs.astuple(entry)
    return (*facts, bytes(detail).decode())
