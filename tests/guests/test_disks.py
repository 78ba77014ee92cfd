"""What becomes of real guests' disks: the tiny guest counts its boots on its disk and says the number."""

from __future__ import annotations

import asyncio
import contextlib
import os
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path

import libvirt
import pytest
import pytest_asyncio
from msgspec.structs import replace

from stateward.agent.disk_image import read_image
from stateward.agent.driver import AgentSilent, DriverError
from stateward.agent.libvirt import inside, xml
from stateward.agent.libvirt.daemons import own, stop_own
from stateward.agent.libvirt.driver import LibvirtDriver
from stateward.domain.records import GuestSpec, ImageFacts
from stateward.domain.states import Observed
from tests.agent.contract import RUNNING, UP, Changes, Rig
from tests.guests.conftest import NewSpec, TinyImages

pytestmark = [pytest.mark.guests, pytest.mark.asyncio]

#: Bytes that take QEMU a while to copy.
LARGE = 512 * 1024**2


def boot(number: int) -> str:
    return f"stateward-guest: boot {number}"


async def start(rig: Rig, spec: GuestSpec, *says: str) -> None:
    """Define a guest, start it, and wait for what it says."""
    await rig.driver.define(spec)
    await rig.driver.power_on(spec.instance_id)
    for line in (*says, UP):
        await rig.console_says(spec.instance_id, line)


def image_of(spec: GuestSpec, image_id: str) -> ImageFacts:
    """Describe the image that a disk of the guest has become."""
    return replace(spec.image, id=image_id, disk_format="qcow2")


def copying(operator: libvirt.virConnect, spec: GuestSpec) -> bool:
    """Say whether a job copies the guest's disk."""
    try:
        return bool(operator.lookupByUUIDString(spec.instance_id).backupGetXMLDesc())
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN_BACKUP:
            return False
        raise


async def until_copying(operator: libvirt.virConnect, spec: GuestSpec) -> None:
    """Wait until a job copies the guest's disk."""
    async with asyncio.timeout(30):
        while not copying(operator, spec):  # noqa: ASYNC110 - libvirt has no event for it
            await asyncio.sleep(0.002)


async def test_a_running_guest_is_copied_and_the_copy_boots(
    rig: Rig, new_spec: NewSpec, images: TinyImages, tmp_path: Path
) -> None:
    """It runs on meanwhile; the copy needs no other file, and goes on counting."""
    spec, image_id = new_spec(), str(uuid.uuid4())
    await rig.driver.prepare_disk(spec)
    await start(rig, spec, boot(1))
    await rig.driver.snapshot(spec, image_id, quiesce=False)
    assert await rig.state(spec.instance_id) == RUNNING
    assert not read_image(tmp_path / "snapshots" / image_id, "qcow2").refers
    await rig.driver.publish_snapshot(image_id)
    assert list((tmp_path / "snapshots").iterdir()) == []
    await rig.driver.power_off(spec.instance_id)
    await rig.driver.remove(spec.instance_id)

    copy = new_spec()
    copy = replace(copy, image=image_of(copy, image_id))
    await rig.driver.prepare_disk(copy)
    await start(rig, copy, boot(2))
    (images.folder / image_id).unlink()


async def test_rescue_shows_the_disk_and_revert_gives_the_old_one_back(rig: Rig, new_spec: NewSpec) -> None:
    """The disk is the rescued guest's second one, readable; a kept one has the bytes of then."""
    spec = new_spec()
    await rig.driver.prepare_disk(spec)
    await start(rig, spec, boot(1))
    await rig.driver.power_off(spec.instance_id)
    await rig.driver.keep_disk(spec.instance_id, 1)
    await rig.driver.grow_disk(replace(spec, disk=1))
    await start(rig, replace(spec, disk=1), boot(2))
    await rig.driver.power_off(spec.instance_id)
    # Delivered again to an agent that remembers nothing, the same operation keeps what it kept.
    await rig.driver.drop_kept_disk(spec.instance_id, 1)
    await rig.driver.keep_disk(spec.instance_id, 1)

    rescued = replace(spec, rescue=spec.image)
    await rig.driver.prepare_rescue_disk(rescued)
    await start(rig, rescued, "stateward-guest: second disk: boot 2")
    assert await rig.said(spec.instance_id, boot(1)) == 2
    await rig.driver.power_off(spec.instance_id)
    await rig.driver.discard_rescue_disk(spec.instance_id)

    await rig.driver.return_disk(spec.instance_id)
    await rig.driver.define(spec)
    await rig.driver.power_on(spec.instance_id)
    await rig.console_says(spec.instance_id, boot(2), times=2)


