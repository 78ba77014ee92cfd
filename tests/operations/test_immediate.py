"""What is done when it is admitted: locks, reset-state, names, metadata and tags, on both databases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from stateward.domain.actions import BY_KEY
from stateward.domain.errors import Forbidden, Refusal, Refused
from stateward.domain.locks import ALL_CLASSES, ActorKind, LockKind, OperationClass
from stateward.domain.records import Actor, Instance, OperationState
from stateward.domain.states import TaskState, VmState
from stateward.operations.immediate import Done
from stateward.store import locks
from tests.operations.desk import Desk
from tests.rows import NOW, actor

OWNER = actor()
ADMIN = actor(ActorKind.ADMIN, project="the provider's", request="req-2")
OWN_ADMIN = actor(ActorKind.ADMIN, project="p", request="req-3")


async def lock(desk: Desk, instance_id: str, who: Actor = OWNER, reason: str | None = None) -> Done:
    return await desk.immediate.lock(instance_id, who, reason=reason, project_id=None)


async def unlock(desk: Desk, instance_id: str, who: Actor = OWNER) -> Done:
    return await desk.immediate.unlock(instance_id, who, project_id=None)


async def kinds(desk: Desk, instance_id: str) -> set[LockKind]:
    found = await desk.database.read(lambda connection: locks.of_instance(connection, instance_id, "p", ()))
    return {each.kind for each in found}


async def union(desk: Desk, instance_id: str) -> tuple[OperationClass, OperationClass, OperationClass]:
    row = await desk.row(instance_id)
    return row.owner_blocks, row.admin_blocks, row.hold_blocks


NOTHING = OperationClass(0)


async def test_what_a_lock_leaves_behind(desk: Desk) -> None:
    """The lock, its union on the row, a finished operation and the audit record; the fence stays."""
    instance_id = await desk.add()
    desk.clock.at = NOW + 1
    done = await lock(desk, instance_id, reason="Mine.")
    row = await desk.row(instance_id)
    assert done.admitted.instance == row
    assert (row.locked_by, row.locked_reason) == ("owner", "Mine.")
    assert await union(desk, instance_id) == (ALL_CLASSES, NOTHING, NOTHING)
    assert (row.fence, row.task_state, row.updated_at) == (1, None, NOW + 1)
    (operation,) = await desk.operations(instance_id)
    assert operation == done.admitted.operation
    assert (operation.action, operation.state) == ("lock", OperationState.SUCCEEDED)
    assert operation.finished_at == NOW + 1
    assert await desk.audit() == [("admitted", "lock", {"kind": "owner", "reason": "Mine."})]
    assert await desk.outbox() == []


async def test_whose_lock_it_is(desk: Desk) -> None:
    """The owner's, the provider's, and the provider's staff's in a project of their own."""
    for who, kind in ((OWNER, LockKind.OWNER), (ADMIN, LockKind.ADMIN), (OWN_ADMIN, LockKind.OWNER)):
        instance_id = await desk.add()
        await lock(desk, instance_id, who)
        assert await kinds(desk, instance_id) == {kind}


async def test_the_provider_s_lock_over_the_owner_s(desk: Desk) -> None:
    """The provider's first unlock takes its own and leaves the owner's, the second takes that (R5)."""
    instance_id = await desk.add()
    await lock(desk, instance_id, OWNER, "Mine.")
    await lock(desk, instance_id, ADMIN, "Ours.")
    row = await desk.row(instance_id)
    assert (row.locked_by, row.locked_reason) == ("admin", "Ours.")
    assert await union(desk, instance_id) == (ALL_CLASSES, ALL_CLASSES, NOTHING)
    with pytest.raises(Forbidden, match="unlock:unlock_override"):
        await unlock(desk, instance_id, OWNER)
    assert await kinds(desk, instance_id) == {LockKind.OWNER, LockKind.ADMIN}
    await unlock(desk, instance_id, ADMIN)
    row = await desk.row(instance_id)
    assert (row.locked_by, row.locked_reason) == ("owner", "Mine.")
    assert await union(desk, instance_id) == (ALL_CLASSES, NOTHING, NOTHING)
    await unlock(desk, instance_id, ADMIN)
    row = await desk.row(instance_id)
    assert (row.locked_by, row.locked_reason) == (None, None)
    assert await union(desk, instance_id) == (NOTHING, NOTHING, NOTHING)


async def test_a_forbidden_unlock_leaves_no_trace(desk: Desk) -> None:
    """No operation and no later time of change; only that it was refused is recorded."""
    instance_id = await desk.add()
    await lock(desk, instance_id, ADMIN)
    before, trail = await desk.row(instance_id), await desk.audit()
    desk.clock.at = NOW + 5
    with pytest.raises(Forbidden):
        await unlock(desk, instance_id, OWNER)
    assert await desk.row(instance_id) == before
    says = "Policy doesn't allow os_compute_api:os-lock-server:unlock:unlock_override to be performed."
    refused = ("refused", "unlock", {"why": says})
    assert await desk.audit() == [*trail, refused]
    assert len(await desk.operations(instance_id)) == 1


async def test_locking_again_says_what_holds_now(desk: Desk) -> None:
    """Without a reason the old one is gone; the other's lock is not touched."""
    instance_id = await desk.add()
    await lock(desk, instance_id, OWNER, "Old.")
    await lock(desk, instance_id, OWNER)
    assert (await desk.row(instance_id)).locked_reason is None
    assert await kinds(desk, instance_id) == {LockKind.OWNER}


