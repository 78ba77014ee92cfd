"""The files that instances' disks are, on real qcow2 files without guests: bytes, sizes, and what goes wrong."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import stat
import sys
import threading
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from stateward.agent.disk_image import read_image
from stateward.agent.driver import DriverError
from stateward.agent.libvirt.bases import Bases
from stateward.agent.libvirt.disks import Disks
from stateward.agent.libvirt.snapshots import Snapshots, convert
from stateward.agent.libvirt.tools import qemu_img, run, whole
from stateward.domain.records import GuestSpec, ImageFacts
from tests.agent.images import FolderImages

pytestmark = pytest.mark.asyncio

MIB = 1024**2
GIB = 1024**3
BYTES = os.urandom(MIB)


class Bench:
    """A host's folder and an image store with a raw image and a qcow2 one of the same bytes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "host"
        self.store = folder / "images"
        self.store.mkdir()
        (self.store / "raw").write_bytes(BYTES)
        self.images = FolderImages(self.store)
        self.disks = Disks(self.folder, self.images)
        self.snapshots = Snapshots(self.folder / "snapshots", self.images)

    def home(self, spec: GuestSpec) -> Path:
        """Return an instance's folder."""
        return self.folder / "instances" / spec.instance_id

    def left(self, spec: GuestSpec) -> list[str]:
        """Return the names of an instance's disks."""
        return sorted(path.name for path in self.home(spec).iterdir() if path.is_file())

    async def content(self, disk: Path) -> bytes:
        """Return the first MiB of what a guest would read."""
        out = self.folder / "out.raw"
        await qemu_img("test", "convert", "-f", "qcow2", "-O", "raw", str(disk), str(out))
        with out.open("rb") as file:
            return file.read(MIB)

    async def write(self, disk: Path, data: bytes) -> None:
        """Write as a guest would, to the beginning."""
        source = self.folder / "data"
        source.write_bytes(data)
        await run(
            "test",
            "qemu-utils",
            "qemu-io",
            "-f",
            "qcow2",
            "-c",
            f"write -s {source} 0 {len(data)}",
            str(disk),
        )


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """Give a host without guests."""
    return Bench(tmp_path)


def spec_of(image: str = "raw", disk: int = 0, disk_format: str | None = None) -> GuestSpec:
    """Make a spec that nobody used before; disk in GiB."""
    return GuestSpec(
        instance_id=str(uuid.uuid4()),
        domain_name="instance",
        display_name="a guest",
        project_id="p",
        vcpus=1,
        memory=64,
        disk=disk,
        image=ImageFacts(id=image, disk_format=disk_format or image, properties={}),
    )


async def test_a_kept_disk_has_the_old_bytes_when_it_comes_back(bench: Bench) -> None:
    spec = spec_of()
    await bench.disks.prepare(spec)
    disk = bench.disks.disk(spec.instance_id)
    await bench.write(disk, b"old" * 512)
    await bench.disks.keep(spec.instance_id, 7)
    await bench.write(disk, b"new" * 512)
    await bench.disks.keep(spec.instance_id, 7)
    await bench.disks.grow(replace(spec, disk=1))
    assert (await bench.content(disk)).startswith(b"new" * 512)
    assert read_image(disk, "qcow2").virtual_size == GIB
    await bench.disks.give_back(spec.instance_id)
    assert await bench.content(disk) == b"old" * 512 + BYTES[1536:]
    assert read_image(disk, "qcow2").virtual_size == MIB
    assert bench.left(spec) == ["disk.qcow2"]


async def test_what_an_operation_kept_is_known_by_its_name(bench: Bench) -> None:
    """Keeping again keeps the first bytes; a later operation's take their place, whole or not at all."""
    spec = spec_of()
    await bench.disks.prepare(spec)
    disk = bench.disks.disk(spec.instance_id)
    for fence, data in ((7, b"first"), (7, b"again"), (11, b"later")):
        await bench.write(disk, data.ljust(512))
        await bench.disks.keep(spec.instance_id, fence)
    assert bench.left(spec) == ["disk.kept.11", "disk.qcow2"]
    assert await bench.content(bench.home(spec) / "disk.kept.11") == b"later".ljust(512) + BYTES[512:]
    await bench.disks.drop_kept(spec.instance_id, 11)
    assert bench.disks.kept(spec.instance_id) == {11}
    await bench.disks.drop_kept(spec.instance_id, 12)
    assert bench.left(spec) == ["disk.qcow2"]


