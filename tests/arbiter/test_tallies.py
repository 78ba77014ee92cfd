"""Tallies: a steady host is asked nothing, and what is lost, late, doubled or replayed ends in one question (R12)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from stateward.bus.memory import MemoryBus
from stateward.bus.port import REPORTS, TALLIES, questions_subject
from stateward.domain.policies import NO_POLICIES, Policies, Policy, Rule
from stateward.domain.questions import Answer, Inventory, Question
from stateward.domain.records import Instance, Observation, Report, Tally
from stateward.domain.states import Cause, Observed, VmState
from stateward.domain.verdicts import Kind
from stateward.store import instances
from stateward.store.engine import Database
from tests.arbiter.test_reports import add, make_arbiter, row_of
from tests.rows import NOW
from tests.stack import encoded

_question = msgspec.json.Decoder[Question](Question)


class Host:
    """A host's agent, word by word: what it has, what it says, and what it was asked."""

    def __init__(self, database: Database, instance_id: str, policies: Policies = NO_POLICIES) -> None:
        self.database = database
        self.instance_id = instance_id
        self.bus = MemoryBus()
        self.arbiter = make_arbiter(database, policies)
        self.observed = Observed.RUNNING
        self.seq = 100
        #: The numbers that its answers had to be above.
        self.asked: list[int] = []

    async def start(self) -> None:
        await self.bus.answer(questions_subject("h"), self._answer)
        await self.arbiter.intake.start(self.bus)

    async def restart_arbiter(self) -> None:
        """Begin a new life of the arbiter, which knows nothing; its former one's bus is gone too."""
        await self.bus.close()
        self.bus, self.arbiter = MemoryBus(), make_arbiter(self.database)
        await self.start()

    async def row(self) -> Instance:
        return await row_of(self.database, self.instance_id)

    async def tally(self, seq: int | None = None) -> None:
        """Look at everything, and say so; with a number that is given it is one from before."""
        self.seq += 1
        digest = self.observed.value
        tally = Tally(host="h", seq=self.seq if seq is None else seq, count=1, digest=digest)
        await self.arbiter.intake.handle_tally(encoded(tally))

    async def report(self, observed: Observed, seq: int) -> None:
        seen = Observation(
            instance_id=self.instance_id, observed=observed, cause=Cause.OPERATOR, seq=seq, at=NOW
        )
        report = Report(host="h", complete=False, observations=(seen,), seq=seq, at=NOW)
        await self.arbiter.intake.handle(encoded(report))

    async def _answer(self, payload: bytes) -> bytes:
        question = _question.decode(payload)
        assert isinstance(question, Inventory)
        self.asked.append(question.above)
        self.seq = max(self.seq, question.above) + 1
        seen = Observation(
            instance_id=self.instance_id, observed=self.observed, cause=Cause.OTHER, seq=self.seq, at=NOW
        )
        report = Report(
            host="h",
            complete=True,
            observations=(seen,),
            seq=self.seq,
            at=NOW,
            digest=self.observed.value,
        )
        return encoded(Answer(report=report))


@pytest_asyncio.fixture
async def host(inline_database: Database) -> AsyncIterator[Host]:
    """Give a host with one running instance, of which everything is known."""
    host = Host(inline_database, await add(inline_database))
    await host.start()
    await host.tally()
    assert host.asked == [0]
    yield host
    await host.bus.close()


async def test_a_steady_host_is_asked_nothing(host: Host) -> None:
    """Nor is a row touched."""
    before = await host.row()
    for _ in range(10):
        await host.tally()
    assert (host.asked, await host.row()) == ([0], before)


async def test_a_change_that_no_event_told(host: Host) -> None:
    """One question; and one more, because what was written then is not known by its digest yet."""
    host.observed = Observed.PAUSED
    for _ in range(5):
        await host.tally()
    assert (await host.row()).observed is Observed.PAUSED
    # It is still to be restored, so that each look at everything is compared anew.
    assert len(host.asked) == 6


async def test_a_tally_that_comes_twice_or_late(host: Host) -> None:
    """The same number says nothing; a smaller one may be of an agent that lost count, and is asked about."""
    seq = host.seq
    await host.tally(seq)
    assert host.asked == [0]
    await host.tally(seq - 50)
    assert host.asked == [0, seq]
    assert host.seq > seq


