"""Adopting on a bare database: one instance of a guest, however many adopt it, and room that is claimed in any case."""

from __future__ import annotations

import asyncio
import uuid

import msgspec
import pytest
import sqlalchemy as sa

from stateward.domain.errors import NotFound
from stateward.domain.locks import ALL_CLASSES, ActorKind, LockKind, OperationClass
from stateward.domain.placement import Room
from stateward.domain.records import FlavorFacts
from stateward.domain.states import Cause, Observed, TaskState, VmState
from stateward.domain.steps import Step
from stateward.domain.strangers import Mark, Stranger, StrangerDisk
from stateward.operations import stacking
from stateward.operations.adopting import Adopted, Outcome, Wish, adopt
from stateward.operations.stacking import LockWish
from stateward.store import claims, hosts, instances, locks
from stateward.store.claims import Purpose
from stateward.store.engine import Database
from tests.operations.desk import Desk
from tests.postgres import waiting
from tests.rows import NOW, actor

pytestmark = pytest.mark.asyncio

ADMIN = actor(ActorKind.ADMIN, project="the provider's")
GIB = 1024**3


def wish(**changes: object) -> Wish:
    """Wish for a guest that is larger than the host that it is on."""
    stranger = Stranger(
        id=str(uuid.uuid4()),
        name="theirs",
        vcpus=400,
        memory=9000,
        disks=(
            StrangerDisk(device="vda", source="/a", size=GIB + 1),
            StrangerDisk(device="vdb", source="/b", size=None),
        ),
        cards=(),
        observed=Observed.RUNNING,
        cause=Cause.OTHER,
        autostart=True,
        transient=False,
    )
    return Wish(
        stranger=msgspec.structs.replace(stranger, **changes),
        project_id="p",
        user_id="u",
        name="web",
        hostname="web",
        reservation_id="r",
    )


async def one(desk: Desk, wanted: Wish, *, host: str = "h", again: bool = False) -> Adopted:
    """Adopt one guest."""
    (adopted,) = await adopt(desk.admission, host, [wanted], ADMIN, again=again)
    return adopted


async def test_what_is_recorded(database: Database) -> None:
    """The guest's own facts, room whether there is any or not, and a dispatch that marks it; nothing else."""
    desk = Desk(database)
    await desk.add_host("h", zone="north")
    wanted = msgspec.structs.replace(wish(), lock=LockWish(kind=LockKind.ADMIN, holder="a", reason="New."))
    adopted = await one(desk, wanted)
    assert (adopted.outcome, adopted.why) == (Outcome.ADOPTED, "")
    row = await desk.row(wanted.stranger.id)
    assert adopted.instance == row
    assert (row.vm_state, row.task_state, row.fence) == (VmState.BUILDING, TaskState.SPAWNING, 1)
    assert (row.host, row.zone, row.adopted_as, row.domain_name) == ("h", "north", "theirs", "theirs")
    assert row.flavor == FlavorFacts(id="adopted", name="adopted", vcpus=400, ram=9000, disk=2)
    assert (row.image.id, row.ports, row.observed) == ("", (), Observed.UNKNOWN)
    assert (row.locked_by, row.locked_reason) == ("admin", "New.")
    held = await database.read(lambda connection: claims.of_instance(connection, row.id))
    assert {purpose: claim.room for purpose, claim in held.items()} == {
        Purpose.HOME: Room(vcpus=400, memory=9000, disk=2)
    }
    host = await database.read(lambda connection: hosts.named(connection, "h"))
    assert host is not None
    assert (host.claimed, host.claims) == (Room(vcpus=400, memory=9000, disk=2), 1)
    ((subject, _id, dispatch),) = await desk.outbox()
    assert (subject, dispatch.steps, dispatch.fence) == ("operations.h", (Step.ADOPT,), 1)
    assert (dispatch.guest.adopted, dispatch.guest.instance_id, dispatch.guest.seed) == (True, row.id, None)
    assert desk.wakes == 1


async def test_its_project_s_locks_hold_for_it_at_once(database: Database) -> None:
    """There is no moment in which it is not locked."""
    desk = Desk(database)
    await desk.add_host("h")
    lock = LockWish(kind=LockKind.ADMIN, holder="a", name="all", reason="Unpaid.").made(NOW, project_id="p")
    await database.write(lambda connection: stacking.place_on_project(connection, lock, NOW))
    adopted = await one(desk, wish())
    assert adopted.instance is not None
    assert (adopted.instance.locked_by, adopted.instance.admin_blocks) == ("admin", ALL_CLASSES)


