"""Lock rows. Whoever changes an instance's holds its row by a guarded UPDATE in the same transaction."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import sqlalchemy as sa

from stateward.domain.locks import Lock, LockKind, OperationClass
from stateward.store.tables import LOCKS

_COLUMNS = LOCKS.c
#: What an instance has on itself, and what it inherits.
_OF_INSTANCE = (
    sa.select(LOCKS)
    .where(
        sa.or_(
            _COLUMNS.instance_id == sa.bindparam("b_instance"),
            _COLUMNS.project_id == sa.bindparam("b_project"),
        )
    )
    .order_by(_COLUMNS.placed_at, _COLUMNS.id)
)
_INSERT = sa.insert(LOCKS)
_BY_ID = sa.select(LOCKS).where(_COLUMNS.id == sa.bindparam("b_id"))
_DELETE = sa.delete(LOCKS).where(_COLUMNS.id == sa.bindparam("b_id"))
#: Parameters of one statement: SQLite allows 32,766.
_IDS_AT_ONCE: Final = 1000


def _lock_of(row: sa.Row[Any]) -> Lock:
    return Lock(
        id=row.id,
        instance_id=row.instance_id,
        project_id=row.project_id,
        tag=row.tag,
        kind=LockKind(row.kind),
        name=row.name,
        holder=row.holder,
        reason=row.reason,
        ticket=row.ticket,
        blocks=OperationClass(row.blocks),
        placed_at=row.placed_at,
        expires_at=row.expires_at,
        warned_at=row.warned_at,
        sealed=bool(row.sealed),
        off=bool(row.off),
    )


def of_instance(
    connection: sa.Connection, instance_id: str, project_id: str, tags: Iterable[str]
) -> list[Lock]:
    """Return the locks that hold for an instance, its own and those it inherits, oldest first."""
    names = frozenset(tags)
    found = connection.execute(_OF_INSTANCE, {"b_instance": instance_id, "b_project": project_id})
    return [lock for lock in map(_lock_of, found) if not lock.inherited or lock.holds_for(project_id, names)]


def of_project(connection: sa.Connection, project_id: str) -> list[Lock]:
    """Return the locks that a project's instances inherit, oldest first."""
    statement = sa.select(LOCKS).where(_COLUMNS.project_id == project_id)
    return [_lock_of(row) for row in connection.execute(statement.order_by(_COLUMNS.placed_at, _COLUMNS.id))]


def of_several(connection: sa.Connection, instance_ids: Sequence[str]) -> dict[str, list[Lock]]:
    """Return the locks that instances have on themselves, by the instances' ids, oldest first."""
    found: dict[str, list[Lock]] = {}
    for begin in range(0, len(instance_ids), _IDS_AT_ONCE):
        some = instance_ids[begin : begin + _IDS_AT_ONCE]
        statement = sa.select(LOCKS).where(_COLUMNS.instance_id.in_(some))
        for row in connection.execute(statement.order_by(_COLUMNS.placed_at, _COLUMNS.id)):
            found.setdefault(row.instance_id, []).append(_lock_of(row))
    return found


def get(connection: sa.Connection, lock_id: str) -> Lock | None:
    """Return one lock; None when there is none of this id."""
    row = connection.execute(_BY_ID, {"b_id": lock_id}).one_or_none()
    return None if row is None else _lock_of(row)


def place(connection: sa.Connection, lock: Lock) -> bool:
    """Place a lock; False when its holder has one of this kind and name there already.

    The caller holds the instance's row, or the project (``hold_project``), so that nobody places it meanwhile.
    """
    same = sa.select(_COLUMNS.id).where(
        _COLUMNS.scope == lock.scope,
        _COLUMNS.kind == lock.kind.value,
        _COLUMNS.holder == lock.holder,
        _COLUMNS.name == lock.name,
    )
    if connection.execute(same).first() is not None:
        return False
    connection.execute(
        _INSERT,
        {
            "id": lock.id,
            "instance_id": lock.instance_id,
            "project_id": lock.project_id,
            "tag": lock.tag,
            "scope": lock.scope,
            "kind": lock.kind.value,
            "name": lock.name,
            "holder": lock.holder,
            "reason": lock.reason,
            "ticket": lock.ticket,
            "blocks": int(lock.blocks),
            "placed_at": lock.placed_at,
            "expires_at": lock.expires_at,
            "warned_at": lock.warned_at,
            "sealed": lock.sealed,
            "off": lock.off,
        },
    )
    return True


def release(connection: sa.Connection, lock_id: str) -> bool:
    """Take a lock away; False when it is gone already."""
    return connection.execute(_DELETE, {"b_id": lock_id}).rowcount == 1


def let_on(connection: sa.Connection, lock_ids: Iterable[str]) -> None:
    """Have locks not keep their guests off any more; they hold on otherwise."""
    connection.execute(sa.update(LOCKS).where(_COLUMNS.id.in_(list(lock_ids))).values(off=False))


def release_expired(connection: sa.Connection, lock_id: str, now: float) -> bool:
    """Take a lock away whose time is up; False when it is gone, or its time is not up by what is written now."""
    statement = sa.delete(LOCKS).where(_COLUMNS.id == lock_id, _COLUMNS.expires_at <= now)
    return connection.execute(statement).rowcount == 1


def warn(connection: sa.Connection, lock: Lock, now: float) -> bool:
    """Note that it was told that a lock expires soon; False when that is noted, or the lock is gone."""
    statement = (
        sa.update(LOCKS)
        .where(_COLUMNS.id == lock.id, _COLUMNS.warned_at.is_(None), _COLUMNS.expires_at == lock.expires_at)
        .values(warned_at=now)
    )
    return connection.execute(statement).rowcount == 1


def expiring(connection: sa.Connection, before: float | None = None) -> list[Lock]:
    """Return the locks that expire, or those that do so before a time (seconds since the epoch), soonest first."""
    statement = sa.select(LOCKS).where(_COLUMNS.expires_at.is_not(None)).order_by(_COLUMNS.expires_at)
    if before is not None:
        statement = statement.where(_COLUMNS.expires_at <= before)
    return [_lock_of(row) for row in connection.execute(statement)]


def hold_project(connection: sa.Connection, project_id: str, *, alone: bool) -> None:
    """Keep a project's inherited locks as they are until the transaction ends, or ``alone`` be who changes them.

    Who makes or adopts an instance, or changes its tags, reads what it inherits. Without this, PostgreSQL would let a
    lock be placed between that reading and the commit: the lock would miss the instance, and the instance the lock.
    SQLite has one writer at a time anyway.
    """
    if connection.dialect.name != "postgresql":
        return
    digest = hashlib.blake2b(project_id.encode(), digest_size=8, person=b"locks").digest()
    key = int.from_bytes(digest, signed=True)
    function = sa.func.pg_advisory_xact_lock if alone else sa.func.pg_advisory_xact_lock_shared
    connection.execute(sa.select(function(key)))


def stacks(
    own: Mapping[str, Sequence[Lock]],
    inherited: Sequence[Lock],
    tags: Mapping[str, Sequence[str]],
    project_id: str,
) -> dict[str, list[Lock]]:
    """Return what holds for each instance of a project, by id: its own locks and those it inherits."""
    return {
        instance_id: [
            *own.get(instance_id, ()),
            *(lock for lock in inherited if lock.holds_for(project_id, names)),
        ]
        for instance_id, names in tags.items()
    }
