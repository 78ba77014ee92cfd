"""What is done about one host that is not up, step by step: a second signal, its power, a plan, and its return.

Each step is a write with the condition before it, and since when the host is in it, in its WHERE clause: one that took
so long that the host came back, and fell silent again, changes nothing (ADR 0020).
"""

from __future__ import annotations

import asyncio
import functools
import uuid
from collections.abc import Callable
from typing import Any, Final

import msgspec
import sqlalchemy as sa
import structlog

from stateward.arbiter.rid import Returning
from stateward.arbiter.witnesses import Evidence, Fence, FenceFailed, Means, Witness, Word
from stateward.domain.errors import Conflict
from stateward.domain.evacuation import PlanKind
from stateward.domain.hosts import Condition, Event, Frozen
from stateward.operations import host_plans as planning
from stateward.operations.admission import Admission
from stateward.operations.host_plans import Wishes
from stateward.operations.immediate import system_actor
from stateward.operations.lives import become
from stateward.store import host_plans, hosts, operations, strays
from stateward.store.hosts import Pulse

log = structlog.get_logger()

#: Seconds until a fence that failed is tried again, at first; twice as long each time.
_FENCE_PAUSE: Final = 15.0
_LONGEST_FENCE_PAUSE: Final = 600.0
#: Beyond any pause; a rack that has no power fails for weeks.
_DOUBLINGS: Final = 16


class Failures(msgspec.Struct, frozen=True, kw_only=True):
    """How often the fence of a host failed in one death of it."""

    #: Since when the host is dead.
    since: float | None
    count: int
    #: When it may be tried again, by the event loop's time.
    due: float


class DeathSteps:
    """Brings hosts that are not up further; what was told of each is told once."""

    def __init__(
        self,
        admission: Admission,
        returning: Returning,
        *,
        means: Callable[[str], Means],
        wishes: Wishes,
        auto: bool,
        approved: Callable[[], None],
        wake: Callable[[], None],
    ) -> None:
        """Use an admission's database and clock.

        Args:
            admission: whose.
            returning: rids hosts that have come back.
            means: of a host: its second signals, and its fence.
            wishes: what is evacuated.
            auto: an evacuation needs nobody's approval.
            approved: called when a plan was approved.
            wake: called when there is a next step.
        """
        self._admission = admission
        self._database = admission.database
        self._returning = returning
        self._means = means
        self._wishes = wishes
        self._auto = auto
        self._approved = approved
        self._wake = wake
        #: What was told last of a host.
        self._told: dict[str, str] = {}
        self._failures: dict[str, Failures] = {}

    async def further(self, pulse: Pulse) -> None:
        """Bring one host further, as far as it can come now; it may be cancelled, and done again.

        Raises:
            StoreUnavailable: the database cannot be used.
        """
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
        fenced_by_hand = self._means(pulse.name).fence is None

        def work(connection: sa.Connection) -> None:
            now = self._admission.clock.now()
            became = become(connection, pulse.name, Event.CONFIRMED, says, now, since=pulse.since)
            if became is Condition.DEAD and fenced_by_hand:
                asks = (
                    f"Host {pulse.name} is dead: {says} Take its power, then say so: "
                    f"stateward host fence --done {pulse.name}"
                )
                record_alert(connection, asks, now, host=pulse.name)

        # Together: nothing more is done about it by itself, so whoever has to must be told.
        await self._database.write(work)
        self._wake()

    async def _take_power(self, pulse: Pulse, fence: Fence) -> None:
        loop = asyncio.get_running_loop()
        before = self._failures.get(pulse.name)
        failed = before.count if before is not None and before.since == pulse.since else 0
        if before is not None and failed and loop.time() < before.due:
            return
        try:
            says = await fence.fence(pulse.name)
        except Exception as error:
            if not isinstance(error, FenceFailed):
                log.exception("a fence failed by a fault of its own", host=pulse.name)
            pause = min(_FENCE_PAUSE * 2 ** min(failed, _DOUBLINGS), _LONGEST_FENCE_PAUSE)
            # From the end of the attempt: one that hangs is not followed by the next at once.
            self._failures[pulse.name] = Failures(
                since=pulse.since, count=failed + 1, due=loop.time() + pause
            )
            await self._tell(pulse, "fence", f"Host {pulse.name} is dead and could not be fenced: {error}")
            return
        self._failures.pop(pulse.name, None)
        await self._become(pulse, Event.FENCED, says)
        self._wake()

    async def _plan(self, pulse: Pulse) -> None:
        """Plan the evacuation of a host that was fenced, unless that was done since; nothing more without approval."""

        def work(connection: sa.Connection) -> str | None:
            host = hosts.hold_fenced(connection, pulse.name)
            last = host_plans.of_host(connection, pulse.name, PlanKind.EVACUATE)
            if host is None or (last is not None and planning.is_of(last, host)):
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
            if self._auto:
                planning.approve(connection, pulse.name, kept.id, actor, now)
            says = (
                f"Host {pulse.name} is fenced. {len(plan.acting)} of its {len(plan.moves)} instances can be evacuated"
                + (
                    ", and are."
                    if self._auto
                    else f": stateward host evacuate {pulse.name} --approve {kept.id}"
                )
            )
            record_alert(connection, says, now, host=pulse.name, plan=kept.id, **planning.counts(plan))
            return kept.id

        if await self._database.write(work) is not None and self._auto:
            self._approved()

    def _clean(self, connection: sa.Connection, pulse: Pulse) -> None:
        now, says = self._admission.clock.now(), "Nothing is left on it that was made anew elsewhere."
        if strays.on(connection, pulse.name):
            return
        if become(connection, pulse.name, Event.CLEAN, says, now) is not None:
            hosts.thaw(connection, pulse.name, Frozen.SILENT)

    async def _become(self, pulse: Pulse, event: Event, says: str) -> None:
        await self._database.write(
            lambda connection: become(
                connection, pulse.name, event, says, self._admission.clock.now(), since=pulse.since
            )
        )

    async def _tell(self, pulse: Pulse, what: str, says: str) -> None:
        """Alert once for each thing that became of a host."""
        key = f"{what} {pulse.since}"
        if self._told.get(pulse.name) == key:
            return
        await self._alert(says, host=pulse.name)
        self._told[pulse.name] = key

    async def _alert(self, says: str, **detail: Any) -> None:
        await alert(self._admission, says, **detail)


async def alert(admission: Admission, says: str, **detail: Any) -> None:
    """Tell of hosts; in the log too."""
    log.warning("alert", says=says, **detail)
    await admission.database.write(
        lambda connection: record_alert(connection, says, admission.clock.now(), **detail)
    )


def record_alert(connection: sa.Connection, says: str, now: float, **detail: Any) -> None:
    """Record an alert about hosts in the transaction that makes it true."""
    actor = system_actor(f"req-{uuid.uuid4()}")
    operations.alert(connection, says, at=now, actor=actor, action="host", detail=detail)
