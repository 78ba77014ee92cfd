"""Real guests: a libvirtd of the tests' own, and the tiny guest in an image store of files.

Needs root (the libvirtd gets a mount namespace of its own), libvirt and QEMU; the first run downloads the guest's
kernel from Debian and keeps it in pytest's cache.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import tempfile
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import libvirt
import pytest
import pytest_asyncio

from stateward.agent.libvirt.daemons import LibvirtPlace, own, stop_own
from stateward.agent.libvirt.driver import LibvirtDriver
from stateward.agent.libvirt.host import Accelerator
from stateward.domain.networks import Network, NetworkKind
from stateward.domain.records import GuestSpec, ImageFacts
from stateward.guest.agent import AGENT_GUEST_PROPERTIES, build_ramdisk
from stateward.guest.build import MEMORY, TINY_GUEST_PROPERTIES, GuestFiles, build
from tests.agent.contract import Changes, Rig
from tests.agent.images import FolderImages

DISK, KERNEL, RAMDISK, AGENT_RAMDISK = (
    str(uuid.uuid5(uuid.NAMESPACE_URL, name))
    for name in ("disk", "kernel", "ramdisk", "ramdisk with an agent")
)

#: Makes a spec whose guest is started with some words more for its kernel.
NewSpec = Callable[..., GuestSpec]


class TinyImages(FolderImages):
    """An image store that has the tiny guest's three files, as copies that libvirt may give to another user."""

    def __init__(self, files: GuestFiles, folder: Path) -> None:
        super().__init__(folder)
        self.files = files
        for image_id, path in ((DISK, files.disk), (KERNEL, files.kernel), (RAMDISK, files.ramdisk)):
            shutil.copyfile(path, folder / image_id)


@pytest.fixture(scope="session")
def folder() -> Iterator[Path]:
    """Give a folder of the session's with a path short enough for sockets."""
    path = Path(tempfile.mkdtemp(prefix="stateward-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="session")
def place(folder: Path) -> Iterator[LibvirtPlace]:
    """Give a libvirtd of the session's own."""
    home = folder / "host"
    yield asyncio.run(own(home))
    asyncio.run(stop_own(home))


@pytest.fixture(scope="session")
def network(place: LibvirtPlace) -> Iterator[Network]:
    """Give a NAT network of the session's own: other sessions on this machine may run, with networks of theirs."""
    name = f"stateward-{os.getpid()}"
    connection = libvirt.open(place.uri)
    _make_network(connection, name)
    connection.close()
    yield Network(name=name, kind=NetworkKind.NAT, source=name)
    # On a connection of its own: the first one's daemon was stopped and started by the tests since.
    connection = libvirt.open(place.uri)
    with contextlib.suppress(libvirt.libvirtError):
        connection.networkLookupByName(name).destroy()
    with contextlib.suppress(libvirt.libvirtError):
        connection.networkLookupByName(name).undefine()
    connection.close()


def _make_network(connection: libvirt.virConnect, name: str) -> libvirt.virNetwork:
    """Define a network on a subnet that nobody on this machine has; whoever needs it starts it."""
    for number in random.sample(range(256), 256):
        definition = f"""
            <network><name>{name}</name><forward mode='nat'/><bridge stp='off' delay='0'/>
            <ip address='10.213.{number}.1' netmask='255.255.255.0'>
            <dhcp><range start='10.213.{number}.2' end='10.213.{number}.254'/></dhcp></ip></network>"""
        made = connection.networkDefineXML(definition)
        try:
            made.create()
        except libvirt.libvirtError:
            made.undefine()
        else:
            made.destroy()
            return made
    msg = "every subnet of 10.213.0.0/16 is taken on this machine"
    raise RuntimeError(msg)


@pytest.fixture(scope="session")
def images(folder: Path, request: pytest.FixtureRequest) -> TinyImages:
    """Give the tiny guest, built once and cached over sessions."""
    cache = request.config.cache
    assert cache is not None
    files = asyncio.run(build(cache.mkdir("tiny-guest"), print))
    store = folder / "images"
    store.mkdir()
    return TinyImages(files, store)


@pytest.fixture
def new_spec() -> NewSpec:
    """Give a maker of specs that nobody used before."""

    def make(*arguments: str, ramdisk_id: str = RAMDISK) -> GuestSpec:
        instance_id = str(uuid.uuid4())
        command_line = " ".join((TINY_GUEST_PROPERTIES["os_command_line"], *arguments))
        return GuestSpec(
            instance_id=instance_id,
            domain_name=f"instance-{instance_id[:8]}",
            display_name="tiny",
            project_id="p1",
            vcpus=1,
            memory=MEMORY,
            disk=0,
            image=ImageFacts(
                id=DISK,
                disk_format="qcow2",
                properties={"kernel_id": KERNEL, "ramdisk_id": ramdisk_id, "os_command_line": command_line},
            ),
        )

    return make


@pytest.fixture(scope="session")
def agent_ramdisk(images: TinyImages, request: pytest.FixtureRequest) -> str:
    """Give the id of a ramdisk with Debian's agent, built once and cached over sessions."""
    cache = request.config.cache
    assert cache is not None
    path = asyncio.run(build_ramdisk(cache.mkdir("tiny-guest"), print))
    shutil.copyfile(path, images.folder / AGENT_RAMDISK)
    return AGENT_RAMDISK


@pytest.fixture
def agent_spec(agent_ramdisk: str, new_spec: NewSpec) -> GuestSpec:
    """Give a guest with Debian's agent."""
    words = AGENT_GUEST_PROPERTIES["os_command_line"].split()
    return new_spec(words[-1], ramdisk_id=agent_ramdisk)


@pytest.fixture
def accelerator() -> Accelerator:
    """Say how guests are run; a test can have another answer by parametrising this indirectly."""
    return Accelerator.AUTO


@pytest_asyncio.fixture
async def rig(  # noqa: PLR0917 - fixtures are handed over by name
    place: LibvirtPlace,
    images: TinyImages,
    new_spec: NewSpec,
    tmp_path: Path,
    accelerator: Accelerator,
    network: Network,
) -> AsyncIterator[Rig]:
    """Give an opened driver; what guests a test leaves are removed."""
    changes = Changes()
    driver = LibvirtDriver(uri=place.uri, folder=tmp_path, images=images, accelerator=accelerator)
    await driver.open(changes)
    yield Rig(driver=driver, changes=changes, spec=new_spec, network=network)
    for guest in await driver.list():
        await driver.power_off(guest.instance_id)
        await driver.remove(guest.instance_id)
    await driver.close()


@pytest.fixture
def operator(place: LibvirtPlace) -> Iterator[libvirt.virConnect]:
    """Give an operator's own connection to the same hypervisor, as ``virsh`` has one."""
    connection = libvirt.open(place.uri)
    yield connection
    connection.close()
