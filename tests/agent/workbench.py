"""An agent on simulated guests, spoken to over a bus that doubles and delays messages, on virtual time."""

from __future__ import annotations

import asyncio
import itertools
from collections import defaultdict
from pathlib import Path
from typing import Final

import msgspec

from stateward.agent.agent import Agent
from stateward.agent.driver import Capabilities
from stateward.agent.simulated import Call, SimulatedDriver, SimulatedHypervisor
from stateward.agent.simulated.driver import EVERYTHING
from stateward.bus.memory import Disorder, MemoryBus
from stateward.bus.port import HOSTS, PROGRESS, REPORTS, RESULTS, TALLIES, control_subject, operations_subject
from stateward.domain.actions import BY_KEY
from stateward.domain.questions import Answer, Inventory
from stateward.domain.records import (
    Command,
    Dispatch,
    HostReport,
    Order,
    Progress,
    ProgressReport,
    Report,
    Result,
    Tally,
)
from stateward.domain.shutdown import AtDeadline, ShutdownPlan
from stateward.domain.states import Observed
from tests.agent.simulated_bench import LoopClock, spec_of

#: Virtual seconds that a message may be under way.
BUS: Final = 0.05

#: Virtual seconds after which a test has waited in vain.
WAIT: Final = 10_000.0