async def test_a_frozen_moment_is_short_and_survives_a_kill(
    rig: Rig, agent_spec: GuestSpec, place_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Debian's agent freezes for the moment and thaws; what a killed agent left frozen, the next one thaws."""
    # How soon it answers is the machine's affair here.
    for limit in ("LIMIT_SECONDS", "FREEZE_SECONDS"):
        monkeypatch.setattr(inside, limit, 60)
    spec = agent_spec
    await rig.driver.prepare_disk(spec)
    await start(rig, spec)
    await rig.driver.snapshot(spec, str(uuid.uuid4()), quiesce=True)
    for what in ("freeze", "thaw"):
        await rig.console_says(spec.instance_id, f"stateward-guest: file systems: {what}")
    assert list((tmp_path / "frozen").iterdir()) == []

    await rig.driver.close()
    connection = libvirt.open(place_uri)
    await asyncio.to_thread(inside.freeze, connection, spec.instance_id)
    connection.close()
    (tmp_path / "frozen" / spec.instance_id).touch()
    await rig.driver.open(rig.changes)
    await rig.console_says(spec.instance_id, "stateward-guest: file systems: thaw", times=2)
    await rig.driver.request_shutdown(spec.instance_id)
    await rig.until(spec.instance_id, Observed.SHUTOFF)


@pytest.fixture
def place_uri(operator: libvirt.virConnect) -> str:
    """Give the address of the tests' libvirtd."""
    return operator.getURI()


@pytest.mark.parametrize("agent", ["mute", "answer"])
async def test_an_agent_that_cannot_freeze_is_said(
    rig: Rig, new_spec: NewSpec, operator: libvirt.virConnect, tmp_path: Path, agent: str
) -> None:
    """Whether it never answers or knows no such thing: within seconds, and no copy is made."""
    spec = new_spec(f"stateward.agent={agent}")
    await rig.driver.prepare_disk(spec)
    await start(rig, spec)
    async with asyncio.timeout(rig.patience):
        while not xml.agent_connected(operator.lookupByUUIDString(spec.instance_id).XMLDesc()):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    with pytest.raises(AgentSilent if agent == "mute" else DriverError):
        async with asyncio.timeout(rig.patience):
            await rig.driver.snapshot(spec, str(uuid.uuid4()), quiesce=True)
    assert list((tmp_path / "snapshots").iterdir()) == []
    assert not copying(operator, spec)
    assert await rig.state(spec.instance_id) == RUNNING


@pytest_asyncio.fixture
async def large(rig: Rig, new_spec: NewSpec, images: TinyImages) -> AsyncIterator[GuestSpec]:
    """Give a running guest whose disk takes a while to copy."""
    image_id = str(uuid.uuid4())
    piece = os.urandom(4 * 1024**2)
    with (images.folder / image_id).open("wb") as file:
        for _ in range(LARGE // len(piece)):
            file.write(piece)
    spec = new_spec()
    spec = replace(spec, image=replace(spec.image, id=image_id, disk_format="raw"))
    await rig.driver.prepare_disk(spec)
    await rig.driver.define(spec)
    await rig.driver.power_on(spec.instance_id)
    yield spec
    (images.folder / image_id).unlink()


async def test_a_copy_that_is_given_up_leaves_nothing(
    rig: Rig, large: GuestSpec, operator: libvirt.virConnect, tmp_path: Path
) -> None:
    """Cancelled while it runs, and left by an agent that was killed: the next one, and discarding it, end it."""
    snapshots = tmp_path / "snapshots"
    image_id = str(uuid.uuid4())

    task = asyncio.create_task(rig.driver.snapshot(large, image_id, quiesce=False))
    await until_copying(operator, large)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not copying(operator, large)
    assert list(snapshots.iterdir()) == []

    def leave() -> None:
        part = snapshots / f"{image_id}.0.part"
        part.unlink(missing_ok=True)
        operator.lookupByUUIDString(large.instance_id).backupBegin(xml.backup_xml("vda", part), None)

    leave()
    await rig.driver.discard_snapshot(image_id)
    assert not copying(operator, large)
    assert list(snapshots.iterdir()) == []
    leave()
    await rig.driver.snapshot(large, image_id, quiesce=False)
    assert not copying(operator, large)
    assert [path.name for path in snapshots.iterdir()] == [image_id]
    assert (snapshots / image_id).stat().st_size > LARGE


async def test_a_guest_that_goes_off_under_a_copy_is_copied_as_it_is_then(
    rig: Rig, large: GuestSpec, operator: libvirt.virConnect, tmp_path: Path
) -> None:
    """A shutdown of its own is no reason to have no copy."""
    image_id = str(uuid.uuid4())
    task = asyncio.create_task(rig.driver.snapshot(large, image_id, quiesce=False))
    await until_copying(operator, large)
    operator.lookupByUUIDString(large.instance_id).destroy()
    await task
    assert (tmp_path / "snapshots" / image_id).stat().st_size > LARGE


async def test_an_operators_own_copy_is_left_alone(
    rig: Rig, large: GuestSpec, operator: libvirt.virConnect, tmp_path: Path
) -> None:
    """Only what we began is ended; ours comes after it."""
    target, image_id = tmp_path / "operators", str(uuid.uuid4())
    operator.lookupByUUIDString(large.instance_id).backupBegin(xml.backup_xml("vda", target), None)
    await rig.driver.snapshot(large, image_id, quiesce=False)
    assert target.stat().st_size > LARGE
    assert (tmp_path / "snapshots" / image_id).stat().st_size > LARGE


async def system(*command: str) -> None:
    process = await asyncio.create_subprocess_exec(*command)
    assert await process.wait() == 0


@contextlib.asynccontextmanager
async def small_disk(
    mounted: Path, size: str, *, home: Path, data: Path, images: TinyImages, new_spec: NewSpec
) -> AsyncGenerator[Rig]:
    """Give a host of which one folder is on a small disk of its own.

    Args:
        mounted: the folder, which is there and empty.
        size: of its disk, as mount says it.
        home: of its libvirtd.
        data: where its driver keeps the guests' disks.
        images: what they are made from.
        new_spec: makes a guest's description.
    """
    await system("mount", "-t", "tmpfs", "-o", f"size={size},mode=755", "tmpfs", str(mounted))
    try:
        place = await own(home)
        changes = Changes()
        driver = LibvirtDriver(uri=place.uri, folder=data, images=images)
        await driver.open(changes)
        try:
            yield Rig(driver=driver, changes=changes, spec=new_spec)
            for guest in await driver.list():
                await driver.power_off(guest.instance_id)
                await driver.remove(guest.instance_id)
        finally:
            await driver.close()
            await stop_own(home)
    finally:
        await system("umount", str(mounted))


@pytest_asyncio.fixture
async def cramped(tmp_path: Path, images: TinyImages, new_spec: NewSpec) -> AsyncIterator[tuple[Rig, Path]]:
    """Give a host whose data folder is on a small disk of its own."""
    folder = tmp_path / "small"
    folder.mkdir()
    host = small_disk(folder, "64m", home=tmp_path / "libvirt", data=folder, images=images, new_spec=new_spec)
    async with host as rig:
        yield rig, folder


async def test_a_full_disk_stops_no_guest(cramped: tuple[Rig, Path]) -> None:
    """The copy fails with a sentence and leaves nothing; with room again it is made."""
    rig, folder = cramped
    spec, image_id = rig.spec(), str(uuid.uuid4())
    await rig.driver.prepare_disk(spec)
    await start(rig, spec, boot(1))
    # The guest has written what it writes. In the first room the copy is not even begun, in the second it is.
    for room in (32, 320):
        usage = os.statvfs(folder)
        (folder / "ballast").write_bytes(bytes(usage.f_bavail * usage.f_frsize - room * 1024))
        with pytest.raises(DriverError, match=r"cannot be copied: the host's disk is full"):
            await rig.driver.snapshot(spec, image_id, quiesce=False)
        assert await rig.state(spec.instance_id) == RUNNING
        assert list((folder / "snapshots").iterdir()) == []
        (folder / "ballast").unlink()
    await rig.driver.snapshot(spec, image_id, quiesce=False)
    assert await rig.state(spec.instance_id) == RUNNING
    assert [path.name for path in (folder / "snapshots").iterdir()] == [image_id]
