"""One simulated guest as a value: what everything that can happen to it makes of it.

Every function takes a guest, and the time where it matters, and returns the guest afterwards; nothing here
waits, reads a clock or remembers. So a hypervisor that nobody ran for an hour works that hour out with one
call of ``settle``, and two processes that look at one record see the same guest. All times are seconds on
the hypervisor's clock; the caller settles a guest before it does anything else to it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Set as AbstractSet
from typing import Final

import msgspec
from msgspec.structs import replace

from stateward.agent.driver import DriverError, Guest, GuestMissing
from stateward.agent.simulated.behaviour import behaviour
from stateward.domain.diagnostics import Diagnostics, DiskFigures
from stateward.domain.records import GuestSpec
from stateward.domain.states import Cause, Observed
from stateward.domain.strangers import NovaFacts

#: Lines of console output kept; the record of a guest is written whole, so it must stay small.
CONSOLE_LINES: Final = 200


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """A guest's life since it was booted; kept, with its time standing still, while it is paused or saved."""

    obeys: bool
    shutdown: float
    #: None once it is up.
    up_at: float | None
    #: When it is off, by itself or because it was asked; never before ``up_at``.
    ends_at: float | None
    panics_at: float | None
    shutting_down: bool = False


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """A disk that was put aside."""

    #: GiB.
    disk: int
    #: Of the operation that put it aside.
    fence: int


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """What somebody else's guest was before it was adopted, and whether it is."""

    adopted: bool = False
    #: It starts with its host, unless it is adopted.
    autostart: bool = False
    #: It is forgotten when it goes off.
    transient: bool = False
    nova: NovaFacts | None = None


class SimulatedGuest(msgspec.Struct, frozen=True, kw_only=True):
    """All that a simulated hypervisor knows of one guest."""

    id: str
    #: GiB; None when there is no disk.
    disk: int | None = None
    #: What the disk was made of, and so the rescue disk; None without one.
    disk_image: str | None = None
    rescue_image: str | None = None
    #: None when no disk was put aside.
    kept: Kept | None = None
    #: The images that copies of its disk are to become.
    snapshots: tuple[str, ...] = ()
    #: None when the hypervisor has no such guest; its disk can be there without it.
    spec: GuestSpec | None = None
    observed: Observed = Observed.SHUTOFF
    cause: Cause = Cause.OTHER
    fence: int = 0
    #: There is one while it runs, is paused or is saved.
    run: Run | None = None
    #: Since when its time stands still; None while it runs or is off.
    halted_at: float | None = None
    console: tuple[str, ...] = ()
    #: What the agent inside was told, as a real guest keeps it: a digest of each user's password.
    passwords: dict[str, str] = {}
    #: None: the driver made it.
    origin: Origin | None = None

    @property
    def blank(self) -> bool:
        """Whether nothing is left of it."""
        return self == SimulatedGuest(id=self.id)

    @property
    def due_at(self) -> float | None:
        """When it will change by itself next; None when it will not."""
        if self.run is None or self.halted_at is not None:
            return None
        times = [at for at in (self.run.ends_at, self.run.panics_at) if at is not None]
        return min(times, default=None)


def view(guest: SimulatedGuest) -> Guest:
    """Return what the driver says of it."""
    if guest.spec is None:
        return Guest(instance_id=guest.id, observed=Observed.MISSING, cause=Cause.OTHER)
    return Guest(instance_id=guest.id, observed=guest.observed, cause=guest.cause, fence=guest.fence)


def settle(guest: SimulatedGuest, now: float) -> SimulatedGuest:
    """Let everything happen that the guest does by itself until ``now``."""
    run = guest.run
    if run is None or guest.halted_at is not None:
        return guest
    if run.up_at is not None and run.up_at <= now:
        guest = says(replace(guest, run=replace(run, up_at=None)), "up")
    due_at = guest.due_at
    if due_at is None or due_at > now:
        return guest
    return crash(guest) if due_at == run.panics_at else guest_shutdown(guest)


def powered(guest: SimulatedGuest) -> bool:
    """Say whether it has power, and so its disk in use."""
    return guest.spec is not None and guest.observed in _POWERED


