"""Two machines that share a folder of disks, and a control plane apart from them: either machine can die alone.

``stateward serve`` runs all agents in its own process; here each has a wire to the control plane that can be cut, and
ends by itself.
"""

from __future__ import annotations

import functools
import random
import shutil
import sys
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final, TypeVar

import sqlalchemy as sa

from stateward.agent.agent import Agent
from stateward.agent.driver import ImageFiles
from stateward.agent.libvirt.driver import LibvirtDriver
from stateward.bus.memory import MemoryBus
from stateward.clock import SystemClock
from stateward.domain.hosts import Condition
from stateward.domain.locks import ActorKind
from stateward.domain.records import FlavorFacts, ImageFacts, Instance
from stateward.guest.build import MEMORY, TINY_GUEST_PROPERTIES
from stateward.operations.changes import Changes
from stateward.operations.creation import NewInstance, create
from stateward.operations.placing import Place
from stateward.plane import Plane, new_agent
from stateward.settings import (
    AgentSettings,
    DeathSettings,
    HostSettings,
    PlacementSettings,
    Settings,
)
from stateward.simulation.wire import Wire
from stateward.store import hosts, instances, operations
from stateward.store.engine import Database, Work, open_database
from stateward.store.hosts import Host
from stateward.store.schema import migrate
from stateward.store.tables import AUDIT
from tests.guests.conftest import DISK, KERNEL, RAMDISK
from tests.guests.machine import LONG, Machine
from tests.harness import until
from tests.rows import actor

T = TypeVar("T")

NAMES: Final = ("alpha", "beta")
ADMIN: Final = actor(ActorKind.ADMIN)

#: What an operator would have a management controller do: kills libvirtd, virtlogd and every guest of a machine at
#: once, returns when all are gone, and writes down who went, and when.
_FENCE: Final = """\
import os, select, signal, sys, time
from pathlib import Path

folder, host = Path(sys.argv[1]), sys.argv[2]
home = folder / host / "host"
processes = {}
for file in (*home.glob("run/qemu/*.pid"), *home.glob("libvirt/*.pid")):
    processes[int(file.read_text())] = file.stem
handles = {}
for process, name in processes.items():
    try:
        handles[name] = os.pidfd_open(process)
    except ProcessLookupError:
        pass
for handle in handles.values():
    try:
        signal.pidfd_send_signal(handle, signal.SIGKILL)
    except ProcessLookupError:
        pass
for handle in handles.values():
    if not select.select([handle], [], [], 30)[0]:
        sys.exit(f"{host} has power still")
with (folder / "fence.log").open("a") as log:
    print(time.time(), host, *sorted(handles), file=log)
print(f"{len(handles)} processes killed")
"""


class Side:
    """One machine with its agent."""

    def __init__(self, name: str, machine: Machine, wire: Wire) -> None:
        self.name = name
        self.machine = machine
        self.wire = wire
        self.agent: Agent | None = None