class Workbench:
    """One host's agent, its hypervisor, and what it sent."""

    def __init__(
        self,
        folder: Path,
        *,
        disorder: Disorder | None,
        capabilities: Capabilities = EVERYTHING,
        driver: type[SimulatedDriver] = SimulatedDriver,
    ) -> None:
        self.clock = LoopClock()
        self.bus = MemoryBus(disorder)
        self.hypervisor = SimulatedHypervisor()
        self.results: defaultdict[str, list[Result]] = defaultdict(list)
        self.reports: list[Report] = []
        self.tallies: list[Tally] = []
        self.progress: defaultdict[str, list[Progress]] = defaultdict(list)
        self.heartbeats: list[HostReport] = []
        self._folder = folder
        self.journal = folder / "journal.db"
        self._capabilities = capabilities
        self._driver = driver
        self._numbers = itertools.count(1)
        self._news = asyncio.Event()
        self.agent = self.make_agent()

    def make_agent(self, journal: str = "journal.db") -> Agent:
        """Make an agent of this host; with another journal it stands for one that lost its own."""
        return Agent(
            host="h",
            driver=self._driver(self.hypervisor, capabilities=self._capabilities),
            bus=self.bus,
            clock=self.clock,
            journal=self._folder / journal,
        )

    async def start(self) -> None:
        """Start the agent and listen to it."""
        await self.bus.subscribe(RESULTS, self._take_result)
        await self.bus.subscribe(REPORTS, self._take_report)
        await self.bus.subscribe(TALLIES, self._take_tally)
        await self.bus.subscribe(HOSTS, self._take_heartbeat)
        await self.bus.subscribe(PROGRESS, self._take_progress)
        await self.agent.start()

    async def stop(self) -> None:
        """Take everything down."""
        await self.agent.stop()
        await self.bus.close()

    async def kill(self) -> None:
        """Have the agent gone from one moment to the next; its guests run on."""
        await self.agent.stop()

    async def revive(self, journal: str = "journal.db") -> None:
        """Start an agent where the killed one was."""
        self.agent = self.make_agent(journal)
        await self.agent.start()

    def dispatch(
        self,
        action: str,
        fence: int,
        *,
        guest: str = "a",
        seconds: int | None = None,
        words: str = "",
        at_deadline: AtDeadline = AtDeadline.FORCE,
    ) -> Dispatch:
        """Make a dispatch of a row of the table."""
        return Dispatch(
            operation_id=f"{action}-{fence}-{guest}",
            instance_id=guest,
            action=action,
            fence=fence,
            steps=BY_KEY[action].steps,
            guest=spec_of(guest, words),
            shutdown=None
            if seconds is None
            else ShutdownPlan(
                seconds=seconds, origin="request", at_deadline=at_deadline, at_deadline_origin="image"
            ),
        )

    async def send(self, dispatch: Dispatch) -> str:
        """Send it and return its operation's id."""
        await self.bus.publish(
            operations_subject("h"),
            msgspec.json.encode(dispatch),
            message_id=f"{next(self._numbers)}",
        )
        return dispatch.operation_id

    async def order(
        self,
        operation_id: str,
        number: int,
        command: Command,
        *,
        guest: str = "a",
        seconds: int | None = None,
    ) -> None:
        """Send an order to an operation."""
        order = Order(
            operation_id=operation_id, instance_id=guest, number=number, command=command, seconds=seconds
        )
        await self.bus.publish(
            control_subject("h"), msgspec.json.encode(order), message_id=f"{next(self._numbers)}"
        )

    def told(self, operation_id: str) -> list[Progress]:
        """Return what was said of how far an operation is, each once and in its order."""
        return sorted(
            {each.seq: each for each in self.progress[operation_id]}.values(), key=lambda each: each.seq
        )

    async def result(self, operation_id: str) -> Result:
        """Wait for an operation's result; however often one was sent, the outcome must be the same."""
        async with asyncio.timeout(WAIT):
            while not self.results[operation_id]:
                self._news.clear()
                await self._news.wait()
        first, *others = self.results[operation_id]
        assert {other.outcome for other in others} <= {first.outcome}
        return first

    async def do(
        self,
        action: str,
        fence: int,
        *,
        guest: str = "a",
        seconds: int | None = None,
        words: str = "",
        at_deadline: AtDeadline = AtDeadline.FORCE,
    ) -> Result:
        """Send an operation and wait for its result."""
        dispatch = self.dispatch(
            action, fence, guest=guest, seconds=seconds, words=words, at_deadline=at_deadline
        )
        return await self.result(await self.send(dispatch))

    async def settle(self) -> None:
        """Let every message arrive that is under way."""
        await asyncio.sleep(2 * BUS)

    async def called(self, name: str, guest: str = "a", count: int = 1) -> Call:
        """Wait until a driver's method was called so often for a guest, and return that call."""
        async with asyncio.timeout(WAIT):
            while True:
                calls = self.calls(name, guest)
                if len(calls) >= count:
                    return calls[count - 1]
                await asyncio.sleep(0.001)

    def calls(self, name: str, guest: str = "a") -> list[Call]:
        """Return the calls of a driver's method for a guest."""
        return [call for call in self.hypervisor.calls if (call.name, call.instance_id) == (name, guest)]

    def observed(self, guest: str = "a") -> Observed:
        """Look at a guest, past the driver; one that is not defined is missing."""
        found = self.hypervisor.guest(guest)
        return Observed.MISSING if found.spec is None else found.observed

    async def _take_result(self, payload: bytes) -> None:
        result = msgspec.json.decode(payload, type=Result)
        self.results[result.operation_id].append(result)
        self._news.set()

    async def _take_report(self, payload: bytes) -> None:
        self.reports.append(msgspec.json.decode(payload, type=Report))

    async def _take_tally(self, payload: bytes) -> None:
        self.tallies.append(msgspec.json.decode(payload, type=Tally))

    async def inventory(self, above: int = 0) -> Answer:
        """Ask for everything."""
        question = msgspec.json.encode(Inventory(above=above))
        return msgspec.json.decode(await self.bus.ask("questions.h", question, timeout=60), type=Answer)

    async def _take_progress(self, payload: bytes) -> None:
        report = msgspec.json.decode(payload, type=ProgressReport)
        self.progress[report.operation_id].append(report.progress)

    async def _take_heartbeat(self, payload: bytes) -> None:
        self.heartbeats.append(msgspec.json.decode(payload, type=HostReport))
