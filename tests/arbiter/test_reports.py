"""What the arbiter makes of reports that come twice, late, in any order, or from the wrong host."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
from typing import TypeVar

import msgspec
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings, strategies as st

from stateward.arbiter.reconcile import Arbiter
from stateward.arbiter.writing import write_in
from stateward.domain.hosts import Frozen
from stateward.domain.policies import NO_POLICIES, Policies, Policy
from stateward.domain.records import Instance, Observation, Report
from stateward.domain.states import Cause, Observed, VmState
from stateward.domain.verdicts import judge_instance
from stateward.operations import sweeps
from stateward.operations.admission import Admission, ShutdownDefaults
from stateward.store import hosts, instances, intervals, operations
from stateward.store.engine import Database, SqliteDatabase, StoreUnavailable, Work
from stateward.store.sweeps import of_host as sweep_of
from stateward.store.tables import AUDIT, AUDIT_UNSEALED, INSTANCES
from tests.rows import NOW, SetClock, actor, insert

T = TypeVar("T")


def make_arbiter(database: Database, policies: Policies = NO_POLICIES) -> Arbiter:
    """Make an arbiter that judges only when the test says so."""
    return Arbiter(Admission(database, SetClock(), ShutdownDefaults(), lambda: None), policies)


def report(
    seq: int, *seen: tuple[str, Observed], complete: bool = False, host: str = "h", cause: Cause = Cause.OTHER
) -> Report:
    return Report(
        host=host,
        complete=complete,
        observations=tuple(
            Observation(instance_id=name, observed=observed, cause=cause, seq=seq, at=NOW + seq)
            for name, observed in seen
        ),
        seq=seq,
        at=NOW + seq,
    )


async def row_of(database: Database, instance_id: str) -> Instance:
    found = await database.read(lambda connection: instances.get(connection, instance_id))
    assert found is not None
    return found


async def add(database: Database, **changes: object) -> str:
    return (await database.write(lambda connection: insert(connection, **changes))).id


async def alerts(database: Database) -> int:
    """Count the verdicts in the trail that tell the operator."""

    def count(connection: sa.Connection) -> int:
        # On PostgreSQL sealed or not yet.
        return sum(
            connection.execute(
                sa.select(sa.func.count()).where(table.c.event == "verdict", table.c.action == "alert")
            ).scalar_one()
            for table in (AUDIT, AUDIT_UNSEALED)
        )

    return await database.read(count)


@pytest.mark.parametrize("cause", [Cause.SAVED, Cause.MIGRATION])
async def test_a_reason_that_the_hypervisor_forgot_still_holds(database: Database, cause: Cause) -> None:
    """As libvirt does when it restarts: a guest whose memory is elsewhere is not started for that."""
    instance_id = await add(database)
    arbiter = make_arbiter(database)
    off = (instance_id, Observed.SHUTOFF)
    await arbiter.intake.take(report(5, off, cause=cause))
    await arbiter.intake.take(report(6, off, cause=Cause.OTHER))
    assert (await row_of(database, instance_id)).cause is cause
    await arbiter.reconcile(instance_id)
    assert await alerts(database) == 1
    # Until it was on again.
    await arbiter.intake.take(report(7, (instance_id, Observed.RUNNING)))
    await arbiter.intake.take(report(8, off, cause=Cause.OTHER))
    assert (await row_of(database, instance_id)).cause is Cause.OTHER


async def test_a_report_is_kept(database: Database) -> None:
    """With its number, and when it was received; only how long it waited to be sent is by the agent's clock."""
    instance_id = await add(database)
    arbiter = make_arbiter(database)
    cases = (
        (5, Observed.PAUSED, 0.0, NOW),
        (6, Observed.SHUTOFF, 0.5, NOW - 0.5),
        # The same again.
        (7, Observed.SHUTOFF, 0.1, NOW - 0.5),
        # The agent's clock was set in between.
        (8, Observed.PAUSED, 3600.0, NOW),
        (9, Observed.SHUTOFF, -1.0, NOW),
    )
    for seq, observed, waited, at in cases:
        sent = report(seq, (instance_id, observed), cause=Cause.OPERATOR)
        await arbiter.intake.take(msgspec.structs.replace(sent, at=sent.at + waited))
        row = await row_of(database, instance_id)
        assert (row.observed, row.cause) == (observed, Cause.OPERATOR)
        assert (row.observed_seq, row.observed_at) == (seq, at)


