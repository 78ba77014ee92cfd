"""What locks keep besides the instance: copies of its disk, backups, and its project, on both databases (R1, R6)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import pytest
import pytest_asyncio
import sqlalchemy as sa

from stateward.domain.bodies import Hold
from stateward.domain.locks import ActorKind, Lock, LockKind, OperationClass
from stateward.domain.placement import NOTHING, Rules
from stateward.domain.records import Operation, Outcome, Result, Target
from stateward.domain.states import VmState
from stateward.operations.completion import Completion
from stateward.operations.locking import Locking
from stateward.operations.preparing import ImageWanted, Wanted
from stateward.operations.stacking import LockWish
from stateward.store import images, instances
from stateward.store.engine import Database
from stateward.store.image_tables import IMAGES
from stateward.store.images import Image
from tests.api.embedded import Embedded, embedded
from tests.api.images import V2, patch
from tests.operations.desk import Desk
from tests.postgres import waiting
from tests.rows import NOW, actor
from tests.stack import encoded

ADMIN: Final = actor(ActorKind.ADMIN, project="the provider's")
REASON: Final = "It was locked by the provider (a hold) at 2023-11-14T22:13:20Z: Case 7."
DELETE: Final = OperationClass.DELETE


class World:
    """The image and identity services, and a desk on the same database; instances are demo's."""

    def __init__(self, services: Embedded, project: str) -> None:
        self.services = services
        self.project = project
        self.desk = Desk(services.database)
        self.desk.open(offload=True, placement=Rules(reserved=NOTHING))
        self.locking = Locking(self.desk.admission, self.desk.immediate, lambda: None)

    async def add(self, **changes: Any) -> str:
        """Insert an instance of demo's."""
        return await self.desk.add(project_id=self.project, **changes)

    async def hold(self, instance_id: str) -> Lock:
        """Hold an instance as it is."""
        wanted = Hold(reason="Case 7.", ticket="T-1", shutdown="none")
        return (await self.locking.hold(instance_id, ADMIN, wanted)).placed

    async def release(self, instance_id: str, lock: Lock) -> None:
        """Release a lock."""
        await self.locking.release(instance_id, lock.id, ADMIN, reason=None, project_id=None)

    async def lock(self, instance_id: str, kind: LockKind, blocks: OperationClass) -> Lock:
        """Lock an instance against classes of operations."""
        wish = LockWish(kind=kind, holder="somebody", name="a lock", blocks=blocks, reason="Mine.")
        done = await self.locking.place(instance_id, ADMIN, wish, overtake=False, project_id=None)
        return done.admitted.placed

    async def copy(self, instance_id: str, action: str, **more: Any) -> str:
        """Have a copy of an instance's disk made, as an agent does, and return the image's id."""
        wanted = Wanted(image=ImageWanted(name=action, properties=more.pop("properties", {})), **more)
        operation = (await self.desk.admit(action, instance_id, wanted=wanted)).operation
        image_id = str(operation.params["target"]["snapshot"])
        await self.fill(image_id)
        await self.end(operation)
        return image_id

    async def backup(self, instance_id: str) -> str:
        """Have a backup made of which the newest alone is kept."""
        kind = {"image_type": "backup", "backup_type": "daily"}
        target = Target(backup_type="daily", rotation=1)
        return await self.copy(instance_id, "createBackup", target=target, properties=kind)

    async def fill(self, image_id: str) -> None:
        """Give an image its data."""

        def work(connection: sa.Connection) -> None:
            images.begin_upload(connection, image_id, image_id, NOW)
            assert images.finish_upload(connection, image_id, size=1, checksum="c", hash_value="h", now=NOW)

        await self.desk.database.write(work)

    async def end(self, operation: Operation) -> None:
        """Take an agent's word that an operation is done."""
        self.desk.clock.at += 1
        result = Result(
            operation_id=operation.id,
            instance_id=operation.instance_id,
            fence=operation.fence,
            outcome=Outcome.SUCCEEDED,
            message=None,
            observation=None,
        )
        await Completion(self.desk.admission, lambda _instance_id: None).handle(encoded(result))
        self.desk.clock.at = NOW

    async def image(self, image_id: str) -> Image | None:
        """Return an image's row."""
        return await self.desk.database.read(lambda connection: images.get(connection, image_id))

    async def delete(self, image_id: str, *, by: str = "demo") -> tuple[int, str]:
        """Ask for an image to be deleted; return the status and the sentence of a refusal."""
        headers = await (self.services.demo() if by == "demo" else self.services.admin())
        response = await self.services.client.delete(f"{V2}/images/{image_id}", headers=headers)
        return response.status_code, response.json()["error"]["message"] if response.content else ""

    async def patch(self, image_id: str, *changes: dict[str, Any], by: str = "demo") -> tuple[int, str]:
        """Ask for an image to be changed; return the status and the sentence of a refusal."""
        headers = await (self.services.demo() if by == "demo" else self.services.admin())
        response = await patch(self.services, headers, image_id, *changes)
        refused = response.status_code >= 400
        return response.status_code, response.json()["error"]["message"] if refused else ""


