"""THE MATRIX: every row of the action table, at every step and every driver call, with every fault (B3).

Derived from the table: a row is covered by being there. Each cell is an instance of its own, to which the row is
done with one fault; all cells of a row are done side by side in one life of the control plane, and each end is
compared with that of an instance to which the same was done without a fault.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path

import pytest
import pytest_asyncio
import structlog

from stateward.agent import steps
from stateward.agent.simulated.origins import foreign
from stateward.agent.work import Work
from stateward.domain.actions import ACTIONS, BY_KEY, OnFailure, key
from stateward.domain.records import Instance, OperationState
from stateward.domain.states import VmState
from stateward.domain.steps import LOOKS, Step
from stateward.operations.admission import Admitted
from stateward.store.engine import Database
from tests.agent.simulated_bench import LoopClock
from tests.crash.beginnings import Beginning, beginnings
from tests.crash.cells import RAN
from tests.crash.faults import MADE, Fault, FaultyHypervisor, Planned
from tests.crash.life import End, Life, differences, end_of, undisturbed
from tests.crash.points import Point, Traps, When, points
from tests.crash.stack import World, actor

pytestmark = [pytest.mark.asyncio, pytest.mark.looptime]

OBEYS, IGNORES = "stateward.shutdown=3", "stateward.acpi=ignore"
BEGINNINGS = [pytest.param(beginning, id=str(beginning)) for beginning in beginnings()]
#: A guest's shutdown has two ends, by itself and by force.
CASES = [
    pytest.param(beginning, words, id=f"{beginning}, {words.split('.')[1]}")
    for beginning in beginnings()
    for words in ((OBEYS, IGNORES) if Step.SHUT_DOWN in beginning.row.steps else (OBEYS,))
]


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Keep thousands of tracebacks from being drawn in colour, which takes longer than all else."""
    with structlog.testing.capture_logs():
        yield


@pytest_asyncio.fixture
async def hypervisor() -> AsyncIterator[FaultyHypervisor]:
    """Give one without guests."""
    made = FaultyHypervisor()
    yield made
    made.close()


@pytest_asyncio.fixture
async def world(inline_database: Database, swift_folder: Path, hypervisor: FaultyHypervisor) -> World:
    """Give a world in which nothing runs, on virtual time."""
    return World(inline_database, hypervisor, LoopClock(), swift_folder)


async def prepared(life: Life, beginning: Beginning, words: str, count: int) -> list[str | None]:
    """Make so many instances that the row can be done to."""
    return await asyncio.gather(*(life.prepare(beginning, words) for _ in range(count)))


async def compare(
    world: World, expected: End, cells: Sequence[tuple[object, Admitted]], dimension: str, derived: int
) -> None:
    """Compare every cell's end, and count them: each that was derived ran."""
    wrong = [
        f"{cell}: {difference}"
        for cell, admitted in cells
        for difference in differences(await end_of(world, admitted.instance.id), expected)
    ]
    assert not wrong, "\n".join(wrong)
    assert len(cells) == derived
    RAN[dimension] += derived


async def test_every_row_that_an_agent_works_on_is_in_the_matrix() -> None:
    """In each state that it is admitted in, or for each deviation that it is the answer to.

    Not what is done to a copy on another host than the record's, which takes two (tests/arbiter/test_strays.py).
    """
    derived = {key(row) for row in ACTIONS if row.is_operation and not row.elsewhere}
    assert {key(each.row) for each in beginnings()} == derived


