"""What an instance's life leaves in the store: what it aims at, images, room, and what follows; on both databases."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any, Final

import msgspec
import pytest
import sqlalchemy as sa
from sqlalchemy.pool import NullPool

from stateward.domain.actions import BY_KEY, Role
from stateward.domain.errors import Invalid, Refusal, Refused
from stateward.domain.locks import ALL_CLASSES, ActorKind
from stateward.domain.placement import NOTHING, Room, Rules, need_of
from stateward.domain.records import FlavorFacts, ImageFacts, Instance, Operation, Outcome, Result, Target
from stateward.domain.states import TaskState, VmState
from stateward.operations.completion import Completion
from stateward.operations.creation import create
from stateward.operations.preparing import ImageWanted, Wanted
from stateward.store import claims, hosts, images
from stateward.store.claims import Purpose
from stateward.store.image_tables import IMAGES
from stateward.store.images import Image
from tests.operations.desk import Desk
from tests.rows import NOW, actor
from tests.stack import encoded, new_instance
from tests.table.front import image

SMALL: Final = FlavorFacts(id="1", name="small", vcpus=1, ram=64, disk=1)
LARGE: Final = FlavorFacts(id="2", name="large", vcpus=2, ram=256, disk=2)
#: A host of the desk has 4 vCPUs, 1,024 MiB and 10 GiB.
RULES: Final = Rules(cpu_ratio=5.0, reserved=NOTHING)
RESIZE: Final = Wanted(target=Target(flavor=LARGE))
FAILED, SUCCEEDED = Outcome.FAILED, Outcome.SUCCEEDED


@pytest.fixture
async def server(desk: Desk) -> str:
    """Give an active instance on the only host, made as any."""
    desk.open(offload=True, placement=RULES)
    await desk.add_host("a")
    made = await create(desk.admission, new_instance(flavor=SMALL), actor(), reservation_id="r")
    await end(desk, made.operation)
    return made.instance.id


async def end(desk: Desk, operation: Operation, outcome: Outcome = SUCCEEDED) -> Instance:
    """Hand a result over, twice, as a bus may; return the row as it is then."""
    desk.clock.at += 1
    completion = Completion(desk.admission, lambda _instance_id: None)
    result = Result(
        operation_id=operation.id,
        instance_id=operation.instance_id,
        fence=operation.fence,
        outcome=outcome,
        message=None,
        observation=None,
    )
    for _ in range(2):
        await completion.handle(encoded(result))
    return await desk.row(operation.instance_id)


async def do(desk: Desk, action: str, server: str, outcome: Outcome = SUCCEEDED, **options: Any) -> Instance:
    """Admit an operation and end it."""
    return await end(desk, (await desk.admit(action, server, **options)).operation, outcome)


async def undone(desk: Desk, server: str) -> Instance:
    """End what follows a failure and brings the guest back; return the row as it is then."""
    newest = max(await desk.operations(server), key=lambda operation: operation.fence)
    assert BY_KEY[newest.action].policy.role is Role.SYSTEM
    return await end(desk, newest)


async def filled(desk: Desk, operation: Operation) -> str:
    """Give an operation's image its data, as the agent does; return its id."""
    image_id = operation.params["target"]["snapshot"]

    def work(connection: sa.Connection) -> None:
        images.begin_upload(connection, image_id, image_id, NOW)
        assert images.finish_upload(connection, image_id, size=1, checksum="c", hash_value="h", now=NOW)

    await desk.database.write(work)
    return str(image_id)


async def stored(desk: Desk, image_id: str) -> Image | None:
    return await desk.database.read(lambda connection: images.get(connection, image_id))


async def room(desk: Desk, server: str) -> dict[Purpose, Room]:
    """Return what an instance holds; the host's sums must say the same, for it is alone."""
    held = await desk.database.read(lambda connection: claims.of_instance(connection, server))
    (host,) = await desk.database.read(hosts.every)
    total = sum((claim.room.memory for claim in held.values()), 0)
    assert (host.claimed.memory, host.claims) == (total, len(held))
    return {purpose: claim.room for purpose, claim in held.items()}


