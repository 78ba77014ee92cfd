"""Orders to operations on the whole stack, behind a bus that doubles and delays, on virtual time (B4)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import looptime
import pytest
import pytest_asyncio

from stateward.bus.memory import Disorder
from stateward.domain.bodies import ShutdownOptions
from stateward.domain.errors import Conflict
from stateward.domain.records import Operation, OperationState, WaitsFor
from stateward.domain.shutdown import Rung
from stateward.domain.states import Cause, Observed, VmState
from stateward.operations.control import Control
from stateward.store import operations
from stateward.store.engine import Database
from tests.rows import actor
from tests.stack import Stack

pytestmark = [pytest.mark.asyncio, pytest.mark.looptime]

IGNORES = "stateward.acpi=ignore"


class Controlled(Stack):
    """A stack whose operations can be controlled."""

    def __init__(self, database: Database, folder: Path, disorder: Disorder | None) -> None:
        super().__init__(database, folder, disorder)
        self.control = Control(self.database, self.clock, self.dispatcher.wake)

    async def waiting(self, action: str, words: str, body: object = None) -> Operation:
        """Begin an operation and return it as it is when it was seen to wait for its guest."""
        admitted = await self.act(action, await self.create(words), body=body)
        while True:
            operation = await self.operation(admitted.operation.id)
            if operation.progress is not None and operation.progress.signalled_at is not None:
                return operation
            await asyncio.sleep(0.01)

    async def operation(self, operation_id: str) -> Operation:
        """Return an operation as it is now."""
        found = await self.database.read(lambda connection: operations.get(connection, operation_id))
        assert found is not None
        return found

    async def ended(self, operation: Operation) -> Operation:
        """Return an operation when it is finished."""
        while True:
            found = await self.operation(operation.id)
            if found.finished_at is not None:
                return found
            await asyncio.sleep(0.01)


@pytest_asyncio.fixture(params=[1, 2], ids="disorder-{}".format)
async def stack(
    request: pytest.FixtureRequest, inline_database: Database, swift_folder: Path
) -> AsyncIterator[Controlled]:
    """Give everything, behind a bus that misbehaves in one of two ways."""
    stack = Controlled(inline_database, swift_folder, Disorder(seed=request.param))
    with looptime.enabled(strict=True):
        await stack.start()
    yield stack
    with looptime.enabled(strict=True):
        await stack.stop()


async def test_an_operation_says_how_far_it_is(stack: Controlled) -> None:
    """It runs, waits for its guest until a time, and says how the guest was asked."""
    operation = await stack.waiting("stop", IGNORES, ShutdownOptions(timeout=20))
    assert operation.state is OperationState.RUNNING
    progress = operation.progress
    assert progress is not None
    assert (progress.number, progress.of, progress.waits_for) == (1, 2, WaitsFor.GUEST)
    assert progress.rung is Rung.POWER_BUTTON
    assert progress.signalled_at == pytest.approx(stack.clock.now(), abs=0.5)
    assert progress.deadline == pytest.approx((progress.signalled_at or 0) + 20)


async def test_extend_then_cancel(stack: Controlled) -> None:
    """Past its first deadline it still runs; cancelled it is as it was, and the operation says what it cannot undo."""
    operation = await stack.waiting("stop", IGNORES, ShutdownOptions(timeout=10))
    await stack.control.extend(operation.id, actor(), seconds=60, project_id="p")
    await asyncio.sleep(20)
    now = await stack.operation(operation.id)
    assert now.progress is not None
    assert (now.progress.deadline or 0) - (now.progress.signalled_at or 0) == pytest.approx(60)
    await stack.control.cancel(operation.id, actor(), project_id="p")
    ended = await stack.ended(operation)
    assert ended.state is OperationState.CANCELLED
    assert ended.message is not None
    assert ended.message.startswith(
        "Cancelled. The guest was already asked to shut down by its power button, 20"
    )
    row = await stack.idle(operation.instance_id)
    assert (row.vm_state, row.task_state, row.fault) == (VmState.ACTIVE, None, None)
    assert stack.guest(operation.instance_id) is Observed.RUNNING
    with pytest.raises(Conflict, match=r"is finished \(cancelled\)"):
        await stack.control.extend(operation.id, actor(), seconds=90, project_id="p")


async def test_escalate_is_off_within_half_a_second(stack: Controlled) -> None:
    """Counted from the request; the instance is then stopped, whatever was chosen for its deadline."""
    operation = await stack.waiting("stop", IGNORES, ShutdownOptions(timeout=600, at_deadline="fail"))
    await stack.control.escalate(operation.id, actor(), project_id="p")
    await asyncio.sleep(0.5)
    assert stack.guest(operation.instance_id) is Observed.SHUTOFF
    assert (await stack.idle(operation.instance_id)).vm_state is VmState.STOPPED
    assert (await stack.operation(operation.id)).state is OperationState.SUCCEEDED


async def test_a_cancelled_guest_that_goes_off_is_recorded_as_stopped(stack: Controlled) -> None:
    """It did so by itself, and the arbiter adopts that: the record is true."""
    operation = await stack.waiting("stop", "stateward.shutdown=10")
    await stack.control.cancel(operation.id, actor(), project_id="p")
    assert (await stack.ended(operation)).state is OperationState.CANCELLED
    row = await stack.until(operation.instance_id, lambda row: row.vm_state is VmState.STOPPED)
    assert (row.observed, row.cause) == (Observed.SHUTOFF, Cause.GUEST)


@pytest.mark.parametrize("action", ["delete", "reboot_soft"])
async def test_what_else_shuts_a_guest_down_is_cancelled_too(stack: Controlled, *, action: str) -> None:
    """The instance is there, on, and can be used."""
    operation = await stack.waiting(action, IGNORES)
    await stack.control.cancel(operation.id, actor(), project_id="p")
    assert (await stack.ended(operation)).state is OperationState.CANCELLED
    row = await stack.do("pause", operation.instance_id)
    assert row.vm_state is VmState.PAUSED


async def test_fail_leaves_an_active_instance(stack: Controlled) -> None:
    """The operation failed, the instance runs, and nobody has to bring it back."""
    operation = await stack.waiting("stop", IGNORES, ShutdownOptions(timeout=3, at_deadline="fail"))
    ended = await stack.ended(operation)
    assert ended.state is OperationState.FAILED
    assert ended.message == (
        "The guest did not shut down within 3 s (request) and was left on, as was chosen (request)."
    )
    row = await stack.idle(operation.instance_id)
    assert (row.vm_state, stack.guest(row.id)) == (VmState.ACTIVE, Observed.RUNNING)
    assert await stack.history(row.id) == ["create succeeded", "stop failed"]


async def test_save_leaves_a_suspended_instance_that_can_be_resumed(stack: Controlled) -> None:
    """Record and guest agree, so the arbiter has nothing to do."""
    operation = await stack.waiting("stop", IGNORES, ShutdownOptions(timeout=3, at_deadline="save"))
    assert (await stack.ended(operation)).state is OperationState.SUCCEEDED
    row = await stack.idle(operation.instance_id)
    assert (row.vm_state, row.observed) == (VmState.SUSPENDED, Observed.SUSPENDED)
    assert (await stack.do("resume", row.id)).vm_state is VmState.ACTIVE
    assert await stack.history(row.id) == ["create succeeded", "stop succeeded", "resume succeeded"]
    assert await stack.verdicts(row.id) == []


async def test_fifty_guests_shut_down_side_by_side(stack: Controlled) -> None:
    """Each takes 30 s, and so do they all; of each the wait is written once, and its end."""
    guests = await asyncio.gather(*(stack.create("stateward.shutdown=30") for _ in range(50)))
    writes = stack.database.writes
    for instance_id in guests:
        await stack.act("stop", instance_id)
    await asyncio.sleep(31)
    rows = [await stack.instance(instance_id) for instance_id in guests]
    assert {(row.vm_state, row.task_state) for row in rows} == {(VmState.STOPPED, None)}
    told = [operation.progress for each in guests for operation in (await stack.operations(each))[1:]]
    assert {None if each is None else each.waits_for for each in told} == {WaitsFor.GUEST}
    # Admission, outbox, progress, result and what the host reports meanwhile.
    assert stack.database.writes - writes <= 6 * len(guests)
