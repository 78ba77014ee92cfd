"""Every part of the control plane on simulated guests, behind a bus that doubles and delays, on virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import sqlalchemy as sa

from stateward.agent.agent import Agent
from stateward.agent.driver import Driver
from stateward.agent.simulated import SimulatedDriver, SimulatedHypervisor
from stateward.arbiter.reconcile import Arbiter
from stateward.bus.console import LocalConsoles
from stateward.bus.memory import Disorder, MemoryBus
from stateward.domain.actions import BY_KEY
from stateward.domain.boots import Pace
from stateward.domain.locks import ActorKind
from stateward.domain.policies import NO_POLICIES, Policies
from stateward.domain.records import FlavorFacts, ImageFacts, Instance, Operation
from stateward.domain.states import Observed
from stateward.operations.admission import Admission, Admitted, ShutdownDefaults
from stateward.operations.asking import Asking
from stateward.operations.completion import Completion
from stateward.operations.creation import NewInstance, create
from stateward.operations.dispatch import Dispatcher
from stateward.operations.heartbeats import keep_heartbeats
from stateward.operations.immediate import Immediate
from stateward.operations.progress import keep_progress
from stateward.store import hosts, instances, operations
from stateward.store.engine import Database, StoreUnavailable, Work
from stateward.store.tables import AUDIT
from tests.agent.simulated_bench import LoopClock
from tests.rows import actor

T = TypeVar("T")

#: Virtual seconds after which a test has waited in vain.
WAIT = 200.0

#: Seconds after which a host that was not heard of counts as down.
PATIENCE = 15.0


class FailingDatabase:
    """A database whose next writes fail, as with a full disk."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.dialect = database.dialect
        self.failures = 0
        #: Counts them.
        self.writes = 0
        self._pass = 0

    def fails(self, count: int, *, after: int = 0) -> None:
        """Have writes fail, once some more have passed."""
        self.failures, self._pass = count, after

    async def read(self, work: Work[T]) -> T:
        """Read."""
        return await self._database.read(work)

    async def write(self, work: Work[T]) -> T:
        """Write, or fail and keep nothing."""
        self.writes += 1
        if self.failures and self._pass:
            self._pass -= 1
        elif self.failures:
            self.failures -= 1
            raise StoreUnavailable("The database cannot be used now: no room")
        return await self._database.write(work)

    async def seal(self) -> None:
        """Seal."""
        await self._database.seal()

    async def close(self) -> None:
        """Leave the closing to whoever opened it."""


def new_instance(words: str = "", properties: Mapping[str, str] = {}, **changes: Any) -> NewInstance:
    """Say which instance is wanted; its guest behaves as the words say, and its image has more properties."""
    facts: dict[str, Any] = {
        "project_id": "p",
        "user_id": "u",
        "name": "web",
        "hostname": "web",
        "flavor": FlavorFacts(id="1", name="small", vcpus=1, ram=64, disk=0),
        "image": ImageFacts(id="i", disk_format="qcow2", properties={"os_command_line": words, **properties}),
    }
    return NewInstance(**(facts | changes))


