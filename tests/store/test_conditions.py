"""The guarded UPDATE and its explanation agree: one list of conditions, evaluated in two places (ADR 0002)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings, strategies as st
from sqlalchemy.exc import IntegrityError

from stateward.domain.actions import ACTIONS, Action, key
from stateward.domain.admit import Condition, conditions, explain
from stateward.domain.locks import ALL_CLASSES, ActorKind, OperationClass
from stateward.domain.records import Instance
from stateward.domain.states import TaskState, VmState
from stateward.store import instances
from stateward.store.tables import METADATA
from tests.rows import NOW, insert, values

LOCK_COLUMNS = ("owner_blocks", "admin_blocks", "hold_blocks")
TASKS = (None, *TaskState)


def by_key(row: Action) -> str:
    return key(row)


def columns_of(
    vm_state: VmState, task_state: TaskState | None, locks: tuple[OperationClass, ...]
) -> dict[str, Any]:
    return {
        "vm_state": vm_state.value,
        "task_state": None if task_state is None else task_state.value,
        **{name: int(blocks) for name, blocks in zip(LOCK_COLUMNS, locks, strict=True)},
    }


@pytest.fixture(scope="module")
def every_state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[sa.Connection, list[Instance]]]:
    """Give a row for every vm state, task state and stack of locks."""
    engine = sa.create_engine("sqlite://")
    METADATA.create_all(engine)
    none, every = OperationClass(0), ALL_CLASSES
    with engine.connect() as connection:
        rows = [
            insert(connection, **columns_of(vm_state, task_state, locks))
            for vm_state, task_state, locks in itertools.product(
                VmState, TASKS, itertools.product((none, every), repeat=3)
            )
        ]
        rows += [
            insert(connection, vm_state=VmState.RESIZED.value, was=was.value)
            for was in (VmState.ACTIVE, VmState.STOPPED)
        ]
        rows += [insert(connection, vm_state=state.value, adopted_as="theirs") for state in VmState]
        yield connection, rows
    engine.dispose()


@pytest.fixture(scope="module")
def touched(
    every_state: tuple[sa.Connection, list[Instance]],
) -> Callable[[tuple[Condition, ...]], list[str]]:
    """Give what tells which rows a guarded UPDATE changes; done once for all actions of the same conditions."""
    connection, rows = every_state

    @cache
    def update(checks: tuple[Condition, ...]) -> list[str]:
        with connection.begin_nested() as savepoint:
            found = [
                instance.id
                for instance in rows
                if instances.guarded_update(connection, instance.id, checks, {"updated_at": NOW}) is not None
            ]
            savepoint.rollback()
        return found

    return update


@pytest.mark.parametrize("row", ACTIONS, ids=by_key)
def test_the_update_touches_what_the_explanation_allows(
    row: Action,
    every_state: tuple[sa.Connection, list[Instance]],
    touched: Callable[[tuple[Condition, ...]], list[str]],
) -> None:
    """For every state, task, stack of locks and actor: it changes the row exactly when nothing speaks against."""
    _, rows = every_state
    for actor in ActorKind:
        checks = conditions(row, actor)
        allowed = [instance.id for instance in rows if explain(checks, row, instance) is None]
        assert touched(checks) == allowed, actor


@pytest.mark.parametrize("row", [row for row in ACTIONS if row.guarded], ids=by_key)
def test_every_class_of_a_lock_counts(row: Action, connection: sa.Connection) -> None:
    """A lock of any of the row's classes blocks it, for whom its kind binds; a lock of all others does not."""
    instance = insert(
        connection,
        vm_state=min(row.when).value,
        was=row.was and row.was.value,
        adopted_as="theirs" if row.needs_adopted else None,
    )
    for column, blocks, actor in itertools.product(LOCK_COLUMNS, range(int(ALL_CLASSES) + 1), ActorKind):
        everyone = {"owner_blocks": 0, "admin_blocks": 0, "hold_blocks": 0}
        locked = instances.guarded_update(connection, instance.id, (), everyone | {column: blocks})
        assert locked is not None
        touched = instances.guarded_update(
            connection, instance.id, conditions(row, actor), {"updated_at": NOW}
        )
        binds = row.bound or actor is not ActorKind.ADMIN or column == "hold_blocks"
        assert (touched is None) == (binds and bool(blocks & int(row.guarded)))


BLOCKS = st.integers(0, int(ALL_CLASSES)).map(OperationClass)


@pytest.mark.slow
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    row=st.sampled_from(ACTIONS),
    actor=st.sampled_from(ActorKind),
    vm_state=st.sampled_from(VmState),
    task_state=st.sampled_from(TASKS),
    locks=st.tuples(BLOCKS, BLOCKS, BLOCKS),
    project_id=st.sampled_from([None, "p", "other"]),
    fence=st.sampled_from([None, 1, 2]),
    bump=st.booleans(),
)
def test_on_both_databases_with_any_locks(
    *,
    connection: sa.Connection,
    row: Action,
    actor: ActorKind,
    vm_state: VmState,
    task_state: TaskState | None,
    locks: tuple[OperationClass, ...],
    project_id: str | None,
    fence: int | None,
    bump: bool,
) -> None:
    """Locks of single classes, other projects and other fences too; and what is changed is what was asked."""
    instance = insert(connection, **columns_of(vm_state, task_state, locks))
    checks = conditions(row, actor, project_id=project_id, fence=fence)
    changes = {"updated_at": NOW + 1, "metadata": {"a": "b"}}
    after = instances.guarded_update(connection, instance.id, checks, changes, bump_fence=bump)
    if explain(checks, row, instance) is None:
        assert after is not None
        assert after == instances.get(connection, instance.id)
        assert (after.updated_at, after.metadata, after.fence) == (NOW + 1, {"a": "b"}, 2 if bump else 1)
    else:
        assert after is None
        assert instances.get(connection, instance.id) == instance


def test_an_unknown_instance_is_not_touched(connection: sa.Connection) -> None:
    """No row, no change, no exception; and its neighbours stay as they are."""
    neighbour = insert(connection)
    assert instances.guarded_update(connection, "nobody", (), {"name": "x"}) is None
    assert instances.get(connection, neighbour.id) == neighbour
    assert instances.get(connection, "nobody") is None


def test_a_task_state_needs_an_operation(connection: sa.Connection) -> None:
    """The database itself refuses a row that would be stuck in a task state (B3)."""
    row = values() | {"task_state": "pausing", "operation_id": None}
    with pytest.raises(IntegrityError), connection.begin_nested():
        instances.insert(connection, row)
