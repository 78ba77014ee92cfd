"""Admission: one transaction holds everything, and two that contradict each other are never both admitted."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from stateward.domain.bodies import RebootOptions, ShutdownOptions
from stateward.domain.errors import Invalid, Refusal, Refused
from stateward.domain.locks import ALL_CLASSES, ActorKind
from stateward.domain.records import ImageFacts, OperationState
from stateward.domain.shutdown import AtDeadline, Layer, ShutdownPlan
from stateward.domain.states import TaskState, VmState
from stateward.domain.steps import Step
from stateward.operations.admission import Admission, Admitted, ShutdownDefaults
from stateward.operations.immediate import Done
from stateward.store import operations
from tests.operations.desk import Desk
from tests.rows import FLAVOR, NOW, actor


async def refusal(awaitable: Any) -> Refusal:
    with pytest.raises(Refused) as refused:
        await awaitable
    return refused.value.refusal


async def test_what_an_admission_leaves_behind(desk: Desk) -> None:
    """The row, the operation, the audit record and the dispatch, which all name the same operation."""
    instance_id = await desk.add(name="web", metadata={"os_shutdown_timeout": "20"})
    desk.clock.at = NOW + 7
    admitted = await desk.admit("stop", instance_id)
    row, operation = await desk.row(instance_id), admitted.operation
    assert admitted.instance == row
    assert (row.vm_state, row.task_state) == (VmState.ACTIVE, TaskState.POWERING_OFF)
    assert (row.operation_id, row.fence, row.updated_at) == (operation.id, 2, NOW + 7)
    assert await desk.operation(operation.id) == operation
    assert (operation.action, operation.state, operation.fence) == ("stop", OperationState.ACCEPTED, 2)
    assert (operation.user_id, operation.request_id, operation.host) == ("a member", "req-1", "h")
    assert (operation.started_at, operation.finished_at) == (NOW + 7, None)
    plan = {
        "seconds": 20,
        "origin": "metadata",
        "at_deadline": "force",
        "at_deadline_origin": "default",
    }
    assert await desk.audit() == [("admitted", "stop", {"shutdown": plan})]
    ((subject, message_id, dispatch),) = await desk.outbox()
    assert (subject, message_id) == ("operations.h", operation.id)
    assert (dispatch.operation_id, dispatch.instance_id) == (operation.id, instance_id)
    assert (dispatch.fence, dispatch.action) == (2, "stop")
    assert dispatch.steps == (Step.SHUT_DOWN, Step.POWER_OFF)
    assert dispatch.shutdown == ShutdownPlan(seconds=20, origin="metadata")
    assert (dispatch.guest.instance_id, dispatch.guest.display_name) == (instance_id, "web")
    assert dispatch.guest.domain_name == f"instance-{row.number:08x}"
    assert (dispatch.guest.vcpus, dispatch.guest.memory, dispatch.guest.disk) == (1, 128, 1)
    assert desk.wakes == 1


@pytest.mark.parametrize("part", ["insert", "record", "post"])
async def test_all_or_nothing(desk: Desk, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever part fails, none of the others is there, and nobody is woken."""
    instance_id = await desk.add()
    before = await desk.row(instance_id)

    def fail(*_arguments: object, **_options: object) -> None:
        raise ZeroDivisionError(part)

    monkeypatch.setattr(operations, part, fail)
    with pytest.raises(ZeroDivisionError, match=part):
        await desk.admit("stop", instance_id)
    monkeypatch.undo()
    assert await desk.row(instance_id) == before
    assert (await desk.operations(instance_id), await desk.outbox(), await desk.audit()) == ([], [], [])
    assert desk.wakes == 0


async def test_a_refusal_leaves_nothing_behind(desk: Desk) -> None:
    """Not even a later time of change; but a lock's refusal is in the audit trail."""
    instance_id = await desk.add(owner_blocks=int(ALL_CLASSES), locked_by="owner")
    before = await desk.row(instance_id)
    desk.clock.at = NOW + 5
    assert await refusal(desk.admit("stop", instance_id)) is Refusal.LOCKED
    assert await desk.row(instance_id) == before
    assert (await desk.operations(instance_id), await desk.outbox()) == ([], [])
    assert await desk.audit() == [("refused", "stop", {"why": f"Instance {instance_id} is locked"})]
    assert desk.wakes == 0