async def test_unlocking_what_is_not_locked(desk: Desk) -> None:
    """Succeeds, as in Nova."""
    instance_id = await desk.add()
    await unlock(desk, instance_id)
    assert (await desk.row(instance_id)).locked_by is None


@pytest.mark.parametrize("vm_state", sorted(VmState))
async def test_a_lock_can_be_placed_in_any_living_state(desk: Desk, vm_state: VmState) -> None:
    """Whatever is in flight (R5); what is deleted cannot be locked."""
    instance_id = await desk.add(vm_state=vm_state.value, task_state="powering-off")
    if vm_state is VmState.DELETED:
        with pytest.raises(Refused) as refused:
            await lock(desk, instance_id, ADMIN)
        assert refused.value.refusal is Refusal.NOT_FOUND
    else:
        await lock(desk, instance_id, ADMIN)
        assert await kinds(desk, instance_id) == {LockKind.ADMIN}


async def test_a_lock_names_what_was_admitted_before_it(desk: Desk) -> None:
    """Which goes on: stop, then lock, gives a stopped and locked instance (B1)."""
    instance_id = await desk.add()
    stop = await desk.admit("stop", instance_id)
    done = await lock(desk, instance_id)
    assert done.in_flight == stop.operation
    row = await desk.row(instance_id)
    assert (row.task_state, row.operation_id, row.fence) == (
        TaskState.POWERING_OFF,
        stop.operation.id,
        stop.operation.fence,
    )
    assert (await desk.operation(stop.operation.id)).state is OperationState.ACCEPTED


@pytest.mark.parametrize("action", ["stop", "stop_force", "delete", "forceDelete", "pause", "reboot_hard"])
async def test_whom_a_lock_binds(desk: Desk, action: str) -> None:
    """Members, whoever placed it; an admin passes, as in Nova."""
    for who in (OWNER, ADMIN):
        instance_id = await desk.add()
        await lock(desk, instance_id, who)
        with pytest.raises(Refused, match=f"Instance {instance_id} is locked"):
            await desk.admit(action, instance_id)
        await desk.admit(action, instance_id, ActorKind.ADMIN)


