"""The same with real guests: a server with a libvirt host and a simulated one is killed again and again (B3)."""

from __future__ import annotations

import asyncio
import os
import random
import re
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Final

import pytest
import pytest_asyncio

from stateward.agent.libvirt.daemons import LibvirtPlace, own, stop_own
from stateward.domain.states import Observed
from stateward.guest.build import MEMORY, TINY_GUEST_PROPERTIES, GuestFiles, build
from tests.crash.fleet import Fleet, Kind
from tests.crash.truth import check_everything, simulated_guests
from tests.harness import Admin, ServerProcess

pytestmark = [pytest.mark.asyncio, pytest.mark.guests, pytest.mark.slow, pytest.mark.timeout(1800)]

REAL, SIMULATED = "real", "simulated"
KILLS: Final = 30
#: Seconds a real guest gets to shut down: some are given it in vain, for they are still booting.
SHUTDOWN: Final = 3
#: Seconds all operations have to end in, on a machine that has to emulate the guests' processors.
PATIENCE: Final = 180

#: virsh's words, of guests that nobody is doing anything to.
_SAYS: Final = {
    "running": Observed.RUNNING,
    "paused": Observed.PAUSED,
    "shut off": Observed.SHUTOFF,
    "saved": Observed.SUSPENDED,
    "crashed": Observed.CRASHED,
}
_ROW: Final = re.compile(r"^ *(?:-|\d+) +(?P<name>instance-\S+) +(?P<state>\S.*?) *$", re.MULTILINE)


@pytest.fixture
def folder() -> Iterator[Path]:
    """Give a folder with a path short enough for libvirt's sockets."""
    path = Path(tempfile.mkdtemp(prefix="stateward-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest_asyncio.fixture
async def place(folder: Path) -> AsyncIterator[LibvirtPlace]:
    """Give a libvirtd that outlives the servers."""
    if os.geteuid() != 0:
        pytest.skip("a libvirtd of the tests' own needs root")
    home = folder / "host"
    yield await own(home)
    await stop_own(home)


@pytest_asyncio.fixture
async def tiny_guest(request: pytest.FixtureRequest) -> GuestFiles:
    """Give the tiny guest's files, made once and kept over sessions."""
    cache = request.config.cache
    assert cache is not None
    return await build(cache.mkdir("tiny-guest"), print)


async def virsh(uri: str, *arguments: str) -> str:
    """Run virsh and return what it says."""
    process = await asyncio.create_subprocess_exec(
        "virsh", "--connect", uri, *arguments, stdout=asyncio.subprocess.PIPE
    )
    said = (await process.communicate())[0].decode()
    assert process.returncode == 0, said
    return said


async def real_guests(uri: str) -> dict[str, Observed]:
    """Return the account of virsh, by the guests' ids."""
    guests = dict[str, Observed]()
    for row in _ROW.finditer(await virsh(uri, "list", "--all", "--managed-save")):
        guests[(await virsh(uri, "domuuid", row["name"])).strip()] = _SAYS[row["state"]]
    return guests


async def kinds(admin: Admin, files: GuestFiles) -> list[Kind]:
    """Make what three real and twenty simulated servers are made from."""
    kernel = await admin.make_image("kernel", {}, data=files.kernel.read_bytes())
    ramdisk = await admin.make_image("ramdisk", {}, data=files.ramdisk.read_bytes())
    properties = {
        **TINY_GUEST_PROPERTIES,
        "kernel_id": kernel,
        "ramdisk_id": ramdisk,
        "os_shutdown_timeout": str(SHUTDOWN),
    }
    tiny = await admin.make_image("tiny", properties, kind="qcow2", data=files.disk.read_bytes())
    words = {"os_command_line": "stateward.shutdown=0.4", "os_shutdown_timeout": "1"}
    flavor = await admin.make_flavor("smallest", ram=MEMORY)
    return [
        Kind(zone=REAL, image=tiny, flavor=flavor, count=3),
        Kind(zone=SIMULATED, image=await admin.make_image("simulated", words), flavor=flavor, count=20),
    ]


async def test_killed_while_real_guests_change(
    folder: Path, place: LibvirtPlace, tiny_guest: GuestFiles
) -> None:
    """Three real guests and twenty simulated ones, thirty kills: states agree with virsh after each start."""
    settings = folder / "settings.toml"
    settings.write_text(
        f'[[host]]\nname = "{REAL}"\nzone = "{REAL}"\ndriver = "libvirt"\nuri = "{place.uri}"\n'
        f'[[host]]\nname = "{SIMULATED}"\nzone = "{SIMULATED}"\ndriver = "simulated"\n'
    )
    dice = random.Random(1)
    began = time.monotonic()
    asked, starts = 0, list[float]()
    async with ServerProcess(folder, ["--config", str(settings)]) as server:
        admin = Admin(server, await server.log_in("admin"))
        fleet = Fleet(
            server,
            kinds=await kinds(admin, tiny_guest),
            member=await server.log_in("demo"),
            admin=admin.login,
            seed=1,
        )

        async def guests() -> Mapping[str, Observed]:
            return await real_guests(place.uri) | simulated_guests(server.data / "hosts" / SIMULATED)

        await admin.hosts_up()
        await fleet.fill()
        for _ in range(KILLS):
            await fleet.work(clients=6, answers=dice.randint(1, 100))
            asked += len(fleet.accepted)
            if dice.random() < 0.3:
                await server.start_in_vain(dice.uniform(0.1, 2.0))
            await server.start()
            starts.append(server.took)
            await admin.hosts_up()
            await check_everything(admin, fleet, guests, seconds=PATIENCE, calls_outlive=True)
        await server.stop()
        assert server.faults() == []
    print(  # noqa: T201
        f"\n{KILLS} kills, {asked} accepted requests, {time.monotonic() - began:.1f} s; "
        f"a start took {max(starts):.1f} s at most"
    )
    assert len(await real_guests(place.uri)) >= 1
