"""Stacked, sealed, inherited and expiring locks, on both databases (B2, R4, R5)."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from stateward.domain.actions import BY_KEY
from stateward.domain.errors import Conflict, Forbidden, Invalid, NotFound, Refusal, Refused
from stateward.domain.locks import ActorKind, Lock, LockKind, OperationClass
from stateward.domain.records import Actor, OperationState
from stateward.domain.steps import Step
from stateward.operations import stacking
from stateward.operations.creation import NewInstance, create
from stateward.operations.expiry import Expiry
from stateward.operations.locking import Locking
from stateward.operations.stacking import LockWish
from stateward.store.engine import StoreUnavailable
from tests.operations.desk import Desk
from tests.rows import FLAVOR, IMAGE, NOW, actor

OWNER = actor()
ANOTHER = msgspec.structs.replace(OWNER, user_id="another")
ADMIN = actor(ActorKind.ADMIN, project="the provider's", request="req-2")
DELETE, STOP = OperationClass.DELETE, OperationClass.STOP


def locking(desk: Desk) -> Locking:
    return Locking(desk.admission, desk.immediate, lambda: None)


def wish(who: Actor = OWNER, kind: LockKind = LockKind.OWNER, **more: Any) -> LockWish:
    return LockWish(kind=kind, holder=who.user_id, **more)


async def place(
    desk: Desk, instance_id: str, who: Actor = OWNER, *, overtake: bool = False, **more: Any
) -> Lock:
    done = await locking(desk).place(instance_id, who, wish(who, **more), overtake=overtake, project_id=None)
    return done.admitted.placed


async def release(desk: Desk, instance_id: str, lock: Lock, who: Actor = OWNER) -> None:
    await locking(desk).release(instance_id, lock.id, who, reason=None, project_id=None)


async def stack(desk: Desk, instance_id: str) -> list[Lock]:
    row = await desk.row(instance_id)
    return await desk.database.read(lambda connection: stacking.stack_of(connection, row))


async def refused(
    desk: Desk, action: str, instance_id: str, kind: ActorKind = ActorKind.MEMBER
) -> Refusal | None:
    """Return why an action is refused; None when it is admitted."""
    try:
        await desk.admit(action, instance_id, kind)
    except Refused as error:
        return error.refusal
    return None


async def test_locks_are_stacked(desk: Desk) -> None:
    """What they block is their union; releasing one frees what it alone blocked (B2)."""
    instance_id = await desk.add()
    nightly = await place(desk, instance_id, name="nightly backup", blocks=STOP)
    team = await place(desk, instance_id, ANOTHER, name="the team's", blocks=STOP | DELETE)
    assert (await desk.row(instance_id)).owner_blocks == STOP | DELETE
    await release(desk, instance_id, nightly)
    assert (await desk.row(instance_id)).owner_blocks == STOP | DELETE
    assert await refused(desk, "stop", instance_id) is Refusal.LOCKED
    await release(desk, instance_id, team, ANOTHER)
    assert (await desk.row(instance_id)).owner_blocks == OperationClass(0)
    assert await stack(desk, instance_id) == []
    assert await refused(desk, "stop", instance_id) is None


async def test_a_lock_blocks_what_it_names_and_nothing_else(desk: Desk) -> None:
    """A delete protection lets everybody start and stop."""
    instance_id = await desk.add()
    await place(desk, instance_id, name="keep", blocks=DELETE)
    assert await refused(desk, "delete", instance_id) is Refusal.LOCKED
    assert await refused(desk, "stop", instance_id) is None


async def test_a_name_is_unique_to_its_holder(desk: Desk) -> None:
    """The second of the same holder's is refused, another's is not; nothing is left of what was refused."""
    instance_id = await desk.add()
    await place(desk, instance_id, name="a")
    trail = await desk.audit()
    with pytest.raises(
        Conflict, match=r"You have a lock named 'a' on instance .* already: release it, or name"
    ):
        await place(desk, instance_id, name="a", blocks=DELETE)
    assert await desk.audit() == trail
    desk.clock.at += 1
    await place(desk, instance_id, ANOTHER, name="a")
    assert [lock.holder for lock in await stack(desk, instance_id)] == [OWNER.user_id, "another"]


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        ({"name": "a", "expires_at": NOW}, "The lock would expire in the past; give a later time, or none."),
        (
            {"name": "a", "expires_at": NOW - 1},
            "The lock would expire in the past; give a later time, or none.",
        ),
        ({"expires_at": NOW + 1}, "A lock that expires, or does not block all operations, needs a name."),
        ({"blocks": DELETE}, "A lock that expires, or does not block all operations, needs a name."),
        (
            {"kind": LockKind.ADMIN, "sealed": True},
            "Only an owner's lock can be sealed; the provider's is never released by the owner.",
        ),
        (
            {"kind": LockKind.HOLD, "name": "h", "blocks": DELETE},
            "A hold blocks all operations until it is released; it has no 'blocks' and no expiry.",
        ),
    ],
)
async def test_a_lock_that_makes_no_sense(desk: Desk, wanted: dict[str, Any], says: str) -> None:
    """Is refused with what to say instead, and nothing is kept."""
    instance_id = await desk.add()
    with pytest.raises(Invalid) as error:
        await place(desk, instance_id, **wanted)
    assert str(error.value) == says
    assert await desk.operations(instance_id) == []
    assert await desk.audit() == []


async def test_releasing_another_s_lock(desk: Desk) -> None:
    """A named lock is its holder's: a colleague is refused, which is recorded, and an admin is not (B2, B7)."""
    instance_id = await desk.add()
    lock = await place(desk, instance_id, name="a")
    trail = await desk.audit()
    with pytest.raises(Forbidden, match="stateward:locks:release"):
        await release(desk, instance_id, lock, ANOTHER)
    refused = (
        "refused",
        "release_lock",
        {"why": "Policy doesn't allow stateward:locks:release to be performed."},
    )
    assert (await desk.audit(), await stack(desk, instance_id)) == ([*trail, refused], [lock])
    await release(desk, instance_id, lock, ADMIN)
    assert await stack(desk, instance_id) == []
    with pytest.raises(NotFound, match=f"Instance {instance_id} has no lock {lock.id} of its own"):
        await release(desk, instance_id, lock, ADMIN)


