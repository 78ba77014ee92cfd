"""Copies of disks that become no image: none is left on the host, whatever kept its operation from its end."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import looptime
import msgspec
import pytest
import pytest_asyncio

from stateward.agent.driver import DriverError
from stateward.agent.journal import Journal
from stateward.domain.records import Dispatch, Outcome
from tests.agent.workbench import Workbench

pytestmark = [pytest.mark.asyncio, pytest.mark.looptime]

IMAGE, OTHER = "an image", "another image"


@pytest_asyncio.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Workbench]:
    """Give a running agent with one guest."""
    bench = Workbench(tmp_path, disorder=None)
    with looptime.enabled(strict=True):
        await bench.start()
        await bench.do("create", 1)
    yield bench
    with looptime.enabled(strict=True):
        await bench.stop()


def copying(bench: Workbench, fence: int = 2, image_id: str = IMAGE) -> Dispatch:
    return msgspec.structs.replace(bench.dispatch("createImage", fence), snapshot=image_id)


def copies(bench: Workbench) -> tuple[str, ...]:
    return bench.hypervisor.guest("a").snapshots


async def test_a_copy_that_cannot_be_handed_over_is_deleted(bench: Workbench) -> None:
    """The control plane has given its image up; nobody would ask for the file again."""
    bench.hypervisor.fail_next("publish_snapshot", DriverError("The image store is full."))
    result = await bench.result(await bench.send(copying(bench)))
    assert (result.outcome, result.message) == (Outcome.FAILED, "The image store is full.")
    assert copies(bench) == ()


async def test_a_copy_that_cannot_be_deleted_keeps_nobody_waiting(bench: Workbench) -> None:
    """The operation's own failure is what is told."""
    bench.hypervisor.fail_next("publish_snapshot", DriverError("The image store is full."))
    bench.hypervisor.fail_next("discard_snapshot", DriverError("The disk is read-only."))
    result = await bench.result(await bench.send(copying(bench)))
    assert (result.outcome, result.message) == (Outcome.FAILED, "The image store is full.")
    assert copies(bench) == (IMAGE,)


async def test_an_overtaken_operation_leaves_no_copy(bench: Workbench) -> None:
    """It ends after the step under way, which made the copy."""
    hang = bench.hypervisor.hang_next("snapshot")
    copy = await bench.send(copying(bench))
    await hang.reached.wait()
    stop = await bench.send(bench.dispatch("stop_force", 3))
    await bench.settle()
    hang.release()
    assert (await bench.result(copy)).outcome is Outcome.SUPERSEDED
    assert (await bench.result(stop)).outcome is Outcome.SUCCEEDED
    assert len(bench.calls("snapshot")) == 1
    assert copies(bench) == ()


async def test_the_copy_of_a_killed_agent_is_deleted_by_what_overtakes_it(bench: Workbench) -> None:
    """Also when the newer operation was in the journal before the older one could be ended."""
    hang = bench.hypervisor.hang_next("publish_snapshot")
    await bench.send(copying(bench))
    await hang.reached.wait()
    await bench.kill()
    assert copies(bench) == (IMAGE,)
    journal = Journal(bench.journal, bench.clock.now())
    stop = bench.dispatch("stop_force", 3)
    assert journal.accept(stop, bench.clock.now())
    journal.close()
    await bench.revive()
    assert (await bench.result(stop.operation_id)).outcome is Outcome.SUCCEEDED
    assert copies(bench) == ()


async def test_a_copy_that_is_being_made_is_not_deleted(bench: Workbench) -> None:
    """What succeeds is handed over, also after others were given up."""
    bench.hypervisor.fail_next("snapshot", DriverError("The disk is full."))
    await bench.result(await bench.send(copying(bench)))
    made = await bench.result(await bench.send(copying(bench, 3, OTHER)))
    assert made.outcome is Outcome.SUCCEEDED
    assert len(bench.calls("publish_snapshot")) == 1
    assert copies(bench) == ()
