"""Completion: a result is applied once, and only if it is still about the operation in flight (B3)."""

from __future__ import annotations

import asyncio

import psycopg
import pytest
import sqlalchemy as sa

from stateward.domain.bodies import ShutdownOptions
from stateward.domain.records import Fault, Observation, Operation, OperationState, Outcome, Result
from stateward.domain.shutdown import Ending
from stateward.domain.states import Cause, Observed, TaskState, VmState
from stateward.operations.completion import Completion
from stateward.store import observations
from stateward.store.engine import Database, StoreUnavailable
from tests.operations.desk import Away, Desk
from tests.rows import NOW
from tests.stack import encoded

SEEN = 100


class Applied:
    """A completion, and whom it told."""

    def __init__(self, desk: Desk, database: Database | None = None) -> None:
        self.settled: list[str] = []
        admission = desk.admission if database is None else desk.admission.on(database)
        self._completion = Completion(admission, self.settled.append)

    async def result(
        self,
        operation: Operation,
        outcome: Outcome = Outcome.SUCCEEDED,
        *,
        message: str | None = None,
        observed: Observed | None = Observed.SHUTOFF,
        seq: int = SEEN,
        ending: Ending | None = None,
    ) -> None:
        """Hand a result over, as the bus does."""
        observation = None
        if observed is not None:
            observation = Observation(
                instance_id=operation.instance_id, observed=observed, cause=Cause.GUEST, seq=seq, at=NOW
            )
        await self._completion.handle(
            encoded(
                Result(
                    operation_id=operation.id,
                    instance_id=operation.instance_id,
                    fence=operation.fence,
                    outcome=outcome,
                    message=message,
                    observation=observation,
                    shutdown="the guest was off",
                    ending=ending,
                    seq=seq,
                )
            )
        )


@pytest.fixture
def applied(desk: Desk) -> Applied:
    """Give a completion."""
    return Applied(desk)


async def test_a_success(desk: Desk, applied: Applied) -> None:
    """The record, the observation, the operation and the audit trail, and the arbiter is told."""
    instance_id = await desk.add(fault=Fault(code=500, message="old", created=NOW))
    stop = (await desk.admit("stop", instance_id)).operation
    desk.clock.at = NOW + 9
    await applied.result(stop)
    row = await desk.row(instance_id)
    assert (row.vm_state, row.task_state, row.operation_id) == (VmState.STOPPED, None, None)
    assert (row.fault, row.updated_at, row.fence) == (None, NOW + 9, 2)
    assert (row.observed, row.cause, row.observed_seq) == (Observed.SHUTOFF, Cause.GUEST, SEEN)
    ended = await desk.operation(stop.id)
    assert (ended.state, ended.finished_at) == (OperationState.SUCCEEDED, NOW + 9)
    event, action, detail = (await desk.audit())[-1]
    assert (event, action) == ("finished", "stop")
    assert detail == {
        "outcome": "succeeded",
        "message": None,
        "shutdown": "the guest was off",
        "from": "active",
        "to": "stopped",
    }
    assert applied.settled == [instance_id]


async def test_a_duplicate_counts_once(desk: Desk, applied: Applied) -> None:
    """Even one that says something else."""
    instance_id = await desk.add()
    stop = (await desk.admit("stop", instance_id)).operation
    await applied.result(stop)
    before, trail = await desk.row(instance_id), await desk.audit()
    desk.clock.at = NOW + 50
    await applied.result(stop)
    await applied.result(stop, Outcome.FAILED, message="No.", observed=Observed.RUNNING, seq=SEEN + 1)
    assert await desk.row(instance_id) == before
    assert await desk.audit() == trail
    assert applied.settled == [instance_id]


async def test_a_superseded_operation_s_result_does_not_count(desk: Desk, applied: Applied) -> None:
    """The record waits for the one that overtook it."""
    instance_id = await desk.add()
    clean = (await desk.admit("stop", instance_id)).operation
    forced = (await desk.admit("stop_force", instance_id, body=ShutdownOptions(force=True))).operation
    before = await desk.row(instance_id)
    for outcome in Outcome:
        await applied.result(clean, outcome)
    assert await desk.row(instance_id) == before
    assert applied.settled == []
    await applied.result(forced)
    assert (await desk.row(instance_id)).vm_state is VmState.STOPPED