async def test_a_lock_of_another_instance_is_not_found(desk: Desk) -> None:
    """Its id alone says nothing about where it is."""
    one, other = await desk.add(), await desk.add()
    lock = await place(desk, one, name="a")
    with pytest.raises(NotFound):
        await release(desk, other, lock)
    assert await stack(desk, one) == [lock]


async def test_a_sealed_lock(desk: Desk) -> None:
    """Only the provider releases it, by either way; locking again does not break the seal (R4)."""
    instance_id = await desk.add()
    await place(desk, instance_id, sealed=True)
    await desk.immediate.lock(instance_id, OWNER, reason="again", project_id=None)
    (sealed,) = await stack(desk, instance_id)
    assert (sealed.sealed, sealed.reason) == (True, "again")
    with pytest.raises(Forbidden, match="unlock_override"):
        await desk.immediate.unlock(instance_id, OWNER, project_id=None)
    with pytest.raises(Forbidden, match="stateward:locks:release"):
        await release(desk, instance_id, sealed)
    await desk.immediate.unlock(instance_id, ADMIN, project_id=None)
    assert await stack(desk, instance_id) == []


async def test_nova_s_unlock_leaves_the_other_locks(desk: Desk) -> None:
    """It knows the unnamed one alone, and the server is locked as long as there is any."""
    instance_id = await desk.add()
    await desk.immediate.lock(instance_id, OWNER, reason=None, project_id=None)
    named = await place(desk, instance_id, name="a", blocks=DELETE, reason="Named.")
    await desk.immediate.unlock(instance_id, OWNER, project_id=None)
    assert await stack(desk, instance_id) == [named]
    row = await desk.row(instance_id)
    assert (row.locked_by, row.locked_reason, row.owner_blocks) == ("owner", "Named.", DELETE)


async def test_what_was_admitted_before_a_lock(desk: Desk) -> None:
    """Goes on, and the answer names it; with ``overtake`` it is ended, and its fence is passed (B1)."""
    instance_id = await desk.add()
    stop = await desk.admit("stop", instance_id)
    done = await locking(desk).place(instance_id, OWNER, wish(name="a"), overtake=False, project_id=None)
    assert done.in_flight == stop.operation
    assert (await desk.row(instance_id)).fence == stop.operation.fence
    await place(desk, instance_id, name="b", overtake=True)
    row = await desk.row(instance_id)
    assert (row.task_state, row.operation_id, row.fence) == (None, None, stop.operation.fence + 1)
    assert (await desk.operation(stop.operation.id)).state is OperationState.SUPERSEDED
    assert (await desk.outbox())[-1][2].steps == (Step.STAND_DOWN,)


