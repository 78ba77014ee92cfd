"""One host's agent: worker, observers and console, on one driver.

It reaches the control plane over the bus only, and has no database access.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import msgspec
import structlog

from stateward.agent.addresses import AddressWatch
from stateward.agent.driver import Driver, DriverError
from stateward.agent.journal import Journal
from stateward.agent.lease import LeaseFile
from stateward.agent.limits import Limits
from stateward.agent.observer import Observer
from stateward.agent.questions import Questions
from stateward.agent.watch import Watch
from stateward.agent.worker import Worker
from stateward.bus.console import Consoles, ConsoleStream, ConsoleUnavailable
from stateward.bus.port import (
    STANDING,
    Bus,
    NobodyAnswered,
    console_subject,
    control_subject,
    operations_subject,
    questions_subject,
)
from stateward.clock import Clock
from stateward.domain.questions import Standing
from stateward.domain.records import ConsoleReply, ConsoleRequest
from stateward.threads import on_thread

log = structlog.get_logger()

#: Seconds in which the control plane says what a host may do, and until it is asked again.
_STANDING_SECONDS = 5.0
_ASK_AGAIN_SECONDS = 1.0


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
        asks_first: bool = False,
        lease: Path | None = None,
        blocking: Callable[[Callable[[], None]], Coroutine[Any, Any, None]] = on_thread,
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
            asks_first: before it acts, it asks what it must not act on any more: its host may have been fenced.
            lease: the folder, on shared storage, of the lease that it renews with its heartbeats; None: none.
            blocking: renews it.
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
        self._asks_first = asks_first
        self._lease = (
            None
            if lease is None
            else LeaseFile(
                lease,
                host,
                seconds=heartbeat_seconds,
                boot_id=self.driver.boot_id,
                counter=self._journal.next_seq,
                blocking=blocking,
            )
        )
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Connect, go on with what was left unfinished, take operations and observe from now on."""
        await self.driver.open(self._changed)
        if self._asks_first:
            self._tasks.append(asyncio.create_task(self._ask_and_work(), name=f"standing of {self.host}"))
        else:
            await self._work()
        await self._bus.answer(console_subject(self.host), self._console)
        if self._consoles is not None:
            await self._consoles.offer(self.host, self._open_console)
        await self._bus.answer(
            questions_subject(self.host),
            Questions(
                self.driver,
                self.worker.overtaken,
                self._journal.fence,
                inventory=self.observer.inventory,
                expel=self.worker.expel,
            ).answer,
        )
        self._tasks += [
            asyncio.create_task(self.observer.run(), name=f"observer {self.host}"),
            asyncio.create_task(self.addresses.run(), name=f"addresses {self.host}"),
        ]
        if self._lease is not None:
            self._tasks.append(asyncio.create_task(self._lease.run(), name=f"lease {self.host}"))

    async def _work(self) -> None:
        await self.worker.resume()
        # Orders first: one that waits on the bus with its operation counts from the operation's first moment.
        await self._bus.subscribe(control_subject(self.host), self.worker.handle_order)
        await self._bus.subscribe(operations_subject(self.host), self.worker.handle)

    async def _ask_and_work(self) -> None:
        """Hear what was made anew elsewhere while this host was dead, and only then go on with what was begun."""
        while True:
            try:
                await self._work_as_told()
            except NobodyAnswered:
                log.warning("the control plane does not say what this host may do; it is asked again")
            except Exception:
                # The journal failed (a full disk). Heartbeats go on, so that nobody would take this host for one that
                # takes no operations; and all of it may be done again.
                log.exception(
                    "this host's operations cannot be gone on with; it is tried again", host=self.host
                )
            else:
                return
            await asyncio.sleep(_ASK_AGAIN_SECONDS)

    async def _work_as_told(self) -> None:
        raw = await self._bus.ask(STANDING, self.host.encode(), timeout=_STANDING_SECONDS)
        standing = msgspec.json.decode(raw, type=Standing)
        # Before the hypervisor answers, which may take its time: a smaller number in a heartbeat is none that is heard.
        self._journal.pass_seq(standing.above)
        for instance_id, fence in standing.overtaken.items():
            self.worker.overtake(instance_id, fence)
        await self._work()

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