@pytest_asyncio.fixture
async def world(database: Database, tmp_path: Path) -> AsyncIterator[World]:
    async with embedded(database, tmp_path / "images") as services:
        yield World(services, await services.id_of("project", "demo"))


async def shelved(world: World) -> tuple[str, str]:
    """Shelve an instance, have it leave its host, and return it with the image that is its disk."""
    instance_id = await world.add()
    image_id = await world.copy(instance_id, "shelve")
    (offload,) = [each for each in await world.desk.operations(instance_id) if each.action == "shelveOffload"]
    await world.end(offload)
    row = await world.desk.row(instance_id)
    assert row.vm_state is VmState.SHELVED_OFFLOADED
    assert row.shelved_image is not None
    assert row.shelved_image.id == image_id
    return instance_id, image_id


@pytest.mark.parametrize("by", ["demo", "admin"])
async def test_a_held_instance_s_copies_stay(world: World, by: str) -> None:
    """Snapshots and backups, whoever asks; released, they go (R6)."""
    instance_id = await world.add()
    copies = [await world.copy(instance_id, "createImage"), await world.backup(instance_id)]
    hold = await world.hold(instance_id)
    for image_id in copies:
        refused = await world.delete(image_id, by=by)
        what = f"it is a copy of the disk of instance {instance_id}, which is locked"
        why = f"Image {image_id} is kept: {what}. {REASON}"
        assert refused == (409, why)
        assert await world.image(image_id) is not None
        assert (await world.desk.audit())[-1] == ("refused", "delete_image", {"why": why})
    await world.release(instance_id, hold)
    assert [await world.delete(image_id, by=by) for image_id in copies] == [(204, ""), (204, "")]


@pytest.mark.parametrize("by", ["demo", "admin"])
@pytest.mark.parametrize("change", ["remove", "replace"])
async def test_a_held_instance_s_copy_cannot_be_said_to_be_another_s(
    world: World, by: str, change: str
) -> None:
    """It could be deleted then; what else is said of it may change."""
    instance_id, other = await world.add(), await world.add()
    image_id = await world.copy(instance_id, "createImage")
    await world.hold(instance_id)
    wanted = {"op": change, "path": "/instance_uuid"} | ({"value": other} if change == "replace" else {})
    status, message = await world.patch(image_id, wanted, by=by)
    assert (status, message.partition(":")[0]) == (409, f"Image {image_id} is kept")
    same = {"op": "replace", "path": "/instance_uuid", "value": instance_id}
    assert await world.patch(image_id, same, {"op": "replace", "path": "/name", "value": "n"}, by=by) == (
        200,
        "",
    )
    image = await world.image(image_id)
    assert image is not None
    assert (image.name, image.properties["instance_uuid"]) == ("n", instance_id)
    assert (await world.delete(image_id, by=by))[0] == 409


@pytest.mark.parametrize("by", ["demo", "admin"])
async def test_a_shelved_instance_s_disk_stays_when_it_is_held(world: World, by: str) -> None:
    """Also when its owner took its protection, and the name of the instance, away before the hold."""
    instance_id, image_id = await shelved(world)
    forget: list[dict[str, Any]] = [
        {"op": "replace", "path": "/protected", "value": False},
        {"op": "remove", "path": "/instance_uuid"},
    ]
    assert await world.patch(image_id, *forget) == (200, "")
    hold = await world.hold(instance_id)
    what = f"it is the disk of instance {instance_id}, which is locked"
    assert await world.delete(image_id, by=by) == (409, f"Image {image_id} is kept: {what}. {REASON}")
    await world.release(instance_id, hold)
    assert await world.delete(image_id, by=by) == (204, "")