async def test_the_disk_that_was_kept_last_comes_back(bench: Bench) -> None:
    """A killed agent can leave an older one besides; it goes."""
    spec = spec_of()
    await bench.disks.prepare(spec)
    disk = bench.disks.disk(spec.instance_id)
    await bench.write(disk, b"older".ljust(512))
    await bench.disks.keep(spec.instance_id, 7)
    older = (bench.home(spec) / "disk.kept.7").read_bytes()
    await bench.write(disk, b"newer".ljust(512))
    await bench.disks.keep(spec.instance_id, 11)
    (bench.home(spec) / "disk.kept.7").write_bytes(older)
    await bench.write(disk, b"grown".ljust(512))
    await bench.disks.give_back(spec.instance_id)
    assert bench.left(spec) == ["disk.qcow2"]
    assert await bench.content(disk) == b"newer".ljust(512) + BYTES[512:]


async def test_a_kept_disk_stands_on_its_image_over_a_rebuild(bench: Bench) -> None:
    (bench.store / "other").write_bytes(b"o" * MIB)
    spec = spec_of()
    await bench.disks.prepare(spec)
    await bench.disks.keep(spec.instance_id, 7)
    await bench.disks.discard(spec.instance_id)
    await bench.disks.prepare(replace(spec, image=ImageFacts(id="other", disk_format="raw")))
    disk = bench.disks.disk(spec.instance_id)
    assert await bench.content(disk) == b"o" * MIB
    await bench.disks.give_back(spec.instance_id)
    assert await bench.content(disk) == BYTES


async def test_a_discarded_disk_gives_its_image_back(bench: Bench) -> None:
    spec = spec_of()
    await bench.disks.prepare(spec)
    assert (bench.store / "raw").stat().st_nlink == 3
    await bench.disks.discard(spec.instance_id)
    assert bench.left(spec) == []
    assert (bench.store / "raw").stat().st_nlink == 2


async def test_what_the_flavor_gives_besides_goes_with_the_disk(bench: Bench) -> None:
    """A rebuilt instance begins with empty ones, as Nova's does."""
    spec = replace(spec_of(), ephemeral=1, swap=8)
    await bench.disks.prepare(spec)
    assert bench.left(spec) == ["disk.qcow2", "ephemeral0.raw", "swap.raw"]
    (bench.home(spec) / "ephemeral0.raw").write_bytes(b"old")
    for _ in range(2):
        await bench.disks.discard(spec.instance_id)
    assert bench.left(spec) == []
    await bench.disks.prepare(spec)
    assert (bench.home(spec) / "ephemeral0.raw").stat().st_size == GIB


async def test_a_disk_knows_the_image_that_it_was_made_over(bench: Bench) -> None:
    """However it was written to, kept, grown and put back since; a link to the next image does not make it of that."""
    (bench.store / "other").write_bytes(b"o" * MIB)
    spec = spec_of()
    other = replace(spec, image=ImageFacts(id="other", disk_format="raw"))
    assert not await bench.disks.is_over_image(spec)
    await bench.disks.prepare(spec)
    await bench.write(bench.disks.disk(spec.instance_id), b"new" * 512)
    await bench.disks.keep(spec.instance_id, 7)
    await bench.disks.grow(replace(spec, disk=1))
    await bench.disks.give_back(spec.instance_id)
    (bench.home(spec) / "images" / "other").hardlink_to(bench.store / "other")
    assert await bench.disks.is_over_image(spec)
    assert not await bench.disks.is_over_image(other)
    await bench.disks.discard(spec.instance_id)
    assert not await bench.disks.is_over_image(other)
    await bench.disks.prepare(other)
    assert await bench.disks.is_over_image(other)
    assert await bench.content(bench.disks.disk(spec.instance_id)) == b"o" * MIB


