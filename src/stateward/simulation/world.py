"""The cluster of a simulation: control plane and agents, hosts that can die, and clocks that can be wrong."""

from __future__ import annotations

import asyncio
import functools
import math
import random
import shutil
import tempfile
import uuid
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeVar

import msgspec

from stateward.agent.agent import Agent
from stateward.agent.simulated import SimulatedDriver, SimulatedHypervisor
from stateward.agent.simulated.guests import SimulatedGuest
from stateward.agent.simulated.hypervisor import HostSize
from stateward.bus.memory import MemoryBus
from stateward.domain.locks import ActorKind
from stateward.domain.records import Actor, Instance
from stateward.operations.changes import Changes
from stateward.plane import Plane, Power, new_agent
from stateward.settings import Settings
from stateward.simulation.log import Log, Teller, guest_says, state_of
from stateward.simulation.script import HostLine
from stateward.simulation.wire import Wire
from stateward.store import hosts, instances, operations
from stateward.store.engine import Database, StoreUnavailable, Work, open_database
from stateward.store.schema import migrate

T = TypeVar("T")

#: 2026-01-01T00:00:00Z: what time it is when the loop's clock says zero.
BEGIN: Final = 1_767_225_600.0
#: Seconds that each call of a hypervisor takes.
_LATENCY: Final = 0.01
#: Virtual seconds after which the beginning of a script counts as impossible.
_PATIENCE: Final = 3600.0
#: A folder in memory, where there is one: what is killed here is no machine, so nothing need reach a disk.
_MEMORY: Final = Path("/dev/shm")  # noqa: S108 (only folders of our own, with names of their own, are made in it)


class WallClock:
    """A machine's clock, which can be wrong by so many seconds."""

    def __init__(self) -> None:
        """Begin right."""
        self.wrong = 0.0

    def now(self) -> float:
        """Return seconds since the epoch."""
        return BEGIN + asyncio.get_running_loop().time() + self.wrong


class ToldDatabase:
    """The database, which says what was committed, and can be away."""

    def __init__(self, database: Database, teller: Teller) -> None:
        """Use a database."""
        self.dialect = database.dialect
        self.away = False
        self._database = database
        self._teller = teller

    async def read(self, work: Work[T]) -> T:
        """Read."""
        self._check()
        return await self._database.read(work)

    async def look(self, work: Work[T]) -> T:
        """Read for the simulation itself, also while nobody else can."""
        return await self._database.read(work)

    async def write(self, work: Work[T]) -> T:
        """Write, and say what changed."""
        self._check()
        result = await self._database.write(work)
        await self._database.read(self._teller.look)
        return result

    async def seal(self) -> None:
        """Seal."""
        await self._database.seal()

    async def close(self) -> None:
        """Close."""
        await self._database.close()

    def _check(self) -> None:
        if self.away:
            raise StoreUnavailable("The database cannot be reached.")


async def at_once(call: Callable[[], T], /) -> T:
    """Do what is done on a thread elsewhere: a file in memory makes nobody wait, and threads know no virtual time."""
    return call()


