"""The breaker: what would change too many instances of a live host at once waits until it is confirmed (B5)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import looptime
import msgspec
import pytest
import pytest_asyncio
import sqlalchemy as sa

from stateward.agent.simulated.hypervisor import NO_TRACE
from stateward.arbiter.reconcile import Arbiter
from stateward.bus.memory import Disorder
from stateward.domain.hosts import Frozen
from stateward.domain.questions import Question, SecondLook
from stateward.domain.records import Instance, Observation, Report
from stateward.domain.states import Cause, Observed, VmState
from stateward.domain.sweeps import SweepLimits, Trace
from stateward.operations import sweeps
from stateward.store import hosts
from stateward.store.engine import Database
from stateward.store.sweeps import of_host
from stateward.store.tables import AUDIT
from tests.rows import actor
from tests.stack import Stack

pytestmark = [pytest.mark.asyncio, pytest.mark.looptime]

#: Instances of the host: more than five of them are a sweep.
COUNT = 12


class Host:
    """A stack with running instances on its one host."""

    def __init__(self, stack: Stack, ids: list[str]) -> None:
        self.stack = stack
        self.ids = ids

    async def rows(self) -> list[Instance]:
        """Return the rows as they are, but for what a look that found nothing new counts."""
        return [await self.stack.instance(each) for each in self.ids]

    async def frozen(self) -> Frozen | None:
        return await self.stack.database.read(lambda connection: hosts.frozen(connection, "h"))

    async def told(self) -> list[tuple[str, dict[str, Any]]]:
        """Return what the trail has of sweeps, oldest first."""
        await self.stack.database.seal()
        query = sa.select(AUDIT.c.event, AUDIT.c.detail).where(AUDIT.c.action == "sweep")
        found = await self.stack.database.read(
            lambda connection: connection.execute(query.order_by(AUDIT.c.number)).all()
        )
        return [(row.event, row.detail) for row in found]

    async def events(self) -> list[str]:
        return [event for event, _ in await self.told()]

    async def histories(self) -> set[tuple[str, ...]]:
        """Return what was done to the instances."""
        return {tuple(await self.stack.history(each)) for each in self.ids}

    def hide(self, *ids: str) -> None:
        """Have the hypervisor mention these no more, though they are there, and say so of each."""
        self.stack.hypervisor.hidden |= frozenset(ids)
        for each in ids:
            self.stack.agent.observer.changed(each)


@pytest_asyncio.fixture
async def host(inline_database: Database, swift_folder: Path) -> AsyncIterator[Host]:
    """Give a host, behind a bus that doubles and delays."""
    stack = Stack(inline_database, swift_folder, Disorder(seed=3, duplicate=0.3))
    with looptime.enabled(strict=True):
        await stack.start()
        ids = [await stack.create() for _ in range(COUNT)]
        # The changes of its making are forgotten, and everything was looked at since.
        await asyncio.sleep(30)
    yield Host(stack, ids)
    with looptime.enabled(strict=True):
        await stack.stop()


@pytest.mark.parametrize("count", [COUNT, COUNT // 2], ids=["none-of-its-list", "half-of-its-list"])
async def test_a_hypervisor_that_lists_too_little(host: Host, count: int) -> None:
    """No record changes, nor what is shown of the guests; when it lists them again, that is all."""
    before = await host.rows()
    host.stack.hypervisor.hidden = frozenset(host.ids[:count])
    await asyncio.sleep(60)
    assert await host.rows() == before
    assert await host.frozen() is Frozen.SWEEP
    (_, first), (_, second) = await host.told()
    assert (first["instances"], first["of"], first["observed"]) == (count, COUNT, {"missing": count})
    assert (second["second_look"], second["says"].endswith("if it is true.")) == ("contradicted", True)
    assert await host.events() == ["alert", "alert"]
    host.stack.hypervisor.hidden = frozenset()
    await asyncio.sleep(11)
    assert await host.rows() == before
    assert (await host.frozen(), await host.events()) == (None, ["alert", "alert", "sweep_passed"])
    assert await host.histories() == {("create succeeded",)}
    assert await host.stack.database.read(lambda connection: of_host(connection, "h")) is None


async def test_guests_that_go_one_by_one(host: Host) -> None:
    """Ten within a second are one sweep: of none the record changes, not of the first ones either."""
    before = {each.id: (each.vm_state, each.task_state, each.fence) for each in await host.rows()}
    for each in host.ids[:10]:
        host.hide(each)
        await asyncio.sleep(0.1)
    await asyncio.sleep(30)
    assert await host.frozen() is Frozen.SWEEP
    assert {each.id: (each.vm_state, each.task_state, each.fence) for each in await host.rows()} == before
    assert [await host.stack.verdicts(each) for each in host.ids] == [[]] * COUNT
    host.stack.hypervisor.hidden = frozenset()
    await asyncio.sleep(11)
    assert await host.frozen() is None
    assert {each.observed for each in await host.rows()} == {Observed.RUNNING}
    assert [await host.stack.verdicts(each) for each in host.ids] == [[]] * COUNT


async def test_guests_that_are_gone_indeed(host: Host) -> None:
    """A second look finds no trace of what ran them: they are brought back within two seconds."""
    for each in host.ids:
        host.stack.hypervisor.crash(each)
    await asyncio.sleep(2)
    rows = await host.rows()
    assert {each.task_state for each in rows} <= {None}
    assert {each.observed for each in rows} == {Observed.RUNNING}
    assert await host.histories() == {("create succeeded", "restore_start succeeded")}
    assert (await host.frozen(), await host.events()) == (None, ["alert", "sweep_confirmed"])
    assert (await host.told())[1][1] == {"host": "h", "by": "second-look", "instances": COUNT}


async def test_shutdowns_of_their_own_count_too(host: Host) -> None:
    """Adopting changes a record as well: here by what an agent says though their processes run."""
    host.stack.hypervisor.traces = {each: Trace(process=True, defined=True) for each in host.ids}
    for each in host.ids:
        host.stack.hypervisor.guest_shutdown(each)
    await asyncio.sleep(30)
    assert {each.vm_state for each in await host.rows()} == {VmState.ACTIVE}
    assert await host.frozen() is Frozen.SWEEP
    host.stack.hypervisor.traces = {}
    await asyncio.sleep(11)
    assert {each.vm_state for each in await host.rows()} == {VmState.STOPPED}
    assert (await host.frozen(), (await host.events())[-1]) == (None, "sweep_confirmed")


async def test_an_operator_confirms(host: Host) -> None:
    """Where the second look can tell nothing it waits for a person, also in the next life of the server."""
    stack = host.stack
    stack.hypervisor.traces = dict.fromkeys(host.ids, NO_TRACE)
    for each in host.ids:
        stack.hypervisor.destroy(each)
    await asyncio.sleep(30)
    assert (await host.told())[1][1]["second_look"] == "unclear"
    await stack.arbiter.stop()
    stack.arbiter = Arbiter(stack.admission)
    await stack.arbiter.start(stack.bus)
    await asyncio.sleep(30)
    assert await host.histories() == {("create succeeded",)}
    due = await stack.database.write(
        lambda connection: sweeps.believe(
            connection, "h", actor=actor(), now=stack.clock.now(), by="operator"
        )
    )
    assert set(due or ()) == set(host.ids)
    for each in due or ():
        stack.arbiter.wake(each)
    await asyncio.sleep(2)
    assert await host.histories() == {("create succeeded", "restore_start succeeded")}
    assert await host.frozen() is None


async def test_a_few_are_brought_back_without_asking(host: Host) -> None:
    """Five at once are no sweep here, and wait a second for others; later ones count by themselves."""
    for some in (host.ids[:5], host.ids[5:10]):
        for each in some:
            host.stack.hypervisor.destroy(each)
        await asyncio.sleep(0.9)
        assert {host.stack.guest(each) for each in some} == {Observed.SHUTOFF}
        await asyncio.sleep(14)
        assert {host.stack.guest(each) for each in some} == {Observed.RUNNING}
    assert (await host.frozen(), await host.events()) == (None, [])


async def test_what_a_lock_keeps_off_is_off_again_at_once(host: Host) -> None:
    """It waits for no others, as what nobody has locked does (R7)."""
    locked, other = host.ids[:2]
    for each in (locked, other):
        await host.stack.do("stop", each)
    await host.stack.immediate.lock(locked, actor(), reason=None, project_id=None)
    for each in (locked, other):
        host.stack.hypervisor.start(each)
    await asyncio.sleep(0.1)
    assert [host.stack.guest(each) for each in (locked, other)] == [Observed.SHUTOFF, Observed.RUNNING]
    await asyncio.sleep(60)
    assert host.stack.guest(other) is Observed.SHUTOFF


async def test_what_was_asked_for_is_no_deviation(host: Host) -> None:
    """Everything on the host is stopped at once, by its owners."""
    for each in host.ids:
        await host.stack.act("stop", each)
    await asyncio.sleep(60)
    assert {each.vm_state for each in await host.rows()} == {VmState.STOPPED}
    assert (await host.frozen(), await host.events()) == (None, [])


async def test_what_is_frozen_otherwise_stays_so(host: Host) -> None:
    """An operator's maintenance is not ended by a sweep that passes; what was seen meanwhile is one when that ends."""
    freeze = await host.stack.database.write(
        lambda connection: hosts.freeze(connection, "h", Frozen.MAINTENANCE, "disks", 5.0)
    )
    assert freeze
    for each in host.ids:
        host.stack.hypervisor.destroy(each)
    await asyncio.sleep(60)
    assert (await host.frozen(), await host.events()) == (Frozen.MAINTENANCE, [])
    assert {each.observed for each in await host.rows()} == {Observed.RUNNING}
    assert await host.histories() == {("create succeeded",)}
    await host.stack.database.write(lambda connection: hosts.thaw(connection, "h", Frozen.MAINTENANCE))
    await asyncio.sleep(11)
    assert await host.events() == ["alert", "sweep_confirmed"]
    assert await host.histories() == {("create succeeded", "restore_start succeeded")}


