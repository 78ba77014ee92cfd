"""The libvirt driver on libvirt's own test driver, ``test:///default``: real libvirt, guests made of air.

What it lacks: a console (``capabilities.console_log``), and guests end with the last connection
(``Rig.outlives``). Disks are real qcow2 files all the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import re
import shutil
import struct
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import libvirt
import msgspec
import pytest
import pytest_asyncio

from stateward.agent.driver import DriverError
from stateward.agent.libvirt import adoption, guests
from stateward.agent.libvirt.driver import LibvirtDriver
from stateward.domain.records import GuestSpec, ImageFacts
from stateward.domain.states import Cause, Observed
from stateward.server import Server
from stateward.settings import HostSettings, Settings
from tests.agent.contract import Changes, DriverContract, Rig
from tests.agent.contract_adoption import AdoptionContract
from tests.agent.contract_disks import DiskContract
from tests.agent.images import FolderImages
from tests.harness import until

IMAGE = "6c7f1d1e-9f5c-4a0c-8f4e-2f3a54a0b001"
URI = "test:///default"
MIB = 1024**2
#: A domain that somebody made without Stateward.
STRANGER = """
<domain type='test'><name>theirs-{guest}</name><uuid>{guest}</uuid><memory unit='MiB'>64</memory><vcpu>1</vcpu>
<os><type>hvm</type></os><on_poweroff>restart</on_poweroff><on_crash>restart</on_crash><devices>
<disk type='file' device='disk'><source file='/nowhere'/><target dev='vda' bus='virtio'/></disk>
<disk type='file' device='cdrom'><target dev='hda' bus='ide'/></disk>
<interface type='network'><mac address='aa:bb:cc:00:00:01'/><source network='default'/></interface>
</devices></domain>"""


@pytest.fixture
def images(tmp_path: Path) -> FolderImages:
    """Give an image store with one raw image of 1 MiB."""
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / IMAGE).write_bytes(bytes(MIB))
    return FolderImages(folder)


@pytest.fixture
def new_spec() -> Callable[..., GuestSpec]:
    """Give a maker of specs that nobody used before."""

    def make(disk: int = 0, disk_format: str = "raw", **properties: str) -> GuestSpec:
        instance_id = str(uuid.uuid4())
        return GuestSpec(
            instance_id=instance_id,
            domain_name=f"instance-{instance_id[:8]}",
            display_name="a <guest> & more",
            project_id="p1",
            vcpus=1,
            memory=64,
            disk=disk,
            image=ImageFacts(id=IMAGE, disk_format=disk_format, properties=properties),
        )

    return make


@pytest_asyncio.fixture
async def rig(tmp_path: Path, images: FolderImages, new_spec: Callable[..., GuestSpec]) -> AsyncIterator[Rig]:
    """Give an opened driver."""
    changes = Changes()
    driver = LibvirtDriver(uri=URI, folder=tmp_path / "data", images=images)
    await driver.open(changes)
    yield Rig(driver=driver, changes=changes, spec=new_spec, outlives=False, measures=False)
    _as_new()
    await driver.close()
    # The test driver's world ends with the last object that refers to it; one in a reference cycle would carry
    # it over into the next test.
    gc.collect()


def _as_new() -> None:
    """Leave the test driver's world as it begins: the traceback of a test that failed carries it over."""
    connection = libvirt.open(URI)
    for domain in connection.listAllDomains():
        if domain.name() == "test":
            if domain.state()[0] == libvirt.VIR_DOMAIN_PAUSED:
                domain.resume()
            continue
        persistent = domain.isPersistent()
        if domain.isActive():
            domain.destroy()
        if persistent:
            domain.undefineFlags(
                libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
            )
    connection.close()


@pytest.fixture
def operator(rig: Rig) -> Iterator[libvirt.virConnect]:
    """Give an operator's own connection to the same hypervisor, as ``virsh`` has one."""
    del rig
    connection = libvirt.open(URI)
    yield connection
    connection.close()


class TestContract(DriverContract):
    """The contract on the test driver."""


@pytest.mark.slow
class TestDisks(DiskContract):
    """What it says of disks, on real files."""


