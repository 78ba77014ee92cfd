"""The control plane and one agent in this process, to be killed at a chosen moment and started again.

A ``World`` is what outlives every process: the database, the hypervisor and the files. A ``Plane`` is one life of
the control plane on it, and an ``Agent`` one of the agent; their ends here are those of ``kill -9`` as far as
anything can tell that is left: nothing more is written, and what the bus inside the process held is gone.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import defaultdict
from pathlib import Path
from typing import Final

import sqlalchemy as sa

from stateward.agent.agent import Agent
from stateward.agent.simulated import SimulatedDriver, SimulatedHypervisor
from stateward.bus.memory import MemoryBus
from stateward.clock import Clock
from stateward.domain.locks import ActorKind
from stateward.domain.placement import Rules
from stateward.domain.records import (
    Actor,
    FlavorFacts,
    GuestSpec,
    HostReport,
    ImageFacts,
    Instance,
    Operation,
    Result,
)
from stateward.operations.admission import Admission, Admitted, ShutdownDefaults
from stateward.operations.adopting import Wish, adopt
from stateward.operations.completion import Completion
from stateward.operations.creation import NewInstance, create
from stateward.operations.dispatch import Dispatcher
from stateward.operations.heartbeats import keep_heartbeats
from stateward.operations.immediate import Immediate
from stateward.operations.placing import Place
from stateward.operations.progress import keep_progress
from stateward.store import hosts, instances, operations
from stateward.store.engine import Database

#: Virtual seconds after which an operation never ends: more than all limits of an operation's calls.
_PATIENCE = 100_000

HOST = "h"
FLAVOR = FlavorFacts(id="1", name="tiny", vcpus=1, ram=64, disk=1)


def actor(kind: ActorKind = ActorKind.MEMBER) -> Actor:
    """Make who asks, each time by a request of its own."""
    return Actor(kind=kind, user_id=kind.value, project_id="p", request_id=f"req-{uuid.uuid4()}")


_ELSEWHERE: Final = HostReport(
    host="elsewhere",
    driver="simulated",
    hypervisor_type="simulated",
    hypervisor_version=1,
    reachable=True,
    detail="",
    vcpus=1000,
    memory=64 * 1024,
    disk=2048,
    disk_used=0,
    running=0,
    cpu_info="",
    # Not long before any test.
    at=1_700_000_000.0,
)


class World:
    """What is there whatever runs."""

    def __init__(
        self, database: Database, hypervisor: SimulatedHypervisor, clock: Clock, folder: Path
    ) -> None:
        self.database = database
        self.hypervisor = hypervisor
        self.clock = clock
        self.journal = folder / "journal.db"

    async def instance(self, instance_id: str) -> Instance:
        """Return an instance's row."""
        found = await self.database.read(lambda connection: instances.get(connection, instance_id))
        assert found is not None
        return found

    async def operation(self, operation_id: str) -> Operation:
        """Return an operation."""
        found = await self.database.read(lambda connection: operations.get(connection, operation_id))
        assert found is not None
        return found

    async def operations(self, instance_id: str) -> list[Operation]:
        """Return an instance's operations in the order they were admitted."""
        found = await self.database.read(lambda connection: operations.of_instance(connection, instance_id))
        return sorted(found, key=lambda operation: operation.fence)


class OneByOne(Admission):
    """Lets nothing follow an operation: what would is a row of its own here."""

    def follow_in(
        self, connection: sa.Connection, operation: Operation, instance: Instance, result: Result
    ) -> bool:
        """Admit nothing."""
        del connection, operation, instance, result
        return False


def _know_hosts(connection: sa.Connection) -> None:
    """Make the host, and a smaller one to move to, on which nothing is ever done."""
    hosts.register(connection, HOST, "nova")
    hosts.register(connection, _ELSEWHERE.host, "nova")
    hosts.heard(connection, _ELSEWHERE)