@pytest.mark.parametrize("kind", [LockKind.OWNER, LockKind.ADMIN])
@pytest.mark.parametrize("blocks", [DELETE, OperationClass.START])
async def test_a_shelved_instance_s_disk_stays_when_its_deletion_is_blocked(
    world: World, kind: LockKind, blocks: OperationClass
) -> None:
    """Whom the lock binds destroys nothing (B2: ``delete`` is everything that does); an admin passes it, as ever."""
    instance_id, image_id = await shelved(world)
    assert await world.patch(image_id, {"op": "replace", "path": "/protected", "value": False}) == (200, "")
    await world.lock(instance_id, kind, blocks)
    status, message = await world.delete(image_id)
    if blocks is DELETE:
        assert (status, message.partition(", which")[0]) == (
            409,
            f"Image {image_id} is kept: it is the disk of instance {instance_id}",
        )
        status, _message = await world.delete(image_id, by="admin")
    assert status == 204


@pytest.mark.parametrize("kind", [LockKind.OWNER, LockKind.ADMIN])
async def test_a_locked_instance_s_copies_are_its_owner_s_to_delete(world: World, kind: LockKind) -> None:
    """Only a hold keeps what is not the disk itself."""
    instance_id = await world.add()
    image_id = await world.copy(instance_id, "createImage")
    await world.lock(instance_id, kind, DELETE)
    assert await world.delete(image_id) == (204, "")


async def test_an_image_that_claims_to_be_a_copy(world: World) -> None:
    """Is kept too, but of another project's instance it is not told why it is held."""
    instance_id = await world.desk.add(project_id="another")
    image = Image(
        id="claims",
        owner=world.project,
        visibility="private",
        created_at=NOW,
        updated_at=NOW,
        properties={"instance_uuid": instance_id},
    )
    await world.desk.database.write(lambda connection: images.insert(connection, image))
    await world.hold(instance_id)
    what = f"it is a copy of the disk of instance {instance_id}, which is locked"
    assert await world.delete("claims") == (409, f"Image claims is kept: {what}.")


async def test_who_may_not_delete_an_image_is_told_that_alone(world: World) -> None:
    """Not that it is kept, nor why."""
    instance_id = await world.desk.add(project_id="another")
    image = Image(
        id="theirs",
        owner="another",
        visibility="public",
        created_at=NOW,
        updated_at=NOW,
        properties={"instance_uuid": instance_id},
    )
    await world.desk.database.write(lambda connection: images.insert(connection, image))
    await world.hold(instance_id)
    said = "You are not permitted to change image theirs: it is not your project's."
    assert await world.delete("theirs") == (403, said)
    assert await world.patch("theirs", {"op": "remove", "path": "/instance_uuid"}) == (403, said)


@pytest.mark.parametrize("held", [True, False])
async def test_a_backup_made_before_a_hold_deletes_no_other(world: World, held: bool) -> None:  # noqa: FBT001
    """The hold overtakes a backup that is being made; one that was made under broken glass rotates nothing either."""
    instance_id = await world.add()
    first = await world.backup(instance_id)
    world.desk.clock.at += 10
    kind = {"image_type": "backup", "backup_type": "daily"}
    wanted = Wanted(
        image=ImageWanted(name="second", properties=kind), target=Target(backup_type="daily", rotation=1)
    )
    operation = (await world.desk.admit("createBackup", instance_id, wanted=wanted)).operation
    second = str(operation.params["target"]["snapshot"])
    await world.fill(second)
    if held:
        # Past the admission: the lock alone, and not what it overtakes.
        await world.desk.change(instance_id, {"hold_blocks": int(OperationClass.STOP)})
    await world.end(operation)
    assert (await world.image(first) is not None) is held
    assert await world.image(second) is not None
    assert world.desk.forgotten == ([] if held else [first])