async def test_a_report_from_before_the_last_look(host: Host) -> None:
    """Everything was as it is at a later moment; what was seen before that is over."""
    for _ in range(3):
        await host.tally()
    before = await host.row()
    await host.report(Observed.PAUSED, host.seq - 1)
    assert await host.row() == before
    await host.report(Observed.PAUSED, host.seq + 1)
    assert (await host.row()).observed is Observed.PAUSED


async def test_a_report_that_is_replayed_after_a_restart(host: Host) -> None:
    """The new arbiter cannot tell how old it is, so it asks, and believes the answer only."""
    await host.restart_arbiter()
    before = await host.row()
    await host.report(Observed.PAUSED, host.seq - 10)
    assert (len(host.asked), await host.row()) == (2, before)
    await host.report(Observed.PAUSED, host.seq - 10)
    assert (len(host.asked), await host.row()) == (2, before)


async def test_what_is_written_here_is_compared_again(host: Host) -> None:
    """The end of an operation may bring an observation that is older than the last look."""
    await host.arbiter.reconcile(host.instance_id)
    await host.tally()
    await host.tally()
    assert len(host.asked) == 2


async def test_an_agent_that_does_not_answer(host: Host) -> None:
    """Nothing is concluded; the next tally asks again."""

    async def nobody(_payload: bytes) -> bytes:
        raise TimeoutError

    before = await host.row()
    host.observed = Observed.PAUSED
    await host.bus.answer(questions_subject("h"), nobody)
    await host.tally()
    assert await host.row() == before
    await host.start()
    await host.tally()
    assert (await host.row()).observed is Observed.PAUSED


async def test_over_the_bus(host: Host) -> None:
    """Both come by their subjects."""
    host.seq += 1
    tally = Tally(host="h", seq=host.seq, count=1, digest="another")
    await host.bus.publish(TALLIES, encoded(tally), message_id="1")
    await asyncio.sleep(0.05)
    assert len(host.asked) == 2
    seen = Observation(
        instance_id=host.instance_id, observed=Observed.PAUSED, cause=Cause.OPERATOR, seq=host.seq + 1, at=NOW
    )
    report = Report(host="h", complete=False, observations=(seen,), seq=host.seq + 1, at=NOW)
    await host.bus.publish(REPORTS, encoded(report), message_id="2")
    await asyncio.sleep(0.05)
    assert (await host.row()).observed is Observed.PAUSED


@pytest.mark.looptime
async def test_what_a_policy_leaves_is_weighed_once(inline_database: Database) -> None:
    """The host is steady again, until something about it changes: what is seen, the record, or a lock."""
    leave = Policy(rule=(Rule(expected=VmState.STOPPED, observed=Observed.RUNNING, verdict=Kind.IGNORE),))
    left = await add(inline_database, vm_state="stopped", observed="shutoff")
    host = Host(inline_database, left, Policies(named={"leave": leave}, default="leave"))
    await host.start()

    async def looks() -> int:
        """Have it looked at often, when nothing is of a sweep any more; return how often everything was asked for."""
        await asyncio.sleep(600)
        host.asked.clear()
        for _ in range(10):
            await host.tally()
        return len(host.asked)

    verdict = None
    for _ in range(2):
        await host.tally()
        verdict = await host.arbiter.reconcile(left)
    assert verdict is not None
    assert verdict.kind is Kind.IGNORE
    # Once: nothing is known of the host yet since that was judged.
    assert (await looks(), await looks()) == (1, 0)

    async def become(**changes: Any) -> None:
        """Have its row changed; whoever does has it judged, which is doubt enough."""
        await inline_database.write(
            lambda connection: instances.guarded_update(connection, left, (), changes)
        )
        host.arbiter.intake.doubt("h")

    await become(locked_by="owner")
    assert await looks() == 10
    await become(locked_by=None)
    assert await looks() == 1
    await become(vm_state="shelved")
    assert await looks() == 10
    await become(vm_state="stopped")
    host.observed = Observed.PAUSED
    assert await looks() == 10
    await host.bus.close()
