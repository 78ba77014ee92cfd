"""Key pairs: the public keys by which users get into their instances. Private keys are never kept."""

from __future__ import annotations

from typing import Any

import msgspec
import sqlalchemy as sa

from stateward.domain.errors import Conflict, NotFound
from stateward.store.compute_tables import KEYPAIRS
from stateward.store.rows import insert_new

_COLUMNS = KEYPAIRS.c


class NewKeypair(msgspec.Struct, frozen=True, kw_only=True):
    """A public key to be kept."""

    user_id: str
    name: str
    #: ``ssh`` or ``x509``.
    type: str
    public_key: str
    fingerprint: str
    #: Seconds since the epoch.
    created_at: float


class Keypair(NewKeypair, frozen=True, kw_only=True):
    """A public key that is kept; its name is unique among its user's."""

    #: Counts up over all users' key pairs.
    number: int


def _keypair_of(row: sa.Row[Any]) -> Keypair:
    return Keypair(
        number=row.number,
        user_id=row.user_id,
        name=row.name,
        type=row.type,
        public_key=row.public_key,
        fingerprint=row.fingerprint,
        created_at=row.created_at,
    )


def get(connection: sa.Connection, user_id: str, name: str) -> Keypair | None:
    """Return a user's key pair; None when there is none of this name."""
    statement = sa.select(KEYPAIRS).where(_COLUMNS.user_id == user_id, _COLUMNS.name == name)
    row = connection.execute(statement).one_or_none()
    return None if row is None else _keypair_of(row)


def page(
    connection: sa.Connection, user_id: str, *, limit: int | None = None, marker: str | None = None
) -> list[Keypair]:
    """Return a user's key pairs by name, from the one after the marker on.

    Raises:
        LookupError: the marker names no key pair of the user's; the argument is the marker.
    """
    statement = sa.select(KEYPAIRS).where(_COLUMNS.user_id == user_id).order_by(_COLUMNS.name)
    if marker is not None:
        if get(connection, user_id, marker) is None:
            raise LookupError(marker)
        statement = statement.where(_COLUMNS.name > marker)
    if limit is not None:
        statement = statement.limit(limit)
    return [_keypair_of(row) for row in connection.execute(statement)]


def create(connection: sa.Connection, new: NewKeypair) -> Keypair:
    """Keep a public key.

    Raises:
        Conflict: the user has one of this name.
    """
    row = insert_new(connection, KEYPAIRS, msgspec.structs.asdict(new))
    if row is None:
        raise Conflict(f"Key pair '{new.name}' already exists.")
    return _keypair_of(row)


def delete(connection: sa.Connection, user_id: str, name: str) -> None:
    """Forget a public key; instances made with it keep it.

    Raises:
        NotFound: the user has none of this name.
    """
    statement = sa.delete(KEYPAIRS).where(_COLUMNS.user_id == user_id, _COLUMNS.name == name)
    if connection.execute(statement).rowcount == 0:
        raise not_found(user_id, name)


def not_found(user_id: str, name: str) -> NotFound:
    """Say that a user has no key pair of this name."""
    return NotFound(f"Keypair {name} not found for user {user_id}")