@pytest.mark.parametrize("left", ["no link", "no disk", "half a disk", "no overlay"])
async def test_a_disk_that_was_half_removed_is_of_no_image(bench: Bench, left: str) -> None:
    """It would not boot, or with what nobody knows."""
    spec = spec_of()
    await bench.disks.prepare(spec)
    disk = bench.disks.disk(spec.instance_id)
    if left == "no link":
        (bench.home(spec) / "images" / "raw").unlink()
    elif left == "no disk":
        disk.rename(disk.with_name("disk.qcow2.0.part"))
    elif left == "half a disk":
        disk.write_bytes(disk.read_bytes()[:16])
    else:
        await qemu_img("test", "create", "-q", "-f", "qcow2", str(disk), "1M")
    assert not await bench.disks.is_over_image(spec)
    await bench.disks.discard(spec.instance_id)
    await bench.disks.prepare(spec)
    assert await bench.disks.is_over_image(spec)
    assert bench.left(spec) == ["disk.qcow2"]
    assert await bench.content(disk) == BYTES


async def test_a_disk_that_cannot_be_read_is_not_taken_for_another(bench: Bench) -> None:
    """The guest may have written to it: the operation fails instead."""
    spec = spec_of()
    await bench.disks.prepare(spec)
    disk = bench.disks.disk(spec.instance_id)
    disk.unlink()
    disk.mkdir()
    with pytest.raises(DriverError, match=r"^The instance's disk .* cannot be read: Is a directory\.$"):
        await bench.disks.is_over_image(spec)


async def test_a_rescue_disk_has_its_images_size_and_goes_with_its_links(bench: Bench) -> None:
    spec = spec_of(disk=2)
    rescued = replace(spec, rescue=spec.image)
    await bench.disks.prepare(spec)
    await bench.disks.prepare_rescue(rescued)
    rescue = bench.disks.files(rescued).disk
    assert read_image(rescue, "qcow2").virtual_size == MIB
    assert bench.disks.files(rescued).further == (("vdb", bench.disks.disk(spec.instance_id), "qcow2"),)
    assert await bench.content(rescue) == BYTES
    await bench.disks.discard_rescue(spec.instance_id)
    assert bench.left(spec) == ["disk.qcow2"]
    assert await bench.content(bench.disks.disk(spec.instance_id)) == BYTES


async def test_a_rescue_image_with_a_kernel_boots_it(bench: Bench) -> None:
    for name in ("kernel", "ramdisk"):
        (bench.store / name).write_bytes(name.encode())
    rescue = ImageFacts(
        id="raw", disk_format="raw", properties={"kernel_id": "kernel", "ramdisk_id": "ramdisk"}
    )
    spec = replace(spec_of(), rescue=rescue)
    await bench.disks.prepare(spec)
    await bench.disks.prepare_rescue(spec)
    files = bench.disks.files(spec)
    assert files.kernel is not None
    assert files.ramdisk is not None
    assert (files.kernel.read_bytes(), files.ramdisk.read_bytes()) == (b"kernel", b"ramdisk")
    own = bench.disks.files(replace(spec, rescue=None))
    assert (own.kernel, own.ramdisk) == (None, None)


async def test_a_snapshot_is_whole_in_itself(bench: Bench) -> None:
    spec = spec_of(disk=1)
    await bench.disks.prepare(spec)
    disk = bench.disks.disk(spec.instance_id)
    await bench.write(disk, b"mine" * 128)

    async def write(part: Path) -> None:
        await convert(disk, part)

    await bench.snapshots.make("image", write)
    await bench.write(disk, b"later" * 128)
    await bench.snapshots.make("image", write)
    file = bench.snapshots.file("image")
    assert not read_image(file, "qcow2").refers
    assert await bench.content(file) == b"mine" * 128 + BYTES[512:]
    await bench.snapshots.publish("image")
    assert list(file.parent.iterdir()) == []
    assert await bench.content(bench.store / "image") == b"mine" * 128 + BYTES[512:]