@pytest.mark.parametrize("late_first", [True, False])
async def test_two_looks_at_one_guest_in_one_report(database: Database, *, late_first: bool) -> None:
    """A slow look may end together with the one after it: the newer one counts, whichever is named first."""
    instance_id = await add(database)
    arbiter = make_arbiter(database)
    seen = [
        Observation(instance_id=instance_id, observed=observed, cause=Cause.OTHER, seq=seq, at=NOW)
        for seq, observed in ((5, Observed.SHUTOFF), (6, Observed.PAUSED))
    ]
    both = tuple(seen if late_first else reversed(seen))
    await arbiter.intake.take(Report(host="h", complete=False, observations=both, seq=7, at=NOW))
    row = await row_of(database, instance_id)
    assert (row.observed, row.observed_seq) == (Observed.PAUSED, 6)


async def test_a_late_report_changes_nothing(database: Database) -> None:
    """Neither after a newer one that changed the row, nor after one that only confirmed it."""
    instance_id = await add(database)
    arbiter = make_arbiter(database)
    await arbiter.intake.take(report(10, (instance_id, Observed.RUNNING)))
    await arbiter.intake.take(report(5, (instance_id, Observed.SHUTOFF)))
    assert (await row_of(database, instance_id)).observed is Observed.RUNNING
    await arbiter.intake.take(report(20, (instance_id, Observed.PAUSED)))
    await arbiter.intake.take(report(15, (instance_id, Observed.SHUTOFF)))
    assert (await row_of(database, instance_id)).observed is Observed.PAUSED


async def test_a_steady_host_writes_nothing(database: Database) -> None:
    """A relist of what is as it was, touches no row: the number there is the last news'."""
    instance_id = await add(database)
    arbiter = make_arbiter(database)
    await arbiter.intake.take(report(10, (instance_id, Observed.RUNNING), complete=True))
    assert (await row_of(database, instance_id)).observed_seq == 0


async def test_a_deviation_that_stays_is_judged_again(database: Database) -> None:
    """What was due and has not been done is due at the next report, though nothing has changed."""
    instance_id = await add(database, observed="shutoff", cause="destroyed", observed_seq=1)
    await make_arbiter(database).intake.take(
        report(10, (instance_id, Observed.SHUTOFF), cause=Cause.DESTROYED)
    )
    assert (await row_of(database, instance_id)).observed_seq == 10


async def test_an_alert_is_due_until_it_is_told(database: Database) -> None:
    """What was seen is kept before it is judged: each life that is killed between the two leaves it to the next (R15).

    Once told it is not due again, to nobody; what was told of has passed when something else is seen.
    """
    instance_id = await add(database)
    for seq in (1, 2):
        await make_arbiter(database).intake.take(report(seq, complete=True))
        assert (await row_of(database, instance_id)).observed_seq == seq
    await asyncio.gather(*(make_arbiter(database).reconcile(instance_id) for _ in range(2)))
    assert await alerts(database) == 1
    arbiter = make_arbiter(database)
    await arbiter.intake.take(report(3, complete=True))
    assert (await row_of(database, instance_id)).observed_seq == 2
    await arbiter.reconcile(instance_id)
    assert await alerts(database) == 1
    for seen in ((instance_id, Observed.RUNNING),), ():
        await arbiter.intake.take(report(4 + (not seen), *seen, complete=True))
    await arbiter.reconcile(instance_id)
    assert await alerts(database) == 2


