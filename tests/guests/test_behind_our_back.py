"""What happens to real guests behind our back: seen in milliseconds, judged, and put right (R11-R13, B8)."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import statistics
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Final

import libvirt
import msgspec
import pytest
import pytest_asyncio

from stateward.guest.build import MEMORY
from tests.crash.real import real_guests, tiny_image
from tests.guests.conftest import TinyImages
from tests.guests.machine import LONG, Cloud, Machine, table
from tests.harness import Admin, ServerProcess, until

pytestmark = [pytest.mark.asyncio, pytest.mark.guests, pytest.mark.slow, pytest.mark.timeout(600)]

#: Times that a guest is halted and let run to see how soon that is noted.
TOGGLES: Final = 60
#: How often that is done at most.
ROUNDS: Final = 3
#: Seconds within which 99 of 100 changes are noted, where the hypervisor tells of them (B8).
AT_ONCE: Final = 0.25
#: Or, where the machine takes longer for everything, so many times what 99 of 100 plain requests take there.
REQUESTS: Final = 10
#: Seconds between two sweeps, which would note what no event tells of.
RELIST: Final = 60


@pytest_asyncio.fixture
async def machine(folder: Path) -> AsyncIterator[Machine]:
    """Give a machine of the test's own."""
    home = folder / "behind"
    home.mkdir(exist_ok=True)
    machine = Machine(home)
    await machine.boot()
    yield machine
    await machine.end()


@pytest.fixture
def small(swift_folder: Path) -> Iterator[Path]:
    """Have the server's instances on a disk of their own, which can be filled; mounted before libvirtd's namespace."""
    disk, host = swift_folder / "small", swift_folder / "data" / "hosts" / "one"
    for folder in (disk, host):
        folder.mkdir(parents=True)
    (swift_folder / "data").chmod(0o711)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256m,mode=755", "tmpfs", str(disk)], check=True)
    # What instances are made of is linked into their folders, so both are there.
    for name in ("instances", "base"):
        (disk / name).mkdir()
        (host / name).symlink_to(disk / name)
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


class Operator:
    """Somebody with a connection to the hypervisor."""

    def __init__(self, machine: Machine, cloud: Cloud) -> None:
        self.machine = machine
        self.cloud = cloud

    async def does(self, name: str, call: Callable[[libvirt.virDomain], Any]) -> float:
        """Do something to a guest and return when that was done."""

        def work() -> float:
            connection = libvirt.open(self.machine.uri)
            try:
                call(connection.lookupByUUIDString(self.cloud.ids[name]))
            finally:
                connection.close()
            return time.time()

        return await asyncio.to_thread(work)

    async def domain(self, name: str) -> str:
        """Return a guest's name at the hypervisor."""
        found: list[str] = []
        await self.does(name, lambda guest: found.append(guest.name()))
        return found[0]

    async def kills(self, name: str) -> float:
        """Kill a guest's QEMU and return when."""
        process, now = self.machine.process_of(await self.domain(name)), time.time()
        os.kill(process, signal.SIGKILL)
        return now