class Host:
    """A machine with a hypervisor, and an agent while it has power and nobody killed it."""

    def __init__(self, line: HostLine, settings: Settings, folder: Path, log: Log) -> None:
        """Build the machine; it has power."""
        self.name = line.name
        self.zone = line.zone
        self.shared = line.shared
        self.clock = WallClock()
        self.powered = True
        #: What comes of taking its power from afar.
        self.fence = "works"
        self.agent: Agent | None = None
        self.hypervisor = SimulatedHypervisor(
            latency=_LATENCY, size=HostSize(vcpus=line.vcpus, memory=line.memory, disk=line.disk)
        )
        self.hypervisor.witness = self._witness
        self._settings = settings
        #: The agent's; a host that is set up anew has none.
        self.journal = folder / f"{line.name}.journal"
        self._log = log

    def _witness(self, before: SimulatedGuest, after: SimulatedGuest) -> None:
        name = self._log.names.get(after.id, after.id)
        for said in guest_says(before, after):
            self._log.say(f": {said}", before=f"{self.name}: guest ", subject=name)

    async def start_agent(self, wire: Wire) -> None:
        """Start the agent, unless it runs or the machine is off."""
        if self.agent is not None or not self.powered:
            return
        self.agent = new_agent(
            self.name,
            driver=SimulatedDriver(self.hypervisor),
            bus=wire,
            clock=self.clock,
            journal=self.journal,
            settings=self._settings,
            blocking=at_once,
        )
        await self.agent.start()

    async def kill_agent(self) -> None:
        """End the agent where it is."""
        if self.agent is not None:
            await self.agent.stop()
            self.agent = None

    def states(self, instance_id: str) -> str | None:
        """Say what the guest of an instance is here; None when there is none."""
        guest = self.hypervisor.guest(instance_id)
        return None if guest.spec is None else state_of(guest)