async def test_an_alert_waits_for_the_thaw(database: Database) -> None:
    """Nothing of a frozen host is told, and none of it counts as told, whoever has the host judged again."""
    await database.write(lambda connection: hosts.register(connection, "h", "nova"))
    instance_id = await add(database)
    await database.write(lambda connection: hosts.freeze(connection, "h", Frozen.SILENT, "", NOW))
    arbiter = make_arbiter(database)
    await arbiter.intake.take(report(1, complete=True))
    await arbiter.reconcile(instance_id)
    row = await row_of(database, instance_id)
    verdict = judge_instance(row)
    assert not await database.write(lambda connection: write_in(connection, NOW, row, verdict, {}))
    assert await alerts(database) == 0
    await database.write(lambda connection: hosts.thaw(connection, "h", Frozen.SILENT))
    await arbiter.intake.take(report(2, complete=True))
    assert (await row_of(database, instance_id)).observed_seq == 2
    await arbiter.reconcile(instance_id)
    assert await alerts(database) == 1


class Noting(Arbiter):
    """An arbiter that only notes whom it was to judge."""

    def wake(self, instance_id: str) -> None:
        """Note."""
        self.woken = [*getattr(self, "woken", []), instance_id]


def noting(database: Database, policies: Policies) -> Noting:
    return Noting(Admission(database, SetClock(), ShutdownDefaults(), lambda: None), policies)


@pytest.mark.parametrize("policies", [NO_POLICIES, Policies(named={"a": Policy()})], ids=["none", "one"])
async def test_what_was_told_and_stays_costs_nothing(database: Database, policies: Policies) -> None:
    """Not with a policy either; but the first look of a life has judged what policies of today may change."""
    await database.write(lambda connection: hosts.register(connection, "h", "nova"))
    instance_id = await add(
        database, observed="missing", cause="other", observed_seq=1, alerted="active missing other"
    )
    arbiter = noting(database, policies)
    for seq, frozen in ((2, True), (3, False), (4, False)):
        if frozen:
            await database.write(
                lambda connection: hosts.freeze(connection, "h", Frozen.MAINTENANCE, "", NOW)
            )
        else:
            await database.write(lambda connection: hosts.thaw(connection, "h", Frozen.MAINTENANCE))
        await arbiter.intake.take(report(seq, complete=True))
        assert (await row_of(database, instance_id)).observed_seq == 1
        woken = [instance_id] if policies.named and not frozen else []
        assert getattr(arbiter, "woken", []) == woken


@pytest.mark.parametrize("alerted", ["active missing other", None], ids=["told", "left-by-a-policy"])
async def test_a_sweep_passes_whatever_else_stays_as_it_is(database: Database, alerted: str | None) -> None:
    """Seven that are missing for long are no part of it, also where policies are named."""
    await database.write(lambda connection: hosts.register(connection, "h", "nova"))
    gone = {"observed": "missing", "cause": "other", "observed_seq": 1, "alerted": alerted}
    for _ in range(7):
        await add(database, **gone)
    ids = [await add(database) for _ in range(8)]
    here = [(each, Observed.RUNNING) for each in ids]
    arbiter = noting(database, Policies(named={"a": Policy()}))
    for seq, seen, frozen in (
        (2, here, None),
        (3, [], Frozen.SWEEP),
        (4, [], Frozen.SWEEP),
        (5, here, None),
    ):
        await arbiter.intake.take(report(seq, *seen, complete=True))
        assert await database.read(lambda connection: hosts.frozen(connection, "h")) is frozen
        kept = await database.read(lambda connection: sweep_of(connection, "h"))
        assert (None if kept is None else len(kept.observations)) == (8 if frozen else None)


