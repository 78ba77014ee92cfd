"""Every row of the action table ends the same wherever its agent, or the control plane, is killed on the way (B3)."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from stateward.agent.simulated import SimulatedHypervisor
from stateward.bus.port import RESULTS, operations_subject
from stateward.domain.actions import BY_KEY
from stateward.domain.steps import Step
from stateward.store import operations
from stateward.store.engine import Database
from tests.agent.simulated_bench import LoopClock
from tests.crash.beginnings import Beginning, beginnings
from tests.crash.life import End, Life, differences, end_of, undisturbed
from tests.crash.stack import HOST, World, actor

pytestmark = [pytest.mark.asyncio, pytest.mark.looptime]

OBEYS, IGNORES = "stateward.shutdown=3", "stateward.acpi=ignore"
CASES = [
    pytest.param(beginning, words, id=f"{beginning}, {words.split('.')[1]}")
    for beginning in beginnings()
    for words in ((OBEYS, IGNORES) if Step.SHUT_DOWN in beginning.row.steps else (OBEYS,))
]


@pytest_asyncio.fixture
async def world(inline_database: Database, swift_folder: Path) -> AsyncIterator[World]:
    """Give a world in which nothing runs, on virtual time."""
    hypervisor = SimulatedHypervisor()
    yield World(inline_database, hypervisor, LoopClock(), swift_folder)
    hypervisor.close()


async def undisturbed_alone(world: World, beginning: Beginning, words: str) -> End:
    """Carry the operation out in a life of its own."""
    life = await Life(world).start()
    _, end = await undisturbed(life, beginning, words)
    await life.kill()
    return end


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


@pytest.mark.slow
@pytest.mark.parametrize(("beginning", "words"), CASES)
@pytest.mark.parametrize("lost", Lost)
async def test_a_killed_control_plane_ends_what_it_admitted(
    world: World, beginning: Beginning, words: str, lost: Lost
) -> None:
    """Whatever the bus inside the process held, the next start sends again, and the end is that without a kill."""
    expected = await undisturbed_alone(world, beginning, words)
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
    assert differences(await end_of(world, admitted.instance.id), expected) == []
    await life.kill()


@pytest.mark.slow
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
    assert differences(await end_of(world, admitted.instance.id), end) == []
    await life.kill()