@pytest.mark.parametrize(
    ("action", "row", "options", "expected"),
    [
        ("start", {}, {}, Refusal.WRONG_VM_STATE),
        ("start", {"vm_state": "stopped", "task_state": "deleting"}, {}, Refusal.WRONG_TASK_STATE),
        ("stop", {"task_state": "pausing"}, {}, Refusal.WRONG_TASK_STATE),
        ("stop_force", {"task_state": "pausing"}, {}, Refusal.WRONG_TASK_STATE),
        ("delete", {"task_state": "deleting"}, {}, Refusal.WRONG_TASK_STATE),
        ("delete", {"vm_state": "deleted"}, {}, Refusal.NOT_FOUND),
        ("stop", {}, {"project_id": "other"}, Refusal.NOT_FOUND),
        ("stop", {"fence": 3}, {"fence": 2}, Refusal.OVERTAKEN),
    ],
)
async def test_why_not(
    desk: Desk, *, action: str, row: dict[str, Any], options: dict[str, Any], expected: Refusal
) -> None:
    """The reason is that of the row as it is."""
    instance_id = await desk.add(**row)
    assert await refusal(desk.admit(action, instance_id, **options)) is expected


async def test_an_unknown_instance(desk: Desk) -> None:
    """It could not be found, in Nova's words."""
    with pytest.raises(Refused, match=r"^Instance nobody could not be found\.$"):
        await desk.admit("stop", "nobody")


@pytest.mark.parametrize(
    ("action", "body", "seconds", "origin"),
    [
        ("stop", None, 30, "image"),
        ("stop", ShutdownOptions(), 30, "image"),
        ("stop", ShutdownOptions(timeout=7), 7, "request"),
        ("stop_force", ShutdownOptions(force=True), 0, "forced"),
        ("stop_force", ShutdownOptions(force=True, timeout=7), 7, "request"),
        ("reboot_soft", RebootOptions(type="SOFT"), 30, "image"),
        ("reboot_soft", RebootOptions(type="SOFT", timeout=9), 9, "request"),
        ("delete", None, 30, "image"),
    ],
)
async def test_the_time_a_guest_gets(
    desk: Desk, *, action: str, body: object, seconds: int, origin: str
) -> None:
    """Is decided at admission and travels with the dispatch (R9)."""
    image = ImageFacts(id="i", disk_format="raw", properties={"os_shutdown_timeout": "30"})
    instance_id = await desk.add(image=image)
    await desk.admit(action, instance_id, body=body)
    ((_, _, dispatch),) = await desk.outbox()
    by = "request" if action == "stop_force" else "default"
    assert dispatch.shutdown == ShutdownPlan(
        seconds=seconds, origin=origin, at_deadline=AtDeadline.FORCE, at_deadline_origin=by
    )


@pytest.mark.parametrize(
    ("layers", "seconds", "by"),
    [
        (("metadata", "image", "flavor", "host"), 1, "metadata"),
        (("image", "flavor", "host"), 2, "image"),
        (("flavor", "host"), 3, "flavor"),
        (("host",), 4, "host"),
        ((), 5, "default"),
    ],
)
async def test_each_layer_is_read_where_it_is_kept(
    desk: Desk, *, layers: tuple[str, ...], seconds: int, by: str
) -> None:
    """Time and choice, from the instance down to the settings; the operation shows whose counted (R9)."""

    def said(layer: str, number: int) -> dict[str, str]:
        if layer not in layers:
            return {}
        return {"os_shutdown_timeout": str(number), "os_shutdown_at_deadline": "fail"}

    host = Layer(origin="host", seconds=4, at_deadline=AtDeadline.FAIL) if "host" in layers else None
    desk.admission = Admission(
        desk.database,
        desk.clock,
        ShutdownDefaults(
            default=Layer(origin="default", seconds=5, at_deadline=AtDeadline.FAIL),
            hosts={"other": Layer(origin="host", seconds=9)} | ({"h": host} if host else {}),
        ),
        desk.wake,
    )
    instance_id = await desk.add(
        metadata=said("metadata", 1),
        image=ImageFacts(id="i", disk_format="raw", properties=said("image", 2)),
        flavor=msgspec.structs.replace(FLAVOR, extra_specs=said("flavor", 3)),
    )
    stop = (await desk.admit("stop", instance_id)).operation
    plan = ShutdownPlan(seconds=seconds, origin=by, at_deadline=AtDeadline.FAIL, at_deadline_origin=by)
    ((_, _, dispatch),) = await desk.outbox()
    assert dispatch.shutdown == plan
    assert stop.params["shutdown"] == msgspec.to_builtins(plan)


async def test_a_refused_choice_leaves_no_trace(desk: Desk) -> None:
    """The instance is as it was, and nothing is sent."""
    instance_id = await desk.add()
    before = await desk.row(instance_id)
    with pytest.raises(Invalid, match="'reboot' cannot end with a saved memory"):
        await desk.admit("reboot_soft", instance_id, body=RebootOptions(type="SOFT", at_deadline="save"))
    assert (await desk.row(instance_id), await desk.outbox()) == (before, [])


