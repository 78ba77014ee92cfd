"""Moves to another host: two operations, one after the other, with the disk as an image in between (ADR 0014)."""

from __future__ import annotations

import pytest

from stateward.domain.actions import BY_KEY
from stateward.domain.errors import Invalid, Refusal, Refused
from stateward.domain.locks import ActorKind
from stateward.domain.networks import PortAddress
from stateward.domain.placement import NOTHING, Room, Rules
from stateward.domain.records import (
    AddressReport,
    Dispatch,
    FlavorFacts,
    Instance,
    Outcome,
    Result,
    Target,
)
from stateward.domain.states import Observed, TaskState, VmState
from stateward.operations.addresses import take
from stateward.operations.admission import Admitted
from stateward.operations.completion import Completion
from stateward.operations.creation import create
from stateward.operations.placing import Place
from stateward.operations.preparing import Wanted
from stateward.store import claims, hosts, images
from stateward.store.claims import Purpose
from tests.operations.desk import Desk
from tests.rows import actor
from tests.stack import encoded, new_instance

SMALL = FlavorFacts(id="1", name="small", vcpus=1, ram=64, disk=1)
LARGE = FlavorFacts(id="2", name="large", vcpus=2, ram=512, disk=2)
NO_TARGET = Target()


@pytest.fixture(autouse=True)
def _rules(desk: Desk) -> None:
    desk.admission.placement = Rules(reserved=NOTHING)


class Move:
    """An active instance on host ``h``, with ``g`` to go to."""

    def __init__(self, desk: Desk, instance: Instance) -> None:
        self.desk = desk
        self.id = instance.id
        self._completion = Completion(desk.admission, lambda _instance_id: None)

    async def ask(self, *rows: str, target: Target = NO_TARGET, host: str | None = None) -> Admitted:
        """Admit an action."""
        return await self.desk.admission.admit(
            tuple(BY_KEY[row] for row in rows),
            self.id,
            actor(ActorKind.ADMIN),
            wanted=Wanted(target=target, host=host),
        )

    async def sent(self) -> tuple[str, Dispatch]:
        """Return the subject and the dispatch that was posted last."""
        subject, _message_id, dispatch = (await self.desk.outbox())[-1]
        return subject, dispatch

    async def end(self, outcome: Outcome = Outcome.SUCCEEDED) -> Instance:
        """End the operation that was dispatched last, twice as a bus may, and return the row."""
        _subject, dispatch = await self.sent()
        result = Result(
            operation_id=dispatch.operation_id,
            instance_id=self.id,
            fence=dispatch.fence,
            outcome=outcome,
            message="The disk is full." if outcome is Outcome.FAILED else None,
            observation=None,
        )
        await self._completion.handle(encoded(result))
        await self._completion.handle(encoded(result))
        return await self.desk.row(self.id)

    async def room(self) -> dict[str, Room]:
        """Return what is claimed on each host."""
        found = await self.desk.database.read(hosts.every)
        return {host.name: host.claimed for host in found if host.claimed != Room()}

    async def images(self) -> int:
        """Count the images that keep an instance's disk."""
        row = await self.desk.row(self.id)
        image = row.shelved_image
        if image is None:
            return 0
        found = await self.desk.database.read(lambda connection: images.get(connection, image.id))
        return 0 if found is None else 1


@pytest.fixture
async def move(desk: Desk) -> Move:
    """Give an instance that runs, and room for it elsewhere."""
    await desk.add_host("h")
    await desk.add_host("g")
    new = new_instance(flavor=SMALL, place=Place(host="h"))
    admitted = await create(desk.admission, new, actor(), reservation_id="r")
    found = Move(desk, admitted.instance)
    assert (await found.end()).vm_state is VmState.ACTIVE
    return found


def room(flavor: FlavorFacts) -> Room:
    return Room(vcpus=flavor.vcpus, memory=flavor.ram, disk=flavor.disk)


