"""An order to a running operation counts wherever its agent, or the control plane, is killed after its answer (B4)."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from stateward.agent import worker
from stateward.agent.simulated import SimulatedHypervisor
from stateward.bus.port import control_subject
from stateward.domain.actions import key
from stateward.domain.locks import ActorKind
from stateward.domain.records import Command, Operation, OperationState, Result
from stateward.domain.states import Observed, VmState
from stateward.domain.steps import Step
from stateward.operations.control import Control
from stateward.store.engine import Database
from tests.agent.simulated_bench import LoopClock
from tests.crash.beginnings import Beginning, begin, beginnings
from tests.crash.stack import HOST, Plane, World, actor, new_agent

pytestmark = [pytest.mark.asyncio, pytest.mark.looptime]

#: Longer than Nova's minute, shorter than what it is extended to.
SLOW = "stateward.shutdown=80"
EXTENDED = 100

#: Every row that shuts a guest down, each once, of a guest that runs.
ROWS = {
    key(each.row): each
    for each in reversed(beginnings())
    if Step.SHUT_DOWN in each.row.steps
    and (each.observed is Observed.RUNNING or (each.observed is None and each.vm_state is VmState.ACTIVE))
}


class Killed(enum.StrEnum):
    """Where after the order's answer everything, or the agent alone, is killed."""

    IN_OUTBOX = "process, the order not published"
    PUBLISHED = "process, the order published and not delivered"
    TAKEN = "agent, its journal has the order and the operation does not"
    UNKEPT = "process, the result not kept"
    UNSENT = "process, the result not sent"


@pytest_asyncio.fixture
async def world(inline_database: Database, swift_folder: Path) -> AsyncIterator[World]:
    """Give a world in which nothing runs, on virtual time."""
    hypervisor = SimulatedHypervisor()
    yield World(inline_database, hypervisor, LoopClock(), swift_folder)
    hypervisor.close()


class Life:
    """A control plane and an agent that live now."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.plane = Plane(world)
        self.control = Control(world.database, world.clock, self.plane.wake)
        self.agent = new_agent(world, self.plane.bus)

    async def start(self) -> Life:
        """Begin both."""
        await self.plane.start()
        await self.agent.start()
        await asyncio.sleep(0.1)
        return self

    async def kill(self) -> None:
        """End both."""
        await self.agent.stop()
        await self.plane.kill()

    async def restart_agent(self) -> None:
        """End the agent alone, and have the next one take its place."""
        await self.agent.stop()
        self.agent = new_agent(self.world, self.plane.bus)
        await self.agent.start()

    async def waiting(self, beginning: Beginning) -> Operation:
        """Begin the row's operation and return it ten seconds into its wait."""
        instance_id = await begin(self.plane, beginning, SLOW)
        admitted = await self.plane.admission.admit(beginning.row, instance_id, actor(ActorKind.ADMIN))
        await asyncio.sleep(10)
        return await self.world.operation(admitted.operation.id)

    async def tell(self, command: Command, operation: Operation) -> None:
        """Give the order; on return it was answered."""
        by = actor(ActorKind.ADMIN)
        match command:
            case Command.EXTEND:
                await self.control.extend(operation.id, by, seconds=EXTENDED, project_id=None)
            case Command.ESCALATE:
                await self.control.escalate(operation.id, by, project_id=None)
            case Command.CANCEL:
                await self.control.cancel(operation.id, by, project_id=None)


def trap(life: Life, point: Killed, patch: pytest.MonkeyPatch) -> asyncio.Event:
    """Let everything come to a point and no further; the event tells when it is there."""
    reached = asyncio.Event()
    publish = life.plane.bus.publish

    async def lossy(subject: str, payload: bytes, *, message_id: str) -> None:
        if subject == control_subject(HOST):
            reached.set()
        else:
            await publish(subject, payload, message_id=message_id)

    def unkept(_result: Result) -> None:
        reached.set()
        raise asyncio.CancelledError

    async def unsent(_result: Result) -> None:
        reached.set()
        await asyncio.Event().wait()

    def unheard(_lane: object, _order: object) -> None:
        reached.set()

    traps: dict[Killed, tuple[object, str, object]] = {
        Killed.PUBLISHED: (life.plane.bus, "publish", lossy),
        Killed.TAKEN: (vars(worker)["_Lane"], "obey", unheard),
        Killed.UNKEPT: (life.agent.worker.journal, "finished", unkept),
        Killed.UNSENT: (life.agent.worker, "send", unsent),
    }
    if point is Killed.IN_OUTBOX:
        life.plane.dispatching = False
        reached.set()
    else:
        patch.setattr(*traps[point])
    return reached