HOME_SMALL: Final = {Purpose.HOME: need_of(SMALL)}
HOME_LARGE: Final = {Purpose.HOME: need_of(LARGE)}
BOTH: Final = {Purpose.HOME: need_of(SMALL), Purpose.MOVE: need_of(LARGE)}


# ---------------------------------------------------------------------------------------------------- resize


@pytest.mark.parametrize("vm_state", [VmState.ACTIVE, VmState.STOPPED])
@pytest.mark.parametrize(
    ("ending", "flavor", "left"),
    [("confirmResize", LARGE, HOME_LARGE), ("revertResize", SMALL, HOME_SMALL)],
)
async def test_a_resize(
    desk: Desk, server: str, *, vm_state: VmState, ending: str, flavor: FlavorFacts, left: dict[Purpose, Room]
) -> None:
    """Both flavors' room is held until it is confirmed or reverted; then the state is what it was."""
    label = "" if vm_state is VmState.ACTIVE else "_stopped"
    if label:
        await do(desk, "stop", server)
    resize = (await desk.admit(f"resize{label}", server, wanted=RESIZE)).operation
    assert (await desk.row(server)).flavor == SMALL
    assert await room(desk, server) == BOTH
    resized = await end(desk, resize)
    assert (resized.vm_state, resized.flavor) == (VmState.RESIZED, LARGE)
    assert (resized.old_flavor, resized.was) == (SMALL, vm_state)
    assert await room(desk, server) == BOTH
    settled = await do(desk, f"{ending}{label}", server)
    assert (settled.vm_state, settled.flavor) == (vm_state, flavor)
    assert (settled.old_flavor, settled.was) == (None, None)
    assert await room(desk, server) == left


async def test_a_resize_that_fails_leaves_no_trace(desk: Desk, server: str) -> None:
    """Not in the record, and not on the host; it can be asked for again."""
    before = await desk.row(server)
    for _ in range(2):
        failed = await do(desk, "resize", server, FAILED, wanted=RESIZE)
        assert (failed.flavor, failed.fault is not None) == (SMALL, True)
        after = await undone(desk, server)
        assert (after.vm_state, after.flavor, after.was) == (before.vm_state, SMALL, None)
        assert await room(desk, server) == HOME_SMALL


async def test_a_resize_that_is_overtaken_leaves_no_trace(desk: Desk, server: str) -> None:
    """Whatever its agent says later."""
    resize = (await desk.admit("resize", server, wanted=RESIZE)).operation
    await desk.immediate.reset_state(server, actor(ActorKind.ADMIN), to=VmState.ACTIVE)
    assert await room(desk, server) == HOME_SMALL
    after = await end(desk, resize)
    assert (after.vm_state, after.flavor, after.was) == (VmState.ACTIVE, SMALL, None)
    assert await room(desk, server) == HOME_SMALL


async def test_a_revert_that_fails_can_be_asked_for_again(desk: Desk, server: str) -> None:
    """The room for both stays until one of them is certain."""
    await do(desk, "resize", server, wanted=RESIZE)
    failed = await do(desk, "revertResize", server, FAILED)
    assert (failed.vm_state, failed.flavor, failed.was) == (VmState.RESIZED, LARGE, VmState.ACTIVE)
    assert await room(desk, server) == BOTH
    assert (await do(desk, "revertResize", server)).flavor == SMALL
    assert await room(desk, server) == HOME_SMALL


@pytest.mark.parametrize("to", [VmState.ACTIVE, VmState.ERROR])
async def test_a_reset_confirms_a_resize(desk: Desk, server: str, to: VmState) -> None:
    """It can be neither confirmed nor reverted afterwards, so it takes up what its new flavor says."""
    await do(desk, "resize", server, wanted=RESIZE)
    await desk.immediate.reset_state(server, actor(ActorKind.ADMIN), to=to)
    row = await desk.row(server)
    assert (row.flavor, row.old_flavor, row.was) == (LARGE, None, None)
    assert await room(desk, server) == HOME_LARGE


async def test_a_resized_instance_that_is_deleted_for_a_while(desk: Desk, server: str) -> None:
    """It holds both until it is restored, which confirms the resize, or reclaimed."""
    await do(desk, "resize", server, wanted=RESIZE)
    kept = await do(desk, "delete_soft", server)
    assert (kept.vm_state, kept.was, kept.old_flavor) == (VmState.SOFT_DELETED, VmState.ACTIVE, SMALL)
    assert await room(desk, server) == BOTH
    restored = await do(desk, "restore", server)
    assert (restored.flavor, restored.was, restored.terminated_at) == (LARGE, None, None)
    assert await room(desk, server) == HOME_LARGE


