"""Deaths of hosts: from silence, by a second signal and a fence, to a plan; and back again (ADR 0020).

Silence is counted here, on the event loop's time, from the last heartbeat of another number: no clock of a host's, and
no jump of this machine's, makes a host silent; and a control plane that has just been started has heard of nobody yet,
so it gives everybody their time. What is known of a host is in its row, and each step is a write with the step before
it in its WHERE clause: killed anywhere, the next look goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Final

import msgspec
import sqlalchemy as sa
import structlog

from stateward.arbiter.death_steps import DeathSteps, alert
from stateward.arbiter.rid import Returning
from stateward.arbiter.waves import Wave
from stateward.arbiter.witnesses import Means
from stateward.bus.port import STANDING, Bus
from stateward.domain.hosts import Condition, Event, Frozen
from stateward.domain.questions import Standing
from stateward.operations import host_plans as planning
from stateward.operations.admission import Admission
from stateward.operations.host_plans import Wishes
from stateward.operations.lives import become, heard_again
from stateward.store import hosts, observations, strays
from stateward.store.engine import StoreUnavailable
from stateward.store.hosts import Pulse

log = structlog.get_logger()

#: Looks at the hosts while one of them could become silent.
_LOOKS_PER_SILENCE: Final = 10
#: Seconds between two looks, at least and at most.
_SHORTEST: Final = 0.5
_LONGEST: Final = 5.0


#: Nobody but the operator knows, and can do anything.
_NONE: Final = Means()


class DeathRules(msgspec.Struct, frozen=True, kw_only=True):
    """What the operator says of silent hosts."""

    #: Seconds without a heartbeat until a host is suspect.
    silence: float = 30.0
    #: More silent hosts than this at once, or more than this share of all: the network of this machine is the suspect.
    many: int = 3
    share: float = 0.5
    #: An evacuation needs nobody's approval.
    approved: bool = False


class UnderWay(msgspec.Struct, frozen=True):
    """What is being done about a host."""

    #: As it was when that was begun.
    pulse: Pulse
    task: asyncio.Task[None]

    def is_about(self, pulse: Pulse) -> bool:
        """Say whether the host is still in the condition in which this was begun."""
        return _mark(pulse) == _mark(self.pulse)


def _mark(pulse: Pulse) -> tuple[object, ...]:
    """Return what makes another thing of what is to be done about a host."""
    return pulse.condition, pulse.since, pulse.maintained, pulse.forced_down


class Deaths:
    """Watches over the hosts' lives."""

    def __init__(
        self,
        admission: Admission,
        bus: Bus,
        rules: DeathRules,
        *,
        means: Callable[[str], Means] = lambda _host: _NONE,
        wishes: Wishes = planning.NO_WISHES,
        approved: Callable[[], None] = lambda: None,
    ) -> None:
        """Use an admission's database and clock.

        Args:
            admission: whose.
            bus: the way to agents that have come back.
            rules: the operator's.
            means: of a host: its second signals, with none of which only the operator confirms, and its fence.
            wishes: what is evacuated.
            approved: called when a plan was approved.
        """
        self._admission = admission
        self._database = admission.database
        self._bus = bus
        self._rules = rules
        self._steps = DeathSteps(
            admission,
            Returning(self._database, bus),
            means=means,
            wishes=wishes,
            auto=rules.approved,
            approved=approved,
            wake=self.wake,
        )
        #: The number of each host's last heartbeat, and when it was seen first, by the event loop's time.
        self._heard: dict[str, tuple[int, float]] = {}
        self._wave = Wave(many=rules.many, share=rules.share)
        self._many_told = False
        #: What is being done about each host that is not up.
        self._under_way: dict[str, UnderWay] = {}
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Watch from now on, and tell agents that start whether they may go on."""
        await self._bus.answer(STANDING, self._standing)
        self._task = asyncio.create_task(self._run(), name="deaths of hosts")

    async def stop(self) -> None:
        """Stop; what is due is seen again by the next start."""
        tasks = [each.task for each in self._under_way.values()]
        if self._task is not None:
            tasks.insert(0, self._task)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def wake(self) -> None:
        """Look now: an operator has said something of a host."""
        self._wake.set()

    async def look(self) -> None:
        """Look at all hosts once, do what is due, and return when it is done.

        Raises:
            StoreUnavailable: the database cannot be used.
        """
        await self._look()
        await asyncio.gather(*(each.task for each in self._under_way.values()), return_exceptions=True)

    async def _look(self) -> None:
        """Look at all hosts once, and begin what is due; nothing that a witness or a fence takes is waited for."""
        pulses = await self._database.read(hosts.pulses)
        silent = self._fallen_silent(pulses)
        # Nothing leaves one so; a version before this one did.
        bare = [each for each in pulses if each.condition is not Condition.UP and each.frozen is None]
        if silent or bare:
            await self._database.write(lambda connection: self._suspect(connection, silent, bare))
            pulses = await self._database.read(hosts.pulses)
        many = await self._too_many(pulses)
        for pulse in pulses:
            # The network of this machine says nothing about what an operator, or a second signal, has said before.
            waits = many and pulse.condition is Condition.SUSPECT and not pulse.forced_down
            self._begin(pulse, due=pulse.condition is not Condition.UP and not waits)

    def _begin(self, pulse: Pulse, *, due: bool) -> None:
        """Do what is due about a host, beside all others; what was begun before it became another is given up."""
        running = self._under_way.get(pulse.name)
        if running is not None and not running.task.done():
            if due and running.is_about(pulse):
                return
            running.task.cancel()
        self._under_way.pop(pulse.name, None)
        if due:
            task = asyncio.create_task(self._further(pulse), name=f"host {pulse.name} is {pulse.condition}")
            self._under_way[pulse.name] = UnderWay(pulse=pulse, task=task)

    async def _further(self, pulse: Pulse) -> None:
        try:
            await self._steps.further(pulse)
        except StoreUnavailable as error:
            log.warning("a host cannot be brought further now", host=pulse.name, error=str(error))
        except Exception:
            # One host's fault must not end the watch over all others.
            log.exception("a host could not be brought further; it is tried again", host=pulse.name)

    def _fallen_silent(self, pulses: Sequence[Pulse]) -> list[Pulse]:
        """Return the hosts that have not been heard of for too long, by looks at the numbers of their heartbeats."""
        now = asyncio.get_running_loop().time()
        found: list[Pulse] = []
        for pulse in pulses:
            last = self._heard.get(pulse.name)
            # A maintained host may be silent; when that has ended it has its time, like any other.
            if last is None or last[0] != pulse.heard_seq or pulse.maintained:
                self._heard[pulse.name] = (pulse.heard_seq, now)
            elif (
                # One that was never heard of has nothing that could be silent.
                pulse.heard_seq and now - last[1] > self._rules.silence and pulse.condition in _ALIVE
            ):
                found.append(pulse)
        return found

    def _suspect(self, connection: sa.Connection, silent: Sequence[Pulse], bare: Sequence[Pulse]) -> None:
        now, says = self._admission.clock.now(), f"It has not been heard of for {self._rules.silence:g} s."
        for pulse in silent:
            # A heartbeat that came since the host was looked at says that it is not silent.
            if become(connection, pulse.name, Event.SILENT, says, now, seq=pulse.heard_seq) is not None:
                hosts.freeze(connection, pulse.name, Frozen.SILENT, says, now)
        for pulse in bare:
            hosts.freeze_down(connection, pulse.name)

    async def _too_many(self, pulses: Sequence[Pulse]) -> bool:
        """Say whether so many are silent at once that it is this machine's network; tell it once."""
        silent = self._wave.look(pulses)
        if silent and not self._many_told:
            says = (
                f"{len(silent)} of {len(pulses)} hosts are silent at once: the control plane's own network is the "
                "suspect. No host is declared dead."
            )
            await alert(self._admission, says, hosts=[each.name for each in silent])
        self._many_told = bool(silent)
        return bool(silent)

    async def _standing(self, payload: bytes) -> bytes:
        """Tell an agent that starts what it must not act on any more; from here on its host is not evacuated."""
        host = payload.decode()

        def work(connection: sa.Connection) -> Standing:
            heard_again(connection, host, "Its agent was started.", self._admission.clock.now())
            return Standing(
                overtaken={each.instance_id: each.fence for each in strays.on(connection, host)},
                above=observations.highest(connection, host),
            )

        answer = msgspec.json.encode(await self._database.write(work))
        # Who asks lives: its first heartbeat is yet to come.
        self._heard.pop(host, None)
        self.wake()
        return answer

    async def _run(self) -> None:
        pause = min(max(self._rules.silence / _LOOKS_PER_SILENCE, _SHORTEST), _LONGEST)
        while True:
            self._wake.clear()
            try:
                await self._look()
            except StoreUnavailable as error:
                log.warning("hosts cannot be looked at now", error=str(error))
            except Exception:
                log.exception("hosts could not be looked at; it is tried again")
            # Not wait_for: on Python 3.11 it loses a cancellation that comes together with the event.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._wake.wait()


#: Where silence is news.
_ALIVE: Final = frozenset({Condition.UP, Condition.RETURNED})