async def test_a_resize_to_another_host(move: Move) -> None:
    """It holds room on both until it has left, is an image for a moment, and arrives with the new flavor."""
    admitted = await move.ask("resize_away", "resize_away_stopped", target=Target(flavor=LARGE))
    assert (admitted.instance.task_state, admitted.instance.host) == (TaskState.RESIZE_MIGRATING, "h")
    assert await move.room() == {"h": room(SMALL), "g": room(LARGE)}
    on_its_way = await move.end()
    assert (on_its_way.vm_state, on_its_way.task_state) == (
        VmState.SHELVED_OFFLOADED,
        TaskState.RESIZE_FINISH,
    )
    assert (on_its_way.host, on_its_way.flavor, on_its_way.observed) == ("g", SMALL, Observed.UNKNOWN)
    assert await move.room() == {"g": room(LARGE)}
    assert await move.images() == 1
    subject, dispatch = await move.sent()
    assert subject.endswith("g")
    assert on_its_way.shelved_image is not None
    assert (dispatch.guest.image.id, dispatch.guest.memory) == (on_its_way.shelved_image.id, LARGE.ram)
    arrived = await move.end()
    assert (arrived.vm_state, arrived.was, arrived.host) == (VmState.RESIZED, VmState.ACTIVE, "g")
    assert (arrived.flavor, arrived.old_flavor) == (LARGE, SMALL)
    assert await move.images() == 0
    await move.ask("confirmResize", "confirmResize_stopped")
    confirmed = await move.end()
    assert (confirmed.vm_state, confirmed.flavor, confirmed.old_flavor) == (VmState.ACTIVE, LARGE, None)
    assert await move.room() == {"g": room(LARGE)}


async def test_addresses_are_taken_from_the_host_it_came_to(move: Move) -> None:
    """However high the other host had counted; what that one still says does not count any more."""

    async def hear(host: str, seq: int, address: str) -> tuple[str, ...]:
        found = (PortAddress(mac="52:54:00:00:00:01", address=address),)
        await take(move.desk.database, encoded(AddressReport(host=host, addresses={move.id: found}, seq=seq)))
        return tuple(each.address for each in (await move.desk.row(move.id)).addresses)

    assert await hear("h", 5000, "10.0.0.7") == ("10.0.0.7",)
    await move.ask("migrate", "migrate_stopped")
    await move.end()
    await move.end()
    assert await hear("h", 5001, "10.0.0.8") == ("10.0.0.7",)
    assert await hear("g", 3, "10.0.1.9") == ("10.0.1.9",)
    assert await hear("g", 2, "10.0.1.8") == ("10.0.1.9",)


async def test_reverting_it_gives_the_old_flavor_back_where_it_is(move: Move) -> None:
    """And only the room of that flavor is held then."""
    await move.ask("resize_away", target=Target(flavor=LARGE))
    await move.end()
    await move.end()
    await move.ask("revertResize", "revertResize_stopped")
    _subject, dispatch = await move.sent()
    assert (dispatch.guest.memory, dispatch.guest.disk) == (SMALL.ram, SMALL.disk)
    reverted = await move.end()
    assert (reverted.vm_state, reverted.flavor, reverted.host) == (VmState.ACTIVE, SMALL, "g")
    assert await move.room() == {"g": room(SMALL)}


async def test_a_migration_keeps_the_flavor(move: Move) -> None:
    """It is confirmed like a resize."""
    await move.ask("migrate", "migrate_stopped")
    await move.end()
    arrived = await move.end()
    assert (arrived.vm_state, arrived.host, arrived.flavor) == (VmState.RESIZED, "g", SMALL)
    await move.ask("confirmResize", "confirmResize_stopped")
    assert (await move.end()).vm_state is VmState.ACTIVE
    assert await move.room() == {"g": room(SMALL)}


async def test_a_stopped_one_stays_stopped(move: Move) -> None:
    """On the way, there, and when it is confirmed."""
    await move.ask("stop_force")
    await move.end()
    await move.ask("migrate", "migrate_stopped")
    await move.end()
    arrived = await move.end()
    assert (arrived.vm_state, arrived.was) == (VmState.RESIZED, VmState.STOPPED)
    await move.ask("confirmResize", "confirmResize_stopped")
    assert (await move.end()).vm_state is VmState.STOPPED