async def test_a_hold_ends_a_backup_and_leaves_the_older_ones(world: World) -> None:
    """What was being filled goes, since nobody fills it any more; a result that comes late changes nothing."""
    instance_id = await world.add()
    first = await world.backup(instance_id)
    wanted = Wanted(image=ImageWanted(name="second"), target=Target(backup_type="daily", rotation=0))
    operation = (await world.desk.admit("createBackup", instance_id, wanted=wanted)).operation
    await world.hold(instance_id)
    await world.end(operation)
    assert await world.image(first) is not None
    assert await world.image(str(operation.params["target"]["snapshot"])) is None


async def remove_project(world: World, project: str) -> tuple[int, str]:
    """Ask for a project to be deleted; return the status and the sentence of a refusal."""
    headers = await world.services.admin()
    response = await world.services.client.delete(f"/identity/v3/projects/{project}", headers=headers)
    return response.status_code, response.json()["error"]["message"] if response.content else ""


@pytest.fixture
async def project(world: World) -> str:
    """Give a project that could be deleted."""
    made = await world.services.make("project", await world.services.admin(), name="gone soon")
    return str(made["id"])


@pytest.mark.parametrize("kind", [LockKind.OWNER, LockKind.ADMIN, LockKind.HOLD])
async def test_a_project_with_locked_instances_stays(world: World, project: str, kind: LockKind) -> None:
    """Whoever locked one against being deleted; the refusal names it and is kept; released, the project goes (R1)."""
    instance_id = await world.desk.add(project_id=project)
    await world.desk.add(project_id=project)
    if kind is LockKind.HOLD:
        lock = await world.hold(instance_id)
    else:
        lock = await world.lock(instance_id, kind, DELETE)
    why = (
        f"Project {project} has instances that are locked against being deleted; release them first: "
        f"{instance_id}."
    )
    assert await remove_project(world, project) == (409, why)
    assert (await world.desk.audit())[-1] == ("refused", "delete_project", {"why": why})
    await world.release(instance_id, lock)
    assert await remove_project(world, project) == (204, "")


async def test_a_project_with_a_lock_stays(world: World, project: str) -> None:
    """Also one that nothing inherits yet; the refusal says whose it is and why."""
    wish = LockWish(
        kind=LockKind.ADMIN, holder="x", name="audit", reason="Audit.", blocks=OperationClass.STOP
    )
    lock, _ = await world.locking.place_on_project(project, "db", ADMIN, wish)
    assert await remove_project(world, project) == (
        409,
        (
            f"Project {project} is locked: release its locks first. It was locked against stop with everything tagged "
            "'db' by the provider at 2023-11-14T22:13:20Z: Audit."
        ),
    )
    await world.locking.release_from_project(lock.id, ADMIN, reason=None, project_id=None)
    assert await remove_project(world, project) == (204, "")


async def test_a_project_with_instances_that_are_locked_otherwise_goes(world: World, project: str) -> None:
    """What blocks starts keeps no project; nor does what is gone already."""
    await world.lock(await world.desk.add(project_id=project), LockKind.ADMIN, OperationClass.START)
    gone = await world.desk.add(project_id=project, vm_state="deleted")
    await world.desk.change(gone, {"hold_blocks": int(DELETE)})
    assert await remove_project(world, project) == (204, "")


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
@pytest.mark.parametrize("asked", ["delete", "patch"])
async def test_an_instance_s_row_is_held_before_its_image_s(
    world: World, database_url: sa.URL, asked: str
) -> None:
    """Whatever ends an operation holds them in this order: two that differed would wait for each other for ever."""
    instance_id = await world.add()
    image_id = await world.copy(instance_id, "createImage")
    remove = {"op": "remove", "path": "/instance_uuid"}
    engine = sa.create_engine(database_url, poolclass=sa.NullPool)
    with engine.connect() as watch, engine.begin() as ending:
        assert instances.hold(ending, instance_id) is not None
        request = asyncio.create_task(
            world.delete(image_id) if asked == "delete" else world.patch(image_id, remove)
        )
        async with asyncio.timeout(60):
            while not waiting(watch):
                watch.rollback()
                await asyncio.sleep(0.01)
        row = sa.select(IMAGES.c.id).where(IMAGES.c.id == image_id).with_for_update(nowait=True)
        assert ending.execute(row).scalar_one() == image_id
    assert await request == ((204, "") if asked == "delete" else (200, ""))
    engine.dispose()