@pytest.mark.parametrize("why", [Frozen.MAINTENANCE, Frozen.SILENT])
async def test_what_is_seen_of_a_frozen_host_meets_the_breaker(database: Database, why: Frozen) -> None:
    """Rows keep what nothing follows from; of the rest the host's word after that is news, and too much at once."""
    await database.write(lambda connection: hosts.register(connection, "h", "nova"))
    ids = [await add(database) for _ in range(12)]
    stopped = await add(database, vm_state="stopped", observed="missing", cause="other")
    await database.write(lambda connection: hosts.freeze(connection, "h", why, "", NOW))
    arbiter = make_arbiter(database)
    await arbiter.intake.take(report(1, (stopped, Observed.SHUTOFF), complete=True))
    rows = [await row_of(database, each) for each in (*ids, stopped)]
    assert [(row.observed, row.observed_seq) for row in rows] == [
        *[(Observed.RUNNING, 0)] * 12,
        (Observed.SHUTOFF, 1),
    ]
    await database.write(lambda connection: hosts.thaw(connection, "h", why))
    await arbiter.intake.take(report(2, (stopped, Observed.SHUTOFF), complete=True))
    assert await database.read(lambda connection: hosts.frozen(connection, "h")) is Frozen.SWEEP
    assert {(await row_of(database, each)).observed for each in ids} == {Observed.RUNNING}


async def test_what_is_believed_late_is_so_since_it_was_said_first(database: Database) -> None:
    """An operator confirms a sweep after an hour: guests that shut themselves down are billed as stopped since then."""
    await database.write(lambda connection: hosts.register(connection, "h", "nova"))
    ids = [await add(database) for _ in range(6)]
    clock = SetClock()
    arbiter = Arbiter(Admission(database, clock, ShutdownDefaults(), lambda: None))
    for seq, seconds in enumerate((10, 20, 3600), 1):
        clock.at = NOW + seconds
        off = [(each, Observed.SHUTOFF) for each in ids]
        await arbiter.intake.take(report(seq, *off, complete=True, cause=Cause.GUEST))
    clock.at = NOW + 3700
    believe = functools.partial(sweeps.believe, host="h", actor=actor(), now=clock.at, by="operator")
    assert sorted(await database.write(believe) or ()) == sorted(ids)
    for each in ids:
        await arbiter.reconcile(each)
    used = await database.read(
        lambda connection: intervals.of_instances(connection, ids, begin=NOW, end=NOW + 9000)
    )
    assert {
        tuple((each.state, each.began - NOW, each.ended and each.ended - NOW) for each in used[instance_id])
        for instance_id in ids
    } == {(("running", 0.0, 10.0), ("shutoff", 10.0, None), ("active", 0.0, 10.0), ("stopped", 10.0, None))}


async def test_a_report_that_could_not_be_kept_was_seen_when_it_came(sqlite_url: sa.URL) -> None:
    """The bus delivers it again; a database that was away makes nothing later than it was."""
    database = Away(SqliteDatabase(sqlite_url, inline_commit=True))
    instance_id = await add(database)
    clock = SetClock()
    arbiter = Arbiter(Admission(database, clock, ShutdownDefaults(), lambda: None))
    await arbiter.intake.take(report(1, (instance_id, Observed.RUNNING), complete=True))
    for seconds, away in ((10, True), (70, False)):
        clock.at, database.away = NOW + seconds, away
        with contextlib.suppress(StoreUnavailable):
            await arbiter.intake.handle(msgspec.json.encode(report(2, (instance_id, Observed.PAUSED))))
    assert (await row_of(database, instance_id)).observed_at == NOW + 10
    await database.close()


async def test_what_is_no_alert_any_more_is_told_when_it_is_again(database: Database) -> None:
    """Without anything else being seen: here the record was put in error, and out of it again."""
    instance_id = await add(database, observed="missing", cause="other", observed_seq=1)
    for number, state in enumerate(("active", "error", "active")):
        await database.write(
            functools.partial(
                instances.guarded_update, instance_id=instance_id, checks=(), changes={"vm_state": state}
            )
        )
        await make_arbiter(database).reconcile(instance_id)
        assert await alerts(database) == 1 + number // 2