class Stack:
    """One process's worth of everything, on host ``h``."""

    def __init__(
        self,
        database: Database,
        folder: Path,
        disorder: Disorder | None,
        *,
        around: Callable[[Driver], Driver] = lambda driver: driver,
        pace: Pace | None = None,
        after: Stack | None = None,
        policies: Policies = NO_POLICIES,
    ) -> None:
        """Compose it.

        Args:
            database: the store.
            folder: gets the agent's journal.
            disorder: how badly the bus behaves.
            around: put around the agent's driver.
            pace: of restarts after a boot of the host.
            after: the process before it, whose hypervisor goes on.
            policies: what the arbiter follows besides its table.
        """
        self.database = FailingDatabase(database)
        self.clock = LoopClock()
        self.bus = MemoryBus(disorder)
        self.hypervisor: SimulatedHypervisor = SimulatedHypervisor() if after is None else after.hypervisor
        self.consoles = LocalConsoles()
        self.dispatcher = Dispatcher(self.database, self.bus)
        self.admission = Admission(self.database, self.clock, ShutdownDefaults(), self.dispatcher.wake)
        self.asking = Asking(self.admission)
        self.arbiter = Arbiter(self.admission, policies, pace)
        self.immediate = Immediate(self.admission, self.arbiter.wake, self.arbiter.review)
        self.completion = Completion(self.admission, self.arbiter.wake)
        self.agent = Agent(
            host="h",
            driver=around(SimulatedDriver(self.hypervisor)),
            bus=self.bus,
            clock=self.clock,
            journal=folder / "journal.db",
            consoles=self.consoles,
        )

    async def start(self) -> None:
        """Put everything up, and wait until the host was heard of."""
        await self.database.write(lambda connection: hosts.register(connection, "h", "nova"))
        await self.completion.start(self.bus)
        self.heartbeats = await keep_heartbeats(self.bus, self.database, self.clock)
        await keep_progress(self.bus, self.database, lambda _operation_id: None)
        await self.arbiter.start(self.bus)
        await self.dispatcher.start()
        await self.agent.start()
        await self.heard()

    async def heard(self) -> None:
        """Wait until the host was heard of."""
        async with asyncio.timeout(WAIT):
            while True:
                (host,) = await self.database.read(hosts.every)
                if host.seen_at is not None:
                    return
                await asyncio.sleep(0.01)

    async def stop(self) -> None:
        """Take everything down."""
        await self.agent.stop()
        await self.asking.stop()
        await self.dispatcher.stop()
        await self.arbiter.stop()
        await self.bus.close()
        await self.heartbeats.stop()

    async def create(self, words: str = "", **properties: str) -> str:
        """Make a running instance and return its id."""
        made = await create(self.admission, new_instance(words, properties), actor(), reservation_id="r")
        await self.idle(made.instance.id)
        return made.instance.id

    async def act(
        self, action: str, instance_id: str, *, body: object = None, kind: ActorKind = ActorKind.MEMBER
    ) -> Admitted:
        """Admit an operation."""
        return await self.admission.admit(BY_KEY[action], instance_id, actor(kind), body=body)

    async def do(self, action: str, instance_id: str, *, body: object = None) -> Instance:
        """Admit an operation and wait for its end."""
        await self.act(action, instance_id, body=body)
        return await self.idle(instance_id)

    async def instance(self, instance_id: str) -> Instance:
        """Return the row as it is now."""
        found = await self.database.read(lambda connection: instances.get(connection, instance_id))
        assert found is not None
        return found

    async def until(self, instance_id: str, holds: Callable[[Instance], bool]) -> Instance:
        """Wait until something holds of an instance's row."""
        async with asyncio.timeout(WAIT):
            while True:
                found = await self.instance(instance_id)
                if holds(found):
                    return found
                await asyncio.sleep(0.005)

    async def idle(self, instance_id: str) -> Instance:
        """Wait until no operation is in flight, and let the messages under way arrive."""
        await self.until(instance_id, lambda row: row.task_state is None)
        await asyncio.sleep(0.3)
        return await self.until(instance_id, lambda row: row.task_state is None)

    async def operations(self, instance_id: str) -> list[Operation]:
        """Return an instance's operations, oldest first."""
        found = await self.database.read(lambda connection: operations.of_instance(connection, instance_id))
        return found[::-1]

    async def history(self, instance_id: str) -> list[str]:
        """Return what was done to an instance, oldest first."""
        return [f"{each.action} {each.state}" for each in await self.operations(instance_id)]

    async def verdicts(self, instance_id: str, event: str = "verdict") -> list[dict[str, Any]]:
        """Return the verdicts in the audit trail, oldest first; or what was told besides them."""
        await self.database.seal()
        query = sa.select(AUDIT.c.detail).where(AUDIT.c.instance_id == instance_id, AUDIT.c.event == event)
        return list(
            await self.database.read(
                lambda connection: connection.execute(query.order_by(AUDIT.c.number)).scalars().all()
            )
        )

    def guest(self, instance_id: str) -> Observed:
        """Look at the guest, past everything."""
        found = self.hypervisor.guest(instance_id)
        return Observed.MISSING if found.spec is None else found.observed

    def asked(self, instance_id: str) -> int:
        """Count how often the guest was asked to shut down."""
        return sum(
            (call.name, call.instance_id) == ("request_shutdown", instance_id)
            for call in self.hypervisor.calls
        )


def encoded(message: msgspec.Struct) -> bytes:
    """Encode a message as it goes over the bus."""
    return msgspec.json.encode(message)
