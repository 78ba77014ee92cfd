"""A hold placed at each step of each operation: it ends off and held, and nothing older acts after it (R6, B1).

Derived from the table: a new row, or a new step, has its moments by itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Final

import msgspec
import pytest
import pytest_asyncio

from stateward.agent import steps
from stateward.agent.driver import Driver
from stateward.agent.simulated import SimulatedHypervisor
from stateward.agent.work import Work
from stateward.bus.port import NobodyAnswered, questions_subject
from stateward.domain.actions import BY_KEY
from stateward.domain.bodies import Hold
from stateward.domain.locks import ALL_CLASSES, ActorKind
from stateward.domain.questions import Overtaken
from stateward.domain.records import OperationState
from stateward.domain.states import Observed, VmState
from stateward.domain.steps import Step
from stateward.operations.admission import Admitted
from stateward.operations.locking import Locking
from stateward.store.engine import Database
from tests.agent.simulated_bench import LoopClock
from tests.crash.beginnings import Beginning, beginnings
from tests.crash.life import Life
from tests.crash.points import Point, When, points
from tests.crash.stack import HOST, World, actor

pytestmark = [pytest.mark.asyncio, pytest.mark.looptime, pytest.mark.slow]


def waits(beginning: Beginning) -> bool:
    """Whether there is a guest that has to be waited for until it is off."""
    on = beginning.vm_state in {VmState.ACTIVE, VmState.RESCUED, VmState.ERROR}
    return on or beginning.row.was is VmState.ACTIVE


CASES: Final = [
    pytest.param(beginning, point, id=f"{beginning}, {point}")
    for beginning in beginnings()
    # There is nothing to hold of what is deleted.
    if beginning.vm_state is not VmState.DELETED
    for point in points(beginning.row)
    if point.when in {When.BEFORE, When.AFTER} or (point.when is When.DURING and waits(beginning))
]
OFF: Final = frozenset({Observed.SHUTOFF, Observed.SUSPENDED, Observed.MISSING})


@pytest_asyncio.fixture
async def world(inline_database: Database, swift_folder: Path) -> AsyncIterator[World]:
    """Give a world in which nothing runs, on virtual time."""
    hypervisor = SimulatedHypervisor()
    yield World(inline_database, hypervisor, LoopClock(), swift_folder)
    hypervisor.close()


class Frozen:
    """A worker that is stopped at a point of one operation, mid-step, and wakes up when it is let."""

    def __init__(self, life: Life, patch: pytest.MonkeyPatch, point: Point) -> None:
        self.reached = asyncio.Event()
        self.thawed = asyncio.Event()
        #: The operation that came to the point; only that one is stopped.
        self.operation_id = ""
        #: The calls that its step made after it woke up, by their names.
        self.calls: list[str] = []
        self._hypervisor = life.world.hypervisor
        self._point = point
        if point.step is not None:
            patch.setitem(steps.STEPS, point.step, self._around(steps.STEPS[point.step]))

    def _around(self, function: Callable[[Work], Awaitable[None]]) -> Callable[[Work], Awaitable[None]]:
        async def run(work: Work) -> None:
            mine = not self.operation_id
            self.operation_id = self.operation_id or work.dispatch.operation_id
            mine = mine and self._point.step is not None
            if not mine:
                await function(work)
                return
            if self._point.when is When.BEFORE:
                await self._sleep()
            if self._point.when is When.DURING:
                asyncio.get_running_loop().call_later(0.02, self.reached.set)
            before = len(self._hypervisor.calls)
            try:
                await function(work)
            finally:
                if self._point.when is When.BEFORE:
                    self.calls = [call.name for call in list(self._hypervisor.calls)[before:]]
            if self._point.when is When.AFTER:
                await self._sleep()

        return run

    async def _sleep(self) -> None:
        self.reached.set()
        await self.thawed.wait()


def unchecked(driver: Driver, check: Callable[[], None]) -> Driver:
    """Stand for ``while_newest`` as if there were no check."""
    del check
    return driver


async def hold(life: Life, instance_id: str, shutdown: str) -> Admitted:
    locking = Locking(life.plane.admission, life.plane.immediate, lambda: None)
    wanted = msgspec.convert({"reason": "Case 7.", "shutdown": shutdown, "timeout": 5}, Hold)
    return await locking.hold(instance_id, actor(ActorKind.ADMIN), wanted)


async def confirmed(life: Life, held: Admitted) -> bool:
    """Ask the host whether nothing older acts any more."""
    question = Overtaken(instance_id=held.instance.id, fence=held.operation.fence)
    try:
        await life.plane.bus.ask(questions_subject(HOST), msgspec.json.encode(question), timeout=5)
    except NobodyAnswered:
        return False
    return True


@pytest.mark.parametrize(("beginning", "point"), CASES)
async def test_a_hold_at_each_step_of_each_operation(
    world: World, beginning: Beginning, point: Point
) -> None:
    """What was overtaken ends as superseded; its worker, stopped there and waking late, makes no call any more."""
    life = await Life(world).start()
    instance_id = await life.prepare(beginning, "stateward.shutdown=3")
    with pytest.MonkeyPatch.context() as patch:
        frozen = Frozen(life, patch, point)
        overtaken = await life.admit(beginning, instance_id, "stateward.shutdown=3")
        await asyncio.wait_for(frozen.reached.wait(), 600)
        assert frozen.operation_id == overtaken.operation.id
        held = await hold(life, overtaken.instance.id, "clean")
        # A worker that waits for its guest gives up at once; one that sleeps is not spoken for.
        assert await confirmed(life, held) is (point.when is When.DURING)
        frozen.thawed.set()
        instance = await life.plane.finished(held.operation.id)
    assert await confirmed(life, held)
    assert frozen.calls == []
    assert (await world.operation(overtaken.operation.id)).state is OperationState.SUPERSEDED
    assert (await world.operation(held.operation.id)).state is OperationState.SUCCEEDED
    row = BY_KEY[held.operation.action]
    assert (instance.vm_state, instance.task_state) == (row.becomes or overtaken.instance.vm_state, None)
    assert (instance.hold_blocks, instance.kept_off) == (ALL_CLASSES, True)
    assert world.hypervisor.guest(instance.id).observed in OFF
    await life.kill()


async def test_the_frozen_worker_would_act_if_it_were_let(world: World) -> None:
    """The check is what keeps it: without it the same worker makes its call after the hold's answer."""
    life = await Life(world).start()
    (stop,) = [each for each in beginnings() if str(each) == "start of stopped"]
    instance_id = await life.prepare(stop, "")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stateward.agent.run.while_newest", unchecked)
        frozen = Frozen(life, patch, Point(When.BEFORE, Step.DEFINE))
        overtaken = await life.admit(stop, instance_id, "")
        await asyncio.wait_for(frozen.reached.wait(), 600)
        held = await hold(life, overtaken.instance.id, "clean")
        assert not await confirmed(life, held)
        frozen.thawed.set()
        await life.plane.finished(held.operation.id)
    assert frozen.calls == ["define", "mark_fence"]
    await life.kill()
