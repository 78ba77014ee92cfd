"""What a result makes of the record."""

from __future__ import annotations

import msgspec
import pytest

from stateward.domain.actions import ACTIONS, BY_KEY, Action, OnFailure, key
from stateward.domain.records import Fault, Outcome, Result
from stateward.domain.settle import settle
from stateward.domain.shutdown import Ending
from stateward.domain.states import VmState
from stateward.domain.steps import LOOKS, Step
from tests.rows import NOW, instance

OPERATIONS = [row for row in ACTIONS if row.is_operation]
LATER = NOW + 5


def by_key(row: Action) -> str:
    return key(row)


def result(outcome: Outcome, message: str | None = None) -> Result:
    return Result(
        operation_id="o", instance_id="i", fence=2, outcome=outcome, message=message, observation=None
    )


@pytest.mark.parametrize("row", OPERATIONS, ids=by_key)
def test_success_gives_the_state_of_the_row(row: Action) -> None:
    """And clears the fault and the task, whatever the state was; a row without one leaves state and fault."""
    before = instance(vm_state=VmState.ERROR, fault=Fault(code=500, message="m", created=NOW))
    changes = settle(row, before, result(Outcome.SUCCEEDED), LATER)
    assert changes.get("vm_state") is row.becomes
    assert (changes["task_state"], changes["operation_id"]) == (None, None)
    assert changes.get("fault", before.fault) == (before.fault if row.becomes is None else None)
    assert changes["updated_at"] == LATER


@pytest.mark.parametrize("row", OPERATIONS, ids=by_key)
def test_failure_keeps_the_state_or_is_an_error(row: Action) -> None:
    """As the row says; the fault is kept either way, and the task ends (B3)."""
    changes = settle(row, instance(), result(Outcome.FAILED, "The disk is full."), LATER)
    assert changes["fault"] == Fault(code=500, message="The disk is full.", created=LATER)
    assert (changes["task_state"], changes["operation_id"]) == (None, None)
    assert changes.get("vm_state") == (VmState.ERROR if row.on_failure is OnFailure.ERROR else None)


@pytest.mark.parametrize("message", [None, ""])
def test_a_failure_without_words_still_has_a_fault(message: str | None) -> None:
    """An instance in error always says something."""
    changes = settle(BY_KEY["create"], instance(), result(Outcome.FAILED, message), LATER)
    assert changes["fault"].message == "create failed"


def test_launched_is_the_first_time_it_ran() -> None:
    """A later start does not change it (R16)."""
    start = BY_KEY["start"]
    first = settle(start, instance(launched_at=None), result(Outcome.SUCCEEDED), LATER)
    assert first["launched_at"] == LATER
    assert "launched_at" not in settle(start, instance(launched_at=NOW), result(Outcome.SUCCEEDED), LATER)
    assert "launched_at" not in settle(BY_KEY["stop"], instance(), result(Outcome.SUCCEEDED), LATER)
    assert "launched_at" not in settle(start, instance(), result(Outcome.FAILED), LATER)


def test_terminated_is_the_first_time_it_was_gone() -> None:
    """Removing a guest that came back does not change it (R16)."""
    gone = settle(BY_KEY["delete"], instance(), result(Outcome.SUCCEEDED), LATER)
    assert gone["terminated_at"] == LATER
    again = settle(BY_KEY["reap"], instance(terminated_at=NOW), result(Outcome.SUCCEEDED), LATER)
    assert "terminated_at" not in again


def test_a_deletion_that_can_be_undone_ends_twice() -> None:
    """The disk takes room until it is reclaimed, and restored it has not ended (R16)."""
    deleted = settle(BY_KEY["delete_soft"], instance(), result(Outcome.SUCCEEDED), LATER)
    assert deleted["terminated_at"] == LATER
    kept = instance(vm_state=VmState.SOFT_DELETED, terminated_at=NOW)
    assert settle(BY_KEY["reclaim"], kept, result(Outcome.SUCCEEDED), LATER)["terminated_at"] == LATER
    assert settle(BY_KEY["restore"], kept, result(Outcome.SUCCEEDED), LATER)["terminated_at"] is None


def test_a_deletion_that_fails_has_no_end() -> None:
    """It did not happen."""
    assert "terminated_at" not in settle(BY_KEY["delete"], instance(), result(Outcome.FAILED), LATER)


def test_a_saved_memory_is_what_the_row_says_of_one() -> None:
    """A stop that ended with a save is no stop; elsewhere the row's own state counts."""
    saved = msgspec.structs.replace(result(Outcome.SUCCEEDED), ending=Ending.SAVED)
    assert settle(BY_KEY["stop"], instance(), saved, LATER)["vm_state"] is VmState.SUSPENDED
    assert settle(BY_KEY["reboot_soft"], instance(), saved, LATER)["vm_state"] is VmState.ACTIVE


@pytest.mark.parametrize("row", OPERATIONS, ids=by_key)
def test_a_guest_that_was_left_on_is_no_error(row: Action) -> None:
    """Nothing was done to it: the state stays also where other failures leave it half removed."""
    left_on = msgspec.structs.replace(result(Outcome.FAILED, "m"), ending=Ending.LEFT_ON)
    changes = settle(row, instance(), left_on, LATER)
    assert "vm_state" not in changes
    assert (changes["task_state"], changes["operation_id"]) == (None, None)


@pytest.mark.parametrize("row", OPERATIONS, ids=by_key)
@pytest.mark.parametrize("step", Step)
def test_a_failed_look_is_no_error(row: Action, step: Step) -> None:
    """What fails before anything was done leaves the state, and says why; any other step is as the row says."""
    failed = msgspec.structs.replace(result(Outcome.FAILED, "m"), failed_at=step)
    changes = settle(row, instance(), failed, LATER)
    error = row.on_failure is OnFailure.ERROR and step not in LOOKS
    assert changes.get("vm_state") == (VmState.ERROR if error else None)
    assert changes["fault"] == Fault(code=500, message="m", created=LATER)
    assert (changes["task_state"], changes["operation_id"]) == (None, None)


@pytest.mark.parametrize("row", OPERATIONS, ids=by_key)
def test_a_cancel_ends_the_task_alone(row: Action) -> None:
    """Neither state nor fault is touched (B4)."""
    assert settle(row, instance(), result(Outcome.CANCELLED, "m"), LATER) == {
        "task_state": None,
        "operation_id": None,
        "updated_at": LATER,
    }