@pytest.mark.parametrize(
    ("flavor", "message"),
    [
        (SMALL, "When resizing, instances must change flavor!"),
        (
            FlavorFacts(id="3", name="none", vcpus=1, ram=64, disk=0),
            "Resize to zero disk flavor is not allowed.",
        ),
        (
            FlavorFacts(id="4", name="thin", vcpus=1, ram=32, disk=1),
            "Flavor's memory is too small for requested image.",
        ),
    ],
)
async def test_a_flavor_that_does_not_fit(desk: Desk, server: str, flavor: FlavorFacts, message: str) -> None:
    """The instance's own image asks for its memory after a resize as before."""
    made_of = (await desk.row(server)).image.id
    await desk.database.write(lambda connection: images.insert(connection, image(made_of, min_ram=64)))
    before = await desk.row(server)
    with pytest.raises(Invalid) as refused:
        await desk.admit("resize", server, wanted=Wanted(target=Target(flavor=flavor)))
    assert str(refused.value) == message
    assert await desk.row(server) == before
    assert await room(desk, server) == HOME_SMALL


async def test_no_room_for_the_new_flavor(desk: Desk, server: str) -> None:
    """Refused when it is asked for, with nothing changed."""
    before = await desk.row(server)
    wanted = Wanted(target=Target(flavor=msgspec.structs.replace(LARGE, ram=1000)))
    with pytest.raises(Refused) as refused:
        await desk.admit("resize", server, wanted=wanted)
    assert refused.value.refusal is Refusal.NO_VALID_HOST
    assert await desk.row(server) == before
    assert await room(desk, server) == HOME_SMALL


# ------------------------------------------------------------------------------------- rescue and rebuild


async def test_a_rescue_and_its_end(desk: Desk, server: str) -> None:
    """The image that rescues is written down while it does; nothing of it when it fails or is over."""
    other = ImageFacts(id="other", disk_format="qcow2")
    wanted = Wanted(target=Target(rescue=other))
    await do(desk, "rescue", server, FAILED, wanted=wanted)
    assert (await undone(desk, server)).rescue is None
    rescued = await do(desk, "rescue", server, wanted=wanted)
    assert (rescued.vm_state, rescued.rescue) == (VmState.RESCUED, other)
    assert (await do(desk, "unrescue", server, FAILED)).rescue == other
    assert (await do(desk, "unrescue", server)).rescue is None
    own = await do(desk, "rescue", server)
    assert own.rescue == own.image


async def test_a_rebuild_takes_its_image_when_it_is_done(desk: Desk, server: str) -> None:
    """One that fails is an error of an instance that still says the image it was made of."""
    other = ImageFacts(id="other", disk_format="raw")
    before = await desk.row(server)
    wanted = Wanted(target=Target(image=other), seed={"password": "hash"})
    failed = await do(desk, "rebuild", server, FAILED, wanted=wanted)
    assert (failed.vm_state, failed.image, failed.seed.password) == (VmState.ERROR, before.image, "hash")
    rebuilt = await do(desk, "rebuild", server, wanted=wanted)
    assert (rebuilt.vm_state, rebuilt.image, rebuilt.fault) == (VmState.ACTIVE, other, None)
    assert await room(desk, server) == HOME_SMALL


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"min_ram": 65}, "Flavor's memory is too small for requested image."),
        ({"min_disk": 2}, "Flavor's disk is too small for requested image."),
        (
            {"size": 2**30 + 1},
            (
                "Flavor's disk is too small for requested image. "
                "Flavor disk is 1073741824 bytes, image is 1073741825 bytes."
            ),
        ),
    ],
)
async def test_an_image_that_does_not_fit(
    desk: Desk, server: str, changes: dict[str, Any], message: str
) -> None:
    """Refused before the guest is asked anything, and before its disk is gone."""
    made = image(**changes)
    before = await desk.row(server)
    wanted = Wanted(target=Target(image=made.facts), changes={"name": "other"}, must_fit=made)
    with pytest.raises(Invalid) as refused:
        await desk.admit("rebuild", server, wanted=wanted)
    assert str(refused.value) == message
    assert await desk.row(server) == before


