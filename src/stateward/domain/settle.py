"""What an operation's result makes of the record.

Pure: the store applies the changes in one guarded UPDATE whose WHERE clause carries the operation's fence, so a
result counts once and a superseded operation's result not at all (B3).
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from stateward.domain.actions import Action, OnFailure
from stateward.domain.records import Fault, Instance, Outcome, Result, Target
from stateward.domain.shutdown import Ending
from stateward.domain.states import ENDED, VmState
from stateward.domain.steps import LOOKS
from stateward.domain.strangers import STATE_OF

#: Where the image that keeps a shelved instance's disk is needed; anywhere else it is deleted.
_NEEDS_IMAGE: Final = frozenset(
    {VmState.SHELVED, VmState.SHELVED_OFFLOADED, VmState.SOFT_DELETED, VmState.ERROR}
)
#: Of every copy of a disk.
SNAPSHOT_FORMAT: Final = "qcow2"
#: Where a resize is neither confirmed nor reverted.
_UNCONFIRMED: Final = frozenset({VmState.RESIZED, VmState.SOFT_DELETED, VmState.ERROR})


def settle(
    action: Action, instance: Instance, result: Result, now: float, target: Target | None = None
) -> dict[str, Any]:
    """Return the columns of the instance's row that a final result changes.

    Args:
        action: the operation's row.
        instance: the row as it is.
        result: an agent's result; not ``SUPERSEDED``, which changes nothing. ``CANCELLED`` ends the task alone.
        now: seconds since the epoch.
        target: what the operation makes of the instance besides its state.
    """
    changes: dict[str, Any] = {"task_state": None, "operation_id": None, "updated_at": now}
    if result.outcome is Outcome.SUCCEEDED:
        saved = result.ending is Ending.SAVED and action.if_saved is not None
        becomes = action.if_saved if saved else action.becomes
        if action.as_found:
            becomes = _found(result, target or Target()) or becomes
        if becomes is not None:
            changes |= _become(becomes, instance, now, target or Target(), action.comes_from)
            # What leaves the state as it is says nothing of why an instance in ERROR is there.
            changes["fault"] = None
    elif result.outcome is Outcome.FAILED:
        message = result.message or f"{action.name} failed"
        changes["fault"] = Fault(code=500, message=message, created=now)
        if action.on_failure is OnFailure.ERROR and not is_as_it_was(result):
            changes["vm_state"] = VmState.ERROR
    return changes


def _found(result: Result, target: Target) -> VmState | None:
    """Return the state that a guest was found in: as it was seen last, else as it was when it was to be adopted."""
    seen = None if result.observation is None else STATE_OF.get(result.observation.observed)
    return seen or target.found


def is_as_it_was(result: Result) -> bool:
    """Say whether an operation that failed left the instance as it was, also where others leave it half removed.

    So it is with a guest that was left on, as was chosen, and when nothing was done yet but to look.
    """
    return result.ending is Ending.LEFT_ON or result.failed_at in LOOKS


def _become(
    state: VmState, instance: Instance, now: float, target: Target, comes_from: VmState | None
) -> dict[str, Any]:
    """Return the columns of an instance that has come to be in a state."""
    changes: dict[str, Any] = {"vm_state": state}
    if state is VmState.ACTIVE and instance.launched_at is None:
        changes["launched_at"] = now
    if state in ENDED and (instance.terminated_at is None or instance.vm_state is VmState.SOFT_DELETED):
        changes["terminated_at"] = now
    elif state not in ENDED and instance.terminated_at is not None:
        changes["terminated_at"] = None
    if state is VmState.SHELVED_OFFLOADED:
        changes["host"] = ""
    changes |= {
        name: value
        for name, value in (("flavor", target.flavor), ("image", target.image))
        # On its way to another host it is what it was; it is something else once it has arrived.
        if value is not None and state is not VmState.SHELVED_OFFLOADED
    }
    for name, value in _of_state(state, instance, target, comes_from).items():
        if getattr(instance, name) != value:
            changes[name] = value
    return changes


def _of_state(
    state: VmState, instance: Instance, target: Target, comes_from: VmState | None
) -> dict[str, Any]:
    """Return the columns that mean something in some states only, as they are in this one."""
    old_flavor, was = instance.old_flavor, instance.was
    if state is VmState.RESIZED:
        old_flavor, was = instance.flavor, comes_from or instance.vm_state
    elif state not in _UNCONFIRMED:
        old_flavor, was = None, None
    shelved_image = instance.shelved_image if state in _NEEDS_IMAGE else None
    if state in {VmState.SHELVED, VmState.SHELVED_OFFLOADED} and target.snapshot is not None:
        shelved_image = msgspec.structs.replace(
            instance.image, id=target.snapshot, disk_format=SNAPSHOT_FORMAT
        )
    rescue = (target.rescue or instance.rescue) if state is VmState.RESCUED else None
    return {"old_flavor": old_flavor, "was": was, "shelved_image": shelved_image, "rescue": rescue}


def given_up_image(instance: Instance, changes: dict[str, Any]) -> str | None:
    """Return the image, by id, that these changes let go of; it is deleted with them."""
    if instance.shelved_image is not None and "shelved_image" in changes and changes["shelved_image"] is None:
        return instance.shelved_image.id
    return None