async def test_what_asks_no_guest_has_no_plan(desk: Desk) -> None:
    """Pausing shuts nothing down."""
    await desk.admit("pause", await desk.add())
    ((_, _, dispatch),) = await desk.outbox()
    assert dispatch.shutdown is None


async def test_the_arbiter_s_reason_is_kept(desk: Desk) -> None:
    """As the operation's message and in the audit trail."""
    instance_id = await desk.add()
    admitted = await desk.admit("restore_start", instance_id, ActorKind.SYSTEM, why="It went off.")
    assert (await desk.operation(admitted.operation.id)).message == "It went off."
    assert await desk.audit() == [("admitted", "restore_start", {"why": "It went off."})]


# ---- overtaking


async def test_an_escalation_overtakes(desk: Desk) -> None:
    """The fence goes up and the operation in flight ends as superseded, saying by what."""
    instance_id = await desk.add()
    clean = await desk.admit("stop", instance_id)
    desk.clock.at = NOW + 3
    forced = await desk.admit("stop_force", instance_id, body=ShutdownOptions(force=True))
    ended = await desk.operation(clean.operation.id)
    assert (ended.state, ended.finished_at) == (OperationState.SUPERSEDED, NOW + 3)
    assert ended.message == "Overtaken by stop (request req-1)."
    row = await desk.row(instance_id)
    assert (row.operation_id, row.fence, row.task_state) == (
        forced.operation.id,
        3,
        TaskState.POWERING_OFF,
    )
    assert [dispatch.fence for _, _, dispatch in await desk.outbox()] == [2, 3]
    assert (await desk.audit())[-1][2]["overtakes"] == [clean.operation.id]


@pytest.mark.parametrize("task_state", sorted(TaskState))
async def test_a_delete_overtakes_everything_but_a_delete(desk: Desk, task_state: TaskState) -> None:
    """And a forced delete overtakes that too."""
    instance_id = await desk.add(task_state=task_state.value)
    if task_state is TaskState.DELETING:
        assert await refusal(desk.admit("delete", instance_id)) is Refusal.WRONG_TASK_STATE
    else:
        assert (await desk.admit("delete", instance_id)).instance.task_state is TaskState.DELETING
    forced = await desk.admit("forceDelete", instance_id)
    unfinished = await desk.database.read(operations.unfinished)
    assert unfinished == [forced.operation]


# ---- at once


async def test_of_many_at_once_one_is_admitted(desk: Desk) -> None:
    """Ten requests to stop make one operation, and nine that are told why not."""
    instance_id = await desk.add()
    answers = await asyncio.gather(
        *(desk.admit("stop", instance_id) for _ in range(10)), return_exceptions=True
    )
    admitted = [answer for answer in answers if isinstance(answer, Admitted)]
    refused = [answer.refusal for answer in answers if isinstance(answer, Refused)]
    assert len(admitted) == 1
    assert refused == [Refusal.WRONG_TASK_STATE] * 9
    assert await desk.operations(instance_id) == [admitted[0].operation]


async def test_fences_of_many_at_once_are_all_different(desk: Desk) -> None:
    """Each overtakes the one before it, and only the last is left."""
    instance_id = await desk.add()
    admitted = await asyncio.gather(*(desk.admit("forceDelete", instance_id) for _ in range(10)))
    assert sorted(each.operation.fence for each in admitted) == list(range(2, 12))
    last = max((each.operation for each in admitted), key=lambda operation: operation.fence)
    assert await desk.database.read(operations.unfinished) == [last]
    assert (await desk.row(instance_id)).operation_id == last.id


@pytest.mark.parametrize("first", ["lock", "stop"])
async def test_a_lock_and_a_stop_at_once(desk: Desk, first: str) -> None:
    """Either the stop was first, and the lock's answer names it, or the lock refuses it (B1)."""
    for _ in range(10):
        instance_id = await desk.add()
        begin = asyncio.Event()

        async def lock(instance_id: str = instance_id, begin: asyncio.Event = begin) -> Done:
            await begin.wait()
            return await desk.immediate.lock(instance_id, actor(), reason=None, project_id="p")

        async def stop(instance_id: str = instance_id, begin: asyncio.Event = begin) -> Admitted | Refused:
            await begin.wait()
            try:
                return await desk.admit("stop", instance_id)
            except Refused as refused:
                return refused

        if first == "lock":
            locking, stopping = asyncio.ensure_future(lock()), asyncio.ensure_future(stop())
        else:
            stopping, locking = asyncio.ensure_future(stop()), asyncio.ensure_future(lock())
        begin.set()
        done, stopped = await locking, await stopping
        if isinstance(stopped, Admitted):
            assert done.in_flight == stopped.operation
        else:
            assert stopped.refusal is Refusal.LOCKED
            assert done.in_flight is None
            assert len(await desk.operations(instance_id)) == 1
