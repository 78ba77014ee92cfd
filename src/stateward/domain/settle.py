"""What an operation's result makes of the record.

Pure: the store applies the changes in one guarded UPDATE whose WHERE clause carries the operation's fence, so a
result counts once and a superseded operation's result not at all (B3).
"""

from __future__ import annotations

from typing import Any

from stateward.domain.actions import Action, OnFailure
from stateward.domain.records import Fault, Instance, Outcome, Result
from stateward.domain.shutdown import Ending
from stateward.domain.states import VmState


def settle(action: Action, instance: Instance, result: Result, now: float) -> dict[str, Any]:
    """Return the columns of the instance's row that a final result changes.

    Args:
        action: the operation's row.
        instance: the row as it is.
        result: an agent's result; not ``SUPERSEDED``, which changes nothing. ``CANCELLED`` ends the task alone.
        now: seconds since the epoch.
    """
    changes: dict[str, Any] = {"task_state": None, "operation_id": None, "updated_at": now}
    if result.outcome is Outcome.SUCCEEDED:
        saved = result.ending is Ending.SAVED and action.if_saved is not None
        becomes = action.if_saved if saved else action.becomes
        if becomes is not None:
            changes["vm_state"] = becomes
            # What leaves the state as it is says nothing of why an instance in ERROR is there.
            changes["fault"] = None
        if action.becomes is VmState.ACTIVE and instance.launched_at is None:
            changes["launched_at"] = now
        if action.becomes is VmState.DELETED and instance.terminated_at is None:
            changes["terminated_at"] = now
    elif result.outcome is Outcome.FAILED:
        message = result.message or f"{action.name} failed"
        changes["fault"] = Fault(code=500, message=message, created=now)
        # A guest that was left on, as was chosen, is as it was: also where other failures leave it half removed.
        if action.on_failure is OnFailure.ERROR and result.ending is not Ending.LEFT_ON:
            changes["vm_state"] = VmState.ERROR
    return changes