class Hand:
    """An operator who makes domains with ``virsh``."""

    def __init__(self, connection: libvirt.virConnect) -> None:
        self._connection = connection

    def make(self, *, autostart: bool = False, transient: bool = False) -> str:
        """Make a domain that runs, and starts anew whatever ends it."""
        guest = str(uuid.uuid4())
        definition = STRANGER.format(guest=guest)
        if transient:
            self._connection.createXML(definition)
            return guest
        domain = self._connection.defineXML(definition)
        domain.create()
        domain.setAutostart(int(autostart))
        return guest

    def is_as_made(self, guest: str, *, autostart: bool) -> bool:
        """Say whether it has its own definition, and nothing of ours, as it runs and as it is defined."""
        domain = self._connection.lookupByUUIDString(guest)
        made = ["restart", "restart"]
        return domain.autostart() == autostart and all(
            "stateward" not in text and re.findall("<on_(?:poweroff|crash)>(.*?)<", text) == made
            for text in (domain.XMLDesc(), domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
        )

    def life(self, guest: str) -> object:
        """Return its number, which each start gives anew."""
        return self._connection.lookupByUUIDString(guest).ID()


@pytest.fixture
def by_hand(operator: libvirt.virConnect) -> Hand:
    """Give an operator."""
    return Hand(operator)


class TestAdoption(AdoptionContract):
    """What it says of domains that somebody else made."""


@pytest.mark.asyncio
async def test_domains_that_are_not_ours_are_left_out(rig: Rig, operator: libvirt.virConnect) -> None:
    """The operator's own guest is neither listed, found nor touched."""
    theirs = operator.lookupByName("test")
    assert await rig.driver.list() == []
    assert (await rig.driver.get(theirs.UUIDString())).observed is Observed.MISSING
    await rig.driver.power_off(theirs.UUIDString())
    assert theirs.isActive()


@pytest.mark.asyncio
async def test_a_copy_of_our_domain_is_not_ours(rig: Rig, operator: libvirt.virConnect) -> None:
    """A clone made by other tools has our metadata, and an id of its own."""
    instance_id = await rig.defined()
    definition = operator.lookupByUUIDString(instance_id).XMLDesc()
    name = definition.split("<name>")[1].split("</name>")[0]
    copy = str(uuid.uuid4())
    operator.defineXML(
        definition.replace(f"<uuid>{instance_id}</uuid>", f"<uuid>{copy}</uuid>").replace(
            f"<name>{name}</name>", "<name>copy</name>"
        )
    )
    assert [guest.instance_id for guest in await rig.driver.list()] == [instance_id]
    assert (await rig.driver.get(copy)).observed is Observed.MISSING


@pytest.mark.asyncio
async def test_what_an_operator_does_is_told_by_name(rig: Rig, operator: libvirt.virConnect) -> None:
    """Changes made behind our back are told with the guest's id, and those of foreign guests not at all."""
    instance_id = await rig.running()
    # A list tells who is whose only until the next event of a definition, so ours must have come before it.
    await rig.changes.after(1)
    await rig.driver.list()
    assert rig.changes.seen == [None, None]
    theirs = operator.lookupByName("test")
    count = len(rig.changes.seen)
    theirs.suspend()
    operator.lookupByUUIDString(instance_id).suspend()
    # By an event: a relist would come much later. How fast is measured by the bench.
    async with asyncio.timeout(rig.patience):
        while instance_id not in rig.changes.seen[count:]:
            await rig.changes.after(len(rig.changes.seen))
    assert (await rig.until(instance_id, Observed.PAUSED)).cause is Cause.OPERATOR
    assert theirs.UUIDString() not in rig.changes.seen


@pytest.mark.asyncio
async def test_what_happens_to_a_guest_not_known_yet_has_all_looked_at(
    rig: Rig, operator: libvirt.virConnect
) -> None:
    """An event between a definition's and the next list can name nobody, and is told all the same."""
    instance_id = await rig.running()
    await rig.changes.after(1)
    operator.lookupByUUIDString(instance_id).suspend()
    await rig.changes.after(2)
    assert rig.changes.seen == [None, None, None]


@pytest.mark.asyncio
async def test_a_definition_without_our_metadata_is_brought_back(
    rig: Rig, operator: libvirt.virConnect
) -> None:
    """Somebody who edits our element away makes the guest missing until it is defined again."""
    spec = rig.spec()
    await rig.driver.prepare_disk(spec)
    await rig.driver.define(spec)
    await rig.driver.list()
    domain = operator.lookupByUUIDString(spec.instance_id)
    definition = domain.XMLDesc()
    head, rest = definition.split("<metadata>")
    operator.defineXML(head + rest.split("</metadata>")[1])
    async with asyncio.timeout(rig.patience):
        while True:
            count = len(rig.changes.seen)
            if not await rig.driver.list():
                break
            await rig.changes.after(count)
    await rig.driver.define(spec)
    assert (await rig.driver.get(spec.instance_id)).observed is Observed.SHUTOFF


@pytest.mark.asyncio
async def test_a_definition_says_what_must_not_happen(rig: Rig, operator: libvirt.virConnect) -> None:
    """The hypervisor restarts nothing by itself, and what users typed is text."""
    instance_id = await rig.defined()
    domain = operator.lookupByUUIDString(instance_id)
    definition = domain.XMLDesc()
    assert not domain.autostart()
    assert "<on_poweroff>destroy</on_poweroff>" in definition
    assert "<on_crash>destroy</on_crash>" in definition
    assert "<title>a &lt;guest&gt; &amp; more</title>" in definition


@pytest.mark.asyncio
async def test_deleting_an_image_takes_no_instance_its_ground(
    rig: Rig, images: FolderImages, tmp_path: Path
) -> None:
    """An instance's disk stands on the instance's own link to the image's bytes."""
    spec = rig.spec()
    await rig.driver.prepare_disk(spec)
    base = tmp_path / "data" / "instances" / spec.instance_id / "images" / IMAGE
    assert base.samefile(images.folder / IMAGE)
    (images.folder / IMAGE).unlink()
    assert base.stat().st_size == MIB


@pytest.mark.asyncio
async def test_a_base_that_nobody_needs_goes_with_the_last_instance(
    rig: Rig, images: FolderImages, tmp_path: Path
) -> None:
    """Space is freed when neither the image nor an instance of it is left."""
    first, second = await rig.defined(), await rig.defined()
    (images.folder / IMAGE).unlink()
    base = tmp_path / "data" / "base" / IMAGE
    await rig.driver.remove(first)
    assert base.exists()
    await rig.driver.remove(second)
    assert not base.exists()


@pytest.mark.asyncio
async def test_a_disk_is_never_made_twice(rig: Rig, tmp_path: Path) -> None:
    """Preparing a disk that is there leaves every byte of it."""
    spec = rig.spec()
    await rig.driver.prepare_disk(spec)
    disk = tmp_path / "data" / "instances" / spec.instance_id / "disk.qcow2"
    disk.write_bytes(b"the customer's data")
    await rig.driver.prepare_disk(spec)
    assert disk.read_bytes() == b"the customer's data"


@pytest.mark.asyncio
@pytest.mark.parametrize(("flavor", "size"), [(0, MIB), (1, 1024 * MIB)])
async def test_a_disk_is_as_large_as_flavor_and_image_want(
    rig: Rig, new_spec: Callable[..., GuestSpec], tmp_path: Path, flavor: int, size: int
) -> None:
    """The larger of the two."""
    spec = new_spec(disk=flavor)
    await rig.driver.prepare_disk(spec)
    head = (tmp_path / "data" / "instances" / spec.instance_id / "disk.qcow2").read_bytes()[:32]
    assert struct.unpack(">Q", head[24:32]) == (size,)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "header",
    [
        pytest.param(struct.pack(">4sIQIIQ40x", b"QFI\xfb", 2, 512, 11, 16, MIB), id="backing-file"),
        pytest.param(
            struct.pack(">4sIQIIQ40xQ", b"QFI\xfb", 3, 0, 0, 16, MIB, 1 << 2), id="external-data-file"
        ),
    ],
)
async def test_an_image_that_refers_to_a_file_of_the_host_is_refused(
    rig: Rig, images: FolderImages, new_spec: Callable[..., GuestSpec], header: bytes
) -> None:
    """A hostile image cannot show its guest the host's files."""
    (images.folder / IMAGE).write_bytes(header)
    with pytest.raises(DriverError, match="refers to another file"):
        await rig.driver.prepare_disk(new_spec(disk_format="qcow2"))


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("disk_format", "why"), [("qcow2", "is not"), ("vmdk", "Convert the image"), ("iso", "Convert the image")]
)
async def test_an_image_of_another_format_is_refused(
    rig: Rig, new_spec: Callable[..., GuestSpec], disk_format: str, why: str
) -> None:
    """With what to do about it."""
    with pytest.raises(DriverError, match=why):
        await rig.driver.prepare_disk(new_spec(disk_format=disk_format))