class Pair:
    """Both machines, and the control plane."""

    def __init__(self, folder: Path, images: ImageFiles) -> None:
        """Prepare them.

        Args:
            folder: gets everything; its path is short, for sockets.
            images: where the tiny guest comes from.
        """
        self.folder = folder
        self.shared = folder / "shared"
        self.leases = folder / "leases"
        program = folder / "fence.py"
        program.write_text(_FENCE)
        self.leases.mkdir()
        self.settings = Settings(
            agent=AgentSettings(relist=1.0, heartbeat=0.5),
            death=DeathSettings(
                # The agents are in this process too: one that stands still for seconds, on a busy machine, is heard of
                # late, and renews its lease late.
                silence=10.0,
                lease=str(self.leases),
                lease_seconds=10.0,
                fence=(sys.executable, "-I", "-S", str(program), str(folder), "{host}"),
                per_minute=6000.0,
            ),
            placement=PlacementSettings(reserved_memory=0, memory_ratio=16.0, cpu_ratio=64.0),
            host=tuple(HostSettings(name=name, shared=True) for name in NAMES),
        )
        self._images = images
        self._bus = MemoryBus()
        self.sides: dict[str, Side] = {}
        for name in NAMES:
            (folder / name).mkdir()
            wire = Wire(self._bus, random.Random(0))
            self.sides[name] = Side(name, Machine(folder / name), wire)
        self.database: Database
        self.plane: Plane
        self._undo = AsyncExitStack()

    async def start(self) -> None:
        """Put everything up, and wait until both hosts are heard of."""
        self.database = open_database(f"sqlite:///{self.folder / 'stateward.db'}")
        self._undo.push_async_callback(self.database.close)
        await migrate(self.database)
        self.plane = Plane(
            database=self.database,
            bus=self._bus,
            clock=SystemClock(),
            settings=self.settings,
            changes=Changes(),
        )
        self._undo.push_async_callback(self._bus.close)
        self._undo.push_async_callback(self.plane.stop)
        await self.plane.start()
        for name, side in self.sides.items():
            await self.database.write(functools.partial(hosts.register, name=name, zone="nova", shared=True))
            self._undo.push_async_callback(side.machine.end)
            await side.machine.boot()
            self._undo.push_async_callback(side.wire.close)
            self._undo.push_async_callback(self.kill_agent, name)
            await self.start_agent(name)
        for name in self.sides:
            await self.becomes(name, lambda host: host.seen_at is not None)

    async def stop(self) -> None:
        """Leave nothing."""
        await self._undo.aclose()

    async def start_agent(self, name: str) -> None:
        """Start a host's agent, with what ``stateward serve`` would start it with."""
        side = self.sides[name]
        side.agent = new_agent(
            name,
            driver=LibvirtDriver(
                uri=side.machine.uri,
                folder=self.shared,
                images=self._images,
                boot_id_file=side.machine.boot_id_file,
                own=self.folder / name,
            ),
            bus=side.wire,
            clock=SystemClock(),
            journal=self.folder / name / "journal.db",
            settings=self.settings,
        )
        await side.agent.start()

    async def kill_agent(self, name: str) -> None:
        """End a host's agent where it is; its guests run on."""
        side = self.sides[name]
        side.wire.hang_up()
        if side.agent is not None:
            await side.agent.stop()
            side.agent = None

    async def power_returns(self, name: str) -> None:
        """Have a machine boot that was fenced: its definitions are there, and no guest is on."""
        machine = self.sides[name].machine
        await machine.end()
        # A tmpfs on any real machine.
        shutil.rmtree(machine.home / "run")
        await machine.boot()

    async def make(self, name: str, host: str, *words: str) -> str:
        """Make an instance that runs, and return its id."""
        image = ImageFacts(id=DISK, disk_format="qcow2", properties=_properties(words))
        new = NewInstance(
            project_id="p",
            user_id="u",
            name=name,
            hostname=name,
            flavor=FlavorFacts(id="f", name="f", vcpus=1, ram=MEMORY, disk=0),
            image=image,
            place=Place(host=host),
        )
        made = await create(self.plane.admission, new, ADMIN, reservation_id="r")
        return made.instance.id

    async def look(self, work: Work[T]) -> T:
        """Read the database."""
        return await self.database.read(work)

    async def row(self, instance_id: str) -> Instance:
        """Return an instance's row."""
        found = await self.look(lambda connection: instances.get(connection, instance_id))
        assert found is not None
        return found

    async def host(self, name: str) -> Host:
        """Return a host's row."""
        found = await self.look(lambda connection: hosts.named(connection, name))
        assert found is not None
        return found

    async def settled(self, instance_id: str) -> Instance:
        """Wait until nothing is in flight, and return the row; it has no fault."""

        async def settled() -> Instance | None:
            row = await self.row(instance_id)
            return row if row.task_state is None else None

        row = await self.until(settled)
        assert row.fault is None, row.fault
        return row

    async def becomes(self, name: str, holds: Callable[[Host], bool] | Condition) -> Host:
        """Wait until a host is so, and return its row."""

        async def look() -> Host | None:
            host = await self.host(name)
            return (
                host if (host.condition is holds if isinstance(holds, Condition) else holds(host)) else None
            )

        return await self.until(look)

    async def until(self, look: Callable[[], Awaitable[T | None]]) -> T:
        """Wait until there is something."""
        lines = [
            f"{host.name}: {host.condition} {host.condition_detail}" for host in await self.look(hosts.every)
        ]
        return await until(look, seconds=LONG, says=lambda: "\n".join(lines))

    async def trail(self, event: str) -> list[tuple[float, str | None, dict[str, Any]]]:
        """Return the audit records of an event, oldest first: the time, the action and the details."""
        columns = AUDIT.c
        query = sa.select(columns.at, columns.action, columns.detail).where(columns.event == event)
        rows = await self.look(lambda connection: connection.execute(query.order_by(columns.number)).all())
        return [(row.at, row.action, row.detail) for row in rows]

    async def history(self, instance_id: str) -> list[str]:
        """Return what was done to an instance, where, and what came of it; oldest first."""
        found = await self.look(lambda connection: operations.of_instance(connection, instance_id))
        return [f"{each.action} on {each.host}: {each.state}" for each in reversed(found)]

    def said(self, instance_id: str) -> list[str]:
        """Return the lines that a guest has said on its console, all its boots."""
        log = self.shared / "instances" / instance_id / "console.log"
        return log.read_text(errors="replace").splitlines() if log.exists() else []

    async def says(self, instance_id: str, *lines: str) -> None:
        """Wait until a guest has said these, in this order."""

        async def look() -> bool | None:
            rest = iter(self.said(instance_id))
            return True if all(f"stateward-guest: {line}" in rest for line in lines) else None

        await until(look, seconds=LONG, says=lambda: f"not {lines} in {self.said(instance_id)}")


def _properties(words: tuple[str, ...]) -> dict[str, str]:
    command_line = " ".join((TINY_GUEST_PROPERTIES["os_command_line"], *words))
    return {"kernel_id": KERNEL, "ramdisk_id": RAMDISK, "os_command_line": command_line}
