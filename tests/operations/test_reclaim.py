"""Reclaiming: what was deleted goes when its time has passed, unless somebody keeps it or has it back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import pytest
import sqlalchemy as sa

from stateward.domain.actions import Action
from stateward.domain.locks import OperationClass
from stateward.domain.records import Outcome
from stateward.domain.states import TaskState, VmState
from stateward.operations.admission import Admitted
from stateward.operations.reclaim import Reclaimer
from stateward.store.engine import StoreUnavailable
from tests.operations.desk import Desk
from tests.operations.test_lifecycle import end
from tests.rows import NOW

INTERVAL: Final = 100.0


@pytest.fixture
def reclaimer(desk: Desk) -> Reclaimer:
    """Give one that is asked by hand."""
    return Reclaimer(desk.admission, INTERVAL)


async def deleted(desk: Desk, **changes: object) -> str:
    return await desk.add(**({"vm_state": VmState.SOFT_DELETED.value, "terminated_at": NOW} | changes))


async def test_not_before_its_time(desk: Desk, reclaimer: Reclaimer) -> None:
    """A moment before the interval is over it stays; at its end it goes, once, without a guest being asked."""
    server = await deleted(desk)
    desk.clock.at = NOW + INTERVAL - 0.1
    assert await reclaimer.reclaim() == []
    desk.clock.at = NOW + INTERVAL
    assert await reclaimer.reclaim() == [server]
    assert (await desk.row(server)).task_state is TaskState.DELETING
    assert await reclaimer.reclaim() == []
    (operation,) = await desk.operations(server)
    assert (operation.action, operation.actor_kind) == ("reclaim", "system")
    assert operation.message == "Its time to be restored has passed."
    assert (await end(desk, operation)).vm_state is VmState.DELETED


async def test_one_that_cannot_be_reclaimed_keeps_no_other(
    desk: Desk, reclaimer: Reclaimer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a fault of ours; where the database is away nothing is tried."""
    first, second = [await deleted(desk, terminated_at=NOW + seconds) for seconds in range(2)]
    desk.clock.at = NOW + 2 * INTERVAL
    admit = desk.admission.admit
    fault: Exception | None = None

    async def faulty(action: Action, instance_id: str, *words: Any, **more: Any) -> Admitted:
        if instance_id == first and fault is not None:
            raise fault
        return await admit(action, instance_id, *words, **more)

    monkeypatch.setattr(desk.admission, "admit", faulty)
    fault = StoreUnavailable("It is away.")
    with pytest.raises(StoreUnavailable):
        await reclaimer.reclaim()
    fault = RuntimeError("a fault of ours")
    assert await reclaimer.reclaim() == [second]
    fault = None
    assert await reclaimer.reclaim() == [first]


@pytest.mark.parametrize("column", ["owner_blocks", "admin_blocks", "hold_blocks"])
async def test_a_lock_keeps_it(desk: Desk, reclaimer: Reclaimer, column: str) -> None:
    """Whoever placed it: nobody is there who could pass it (R1, R6). It goes when the lock does."""
    server = await deleted(desk, **{column: int(OperationClass.DELETE)})
    desk.clock.at = NOW + 10 * INTERVAL
    assert await reclaimer.reclaim() == []
    assert (await desk.row(server)).vm_state is VmState.SOFT_DELETED
    assert await desk.operations(server) == []
    await desk.change(server, {column: 0})
    assert await reclaimer.reclaim() == [server]


async def test_a_lock_of_another_class_does_not(desk: Desk, reclaimer: Reclaimer) -> None:
    """Only what blocks deletions."""
    server = await deleted(desk, owner_blocks=int(OperationClass.START | OperationClass.STOP))
    desk.clock.at = NOW + INTERVAL
    assert await reclaimer.reclaim() == [server]


async def test_what_is_being_restored_is_left_alone(desk: Desk, reclaimer: Reclaimer) -> None:
    """Nor is it reclaimed afterwards for the time it was deleted before."""
    server = await deleted(desk)
    desk.clock.at = NOW + INTERVAL
    restore = (await desk.admit("restore", server)).operation
    assert await reclaimer.reclaim() == []
    restored = await end(desk, restore)
    assert (restored.vm_state, restored.terminated_at) == (VmState.ACTIVE, None)
    assert await reclaimer.reclaim() == []
    again = await end(desk, (await desk.admit("delete_soft", server)).operation)
    assert again.terminated_at == desk.clock.at
    assert await reclaimer.reclaim() == []


async def test_what_was_restored_and_deleted_between_looking_and_acting(
    desk: Desk, reclaimer: Reclaimer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has a new time: what was read of the old one is good for nothing, by its fence."""
    server = await deleted(desk)
    desk.clock.at = NOW + INTERVAL
    read = desk.database.read

    async def late(work: Callable[[sa.Connection], Any]) -> Any:
        found = await read(work)
        monkeypatch.undo()
        await end(desk, (await desk.admit("restore", server)).operation)
        await end(desk, (await desk.admit("delete_soft", server)).operation)
        return found

    monkeypatch.setattr(desk.database, "read", late)
    assert await reclaimer.reclaim() == []
    row = await desk.row(server)
    assert (row.vm_state, row.task_state) == (VmState.SOFT_DELETED, None)


async def test_one_that_cannot_be_removed_is_tried_again(desk: Desk, reclaimer: Reclaimer) -> None:
    """It stays where it can be restored, with what went wrong; others are not kept waiting by it."""
    first, second = await deleted(desk), await deleted(desk, terminated_at=NOW + 1)
    desk.clock.at = NOW + 2 * INTERVAL
    assert await reclaimer.reclaim() == [first, second]
    (operation,) = await desk.operations(first)
    kept = await end(desk, operation, Outcome.FAILED)
    assert (kept.vm_state, kept.fault is not None) == (VmState.SOFT_DELETED, True)
    assert await reclaimer.reclaim() == [first]
