"""The same with real guests: a server with a libvirt host and a simulated one is killed again and again (B3)."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import pytest

from stateward.agent.libvirt.daemons import LibvirtPlace
from stateward.domain.states import Observed
from stateward.guest.build import MEMORY, GuestFiles
from tests.crash.fleet import Fleet, Kind
from tests.crash.real import real_guests, tiny_image
from tests.crash.truth import check_everything, simulated_guests
from tests.harness import Admin, ServerProcess

pytestmark = [pytest.mark.asyncio, pytest.mark.guests, pytest.mark.slow, pytest.mark.timeout(1800)]

REAL, SIMULATED = "real", "simulated"
KILLS: Final = 30
#: Seconds a real guest gets to shut down: some are given it in vain, for they are still booting.
SHUTDOWN: Final = 3
#: Seconds all operations have to end in, on a machine that has to emulate the guests' processors.
PATIENCE: Final = 180


async def kinds(admin: Admin, files: GuestFiles) -> list[Kind]:
    """Make what three real and twenty simulated servers are made from."""
    tiny = await tiny_image(admin, files, shutdown=SHUTDOWN)
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
    asked, starts, seen = 0, list[float](), set[str]()
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
        await admin.settled(seconds=PATIENCE)
        seen.update(await real_guests(place.uri))
        assert len(seen) == 3
        for _ in range(KILLS):
            await fleet.work(clients=6, answers=dice.randint(1, 100))
            asked += len(fleet.accepted)
            if dice.random() < 0.3:
                await server.start_in_vain(dice.uniform(0.1, 2.0))
            await server.start()
            starts.append(server.took)
            await admin.hosts_up()
            await check_everything(admin, fleet, guests, seconds=PATIENCE, calls_outlive=True)
            seen.update(await real_guests(place.uri))
        await server.stop()
        assert server.faults() == []
    print(  # noqa: T201
        f"\n{KILLS} kills, {asked} accepted requests, {time.monotonic() - began:.1f} s; "
        f"a start took {max(starts):.1f} s at most; {len(seen)} real guests took part"
    )