async def refused(bench: Bench, spec: GuestSpec) -> str:
    """Look at an image that no disk can be made over; say why not, by either name that it may have."""
    rescued = replace(spec, image=replace(spec.image, id="raw", disk_format="raw"), rescue=spec.image, disk=0)
    with pytest.raises(DriverError) as refusal:
        await bench.disks.check(spec)
    if "too small" not in str(refusal.value):
        with pytest.raises(DriverError) as other:
            await bench.disks.check_rescue(rescued)
        assert str(other.value) == str(refusal.value)
    home = bench.home(spec)
    assert not (home / "images.next").exists()
    return str(refusal.value)


async def test_an_image_found_good_is_there_when_the_disk_is_made(bench: Bench) -> None:
    """Though it was deleted meanwhile, and the disk before it gave all its images back; then nothing holds it."""
    (bench.store / "next").write_bytes(b"n" * MIB)
    spec = spec_of()
    await bench.disks.prepare(spec)
    spec = replace(spec, image=ImageFacts(id="next", disk_format="raw"), rescue=spec.image)
    for _ in range(2):
        await bench.disks.check(spec)
    assert bench.left(spec) == ["disk.qcow2"]
    (bench.store / "next").unlink()
    await bench.disks.discard(spec.instance_id)
    await bench.disks.prepare(spec)
    assert await bench.content(bench.disks.disk(spec.instance_id)) == b"n" * MIB
    assert not (bench.home(spec) / "images.next").exists()
    await bench.disks.check_rescue(spec)
    (bench.store / "raw").unlink()
    await bench.disks.discard_rescue(spec.instance_id)
    await bench.disks.prepare_rescue(spec)
    assert await bench.content(bench.home(spec) / "disk.rescue") == BYTES
    assert not (bench.home(spec) / "images.next").exists()
    await bench.disks.remove(spec.instance_id)
    assert list((bench.folder / "base").iterdir()) == []


async def test_an_image_larger_than_the_flavors_disk_is_refused(bench: Bench) -> None:
    with (bench.store / "raw").open("r+b") as file:
        file.truncate(GIB + 512)
    spec = spec_of(disk=1)
    with pytest.raises(DriverError) as refusal:
        await bench.disks.prepare(spec)
    assert str(refusal.value) == (
        "Flavor's disk is too small for requested image. "
        f"Flavor disk is {GIB} bytes, image is {GIB + 512} bytes. "
        "Take a larger flavor, or a smaller image."
    )
    assert bench.left(spec) == []
    assert await refused(bench, spec) == str(refusal.value)
    await bench.disks.prepare(replace(spec, disk=2))
    await bench.disks.prepare(spec_of(disk=0))