async def killed_at(life: Life, point: Killed, command: Command, operation: Operation) -> Life:
    """Give the order, kill at the point, and return the life after it."""
    with pytest.MonkeyPatch.context() as patch:
        reached = trap(life, point, patch)
        await life.tell(command, operation)
        await asyncio.wait_for(reached.wait(), 600)
        if point is not Killed.TAKEN:
            await life.kill()
            return await Life(life.world).start()
        await life.restart_agent()
        return life


def expected(
    command: Command, beginning: Beginning
) -> tuple[OperationState, VmState | None, Observed | None]:
    if command is Command.CANCEL:
        return OperationState.CANCELLED, beginning.vm_state, Observed.RUNNING
    return OperationState.SUCCEEDED, beginning.row.becomes, beginning.row.wants


def powered_off(world: World) -> int:
    return sum(call.name == "power_off" for call in world.hypervisor.calls)


async def check(world: World, beginning: Beginning, command: Command, point: Killed) -> None:
    """Kill there, and compare the end with what the order means."""
    life = await Life(world).start()
    operation = await life.waiting(beginning)
    assert operation.state is OperationState.RUNNING
    before = powered_off(world)
    life = await killed_at(life, point, command, operation)
    instance = await life.plane.finished(operation.id)
    ended = await world.operation(operation.id)
    guest = world.hypervisor.guest(instance.id)
    observed = Observed.MISSING if guest.spec is None else guest.observed
    assert (ended.state, instance.vm_state, observed) == expected(command, beginning), str(point)
    assert (instance.task_state, instance.operation_id) == (None, None)
    assert ended.progress is not None
    signalled_at = ended.progress.signalled_at or 0.0
    if command is Command.CANCEL:
        assert powered_off(world) == before
        assert ended.message is not None
        assert ended.message.startswith(
            "Cancelled. The guest was already asked to shut down by its power button"
        )
    if command is Command.EXTEND:
        # By itself after its 80 s, which are more than it had at first.
        assert (ended.finished_at or 0.0) - signalled_at == pytest.approx(80, abs=2)
    if command is Command.ESCALATE:
        assert (ended.finished_at or 0.0) - signalled_at <= 15
    await life.kill()


@pytest.mark.parametrize("point", Killed)
@pytest.mark.parametrize("command", Command)
async def test_an_order_to_a_stop_counts(world: World, command: Command, point: Killed) -> None:
    """Killed at each moment, the end is that of the order."""
    await check(world, ROWS["stop"], command, point)


@pytest.mark.parametrize("command", Command)
@pytest.mark.parametrize("row", [name for name in ROWS if name != "stop"])
async def test_an_order_to_any_other_row_counts(world: World, row: str, command: Command) -> None:
    """Every row that shuts a guest down, by itself; killed where the journal knows and the operation does not."""
    await check(world, ROWS[row], command, Killed.TAKEN)


@pytest.mark.parametrize("command", Command)
async def test_a_failed_write_leaves_nothing(world: World, command: Command) -> None:
    """Killed before the commit, nothing happened: no order, no message, no audit record, and the wait goes on."""
    life = await Life(world).start()
    operation = await life.waiting(ROWS["stop"])

    def fails(*_args: object) -> None:
        msg = "killed before the commit"
        raise RuntimeError(msg)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stateward.operations.control.post_order", fails)
        with pytest.raises(RuntimeError, match="killed before the commit"):
            await life.tell(command, operation)
    assert await world.operation(operation.id) == operation
    await life.kill()