@pytest.mark.slow
@pytest.mark.parametrize("whole", [False, True], ids=["agent", "process"])
@pytest.mark.parametrize(("beginning", "words"), CASES)
async def test_killed(world: World, beginning: Beginning, words: str, *, whole: bool) -> None:
    """Killed at each moment of each step, alone or with the control plane, the end is that without a kill."""
    life = await Life(world).start()
    _, expected = await undisturbed(life, beginning, words)
    derived = points(beginning.row)
    cells: list[tuple[Point, Admitted]] = []
    # What is held after a step waits for the slowest guest; what is killed in its wait for one cannot.
    for group in (
        [point for point in derived if point.when is When.DURING],
        [point for point in derived if point.when is not When.DURING],
    ):
        ready = await prepared(life, beginning, words, len(group))
        begun: list[tuple[Point, Admitted]] = []
        with pytest.MonkeyPatch.context() as patch:
            traps = Traps(life.agent, patch)
            for point, instance_id in zip(group, ready, strict=True):
                admitted = await life.admit(beginning, instance_id, words)
                traps.set(admitted.instance.id, point)
                begun.append((point, admitted))
            async with asyncio.timeout(600):
                await traps.reached()
            if whole:
                await life.kill()
            else:
                await life.restart_agent()
        if whole:
            life = await Life(world).start()
        for point, admitted in begun:
            try:
                await life.plane.finished(admitted.operation.id)
            except TimeoutError:
                pytest.fail(f"killed at '{point}', the operation never ends")
        cells += begun
    await compare(world, expected, cells, "kill", len(derived))
    await life.kill()


@pytest.mark.parametrize(("beginning", "words"), CASES)
async def test_repeated(world: World, beginning: Beginning, words: str) -> None:
    """A step that is done twice is like one that is done once."""
    life = await Life(world).start()
    _, expected = await undisturbed(life, beginning, words)
    ready = await prepared(life, beginning, words, len(beginning.row.steps))
    twice: dict[str, Step] = {}
    cells: list[tuple[str, Admitted]] = []
    with pytest.MonkeyPatch.context() as patch:
        for step, function in list(steps.STEPS.items()):

            async def run(
                work: Work, step: Step = step, function: Callable[[Work], Awaitable[None]] = function
            ) -> None:
                await function(work)
                if twice.get(work.dispatch.instance_id) is step:
                    await function(work)

            patch.setitem(steps.STEPS, step, run)
        for step, instance_id in zip(beginning.row.steps, ready, strict=True):
            admitted = await life.admit(beginning, instance_id, words)
            twice[admitted.instance.id] = step
            cells.append((f"{step} twice", admitted))
        for _, admitted in cells:
            await life.plane.finished(admitted.operation.id)
    await compare(world, expected, cells, "repeat", len(beginning.row.steps))
    await life.kill()


@pytest.mark.slow
@pytest.mark.parametrize("beginning", BEGINNINGS)
async def test_a_fault_that_passes(world: World, hypervisor: FaultyHypervisor, beginning: Beginning) -> None:
    """A call that hangs once, or finds the hypervisor away, with or without its effect: the end is that without."""
    life = await Life(world).start()
    model, expected = await undisturbed(life, beginning, OBEYS)
    # The last call is the look for the result, and what it does not see the next report tells.
    calls = hypervisor.made[model.operation.id][:-1]
    derived = [
        Planned(number, method, fault)
        for number, method in enumerate(calls)
        for fault in Fault
        if fault.passes
    ]
    cells = await with_faults(life, hypervisor, beginning, derived)
    await compare(world, expected, cells, "fault that passes", len(derived))
    await life.kill()