async def test_a_complete_report_says_who_is_missing(database: Database) -> None:
    """Living ones of its own host, and nobody else."""
    there, gone, deleted, elsewhere = [
        await add(database, **changes)
        for changes in ({}, {}, {"vm_state": "deleted", "observed": "missing"}, {"host": "other"})
    ]
    await make_arbiter(database).intake.take(report(10, (there, Observed.RUNNING), complete=True))
    rows = [await row_of(database, each) for each in (there, gone, deleted, elsewhere)]
    assert [(row.observed, row.observed_seq) for row in rows] == [
        (Observed.RUNNING, 0),
        (Observed.MISSING, 10),
        (Observed.MISSING, 0),
        (Observed.RUNNING, 0),
    ]


async def test_an_empty_complete_report_is_about_its_own_host(database: Database) -> None:
    """And an incomplete one says nothing of those it does not name."""
    ours = await add(database)
    await make_arbiter(database).intake.take(report(10, complete=False))
    assert (await row_of(database, ours)).observed is Observed.RUNNING
    await make_arbiter(database).intake.take(report(10, complete=True, host="other"))
    assert (await row_of(database, ours)).observed is Observed.RUNNING
    await make_arbiter(database).intake.take(report(11, complete=True))
    assert (await row_of(database, ours)).observed is Observed.MISSING


async def test_a_complete_report_that_is_late_finds_nobody_missing(database: Database) -> None:
    """A guest that was made after the report's question, and has been seen since, is not missing."""
    instance_id = await add(database)
    arbiter = make_arbiter(database)
    await arbiter.intake.take(report(20, (instance_id, Observed.PAUSED)))
    await arbiter.intake.take(report(10, complete=True))
    assert (await row_of(database, instance_id)).observed is Observed.PAUSED


async def test_another_host_s_word_does_not_count(database: Database) -> None:
    """An old host may report late, or a guest may be there twice."""
    instance_id = await add(database)
    await make_arbiter(database).intake.take(report(10, (instance_id, Observed.SHUTOFF), host="other"))
    row = await row_of(database, instance_id)
    assert (row.observed, row.observed_seq) == (Observed.RUNNING, 0)


async def test_a_guest_that_nobody_knows_is_passed_over(database: Database) -> None:
    """The database may have been restored from a backup; the guest is not ours to touch."""
    arbiter = make_arbiter(database)
    await arbiter.intake.take(report(10, ("nobody", Observed.RUNNING), complete=True))
    assert await arbiter.reconcile("nobody") is None


class Overtaking:
    """A database in which something is admitted for every instance between a read and what follows it."""

    def __init__(self, database: Database, **then: str) -> None:
        self._database = database
        self._then = then
        self.dialect = database.dialect

    async def read(self, work: Work[T]) -> T:
        found = await self._database.read(work)
        await self.overtake()
        return found

    async def overtake(self) -> None:
        """Admit something for every instance."""
        await self._database.write(
            lambda connection: connection.execute(
                sa.update(INSTANCES).values(fence=INSTANCES.c.fence + 1, **self._then)
            )
        )

    async def write(self, work: Work[T]) -> T:
        return await self._database.write(work)

    async def seal(self) -> None:
        await self._database.seal()

    async def close(self) -> None:
        await self._database.close()


@pytest.mark.parametrize(
    "then", [{}, {"task_state": "deleting", "operation_id": "x"}], ids=["and-over", "and-in-flight"]
)
@pytest.mark.parametrize("cause", ["guest", "destroyed"], ids=["adopt", "restore"])
async def test_a_verdict_about_a_state_that_has_passed_is_not_carried_out(
    database: Database, cause: str, then: dict[str, str]
) -> None:
    """What was admitted in the meantime wins: the verdict's write carries the fence it read (R12)."""
    instance_id = await add(database, observed="shutoff", cause=cause)
    await make_arbiter(Overtaking(database, **then)).reconcile(instance_id)
    row = await row_of(database, instance_id)
    assert (row.vm_state, row.task_state, row.fence) == (VmState.ACTIVE, then.get("task_state"), 2)
    assert await database.read(lambda connection: operations.of_instance(connection, instance_id)) == []