@pytest.mark.parametrize("count", [5, 6, COUNT])
async def test_reports_of_one_guest_each_that_come_at_once(host: Host, count: int) -> None:
    """All of them are weighed before the first is written, and yet they are counted together."""
    stack = host.stack
    before = {each.id: (each.vm_state, each.task_state, each.fence) for each in await host.rows()}
    # As a hypervisor that restarts says it of each; the processes run on.
    stack.hypervisor.traces = dict.fromkeys(host.ids, Trace(process=True, defined=True))
    payloads: list[bytes] = []
    for each in host.ids[:count]:
        seq, at = stack.agent.worker.journal.next_seq(), stack.clock.now()
        gone = Observation(instance_id=each, observed=Observed.MISSING, cause=Cause.OTHER, seq=seq, at=at)
        report = Report(host="h", complete=False, observations=(gone,), seq=seq, at=at)
        payloads.append(msgspec.json.encode(report))
    stack.hypervisor.hidden = frozenset(host.ids[:count])
    await asyncio.gather(*(stack.arbiter.intake.handle(each) for each in payloads))
    await asyncio.sleep(5)
    if count <= SweepLimits().instances:
        assert await host.frozen() is None
        return
    assert await host.frozen() is Frozen.SWEEP
    assert {each.id: (each.vm_state, each.task_state, each.fence) for each in await host.rows()} == before
    assert (await host.told())[-1][1]["instances"] == count