async def test_one_that_cannot_leave_is_as_it_was(move: Move) -> None:
    """It is started again; its room elsewhere is given back, and the image that it would have filled is gone."""
    admitted = await move.ask("migrate")
    image_id = admitted.operation.params["target"]["snapshot"]
    stayed = await move.end(Outcome.FAILED)
    assert (stayed.vm_state, stayed.task_state, stayed.host) == (
        VmState.ACTIVE,
        TaskState.POWERING_ON,
        "h",
    )
    assert stayed.fault is not None
    assert await move.room() == {"h": room(SMALL)}
    assert await move.desk.database.read(lambda connection: images.get(connection, image_id)) is None


async def test_one_that_cannot_arrive_is_kept_as_an_image(move: Move) -> None:
    """What was made of it there is removed, and it can be unshelved: nothing is lost."""
    await move.ask("resize_away", target=Target(flavor=LARGE))
    await move.end()
    failed = await move.end(Outcome.FAILED)
    assert (failed.vm_state, failed.task_state) == (VmState.SHELVED_OFFLOADED, TaskState.SHELVING_OFFLOADING)
    subject, dispatch = await move.sent()
    assert (subject.rsplit(".", 1)[-1], dispatch.action) == ("g", "restore_offloaded")
    kept = await move.end()
    assert (kept.vm_state, kept.host, kept.flavor) == (VmState.SHELVED_OFFLOADED, "", SMALL)
    assert await move.room() == {}
    assert await move.images() == 1
    await move.ask("unshelve", "unshelve_offloaded")
    assert (await move.end()).vm_state is VmState.ACTIVE
    assert sum((await move.room()).values(), start=Room()) == room(SMALL)


async def test_an_image_with_the_disk_outlives_what_failed_after_it(move: Move) -> None:
    """The disk may be half removed: the image is all that is known to be whole. A deletion takes it along."""
    admitted = await move.ask("migrate")
    image_id = admitted.operation.params["target"]["snapshot"]
    await move.desk.database.write(
        lambda connection: (
            images.begin_upload(connection, image_id, "u", 0.0),
            images.finish_upload(connection, "u", size=1, checksum="c", hash_value="h", now=0.0),
        )
    )
    await move.end(Outcome.FAILED)
    assert await move.desk.database.read(lambda connection: images.get(connection, image_id)) is not None


async def test_deleted_on_its_way_nothing_is_left(move: Move) -> None:
    """Neither room nor image, whichever half it was in."""
    await move.ask("migrate")
    await move.ask("delete")
    assert (await move.end()).vm_state is VmState.DELETED
    assert await move.room() == {}


async def test_deleted_as_it_arrives_nothing_is_left(move: Move) -> None:
    """The guest that is being made there is removed there."""
    await move.ask("migrate")
    await move.end()
    assert await move.images() == 1
    await move.ask("delete")
    subject, _dispatch = await move.sent()
    assert subject.endswith("g")
    assert (await move.end()).vm_state is VmState.DELETED
    assert (await move.room(), await move.images()) == ({}, 0)


async def test_nowhere_to_go(move: Move) -> None:
    """It never moves to where it is; the instance is as it was."""
    other = next(host for host in await move.desk.database.read(hosts.every) if host.name == "g")
    await move.desk.database.write(lambda connection: hosts.change(connection, other.id, {"enabled": False}))
    before = await move.desk.row(move.id)
    with pytest.raises(Refused) as refused:
        await move.ask("migrate", "migrate_stopped")
    assert refused.value.refusal is Refusal.NO_VALID_HOST
    with pytest.raises(Invalid, match="to the host where the server exists"):
        await move.ask("migrate", "migrate_stopped", host="h")
    assert await move.desk.row(move.id) == before
    assert set(await move.desk.database.read(lambda connection: claims.of_instance(connection, move.id))) == {
        Purpose.HOME
    }


async def test_a_flavor_that_does_not_fit(move: Move) -> None:
    """The same is refused as on its own host."""
    with pytest.raises(Invalid, match="must change flavor"):
        await move.ask("resize_away", target=Target(flavor=SMALL))