async def until_it_waits(watch: sa.Connection, adopting: asyncio.Task[list[Adopted]]) -> None:
    """Return when an adoption waits for another transaction, or is through."""
    async with asyncio.timeout(60):
        while not waiting(watch) and not adopting.done():
            watch.rollback()
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_a_project_s_lock_that_is_just_being_placed_holds_for_it(
    database: Database, database_url: sa.URL
) -> None:
    """It waits for the lock, be it new or one that was given back: neither can miss the other."""
    desk = Desk(database)
    await desk.add_host("h")
    new, again = wish(), wish()
    free = msgspec.structs.replace(wish(), project_id="a")
    await desk.add(id=again.stranger.id, vm_state=VmState.DELETED.value)
    lock = LockWish(kind=LockKind.ADMIN, holder="a", name="all", reason="Unpaid.").made(NOW, project_id="p")
    engine = sa.create_engine(database_url, poolclass=sa.NullPool)
    with engine.connect() as watch:
        with engine.begin() as placing:
            assert stacking.place_on_project(placing, lock, NOW) == []
            adopting = asyncio.create_task(adopt(desk.admission, "h", [new, again, free], ADMIN, again=False))
            await until_it_waits(watch, adopting)
        assert [each.outcome for each in await adopting] == [Outcome.ADOPTED] * 3
    engine.dispose()
    rows = [await desk.row(each.stranger.id) for each in (new, again, free)]
    assert [(row.locked_by, row.admin_blocks) for row in rows] == [
        ("admin", ALL_CLASSES),
        ("admin", ALL_CLASSES),
        (None, OperationClass(0)),
    ]


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_a_lock_that_just_ended_is_not_one_of_who_lives_again(
    database: Database, database_url: sa.URL
) -> None:
    """What its row says is blocked is what its locks block when that row is held, not when they were first read."""
    desk = Desk(database)
    await desk.add_host("h")
    wanted = wish()
    instance_id = await desk.add(id=wanted.stranger.id)
    lasting = LockWish(kind=LockKind.ADMIN, holder="a", name="stays", blocks=OperationClass.START)
    ending = LockWish(kind=LockKind.OWNER, holder="o", name="ends")

    def place(connection: sa.Connection) -> str:
        held = instances.hold(connection, instance_id)
        assert held is not None
        held, _lock = stacking.place_in(connection, held, lasting, NOW)
        return stacking.place_in(connection, held, ending, NOW)[1].id

    lock_id = await database.write(place)
    await desk.change(instance_id, {"vm_state": VmState.DELETED.value})
    engine = sa.create_engine(database_url, poolclass=sa.NullPool)
    with engine.connect() as watch:
        with engine.begin() as releasing:
            held = instances.hold(releasing, instance_id)
            assert held is not None
            assert locks.release(releasing, lock_id)
            stacking.restack(releasing, held)
            adopting = asyncio.create_task(adopt(desk.admission, "h", [wanted], ADMIN, again=False))
            await until_it_waits(watch, adopting)
        (adopted,) = await adopting
    engine.dispose()
    row = await desk.row(instance_id)
    assert (adopted.outcome, adopted.instance) == (Outcome.ADOPTED, row)
    assert (row.vm_state, row.owner_blocks, row.admin_blocks) == (
        VmState.BUILDING,
        OperationClass(0),
        OperationClass.START,
    )


async def test_many_adopt_one(database: Database) -> None:
    """One of them does; the others are told that it is an instance. Its room is claimed once."""
    desk = Desk(database)
    await desk.add_host("h")
    wanted = wish()
    found = await asyncio.gather(*(one(desk, wanted) for _ in range(8)))
    outcomes = [each.outcome for each in found]
    assert (outcomes.count(Outcome.ADOPTED), outcomes.count(Outcome.KNOWN)) == (1, 7)
    host = await database.read(lambda connection: hosts.named(connection, "h"))
    assert host is not None
    assert (host.claimed.vcpus, host.claims) == (400, 1)
    assert len(await desk.operations(wanted.stranger.id)) == 1
    assert len(await desk.outbox()) == 1


async def test_many_adopt_one_that_was_given_back(database: Database) -> None:
    """The row lives again, once; its fence is past all that anybody knows of."""
    desk = Desk(database)
    await desk.add_host("h")
    wanted = wish(fence=9)
    await desk.add(id=wanted.stranger.id, vm_state=VmState.DELETED.value, fence=4, adopted_as="old")
    found = await asyncio.gather(*(one(desk, wanted) for _ in range(8)))
    assert [each.outcome for each in found].count(Outcome.ADOPTED) == 1
    row = await desk.row(wanted.stranger.id)
    assert (row.vm_state, row.fence, row.adopted_as) == (VmState.BUILDING, 10, "theirs")
    assert [dispatch.fence for _subject, _id, dispatch in await desk.outbox()] == [10]


@pytest.mark.parametrize(
    ("there", "changes", "again", "says"),
    [
        ({"vm_state": VmState.ACTIVE.value, "host": "other"}, {}, True, "is on host other; two must not run"),
        ({"vm_state": VmState.SHELVED_OFFLOADED.value, "host": ""}, {}, True, "is on no host"),
        ({"vm_state": VmState.DELETED.value}, {"mark": Mark(project_id="p", fence=3)}, True, "was deleted"),
        (
            {"vm_state": VmState.DELETED.value, "project_id": "q"},
            {},
            True,
            "was a server of project q before",
        ),
        (None, {"mark": Mark(project_id="p", fence=3)}, False, "bears Stateward's mark"),
        (None, {"observed": Observed.UNKNOWN}, True, "says that it is unknown"),
    ],
)
async def test_what_is_left_alone(
    database: Database,
    there: dict[str, object] | None,
    changes: dict[str, object],
    again: bool,  # noqa: FBT001 (a parameter of the test)
    says: str,
) -> None:
    """With a reason; nothing is written."""
    desk = Desk(database)
    await desk.add_host("h")
    wanted = wish(**changes)
    if there is not None:
        await desk.add(id=wanted.stranger.id, **there)
    adopted = await one(desk, wanted, again=again)
    assert (adopted.outcome, adopted.operation) == (Outcome.REFUSED, None)
    assert says in adopted.why
    assert await desk.outbox() == []


async def test_a_mark_is_taken_up_on_purpose(database: Database) -> None:
    """Its fence goes on, so that nothing of an earlier life can act."""
    desk = Desk(database)
    await desk.add_host("h")
    wanted = wish(mark=Mark(project_id="p", fence=3), fence=3)
    adopted = await one(desk, wanted, again=True)
    assert adopted.instance is not None
    assert (adopted.instance.id, adopted.instance.fence) == (wanted.stranger.id, 4)


async def test_a_host_that_is_not_there(database: Database) -> None:
    """It is said; nothing is written."""
    desk = Desk(database)
    with pytest.raises(NotFound, match="'nowhere'"):
        await one(desk, wish(), host="nowhere")