# ------------------------------------------------------------------------------------- images of its disk


async def test_an_image_is_there_before_its_data(desk: Desk, server: str) -> None:
    """Queued, with what it is made of; active when the agent has filled it."""
    wanted = Wanted(image=ImageWanted(name="mine", properties={"a": "b"}))
    operation = (await desk.admit("createImage", server, wanted=wanted)).operation
    queued = await stored(desk, operation.params["target"]["snapshot"])
    assert queued is not None
    assert (queued.name, queued.status, queued.owner, queued.protected) == ("mine", "queued", "p", False)
    assert (queued.properties["instance_uuid"], queued.properties["a"]) == (server, "b")
    image_id = await filled(desk, operation)
    assert (await end(desk, operation)).vm_state is VmState.ACTIVE
    kept = await stored(desk, image_id)
    assert kept is not None
    assert kept.status == "active"


@pytest.mark.parametrize("action", ["createImage", "createBackup", "shelve"])
@pytest.mark.parametrize("how", ["failed", "reset", "deleted"])
async def test_an_image_that_is_not_filled(desk: Desk, server: str, action: str, how: str) -> None:
    """It is gone with the operation that was to fill it."""
    operation = (await desk.admit(action, server)).operation
    image_id = operation.params["target"]["snapshot"]
    assert await stored(desk, image_id) is not None
    if how == "failed":
        await end(desk, operation, FAILED)
    elif how == "reset":
        await desk.immediate.reset_state(server, actor(ActorKind.ADMIN), to=VmState.ACTIVE)
    else:
        await desk.admit("delete", server)
    assert await stored(desk, image_id) is None
    assert await room(desk, server) == HOME_SMALL


async def test_what_a_shelving_left_that_was_overtaken(desk: Desk, server: str) -> None:
    """Its image is gone though it has its data, which are forgotten; one that was asked for stays."""
    shelve = (await desk.admit("shelve", server)).operation
    image_id = await filled(desk, shelve)
    await desk.admit("delete", server)
    assert await stored(desk, image_id) is None
    assert desk.forgotten == [image_id]


async def test_an_image_that_was_asked_for_stays(desk: Desk, server: str) -> None:
    """Whole as it is, though what made it was overtaken a moment later."""
    operation = (await desk.admit("createImage", server)).operation
    image_id = await filled(desk, operation)
    await desk.admit("delete", server)
    assert await stored(desk, image_id) is not None


async def backup(desk: Desk, server: str, kind: str, rotation: int) -> str:
    wanted = Wanted(
        target=Target(backup_type=kind, rotation=rotation),
        image=ImageWanted(name=kind, properties={"image_type": "backup", "backup_type": kind}),
    )
    operation = (await desk.admit("createBackup", server, wanted=wanted)).operation
    image_id = await filled(desk, operation)
    await end(desk, operation)
    return image_id


async def test_backups_of_one_type_and_instance_rotate(desk: Desk, server: str) -> None:
    """Never another's, never another type's, never one that is protected, and none when the newest fails."""
    other = (
        await create(desk.admission, new_instance(flavor=SMALL), actor(), reservation_id="r")
    ).instance.id
    await end(desk, (await desk.operations(other))[0])
    theirs = [await backup(desk, other, "daily", 9), await backup(desk, server, "weekly", 9)]
    mine = [await backup(desk, server, "daily", 9) for _ in range(4)]
    first = await stored(desk, mine[0])
    assert first is not None
    protected = msgspec.structs.replace(first, protected=True)
    await desk.database.write(lambda connection: images.replace(connection, first, protected))
    wanted = Wanted(target=Target(backup_type="daily", rotation=1), image=ImageWanted(name="lost"))
    await do(desk, "createBackup", server, FAILED, wanted=wanted)

    async def there() -> list[str]:
        return [image_id for image_id in [*theirs, *mine] if await stored(desk, image_id) is not None]

    assert await there() == [*theirs, *mine]
    newest = await backup(desk, server, "daily", 2)
    assert await there() == [*theirs, mine[0], mine[3]]
    await backup(desk, server, "daily", 0)
    assert await there() == [*theirs, mine[0]]
    assert await stored(desk, newest) is None