def says(guest: SimulatedGuest, what: str) -> SimulatedGuest:
    """Have it say something on its console."""
    lines = (*guest.console, f"stateward-guest: {what}")
    return replace(guest, console=lines[-CONSOLE_LINES:])


# ---- what the driver is told to do


def define(guest: SimulatedGuest, spec: GuestSpec) -> SimulatedGuest:
    """Make it known, off, or take over a new definition, which counts from the next boot on.

    Raises:
        DriverError: there is no disk, or no rescue disk to boot from.
    """
    if guest.disk is None or (spec.rescue is not None and guest.rescue_image is None):
        msg = f"The disk of guest {guest.id} is not there: prepare it before the guest is defined."
        raise DriverError(msg)
    return replace(guest, spec=spec)


def mark_fence(guest: SimulatedGuest, fence: int) -> SimulatedGuest:
    """Store a fence, unless a higher one is stored; a missing guest has nowhere to store it."""
    return guest if guest.spec is None else replace(guest, fence=max(fence, guest.fence))


def power_on(guest: SimulatedGuest, now: float) -> SimulatedGuest:
    """Boot it. Throwing a saved memory away is a step of its own, so a saved one is refused.

    Raises:
        GuestMissing, DriverError: it is paused, crashed or saved.
    """
    spec = _defined(guest)
    if guest.observed is Observed.RUNNING:
        return guest
    if powered(guest):
        msg = f"The guest is {guest.observed}: take its power, or let it run on, before it boots."
        raise DriverError(msg)
    _check(
        guest,
        {Observed.SHUTOFF},
        "a boot would throw its saved memory away; reboot it hard if that is what you want",
    )
    return settle(_boot(guest, spec, now), now)


def request_shutdown(guest: SimulatedGuest, now: float) -> SimulatedGuest:
    """Press its power button: nothing comes of it unless the guest runs and is up."""
    run = guest.run
    if run is None or run.up_at is not None or guest.observed is not Observed.RUNNING:
        return guest
    guest = says(guest, "power button pressed")
    if run.shutting_down or not run.obeys:
        return guest
    ends_at = now + run.shutdown
    if run.ends_at is not None:
        ends_at = min(ends_at, run.ends_at)
    return settle(
        says(replace(guest, run=replace(run, ends_at=ends_at, shutting_down=True)), "shutting down"), now
    )


def power_off(guest: SimulatedGuest) -> SimulatedGuest:
    """Take its power; one that is off, saved or missing stays as it is."""
    return _off(guest, Cause.DESTROYED) if powered(guest) else guest


def pause(guest: SimulatedGuest, now: float, cause: Cause = Cause.OPERATOR) -> SimulatedGuest:
    """Halt it.

    Raises:
        GuestMissing, DriverError: it is off or crashed.
    """
    if guest.observed is Observed.PAUSED:
        return guest
    _check(guest, {Observed.RUNNING}, "only a running one can be paused")
    return replace(guest, observed=Observed.PAUSED, cause=cause, halted_at=now)


def unpause(guest: SimulatedGuest, now: float) -> SimulatedGuest:
    """Let it run on where it was.

    Raises:
        GuestMissing, DriverError: it is off or crashed.
    """
    _check(guest, {Observed.RUNNING, Observed.PAUSED}, "only a paused one can be let run on")
    return _go_on(guest, now)


def save_memory(guest: SimulatedGuest, now: float) -> SimulatedGuest:
    """Write its memory to disk and switch it off; a saved one stays as it is.

    Raises:
        GuestMissing, DriverError: it is off or crashed.
    """
    if guest.observed is Observed.SUSPENDED:
        return guest
    _check(guest, {Observed.RUNNING, Observed.PAUSED}, "it has no memory to save")
    halted_at = now if guest.halted_at is None else guest.halted_at
    return replace(guest, observed=Observed.SUSPENDED, cause=Cause.SAVED, halted_at=halted_at)


def restore_memory(guest: SimulatedGuest, now: float) -> SimulatedGuest:
    """Let it run on from its saved memory; one with power, even a paused one, has been started.

    Raises:
        GuestMissing, DriverError: it is off without a saved memory.
    """
    if powered(guest):
        return guest
    _check(guest, {Observed.SUSPENDED}, "it has no saved memory to start from")
    return _go_on(guest, now)