class Away(Overtaking):
    """A database that can be away."""

    away = False

    async def overtake(self) -> None:
        """Fail while it is."""
        if self.away:
            raise StoreUnavailable("It is away.")


HISTORY = (
    (1, Observed.RUNNING, Cause.OTHER),
    (2, Observed.PAUSED, Cause.OPERATOR),
    (3, Observed.SHUTOFF, Cause.DESTROYED),
    (4, Observed.RUNNING, Cause.OTHER),
    (5, Observed.SHUTOFF, Cause.GUEST),
)


@pytest.mark.parametrize(
    "order", list(itertools.permutations(HISTORY[:4]))[::5], ids=lambda order: str([h[0] for h in order])
)
async def test_any_order_ends_the_same(
    database: Database, order: tuple[tuple[int, Observed, Cause], ...]
) -> None:
    """The highest number is what holds, whatever came when."""
    instance_id = await add(database, vm_state="building", task_state="spawning")
    arbiter = make_arbiter(database)
    for seq, observed, cause in order:
        await arbiter.intake.take(report(seq, (instance_id, observed), cause=cause))
    row = await row_of(database, instance_id)
    assert (row.observed, row.cause) == (Observed.RUNNING, Cause.OTHER)


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sent=st.lists(st.sampled_from(HISTORY), min_size=1, max_size=12))
async def test_duplicates_in_any_order(sqlite_url: sa.URL, sent: list[tuple[int, Observed, Cause]]) -> None:
    """Every sequence of reports leaves the observation of its highest number."""
    database = SqliteDatabase(sqlite_url, inline_commit=True)
    instance_id = await add(database, vm_state="error")
    arbiter = make_arbiter(database)
    for seq, observed, cause in sent:
        await arbiter.intake.take(report(seq, (instance_id, observed), cause=cause))
    row = await row_of(database, instance_id)
    _, observed, cause = max(sent)
    assert (row.observed, row.cause) == (observed, cause)
    await database.close()


class Confirming(Overtaking):
    """A database in which an operator confirms a sweep between its weighing and what is written of it."""

    async def overtake(self) -> None:
        """Confirm it, if there is one."""
        believe = functools.partial(sweeps.believe, host="h", actor=actor(), now=NOW, by="operator")
        await self._database.write(believe)


async def test_a_sweep_is_confirmed_once(database: Database) -> None:
    """The host says it once more while somebody confirms it: that is no sweep which begins."""
    await database.write(lambda connection: hosts.register(connection, "h", "nova"))
    ids = [await add(database) for _ in range(6)]
    off = [(each, Observed.SHUTOFF) for each in ids]
    await make_arbiter(database).intake.take(report(1, *off, complete=True))
    assert await database.read(lambda connection: hosts.frozen(connection, "h")) is Frozen.SWEEP
    arbiter = make_arbiter(Confirming(database))
    for seq in (2, 3):
        await arbiter.intake.take(report(seq, *off, complete=True))
        assert await database.read(lambda connection: hosts.frozen(connection, "h")) is None
        assert await database.read(lambda connection: sweep_of(connection, "h")) is None
    told = sa.select(AUDIT.c.event).where(AUDIT.c.action == "sweep").order_by(AUDIT.c.number)
    await database.seal()
    events = await database.read(lambda connection: connection.execute(told).scalars().all())
    # When it began, and by the second look at once.
    assert events == ["alert", "alert", "sweep_confirmed"]
    assert {(await row_of(database, each)).observed for each in ids} == {Observed.SHUTOFF}