@pytest.mark.parametrize(
    ("action", "vm_state", "becomes"),
    [("pause", "active", VmState.ACTIVE), ("delete", "active", VmState.ERROR)],
)
async def test_a_failure(
    desk: Desk, applied: Applied, *, action: str, vm_state: str, becomes: VmState
) -> None:
    """Keeps the state or is an error, as the row says; the fault says why, and nothing is in flight."""
    instance_id = await desk.add(vm_state=vm_state)
    operation = (await desk.admit(action, instance_id)).operation
    await applied.result(operation, Outcome.FAILED, message="The host is full.")
    row = await desk.row(instance_id)
    assert (row.vm_state, row.task_state, row.operation_id) == (becomes, None, None)
    assert row.fault == Fault(code=500, message="The host is full.", created=NOW)
    assert (await desk.operation(operation.id)).state is OperationState.FAILED


@pytest.mark.parametrize("action", ["rescue", "resize", "shelve"])
async def test_a_guest_that_was_shut_down_for_nothing_comes_back(
    desk: Desk, applied: Applied, action: str
) -> None:
    """In the transaction that ends the failed operation: nobody may take its being off for the guest's own wish."""
    instance_id = await desk.add()
    failed = (await desk.admit(action, instance_id)).operation
    await applied.result(failed, Outcome.FAILED, message="The image is broken.")
    row = await desk.row(instance_id)
    assert (row.vm_state, row.task_state) == (VmState.ACTIVE, TaskState.POWERING_ON)
    before, start = sorted(await desk.operations(instance_id), key=lambda operation: operation.fence)
    assert (before.state, before.message) == (OperationState.FAILED, "The image is broken.")
    assert (start.action, start.state) == ("restore_start", OperationState.ACCEPTED)
    assert (start.fence, start.request_id) == (failed.fence + 1, failed.request_id)
    await applied.result(start, observed=Observed.RUNNING, seq=SEEN + 1)
    row = await desk.row(instance_id)
    assert (row.vm_state, row.task_state) == (VmState.ACTIVE, None)


@pytest.mark.parametrize("action", ["rescue", "resize_stopped", "shelve"])
async def test_a_guest_that_was_off_stays_off(desk: Desk, applied: Applied, action: str) -> None:
    """It is as it was."""
    instance_id = await desk.add(vm_state="stopped")
    await applied.result((await desk.admit(action, instance_id)).operation, Outcome.FAILED, message="No.")
    row = await desk.row(instance_id)
    assert (row.vm_state, row.task_state) == (VmState.STOPPED, None)
    assert len(await desk.operations(instance_id)) == 1


@pytest.mark.parametrize(
    ("outcome", "ending"),
    [(Outcome.FAILED, Ending.LEFT_ON), (Outcome.CANCELLED, None), (Outcome.SUPERSEDED, None)],
)
async def test_a_guest_that_was_left_alone_is_not_started(
    desk: Desk, applied: Applied, outcome: Outcome, ending: Ending | None
) -> None:
    """It was left on, as was chosen; or nothing more is done to it, as its owner asked."""
    instance_id = await desk.add()
    operation = (await desk.admit("rescue", instance_id)).operation
    await applied.result(operation, outcome, message="No.", ending=ending, observed=Observed.RUNNING)
    assert (await desk.row(instance_id)).task_state is None
    assert len(await desk.operations(instance_id)) == 1


async def test_what_the_host_gave_up_is_not_waited_for(desk: Desk, applied: Applied) -> None:
    """An agent that knows a newer fence than the database has: no instance is stuck because of it."""
    instance_id = await desk.add()
    stop = (await desk.admit("stop", instance_id)).operation
    await applied.result(stop, Outcome.SUPERSEDED)
    row = await desk.row(instance_id)
    assert (row.vm_state, row.task_state, row.operation_id) == (VmState.ACTIVE, None, None)
    assert row.fault is not None
    assert row.fault.message == "The host gave the operation up."
    assert (await desk.operation(stop.id)).state is OperationState.SUPERSEDED
    assert applied.settled == [instance_id]


async def test_an_unknown_operation(desk: Desk, applied: Applied) -> None:
    """A database restored from a backup may be asked to finish what it never began."""
    instance_id = await desk.add()
    stop = (await desk.admit("stop", instance_id)).operation
    unknown = Operation(
        **{name: getattr(stop, name) for name in stop.__struct_fields__ if name != "id"}, id="unknown"
    )
    before = await desk.row(instance_id)
    await applied.result(unknown)
    assert await desk.row(instance_id) == before
    assert applied.settled == []


