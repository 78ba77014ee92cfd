"""Instances that no host was found for: no agent answers for them, so nothing may wait for one (B3)."""

from __future__ import annotations

import pytest

from stateward.domain.actions import ACTIONS, BY_KEY, Role, key
from stateward.domain.errors import Refusal, Refused
from stateward.domain.records import OperationState
from stateward.domain.states import VmState
from tests.operations.desk import Desk


@pytest.mark.parametrize("action", ["delete", "forceDelete"])
async def test_it_is_deleted_at_once(desk: Desk, action: str) -> None:
    """Nothing is dispatched, and the instance is as gone as every other."""
    instance_id = await desk.add(host="", zone="", vm_state="error")
    admitted = await desk.admit(action, instance_id)
    row = await desk.row(instance_id)
    assert admitted.instance == row
    assert (row.vm_state, row.task_state, row.operation_id) == (VmState.DELETED, None, None)
    assert row.terminated_at == desk.clock.at
    operation = await desk.operation(admitted.operation.id)
    assert operation == admitted.operation
    assert operation.state is OperationState.SUCCEEDED
    assert await desk.outbox() == []


@pytest.mark.parametrize(
    "action",
    [key(row) for row in ACTIONS if row.is_operation and VmState.ERROR in row.when and not row.without_host],
)
async def test_whatever_needs_an_agent_is_refused(desk: Desk, action: str) -> None:
    """In Nova's words, and nothing is changed."""
    adopted = "theirs" if BY_KEY[action].needs_adopted else None
    instance_id = await desk.add(host="", zone="", vm_state="error", adopted_as=adopted)
    before = await desk.row(instance_id)
    with pytest.raises(Refused) as refused:
        await desk.admit(action, instance_id)
    assert refused.value.refusal is Refusal.NO_HOST
    assert await desk.row(instance_id) == before
    assert await desk.outbox() == []
    assert await desk.operations(instance_id) == []


def test_members_can_ask_for_some_of_them() -> None:
    """Otherwise the tests above would say nothing."""
    asked = [row for row in ACTIONS if row.is_operation and VmState.ERROR in row.when]
    assert len([row for row in asked if row.policy.role is Role.MEMBER]) >= 4
