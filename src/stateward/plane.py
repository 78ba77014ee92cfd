"""The control plane on one database and one bus, and what an agent of it is made with, as the settings say.

``stateward serve`` runs one on the machine's clock; a simulation runs the same one on a clock of its own, so that what
it shows is what a server does. A part is added here, and both have it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgspec

from stateward.agent.agent import Agent
from stateward.agent.driver import Driver
from stateward.arbiter.bmc import Bmc
from stateward.arbiter.deaths import DeathRules, Deaths
from stateward.arbiter.reconcile import Arbiter
from stateward.arbiter.witnesses import (
    CommandFence,
    CommandWitness,
    Fence,
    FirstThatWorks,
    LeaseWitness,
    Means,
    Witness,
)
from stateward.bus.console import Consoles
from stateward.bus.port import Bus
from stateward.clock import Clock
from stateward.domain.boots import Pace
from stateward.domain.placement import Room, Rules
from stateward.domain.shutdown import Layer, Limits
from stateward.domain.sweeps import SweepLimits
from stateward.operations.addresses import keep_addresses
from stateward.operations.admission import Admission, ShutdownDefaults
from stateward.operations.asking import Asking
from stateward.operations.changes import Changes
from stateward.operations.completion import Completion
from stateward.operations.control import Control
from stateward.operations.dispatch import Dispatcher
from stateward.operations.expiry import Expiry
from stateward.operations.heartbeats import keep_heartbeats
from stateward.operations.host_moves import HostMoves, Pace as HostPace
from stateward.operations.host_plans import Wishes
from stateward.operations.hosts import Hosts
from stateward.operations.idempotency import OldKeys
from stateward.operations.immediate import Immediate
from stateward.operations.locking import Locking
from stateward.operations.maintenance import Maintenance
from stateward.operations.progress import keep_progress
from stateward.operations.reclaim import Reclaimer
from stateward.settings import Settings
from stateward.store.engine import Database
from stateward.threads import on_thread

T = TypeVar("T")


class Blocking(Protocol):
    """Does what waits for storage, such that nobody else waits: on a thread, as a rule."""

    def __call__(self, call: Callable[[], T], /) -> Coroutine[Any, Any, T]:
        """Do it."""
        ...


class Power(Witness, Fence, Protocol):
    """Knows whether machines have power, and takes it."""


class Plane:
    """One life of the control plane. Killed at any moment, the next one on the same database goes on (B3)."""

    def __init__(
        self,
        *,
        database: Database,
        bus: Bus,
        clock: Clock,
        settings: Settings,
        changes: Changes,
        forget_images: Callable[[Sequence[str]], None] = lambda _ids: None,
        power: Power | None = None,
        blocking: Blocking = on_thread,
    ) -> None:
        """Compose it; nothing is begun.

        Args:
            database: has the whole schema.
            bus: the way to the agents.
            clock: tells the time of day.
            settings: with its hosts named.
            changes: told of everything that clients may follow.
            forget_images: see ``Admission``.
            power: in the stead of the controllers and programs that settings name, where they name them.
            blocking: reads leases.
        """
        self._database = database
        self._bus = bus
        self._clock = clock
        self._settings = settings
        self._changes = changes
        self._undo = contextlib.AsyncExitStack()
        self._dispatcher = Dispatcher(database, bus)
        self.admission = Admission(
            database,
            clock,
            shutdown_defaults(settings),
            self._wake,
            placement_rules(settings),
            offload=settings.shelve.offload,
            forget_images=forget_images,
        )
        self.asking = Asking(self.admission)
        self.policies = settings.made_policies()
        pace = msgspec.convert(settings.boot, Pace, from_attributes=True)
        self.arbiter = Arbiter(self.admission, self.policies, pace, sweep_limits(settings))
        self.immediate = Immediate(self.admission, self._settled, self.arbiter.review)
        self.expiry = Expiry(database, clock, settings.locks.warning)
        self.locking = Locking(self.admission, self.immediate, self.expiry.wake)
        self.control = Control(database, clock, self._wake, cap=settings.shutdown.cap)
        said = settings.death
        wishes = Wishes(
            default=said.wish,
            projects=said.projects,
            hosts={host.name: host.evacuate for host in settings.host if host.evacuate is not None},
        )
        host_pace = HostPace(parallel=said.parallel, per_minute=said.per_minute)
        self._moves = HostMoves(self.admission, host_pace, wishes)
        bmcs = management_controllers(settings)
        self._deaths = Deaths(
            self.admission,
            bus,
            DeathRules(
                silence=said.silence, many=said.many, share=said.share, approved=said.evacuate == "auto"
            ),
            means=means(settings, bmcs, power, blocking),
            wishes=wishes,
            approved=self._moves.wake,
        )
        self._maintenance = Maintenance(database, clock)
        self.hosts = Hosts(
            self.admission,
            wishes=wishes,
            said=self._host_said,
            judge=self.arbiter.wake,
            powers={name: bmc.power for name, bmc in bmcs.items()},
        )

    async def start(self) -> None:
        """Go on with what a former life left, and work from now on."""
        bus, database = self._bus, self._database
        await Completion(self.admission, self._settled).start(bus)
        heartbeats = await keep_heartbeats(bus, database, self._clock)
        self._undo.push_async_callback(heartbeats.stop)
        await keep_progress(bus, database, lambda _operation_id: self._changes.changed())
        await keep_addresses(bus, database)
        # Before it begins: a database that goes away in the middle must not leave it working.
        self._undo.push_async_callback(self.arbiter.stop)
        await self.arbiter.start(bus)
        self._undo.push_async_callback(self.asking.stop)
        await self.asking.start()
        await self._dispatcher.start()
        self._undo.push_async_callback(self._dispatcher.stop)
        await self._deaths.start()
        self._undo.push_async_callback(self._deaths.stop)
        await self._moves.start()
        self._undo.push_async_callback(self._moves.stop)
        await self._maintenance.start()
        self._undo.push_async_callback(self._maintenance.stop)
        old_keys = OldKeys(database, self._clock)
        await old_keys.start()
        self._undo.push_async_callback(old_keys.stop)
        reclaimer = Reclaimer(self.admission, self._settings.reclaim.interval)
        await reclaimer.start()
        self._undo.push_async_callback(reclaimer.stop)
        await self.expiry.start(self.locking)
        self._undo.push_async_callback(self.expiry.stop)

    async def stop(self) -> None:
        """Stop at once, the newest part first."""
        await self._undo.aclose()

    def _wake(self) -> None:
        self._dispatcher.wake()
        self._changes.changed()

    def _host_said(self) -> None:
        self._deaths.wake()
        self._moves.wake()
        self._maintenance.wake()

    def _settled(self, instance_id: str) -> None:
        self.arbiter.wake(instance_id)
        self._changes.changed(instance_id)


def new_agent(
    host: str,
    *,
    driver: Driver,
    bus: Bus,
    clock: Clock,
    journal: Path,
    settings: Settings,
    consoles: Consoles | None = None,
    blocking: Blocking = on_thread,
) -> Agent:
    """Make a host's agent, as the settings say; ``blocking`` renews its lease."""
    return Agent(
        host=host,
        driver=driver,
        bus=bus,
        consoles=consoles,
        clock=clock,
        journal=journal,
        relist_seconds=settings.agent.relist,
        heartbeat_seconds=settings.agent.heartbeat,
        limit_scale=settings.agent.limits,
        asks_first=True,
        lease=None if settings.death.lease is None else Path(settings.death.lease),
        blocking=blocking,
    )