async def test_a_project_s_lock_is_inherited_at_once(desk: Desk) -> None:
    """By all of its instances, and by no other project's; released, it is gone from all."""
    one, two, foreign = await desk.add(), await desk.add(), await desk.add(project_id="q")
    gone = await desk.add(vm_state="deleted")
    own = await place(desk, one, name="mine", blocks=STOP)
    desk.clock.at += 1
    lock, inheriting = await locking(desk).place_on_project(
        "p", None, ADMIN, wish(ADMIN, LockKind.ADMIN, name="audit", blocks=DELETE)
    )
    assert sorted(inheriting) == sorted([one, two])
    # Nothing else is seen of them, and nobody else would have them judged again.
    assert sorted(desk.compared) == sorted([one, one, two])
    assert await stack(desk, one) == [own, lock]
    assert [await refused(desk, "delete", each) for each in (one, two, foreign)] == [
        Refusal.LOCKED,
        Refusal.LOCKED,
        None,
    ]
    assert (await desk.row(gone)).admin_blocks == OperationClass(0)
    with pytest.raises(NotFound):
        await release(desk, one, lock, ADMIN)
    with pytest.raises(Forbidden):
        await locking(desk).release_from_project(lock.id, OWNER, reason=None, project_id="p")
    assert (await desk.audit())[-1] == (
        "refused",
        "release_lock",
        {"why": "Policy doesn't allow stateward:locks:release to be performed."},
    )
    desk.compared.clear()
    await locking(desk).release_from_project(lock.id, ADMIN, reason="Done.", project_id=None)
    assert sorted(desk.compared) == sorted([one, two])
    row = await desk.row(one)
    assert (row.owner_blocks, row.admin_blocks) == (STOP, OperationClass(0))
    assert await refused(desk, "delete", two) is None
    with pytest.raises(NotFound):
        await locking(desk).release_from_project(lock.id, ADMIN, reason=None, project_id=None)


async def test_a_project_s_lock_is_inherited_by_what_is_made_later(desk: Desk) -> None:
    """From the first moment, besides the lock that its maker asks for (no gap)."""
    await desk.add_host("h")
    lock, inheriting = await locking(desk).place_on_project(
        "p", None, ADMIN, wish(ADMIN, LockKind.ADMIN, name="audit", blocks=DELETE)
    )
    assert inheriting == []
    desk.clock.at += 1
    new = NewInstance(
        project_id="p",
        user_id="u",
        name="n",
        hostname="n",
        flavor=FLAVOR,
        image=IMAGE,
        lock=wish(name="keep", blocks=STOP, reason="Mine."),
    )
    made = (await create(desk.admission, new, OWNER, reservation_id="r")).instance
    assert (made.owner_blocks, made.admin_blocks) == (STOP, DELETE)
    assert (made.locked_by, made.locked_reason) == ("admin", None)
    assert await desk.row(made.id) == made
    assert [each.name for each in await stack(desk, made.id)] == [lock.name, "keep"]
    assert await refused(desk, "delete", made.id) is Refusal.LOCKED


async def test_a_tag_selects(desk: Desk) -> None:
    """Who has the tag inherits the lock; whom it binds cannot take the tag away, and nobody else is kept from it."""
    one, two = await desk.add(tags=("db",)), await desk.add()
    lock, inheriting = await locking(desk).place_on_project(
        "p", "db", ADMIN, wish(ADMIN, LockKind.ADMIN, name="keep", blocks=DELETE)
    )
    assert inheriting == [one]

    async def tag(instance_id: str, who: Actor, *tags: str) -> None:
        await desk.immediate.change(
            BY_KEY["update_tags"], instance_id, who, lambda _row: {"tags": tags}, project_id=None
        )

    await tag(two, OWNER, "db", "web")
    assert await stack(desk, two) == [lock]
    assert await refused(desk, "delete", two) is Refusal.LOCKED
    with pytest.raises(Refused) as error:
        await tag(two, OWNER, "web")
    assert error.value.refusal is Refusal.LOCKED
    assert (await desk.row(two)).tags == ("db", "web")
    await tag(two, OWNER, "db")
    await tag(two, ADMIN)
    assert await stack(desk, two) == []
    assert await refused(desk, "delete", two) is None


class Faulty(Locking):
    """Locking with a fault that the first lock meets."""

    fault: Exception | None = RuntimeError("a fault of ours")

    async def expire(self, lock: Lock) -> bool:
        """Fail at the lock called ``first``."""
        if lock.name == "first" and self.fault is not None:
            raise self.fault
        return await super().expire(lock)


