"""Rows as plain mappings, rows that must be new, and what a refused one was refused for."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError

Values = Mapping[str, Any]

#: SQLSTATE of a unique violation.
_UNIQUE_VIOLATION: Final = "23505"
_UNIQUE_IN_SQLITE: Final = frozenset({"SQLITE_CONSTRAINT_UNIQUE", "SQLITE_CONSTRAINT_PRIMARYKEY"})


def is_duplicate(error: IntegrityError) -> bool:
    """Tell whether a uniqueness constraint refused, and not a foreign key."""
    if isinstance(error.orig, sqlite3.Error):
        return error.orig.sqlite_errorname in _UNIQUE_IN_SQLITE
    return getattr(error.orig, "sqlstate", None) == _UNIQUE_VIOLATION


def every(connection: sa.Connection, statement: sa.Executable) -> list[Values]:
    """Return the rows of a statement, by column."""
    return [
        {str(name): value for name, value in row.items()} for row in connection.execute(statement).mappings()
    ]


def one(connection: sa.Connection, statement: sa.Executable) -> Values | None:
    """Return the only row of a statement, or None when it has none."""
    rows = every(connection, statement)
    return rows[0] if rows else None


def insert_new(connection: sa.Connection, table: sa.Table, values: Values) -> sa.Row[Any] | None:
    """Insert a row unless one of the table's uniqueness constraints has it already.

    Unlike catching the violation, this leaves a transaction of PostgreSQL's usable, to say what is in the way.

    Returns:
        The row as it was inserted; None when there was one.

    Raises:
        IntegrityError: another kind of constraint refused.
    """
    make = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    statement = make(table).values(**values).on_conflict_do_nothing().returning(table)
    return connection.execute(statement).one_or_none()