def management_controllers(settings: Settings) -> dict[str, Bmc]:
    """Return the management controllers of the hosts that have one, by host."""
    said = settings.death
    return {
        host.name: Bmc(host.bmc, look_seconds=said.probe_timeout, off_seconds=said.fence_timeout)
        for host in settings.host
        if host.bmc is not None
    }


def means(
    settings: Settings,
    bmcs: Mapping[str, Bmc],
    power: Power | None = None,
    blocking: Blocking = on_thread,
) -> Callable[[str], Means]:
    """Return what the operator has set up to make sure of a host's death.

    Args:
        settings: the operator's.
        bmcs: those of hosts that have one.
        power: is asked in the stead of management controllers and programs.
        blocking: reads leases.
    """
    said = settings.death
    witnesses: list[Witness] = []
    fences: list[Fence] = []
    if said.lease is not None:
        witnesses.append(LeaseWitness(Path(said.lease), said.lease_seconds, blocking=blocking))
    if said.probe:
        witnesses.append(power or CommandWitness(said.probe, said.probe_timeout))
    if said.fence:
        fences.append(power or CommandFence(said.fence, said.fence_timeout))

    def of(host: str) -> Means:
        bmc = bmcs.get(host)
        own = [] if bmc is None else [power or bmc]
        # The one that is the host's own first.
        ways = [*own, *fences]
        return Means(witnesses=(*witnesses, *own), fence=FirstThatWorks(*ways) if ways else None)

    return of


def shutdown_defaults(settings: Settings) -> ShutdownDefaults:
    """Return what the operator says of clean shutdowns."""
    said = settings.shutdown
    return ShutdownDefaults(
        default=Layer(origin="default", seconds=said.default, at_deadline=said.at_deadline),
        limits=Limits(cap=said.cap, choices=said.choices),
        hosts={
            host.name: Layer(
                origin="host", seconds=host.shutdown_timeout, at_deadline=host.shutdown_at_deadline
            )
            for host in settings.host
        },
    )


def placement_rules(settings: Settings) -> Rules:
    """Return by which rules hosts are chosen and filled."""
    said = settings.placement
    return Rules(
        patience=settings.agent.patience,
        cpu_ratio=said.cpu_ratio,
        memory_ratio=said.memory_ratio,
        disk_ratio=said.disk_ratio,
        reserved=Room(vcpus=said.reserved_vcpus, memory=said.reserved_memory, disk=said.reserved_disk),
    )


def sweep_limits(settings: Settings) -> dict[str | None, SweepLimits]:
    """Return how many instances of a host may change at once: by name where it says so, under None for all others."""
    limits = msgspec.convert(settings.breaker, SweepLimits, from_attributes=True)
    found: dict[str | None, SweepLimits] = {None: limits}
    for host in settings.host:
        own = {"instances": host.sweep_instances, "percent": host.sweep_percent}
        said = {name: value for name, value in own.items() if value is not None}
        if said:
            found[host.name] = msgspec.structs.replace(limits, **said)
    return found
