"""The answers that are kept under the keys of requests, so that a request that is sent again is not done again.

A key is claimed before the work of its request and gets the answer after it, all in one transaction: killed anywhere
before the commit there is neither, after it there are both. The table's primary key makes requests with one key wait
for each other.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
import sqlalchemy as sa

from stateward.store.rows import insert_new
from stateward.store.tables import METADATA

#: Seconds a key is kept.
LIFETIME: Final = 24 * 3600.0

IDEMPOTENCY_KEYS: Final = sa.Table(
    "idempotency_keys",
    METADATA,
    sa.Column("user_id", sa.String(64), primary_key=True),
    sa.Column("key", sa.String(255), primary_key=True),
    #: Of the request, hexadecimal.
    sa.Column("fingerprint", sa.String(64), nullable=False),
    sa.Column("claimed_at", sa.Double, nullable=False),
    #: The answer; null only inside the transaction that claimed the key.
    sa.Column("status", sa.Integer),
    sa.Column("headers", sa.Text),
    sa.Column("body", sa.LargeBinary),
    sa.Index(None, "claimed_at"),
)
_COLUMNS = IDEMPOTENCY_KEYS.c


class Ticket(msgspec.Struct, frozen=True, kw_only=True):
    """A request's key."""

    user_id: str
    key: str
    #: Tells this request from any other with the same key.
    fingerprint: str


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """An answer."""

    status: int
    headers: dict[str, str]
    body: bytes


class KeyReused(Exception):
    """A key was used for another request before; ``str()`` says so."""

    def __init__(self, key: str) -> None:
        """Name the key."""
        super().__init__(
            f"The Idempotency-Key {key} was used for another request already; a new request needs a new key."
        )


def find(connection: sa.Connection, ticket: Ticket, now: float) -> Kept | None:
    """Return the answer that is kept under a key; None when there is none.

    Raises:
        KeyReused: the key is another request's.
    """
    statement = sa.select(IDEMPOTENCY_KEYS).where(*_of(ticket), _COLUMNS.claimed_at > now - LIFETIME)
    row = connection.execute(statement).one_or_none()
    return None if row is None else _kept(row, ticket)


def claim(connection: sa.Connection, ticket: Ticket, now: float) -> Kept | None:
    """Make a key this transaction's, or return the answer of the request that had it before.

    Raises:
        KeyReused: that was another request.
    """
    connection.execute(sa.delete(IDEMPOTENCY_KEYS).where(*_of(ticket), _COLUMNS.claimed_at <= now - LIFETIME))
    values = msgspec.structs.asdict(ticket) | {"claimed_at": now}
    if insert_new(connection, IDEMPOTENCY_KEYS, values) is not None:
        return None
    return _kept(connection.execute(sa.select(IDEMPOTENCY_KEYS).where(*_of(ticket))).one(), ticket)


def keep(connection: sa.Connection, ticket: Ticket, answer: Kept) -> None:
    """Keep the answer of a request whose key this transaction claimed."""
    connection.execute(
        sa.update(IDEMPOTENCY_KEYS)
        .where(*_of(ticket))
        .values(status=answer.status, headers=msgspec.json.encode(answer.headers).decode(), body=answer.body)
    )


def purge(connection: sa.Connection, now: float) -> int:
    """Forget the keys whose time is over; return how many they were."""
    return connection.execute(
        sa.delete(IDEMPOTENCY_KEYS).where(_COLUMNS.claimed_at <= now - LIFETIME)
    ).rowcount


def _of(ticket: Ticket) -> tuple[sa.ColumnElement[bool], ...]:
    return _COLUMNS.user_id == ticket.user_id, _COLUMNS.key == ticket.key


def _kept(row: sa.Row[Any], ticket: Ticket) -> Kept:
    if row.fingerprint != ticket.fingerprint:
        raise KeyReused(ticket.key)
    return Kept(
        status=row.status,
        headers=msgspec.json.decode(row.headers, type=dict[str, str]),
        body=bytes(row.body),
    )
