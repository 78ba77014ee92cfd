"""Lock rows. Whoever changes them holds the instance's row by a guarded UPDATE in the same transaction."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from stateward.domain.locks import Lock, LockKind, OperationClass
from stateward.store.tables import LOCKS

_COLUMNS = LOCKS.c
_OF_INSTANCE = (
    sa.select(LOCKS).where(_COLUMNS.instance_id == sa.bindparam("b_instance")).order_by(_COLUMNS.placed_at)
)
_INSERT = sa.insert(LOCKS)
_DELETE = sa.delete(LOCKS).where(
    _COLUMNS.instance_id == sa.bindparam("b_instance"),
    _COLUMNS.kind == sa.bindparam("b_kind"),
    _COLUMNS.name == sa.bindparam("b_name"),
)


def _lock_of(row: sa.Row[Any]) -> Lock:
    return Lock(
        id=row.id,
        instance_id=row.instance_id,
        kind=LockKind(row.kind),
        holder=row.holder,
        reason=row.reason,
        blocks=OperationClass(row.blocks),
        placed_at=row.placed_at,
    )


def of_instance(connection: sa.Connection, instance_id: str) -> list[Lock]:
    """Return an instance's locks, oldest first."""
    return [_lock_of(row) for row in connection.execute(_OF_INSTANCE, {"b_instance": instance_id})]


def place(connection: sa.Connection, lock: Lock) -> None:
    """Place the unnamed lock of its kind; the caller has taken away the one that was there."""
    connection.execute(
        _INSERT,
        {
            "id": lock.id,
            "instance_id": lock.instance_id,
            "kind": lock.kind.value,
            "name": "",
            "holder": lock.holder,
            "reason": lock.reason,
            "blocks": int(lock.blocks),
            "placed_at": lock.placed_at,
        },
    )


def release(connection: sa.Connection, instance_id: str, kind: LockKind) -> bool:
    """Take the unnamed lock of a kind away; False when there is none."""
    result = connection.execute(_DELETE, {"b_instance": instance_id, "b_kind": kind.value, "b_name": ""})
    return result.rowcount == 1