@pytest.mark.parametrize(("seq", "observed"), [(9, Observed.RUNNING), (11, Observed.SHUTOFF)])
async def test_a_result_s_observation_is_one_like_any_other(
    desk: Desk, applied: Applied, *, seq: int, observed: Observed
) -> None:
    """It does not go back behind a newer one; and without one the result counts all the same."""
    instance_id = await desk.add(observed_seq=10)
    stop = (await desk.admit("stop", instance_id)).operation
    await applied.result(stop, seq=seq)
    row = await desk.row(instance_id)
    assert (row.vm_state, row.observed) == (VmState.STOPPED, observed)


async def test_a_result_without_an_observation(desk: Desk, applied: Applied) -> None:
    """The hypervisor could not be asked: the record is settled, and by what was seen before nobody judges it."""
    instance_id = await desk.add(observed_seq=SEEN - 1)
    stop = (await desk.admit("stop", instance_id)).operation
    await applied.result(stop, observed=None)
    row = await desk.row(instance_id)
    assert (row.vm_state, row.observed, row.observed_seq) == (VmState.STOPPED, Observed.UNKNOWN, SEEN)


@pytest.mark.parametrize("seen", [SEEN, SEEN + 1])
async def test_what_was_seen_since_stays_without_an_observation(
    desk: Desk, applied: Applied, *, seen: int
) -> None:
    """An event had the guest looked at meanwhile."""
    instance_id = await desk.add()
    stop = (await desk.admit("stop", instance_id)).operation
    off = Observation(instance_id=instance_id, observed=Observed.SHUTOFF, cause=Cause.GUEST, seq=seen, at=NOW)
    host = (await desk.row(instance_id)).host
    await desk.database.write(lambda connection: observations.observe(connection, off, host=host))
    await applied.result(stop, observed=None)
    row = await desk.row(instance_id)
    assert (row.vm_state, row.observed, row.observed_seq) == (VmState.STOPPED, Observed.SHUTOFF, seen)


async def test_the_reason_stays_unless_the_result_says_more(desk: Desk, applied: Applied) -> None:
    """What the arbiter wrote is not lost by a success without words."""
    for said, kept in ((None, "It went off."), ("Done.", "Done.")):
        instance_id = await desk.add()
        operation = (await desk.admit("restore_start", instance_id, why="It went off.")).operation
        await applied.result(operation, message=said)
        assert (await desk.operation(operation.id)).message == kept


async def test_a_result_that_cannot_be_kept_is_not_taken(desk: Desk) -> None:
    """It raises, so that the bus delivers it again; then it counts."""
    database = Away(desk.database)
    applied = Applied(desk, database)
    instance_id = await desk.add()
    stop = (await desk.admit("stop", instance_id)).operation
    database.away = True
    with pytest.raises(StoreUnavailable):
        await applied.result(stop)
    assert (await desk.row(instance_id)).task_state is TaskState.POWERING_OFF
    assert applied.settled == []
    database.away = False
    await applied.result(stop)
    assert (await desk.row(instance_id)).vm_state is VmState.STOPPED


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_a_result_holds_the_instance_first(desk: Desk, applied: Applied, database_url: sa.URL) -> None:
    """As whoever overtakes its operation does: the two never wait for each other at the same moment."""
    instance_id = await desk.add()
    stop = (await desk.admit("stop", instance_id)).operation
    address = database_url.render_as_string(hide_password=False).replace("+psycopg", "")
    waiting = (
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    with psycopg.connect(address) as overtaking, psycopg.connect(address, autocommit=True) as watching:
        overtaking.execute("SELECT FROM instances WHERE id = %s FOR UPDATE", (instance_id,))
        result = asyncio.create_task(applied.result(stop))
        async with asyncio.timeout(60):
            while watching.execute(waiting).fetchone() == (0,):  # noqa: ASYNC110 (it waits for PostgreSQL)
                await asyncio.sleep(0.01)
        # Raises where the result holds it already.
        overtaking.execute("SELECT FROM operations WHERE id = %s FOR UPDATE NOWAIT", (stop.id,))
    await result
    assert (await desk.row(instance_id)).vm_state is VmState.STOPPED
