"""What would happen if: the same conditions as an admission's, evaluated on the row and changing nothing (B6).

And several instances at once: looked at beforehand, then all of them or none, or as many as can be.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence

import msgspec
import sqlalchemy as sa

from stateward.domain import admit
from stateward.domain.actions import ACTIONS, BY_KEY, Action, Role, key
from stateward.domain.errors import Invalid, Refusal, Refused
from stateward.domain.locks import Lock, explained
from stateward.domain.records import Actor
from stateward.domain.states import VmState
from stateward.operations import stacking
from stateward.operations.admission import Admission, Admitted
from stateward.store import audit, instances, overrides

#: Instances that one request may be about.
MOST = 1000


class Foreseen(enum.StrEnum):
    """What would come of asking."""

    ALLOWED = "allowed"
    BLOCKED = "blocked"
    #: It is so already.
    NO_CHANGE = "no change"


class Forecast(msgspec.Struct, frozen=True, kw_only=True):
    """What would come of an action on an instance, as of now."""

    instance_id: str
    foreseen: Foreseen
    #: The row that would be admitted, by its key; None: none would.
    row: str | None = None
    #: The vm state it would come to; None: it stays.
    becomes: VmState | None = None
    #: Why it would be refused; empty when it would not.
    why: str = ""
    #: The locks that block it, oldest first.
    locks: tuple[Lock, ...] = ()
    #: A lock binds who asks and would be passed by leave (R6).
    by_override: bool = False


def rows_of(name: str, *, reclaims: bool) -> tuple[Action, ...]:
    """Return the rows that people can mean by a name: the action's, its word in requests, or a row's key.

    Args:
        name: as people say it.
        reclaims: deleted instances are kept for a while; else none is deleted in the way that waits for that.

    Raises:
        Invalid: there is no such action for people.
    """
    found = tuple(
        row
        for row in ACTIONS
        if name in {row.name, row.wire, key(row)}
        and row.policy.role is not Role.SYSTEM
        and row.when
        and (reclaims or row.becomes is not VmState.SOFT_DELETED)
    )
    if not found:
        known = sorted({row.name for row in ACTIONS if row.policy.role is not Role.SYSTEM and row.when})
        raise Invalid(f"There is no action {name!r}; there are: {', '.join(known)}.")
    exact = tuple(row for row in found if name in {row.wire, row.name})
    plain = tuple(row for row in exact or found if row.variant is None or row.variant[1] in {False, "SOFT"})
    return plain or found


def foresee(
    connection: sa.Connection,
    rows: Sequence[Action],
    instance_id: str,
    actor: Actor,
    *,
    project_id: str | None,
    now: float,
) -> Forecast:
    """Say what would come of an action.

    Args:
        connection: where to look.
        rows: the action's.
        instance_id: which instance.
        actor: who would ask.
        project_id: the caller sees only this project; None for all.
        now: seconds since the epoch.

    Raises:
        Refused: there is no such instance for the caller.
    """
    instance = instances.get(connection, instance_id)
    if instance is None or project_id not in {None, instance.project_id}:
        raise Refused(Refusal.NOT_FOUND, instance_id=instance_id)
    stack = stacking.stack_of(connection, instance)
    refusals: list[tuple[Action, Refused]] = []
    for row in rows:
        checks = admit.conditions(row, actor.kind, project_id=project_id)
        refused = admit.explain(checks, row, instance)
        by_override = False
        if refused is not None and refused.refusal is Refusal.LOCKED:
            by_override = _passes(connection, _binding(row, stack, actor), instance_id, actor, now)
            if by_override:
                free = tuple(check for check in checks if check.refusal is not Refusal.LOCKED)
                refused = admit.explain(free, row, instance)
        if refused is None:
            return Forecast(
                instance_id=instance_id,
                foreseen=Foreseen.ALLOWED,
                row=key(row),
                becomes=row.becomes,
                by_override=by_override,
            )
        refusals.append((row, refused))
    row, refused = next(
        (each for each in refusals if each[1].refusal is not Refusal.WRONG_VM_STATE), refusals[0]
    )
    wrong_state = refused.refusal is Refusal.WRONG_VM_STATE
    already = (
        wrong_state
        and instance.task_state is None
        and any(each.becomes is instance.vm_state for each in rows)
    )
    binding = tuple(_binding(row, stack, actor)) if refused.refusal is Refusal.LOCKED else ()
    return Forecast(
        instance_id=instance_id,
        foreseen=Foreseen.NO_CHANGE if already else Foreseen.BLOCKED,
        why=f"{refused}. {explained(binding)}" if binding else str(refused),
        locks=binding,
    )


def refusal_of(instance_id: str, refused: Refused) -> Forecast:
    """Say that an instance refuses, in the words of the refusal."""
    return Forecast(instance_id=instance_id, foreseen=Foreseen.BLOCKED, why=str(refused))


def _binding(row: Action, stack: Sequence[Lock], actor: Actor) -> list[Lock]:
    return [lock for lock in stack if admit.binds(row, actor.kind, lock.kind) and lock.blocks & row.guarded]


def _passes(
    connection: sa.Connection, binding: Sequence[Lock], instance_id: str, actor: Actor, now: float
) -> bool:
    """Whether the actor has leave to pass all the locks that bind."""
    good = {
        each.lock_id
        for each in overrides.of_instance(connection, instance_id)
        if each.user_id == actor.user_id and each.good(now)
    }
    return bool(binding) and all(lock.id in good for lock in binding)


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What came of an action for one of several instances."""

    forecast: Forecast
    #: None: nothing was admitted.
    admitted: Admitted | None = None


