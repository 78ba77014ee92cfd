"""A whole host loses its power and boots: ten real guests in six states, each as it was to be (R14)."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import pytest
import pytest_asyncio

from stateward.guest.build import MEMORY
from tests.crash.real import real_guests, tiny_image
from tests.guests.conftest import TinyImages
from tests.guests.machine import LONG, Cloud, Machine, table
from tests.harness import Admin, ServerProcess, until

pytestmark = [pytest.mark.asyncio, pytest.mark.guests, pytest.mark.slow, pytest.mark.timeout(600)]

#: By each server's name: the record before, the record and the guest after, and what was done last.
EXPECTED: Final[dict[str, tuple[str, str, str, str]]] = {
    "first": ("active", "active", "running", "boot_start"),
    "ran": ("active", "active", "running", "boot_start"),
    "ran too": ("active", "active", "running", "boot_start"),
    "locked": ("active", "stopped", "shutoff", "adopt"),
    "paused": ("paused", "stopped", "shutoff", "adopt"),
    "suspended": ("suspended", "suspended", "suspended", "suspend"),
    "stopped": ("stopped", "stopped", "shutoff", "stop_force"),
    "stopped too": ("stopped", "stopped", "shutoff", "stop_force"),
    "rescued": ("rescued", "rescued", "running", "boot_rescue"),
    "resized": ("resized", "resized", "running", "boot_start_resized"),
}


@pytest_asyncio.fixture
async def machine(folder: Path) -> AsyncIterator[Machine]:
    """Give a machine of the test's own."""
    machine = Machine(folder / "rebooted")
    (folder / "rebooted").mkdir()
    await machine.boot()
    yield machine
    await machine.end()


async def prepare(cloud: Cloud) -> None:
    """Bring the ten into their states."""
    await cloud.make("first", metadata={"stateward:boot_priority": "9"})
    await cloud.make(*(name for name in EXPECTED if name != "first"))
    await cloud.act("paused", "pause")
    await cloud.act("suspended", "suspend")
    await cloud.act("stopped", "os-stop", {"force": True})
    await cloud.act("stopped too", "os-stop", {"force": True})
    await cloud.act("rescued", "rescue")
    await cloud.act("resized", "resize", {"flavorRef": "larger"})
    await cloud.become({name: before for name, (before, *_) in EXPECTED.items()})
    await cloud.act("locked", "lock", {"locked_reason": "as it is"})


async def test_a_host_reboots(machine: Machine, images: TinyImages, tmp_path: Path) -> None:
    """Every process of it killed at once, libvirtd, ten guests and the server; then another boot."""
    config = tmp_path / "settings.toml"
    config.write_text(machine.settings("[boot]\nparallel = 2\ndelay = 0.5\n[agent]\nrelist = 2\n"))
    async with ServerProcess(tmp_path, ("--config", str(config))) as server:
        admin = Admin(server, await server.log_in("admin"))
        await admin.hosts_up()
        await admin.make_flavor("smallest", ram=MEMORY)
        await admin.make_flavor("larger", ram=MEMORY + 32)
        cloud = Cloud(server, admin, await tiny_image(admin, images.files, shutdown=1))
        await prepare(cloud)

        await server.kill()
        await machine.lose_power()
        await machine.boot()
        began = time.time()
        await server.start()

        async def over() -> bool | None:
            return True if cloud.trail("host.restarted") else None

        await until(over, seconds=LONG, says=server.tail)
        await cloud.become({name: after for name, (_, after, *_) in EXPECTED.items()})
        guests = await real_guests(machine.uri)
        done = {name: (await cloud.operations(name)) for name in EXPECTED}
        said = {name: (await cloud.explained(name))["causes"][0]["message"] for name in ("first", "locked")}
        (booted,) = cloud.trail("host.booted")
        (restarted,) = cloud.trail("host.restarted")
        seen = {
            name: (
                before,
                (await cloud.states())[name],
                guests[cloud.ids[name]].value,
                next(each["action"] for each in done[name] if each["action"] != "lock"),
            )
            for name, (before, *_) in EXPECTED.items()
        }
        rows = [
            (
                name,
                *EXPECTED[name],
                *seen[name][1:],
                "as expected" if seen[name] == EXPECTED[name] else "WRONG",
            )
            for name in EXPECTED
        ]
        print(  # noqa: T201 (asked for: with -s it is seen)
            table(
                "A host that rebooted:",
                ("guest", "before", "expected", "", "by", "seen", "", "by", ""),
                rows,
            ),
            f"inventory judged {booted['recorded_at'] - began:.2f} s after the server's start, "
            f"all started {restarted['recorded_at'] - began:.2f} s after it",
            f"plan: {booted['plan']}, priorities {booted['priorities']}, two at once",
            f"first: {said['first']}",
            f"locked: {said['locked']}",
            sep="\n",
        )
        assert seen == EXPECTED
        assert booted["plan"] == {"start": 5, "adopt": 2, "leave": 0, "in flight": 0, "table": 3}
        assert booted["priorities"] == [[9, 1], [0, 4]]
        starts = {
            name: done[name][0]["started_at"] for name in ("first", "ran", "ran too", "rescued", "resized")
        }
        assert min(starts, key=lambda name: starts[name]) == "first"
        assert said["first"] == "Its host has rebooted and it ran before; it is started again."
        await server.stop()
        assert server.faults() == []