@pytest.mark.slow
@pytest.mark.parametrize("beginning", BEGINNINGS)
async def test_a_fault_that_does_not_pass(
    world: World, hypervisor: FaultyHypervisor, beginning: Beginning
) -> None:
    """Each error class at each call, and a call that always hangs: FAILED, with what happened, and not stuck."""
    row = beginning.row
    life = await Life(world).start()
    model, _ = await undisturbed(life, beginning, OBEYS)
    calls = hypervisor.made[model.operation.id][:-1]
    derived = [
        Planned(number, method, fault)
        for number, method in enumerate(calls)
        for fault in Fault
        if not fault.passes and (fault is not Fault.DEAD or method not in calls[:number])
    ]
    cells = await with_faults(life, hypervisor, beginning, derived)
    # Up to this call nothing is done to the instance but to look: failed there, it is as it was.
    looked = max((calls.index(step) for step in row.steps if step in LOOKS), default=-1)
    wrong: list[str] = []
    for planned, admitted in cells:
        operation = await world.operation(admitted.operation.id)
        instance = await world.instance(admitted.instance.id)
        says = f"call '{planned.method}' did not come back" if planned.fault is Fault.DEAD else MADE
        fault = instance.fault
        before = admitted.instance.vm_state
        if row.undo is not None:
            instance = await tidied(life, instance.id)
        found = (operation.state, instance.task_state, instance.vm_state, instance.operation_id)
        # What clears up succeeds, and takes the fault away.
        said = [operation.message] if row.undo is not None else [operation.message, fault and fault.message]
        error = row.on_failure is OnFailure.ERROR and planned.number > looked
        after = VmState.ERROR if error else before
        if found != (OperationState.FAILED, None, after, None):
            wrong.append(f"{planned}: {found}, {operation.message}")
        elif any(says not in (text or "") for text in said):
            wrong.append(f"{planned}: says {operation.message}, fault {fault}")
        elif life.agent.worker.busy(instance.id):
            wrong.append(f"{planned}: its lane is held up")
    assert not wrong, "\n".join(wrong)
    # What comes next is done as ever: here the end of an instance, whatever was left of it.
    if beginning.vm_state is not VmState.DELETED:
        hypervisor.plan.clear()
        ends = [
            await life.plane.admission.admit(BY_KEY["forceDelete"], admitted.instance.id, actor())
            for planned, admitted in cells
            if planned.fault in {Fault.DEAD, Fault.LOST_REFUSED}
        ]
        for admitted in ends:
            instance = await life.plane.finished(admitted.operation.id)
            assert instance.vm_state is VmState.DELETED
            left = hypervisor.guest(instance.id)
            assert left.blank or foreign(left)
    assert len(cells) == len(derived)
    RAN["fault that does not pass"] += len(derived)
    await life.kill()


@pytest.mark.slow
@pytest.mark.parametrize("beginning", BEGINNINGS)
async def test_a_look_for_the_result_that_fails(
    world: World, hypervisor: FaultyHypervisor, beginning: Beginning
) -> None:
    """The operation is done all the same; what the guest is now, a report says."""
    row = beginning.row
    life = await Life(world).start()
    model, _ = await undisturbed(life, beginning, OBEYS)
    calls = hypervisor.made[model.operation.id]
    assert calls[-1] == "get"
    derived = [Planned(len(calls) - 1, "get", fault, always=True) for fault in Fault]
    for planned, admitted in await with_faults(life, hypervisor, beginning, derived):
        operation = await world.operation(admitted.operation.id)
        instance = await world.instance(admitted.instance.id)
        assert operation.state is OperationState.SUCCEEDED, str(planned)
        assert instance.task_state is None, str(planned)
        assert instance.vm_state is (row.becomes or admitted.instance.vm_state), str(planned)
    RAN["look for the result"] += len(derived)
    await life.kill()


async def with_faults(
    life: Life, hypervisor: FaultyHypervisor, beginning: Beginning, derived: Sequence[Planned]
) -> list[tuple[Planned, Admitted]]:
    """Do the row once for each fault, side by side, and wait until all are finished."""
    ready = await prepared(life, beginning, OBEYS, len(derived))
    cells: list[tuple[Planned, Admitted]] = []
    for planned, instance_id in zip(derived, ready, strict=True):
        admitted = await life.admit(beginning, instance_id, OBEYS)
        hypervisor.plan[admitted.operation.id] = planned
        cells.append((planned, admitted))
    for planned, admitted in cells:
        try:
            await life.plane.finished(admitted.operation.id)
        except TimeoutError:
            pytest.fail(f"{planned}: the operation never ends")
        assert admitted.operation.id in hypervisor.met, f"{planned} was not met"
    return cells


async def tidied(life: Life, instance_id: str) -> Instance:
    """Wait for what clears up after a failure, and return the instance."""
    *_, last = await life.world.operations(instance_id)
    return await life.plane.finished(last.id)
