"""Admission: the conditions under which an action's write happens, from its row.

``conditions`` is the one source. The store turns it into the WHERE clause of the guarded UPDATE; ``explain``
evaluates the same list on a row that was read afterwards, to say why the UPDATE touched nothing. There is no
other check, so nothing can come between the check and the act (ADR 0002).
"""

from __future__ import annotations

import enum
from typing import Final

import msgspec

from stateward.domain.actions import Action
from stateward.domain.errors import Refusal, Refused
from stateward.domain.locks import BINDS, ActorKind, LockKind
from stateward.domain.records import Instance
from stateward.domain.states import VmState


class Test(enum.StrEnum):
    """How a condition compares a column with its value."""

    IN = "in"
    NULL_OR_IN = "null-or-in"
    NO_BITS = "no-bits"
    EQUALS = "equals"
    DIFFERS = "differs"
    NOT_NULL = "not-null"
    #: The host that the column names has its instances judged; a host that nobody knows has.
    JUDGED = "judged"


class Condition(msgspec.Struct, frozen=True, kw_only=True):
    """One conjunct of the WHERE clause, and the refusal it stands for."""

    column: str
    test: Test
    value: frozenset[str] | int | str
    refusal: Refusal


_BLOCKS_COLUMN: Final = {
    LockKind.OWNER: "owner_blocks",
    LockKind.ADMIN: "admin_blocks",
    LockKind.HOLD: "hold_blocks",
}

#: What locks make of a row besides what they say.
LOCKS: Final = (*_BLOCKS_COLUMN.values(), "kept_off")
#: What a verdict is found by and may change beside it. The fence alone does not say: it is raised by what is admitted,
#: and not where a lock is placed, released or expires, where a guest is seen otherwise or where a record follows its
#: guest. By a hold that was just released a guest would be recorded as off that nobody wants off any more.
_JUDGED_BY: Final = ("fence", "vm_state", "observed_seq", *LOCKS)


def binds(action: Action, actor: ActorKind, kind: LockKind) -> bool:
    """Say whether a kind of lock binds an actor who asks for an action."""
    return action.bound or actor in BINDS[kind]


def conditions(
    action: Action,
    actor: ActorKind,
    *,
    project_id: str | None = None,
    fence: int | None = None,
    judged: Instance | None = None,
) -> tuple[Condition, ...]:
    """Return what must hold of the instance's row for the action to be admitted, in the order it is explained.

    Args:
        action: the row of the action table.
        actor: who asks.
        project_id: admit only in this project; another project's instance does not exist for the caller.
        fence: admit only if nothing was admitted since the row was read with this fence.
        judged: admit only if the row is still what a verdict was found by. The arbiter's writes carry it: their verdict
            is about the state they read and no other.
    """
    found: list[Condition] = []
    if project_id is not None:
        found.append(
            Condition(column="project_id", test=Test.EQUALS, value=project_id, refusal=Refusal.NOT_FOUND)
        )
    if fence is not None:
        found.append(Condition(column="fence", test=Test.EQUALS, value=fence, refusal=Refusal.OVERTAKEN))
    if judged is not None:
        found.extend(
            Condition(
                column=column, test=Test.EQUALS, value=getattr(judged, column), refusal=Refusal.OVERTAKEN
            )
            for column in _JUDGED_BY
        )
    if action.guarded:
        found.extend(
            Condition(column=column, test=Test.NO_BITS, value=int(action.guarded), refusal=Refusal.LOCKED)
            for kind, column in _BLOCKS_COLUMN.items()
            if binds(action, actor, kind)
        )
    if action.needs_own:
        found.append(
            Condition(column="adopted_as", test=Test.NULL_OR_IN, value=frozenset(), refusal=Refusal.ADOPTED)
        )
    if action.needs_adopted:
        found.append(
            Condition(column="adopted_as", test=Test.NOT_NULL, value="", refusal=Refusal.NOT_ADOPTED)
        )
    found.append(
        Condition(
            column="vm_state", test=Test.IN, value=frozenset(action.when), refusal=Refusal.WRONG_VM_STATE
        )
    )
    if action.was is not None:
        found.append(
            Condition(column="was", test=Test.EQUALS, value=action.was.value, refusal=Refusal.WRONG_VM_STATE)
        )
    found.append(
        Condition(
            column="task_state",
            test=Test.NULL_OR_IN,
            value=frozenset(action.over),
            refusal=Refusal.WRONG_TASK_STATE,
        )
    )
    if action.by_verdict and actor is ActorKind.SYSTEM:
        # Not for who ends what a request began, as where a move failed.
        found.append(Condition(column="host", test=Test.JUDGED, value=0, refusal=Refusal.FROZEN))
    return tuple(found)


def holds(condition: Condition, actual: str | int | None) -> bool:
    """Evaluate one condition on a column's value, exactly as the database does.

    ``JUDGED`` is about another row, which whoever explains a refusal must look at; of the instance's own it holds.
    """
    match condition.test, condition.value:
        case Test.JUDGED, _:
            return True
        case Test.IN, frozenset() as allowed:
            return actual in allowed
        case Test.NULL_OR_IN, frozenset() as allowed:
            return actual is None or actual in allowed
        case Test.NO_BITS, int() as mask:
            return not int(actual or 0) & mask
        case Test.EQUALS, int() | str() as value:
            return actual == value
        case Test.DIFFERS, int() | str() as value:
            return actual != value
        case Test.NOT_NULL, _:
            return actual is not None
        case _:
            msg = f"condition {condition} compares {condition.test} with the wrong kind of value"
            raise TypeError(msg)


def explain(checks: tuple[Condition, ...], action: Action, instance: Instance) -> Refused | None:
    """Say why the guarded UPDATE of these conditions did not touch this row; None when it now would.

    A deleted instance is not there, for every action that is not about deleted ones: locked or not, as in Nova.
    """
    if instance.vm_state is VmState.DELETED and VmState.DELETED not in action.when:
        return Refused(Refusal.NOT_FOUND, instance_id=instance.id)
    for condition in checks:
        if not holds(condition, getattr(instance, condition.column)):
            return Refused(
                condition.refusal,
                action=action.name,
                instance_id=instance.id,
                vm_state=instance.vm_state.value,
                task_state=instance.task_state.value if instance.task_state else None,
            )
    return None
