"""One host's agent: worker, observers and console, on one driver.

It reaches the control plane over the bus only, and has no database access.
"""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import msgspec

from stateward.agent.addresses import AddressWatch
from stateward.agent.driver import Driver, DriverError
from stateward.agent.journal import Journal
from stateward.agent.limits import Limits
from stateward.agent.observer import Observer
from stateward.agent.questions import Questions
from stateward.agent.watch import Watch
from stateward.agent.worker import Worker
from stateward.bus.console import Consoles, ConsoleStream, ConsoleUnavailable
from stateward.bus.port import (
    Bus,
    console_subject,
    control_subject,
    operations_subject,
    questions_subject,
)
from stateward.clock import Clock
from stateward.domain.records import ConsoleReply, ConsoleRequest


class Agent:
    """The agent of one host."""

    def __init__(
        self,
        *,
        host: str,
        driver: Driver,
        bus: Bus,
        clock: Clock,
        journal: Path | None,
        consoles: Consoles | None = None,
        relist_seconds: float = 10.0,
        heartbeat_seconds: float = 5.0,
        limit_scale: float = 1.0,
    ) -> None:
        """Prepare it.

        Args:
            host: its name.
            driver: its hypervisor.
            bus: the way to the control plane.
            clock: tells the time.
            journal: its file, None for one in memory.
            relist_seconds: between two looks at everything.
            heartbeat_seconds: between two words that it lives.
            limit_scale: what the limits on the driver's calls are multiplied by.
        """
        self.host = host
        #: Whatever is asked of it has a limit.
        self.driver = Limits(limit_scale).on(driver)
        self._bus = bus
        self._consoles = consoles
        self._journal = Journal(journal, clock.now())
        self._watch = Watch()
        self.worker = Worker(self.driver, bus, self._journal, clock, self._watch)
        self.observer = Observer(
            host=host,
            driver=self.driver,
            worker=self.worker,
            bus=bus,
            clock=clock,
            relist_seconds=relist_seconds,
            heartbeat_seconds=heartbeat_seconds,
        )
        self.addresses = AddressWatch(
            host=host, driver=self.driver, journal=self._journal, bus=bus, period=relist_seconds
        )
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Connect, go on with what was left unfinished, take operations and observe from now on."""
        await self.driver.open(self._changed)
        await self.worker.resume()
        # Orders first: one that waits on the bus with its operation counts from the operation's first moment.
        await self._bus.subscribe(control_subject(self.host), self.worker.handle_order)
        await self._bus.subscribe(operations_subject(self.host), self.worker.handle)
        await self._bus.answer(console_subject(self.host), self._console)
        if self._consoles is not None:
            await self._consoles.offer(self.host, self._open_console)
        await self._bus.answer(
            questions_subject(self.host),
            Questions(
                self.driver, self.worker.overtaken, self._journal.fence, self.observer.inventory
            ).answer,
        )
        self._tasks = [
            asyncio.create_task(self.observer.run(), name=f"observer {self.host}"),
            asyncio.create_task(self.addresses.run(), name=f"addresses {self.host}"),
        ]

    async def _open_console(self, instance_id: str) -> ConsoleStream:
        try:
            return await self.driver.open_console(instance_id)
        except DriverError as error:
            raise ConsoleUnavailable(str(error)) from None

    async def stop(self) -> None:
        """Stop at once; guests run on, and the journal knows what is unfinished."""
        for task in self._tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await self.worker.stop()
        await self.driver.close()
        self._journal.close()

    def _changed(self, instance_id: str | None) -> None:
        self._watch.changed(instance_id)
        self.observer.changed(instance_id)
        self.addresses.changed()

    async def _console(self, payload: bytes) -> bytes:
        request = msgspec.json.decode(payload, type=ConsoleRequest)
        try:
            log = (await self.driver.console(request.instance_id)).decode(errors="replace")
        except DriverError as error:
            return msgspec.json.encode(ConsoleReply(error=str(error)))
        if request.lines is not None:
            lines = log.splitlines(keepends=True)
            log = "".join(lines[-request.lines :]) if request.lines else ""
        return msgspec.json.encode(ConsoleReply(output=log))