async def test_another_project_s_instance_cannot_be_locked(desk: Desk) -> None:
    """It does not exist for who asks."""
    instance_id = await desk.add()
    with pytest.raises(Refused) as refused:
        await desk.immediate.lock(instance_id, OWNER, reason=None, project_id="other")
    assert refused.value.refusal is Refusal.NOT_FOUND


async def test_resetting_the_state(desk: Desk) -> None:
    """Ends what is in flight, raises the fence, and has the arbiter compare."""
    instance_id = await desk.add()
    stop = await desk.admit("stop", instance_id)
    await desk.immediate.reset_state(instance_id, ADMIN, to=VmState.ERROR)
    row = await desk.row(instance_id)
    assert (row.vm_state, row.task_state, row.operation_id) == (VmState.ERROR, None, None)
    assert row.fence == stop.operation.fence + 1
    ended = await desk.operation(stop.operation.id)
    assert (ended.state, ended.message) == (
        OperationState.SUPERSEDED,
        "The state was reset (request req-2).",
    )
    assert desk.compared == [instance_id]
    assert (await desk.audit())[-1] == ("admitted", "reset_state", {"from": "active", "to": "error"})


async def change(desk: Desk, action: str, instance_id: str, **values: Any) -> Done:
    def values_of(_row: Instance) -> Mapping[str, Any]:
        return values

    return await desk.immediate.change(BY_KEY[action], instance_id, OWNER, values_of, project_id=None)


async def test_a_change_by_the_row_s_own_rules(desk: Desk) -> None:
    """A lock keeps metadata as it is, and not a name or a tag, as in Nova."""
    instance_id = await desk.add()
    await lock(desk, instance_id)
    with pytest.raises(Refused, match="is locked"):
        await change(desk, "update_metadata", instance_id, metadata={"a": "b"})
    await change(desk, "update", instance_id, name="new")
    await change(desk, "update_tags", instance_id, tags=("t",))
    row = await desk.row(instance_id)
    assert (row.name, row.tags, row.metadata) == ("new", ("t",), {})


async def test_changes_see_the_row_as_it_is(desk: Desk) -> None:
    """Two that add an item each, leave both."""
    instance_id = await desk.add(metadata={"a": "1"})
    for name in "bc":

        def added(row: Instance, name: str = name) -> Mapping[str, Any]:
            return {"metadata": row.metadata | {name: "1"}}

        await desk.immediate.change(BY_KEY["update_metadata"], instance_id, OWNER, added, project_id="p")
    assert (await desk.row(instance_id)).metadata == {"a": "1", "b": "1", "c": "1"}


async def test_what_changes_a_verdict_has_it_judged_again(desk: Desk) -> None:
    """A lock placed and taken away, and another policy; nothing else is seen, so nobody else would."""
    instance_id = await desk.add()
    for done, judged in (
        (change(desk, "update", instance_id, name="new"), False),
        (change(desk, "update_metadata", instance_id, metadata={"a": "1"}), False),
        (change(desk, "update_metadata", instance_id, metadata={"stateward:policy": "a"}), True),
        (change(desk, "update_metadata", instance_id, metadata={"stateward:policy": "a", "a": "2"}), False),
        (lock(desk, instance_id), True),
        (unlock(desk, instance_id), True),
    ):
        desk.compared.clear()
        await done
        assert desk.compared == [instance_id] * judged


async def test_a_change_that_fails_leaves_nothing(desk: Desk) -> None:
    """Its exception reaches the caller."""
    instance_id = await desk.add()
    before = await desk.row(instance_id)

    def fail(_row: Instance) -> Mapping[str, Any]:
        raise ZeroDivisionError

    desk.clock.at = NOW + 1
    with pytest.raises(ZeroDivisionError):
        await desk.immediate.change(BY_KEY["update"], instance_id, OWNER, fail, project_id=None)
    assert await desk.row(instance_id) == before
    assert (await desk.operations(instance_id), await desk.audit()) == ([], [])