@pytest.mark.asyncio
async def test_an_image_that_is_not_there_is_named(rig: Rig, images: FolderImages) -> None:
    """The image store's own words reach the user."""
    (images.folder / IMAGE).unlink()
    with pytest.raises(DriverError, match=IMAGE):
        await rig.driver.prepare_disk(rig.spec())


@pytest.mark.asyncio
async def test_without_qemu_img_the_package_is_named(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is missing on the host is said with its package."""
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(DriverError, match="qemu-utils"):
        await rig.driver.prepare_disk(rig.spec())


@pytest.mark.asyncio
async def test_a_console_gives_its_last_mebibyte_over_both_files(rig: Rig, tmp_path: Path) -> None:
    """The file that was begun last comes last, and no more than is promised is given."""
    spec = rig.spec()
    await rig.driver.prepare_disk(spec)
    home = tmp_path / "data" / "instances" / spec.instance_id
    (home / "console.log.0").write_bytes(b"o" * MIB)
    (home / "console.log").write_bytes(b"new")
    console = await rig.driver.console(spec.instance_id)
    assert console == b"o" * (MIB - 3) + b"new"


@pytest.mark.asyncio
async def test_a_libvirt_that_is_away_is_said_to_be(tmp_path: Path, images: FolderImages) -> None:
    """Opening works, asking does not, and the sentence names where it was looked for."""
    driver = LibvirtDriver(
        uri=f"qemu+unix:///system?socket={tmp_path}/none", folder=tmp_path / "data", images=images
    )
    await driver.open(Changes())
    try:
        with pytest.raises(DriverError, match=f"{tmp_path}/none"):
            await driver.list()
    finally:
        await driver.close()


@pytest.mark.asyncio
async def test_only_a_guests_own_host_says_that_it_is_thawed(tmp_path: Path) -> None:
    """Another one that shares its folder has no such guest, which is not to say that it is off."""
    marks = [tmp_path / folder / "frozen" / str(uuid.uuid4()) for folder in ("shared", "hosts/one")]
    for mark in marks:
        mark.parent.mkdir(parents=True)
        mark.touch()
    settings = Settings(host=(HostSettings(name="one", uri=URI, shared=True),), network=())
    server = Server(data=tmp_path, listen=("127.0.0.1", 0), settings=settings, progress=lambda _line: None)
    await server.start()

    async def thawed() -> bool | None:
        return True if not marks[1].exists() else None

    try:
        await until(thawed, seconds=60.0, says=lambda: "still marked")
    finally:
        await server.stop()
    assert marks[0].exists()


def _threads() -> list[str]:
    """Return the names of this process's threads, as the kernel has them."""
    found: list[str] = []
    for task in Path("/proc/self/task").iterdir():
        # Others end meanwhile.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found.append((task / "comm").read_text(encoding="ascii"))
    return found


@pytest.mark.asyncio
async def test_a_closed_driver_leaves_no_thread(rig: Rig) -> None:
    """Nothing is left in libvirt's C code when Python ends."""
    await rig.driver.close()

    async def look() -> bool | None:
        return True if not any(each.startswith("libvirt") for each in _threads()) else None

    # The kernel has a thread a moment longer than Python.
    await until(look, seconds=60, says=lambda: f"still there: {_threads()}")
    await rig.driver.open(rig.changes)


def test_the_tools_that_disks_are_made_with_are_there() -> None:
    """The tests above would fail by their sentence; this one says why in a word."""
    assert shutil.which("qemu-img")


@pytest.mark.asyncio
async def test_a_name_that_is_taken_is_told_apart_by_the_id(rig: Rig, operator: libvirt.virConnect) -> None:
    """Two installations on one host both have a first instance."""
    first, second = rig.spec(), rig.spec()
    second = msgspec.structs.replace(second, domain_name=first.domain_name)
    for spec in (first, second, second):
        await rig.driver.prepare_disk(spec)
        await rig.driver.define(spec)
    names = [operator.lookupByUUIDString(spec.instance_id).name() for spec in (first, second)]
    assert names == [first.domain_name, f"{first.domain_name}-{second.instance_id[:8]}"]


@pytest.mark.asyncio
async def test_a_guest_that_goes_off_while_it_is_marked_is_marked(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or the operation that found it shutting down would fail, though what it wants has come true."""
    spec = rig.spec()
    await rig.driver.prepare_disk(spec)
    await rig.driver.define(spec)
    await rig.driver.power_on(spec.instance_id)
    store = libvirt.virDomain.setMetadata

    def late(domain: libvirt.virDomain, *arguments: Any) -> int:
        if domain.isActive():
            domain.destroy()
        return store(domain, *arguments)

    monkeypatch.setattr(libvirt.virDomain, "setMetadata", late)
    await rig.driver.mark_fence(spec.instance_id, 7)
    guest = await rig.driver.get(spec.instance_id)
    assert (guest.observed, guest.fence) == (Observed.SHUTOFF, 7)


@pytest.mark.parametrize(("module", "name"), [(guests, "mark_fence"), (adoption, "adopt")])
@pytest.mark.asyncio
async def test_a_mark_taken_away_as_it_is_stored_is_not_believed(
    rig: Rig, operator: libvirt.virConnect, monkeypatch: pytest.MonkeyPatch, module: ModuleType, name: str
) -> None:
    """The event of it can overtake the answer of the call that stored it; no further one would ever put it right."""
    spec = rig.spec()
    await rig.driver.prepare_disk(spec)
    await rig.driver.define(spec)
    await rig.changes.after(0)
    store = getattr(module, name)
    loop = asyncio.get_running_loop()

    def taken_away(*arguments: Any) -> object:
        answer = store(*arguments)
        head, rest = operator.lookupByUUIDString(spec.instance_id).XMLDesc().split("<metadata>")
        count = len(rig.changes.seen)
        operator.defineXML(head + rest.split("</metadata>")[1])
        asyncio.run_coroutine_threadsafe(rig.changes.after(count), loop).result()
        return answer

    monkeypatch.setattr(module, name, taken_away)
    await (rig.driver.adopt(spec) if name == "adopt" else rig.driver.mark_fence(spec.instance_id, 7))
    assert (await rig.driver.get(spec.instance_id)).observed is Observed.MISSING
    assert await rig.driver.list() == []


class Killed(Exception):
    """Nothing more is done: the agent was killed here."""


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.asyncio
async def test_killed_at_any_call_of_adopting_and_giving_back(
    rig: Rig,
    by_hand: Hand,
    monkeypatch: pytest.MonkeyPatch,
    after: bool,  # noqa: FBT001 (a parameter of the test)
) -> None:
    """Before or after each call that changes something: repeated, both end as if nothing had been, and it runs on."""
    left = [0]

    def kills(method: Callable[..., int]) -> Callable[..., int]:
        def call(*arguments: Any) -> int:
            left[0] -= 1
            if left[0] == 0 and not after:
                raise Killed
            result = method(*arguments)
            if left[0] == 0:
                raise Killed
            return result

        return call

    for name in ("setMetadata", "setAutostart", "setLifecycleAction"):
        monkeypatch.setattr(libvirt.virDomain, name, kills(getattr(libvirt.virDomain, name)))

    async def killed(number: int, act: Callable[[], Awaitable[None]]) -> bool:
        """Have it killed at its call of this number, and repeat it; return whether it has so many."""
        left[0] = number
        try:
            await act()
        except Killed:
            await act()
            return True
        return False

    calls = {"adopt": 0, "release": 0}
    for number in range(1, 9):
        left[0] = 0
        guest = by_hand.make(autostart=True)
        life = by_hand.life(guest)
        spec = msgspec.structs.replace(rig.spec(), instance_id=guest)
        calls["adopt"] += await killed(number, functools.partial(rig.driver.adopt, spec))
        assert (await rig.driver.get(guest)).observed is Observed.RUNNING
        calls["release"] += await killed(number, functools.partial(rig.driver.release, guest))
        assert by_hand.life(guest) == life
        assert by_hand.is_as_made(guest, autostart=True)
    assert calls == {"adopt": 4, "release": 4}
