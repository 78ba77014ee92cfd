"""Ending operations: what their end changes besides the record, in the same transaction."""

from __future__ import annotations

import msgspec
import sqlalchemy as sa

from stateward.domain.actions import BY_KEY, Action
from stateward.domain.admit import Condition, Test
from stateward.domain.errors import Refusal
from stateward.domain.placement import need_of
from stateward.domain.records import Instance, Operation, Outcome, Result, Target
from stateward.domain.settle import given_up_image, settle
from stateward.domain.states import ON_NO_HOST, VmState
from stateward.store import claims, images, instances, operations
from stateward.store.claims import Purpose


def target_of(operation: Operation) -> Target:
    """Return what an operation aims at."""
    return msgspec.convert(operation.params.get("target", {}), Target)


class Ended(msgspec.Struct, frozen=True):
    """Operations that were superseded, and the images deleted with them, whose data go once this is durable; by id."""

    operations: list[str]
    images: list[str]


def supersede(connection: sa.Connection, instance_id: str, now: float, message: str, *, by: Action) -> Ended:
    """End every unfinished operation of an instance as superseded, by a row that overtakes them.

    What they would have filled is given up: their agent may not act any more.
    """
    ended = operations.supersede(connection, instance_id, now, message)
    gone: list[str] = []
    for operation_id in ended:
        operation = operations.get(connection, operation_id)
        if operation is None:
            continue
        gone += _give_up_image(connection, operation, destroyed=by.becomes is VmState.DELETED)
        if _claims_a_move(BY_KEY[operation.action]):
            claims.release(connection, instance_id, Purpose.MOVE)
    return Ended(ended, gone)


def apply(
    connection: sa.Connection, operation: Operation, instance: Instance, result: Result, now: float
) -> tuple[Instance | None, list[str]]:
    """Write what a final result makes of the record, if the operation is still the newest (B3).

    Returns:
        The row as it is then, None when something newer was admitted; and the images deleted with it, by id,
        whose data are to be removed once this is durable.
    """
    action, target = BY_KEY[operation.action], target_of(operation)
    changes = settle(action, instance, result, now, target)
    newest = Condition(column="fence", test=Test.EQUALS, value=operation.fence, refusal=Refusal.OVERTAKEN)
    changed = instances.guarded_update(connection, instance.id, (newest,), changes)
    gone: list[str] = []
    if result.outcome is not Outcome.SUCCEEDED:
        gone += _give_up_image(connection, operation, destroyed=False)
    if changed is None:
        return None, gone
    if _claims_a_move(action) and result.outcome is not Outcome.SUCCEEDED:
        claims.release(connection, instance.id, Purpose.MOVE)
    elif action.leaves:
        claims.release(connection, instance.id, Purpose.HOME)
    else:
        give_room_back(connection, instance, changed)
    image_id = given_up_image(instance, changes)
    if image_id is not None:
        images.delete(connection, image_id)
        gone.append(image_id)
    # A hold keeps every copy that there is of its instance (R6).
    rotates = result.outcome is Outcome.SUCCEEDED and not changed.held
    if rotates and target.rotation is not None and target.backup_type is not None:
        found = images.backups(connection, instance.id, target.backup_type)[target.rotation :]
        gone += [old for old in found if images.delete_backup(connection, old)]
    return changed, gone


def _claims_a_move(action: Action) -> bool:
    """Whether room is claimed for a new flavor or host when a row is admitted, beside what the instance holds."""
    return action.leaves or (action.becomes is VmState.RESIZED and not action.places)


def give_room_back(connection: sa.Connection, before: Instance, instance: Instance) -> None:
    """Give back the room that an instance does not take up any more.

    Resized, it holds room for both flavors until that is confirmed or reverted.
    """
    if instance.vm_state in ON_NO_HOST:
        claims.release(connection, instance.id)
    elif before.was is not None and instance.was is None:
        need = need_of(instance.flavor)
        move = claims.of_instance(connection, instance.id).get(Purpose.MOVE)
        if move is None:
            claims.shrink(connection, instance.id, need)
        elif move.room == need:
            claims.settle_move(connection, instance.id)
        else:
            claims.release(connection, instance.id, Purpose.MOVE)


def _give_up_image(connection: sa.Connection, operation: Operation, *, destroyed: bool) -> list[str]:
    """Delete the image that an operation did not come to fill; return what has data to be removed, by id.

    One that was filled before the disk was to be removed stays, unless the instance is to be destroyed: nobody knows
    how much of the disk is left then, and the image is all of it.
    """
    image_id, action = target_of(operation).snapshot, BY_KEY[operation.action]
    if image_id is None:
        return []
    if action.becomes is VmState.SHELVED or (action.leaves and destroyed):
        # Also when it has its data: nobody asked for an image, and no instance lives on this one.
        images.delete(connection, image_id)
        return [image_id]
    images.delete_without_data(connection, image_id)
    return []
