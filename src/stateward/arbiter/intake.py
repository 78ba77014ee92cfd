"""Intake: what agents report is compared with the rows and kept where it is news, however late or disordered.

Of each host it is known in memory as of which number everything was looked at, and by what digest it is that again: a
steady host's tally is compared with that and costs no look into the database. Whenever that is not known, because this
process has just begun, or anything of the host was written since, the agent is asked for everything; only its answer
says that a guest is missing. Numbers decide what is newer, never clocks (ADR 0018).

What would change too many instances at once is kept aside (B5; ``operations.sweeps``).
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable

import msgspec
import sqlalchemy as sa
import structlog

from stateward.arbiter.arrival import arrived
from stateward.arbiter.boots import Boots
from stateward.arbiter.breaker import Breaker
from stateward.arbiter.strays import Strays
from stateward.arbiter.weighing import Known, Weighed, still_due, weigh
from stateward.bus.port import REPORTS, TALLIES, Bus, NobodyAnswered, questions_subject
from stateward.domain.hosts import Frozen
from stateward.domain.policies import Policies
from stateward.domain.questions import Answer, Inventory, Question, SecondLook
from stateward.domain.records import Actor, Instance, Observation, Report, Tally
from stateward.domain.states import Observed
from stateward.domain.sweeps import Signal, Trace, signal
from stateward.operations import sweeps
from stateward.operations.admission import Admission
from stateward.operations.immediate import system_actor
from stateward.store import hosts, observations
from stateward.store.sweeps import drop as drop_sweep

log = structlog.get_logger()

#: Hosts that are asked for everything at a time, of a thousand that may come at once when a server begins.
_TURNS = 8

#: Seconds that an agent has to answer: more than its own limit on the call.
_ANSWER_SECONDS = 35.0

_report_decoder = msgspec.json.Decoder(Report)
_tally_decoder = msgspec.json.Decoder(Tally)
_answer_decoder = msgspec.json.Decoder(Answer)


class Intake:
    """Takes tallies and reports."""

    def __init__(
        self,
        admission: Admission,
        breaker: Breaker,
        *,
        judge: Callable[[float, str], None],
        boots: Boots,
        strays: Strays,
        policies: Policies,
    ) -> None:
        """Keep what is news in an admission's database.

        Args:
            admission: see above.
            breaker: says what is too much at once.
            judge: has an instance judged in so many seconds.
            boots: plans what follows where a machine has booted.
            strays: is told what was seen on a host of instances whose records name another.
            policies: by which something may follow where the table says nothing.
        """
        self._database = admission.database
        self._clock = admission.clock
        self._breaker = breaker
        self._judge = judge
        self._boots = boots
        self._strays = strays
        self._policies = policies
        self._hosts: dict[str, Known] = {}
        self._turns = asyncio.Semaphore(_TURNS)
        self._bus: Bus | None = None

    async def start(self, bus: Bus) -> None:
        """Take what comes from now on."""
        self._bus = bus
        await bus.subscribe(REPORTS, self.handle)
        await bus.subscribe(TALLIES, self.handle_tally)

    def doubt(self, host: str) -> None:
        """Note that something of a host was written here: what its agent tells next is compared anew."""
        self._of(host).doubt()

    def judged(self, instance: Instance, *, left: bool) -> None:
        """Note that an instance was judged, and whether it is ``left`` as it is until something about it changes."""
        self._of(instance.host).judge(instance, left=left)

    def believed(self, host: str) -> None:
        """Note that a sweep is over by somebody's word."""
        self._breaker.forget(host)
        self._of(host).told = None
        self.doubt(host)

    async def handle_tally(self, payload: bytes) -> None:
        """Take one look at everything: nothing, or the agent is asked for all of it.

        One with a smaller number than is known is late, or its agent has lost count; asking settles both.
        """
        tally = _tally_decoder.decode(payload)
        known = self._of(tally.host)
        if tally.seq == known.floor:
            return
        if tally.seq > known.floor and tally.digest == known.digest:
            known.rise(tally.seq)
            return
        await self._ask_everything(tally.host)

    async def handle(self, payload: bytes) -> None:
        """Take one report of a few guests; raises when it cannot be kept, and the bus then delivers it again."""
        report = _report_decoder.decode(payload)
        known = self._of(report.host)
        came = known.came.setdefault(report.seq, self._clock.now())
        if not known.floor:
            # It may be older than what a former life of this process had seen: the agent's answer is not.
            await self._ask_everything(report.host)
        elif any(each.seq > known.last(each.instance_id) for each in report.observations):
            await self.take(report, came)
        known.came.pop(report.seq, None)

    def _of(self, host: str) -> Known:
        return self._hosts.setdefault(host, Known())

    async def _ask_everything(self, host: str) -> None:
        known = self._of(host)
        if known.asking:
            known.again = True
            return
        known.asking = known.again = True
        try:
            while known.again:
                known.again = False
                async with self._turns:
                    above = await self._database.read(
                        lambda connection: observations.highest(connection, host)
                    )
                    above = max(above, known.floor, *known.seen.values())
                    answer = await self._ask(host, Inventory(above=above))
                    if answer is not None and answer.report is not None:
                        await self.take(answer.report)
        finally:
            known.asking = False

    async def _ask(self, host: str, question: Question) -> Answer | None:
        if self._bus is None:
            return None
        try:
            return _answer_decoder.decode(
                await self._bus.ask(
                    questions_subject(host), msgspec.json.encode(question), timeout=_ANSWER_SECONDS
                )
            )
        except NobodyAnswered:
            log.info("an agent does not answer", host=host)
            return None

    async def take(self, report: Report, came: float | None = None) -> None:
        """Compare a report with the rows, keep what is news and have judged what is not as recorded.

        Args:
            report: as its agent sent it, with its times.
            came: when it was received, in seconds since the epoch; None: now.
        """
        now = self._clock.now()
        report = arrived(report, now if came is None else min(came, now))
        host = report.host
        known = self._of(host)
        doubts = known.doubts
        recent = self._breaker.recent(host)
        weighed = await self._database.read(
            lambda connection: weigh(connection, report, known, recent, self._policies)
        )
        if weighed.booted:
            await self._boot(report, weighed)
        elif weighed.frozen is Frozen.SWEEP:
            await self._sweep_goes_on(report, weighed, recent)
        elif weighed.frozen is not None:
            # In its row a claim would be no change any more when the host is judged again, and pass the breaker.
            await self._keep_harmless(host, weighed)
        elif self._breaker.trips(host, weighed.changing, weighed.total):
            # Others may have been let since it was weighed.
            await self._sweep_begins(report, weighed, self._breaker.recent(host))
        else:
            # Before anything is waited for: what is weighed meanwhile must be counted with it.
            self._breaker.let(host, weighed.changing)
            await self._keep(host, weighed)
            known.judged = known.judged or report.complete
        # Only now: a report that could not be kept comes again, and must count then.
        for each in report.observations if not report.complete else ():
            known.seen[each.instance_id] = max(each.seq, known.last(each.instance_id))
        self._copies(report, weighed.strays)
        if weighed.news or weighed.strays:
            known.doubt()
        if report.complete:
            if known.doubts == doubts and not any(seq > report.seq for seq in known.seen.values()):
                known.digest = report.digest
            known.rise(report.seq)

    def _copies(self, report: Report, found: list[Observation]) -> None:
        """Have copies judged, and those forgotten that a look at everything did not find."""
        if report.complete:
            unknown = {each.instance_id for each in report.observations if each.observed is Observed.UNKNOWN}
            self._strays.look(report.host, unknown | {each.instance_id for each in found})
        for each in found:
            self._strays.notice(report.host, each)

    async def _boot(self, report: Report, weighed: Weighed) -> None:
        """Take note of a boot, which explains what has changed there; with its inventory all is judged again (R14)."""
        host = report.host

        def work(connection: sa.Connection) -> list[str]:
            hosts.note_boot(connection, host, report.boot_id, report.seq, self._clock.now())
            due = _observed(connection, host, weighed.news)
            planned = None
            if report.complete:
                planned = self._boots.judge_in(connection, host, report.boot_id)
            if planned is not None:
                drop_sweep(connection, host)
            return due if planned is None else planned

        due = await self._database.write(work)
        self.believed(host)
        self._boots.planned(host)
        for instance_id in due:
            self._judge(0.0, instance_id)

    async def _keep(self, host: str, weighed: Weighed) -> None:
        for instance_id in weighed.again:
            self._judge(0.0, instance_id)
        if not weighed.news:
            return
        due = await self._database.write(lambda connection: _observed(connection, host, weighed.news))
        waiting = {each.instance_id for each in weighed.claims} - weighed.urgent
        pause = self._breaker.pause(host, weighed.total) if waiting else 0.0
        for instance_id in due:
            self._judge(pause if instance_id in waiting else 0.0, instance_id)

    async def _keep_harmless(self, host: str, weighed: Weighed) -> None:
        if weighed.harmless:
            await self._database.write(lambda connection: _observed(connection, host, weighed.harmless))

    async def _sweep_begins(self, report: Report, weighed: Weighed, recent: frozenset[str]) -> None:
        """Freeze the host with the first word of a sweep, and see the whole of it.

        What was let change a moment ago is of it, where nothing was done about it yet; the others are told of. One that
        follows another at once, which was true, is told by its end alone: it is the same that goes on.
        """
        host, claims, total = report.host, weighed.swept, weighed.total
        known, now = self._of(host), asyncio.get_running_loop().time()
        known.told = None
        window = self._breaker.limits(host).window
        goes_on = known.confirmed_at is not None and now - known.confirmed_at <= window
        others = sorted(recent - {each.instance_id for each in claims})

        def work(connection: sa.Connection) -> tuple[list[str], list[Observation]]:
            waiting = still_due(connection, others, self._policies, report.at)
            kept = [*claims, *waiting]
            sweeps.hold(
                connection,
                host,
                kept,
                total=total,
                before=len(others) - len(waiting),
                told=goes_on,
                actor=_actor(),
                now=self._clock.now(),
            )
            return _observed(connection, host, weighed.harmless), kept

        due, kept = await self._database.write(work)
        for instance_id in due:
            self._judge(0.0, instance_id)
        if report.complete:
            await self._look_again(host, kept)
        else:
            await self._ask_everything(host)

    async def _sweep_goes_on(self, report: Report, weighed: Weighed, recent: frozenset[str]) -> None:
        """Keep what the host says now of its sweep; judge again when it does not say so any more."""
        host, known = report.host, self._of(report.host)
        before = len(recent - {each.instance_id for each in weighed.swept})
        over = self._breaker.limits(host).allow(len(weighed.swept) + before, weighed.total)

        def work(connection: sa.Connection) -> tuple[list[str], bool]:
            if not report.complete:
                return _observed(connection, host, weighed.harmless), False
            if over:
                _observed(connection, host, weighed.news)
                passed = sweeps.passed(connection, host, actor=_actor(), now=self._clock.now())
                return passed or [], False
            # Where somebody has confirmed it since it was weighed, that is not a sweep which begins.
            kept = sweeps.keep(connection, host, weighed.swept, total=weighed.total, before=before)
            return _observed(connection, host, weighed.harmless), kept

        due, kept = await self._database.write(work)
        for instance_id in due:
            self._judge(0.0, instance_id)
        if not report.complete:
            # In the next look at everything it is with all others; that is now where one is under way.
            known.again = known.asking
        elif over:
            self.believed(host)
        elif kept:
            await self._look_again(host, weighed.swept)

    async def _look_again(self, host: str, claims: list[Observation]) -> None:
        answer = await self._ask(host, SecondLook(instance_ids=tuple(each.instance_id for each in claims)))
        traces = {} if answer is None else answer.traces
        says = signal((each.observed, traces.get(each.instance_id, Trace())) for each in claims)
        known = self._of(host)
        if says is Signal.CONFIRMED:
            try:
                due = await self._database.write(
                    lambda connection: sweeps.believe(
                        connection,
                        host,
                        actor=_actor(),
                        now=self._clock.now(),
                        by="second-look",
                        claims=claims,
                    )
                )
            except sweeps.NotLookedAt:
                # Another one began meanwhile, and waits for a look of its own: with the next look at everything.
                return
            known.confirmed_at = asyncio.get_running_loop().time()
            self.believed(host)
            for instance_id in due or ():
                self._judge(0.0, instance_id)
        elif says is not known.told:
            await self._database.write(
                lambda connection: sweeps.doubted(
                    connection, host, says, actor=_actor(), now=self._clock.now()
                )
            )
            known.told = says


def _observed(connection: sa.Connection, host: str, news: list[Observation]) -> list[str]:
    return [each.instance_id for each in news if observations.observe(connection, each, host=host)]


def _actor() -> Actor:
    return system_actor(f"req-{uuid.uuid4()}")