class World:
    """Everything there is in a simulation. A context manager, which leaves nothing behind."""

    def __init__(
        self,
        lines: Sequence[HostLine],
        settings: Settings,
        log: Log,
        power: Callable[[World], Power],
        *,
        seed: int,
    ) -> None:
        """Build the machines; nothing runs."""
        self._power = power(self)
        self.log = log
        self.clock = WallClock()
        self._folder = Path(
            tempfile.mkdtemp(prefix="stateward-simulation-", dir=_MEMORY if _MEMORY.is_dir() else None)
        )
        self.settings = _with_leases(settings, self._folder)
        self._file = self._folder / "stateward.db"
        self._file.write_bytes(empty_database())
        self.teller = Teller(log)
        self.database = ToldDatabase(
            open_database(f"sqlite:///{self._file}", inline_commit=True), self.teller
        )
        self.hosts = {line.name: Host(line, self.settings, self._folder, log) for line in lines}
        self.wires: dict[str, Wire] = {}
        self._dice = random.Random(seed)  # noqa: S311 (repeatable on purpose)
        self._plane: Plane | None = None
        self._bus: MemoryBus | None = None
        self._later: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        """Start the server, and wait until it has heard of every host."""
        for host in self.hosts.values():
            # Guests live on while no agent listens, and the log has what they do in its time.
            host.hypervisor.listen(self, lambda _instance_id: None)
        await self.start_server()
        await self._until(self._all_heard)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take everything down."""
        for task in self._later:
            task.cancel()
        await self.kill_server()
        for host in self.hosts.values():
            host.hypervisor.unlisten(self)
        await self.database.close()
        shutil.rmtree(self._folder)

    @property
    def plane(self) -> Plane:
        """The control plane that lives.

        Raises:
            StoreUnavailable: none does: nobody answers.
        """
        if self._plane is None:
            raise StoreUnavailable("The server does not run.")
        return self._plane

    async def start_server(self) -> None:
        """Start the server's process, with the agents in it; without its database it ends at once."""
        if self._plane is not None:
            return
        try:
            await self._start()
        except StoreUnavailable as error:
            await self.kill_server()
            self.log.say(f"the server cannot start: {error}")

    async def _start(self) -> None:
        self._bus = MemoryBus()
        self._plane = Plane(
            database=self.database,
            bus=self._bus,
            clock=self.clock,
            settings=self.settings,
            changes=Changes(),
            power=self._power,
            blocking=at_once,
        )
        await self._plane.start()
        for host in self.hosts.values():
            await self.database.write(
                functools.partial(hosts.register, name=host.name, zone=host.zone, shared=host.shared)
            )
            wire = Wire(self._bus, self._dice)
            before = self.wires.get(host.name)
            if before is not None:
                wire.inherit(before)
            self.wires[host.name] = wire
            await host.start_agent(wire)

    async def kill_server(self) -> None:
        """End the server's process where it is: what its bus held is gone."""
        for name, host in self.hosts.items():
            await self._end_agent(name, host)
        for wire in self.wires.values():
            await wire.close()
        if self._plane is not None:
            await self._plane.stop()
            self._plane = None
        if self._bus is not None:
            await self._bus.close()
            self._bus = None

    async def start_agent(self, name: str) -> None:
        """Start a host's agent, if there is a server whose process it is part of."""
        if self._plane is not None:
            await self.hosts[name].start_agent(self.wires[name])

    async def kill_agent(self, name: str) -> None:
        """End a host's agent where it is."""
        await self._end_agent(name, self.hosts[name])

    async def _end_agent(self, name: str, host: Host) -> None:
        self.wires[name].hang_up()
        await host.kill_agent()

    async def lose_power(self, name: str) -> None:
        """Take a machine's power: its agent and its guests are gone at once, and nobody notes why."""
        await self.kill_agent(name)
        host = self.hosts[name]
        host.powered = False
        host.hypervisor.reboot_host()

    async def boot(self, name: str) -> None:
        """Give a machine its power back."""
        self.hosts[name].powered = True
        await self.start_agent(name)

    def after(self, seconds: float, what: str, work: Callable[[], Awaitable[None]]) -> None:
        """Do something later, and say so."""

        async def wait() -> None:
            await asyncio.sleep(seconds)
            self.log.say(f"> {what}")
            await work()

        task = asyncio.create_task(wait())
        self._later.add(task)
        task.add_done_callback(self._later.discard)

    def actor(self, kind: ActorKind, project: str = "p") -> Actor:
        """Make who asks, by a request of its own."""
        user = "operator" if kind is ActorKind.ADMIN else "customer"
        return Actor(
            kind=kind,
            user_id=user,
            project_id="admin" if kind is ActorKind.ADMIN else project,
            request_id=f"req-{uuid.uuid4()}",
        )

    async def instance(self, name: str) -> Instance:
        """Return an instance's row by its name."""
        instance_id = self.id_of(name)
        found = await self.database.look(lambda connection: instances.get(connection, instance_id))
        if found is None:
            raise LookupError(name)
        return found

    def id_of(self, name: str) -> str:
        """Return the id of an instance of the script."""
        return next(each for each, called in self.log.names.items() if called == name)

    def home(self, instance: Instance) -> Host:
        """Return the machine that an instance is recorded on."""
        return self.hosts[instance.host]

    async def quiet(self) -> None:
        """Wait until no operation is unfinished."""

        async def nothing() -> bool:
            return not await self.database.read(operations.unfinished)

        await self._until(nothing)

    async def _all_heard(self) -> bool:
        found = await self.database.read(hosts.every)
        return all(host.seen_at is not None for host in found)

    async def _until(self, holds: Callable[[], Awaitable[bool]]) -> None:
        async with asyncio.timeout(_PATIENCE):
            while not await holds():  # noqa: ASYNC110 (nobody tells of what is waited for; time is virtual)
                await asyncio.sleep(0.05)

    async def next_second(self) -> None:
        """Wait until the loop's clock shows a whole second, and the messages under way have come."""
        loop = asyncio.get_running_loop()
        await asyncio.sleep(math.ceil(loop.time() + 1.0) - loop.time())


def _with_leases(settings: Settings, folder: Path) -> Settings:
    """Have leases renewed in a folder of the simulation's, where there are any; all machines reach it at all times."""
    if settings.death.lease is None:
        return settings
    death = msgspec.structs.replace(settings.death, lease=str(folder))
    return msgspec.structs.replace(settings, death=death)


@functools.cache
def empty_database() -> bytes:
    """Return an SQLite file with the whole schema, made as a server makes it."""

    async def make(path: Path) -> None:
        database = open_database(f"sqlite:///{path}")
        await migrate(database)
        await database.close()

    with tempfile.TemporaryDirectory(prefix="stateward-simulation-") as folder:
        path = Path(folder) / "stateward.db"
        asyncio.run(make(path))
        return path.read_bytes()