def discard_memory(guest: SimulatedGuest) -> SimulatedGuest:
    """Delete its saved memory, if there is one."""
    return _off(guest, Cause.OTHER) if guest.observed is Observed.SUSPENDED else guest


def save_to_file(guest: SimulatedGuest) -> SimulatedGuest:
    """Write its memory to a file that the hypervisor does not keep for it, and switch it off.

    Raises:
        GuestMissing, DriverError: it is off or crashed.
    """
    _check(guest, {Observed.RUNNING, Observed.PAUSED}, "it has no memory to save")
    return _off(guest, Cause.SAVED)


def remove(guest: SimulatedGuest) -> SimulatedGuest:
    """Leave nothing of it, neither guest nor disk; copies that are to become images are not its own.

    Raises:
        DriverError: it has power, or was adopted.
    """
    if powered(guest):
        msg = f"The guest is {guest.observed}: take its power before it is removed."
        raise DriverError(msg)
    if guest.origin is not None:
        msg = "The guest was adopted: it can be given back, not removed."
        raise DriverError(msg)
    return SimulatedGuest(id=guest.id, snapshots=guest.snapshots)


def forget(guest: SimulatedGuest) -> SimulatedGuest:
    """Make the hypervisor forget it, if it knows it; its disks stay.

    Raises:
        DriverError: it has power.
    """
    if powered(guest):
        msg = f"The guest is {guest.observed}: take its power before it is forgotten."
        raise DriverError(msg)
    return guest if guest.spec is None else undefine(guest)


def agent(guest: SimulatedGuest) -> str | None:
    """Say how the agent inside a running guest behaves (``behaviour``); None: it has none.

    Raises:
        GuestMissing, DriverError: it does not run.
    """
    _check(guest, {Observed.RUNNING}, "only in a running one can an agent answer")
    return behaviour(_defined(guest)).agent


def set_password(guest: SimulatedGuest, user: str, password: str) -> SimulatedGuest:
    """Have the agent inside set a user's password.

    Raises:
        GuestMissing, DriverError: it does not run.
    """
    _check(guest, {Observed.RUNNING}, "only in a running one can an agent answer")
    digest = hashlib.sha256(password.encode()).hexdigest()
    guest = replace(guest, passwords=guest.passwords | {user: digest})
    return says(guest, f"password of {user} set")


def inject_nmi(guest: SimulatedGuest) -> SimulatedGuest:
    """Raise a non-maskable interrupt; a simulated kernel says so, in Linux's words, and goes on.

    Raises:
        GuestMissing, DriverError: it is off.
    """
    _check(guest, _POWERED, "only one that is on can be interrupted")
    line = "Uhhuh. NMI received for unknown reason 20 on CPU 0."
    return replace(guest, console=(*guest.console, line)[-CONSOLE_LINES:])


def check_console(guest: SimulatedGuest) -> SimulatedGuest:
    """Return it, if it has a console that can be connected to now.

    Raises:
        GuestMissing, DriverError: it is off.
    """
    _check(guest, _POWERED, "it has a console while it is on")
    return guest


def typed(guest: SimulatedGuest, line: str) -> SimulatedGuest:
    """Have it hear a line typed at its console; one that does not run hears nothing."""
    return says(guest, f"console: {line}") if guest.observed is Observed.RUNNING else guest


def diagnostics(guest: SimulatedGuest) -> Diagnostics:
    """Measure it: it reads nothing, writes nothing and does no work.

    Raises:
        GuestMissing: there is none.
    """
    spec = _defined(guest)
    on = powered(guest)
    return Diagnostics(
        state=guest.observed,
        driver="simulated",
        hypervisor="simulated",
        cpu_times=(0,) * spec.vcpus if on else (),
        memory=spec.memory if on else 0,
        memory_used=spec.memory if on else None,
        disks=(DiskFigures(name="vda", errors=0),) if on else (),
    )


# ---- what happens behind the driver's back


def guest_shutdown(guest: SimulatedGuest) -> SimulatedGuest:
    """Have it shut itself down at once, as its own user can.

    Raises:
        GuestMissing, DriverError: it does not run.
    """
    _check(guest, {Observed.RUNNING}, "only a running one can shut itself down")
    if guest.run is not None and not guest.run.shutting_down:
        guest = says(guest, "shutting down")
    return _off(says(guest, "powered off"), Cause.GUEST)