def _cut(image: bytearray) -> bytearray:
    return image[: len(image) // 2]


def _cut_early(image: bytearray) -> bytearray:
    """Leave so little that nothing says any more that there was something."""
    return image[: 3 * 65536]


def _scribble(image: bytearray) -> bytearray:
    """Point the first table, whose place the header says at byte 40, at nonsense."""
    table = int.from_bytes(image[40:48], "big")
    image[table : table + 8] = (0x0012_3456_789A_0001).to_bytes(8, "big")
    return image


def _header(image: bytearray) -> bytearray:
    return image[:40] + b"\xff" * 16 + image[56:]


@pytest.mark.parametrize("damage", [_cut, _cut_early, _scribble, _header])
async def test_a_broken_image_is_refused_with_what_to_do(
    bench: Bench, damage: Callable[[bytearray], bytearray]
) -> None:
    image = bench.store / "qcow2"
    await qemu_img("test", "convert", "-O", "qcow2", "-f", "raw", str(bench.store / "raw"), str(image))
    whole_image = image.read_bytes()
    await bench.disks.prepare(spec_of("qcow2"))
    (bench.store / "broken").write_bytes(damage(bytearray(whole_image)))
    spec = spec_of("broken", disk_format="qcow2")
    for _ in range(2):
        assert (await refused(bench, spec)).startswith("The image is broken, upload it again: ")
        with pytest.raises(DriverError, match=r"^The image is broken, upload it again: "):
            await bench.disks.prepare(spec)
    assert bench.left(spec) == []
    assert not (bench.folder / "base" / "broken").exists()


async def test_an_image_linked_as_a_kernel_first_is_looked_at_all_the_same(bench: Bench) -> None:
    """What an image refers to would be read from this host, however the image came here."""
    hostile = bench.store / "hostile"
    await qemu_img(
        "test", "create", "-f", "qcow2", "-F", "raw", "-b", "/etc/hostname", "-u", str(hostile), "1M"
    )
    first = spec_of()
    first = replace(first, image=replace(first.image, properties={"kernel_id": "hostile"}))
    await bench.disks.prepare(first)
    with pytest.raises(DriverError, match="refers to another file"):
        await bench.disks.prepare(spec_of("hostile", disk_format="qcow2"))
    assert "refers to another file" in await refused(bench, spec_of("hostile", disk_format="qcow2"))


@pytest.mark.parametrize("part", ["kernel_id", "ramdisk_id"])
@pytest.mark.parametrize("name", ["/etc/hostname", "../disk.qcow2", "../../other/disk.qcow2", "..", ".", ""])
async def test_a_kernel_is_an_image_and_no_file_of_the_host(bench: Bench, part: str, name: str) -> None:
    """A property of an image is any text; what it names is shown to the guest."""
    (bench.store / "kernel").write_bytes(b"kernel")
    spec = spec_of()
    hostile = ImageFacts(id="raw", disk_format="raw", properties={"kernel_id": "kernel"} | {part: name})
    with pytest.raises(DriverError) as refusal:
        await bench.disks.prepare(replace(spec, image=hostile))
    assert str(refusal.value) == f"{name!r} is not the id of an image."
    await bench.disks.prepare(spec)
    with pytest.raises(DriverError) as refusal:
        bench.disks.files(replace(spec, image=hostile))
    assert str(refusal.value) == f"{name!r} is not the id of an image."


@pytest.fixture
def full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Give what makes a program write something of its last argument and then find the disk full."""
    folder = tmp_path / "bin"
    folder.mkdir()

    def fill(program: str) -> None:
        script = folder / program
        script.write_text(
            # What it writes is the last path among its arguments; a size may come after it.
            "#!/bin/sh\nfor each; do case $each in /*) part=$each ;; esac; done\n"
            '[ "$1" = resize ] || echo half >"$part"\n'
            f'echo "{program}: error while writing: No space left on device" >&2\nexit 1\n'
        )
        script.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    return fill


FULL = r"the host's disk is full\. Free some of it, and try again\.$"


async def test_a_full_disk_is_said_and_leaves_nothing(bench: Bench, full: Callable[[str], None]) -> None:
    """Whatever the disk was needed for; the instance is as it was."""
    spec, new = spec_of(), spec_of()
    await bench.disks.prepare(spec)
    disk = bench.disks.disk(spec.instance_id)
    before = disk.read_bytes()
    full("qemu-img")
    full("cp")

    async def write(part: Path) -> None:
        await convert(disk, part)

    calls: dict[str, Callable[[], Awaitable[None]]] = {
        "cannot be made in": lambda: bench.disks.prepare(new),
        "cannot be kept": lambda: bench.disks.keep(spec.instance_id, 7),
        "cannot be made larger": lambda: bench.disks.grow(replace(spec, disk=1)),
        "cannot be copied": lambda: bench.snapshots.make("image", write),
        "cannot be made": lambda: bench.disks.prepare_rescue(replace(spec, rescue=spec.image)),
    }
    for doing, call in calls.items():
        with pytest.raises(DriverError, match=f"{doing}.*{FULL}"):
            await call()
    assert bench.left(new) == []
    assert bench.left(spec) == ["disk.qcow2"]
    assert disk.read_bytes() == before
    assert list((bench.folder / "snapshots").iterdir()) == []


async def test_a_program_that_fails_is_quoted(bench: Bench) -> None:
    spec = spec_of()
    await bench.disks.prepare(spec)
    bench.disks.disk(spec.instance_id).write_bytes(b"no disk")
    with pytest.raises(DriverError, match=r"cannot be made larger: qemu-img: .*not in qcow2 format"):
        await bench.disks.grow(replace(spec, disk=1))


async def test_what_a_killed_agent_began_is_made_anew(bench: Bench) -> None:
    spec = spec_of()
    home = bench.home(spec)
    home.mkdir(parents=True)
    for name in ("disk.qcow2.0.part", "disk.kept.7.0.part", "disk.kept.6.0.part"):
        (home / name).write_bytes(b"half")
    await bench.disks.prepare(spec)
    await bench.disks.keep(spec.instance_id, 7)
    assert bench.left(spec) == ["disk.kept.7", "disk.qcow2"]
    assert (home / "disk.kept.7").read_bytes() == (home / "disk.qcow2").read_bytes()


async def test_a_file_is_private_and_whole_or_not_there(tmp_path: Path) -> None:
    target = tmp_path / "file"

    async def cancelled() -> None:
        async with whole(target, "It cannot be made") as part:
            part.write_bytes(b"half")
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await cancelled()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(DriverError, match=r"^It cannot be made: No such file or directory\.$"):
        async with whole(target, "It cannot be made"):
            pass
    async with whole(target, "It cannot be made") as part:
        part.write_bytes(b"whole")
        assert not target.exists()
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert target.read_bytes() == b"whole"


async def _runs(pid: int) -> bool:
    try:
        return (Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]) != "Z"
    except FileNotFoundError:
        return False


async def _pid(file: Path) -> int:
    async with asyncio.timeout(60):
        while not (file.exists() and file.read_text().endswith("\n")):  # noqa: ASYNC110 - a file has no event
            await asyncio.sleep(0.01)
    return int(file.read_text())


async def test_a_program_is_killed_with_who_waits_for_it(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    task = asyncio.create_task(run("Test", "dash", "sh", "-c", f"echo $$ >{file}; exec sleep 600"))
    pid = await _pid(file)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not await _runs(pid)


async def test_a_program_dies_with_its_agent(tmp_path: Path) -> None:
    """One that outlived it would write into what the next agent makes anew."""
    file = tmp_path / "pid"
    agent = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        "import asyncio\nfrom stateward.agent.libvirt.tools import run\n"
        f"asyncio.run(run('Test', 'dash', 'sh', '-c', 'echo $$ >{file}; exec sleep 600'))",
    )
    pid = await _pid(file)
    agent.send_signal(signal.SIGKILL)
    await agent.wait()
    async with asyncio.timeout(60):
        while await _runs(pid):  # noqa: ASYNC110 - the process is init's now
            await asyncio.sleep(0.01)


async def test_hosts_that_share_a_folder_leave_each_other_their_bases(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One tidies up while another makes a copy, to which nobody has a link yet."""
    bench = Bench(tmp_path)
    one, two = (Bases(bench.folder / "base", bench.images) for _ in range(2))
    begun, go = threading.Event(), threading.Event()

    def copy(source: Path, part: Path) -> None:
        part.parent.mkdir(parents=True)
        shutil.copyfile(source, part)
        begun.set()
        go.wait(30)

    monkeypatch.setattr("stateward.agent.libvirt.bases._link_or_copy", copy)
    making = asyncio.create_task(one.link("raw", tmp_path / "link", "raw"))
    assert await asyncio.to_thread(begun.wait, 30)
    tidying = [asyncio.create_task(two.unlink(tmp_path / "nothing")) for _ in range(2)]
    await asyncio.wait(tidying, timeout=0.2)
    # One that waits is given up: what it gets in the end holds up nobody.
    tidying[0].cancel()
    go.set()
    await making
    await tidying[1]
    assert (tmp_path / "link").read_bytes() == BYTES
    assert [path.name for path in (bench.folder / "base").iterdir()] == ["raw"]
    await two.unlink(tmp_path / "nothing")
