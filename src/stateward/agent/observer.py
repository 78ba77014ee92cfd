"""The observer: turns what a hypervisor does into reports, at once by its events, and into tallies by relists.

Level-triggered: an event only says "look now", so a lost, late or doubled one does no harm. A tally says in a few bytes
whether everything is as it was; who does not know that asks for all of it. When the hypervisor cannot be asked nothing
is said but that (R12; ADR 0018).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import operator
from collections.abc import Sequence

import msgspec
import structlog

from stateward.agent.driver import Driver, DriverError, Guest, HostFacts
from stateward.agent.worker import Worker
from stateward.bus.port import HOSTS, REPORTS, TALLIES, Bus
from stateward.clock import Clock
from stateward.domain.records import HostReport, Observation, Report, Tally
from stateward.domain.states import Observed

log = structlog.get_logger()

_by_id = operator.attrgetter("instance_id")

#: Seconds until observing begins again after a fault.
_PAUSE_SECONDS = 1.0

#: Seconds that one guest's look may take until the others are reported without it.
_SLOW_SECONDS = 0.5


class Observer:
    """One host's observer. ``relist_seconds`` is the safety net's period, ``heartbeat_seconds`` the host's."""

    def __init__(
        self,
        *,
        host: str,
        driver: Driver,
        worker: Worker,
        bus: Bus,
        clock: Clock,
        relist_seconds: float,
        heartbeat_seconds: float,
    ) -> None:
        """Keep the ports."""
        self._host = host
        self._driver = driver
        self._worker = worker
        self._bus = bus
        self._clock = clock
        self._relist_seconds = relist_seconds
        self._heartbeat_seconds = heartbeat_seconds
        self._dirty: set[str] = set()
        self._relist_wanted = True
        self._wake = asyncio.Event()
        #: Looks that take their time, each a guest's own.
        self._looks: set[asyncio.Task[Observation | None]] = set()
        self._beat = asyncio.Event()
        self._facts: HostFacts | None = None
        self._running = 0
        self._reachable: bool | None = None
        self._detail = ""
        #: The boot of which everything was told last.
        self._boot_id = ""

    def changed(self, instance_id: str | None) -> None:
        """Look at this guest soon; None: at all of them."""
        if instance_id is None:
            self._relist_wanted = True
        else:
            self._dirty.add(instance_id)
        self._wake.set()

    async def run(self) -> None:
        """Watch until cancelled."""
        # Heartbeats go on while the hypervisor takes its time to answer: this host is not down for that.
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch_on(), name=f"watch {self._host}")
            group.create_task(self._beat_on(), name=f"heartbeat {self._host}")

    async def _watch_on(self) -> None:
        try:
            while True:
                try:
                    await self._watch()
                except Exception:
                    # A fault of ours in one report must not end the watching of the whole host.
                    log.exception("observing failed; it begins again with a relist", host=self._host)
                    self._relist_wanted = True
                    await asyncio.sleep(_PAUSE_SECONDS)
        finally:
            for look in self._looks:
                look.cancel()

    async def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        next_relist = loop.time()
        while True:
            self._wake.clear()
            if self._relist_wanted or loop.time() >= next_relist:
                self._relist_wanted = False
                was = self._reachable
                await self.relist()
                next_relist = loop.time() + self._relist_seconds
                if was != self._reachable:
                    self._beat.set()
            await self._look_at_dirty()
            await _pause(self._wake, next_relist - loop.time())

    async def _beat_on(self) -> None:
        # The first one comes with what the first look has found.
        await self._beat.wait()
        while True:
            self._beat.clear()
            try:
                await self.heartbeat()
            except Exception:
                log.exception("a heartbeat could not be sent", host=self._host)
            await _pause(self._beat, self._heartbeat_seconds)

    async def relist(self) -> None:
        """Tell of every guest of the host, from one bulk call, by a digest."""
        try:
            guests, seq, boot_id = await self._list()
            if self._facts is None:
                self._facts = await self._driver.facts()
        except DriverError as error:
            if self._reachable is not False:
                log.warning("the hypervisor cannot be asked", host=self._host, error=str(error))
            self._reachable, self._detail = False, str(error)
            return
        if self._reachable is False:
            log.info("the hypervisor answers again", host=self._host)
        self._reachable, self._detail = True, ""
        self._running = sum(guest.observed is Observed.RUNNING for guest in guests)
        tally = Tally(host=self._host, seq=seq, count=len(guests), digest=digest_of(guests, boot_id))
        await self._bus.publish(TALLIES, msgspec.json.encode(tally), message_id=f"{self._host}.{seq}")

    async def inventory(self, above: int) -> Report:
        """Return every guest of the host as it is now, numbered above a number that the control plane knows.

        Raises:
            DriverError: the hypervisor cannot be asked.
        """
        self._worker.journal.pass_seq(above)
        guests, seq, boot_id = await self._list()
        at = self._clock.now()
        return Report(
            host=self._host,
            complete=True,
            observations=tuple(
                Observation(
                    instance_id=guest.instance_id, observed=guest.observed, cause=guest.cause, seq=seq, at=at
                )
                for guest in guests
            ),
            seq=seq,
            at=at,
            digest=digest_of(guests, boot_id),
            boot_id=boot_id,
        )

    async def _list(self) -> tuple[list[Guest], int, str]:
        """Return every guest, the number of the question, and the boot in which it was asked and answered."""
        while True:
            seq, boot_id = self._worker.journal.next_seq(), self._driver.boot_id()
            guests = await self._driver.list()
            # Only where the machine boots without this agent, as a simulated one does.
            if self._driver.boot_id() == boot_id:
                self._boot_id = boot_id
                return guests, seq, boot_id

    async def _look_at_dirty(self) -> None:
        """Report the guests that changed; one that cannot be looked at now holds up none of the others."""
        dirty, self._dirty = self._dirty, set()
        looks = {
            asyncio.create_task(self._worker.observe(instance_id), name=f"look {instance_id}")
            for instance_id in sorted(dirty)
        }
        self._looks |= looks
        if looks:
            _, slow = await asyncio.wait(looks, timeout=_SLOW_SECONDS)
            for look in slow:
                look.add_done_callback(lambda _look: self._wake.set())
        done = {look for look in self._looks if look.done()}
        self._looks -= done
        results = [look.result() for look in done]
        seen = [observation for observation in results if observation is not None]
        if seen:
            seq, boot_id = self._worker.journal.next_seq(), self._driver.boot_id()
            # After a boot it is the whole that counts.
            if boot_id != self._boot_id:
                self._relist_wanted = True
                self._wake.set()
            report = Report(
                host=self._host,
                complete=False,
                observations=tuple(seen),
                seq=seq,
                at=self._clock.now(),
                boot_id=boot_id,
            )
            await self._bus.publish(REPORTS, msgspec.json.encode(report), message_id=f"{self._host}.{seq}")

    async def heartbeat(self) -> None:
        """Say that this agent lives, and whether its hypervisor answers."""
        facts = self._facts
        at = self._clock.now()
        report = HostReport(
            host=self._host,
            driver=self._driver.name,
            hypervisor_type=facts.hypervisor_type if facts else self._driver.name,
            hypervisor_version=facts.hypervisor_version if facts else 0,
            reachable=self._reachable is True,
            detail=self._detail,
            vcpus=facts.vcpus if facts else 0,
            memory=facts.memory if facts else 0,
            disk=facts.disk if facts else 0,
            disk_used=facts.disk_used if facts else 0,
            running=self._running,
            cpu_info=facts.cpu_info if facts else "",
            at=at,
            seq=self._worker.journal.next_seq(),
            boot_id=self._driver.boot_id(),
        )
        await self._bus.publish(HOSTS, msgspec.json.encode(report), message_id=f"{self._host}.{at}")


def digest_of(guests: Sequence[Guest], boot_id: str) -> str:
    """Return what tells a host's guests and their states in a boot from any others, in whatever order they come."""
    whole = msgspec.msgpack.encode((boot_id, sorted(guests, key=_by_id)))
    return hashlib.blake2b(whole, digest_size=16).hexdigest()


async def _pause(event: asyncio.Event, seconds: float) -> None:
    """Wait until an event is set, or for some seconds."""
    if seconds > 0:
        # Not wait_for: on Python 3.11 it loses a cancellation that comes together with the event.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await event.wait()
