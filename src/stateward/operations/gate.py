"""The gate: the guarded UPDATE by the conditions of an action's row, which everything that changes an instance passes.

What it refuses is told by the same conditions; of locks, who placed them and why (R2, B6).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from stateward.domain import admit
from stateward.domain.actions import Action, key
from stateward.domain.errors import Refusal, Refused
from stateward.domain.locks import ActorKind, explained
from stateward.domain.records import Actor, Instance
from stateward.operations import stacking
from stateward.store import audit, boots, hosts, instances, locks, operations, overrides


def first_that_fits(
    connection: sa.Connection,
    rows: tuple[Action, ...],
    instance_id: str,
    actor: Actor,
    changes: Mapping[str, Any],
    *,
    operation_id: str,
    project_id: str | None,
    fence: int | None,
    judged: Instance | None,
    now: float,
) -> tuple[Action, Instance]:
    """Do the guarded UPDATE of the first row that admits, and return both.

    The first in their order counts where several could. What the others say of the state is no answer.

    Raises:
        Refused: none did; what the row says whose states fit, if there is one.
    """
    refusals: list[Refused] = []
    if len(rows) > 1:
        # PostgreSQL would let an operation end between two tries: a guest whose memory is to be saved would be shut
        # down by the row for those that are off, or refused by all of them.
        instances.hold(connection, instance_id)
    for row in rows:
        row_changes = dict(changes)
        if row.pending is not None:
            row_changes |= {"task_state": row.pending.value, "operation_id": operation_id}
        elif row.over:
            # What was in flight is overtaken, and this has no task state of its own.
            row_changes |= {"task_state": None, "operation_id": None}
        checks = admit.conditions(row, actor.kind, project_id=project_id, fence=fence, judged=judged)
        try:
            found = admitted_row(
                connection, row, instance_id, checks, row_changes, actor=actor, bump_fence=True, now=now
            )
        except Refused as refused:
            refusals.append(refused)
        else:
            return row, found
    raise next((each for each in refusals if each.refusal is not Refusal.WRONG_VM_STATE), refusals[0])


def admitted_row(
    connection: sa.Connection,
    action: Action,
    instance_id: str,
    checks: tuple[admit.Condition, ...],
    changes: Mapping[str, Any],
    *,
    actor: Actor,
    bump_fence: bool,
    now: float,
) -> Instance:
    """Do the guarded UPDATE for an actor, past the locks that the actor has broken the glass of (R6).

    Raises:
        Refused: the reason, found by evaluating the same conditions on the row; of locks, whose and why.
    """
    try:
        return guarded(connection, action, instance_id, checks, changes, bump_fence=bump_fence)
    except Refused as refused:
        if refused.refusal is not Refusal.LOCKED:
            raise
    # Held from here on: the locks that are read are those that are told, or passed.
    held = instances.hold(connection, instance_id)
    stack = [] if held is None else stacking.stack_of(connection, held)
    binding = [
        lock for lock in stack if admit.binds(action, actor.kind, lock.kind) and lock.blocks & action.guarded
    ]
    if not binding:
        # The lock went away between the two statements, which only PostgreSQL lets happen.
        return guarded(connection, action, instance_id, checks, changes, bump_fence=bump_fence)
    locked = Refused(Refusal.LOCKED, says=explained(binding), action=action.name, instance_id=instance_id)
    if actor.kind is not ActorKind.ADMIN:
        raise locked
    unlocked = tuple(check for check in checks if check.refusal is not Refusal.LOCKED)
    # Undone with what is refused: another row of the action may fit, and needs the leave that this one took.
    with audit.part(connection):
        passed = [overrides.take(connection, lock, instance_id, actor.user_id, now) for lock in binding]
        if None in passed:
            raise locked
        operations.record(
            connection,
            at=now,
            event="override_used",
            actor=actor,
            instance_id=instance_id,
            action=key(action),
            detail={"overrides": passed, "locks": [lock.id for lock in binding]},
        )
        instance = guarded(connection, action, instance_id, unlocked, changes, bump_fence=bump_fence)
        if not (action.lets_run and instance.kept_off):
            return instance
        # Else the arbiter would switch off at once what the glass was broken for.
        locks.let_on(connection, [lock.id for lock in binding])
        return stacking.restack(connection, instance)


def guarded(
    connection: sa.Connection,
    action: Action,
    instance_id: str,
    checks: tuple[admit.Condition, ...],
    changes: Mapping[str, Any],
    *,
    bump_fence: bool = False,
) -> Instance:
    """Do the guarded UPDATE and return the row, or say why it touched nothing.

    Raises:
        Refused: the reason, found by evaluating the same conditions on the row.
    """
    # PostgreSQL may show the row changed again between the UPDATE and the reading: then the UPDATE is tried anew.
    for _attempt in range(3):
        instance = instances.guarded_update(connection, instance_id, checks, changes, bump_fence=bump_fence)
        if instance is not None:
            return instance
        found = instances.get(connection, instance_id)
        if found is None:
            raise Refused(Refusal.NOT_FOUND, instance_id=instance_id)
        refused = admit.explain(checks, action, found)
        if refused is not None:
            raise refused
        if any(check.test is admit.Test.JUDGED for check in checks) and (
            hosts.frozen(connection, found.host) or boots.awaited(connection, found)
        ):
            raise Refused(Refusal.FROZEN, action=action.name, instance_id=instance_id)
    raise Refused(Refusal.OVERTAKEN, action=action.name, instance_id=instance_id)