class Scenario(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that happens, and what follows."""

    name: str
    #: What the guest does by itself when it is up.
    script: bytes | None = None
    #: What is done to the guest first, by requests.
    first: tuple[tuple[str, Any], ...] = ()
    before: str
    act: Callable[[Operator, str], Awaitable[float]]
    #: The record, the guest, and by which verdict or operation.
    expected: tuple[str, str, str]


def by(call: Callable[[libvirt.virDomain], Any]) -> Callable[[Operator, str], Awaitable[float]]:
    """Return what an operator does by hand."""
    return lambda operator, name: operator.does(name, call)


async def saves(operator: Operator, name: str) -> float:
    """Save a guest's memory to a file of the operator's."""
    file = operator.cloud.server.data / "hosts/one/memory"
    return await operator.does(name, lambda guest: guest.save(str(file)))


async def by_itself(operator: Operator, name: str) -> float:
    """Wait until the guest, which was made so, goes off; return when it last said something."""
    console = operator.cloud.server.data / "hosts/one/instances" / operator.cloud.ids[name] / "console.log"

    async def look() -> bool | None:
        return True if operator.cloud.trail("verdict", name) else None

    await until(look, seconds=LONG, says=operator.cloud.server.tail)
    seen: float = operator.cloud.trail("verdict", name)[0]["seen_at"]
    # Restarted since, it may have said more.
    return min(console.stat().st_mtime, seen)


STOPPED: Final = (("os-stop", {"force": True}),)
SCENARIOS: Final = (
    Scenario(
        name="powers itself off", before="active", act=by_itself, expected=("stopped", "shutoff", "adopt")
    ),
    Scenario(
        name="its kernel panics",
        # Once: it must be found running afterwards, however long that takes.
        script=b"#!/bin/sh\n[ $(cat /data/boots) -gt 1 ] || { sleep 1; echo c >/proc/sysrq-trigger; }\n",
        before="active",
        act=by_itself,
        expected=("active", "running", "restore_start"),
    ),
    Scenario(
        name="QEMU killed",
        before="active",
        act=lambda operator, name: operator.kills(name),
        expected=("active", "running", "restore_start"),
    ),
    Scenario(
        name="virsh destroy",
        before="active",
        act=by(lambda guest: guest.destroy()),
        expected=("active", "running", "restore_start"),
    ),
    Scenario(
        name="virsh suspend",
        before="active",
        act=by(lambda guest: guest.suspend()),
        expected=("active", "running", "restore_unpause"),
    ),
    Scenario(
        name="virsh managedsave",
        before="active",
        act=by(lambda guest: guest.managedSave(0)),
        expected=("active", "running", "restore_resume"),
    ),
    Scenario(name="virsh save", before="active", act=saves, expected=("active", "shutoff", "alert")),
    Scenario(
        name="virsh resume",
        first=(("pause", None),),
        before="paused",
        act=by(lambda guest: guest.resume()),
        expected=("paused", "paused", "restore_pause"),
    ),
    Scenario(
        name="virsh start",
        first=STOPPED,
        before="stopped",
        act=by(lambda guest: guest.create()),
        expected=("stopped", "shutoff", "restore_stop"),
    ),
    Scenario(
        name="virsh start, suspended",
        first=(("suspend", None),),
        before="suspended",
        act=by(lambda guest: guest.create()),
        expected=("suspended", "suspended", "restore_suspend"),
    ),
    Scenario(
        name="virsh undefine",
        first=STOPPED,
        before="stopped",
        act=by(lambda guest: guest.undefineFlags(0)),
        expected=("stopped", "missing", "alert"),
    ),
)
#: Words for the kernels of those that do it at every boot.
WORDS: Final = {"powers itself off": "stateward.poweroff_after=1"}


async def cloud_of(server: ServerProcess, images: TinyImages, words: str = "") -> Cloud:
    """Wait for the host, and make what servers are made of."""
    admin = Admin(server, await server.log_in("admin"))
    await admin.hosts_up()
    await admin.make_flavor("smallest", ram=MEMORY)
    return Cloud(server, admin, await tiny_image(admin, images.files, shutdown=1, words=words))


async def test_each_is_seen_and_put_right(
    small: Path, machine: Machine, images: TinyImages, swift_folder: Path
) -> None:
    """One guest for each of the ways in which somebody else, or its own kernel, changes it.

    That changes are noted by events, and not by a sweep, is measured. On a machine at rest the limit is 250 ms for 99
    of 100 (B8); on one that is slow for minutes it is what is slow there in the same proportion. Sweeps are so rare
    here that no machine takes one for an event.
    """
    config = swift_folder / "settings.toml"
    config.write_text(machine.settings(f"[agent]\nrelist = {RELIST}\n"))
    async with ServerProcess(swift_folder, ("--config", str(config))) as server:
        cloud = await cloud_of(server, images)
        plain = cloud.image
        operator = Operator(machine, cloud)
        rows: list[tuple[str, ...]] = []
        took: list[float] = []
        for scenario in SCENARIOS:
            words = WORDS.get(scenario.name)
            cloud.image = (
                plain
                if words is None
                else await tiny_image(cloud.admin, images.files, shutdown=1, words=words)
            )
            seen, detect = await play(operator, scenario)
            took += [] if detect is None else [detect]
            rows.append(
                (
                    *seen,
                    "as expected" if seen[2:5] == scenario.expected else f"WRONG, not {scenario.expected}",
                )
            )
        cloud.image = plain
        rows.append(await fills_its_disk(operator, small))
        noted, asked = await how_soon(operator)
        print(  # noqa: T201 (asked for: with -s it is seen)
            table(
                "Behind our back:",
                ("what", "before", "record", "guest", "by", "seen in", "right in", ""),
                rows,
            ),
            f"{TOGGLES} changes noted within: median {statistics.median(noted) * 1000:.0f} ms, "
            f"p99 {percentile(noted) * 1000:.0f} ms, longest {max(noted) * 1000:.0f} ms",
            f"plain requests meanwhile took: median {statistics.median(asked) * 1000:.0f} ms, "
            f"p99 {percentile(asked) * 1000:.0f} ms; allowed to p99 therefore: {at_once(asked) * 1000:.0f} ms",
            f"the scenarios' guests seen within: median {statistics.median(took) * 1000:.0f} ms, "
            f"longest {max(took) * 1000:.0f} ms",
            sep="\n",
        )
        assert [row[0] for row in rows if row[-1] != "as expected"] == []
        assert percentile(noted) <= at_once(asked)
        await server.stop()
        assert server.faults() == []


def percentile(values: list[float]) -> float:
    """Return what 99 of 100 are not above."""
    return sorted(values)[max(round(len(values) * 0.99) - 1, 0)]


def at_once(asked: list[float]) -> float:
    """Return the seconds within which 99 of 100 changes must be noted, by what requests took meanwhile."""
    return min(max(AT_ONCE, REQUESTS * percentile(asked)), RELIST / 2)


async def play(operator: Operator, scenario: Scenario) -> tuple[tuple[str, ...], float | None]:
    """Play one, and return its row, and how soon it was seen."""
    cloud, name = operator.cloud, scenario.name
    await cloud.make(name, script=scenario.script)
    for action, body in scenario.first:
        await cloud.act(name, action, body)
        await cloud.admin.settled(seconds=LONG)
    at = await scenario.act(operator, name)

    async def judged() -> bool | None:
        return True if cloud.trail("verdict", name) else None

    await until(judged, seconds=LONG, says=cloud.server.tail)
    verdict = cloud.trail("verdict", name)[0]
    state = (await cloud.states())[name]
    right = None
    if verdict["verdict"] == "restore":
        restored = [
            each for each in cloud.trail("finished", name) if each["recorded_at"] > verdict["recorded_at"]
        ]
        right = restored[0]["recorded_at"] - at
    operations = await cloud.operations(name)
    done = next(
        (each["action"] for each in operations if each["actor"]["kind"] == "system"), verdict["verdict"]
    )
    guest = (await real_guests(operator.machine.uri)).get(cloud.ids[name])
    # What it does next would disturb those after it.
    await cloud.act(name, "forceDelete")
    del cloud.ids[name]
    await cloud.admin.settled(seconds=LONG)
    detect = max(verdict["seen_at"] - at, 0.0)
    row = (
        name,
        scenario.before,
        state,
        "missing" if guest is None else guest.value,
        done,
        f"{detect * 1000:.0f} ms",
        "-" if right is None else f"{right * 1000:.0f} ms",
    )
    return row, detect


async def fills_its_disk(operator: Operator, small: Path) -> tuple[str, ...]:
    """Have a guest write to a disk that the host has no room for: it is halted, and a person is told."""
    cloud, name = operator.cloud, "disk full"
    await cloud.make(name)
    # It is not up yet, and writes for the first time when it is.
    with (small / "ballast").open("wb") as ballast:
        try:
            while True:
                ballast.write(bytes(1 << 16))
                ballast.flush()
        except OSError:
            pass

    async def alerted() -> bool | None:
        return True if cloud.trail("verdict", name) else None

    await until(alerted, seconds=LONG, says=cloud.server.tail)
    verdict = cloud.trail("verdict", name)[0]
    state = (await cloud.states())[name]
    guest = (await real_guests(operator.machine.uri))[cloud.ids[name]].value
    (small / "ballast").unlink()
    await cloud.act(name, "forceDelete")
    del cloud.ids[name]
    await cloud.admin.settled(seconds=LONG)
    expected = (state, guest, verdict["verdict"], verdict["cause"]) == (
        "active",
        "paused",
        "alert",
        "io-error",
    )
    word = "as expected" if expected else f"WRONG: {verdict}"
    return (name, "active", state, guest, verdict["verdict"], "-", "-", word)


async def how_soon(operator: Operator) -> tuple[list[float], list[float]]:
    """Halt a guest and let it run, many times: return how soon each was noted in its row, in seconds.

    And what a request took before each.

    It is one in ERROR, whose changes are noted and not acted on. Where the machine itself stalled meanwhile it is done
    again: what no event tells of is late each time.
    """
    cloud, name = operator.cloud, "toggled"
    await cloud.make(name)
    await cloud.act(name, "os-resetState", {"state": "error"})
    connection = sqlite3.connect(cloud.server.data / "stateward.db")
    hypervisor = await asyncio.to_thread(libvirt.open, operator.machine.uri)
    guest = hypervisor.lookupByUUIDString(cloud.ids[name])
    found: list[float] = []
    asked: list[float] = []
    for number in range(ROUNDS * TOGGLES):
        if number % TOGGLES == 0:
            if number and percentile(found) <= at_once(asked):
                break
            found.clear()
            asked.clear()
        began = time.monotonic()
        await cloud.operations(name)
        asked.append(time.monotonic() - began)
        wanted = "running" if number % 2 else "paused"
        await asyncio.to_thread(guest.resume if number % 2 else guest.suspend)
        at = time.time()

        async def noted(wanted: str = wanted) -> bool | None:
            query = "SELECT observed FROM instances WHERE id = ?"
            return True if connection.execute(query, (cloud.ids[name],)).fetchone() == (wanted,) else None

        await until(noted, seconds=LONG, says=cloud.server.tail)
        found.append(time.time() - at)
    connection.close()
    hypervisor.close()
    return found, asked


async def test_a_hypervisor_or_an_agent_that_goes_away(
    machine: Machine, images: TinyImages, tmp_path: Path
) -> None:
    """Ten guests run on, and their records with them; what happened meanwhile is put right, and nothing else."""
    config = tmp_path / "settings.toml"
    config.write_text(machine.settings("[agent]\nrelist = 2\n"))
    names = [f"guest {number}" for number in range(10)]
    lines: list[tuple[str, ...]] = []
    async with ServerProcess(tmp_path, ("--config", str(config))) as server:
        cloud = await cloud_of(server, images)
        operator = Operator(machine, cloud)
        await cloud.make(*names)
        before = await processes(operator)

        await machine.stop_libvirtd()
        await machine.start_libvirtd()
        await reachable(cloud, reachable=True)
        await asyncio.sleep(5)
        lines.append(("libvirtd restarted", *await unchanged(operator, before)))

        await machine.stop_libvirtd()
        await reachable(cloud, reachable=False)
        os.kill(before[names[0]], signal.SIGKILL)
        await asyncio.sleep(30)
        away = [each["verdict"] for each in cloud.trail("verdict")]
        states = set((await cloud.states()).values())
        lines.append(("libvirtd away 30 s, one guest killed", *said(away == [] and states == {"active"})))
        await machine.start_libvirtd()
        at = time.time()
        took = await put_right(operator, {names[0]: "restore_start"}, at)
        lines.append(
            (f"  and back: put right in {took:.1f} s", *await unchanged(operator, before, but=names[:1]))
        )

        await server.stop()
        changed = {names[1]: "restore_start", names[2]: "restore_unpause", names[3]: "restore_resume"}
        await operator.does(names[1], lambda guest: guest.destroy())
        await operator.does(names[2], lambda guest: guest.suspend())
        await operator.does(names[3], lambda guest: guest.managedSave(0))
        at = time.time()
        await server.start()
        took = await put_right(operator, changed, at)
        lines.append(
            (
                f"agent stopped while three changed: put right in {took:.1f} s",
                *await unchanged(operator, before, but=names[:4]),
            )
        )
        print(table("Away and back, ten guests:", ("what", "the others", ""), lines))  # noqa: T201 (with -s it is seen)
        assert [line[0] for line in lines if line[-1] != "as expected"] == []
        await server.stop()
        assert server.faults() == []


def said(holds: bool) -> tuple[str, str]:  # noqa: FBT001 (a word is made of it)
    return ("unchanged", "as expected") if holds else ("changed", "WRONG")


async def processes(operator: Operator) -> dict[str, int]:
    """Return the process of each guest that runs."""
    found: dict[str, int] = {}
    for name in operator.cloud.ids:
        found[name] = operator.machine.process_of(await operator.domain(name))
    return found


async def unchanged(
    operator: Operator, before: dict[str, int], but: list[str] | None = None
) -> tuple[str, str]:
    """Say whether all guests run, and all but some by the same processes and with nothing done to them."""
    left = [name for name in before if name not in (but or [])]
    now = await processes(operator)
    states = set((await operator.cloud.states()).values())
    done = [len(await operator.cloud.operations(name)) for name in left]
    same = all(now[name] == before[name] for name in left)
    return said(same and states == {"active"} and set(done) == {1})


async def put_right(operator: Operator, wanted: dict[str, str], at: float) -> float:
    """Wait until each was restored, and return the seconds that took."""
    cloud = operator.cloud
    last: dict[str, list[str]] = {}

    async def look() -> bool | None:
        for name in wanted:
            last[name] = [f"{each['action']} {each['state']}" for each in await cloud.operations(name)]
        return True if all(last[name][0] == f"{wanted[name]} succeeded" for name in wanted) else None

    await until(look, seconds=LONG, says=lambda: f"{last}\n{cloud.server.tail()}")
    return time.time() - at


async def reachable(cloud: Cloud, *, reachable: bool) -> None:
    """Wait until the host's hypervisor answers, or does not."""

    async def look() -> bool | None:
        answer = await cloud.admin.ask("GET", "/readyz")
        return True if (answer.body["hosts"]["one"] == "up") is reachable else None

    await until(look, seconds=LONG, says=cloud.server.tail)
