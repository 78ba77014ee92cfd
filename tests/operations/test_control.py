"""Control of a running operation: what is written, for whom, and until when (B4)."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from stateward.domain.actions import BY_KEY
from stateward.domain.errors import Conflict, Forbidden, Invalid, NotFound
from stateward.domain.locks import ActorKind, OperationClass
from stateward.domain.records import (
    Command,
    Operation,
    OperationState,
    Order,
    Progress,
    ProgressReport,
)
from stateward.domain.steps import Step
from stateward.operations.control import Control
from stateward.operations.dispatch import repost
from stateward.store import operations
from tests.operations.desk import Desk
from tests.rows import NOW, actor

MEMBER, ADMIN, SYSTEM = ActorKind


@pytest.fixture
def control(desk: Desk) -> Control:
    """Give the control of a desk's operations, with a cap of 100 s."""
    return Control(desk.database, desk.clock, desk.wake, cap=100)


async def orders(desk: Desk) -> list[tuple[str, str, Order]]:
    posted = await desk.database.read(operations.posted)
    return [
        (subject, message_id, msgspec.json.decode(payload, type=Order))
        for _number, subject, message_id, payload in posted
        if subject.startswith("control.")
    ]


async def stop_of(desk: Desk, kind: ActorKind = MEMBER, **row: Any) -> Operation:
    return (await desk.admit("stop", await desk.add(**row), kind)).operation


async def at_step(desk: Desk, operation: Operation, step: Step, seq: int = 5) -> bool:
    steps = BY_KEY[operation.action].steps
    progress = Progress(seq=seq, step=step, number=steps.index(step) + 1, of=len(steps), at=NOW)
    report = ProgressReport(operation_id=operation.id, progress=progress)
    return await desk.database.write(lambda connection: operations.note_progress(connection, report))


async def tell(
    control: Control,
    command: Command,
    operation: Operation,
    kind: ActorKind = MEMBER,
    project: str | None = "p",
) -> Operation:
    match command:
        case Command.EXTEND:
            return await control.extend(operation.id, actor(kind), seconds=90, project_id=project)
        case Command.ESCALATE:
            return await control.escalate(operation.id, actor(kind), project_id=project)
        case Command.CANCEL:
            return await control.cancel(operation.id, actor(kind), project_id=project)


@pytest.mark.parametrize("command", Command)
async def test_what_an_order_leaves_behind(desk: Desk, control: Control, command: Command) -> None:
    """The row, the audit record and the message, and the dispatcher is woken."""
    stop = await stop_of(desk)
    wakes = desk.wakes
    told = await tell(control, command, stop)
    seconds = 90 if command is Command.EXTEND else None
    order = Order(
        operation_id=stop.id, instance_id=stop.instance_id, number=1, command=command, seconds=seconds
    )
    assert told.order == order
    assert await desk.operation(stop.id) == told
    assert await orders(desk) == [("control.h", f"{stop.id}.1", order)]
    event, action, detail = (await desk.audit())[-1]
    assert (event, action) == ("ordered", "stop")
    assert detail == {"command": command.value, "number": 1, "seconds": seconds}
    assert desk.wakes == wakes + 1


@pytest.mark.parametrize("command", Command)
async def test_an_order_that_stands_is_not_given_again(
    desk: Desk, control: Control, command: Command
) -> None:
    """A client may repeat its request: nothing is written, and nothing is wrong."""
    stop = await stop_of(desk)
    first = await tell(control, command, stop)
    trail = await desk.audit()
    assert await tell(control, command, stop) == first
    assert (await desk.audit(), len(await orders(desk))) == (trail, 1)


async def test_extensions_are_counted_and_capped(desk: Desk, control: Control) -> None:
    """The latest stands; more than the operator allows is cut to it; less than there is is refused."""
    stop = await stop_of(desk)
    for seconds in (70, 80, 5000):
        await control.extend(stop.id, actor(), seconds=seconds, project_id="p")
    assert [(order.number, order.seconds) for _s, _m, order in await orders(desk)] == [
        (1, 70),
        (2, 80),
        (3, 100),
    ]
    with pytest.raises(Conflict, match="gets 100 seconds already; it can be given more, not less"):
        await control.extend(stop.id, actor(), seconds=99, project_id="p")
    for seconds in (0, -1):
        with pytest.raises(Invalid, match=f"Value: {seconds}. It must be from 1 up"):
            await control.extend(stop.id, actor(), seconds=seconds, project_id="p")


@pytest.mark.parametrize("last", [Command.ESCALATE, Command.CANCEL])
@pytest.mark.parametrize("command", Command)
async def test_after_the_last_word_there_is_no_other(
    desk: Desk, control: Control, last: Command, command: Command
) -> None:
    """What was escalated or cancelled is not extended or called back."""
    stop = await stop_of(desk)
    await tell(control, Command.EXTEND, stop)
    told = await tell(control, last, stop)
    if command is last:
        assert await tell(control, command, stop) == told
        return
    with pytest.raises(Conflict, match=f"was already told to {last}"):
        await tell(control, command, stop)


