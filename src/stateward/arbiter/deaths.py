"""Deaths of hosts: from silence, by a second signal and a fence, to a plan; and back again (ADR 0020).

Silence is counted here, on the event loop's time, from the last heartbeat of another number: no clock of a host's, and
no jump of this machine's, makes a host silent; and a control plane that has just been started has heard of nobody yet,
so it gives everybody their time. What is known of a host is in its row, and each step is a write with the step before
it in its WHERE clause: killed anywhere, the next look goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import uuid
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec
import sqlalchemy as sa
import structlog

from stateward.arbiter.rid import Returning
from stateward.arbiter.witnesses import Evidence, Fence, FenceFailed, Means, Witness, Word
from stateward.bus.port import STANDING, Bus
from stateward.domain.errors import Conflict
from stateward.domain.evacuation import PlanKind
from stateward.domain.hosts import Condition, Event, Frozen
from stateward.domain.questions import Standing
from stateward.operations import host_plans as planning
from stateward.operations.admission import Admission
from stateward.operations.host_plans import Wishes
from stateward.operations.immediate import system_actor
from stateward.operations.lives import become, heard_again
from stateward.store import host_plans, hosts, operations, strays
from stateward.store.engine import StoreUnavailable
from stateward.store.hosts import Pulse

log = structlog.get_logger()

#: Looks at the hosts while one of them could become silent.
_LOOKS_PER_SILENCE: Final = 10
#: Seconds between two looks, at least and at most.
_SHORTEST: Final = 0.5
_LONGEST: Final = 5.0
#: Seconds until a fence that failed is tried again, at first; twice as long each time.
_FENCE_PAUSE: Final = 15.0
_LONGEST_FENCE_PAUSE: Final = 600.0


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
        self._means = means
        self._wishes = wishes
        self._approved = approved
        self._returning = Returning(self._database, bus)
        #: The number of each host's last heartbeat, and when it was seen first, by the event loop's time.
        self._heard: dict[str, tuple[int, float]] = {}
        #: What was told last of a host, so that it is told once.
        self._told: dict[str, str] = {}
        self._many_told = False
        #: When each host's fence may be tried again, and after how many failures.
        self._again: dict[str, tuple[float, int]] = {}
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Watch from now on, and tell agents that start whether they may go on."""
        await self._bus.answer(STANDING, self._standing)
        self._task = asyncio.create_task(self._run(), name="deaths of hosts")

    async def stop(self) -> None:
        """Stop; what is due is seen again by the next start."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    def wake(self) -> None:
        """Look now: an operator has said something of a host."""
        self._wake.set()

    async def look(self) -> None:
        """Look at all hosts once, and do what is due.

        Raises:
            StoreUnavailable: the database cannot be used.
        """
        pulses = await self._database.read(hosts.pulses)
        silent = self._fallen_silent(pulses)
        # Those whose maintenance has ended while they were not up.
        bare = [each for each in pulses if each.condition is not Condition.UP and each.frozen is None]
        if silent or bare:
            await self._database.write(lambda connection: self._suspect(connection, silent, bare))
            pulses = await self._database.read(hosts.pulses)
        suspects = [each for each in pulses if each.condition is Condition.SUSPECT and not each.maintained]
        if await self._too_many(suspects, len(pulses)):
            return
        # Side by side: a host whose probe or fence takes its time holds up the others by no more than that.
        await asyncio.gather(
            *(self._further(pulse) for pulse in pulses if pulse.condition is not Condition.UP)
        )

    async def _further(self, pulse: Pulse) -> None:
        """Bring one host further, as far as it can come now."""
        match pulse.condition:
            case Condition.SUSPECT if not pulse.maintained:
                await self._second_signal(pulse)
            case Condition.DEAD if not pulse.maintained:
                fence = self._means(pulse.name).fence
                if fence is not None:
                    await self._take_power(pulse, fence)
            case Condition.FENCED:
                await self._plan(pulse)
            case Condition.RETURNED if await self._returning.rid(pulse.name):
                await self._database.write(functools.partial(self._clean, pulse=pulse))
            case _:
                pass

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
            hosts.freeze(connection, pulse.name, Frozen.SILENT, pulse.detail or says, now)

    async def _too_many(self, suspects: Sequence[Pulse], of: int) -> bool:
        """Say whether so many are silent at once that it is this machine's network; tell it once."""
        count = len(suspects)
        if count <= 1 or (count <= self._rules.many and count <= self._rules.share * of):
            self._many_told = False
            return False
        if not self._many_told:
            says = (
                f"{count} of {of} hosts are silent at once: the control plane's own network is the suspect. "
                "No host is declared dead."
            )
            await self._alert(says, hosts=[each.name for each in suspects])
            self._many_told = True
        return True

    async def _second_signal(self, pulse: Pulse) -> None:
        """Have a suspect confirmed by whoever knows; one witness who says that it lives is enough for that."""
        if pulse.forced_down:
            await self._confirm(pulse, "An operator forced it down.")
            return
        evidence = [await self._ask(witness, pulse) for witness in self._means(pulse.name).witnesses]
        if not any(each.word is Word.ALIVE for each in evidence):
            dead = [each.says for each in evidence if each.word is Word.DEAD]
            if dead:
                await self._confirm(pulse, " ".join(dead))
                return
        heard = " ".join(each.says for each in evidence) or "There is no second signal."
        await self._tell(
            pulse,
            "suspect",
            f"Host {pulse.name} is silent. {heard} If it is dead, say so: stateward host confirm --dead {pulse.name}",
        )

    async def _ask(self, witness: Witness, pulse: Pulse) -> Evidence:
        try:
            return await witness.ask(pulse.name, pulse.since or 0.0)
        except Exception as error:  # a plugin's fault must not end the watch over all hosts
            log.exception("a witness failed", host=pulse.name)
            return Evidence(word=Word.UNKNOWN, says=f"A witness failed: {error!r}")

    async def _confirm(self, pulse: Pulse, says: str) -> None:
        await self._become(pulse, Event.CONFIRMED, says)
        if self._means(pulse.name).fence is None:
            await self._tell(
                pulse,
                "dead",
                f"Host {pulse.name} is dead: {says} Take its power, then say so: "
                f"stateward host fence --done {pulse.name}",
            )
        self.wake()

    async def _take_power(self, pulse: Pulse, fence: Fence) -> None:
        now = asyncio.get_running_loop().time()
        due, failures = self._again.get(pulse.name, (now, 0))
        if now < due:
            return
        try:
            says = await fence.fence(pulse.name)
        except Exception as error:
            if not isinstance(error, FenceFailed):
                log.exception("a fence failed by a fault of its own", host=pulse.name)
            pause = min(_FENCE_PAUSE * 2**failures, _LONGEST_FENCE_PAUSE)
            self._again[pulse.name] = (now + pause, failures + 1)
            await self._tell(pulse, "fence", f"Host {pulse.name} is dead and could not be fenced: {error}")
            return
        self._again.pop(pulse.name, None)
        await self._become(pulse, Event.FENCED, says)
        self.wake()

    async def _plan(self, pulse: Pulse) -> None:
        """Plan the evacuation of a host that was fenced, unless that was done since; nothing more without approval."""

        def work(connection: sa.Connection) -> str | None:
            host = hosts.hold_fenced(connection, pulse.name)
            last = host_plans.of_host(connection, pulse.name, PlanKind.EVACUATE)
            if host is None or (last is not None and last.made_at >= (host.condition_at or 0.0)):
                return None
            now = self._admission.clock.now()
            actor = system_actor(f"req-{uuid.uuid4()}")
            plan = planning.preview(
                connection,
                host,
                PlanKind.EVACUATE,
                rules=self._admission.placement,
                wishes=self._wishes,
                now=now,
            )
            try:
                kept = planning.keep(connection, plan, PlanKind.EVACUATE, actor, now=now, detail={})
            except Conflict:
                return None
            if self._rules.approved:
                planning.approve(connection, pulse.name, kept.id, actor, now)
            says = (
                f"Host {pulse.name} is fenced. {len(plan.acting)} of its {len(plan.moves)} instances can be evacuated"
                + (
                    ", and are."
                    if self._rules.approved
                    else f": stateward host evacuate {pulse.name} --approve {kept.id}"
                )
            )
            self._alert_in(connection, says, now, host=pulse.name, plan=kept.id, **planning.counts(plan))
            return kept.id

        if await self._database.write(work) is not None and self._rules.approved:
            self._approved()

    def _clean(self, connection: sa.Connection, pulse: Pulse) -> None:
        now, says = self._admission.clock.now(), "Nothing is left on it that was made anew elsewhere."
        if strays.on(connection, pulse.name):
            return
        if become(connection, pulse.name, Event.CLEAN, says, now) is not None:
            hosts.thaw(connection, pulse.name, Frozen.SILENT)

    async def _standing(self, payload: bytes) -> bytes:
        """Tell an agent that starts what it must not act on any more; from here on its host is not evacuated."""
        host = payload.decode()

        def work(connection: sa.Connection) -> Standing:
            heard_again(connection, host, "Its agent was started.", self._admission.clock.now())
            return Standing(overtaken={each.instance_id: each.fence for each in strays.on(connection, host)})

        answer = msgspec.json.encode(await self._database.write(work))
        # Who asks lives: its first heartbeat is yet to come.
        self._heard.pop(host, None)
        self.wake()
        return answer

    async def _become(self, pulse: Pulse, event: Event, says: str) -> None:
        await self._database.write(
            lambda connection: become(connection, pulse.name, event, says, self._admission.clock.now())
        )

    async def _tell(self, pulse: Pulse, what: str, says: str) -> None:
        """Alert once for each thing that became of a host."""
        key = f"{what} {pulse.since}"
        if self._told.get(pulse.name) == key:
            return
        await self._alert(says, host=pulse.name)
        self._told[pulse.name] = key

    async def _alert(self, says: str, **detail: Any) -> None:
        log.warning("alert", says=says, **detail)
        await self._database.write(
            lambda connection: self._alert_in(connection, says, self._admission.clock.now(), **detail)
        )

    def _alert_in(self, connection: sa.Connection, says: str, now: float, **detail: Any) -> None:
        operations.record(
            connection,
            at=now,
            event="alert",
            actor=system_actor(f"req-{uuid.uuid4()}"),
            instance_id=None,
            action="host",
            detail={"says": says} | detail,
        )

    async def _run(self) -> None:
        pause = min(max(self._rules.silence / _LOOKS_PER_SILENCE, _SHORTEST), _LONGEST)
        while True:
            self._wake.clear()
            try:
                await self.look()
            except StoreUnavailable as error:
                log.warning("hosts cannot be looked at now", error=str(error))
            except Exception:
                # One host's fault must not end the watch over all others.
                log.exception("hosts could not be looked at; it is tried again")
            # Not wait_for: on Python 3.11 it loses a cancellation that comes together with the event.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._wake.wait()


#: Where silence is news.
_ALIVE: Final = frozenset({Condition.UP, Condition.RETURNED})
