"""Lock rows, on both databases."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from stateward.domain.locks import ALL_CLASSES, Lock, LockKind, OperationClass
from stateward.store import locks
from tests.rows import NOW, insert


def lock(
    instance_id: str, kind: LockKind, at: float = NOW, reason: str | None = None, holder: str = "h"
) -> Lock:
    return Lock(
        id=f"{instance_id[:8]}-{kind}-{at}",
        instance_id=instance_id,
        kind=kind,
        holder=holder,
        reason=reason,
        blocks=ALL_CLASSES,
        placed_at=at,
    )


def test_locks_are_read_as_they_were_placed(connection: sa.Connection) -> None:
    """Oldest first, and each instance's own."""
    one, two = insert(connection).id, insert(connection).id
    late = lock(one, LockKind.OWNER, NOW + 1, "é")
    early = lock(one, LockKind.ADMIN, NOW)
    other = Lock(
        id="x",
        instance_id=two,
        kind=LockKind.HOLD,
        holder="court",
        reason=None,
        blocks=OperationClass.START | OperationClass.DELETE,
        placed_at=NOW,
    )
    for each in (late, early, other):
        locks.place(connection, each)
    assert locks.of_instance(connection, one) == [early, late]
    assert locks.of_instance(connection, two) == [other]
    assert locks.of_instance(connection, "nobody") == []


def test_there_is_one_unnamed_lock_of_a_kind(connection: sa.Connection) -> None:
    """The database itself sees to it, so that two requests at once cannot leave two."""
    instance_id = insert(connection).id
    locks.place(connection, lock(instance_id, LockKind.OWNER))
    with pytest.raises(IntegrityError), connection.begin_nested():
        locks.place(connection, lock(instance_id, LockKind.OWNER, NOW + 1))
    assert len(locks.of_instance(connection, instance_id)) == 1


def test_releasing_one_kind_leaves_the_others(connection: sa.Connection) -> None:
    """And says whether there was one (R5, B2)."""
    instance_id, other_id = insert(connection).id, insert(connection).id
    placed = {kind: lock(instance_id, kind) for kind in LockKind}
    for each in (*placed.values(), lock(other_id, LockKind.ADMIN)):
        locks.place(connection, each)
    locks.release(connection, instance_id, LockKind.ADMIN)
    assert {each.kind: each for each in locks.of_instance(connection, instance_id)} == {
        LockKind.OWNER: placed[LockKind.OWNER],
        LockKind.HOLD: placed[LockKind.HOLD],
    }
    locks.release(connection, instance_id, LockKind.ADMIN)
    assert len(locks.of_instance(connection, instance_id)) == 2
    assert [each.kind for each in locks.of_instance(connection, other_id)] == [LockKind.ADMIN]
