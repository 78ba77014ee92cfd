"""Every row of the action table ends the same wherever its agent, or the control plane, is killed on the way (B3)."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio

from stateward.agent.simulated import SimulatedHypervisor
from stateward.agent.simulated.guests import SimulatedGuest
from stateward.bus.port import RESULTS, operations_subject
from stateward.domain.actions import BY_KEY, CREATE, Role, key
from stateward.domain.locks import ActorKind
from stateward.domain.records import Fault, OperationState
from stateward.domain.states import Cause, Observed, TaskState, VmState
from stateward.domain.steps import Step
from stateward.domain.verdicts import Kind, judge_instance
from stateward.operations.admission import Admitted
from stateward.store import operations
from stateward.store.engine import Database
from tests.agent.simulated_bench import LoopClock
from tests.crash.beginnings import Beginning, begin, beginnings
from tests.crash.points import Trap, points
from tests.crash.stack import HOST, Plane, World, actor, new_agent

pytestmark = [pytest.mark.asyncio, pytest.mark.looptime]

OBEYS, IGNORES = "stateward.shutdown=3", "stateward.acpi=ignore"
CASES = [
    pytest.param(beginning, words, id=f"{beginning}, {words.split('.')[1]}")
    for beginning in beginnings()
    for words in ((OBEYS, IGNORES) if Step.SHUT_DOWN in beginning.row.steps else (OBEYS,))
]


@pytest_asyncio.fixture
async def world(inline_database: Database, tmp_path: Path) -> AsyncIterator[World]:
    """Give a world in which nothing runs, on virtual time."""
    hypervisor = SimulatedHypervisor()
    yield World(inline_database, hypervisor, LoopClock(), tmp_path)
    hypervisor.close()


class End(msgspec.Struct, frozen=True, kw_only=True):
    """What can be seen of an instance when an operation on it is finished, but for times."""

    vm_state: VmState
    task_state: TaskState | None
    operation_id: str | None
    fault: Fault | None
    observed: Observed
    cause: Cause
    fence: int
    launched: bool
    terminated: bool
    verdict: Kind
    #: The guest on its hypervisor: without its id and what it said.
    guest: SimulatedGuest
    operations: tuple[tuple[str, OperationState], ...]


async def end_of(world: World, instance_id: str) -> End:
    """Look at an instance."""
    instance = await world.instance(instance_id)
    guest = world.hypervisor.guest(instance_id)
    return End(
        vm_state=instance.vm_state,
        task_state=instance.task_state,
        operation_id=instance.operation_id,
        fault=instance.fault,
        observed=instance.observed,
        cause=instance.cause,
        fence=instance.fence,
        launched=instance.launched_at is not None,
        terminated=instance.terminated_at is not None,
        verdict=judge_instance(instance).kind,
        guest=msgspec.structs.replace(
            guest, id="", console=(), run=None, spec=None, halted_at=0.0 if guest.halted_at else None
        ),
        operations=tuple((each.action, each.state) for each in await world.operations(instance_id)),
    )


class Life:
    """A control plane and an agent that live now."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.plane = Plane(world)
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

    async def restart_agent(self, dead_for: float = 0.0) -> None:
        """End the agent alone, and have the next one take its place some seconds later."""
        await self.agent.stop()
        await asyncio.sleep(dead_for)
        self.agent = new_agent(self.world, self.plane.bus)
        await self.agent.start()

    async def prepare(self, beginning: Beginning, words: str) -> str | None:
        """Make the instance that the row is carried out on; None for create."""
        return None if beginning.row is CREATE else await begin(self.plane, beginning, words)

    async def admit(self, beginning: Beginning, instance_id: str | None, words: str) -> Admitted:
        """Admit the row's operation."""
        if instance_id is None:
            return await self.plane.create(words)
        kind = ActorKind.SYSTEM if beginning.row.policy.role is Role.SYSTEM else ActorKind.MEMBER
        return await self.plane.admission.admit(beginning.row, instance_id, actor(kind))


async def undisturbed(world: World, beginning: Beginning, words: str) -> End:
    """Carry the operation out without a kill, and return the end that all others must have."""
    life = await Life(world).start()
    admitted = await life.admit(beginning, await life.prepare(beginning, words), words)
    await life.plane.finished(admitted.operation.id)
    end = await end_of(world, admitted.instance.id)
    await life.kill()
    assert end.operations[-1] == (key(beginning.row), OperationState.SUCCEEDED)
    # A row that makes nothing else of them leaves state and guest as they were.
    assert end.vm_state is (beginning.row.becomes or beginning.vm_state)
    assert end.observed is (beginning.row.wants or beginning.observed)
    assert end.task_state is None
    assert end.verdict is (Kind.IGNORE if end.vm_state is VmState.ERROR else Kind.AGREE)
    return end