async def test_a_second_look_confirms_what_it_looked_at(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it was under way an operator confirmed, and another sweep began: that one waits for its own."""
    stack, ask = host.stack, host.stack.bus.ask
    gone, hidden = host.ids[:6], host.ids[6:]
    stack.hypervisor.traces = {each: Trace(process=True, defined=True) for each in hidden}

    async def slow(subject: str, payload: bytes, *, timeout: float) -> bytes:
        answer = await ask(subject, payload, timeout=timeout)
        if isinstance(msgspec.json.decode(payload, type=Question), SecondLook):
            monkeypatch.undo()
            confirmed = await stack.database.write(
                lambda connection: sweeps.believe(
                    connection, "h", actor=actor(), now=stack.clock.now(), by="operator"
                )
            )
            assert confirmed is not None
            stack.arbiter.intake.believed("h")
            host.hide(*hidden)
            await asyncio.sleep(1)
            assert await host.frozen() is Frozen.SWEEP
        return answer

    monkeypatch.setattr(stack.bus, "ask", slow)
    for each in gone:
        stack.hypervisor.destroy(each)
    await asyncio.sleep(30)
    assert await host.frozen() is Frozen.SWEEP
    rows = {each.id: each for each in await host.rows()}
    assert {rows[each].observed for each in hidden} == {Observed.RUNNING}
    assert [event for event in await host.events() if event != "alert"] == ["sweep_confirmed"]