@pytest.mark.parametrize("command", Command)
@pytest.mark.parametrize("asks", ActorKind)
@pytest.mark.parametrize("admitted", ActorKind)
async def test_whose_operations_one_controls(
    desk: Desk, control: Control, command: Command, asks: ActorKind, admitted: ActorKind
) -> None:
    """An owner does not touch what the provider or the control plane itself began; they touch everything."""
    stop = await stop_of(desk, admitted)
    if asks is MEMBER and admitted is not MEMBER:
        with pytest.raises(Forbidden, match=f"^stateward:operations:{command}$"):
            await tell(control, command, stop, asks)
        assert await orders(desk) == []
    else:
        assert (await tell(control, command, stop, asks, project=None)).order is not None


@pytest.mark.parametrize("command", Command)
async def test_a_lock_does_not_block_control_and_a_hold_does(
    desk: Desk, control: Control, command: Command
) -> None:
    """Whoever began it may end its wait under any lock; under a hold the guest can only go off sooner (R6)."""
    every = OperationClass(15)
    stop = await stop_of(desk)
    changes = {"owner_blocks": int(every), "admin_blocks": int(every), "locked_by": "admin"}
    await desk.change(stop.instance_id, changes)
    assert (await tell(control, command, stop)).order is not None
    held = await stop_of(desk)
    await desk.change(held.instance_id, {"hold_blocks": int(every)})
    if command is Command.ESCALATE:
        assert (await tell(control, command, held)).order is not None
    else:
        with pytest.raises(Conflict, match="A hold keeps instance"):
            await tell(control, command, held, ADMIN, project=None)


@pytest.mark.parametrize("command", Command)
async def test_another_project_s_operation_is_not_there(
    desk: Desk, control: Control, command: Command
) -> None:
    """Nor is one that never was."""
    stop = await stop_of(desk)
    with pytest.raises(NotFound, match=f"Operation {stop.id} could not be found"):
        await tell(control, command, stop, project="other")
    with pytest.raises(NotFound, match="Operation none could not be found"):
        await control.cancel("none", actor(), project_id=None)
    assert await orders(desk) == []


@pytest.mark.parametrize("command", Command)
async def test_what_cannot_be_controlled_says_why(desk: Desk, control: Control, command: Command) -> None:
    """A finished one, one without a wait, and one that is past it."""
    finished = await stop_of(desk)
    await desk.database.write(
        lambda connection: operations.finish(connection, finished.id, OperationState.SUCCEEDED, NOW, None)
    )
    with pytest.raises(
        Conflict, match=rf"is finished \(succeeded\); it cannot be told to {command} any more"
    ):
        await tell(control, command, finished)
    pause = (await desk.admit("pause", await desk.add())).operation
    with pytest.raises(
        Conflict, match=rf"\(pause\) has no wait for its guest; there is nothing to {command}"
    ):
        await tell(control, command, pause)
    late = await stop_of(desk)
    assert await at_step(desk, late, Step.POWER_OFF)
    with pytest.raises(
        Conflict, match=rf"at step power_off \(2 of 2\), which cannot be undone; it is too late to {command}"
    ):
        await tell(control, command, late)
    assert await orders(desk) == []


async def test_progress_is_written_only_forwards(desk: Desk) -> None:
    """However it arrives, and not on a finished operation; the first makes it a running one."""
    stop = await stop_of(desk)
    assert await at_step(desk, stop, Step.POWER_OFF, seq=7)
    assert not await at_step(desk, stop, Step.SHUT_DOWN, seq=6)
    assert not await at_step(desk, stop, Step.SHUT_DOWN, seq=7)
    now = await desk.operation(stop.id)
    assert now.state is OperationState.RUNNING
    assert now.progress is not None
    assert (now.progress.step, now.progress.seq) == (Step.POWER_OFF, 7)
    await desk.database.write(
        lambda connection: operations.finish(connection, stop.id, OperationState.SUCCEEDED, NOW, None)
    )
    assert not await at_step(desk, stop, Step.POWER_OFF, seq=8)


async def test_a_restart_posts_the_standing_order_again(desk: Desk, control: Control) -> None:
    """The bus inside the killed process had it; once in the outbox it is not doubled."""
    stop = await stop_of(desk)
    await tell(control, Command.EXTEND, stop)
    await control.extend(stop.id, actor(), seconds=95, project_id="p")
    posted = await desk.database.read(operations.posted)
    await desk.database.write(
        lambda connection: operations.sent(connection, [number for number, *_rest in posted])
    )
    await desk.database.write(repost)
    await desk.database.write(repost)
    ((subject, _message_id, order),) = await orders(desk)
    assert (subject, order.number, order.seconds) == ("control.h", 2, 95)


@pytest.mark.parametrize("change", ["finished", "moved on", "ordered", "held"])
async def test_the_write_is_guarded_by_what_was_read(desk: Desk, change: str) -> None:
    """No check and then act: what the decision was made of is in the UPDATE's own condition."""
    stop = await stop_of(desk)
    order = Order(operation_id=stop.id, instance_id=stop.instance_id, number=1, command=Command.CANCEL)

    async def give() -> Operation | None:
        return await desk.database.write(
            lambda connection: operations.give_order(connection, stop, order, unheld=True, project_id="p")
        )

    match change:
        case "finished":
            await desk.database.write(
                lambda connection: operations.finish(connection, stop.id, OperationState.SUCCEEDED, NOW, None)
            )
        case "moved on":
            await at_step(desk, stop, Step.SHUT_DOWN)
        case "ordered":
            assert await give() is not None
        case _:
            await desk.change(stop.instance_id, {"hold_blocks": 15})
    assert await give() is None
