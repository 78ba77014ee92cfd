"""Creating an instance: where it goes, and what becomes of it when there is nowhere."""

from __future__ import annotations

from typing import Any

import pytest

from stateward.domain.records import Fault, OperationState
from stateward.domain.states import Cause, Observed, TaskState, VmState
from stateward.domain.steps import Step
from stateward.operations.admission import Admitted
from stateward.operations.creation import create
from stateward.operations.placing import Place
from stateward.store import hosts
from tests.operations.desk import Desk
from tests.rows import NOW, actor
from tests.stack import PATIENCE, new_instance


async def make(desk: Desk, **changes: Any) -> Admitted:
    return await create(desk.admission, new_instance(**changes), actor(), reservation_id="r-1")


async def test_what_a_creation_leaves_behind(desk: Desk) -> None:
    """The row, its operation, the audit record and the dispatch."""
    await desk.add_host("h", zone="north")
    made = await make(desk, name="web", metadata={"a": "b"}, tags=("t",), key_name="k")
    row, operation = made.instance, made.operation
    assert await desk.row(row.id) == row
    assert (row.name, row.metadata, row.tags, row.key_name) == ("web", {"a": "b"}, ("t",), "k")
    assert (row.host, row.zone, row.reservation_id) == ("h", "north", "r-1")
    assert (row.vm_state, row.task_state, row.fence) == (VmState.BUILDING, TaskState.SPAWNING, 1)
    assert (row.observed, row.cause, row.observed_at) == (Observed.UNKNOWN, Cause.OTHER, None)
    assert (row.created_at, row.launched_at, row.fault) == (NOW, None, None)
    assert row.operation_id == operation.id
    assert await desk.operation(operation.id) == operation
    assert (operation.action, operation.state, operation.fence) == ("create", OperationState.ACCEPTED, 1)
    said = {"name": "web", "host": "h", "from": None, "to": "building"}
    assert await desk.audit() == [("admitted", "create", said)]
    ((subject, _, dispatch),) = await desk.outbox()
    assert (subject, dispatch.operation_id) == ("operations.h", operation.id)
    assert dispatch.steps == (Step.PREPARE_DISK, Step.DEFINE, Step.POWER_ON)
    assert desk.wakes == 1


async def test_without_a_host_it_is_in_error(desk: Desk) -> None:
    """As in Nova: it is there, says why, and nothing is in flight."""
    made = await make(desk)
    row = await desk.row(made.instance.id)
    assert (row.vm_state, row.task_state, row.operation_id) == (VmState.ERROR, None, None)
    assert row.fault == Fault(
        code=500,
        message="No valid host was found. There are not enough hosts available.",
        created=NOW,
    )
    operation = await desk.operation(made.operation.id)
    assert (operation.state, operation.finished_at) == (OperationState.FAILED, NOW)
    assert await desk.outbox() == []


async def test_the_host_with_the_fewest(desk: Desk) -> None:
    """By name among equals."""
    for name in ("b", "a", "c"):
        await desk.add_host(name)
    assert [(await make(desk)).instance.host for _ in range(4)] == ["a", "b", "c", "a"]


@pytest.mark.parametrize(
    ("bad", "changes"),
    [
        ({"at": NOW - PATIENCE - 1}, {}),
        ({"reachable": False}, {}),
        ({"zone": "south"}, {"place": Place(zone="nova")}),
        ({}, {"place": Place(host="good")}),
    ],
    ids=["silent", "unreachable", "another-zone", "another-name"],
)
async def test_a_host_that_cannot_be_used(desk: Desk, bad: dict[str, Any], changes: dict[str, Any]) -> None:
    """Is not, though it is the emptiest."""
    await desk.add_host("bad", **bad)
    await desk.add_host("good")
    await make(desk, place=Place(host="good"))
    assert (await make(desk, **changes)).instance.host == "good"


@pytest.mark.parametrize("change", [{"enabled": False}, {"forced_down": True}], ids=["disabled", "down"])
async def test_a_host_that_the_operator_took_out(desk: Desk, change: dict[str, Any]) -> None:
    """Gets nothing new."""
    host_id = await desk.add_host("h")
    await desk.database.write(lambda connection: hosts.change(connection, host_id, change))
    assert (await make(desk)).instance.vm_state is VmState.ERROR


async def test_a_host_that_was_never_heard_of(desk: Desk) -> None:
    """Gets nothing before its agent has spoken."""
    await desk.database.write(lambda connection: hosts.register(connection, "h", "nova"))
    assert (await make(desk)).instance.vm_state is VmState.ERROR
