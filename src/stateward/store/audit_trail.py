"""The audit trail's reading side: a look at all of it at one moment, beside a running server or without one."""

from __future__ import annotations

import sqlite3
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import msgspec
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import ArgumentError, DBAPIError

from stateward.domain.audit import GENESIS, Entry, Head, Record
from stateward.store.schema import HEAD
from stateward.store.tables import AUDIT, AUDIT_HEAD, AUDIT_UNSEALED

_COLUMNS: Final = AUDIT.c
_ROWS: Final = sa.select(
    *(
        sa.type_coerce(_COLUMNS[name], sa.Text) if name == "detail" else _COLUMNS[name]
        for name in ("number", "hash", *Entry.__struct_fields__)
    )
).order_by(_COLUMNS.number)
#: Rows fetched at once.
_PAGE: Final = 5000


class CannotRead(Exception):
    """There is no audit trail to be read; ``str()`` says why."""


class Trail:
    """The trail as it was when it was opened, however long that takes to read."""

    def __init__(self, connection: sa.Connection) -> None:
        """Read on a connection that sees one moment."""
        self._connection = connection

    def head(self) -> Head | None:
        """Return the head that is kept beside the trail; None when it is gone."""
        row = self._connection.execute(sa.select(AUDIT_HEAD.c.number, AUDIT_HEAD.c.hash)).one_or_none()
        return None if row is None else Head(number=row.number, hash=str(row.hash))

    def count(self, first: int = 1) -> int:
        """Return how many records there are from a number on."""
        return self._connection.execute(
            sa.select(sa.func.count()).select_from(AUDIT).where(_COLUMNS.number >= first)
        ).scalar_one()

    def unsealed(self) -> int:
        """Return how many records were committed and are not chained yet: on PostgreSQL, of the last moment."""
        return self._connection.execute(sa.select(sa.func.count()).select_from(AUDIT_UNSEALED)).scalar_one()

    def records(self, first: int = 1) -> Iterator[Record]:
        """Return the records from a number on, by number."""
        rows = self._connection.execution_options(yield_per=_PAGE).execute(
            _ROWS.where(_COLUMNS.number >= first)
        )
        for row in rows:
            number, digest, *facts, detail = tuple(row)
            # Whatever was put in their place must be read, and found wrong: SQLite keeps any type in any column.
            raw = msgspec.Raw(detail if isinstance(detail, bytes) else str(detail).encode())
            fields: dict[str, Any] = dict(zip(Entry.__struct_fields__, (*facts, raw), strict=True))
            yield Record(number, Entry(**fields), str(digest))

    def hash_before(self, number: int) -> str:
        """Return the hash of the last record before a number."""
        found = self._connection.execute(
            sa.select(_COLUMNS.hash).where(_COLUMNS.number < number).order_by(_COLUMNS.number.desc()).limit(1)
        ).scalar_one_or_none()
        return GENESIS if found is None else str(found)

    def first_since(self, at: float) -> int:
        """Return the number of the first record of a time or later; one past the last when there is none."""
        last = sa.select(sa.func.coalesce(sa.func.max(_COLUMNS.number), 0) + 1).scalar_subquery()
        first = sa.select(sa.func.min(_COLUMNS.number)).where(_COLUMNS.at >= at).scalar_subquery()
        return int(self._connection.execute(sa.select(sa.func.coalesce(first, last))).scalar_one())


@contextmanager
def reading(url: str) -> Generator[Trail]:
    """Open a database's trail for reading.

    Raises:
        CannotRead: the address is none, nothing is there, or it is no database with a chained trail.
    """
    try:
        parsed = sa.make_url(url)
        engine = _sqlite(parsed) if parsed.get_backend_name() == "sqlite" else _postgresql(parsed)
    except (ArgumentError, ImportError) as error:
        raise CannotRead(f"That is not the address of a database: {_line(error)}") from None
    shown = parsed.render_as_string(hide_password=True)
    try:
        with engine.connect() as connection:
            _check_schema(connection, shown)
            yield Trail(connection)
    except DBAPIError as error:
        raise CannotRead(f"The database {shown} cannot be read: {_line(error.orig)}") from None
    finally:
        engine.dispose()


def _sqlite(url: sa.URL) -> sa.Engine:
    path = Path(url.database or "")
    # Its own mode: the driver's default would make a file that is not there.
    address = f"file:{quote(str(path.absolute()))}?mode=rw"

    def connect() -> sqlite3.Connection:
        connection = sqlite3.connect(address, uri=True, isolation_level=None)
        connection.text_factory = _readable
        connection.execute("PRAGMA query_only=ON")
        return connection

    engine = sa.create_engine("sqlite://", creator=connect, poolclass=sa.NullPool)

    @event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN")

    return engine


def _readable(raw: bytes) -> str:
    return raw.decode(errors="replace")


def _postgresql(url: sa.URL) -> sa.Engine:
    return sa.create_engine(
        url,
        poolclass=sa.NullPool,
        isolation_level="REPEATABLE READ",
        execution_options={"postgresql_readonly": True},
    )


def _check_schema(connection: sa.Connection, shown: str) -> None:
    inspected = sa.inspect(connection)
    if not inspected.has_table("alembic_version") or not inspected.has_table("audit"):
        raise CannotRead(f"The database {shown} is not one of Stateward's.")
    version = connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar_one_or_none()
    if version != HEAD:
        raise CannotRead(
            f"The database {shown} has the schema of another Stateward ({version}; this one's is {HEAD})."
        )
    columns = {column["name"] for column in inspected.get_columns("audit")}
    if "hash" not in columns or not inspected.has_table("audit_unsealed"):
        raise CannotRead(f"The database {shown} is of an older Stateward, whose audit trail has no hashes.")


def _line(error: object) -> str:
    return " ".join(str(error).split()).rstrip(".") + "."