def crash(guest: SimulatedGuest, *, kept: bool = False, cause: Cause = Cause.CRASHED) -> SimulatedGuest:
    """Have it crash, which switches it off; ``kept`` leaves the wreck in memory, as some hypervisors can.

    Raises:
        GuestMissing, DriverError: it does not run.
    """
    _check(guest, {Observed.RUNNING}, "only a running one can crash")
    guest = _off(guest, cause)
    return replace(guest, observed=Observed.CRASHED) if kept else guest


def destroy(guest: SimulatedGuest) -> SimulatedGuest:
    """Take its power as an operator by hand, who is told when there is none to take.

    Raises:
        GuestMissing, DriverError: it is off.
    """
    _check(guest, _POWERED, "it has no power to take")
    return power_off(guest)


def start(guest: SimulatedGuest, now: float) -> SimulatedGuest:
    """Start it as an operator by hand: from its saved memory when there is one, as libvirt does.

    Raises:
        GuestMissing, DriverError: it has power already.
    """
    _check(guest, {Observed.SHUTOFF, Observed.SUSPENDED}, "it was started already")
    return restore_memory(guest, now) if guest.observed is Observed.SUSPENDED else power_on(guest, now)


def undefine(guest: SimulatedGuest) -> SimulatedGuest:
    """Make the hypervisor forget it, whatever it is doing; its disks stay.

    Raises:
        GuestMissing: it was not known.
    """
    _defined(guest)
    return SimulatedGuest(
        id=guest.id,
        disk=guest.disk,
        disk_image=guest.disk_image,
        rescue_image=guest.rescue_image,
        kept=guest.kept,
        snapshots=guest.snapshots,
    )


def lose_power(guest: SimulatedGuest) -> SimulatedGuest:
    """Have its host go down under it; nobody notes why it is off, and a saved memory is still there after."""
    return _off(guest, Cause.OTHER) if powered(guest) else guest


# ---- the parts they are made of


_POWERED: Final = frozenset({Observed.RUNNING, Observed.PAUSED, Observed.CRASHED})


def _defined(guest: SimulatedGuest) -> GuestSpec:
    if guest.spec is None:
        msg = f"The simulated hypervisor has no guest {guest.id}."
        raise GuestMissing(msg)
    return guest.spec


def _check(guest: SimulatedGuest, allowed: AbstractSet[Observed], why: str) -> None:
    """Refuse, with the reason, unless the guest is known and in one of these states."""
    _defined(guest)
    if guest.observed not in allowed:
        msg = f"The guest is {guest.observed}: {why}."
        raise DriverError(msg)


def _boot(guest: SimulatedGuest, spec: GuestSpec, now: float) -> SimulatedGuest:
    does = behaviour(spec)
    up_at = now + does.boot
    run = Run(
        obeys=does.obeys,
        shutdown=does.shutdown,
        up_at=up_at,
        ends_at=None if does.poweroff_after is None else up_at + does.poweroff_after,
        panics_at=None if does.panic_after is None else up_at + does.panic_after,
    )
    return replace(guest, observed=Observed.RUNNING, cause=Cause.OTHER, run=run, halted_at=None)


def _off(guest: SimulatedGuest, cause: Cause) -> SimulatedGuest:
    if guest.origin is not None and guest.origin.transient:
        return undefine(guest)
    return replace(guest, observed=Observed.SHUTOFF, cause=cause, run=None, halted_at=None)


def _go_on(guest: SimulatedGuest, now: float) -> SimulatedGuest:
    """Let its time run on, unless it does: what it was going to do comes as much later as it stood still."""
    run, halted_at = guest.run, guest.halted_at
    if run is None or halted_at is None:
        return guest
    stood = now - halted_at

    def later(at: float | None) -> float | None:
        return None if at is None else at + stood

    run = replace(run, up_at=later(run.up_at), ends_at=later(run.ends_at), panics_at=later(run.panics_at))
    return replace(guest, observed=Observed.RUNNING, cause=Cause.OTHER, run=run, halted_at=None)