async def test_a_backup_that_is_protected_while_others_rotate_stays(
    desk: Desk, server: str, database_url: sa.URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Protected between the rotation's look and its deletion: row and data stay, and so does what was deleted."""
    mine = [await backup(desk, server, "daily", 9) for _ in range(3)]
    look = images.backups
    protect = sa.update(IMAGES).where(IMAGES.c.id == mine[0]).values(protected=True)

    def look_before(connection: sa.Connection, instance_id: str, backup_type: str) -> list[str]:
        found = look(connection, instance_id, backup_type)
        if database_url.get_backend_name() == "sqlite":
            # Nobody else can write meanwhile; what the deletion must see is the same.
            connection.execute(protect)
        else:
            engine = sa.create_engine(database_url, poolclass=NullPool)
            with engine.begin() as other:
                other.execute(protect)
        return found

    monkeypatch.setattr(images, "backups", look_before)
    newest = await backup(desk, server, "daily", 1)
    assert [await stored(desk, image_id) is not None for image_id in (*mine, newest)] == [
        True,
        False,
        False,
        True,
    ]
    assert sorted(desk.forgotten) == sorted(mine[1:])


# ---------------------------------------------------------------------------------------------------- shelving


async def shelved(desk: Desk, server: str, *, offloaded: bool = True) -> str:
    """Shelve, and offload where that follows; return the image."""
    operation = (await desk.admit("shelve", server)).operation
    image_id = await filled(desk, operation)
    after = await end(desk, operation)
    if offloaded:
        assert after.task_state is TaskState.SHELVING_OFFLOADING
        await end(desk, (await desk.operations(server))[0])
    return image_id


async def test_shelved_and_back(desk: Desk, server: str) -> None:
    """Off its host it holds nothing there; back, it holds its room again, and its image is gone."""
    image_id = await shelved(desk, server)
    row = await desk.row(server)
    assert (row.vm_state, row.task_state, row.host) == (VmState.SHELVED_OFFLOADED, None, "")
    assert row.shelved_image is not None
    assert row.shelved_image.id == image_id
    kept = await stored(desk, image_id)
    assert kept is not None
    assert kept.protected
    assert await room(desk, server) == {}
    unshelve = (await desk.admit("unshelve_offloaded", server)).operation
    assert await room(desk, server) == HOME_SMALL
    assert (await desk.outbox())[-1][2].guest.image.id == image_id
    back = await end(desk, unshelve)
    assert (back.vm_state, back.host, back.shelved_image) == (VmState.ACTIVE, "a", None)
    assert back.image == row.image
    assert await stored(desk, image_id) is None
    assert await room(desk, server) == HOME_SMALL


async def test_an_unshelving_that_fails(desk: Desk, server: str) -> None:
    """What it made is removed, its room given back, and the image kept: it can be asked for again."""
    image_id = await shelved(desk, server)
    after = await do(desk, "unshelve_offloaded", server, FAILED)
    assert (after.vm_state, after.task_state) == (VmState.SHELVED_OFFLOADED, TaskState.SHELVING_OFFLOADING)
    undo = (await desk.operations(server))[0]
    assert (undo.action, undo.host) == ("restore_offloaded", "a")
    assert (await end(desk, undo)).host == ""
    assert await room(desk, server) == {}
    assert await stored(desk, image_id) is not None
    assert (await do(desk, "unshelve_offloaded", server)).vm_state is VmState.ACTIVE


async def test_no_host_to_unshelve_on(desk: Desk, server: str) -> None:
    """Refused, and it stays shelved, with its image."""
    image_id = await shelved(desk, server)
    big = new_instance(flavor=msgspec.structs.replace(SMALL, ram=1000))
    await create(desk.admission, big, actor(), reservation_id="r")
    before = await desk.row(server)
    with pytest.raises(Refused) as refused:
        await desk.admit("unshelve_offloaded", server)
    assert refused.value.refusal is Refusal.NO_VALID_HOST
    assert await desk.row(server) == before
    assert await stored(desk, image_id) is not None


@pytest.mark.parametrize("offloaded", [True, False])
async def test_a_shelved_instance_that_is_deleted(desk: Desk, server: str, *, offloaded: bool) -> None:
    """Its image goes with it, data and all, and nothing is held for it."""
    desk.open(offload=offloaded, placement=RULES)
    image_id = await shelved(desk, server, offloaded=offloaded)
    admitted = await desk.admit("delete", server)
    if not offloaded:
        await end(desk, admitted.operation)
    row = await desk.row(server)
    assert (row.vm_state, row.shelved_image) == (VmState.DELETED, None)
    assert row.terminated_at == desk.clock.at
    assert await stored(desk, image_id) is None
    assert desk.forgotten == [image_id]
    assert await room(desk, server) == {}


async def test_a_deletion_that_fails_keeps_the_image(desk: Desk, server: str) -> None:
    """It is the instance's only disk, perhaps."""
    desk.open(offload=False, placement=RULES)
    image_id = await shelved(desk, server, offloaded=False)
    assert (await do(desk, "delete", server, FAILED)).vm_state is VmState.ERROR
    assert await stored(desk, image_id) is not None


@pytest.mark.parametrize("kind", [ActorKind.MEMBER, ActorKind.ADMIN])
async def test_a_lock_that_comes_in_between(desk: Desk, server: str, kind: ActorKind) -> None:
    """What follows a shelving is asked for by whoever asked for that, and no lock of theirs is passed."""
    shelve = (await desk.admit("shelve", server)).operation
    await filled(desk, shelve)
    await desk.immediate.lock(server, actor(kind), reason=None, project_id=None)
    after = await end(desk, shelve)
    assert (after.vm_state, after.task_state, after.host) == (VmState.SHELVED, None, "a")
    assert {each.action for each in await desk.operations(server)} == {"create", "shelve", "lock"}


async def test_an_admins_shelving_passes_the_owners_lock(desk: Desk, server: str) -> None:
    """As the admin would who asks for the offloading; a hold stops it."""
    for blocked, follows in (
        ({"owner_blocks": int(ALL_CLASSES)}, True),
        ({"hold_blocks": int(ALL_CLASSES)}, False),
    ):
        instance_id = await desk.add(host="a")
        shelve = (await desk.admit("shelve", instance_id, ActorKind.ADMIN)).operation
        await desk.change(instance_id, blocked)
        after = await end(desk, shelve)
        assert (after.task_state is TaskState.SHELVING_OFFLOADING) == follows


async def test_what_was_admitted_meanwhile_is_not_followed(desk: Desk, server: str) -> None:
    """A shelving that was overtaken offloads nothing."""
    shelve = (await desk.admit("shelve", server)).operation
    await desk.admit("delete", server)
    after = await end(desk, shelve)
    assert (after.vm_state, after.task_state) == (VmState.ACTIVE, TaskState.DELETING)


#: What is asked of an instance whose operation in flight has a target, and what the record must not show.
_TARGETS: Final[dict[str, tuple[str, Callable[[Instance], object]]]] = {
    "resize": ("resize", lambda row: (row.flavor, row.was, row.old_flavor)),
    "rebuild": ("rebuild", lambda row: row.image),
    "rescue": ("rescue", lambda row: row.rescue),
    "shelve": ("shelve", lambda row: row.shelved_image),
}


@pytest.mark.parametrize("action", _TARGETS)
async def test_a_target_that_is_overtaken(desk: Desk, server: str, action: str) -> None:
    """A result that comes after a deletion was admitted changes nothing, and holds nothing."""
    key, shows = _TARGETS[action]
    wanted = Wanted(
        target=Target(flavor=LARGE)
        if action == "resize"
        else Target(image=ImageFacts(id=str(uuid.uuid4()), disk_format="raw"))
    )
    before = await desk.row(server)
    operation = (await desk.admit(key, server, wanted=wanted)).operation
    delete = (await desk.admit("delete", server)).operation
    after = await end(desk, operation)
    assert shows(after) == shows(before)
    assert (after.vm_state, after.task_state) == (VmState.ACTIVE, TaskState.DELETING)
    assert (await end(desk, delete)).vm_state is VmState.DELETED
    assert await room(desk, server) == {}
    assert BY_KEY[operation.action].pending is not None
