"""Lock rows, on both databases."""

from __future__ import annotations

import msgspec
import pytest
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from stateward.domain.locks import ALL_CLASSES, Lock, LockKind, OperationClass
from stateward.store import locks
from stateward.store.tables import LOCKS
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
        assert locks.place(connection, each)
    assert locks.of_instance(connection, one, "p", ()) == [early, late]
    assert locks.of_instance(connection, two, "p", ()) == [other]
    assert locks.of_instance(connection, "nobody", "p", ()) == []
    assert locks.of_several(connection, [one, two, "nobody"]) == {one: [early, late], two: [other]}
    assert [locks.get(connection, each) for each in ("x", "y")] == [other, None]


def test_a_holder_has_one_lock_of_a_name(connection: sa.Connection) -> None:
    """And of a kind, on one thing; others may use the name too (B2)."""
    instance_id, other_id = insert(connection).id, insert(connection).id
    placed = lock(instance_id, LockKind.OWNER)
    assert locks.place(connection, placed)
    again = lock(instance_id, LockKind.OWNER, NOW + 1)
    assert not locks.place(connection, again)
    others = [
        lock(instance_id, LockKind.ADMIN, NOW + 2),
        msgspec.structs.replace(again, id="of another", holder="another"),
        msgspec.structs.replace(again, id="named", name="a"),
        lock(other_id, LockKind.OWNER, NOW + 1),
    ]
    for each in others:
        assert locks.place(connection, each)
    assert {each.id for each in locks.of_instance(connection, instance_id, "p", ())} == {
        placed.id,
        *(each.id for each in others[:3]),
    }


def test_the_database_itself_keeps_a_second_one_out(connection: sa.Connection) -> None:
    """Also of locks that are on no instance: a null is equal to nothing."""
    one = msgspec.structs.replace(lock("i", LockKind.OWNER), instance_id=None, project_id="p")
    assert locks.place(connection, one)
    row = connection.execute(sa.select(LOCKS)).mappings().one()
    with pytest.raises(IntegrityError), connection.begin_nested():
        connection.execute(sa.insert(LOCKS).values({**row, "id": "another"}))


def test_releasing_one_leaves_the_others(connection: sa.Connection) -> None:
    """And says whether it was there (R5, B2)."""
    instance_id, other_id = insert(connection).id, insert(connection).id
    placed = {kind: lock(instance_id, kind) for kind in LockKind}
    for each in (*placed.values(), lock(other_id, LockKind.ADMIN)):
        locks.place(connection, each)
    assert locks.release(connection, placed[LockKind.ADMIN].id)
    assert {each.kind: each for each in locks.of_instance(connection, instance_id, "p", ())} == {
        LockKind.OWNER: placed[LockKind.OWNER],
        LockKind.HOLD: placed[LockKind.HOLD],
    }
    assert not locks.release(connection, placed[LockKind.ADMIN].id)
    assert [each.kind for each in locks.of_instance(connection, other_id, "p", ())] == [LockKind.ADMIN]


def test_inherited_locks(connection: sa.Connection) -> None:
    """An instance has its own, its project's, and those of its tags."""
    instance_id = insert(connection).id
    own = lock(instance_id, LockKind.OWNER)
    whole = msgspec.structs.replace(lock("whole", LockKind.ADMIN, NOW + 1), instance_id=None, project_id="p")
    tagged = msgspec.structs.replace(
        lock("tagged", LockKind.ADMIN, NOW + 2), instance_id=None, project_id="p", tag="db"
    )
    foreign = msgspec.structs.replace(
        lock("foreign", LockKind.ADMIN, NOW + 3), instance_id=None, project_id="q"
    )
    for each in (own, whole, tagged, foreign):
        assert locks.place(connection, each)
    assert locks.of_instance(connection, instance_id, "p", ()) == [own, whole]
    assert locks.of_instance(connection, instance_id, "p", ("web", "db")) == [own, whole, tagged]
    assert locks.of_project(connection, "p") == [whole, tagged]


def test_expiry_takes_away_what_is_due_by_what_is_written_now(connection: sa.Connection) -> None:
    """Not by what was read before: a lock that was placed anew holds on (B1)."""
    instance_id = insert(connection).id
    soon = msgspec.structs.replace(lock(instance_id, LockKind.OWNER), name="a", expires_at=NOW + 10)
    never = lock(instance_id, LockKind.ADMIN)
    late = msgspec.structs.replace(lock(instance_id, LockKind.HOLD), name="b", expires_at=NOW + 20)
    for each in (late, soon, never):
        assert locks.place(connection, each)
    assert locks.expiring(connection) == [soon, late]
    assert locks.expiring(connection, NOW + 10) == [soon]
    assert not locks.release_expired(connection, soon.id, NOW + 9.9)
    assert not locks.release_expired(connection, never.id, NOW + 1e9)
    assert locks.release_expired(connection, soon.id, NOW + 10)
    assert locks.expiring(connection) == [late]


def test_a_warning_is_told_once(connection: sa.Connection) -> None:
    """Of the lock as it is: one that expires at another time is told of anew."""
    instance_id = insert(connection).id
    soon = msgspec.structs.replace(lock(instance_id, LockKind.OWNER), name="a", expires_at=NOW + 10)
    assert locks.place(connection, soon)
    assert not locks.warn(connection, msgspec.structs.replace(soon, expires_at=NOW + 11), NOW)
    assert locks.warn(connection, soon, NOW)
    assert not locks.warn(connection, soon, NOW + 1)
    (found,) = locks.of_instance(connection, instance_id, "p", ())
    assert found == msgspec.structs.replace(soon, warned_at=NOW)
