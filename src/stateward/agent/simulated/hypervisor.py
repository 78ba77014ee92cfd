"""A hypervisor made of nothing, and what happens there behind the driver's back.

Its guests outlive agents and servers as real ones do: in memory they live as long as this object, which
several drivers may share; with a folder they live there, and time goes on for them while no process runs.
That takes no process, because what a guest does by itself follows from its record and the time
(``guests.settle``). Timers exist only to tell whoever listens.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Final

import msgspec

from stateward.agent.driver import Changed
from stateward.agent.simulated import guests, origins
from stateward.agent.simulated.console import SimulatedConsole
from stateward.agent.simulated.faults import Faults
from stateward.agent.simulated.file import GuestFile
from stateward.agent.simulated.guests import SimulatedGuest
from stateward.clock import Clock, SystemClock
from stateward.domain.records import GuestSpec
from stateward.domain.states import Cause, Observed
from stateward.domain.strangers import NovaFacts
from stateward.domain.sweeps import Trace

#: Seconds between two looks at what other processes did to the guests of a folder.
LOOK_SECONDS: Final = 0.05


class HostSize(msgspec.Struct, frozen=True, kw_only=True):
    """What the host says it has; memory in MiB, disk in GiB."""

    vcpus: int = 1000
    memory: int = 1024 * 1024
    disk: int = 10 * 1024


LARGE: Final = HostSize()

#: A second look that can tell nothing.
NO_TRACE: Final = Trace()

#: Makes of a settled guest and the time what the guest is then.
Change = Callable[[SimulatedGuest, float], SimulatedGuest]


class SimulatedHypervisor(Faults):
    """The guests of one simulated host.

    Its verbs act behind the driver's back, at once, also while the hypervisor is unavailable to the driver.
    They raise ``GuestMissing`` and ``DriverError`` where a guest is not such that they could act on it.
    """

    def __init__(
        self,
        folder: Path | None = None,
        *,
        clock: Clock | None = None,
        latency: float = 0.0,
        size: HostSize = LARGE,
    ) -> None:
        """Find the guests in ``folder``, or begin without any.

        Args:
            folder: where guests outlive the process; None keeps them in this object.
            clock: what guests live by. Without one it is the event loop's time in memory, and the machine's
                clock in a folder, where several processes must agree on it.
            latency: seconds that each call of a driver takes.
            size: what the host says it has.
        """
        super().__init__(latency)
        self.size = size
        self._clock = clock if clock is not None or folder is None else SystemClock()
        self._guests: dict[str, SimulatedGuest] = {}
        self._consoles: dict[str, SimulatedConsole] = {}
        self._away = False
        #: Guests that it does not mention to drivers, although they are there.
        self.hidden: frozenset[str] = frozenset()
        #: What a second look finds in the place of what is there; ``NO_TRACE`` for one that can tell nothing.
        self.traces: dict[str, Trace] = {}
        #: Whoever listens is told of no change, as when a connection loses its events.
        self.silent = False
        #: Called with every change of a guest as it was and as it is, also while nobody listens.
        self.witness: Callable[[SimulatedGuest, SimulatedGuest], None] = _nobody
        self._boot_id = str(uuid.uuid4())
        self._listeners: dict[object, Changed] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._look: asyncio.TimerHandle | None = None
        self._file = None if folder is None else GuestFile(folder)
        self._read()

    def close(self) -> None:
        """Let the folder go; its guests run on."""
        self._quiet()
        if self._file is not None:
            self._file.close()
            self._file = None

    # ---- behind the driver's back

    def make(
        self,
        spec: GuestSpec,
        *,
        autostart: bool = False,
        transient: bool = False,
        nova: NovaFacts | None = None,
    ) -> None:
        """Make a guest that is none of the driver's, and start it, as an operator by hand."""
        self.change(
            spec.instance_id,
            lambda guest, now: origins.made_by_hand(
                guest, spec, now, autostart=autostart, transient=transient, nova=nova
            ),
        )

    def destroy(self, instance_id: str) -> None:
        """Take a guest's power, as an operator by hand."""
        self.change(instance_id, lambda guest, _: guests.destroy(guest))

    def crash(self, instance_id: str, *, kept: bool = False, cause: Cause = Cause.CRASHED) -> None:
        """Have a guest crash, which switches it off; ``kept`` leaves it crashed and in memory instead.

        ``cause`` can be another that ends a guest with its host up: want of memory, or a migration away.
        """
        self.change(instance_id, lambda guest, _: guests.crash(guest, kept=kept, cause=cause))

    def pause(self, instance_id: str, cause: Cause = Cause.OPERATOR) -> None:
        """Halt a guest; ``cause`` can be that of a full disk, for example."""
        self.change(instance_id, lambda guest, now: guests.pause(guest, now, cause))

    def resume(self, instance_id: str) -> None:
        """Let a paused guest run on."""
        self.change(instance_id, guests.unpause)

    def save(self, instance_id: str) -> None:
        """Write a guest's memory to disk and switch it off."""
        self.change(instance_id, guests.save_memory)

    def save_to_file(self, instance_id: str) -> None:
        """Write a guest's memory to a file of the operator's and switch it off."""
        self.change(instance_id, lambda guest, _: guests.save_to_file(guest))

    def start(self, instance_id: str) -> None:
        """Start a guest that is off, from its saved memory when there is one."""
        self.change(instance_id, guests.start)

    def undefine(self, instance_id: str) -> None:
        """Have the hypervisor forget a guest, whatever it is doing; its disk stays."""
        self.change(instance_id, lambda guest, _: guests.undefine(guest))

    def guest_shutdown(self, instance_id: str) -> None:
        """Have a guest shut itself down at once, as its own user can."""
        self.change(instance_id, lambda guest, _: guests.guest_shutdown(guest))

    def reboot_host(self) -> None:
        """Take the power of the whole host and boot it: every guest is off after, and nobody noted why.

        What was saved to disk stays. Whoever listens is told to look at everything.
        """
        with self._alone():
            self._boot_id = str(uuid.uuid4())
            if self._file is not None:
                self._file.write_boot(self._boot_id)
        self._tell(None)
        for guest in self.guests():
            self.change(guest.id, lambda guest, _: guests.lose_power(guest))

    def unavailable(self) -> None:
        """Make every driver call raise ``HypervisorUnavailable``; its guests run on, and nobody hears."""
        self._set_away(away=True)

    def available(self) -> None:
        """Answer again; whoever listens is told to look at everything."""
        self._set_away(away=False)

    # ---- what the driver is made of

    @property
    def away(self) -> bool:
        """Whether drivers cannot ask it."""
        self._read()
        return self._away

    @property
    def boot_id(self) -> str:
        """The boot that the machine is in."""
        self._read()
        return self._boot_id

    def guest(self, instance_id: str) -> SimulatedGuest:
        """Return a guest as it is now; a blank one when nothing is there."""
        self._read()
        return self._settled(instance_id, self._now())

    def mentioned(self, instance_id: str) -> SimulatedGuest:
        """Return a guest as drivers see it."""
        return SimulatedGuest(id=instance_id) if instance_id in self.hidden else self.guest(instance_id)

    def second_look(self, instance_id: str) -> Trace:
        """Say what can be found of a guest past the lists that drivers get."""
        found = self.traces.get(instance_id)
        if found is not None:
            return found
        guest = self.guest(instance_id)
        return Trace(
            process=guests.powered(guest),
            defined=guest.spec is not None,
            seen=Observed.MISSING if guest.spec is None else guest.observed,
        )

    def guests(self) -> list[SimulatedGuest]:
        """Return whatever is there as it is now, disks without a guest among it."""
        self._read()
        now = self._now()
        return [self._settled(instance_id, now) for instance_id in tuple(self._guests)]

    def change(self, instance_id: str, change: Change) -> None:
        """Make a change to a guest as it is now, with no other process between the look and the change."""
        with self._alone():
            now = self._now()
            before = self._settled(instance_id, now)
            after = change(before, now)
            if after != before and self._file is not None:
                self._file.write(after)
        self._keep(after)

    def attach(self, instance_id: str) -> SimulatedConsole:
        """Connect to a guest's console, in the stead of whoever is connected.

        Raises:
            GuestMissing, DriverError: it is off.
        """
        guest = guests.check_console(self.guest(instance_id))
        before = self._consoles.pop(instance_id, None)
        if before is not None:
            before.end("Another connection has taken the console over.")

        def closed() -> None:
            if self._consoles.get(instance_id) is console:
                del self._consoles[instance_id]

        console = SimulatedConsole(guest, lambda change: self.change(instance_id, change), closed)
        self._consoles[instance_id] = console
        return console

    def listen(self, key: object, changed: Changed) -> None:
        """Call ``changed`` on the running event loop for every change from now on, until ``unlisten``."""
        self._loop = asyncio.get_running_loop()
        self._listeners[key] = changed
        if len(self._listeners) > 1:
            return
        for guest in self.guests():
            self._set_timer(guest)
        if self._file is not None:
            self._look = self._loop.call_later(LOOK_SECONDS, self._look_again, self._loop)

    def unlisten(self, key: object) -> None:
        """Stop telling; with nobody left who listens, no timer is left either."""
        self._listeners.pop(key, None)
        if not self._listeners:
            self._quiet()

    # ---- the parts

    def _now(self) -> float:
        return asyncio.get_running_loop().time() if self._clock is None else self._clock.now()

    def _set_away(self, *, away: bool) -> None:
        with self._alone():
            if self._file is not None:
                self._file.write_away(away=away)
        self._keep_away(away=away)

    @contextlib.contextmanager
    def _alone(self) -> Generator[None]:
        if self._file is None:
            yield
            return
        with self._file.alone():
            self._read()
            yield

    def _read(self) -> None:
        """Take over what other processes did."""
        if self._file is None:
            return
        news = self._file.news()
        # Before the guests: what is told of them is told of this boot.
        booted, self._boot_id = self._boot_id != self._file.boot_id, self._file.boot_id
        if booted:
            self._tell(None)
        for guest in news:
            self._keep(guest, told=True)
        self._keep_away(away=self._file.away)

    def _settled(self, instance_id: str, now: float) -> SimulatedGuest:
        before = self._guests.get(instance_id)
        if before is None:
            return SimulatedGuest(id=instance_id)
        guest = guests.settle(before, now)
        if guest is not before:
            self._keep(guest)
        return guest

    def _keep(self, guest: SimulatedGuest, *, told: bool = False) -> None:
        """Take a guest over as it is now, and tell when it looks different, or in any case when ``told``."""
        before = self._guests.get(guest.id, SimulatedGuest(id=guest.id))
        if guest.blank:
            self._guests.pop(guest.id, None)
        else:
            self._guests[guest.id] = guest
        self._set_timer(guest)
        console = self._consoles.get(guest.id)
        if console is not None:
            console.saw(guest)
        self.witness(before, guest)
        if told or _looks(before) != _looks(guest):
            self._tell(guest.id)

    def _keep_away(self, *, away: bool) -> None:
        back = self._away and not away
        self._away = away
        if back:
            self._tell(None)

    def _tell(self, instance_id: str | None) -> None:
        if self._away or self.silent or self._loop is None:
            return
        for key in self._listeners:
            self._loop.call_soon(self._tell_one, key, instance_id)

    def _tell_one(self, key: object, instance_id: str | None) -> None:
        changed = self._listeners.get(key)
        if changed is not None:
            changed(instance_id)

    def _set_timer(self, guest: SimulatedGuest) -> None:
        timer = self._timers.pop(guest.id, None)
        if timer is not None:
            timer.cancel()
        if self._loop is not None and guest.due_at is not None:
            delay = guest.due_at - self._now()
            self._timers[guest.id] = self._loop.call_later(delay, self._due, guest.id, guest.due_at)

    def _due(self, instance_id: str, due_at: float) -> None:
        self._read()
        # The loop may wake a little early, and the clock may have been set back: it is due all the same.
        self._settled(instance_id, max(due_at, self._now()))

    def _look_again(self, loop: asyncio.AbstractEventLoop) -> None:
        self._look = loop.call_later(LOOK_SECONDS, self._look_again, loop)
        self._read()

    def _quiet(self) -> None:
        self._listeners.clear()
        self._loop = None
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        if self._look is not None:
            self._look.cancel()
            self._look = None


def _nobody(_before: SimulatedGuest, _after: SimulatedGuest) -> None:
    pass


def _looks(guest: SimulatedGuest) -> tuple[object, ...]:
    return guest.spec is None or origins.foreign(guest), guest.observed, guest.cause
