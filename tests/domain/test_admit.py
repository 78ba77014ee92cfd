"""Admission's conditions: which they are, and in what order they are explained."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from stateward.domain import admit
from stateward.domain.actions import ACTIONS, BY_KEY, Action, key
from stateward.domain.admit import Condition, conditions, explain, holds
from stateward.domain.errors import Refusal
from stateward.domain.locks import ALL_CLASSES, BINDS, ActorKind, LockKind, OperationClass
from stateward.domain.states import TaskState, VmState
from tests.rows import instance

COLUMN = {LockKind.OWNER: "owner_blocks", LockKind.ADMIN: "admin_blocks", LockKind.HOLD: "hold_blocks"}


def by_key(row: Action) -> str:
    return key(row)


def refusal_of(row: Action, actor: ActorKind, **facts: object) -> Refusal | None:
    refused = explain(conditions(row, actor), row, instance(**facts))
    return None if refused is None else refused.refusal


def of(row: Action) -> dict[str, Any]:
    """Return what a row demands of an instance besides its states."""
    return {"was": row.was, "adopted_as": "theirs" if row.needs_adopted else None}


@pytest.mark.parametrize("row", ACTIONS, ids=by_key)
def test_what_is_not_ours_is_left_as_it_is(row: Action) -> None:
    """Nothing that needs the definition or the disk is admitted of an adopted guest; only such a one is given back."""
    state = next(iter(row.when), None)
    if state is None:
        return
    adopted = refusal_of(row, ActorKind.ADMIN, vm_state=state, was=row.was, adopted_as="theirs")
    made_here = refusal_of(row, ActorKind.ADMIN, vm_state=state, was=row.was)
    assert adopted is (Refusal.ADOPTED if row.needs_own else None)
    assert made_here is (Refusal.NOT_ADOPTED if row.needs_adopted else None)


def test_what_an_adopted_guest_can_have_done() -> None:
    """Its power, its memory, its console, its locks and its end; not what makes, copies or moves a disk."""
    refused = {row.name for row in ACTIONS if row.needs_own}
    assert refused == {
        "arrive",
        "boot_rescue",
        "createBackup",
        "createImage",
        "evacuate",
        "migrate",
        "rebuild",
        "rescue",
        "resize",
        "restore_rescue",
        "revertResize",
        "shelve",
        "unshelve",
    }


@pytest.mark.parametrize("row", ACTIONS, ids=by_key)
@pytest.mark.parametrize("actor", ActorKind)
def test_a_lock_blocks_the_classes_of_the_row(row: Action, actor: ActorKind) -> None:
    """Each class by each kind of lock, for whom the kind binds, and for nobody else (R1, R2)."""
    state = next(iter(row.when), None)
    if state is None:
        return
    for kind, blocked in itertools.product(LockKind, OperationClass):
        found = refusal_of(row, actor, vm_state=state, **of(row), **{COLUMN[kind]: blocked})
        binds = (row.bound or actor in BINDS[kind]) and bool(row.guarded & blocked)
        assert found == (Refusal.LOCKED if binds else None)


@pytest.mark.parametrize("row", ACTIONS, ids=by_key)
def test_states_and_tasks_of_the_row(row: Action) -> None:
    """Admitted in its vm states, over no task or the tasks it may overtake, and nowhere else; deleted is gone."""
    for vm_state, task_state in itertools.product(VmState, (None, *TaskState)):
        found = refusal_of(row, ActorKind.MEMBER, vm_state=vm_state, task_state=task_state, **of(row))
        if vm_state not in row.when:
            gone = vm_state is VmState.DELETED
            assert found is (Refusal.NOT_FOUND if gone else Refusal.WRONG_VM_STATE)
        elif task_state is not None and task_state not in row.over:
            assert found is Refusal.WRONG_TASK_STATE
        else:
            assert found is None


def test_the_order_of_reasons() -> None:
    """Whose it is comes first, or a refusal would tell of others' instances; then the lock, as in Nova."""
    start = BY_KEY["start"]
    checks = conditions(start, ActorKind.MEMBER, project_id="other", fence=7)
    facts = {
        "project_id": "p",
        "fence": 8,
        "owner_blocks": ALL_CLASSES,
        "vm_state": VmState.ACTIVE,
        "task_state": TaskState.PAUSING,
    }
    mended = (
        ({"project_id": "other"}, Refusal.NOT_FOUND),
        ({"fence": 7}, Refusal.OVERTAKEN),
        ({"owner_blocks": OperationClass(0)}, Refusal.LOCKED),
        ({"vm_state": VmState.STOPPED}, Refusal.WRONG_VM_STATE),
        ({"task_state": None}, Refusal.WRONG_TASK_STATE),
    )
    for mend, refusal in mended:
        refused = explain(checks, start, instance(id="i-1", **facts))
        assert refused is not None
        assert refused.refusal is refusal
        facts |= mend
    assert explain(checks, start, instance(**facts)) is None


@pytest.mark.parametrize(
    ("facts", "sentence"),
    [
        ({"vm_state": VmState.ACTIVE}, "Cannot 'start' instance i-1 while it is in vm_state active"),
        (
            {"task_state": TaskState.POWERING_OFF},
            "Cannot 'start' instance i-1 while it is in task_state powering-off",
        ),
        ({"owner_blocks": ALL_CLASSES}, "Instance i-1 is locked"),
    ],
)
def test_the_sentences(facts: dict[str, object], sentence: str) -> None:
    """Nova's own, because clients look for them."""
    start = BY_KEY["start"]
    row = instance(**({"id": "i-1", "vm_state": VmState.STOPPED} | facts))
    assert str(explain(conditions(start, ActorKind.MEMBER), start, row)) == sentence


def test_every_refusal_has_a_sentence() -> None:
    """It can be said with the facts that admission has."""
    facts = {
        "instance_id": "i",
        "action": "start",
        "vm_state": "active",
        "task_state": "pausing",
        "host": "h",
    }
    for refusal in Refusal:
        assert "i" in refusal.value.format_map(facts)


@pytest.mark.parametrize(
    "condition",
    [
        Condition(column="vm_state", test=admit.Test.IN, value=1, refusal=Refusal.LOCKED),
        Condition(column="vm_state", test=admit.Test.NULL_OR_IN, value="x", refusal=Refusal.LOCKED),
        Condition(column="fence", test=admit.Test.NO_BITS, value="x", refusal=Refusal.LOCKED),
        Condition(column="fence", test=admit.Test.EQUALS, value=frozenset(), refusal=Refusal.LOCKED),
    ],
)
def test_a_condition_of_the_wrong_kind_is_a_fault(condition: Condition) -> None:
    """It raises, where it would otherwise admit or refuse by accident."""
    with pytest.raises(TypeError, match="wrong kind of value"):
        holds(condition, None)


def test_null_has_no_bits() -> None:
    """As the database's columns, which are never null, but an old row's may have been."""
    condition = Condition(column="owner_blocks", test=admit.Test.NO_BITS, value=1, refusal=Refusal.LOCKED)
    assert holds(condition, None)
    assert holds(condition, 2)
    assert not holds(condition, 3)