async def test_a_lock_that_cannot_be_expired_keeps_no_other(desk: Desk) -> None:
    """It is tried again in a second; where the database is away nothing is tried."""
    instance_id = await desk.add()
    for number, name in enumerate(("first", "second")):
        await place(desk, instance_id, name=name, blocks=STOP, expires_at=NOW + 100 + number)
    expiry = Expiry(desk.database, desk.clock, warning=0)
    faulty = Faulty(desk.admission, desk.immediate, lambda: None)
    desk.clock.at = NOW + 200
    faulty.fault = StoreUnavailable("It is away.")
    with pytest.raises(StoreUnavailable):
        await expiry.look(faulty)
    assert len(await stack(desk, instance_id)) == 2
    faulty.fault = RuntimeError("a fault of ours")
    assert await expiry.look(faulty) == 1
    assert [each.name for each in await stack(desk, instance_id)] == ["first"]
    faulty.fault = None
    assert await expiry.look(faulty) == 10
    assert await stack(desk, instance_id) == []


async def test_a_lock_expires(desk: Desk) -> None:
    """By being taken away, not by a clock: until then it holds; it is told before, once (B1, B2)."""
    instance_id = await desk.add()
    other = await place(desk, instance_id, name="stays", blocks=STOP)
    lock = await place(desk, instance_id, name="soon", blocks=DELETE, expires_at=NOW + 100)
    expiry = Expiry(desk.database, desk.clock, warning=30)
    assert await expiry.look(locking(desk)) == 10
    desk.clock.at = NOW + 65
    assert await expiry.look(locking(desk)) == 5
    desk.clock.at = NOW + 70
    assert await expiry.look(locking(desk)) == 10
    assert [each[0] for each in await desk.audit()].count("lock_expires_soon") == 1
    desk.clock.at = NOW + 99
    assert await expiry.look(locking(desk)) == 1
    assert [each[0] for each in await desk.audit()].count("lock_expires_soon") == 1
    desk.clock.at = NOW + 100
    assert await refused(desk, "delete", instance_id) is Refusal.LOCKED
    desk.compared.clear()
    assert await expiry.look(locking(desk)) == 10
    assert desk.compared == [instance_id]
    assert await stack(desk, instance_id) == [other]
    assert (await desk.row(instance_id)).owner_blocks == STOP
    event, _action, detail = (await desk.audit())[-1]
    assert (event, detail["lock"]["id"]) == ("lock_expired", lock.id)
    assert not await locking(desk).expire(lock)
    assert desk.compared == [instance_id]


async def test_a_lock_s_time_is_looked_at_when_it_is_taken_away(desk: Desk) -> None:
    """Not when it was read: one whose time is not up by the clock of the write stays (a clock that was set back)."""
    instance_id = await desk.add()
    lock = await place(desk, instance_id, name="soon", expires_at=NOW + 100)
    desk.clock.at = NOW + 99.9
    assert not await locking(desk).expire(lock)
    assert len(await stack(desk, instance_id)) == 1


async def test_a_project_s_lock_expires(desk: Desk) -> None:
    """From all of its instances."""
    instance_id = await desk.add()
    lock, _ = await locking(desk).place_on_project(
        "p", None, OWNER, wish(name="soon", blocks=DELETE, expires_at=NOW + 100)
    )
    desk.clock.at = NOW + 100
    desk.compared.clear()
    assert await locking(desk).expire(lock)
    assert desk.compared == [instance_id]
    assert (await desk.row(instance_id)).locked_by is None
    assert await refused(desk, "delete", instance_id) is None


async def test_a_refusal_says_who_locked_it_and_why(desk: Desk) -> None:
    """All that bind who asks, the strongest first; the provider's person and ticket are not the customer's to know."""
    instance_id = await desk.add()
    await place(desk, instance_id, name="nightly", blocks=DELETE, reason="Backups.", expires_at=NOW + 3600)
    await place(desk, instance_id, ADMIN, kind=LockKind.ADMIN, name="x", reason="Unpaid.", ticket="T-9")
    desk.clock.at = NOW + 1
    await locking(desk).place_on_project("p", None, OWNER, wish(name="freeze", blocks=DELETE | STOP))
    with pytest.raises(Refused) as error:
        await desk.admit("delete", instance_id)
    assert str(error.value) == (
        f"Instance {instance_id} is locked. It was locked by the provider at 2023-11-14T22:13:20Z: Unpaid. "
        "It was locked against delete by user a member as 'nightly' at 2023-11-14T22:13:20Z until "
        "2023-11-14T23:13:20Z: Backups. "
        "It was locked against delete, stop with the whole project by user a member as 'freeze' at "
        "2023-11-14T22:13:21Z."
    )
    desk.clock.at = NOW + 2
    await place(desk, instance_id, ADMIN, kind=LockKind.HOLD, name="case", reason="Case 7.")
    with pytest.raises(Refused) as error:
        await desk.admit("stop", instance_id, ActorKind.ADMIN)
    assert str(error.value) == (
        f"Instance {instance_id} is locked. It was locked by the provider (a hold) at 2023-11-14T22:13:22Z: Case 7."
    )