async def admit_several(
    admission: Admission,
    rows: tuple[Action, ...],
    instance_ids: Sequence[str],
    actor: Actor,
    *,
    project_id: str | None,
    all_or_none: bool,
) -> dict[str, Outcome]:
    """Admit an action on several instances in one transaction, and return what came of it, by their ids.

    An instance that is so already is left alone.

    Args:
        admission: its database and clock are used.
        rows: the action's.
        instance_ids: which instances.
        actor: who asks.
        project_id: the caller sees only this project; None for all.
        all_or_none: one that refuses is all that refuse; otherwise the others go on.

    Raises:
        Refused: one of all refuses; nothing is changed.
    """

    def one(connection: sa.Connection, instance_id: str) -> Outcome:
        now = admission.clock.now()
        try:
            forecast = foresee(connection, rows, instance_id, actor, project_id=project_id, now=now)
            refuses = forecast.foreseen is Foreseen.BLOCKED and not all_or_none
            if refuses or forecast.foreseen is Foreseen.NO_CHANGE:
                return Outcome(forecast=forecast)
            # What this one's refusal leaves half done is undone; the others stay.
            with audit.part(connection):
                admitted = admission.admit_in(connection, rows, instance_id, actor, project_id=project_id)
        except Refused as refused:
            if all_or_none:
                raise
            return Outcome(forecast=refusal_of(instance_id, refused))
        row = admitted.operation.action
        allowed = Forecast(
            instance_id=instance_id,
            foreseen=Foreseen.ALLOWED,
            row=row,
            becomes=BY_KEY[row].becomes,
            by_override=forecast.by_override,
        )
        return Outcome(forecast=allowed, admitted=admitted)

    def work(connection: sa.Connection) -> dict[str, Outcome]:
        # In one order for everybody, or two such transactions could wait for each other.
        return {instance_id: one(connection, instance_id) for instance_id in sorted(instance_ids)}

    outcomes = await admission.database.write(work)
    admitted = [each.admitted for each in outcomes.values() if each.admitted is not None]
    if admitted:
        admission.wake()
        admission.forget_images([image for each in admitted for image in each.images])
    return outcomes