class Plane:
    """One life of the control plane, without an arbiter: what is looked at here is what operations do."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.bus = MemoryBus()
        self.dispatcher = Dispatcher(world.database, self.bus)
        self.admission = OneByOne(
            world.database, world.clock, ShutdownDefaults(), self.wake, Rules(patience=1e9)
        )
        self.immediate = Immediate(self.admission, lambda _instance_id: None)
        #: Whether what is admitted is dispatched.
        self.dispatching = True
        #: Set for each instance whose operation has ended.
        self._settled = defaultdict[str, asyncio.Event](asyncio.Event)

    async def start(self) -> None:
        """Begin as a server does."""
        database = self.world.database
        await database.write(_know_hosts)
        await Completion(self.admission, self._ended).start(self.bus)
        await keep_heartbeats(self.bus, database, self.world.clock)
        await keep_progress(self.bus, database, lambda _operation_id: None)
        # Reports are for the arbiter, and there is none; observations come with the results.
        await self.bus.subscribe("reports", _drop)
        await self.dispatcher.start()

    def _ended(self, instance_id: str) -> None:
        self._settled[instance_id].set()

    async def kill(self) -> None:
        """End it; what its bus held is gone."""
        await self.dispatcher.stop()
        await self.bus.close()

    def wake(self) -> None:
        """Have what was written dispatched, unless it is not to be."""
        if self.dispatching:
            self.dispatcher.wake()

    async def create(self, words: str = "") -> Admitted:
        """Admit a new instance whose guest behaves as the words say."""
        image = ImageFacts(id="image", disk_format="raw", properties={"os_command_line": words})
        new = NewInstance(
            project_id="p",
            user_id="u",
            name="a",
            hostname="a",
            flavor=FLAVOR,
            image=image,
            place=Place(host=HOST),
        )
        return await create(self.admission, new, actor(), reservation_id="r")

    async def adopt(self, words: str = "") -> Admitted:
        """Have somebody make a guest by hand that behaves as the words say, and admit that it is adopted."""
        guest = GuestSpec(
            instance_id=str(uuid.uuid4()),
            domain_name="theirs",
            display_name="",
            project_id="",
            vcpus=1,
            memory=64,
            disk=1,
            image=ImageFacts(id="theirs", disk_format="raw", properties={"os_command_line": words}),
        )
        self.world.hypervisor.make(guest, autostart=True)
        driver = SimulatedDriver(self.world.hypervisor)
        await driver.open(lambda _instance_id: None)
        known = frozenset(each.instance_id for each in await driver.list())
        (stranger,) = [each for each in await driver.strangers(known) if each.id == guest.instance_id]
        await driver.close()
        wish = Wish(
            stranger=stranger, project_id="p", user_id="u", name="a", hostname="a", reservation_id="r"
        )
        (adopted,) = await adopt(self.admission, HOST, [wish], actor(ActorKind.ADMIN), again=False)
        assert adopted.instance is not None
        assert adopted.operation is not None
        return Admitted(instance=adopted.instance, operation=adopted.operation)

    async def finished(self, operation_id: str) -> Instance:
        """Wait until an operation is finished and return its instance."""
        async with asyncio.timeout(_PATIENCE):
            while True:
                operation = await self.world.operation(operation_id)
                if operation.finished_at is not None:
                    break
                settled = self._settled[operation.instance_id]
                await settled.wait()
                settled.clear()
        return await self.world.instance(operation.instance_id)


def new_agent(world: World, bus: MemoryBus) -> Agent:
    """Make an agent on the journal and the hypervisor that are there."""
    return Agent(
        host=HOST,
        driver=SimulatedDriver(world.hypervisor),
        bus=bus,
        clock=world.clock,
        journal=world.journal,
        # Once, at its start.
        relist_seconds=1e6,
        heartbeat_seconds=1e6,
    )


async def _drop(_payload: bytes) -> None:
    pass