@pytest.mark.parametrize(("beginning", "words"), CASES)
@pytest.mark.parametrize("whole", [False, True], ids=["agent", "process"])
async def test_a_killed_agent_ends_what_it_began(
    world: World, beginning: Beginning, words: str, *, whole: bool
) -> None:
    """Killed at each moment of each step, alone or with the control plane, the end is that without a kill."""
    expected = await undisturbed(world, beginning, words)
    for point in points(beginning.row):
        life = await Life(world).start()
        instance_id = await life.prepare(beginning, words)
        with pytest.MonkeyPatch.context() as patch:
            trap = Trap(point, life.agent, patch)
            admitted = await life.admit(beginning, instance_id, words)
            await asyncio.wait_for(trap.reached.wait(), 600)
            if whole:
                await life.kill()
        if whole:
            life = await Life(world).start()
        else:
            await life.restart_agent()
        try:
            await life.plane.finished(admitted.operation.id)
        except TimeoutError:
            pytest.fail(f"killed at '{point}', the operation never ends")
        assert await end_of(world, admitted.instance.id) == expected, str(point)
        await life.kill()


@pytest.mark.parametrize(
    ("words", "killed_after", "dead_for", "expected"),
    [
        ("stateward.shutdown=45", 1, 0, 45),
        ("stateward.shutdown=45", 30, 5, 45),
        ("stateward.shutdown=45", 30, 100, 130),
        (IGNORES, 1, 0, 60),
        (IGNORES, 59, 0, 60),
        (IGNORES, 30, 10, 60),
        (IGNORES, 30, 100, 130),
    ],
)
async def test_a_guest_gets_its_time_once(
    world: World, words: str, killed_after: float, dead_for: float, expected: float
) -> None:
    """The time to shut down runs on while the agent is dead: no kill gives a guest more or less than its minute."""
    life = await Life(world).start()
    admitted = await life.plane.create(words)
    await life.plane.finished(admitted.operation.id)
    began = asyncio.get_running_loop().time()
    admitted = await life.plane.admission.admit(BY_KEY["stop"], admitted.instance.id, actor())
    await asyncio.sleep(killed_after)
    await life.restart_agent(dead_for)
    await life.plane.finished(admitted.operation.id)
    assert asyncio.get_running_loop().time() - began == pytest.approx(expected, abs=0.2)
    await life.kill()


class Lost(enum.StrEnum):
    """Where between the control plane and the agent everything is killed."""

    IN_OUTBOX = "admitted, not published"
    PUBLISHED = "published, still in the outbox"
    DISPATCH = "published, out of the outbox, not delivered"
    RESULT = "the result is sent, not applied"


@pytest.mark.parametrize(("beginning", "words"), CASES)
@pytest.mark.parametrize("lost", Lost)
async def test_a_killed_control_plane_ends_what_it_admitted(
    world: World, beginning: Beginning, words: str, lost: Lost
) -> None:
    """Whatever the bus inside the process held, the next start sends again, and the end is that without a kill."""
    expected = await undisturbed(world, beginning, words)
    life = await Life(world).start()
    instance_id = await life.prepare(beginning, words)
    reached = asyncio.Event()
    publish = life.plane.bus.publish

    async def lossy(subject: str, payload: bytes, *, message_id: str) -> None:
        if subject == operations_subject(HOST) and lost is Lost.PUBLISHED:
            await publish(subject, payload, message_id=message_id)
            reached.set()
            await asyncio.Event().wait()
        elif subject == {Lost.DISPATCH: operations_subject(HOST), Lost.RESULT: RESULTS}.get(lost):
            reached.set()
        else:
            await publish(subject, payload, message_id=message_id)

    life.plane.dispatching = lost is not Lost.IN_OUTBOX
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(life.plane.bus, "publish", lossy)
        admitted = await life.admit(beginning, instance_id, words)
        if lost is not Lost.IN_OUTBOX:
            await asyncio.wait_for(reached.wait(), 600)
        if lost is Lost.DISPATCH:
            await asyncio.sleep(1)
            assert not await world.database.read(operations.posted)
        await life.kill()
    assert (await world.operation(admitted.operation.id)).finished_at is None
    life = await Life(world).start()
    await life.plane.finished(admitted.operation.id)
    assert await end_of(world, admitted.instance.id) == expected
    await life.kill()


@pytest.mark.parametrize("kept", [True, False], ids=["journal kept", "journal lost"])
@pytest.mark.parametrize(("beginning", "words"), CASES)
async def test_what_is_delivered_again_changes_nothing(
    world: World, beginning: Beginning, words: str, *, kept: bool
) -> None:
    """A dispatch and a result that come once more, long after, leave guest and record as they are."""
    life = await Life(world).start()
    instance_id = await life.prepare(beginning, words)
    sent: list[tuple[str, bytes]] = []
    publish = life.plane.bus.publish

    async def listening(subject: str, payload: bytes, *, message_id: str) -> None:
        if subject in {operations_subject(HOST), RESULTS}:
            sent.append((subject, payload))
        await publish(subject, payload, message_id=message_id)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(life.plane.bus, "publish", listening)
        admitted = await life.admit(beginning, instance_id, words)
        await life.plane.finished(admitted.operation.id)
    end = await end_of(world, admitted.instance.id)
    if not kept:
        await life.agent.stop()
        world.journal.unlink()
        await life.restart_agent()
    assert {subject for subject, _payload in sent} == {operations_subject(HOST), RESULTS}
    for subject, payload in [*sent, *sent[::-1]]:
        await publish(subject, payload, message_id="again")
        await asyncio.sleep(100)
    assert await end_of(world, admitted.instance.id) == end
    await life.kill()
