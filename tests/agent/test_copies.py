"""What failed operations leave on the host: no copy of a disk, no kept disk, no rescue disk."""

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
from stateward.domain.states import Observed
from tests.agent.workbench import Workbench

pytestmark = [pytest.mark.asyncio, pytest.mark.looptime]

IMAGE, OTHER = "an image", "another image"


@pytest_asyncio.fixture
async def bench(swift_folder: Path) -> AsyncIterator[Workbench]:
    """Give a running agent with one guest."""
    bench = Workbench(swift_folder, disorder=None)
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


def rescuing(bench: Workbench, fence: int) -> Dispatch:
    dispatch = bench.dispatch("rescue", fence, seconds=0)
    guest = msgspec.structs.replace(dispatch.guest, rescue=dispatch.guest.image)
    return msgspec.structs.replace(dispatch, guest=guest)


async def refused(bench: Workbench, dispatch: Dispatch, step: str) -> None:
    """Have a driver call refuse; the operation fails with what it says."""
    bench.hypervisor.fail_next(step, DriverError("No."))
    result = await bench.result(await bench.send(dispatch))
    assert (result.outcome, result.message) == (Outcome.FAILED, "No.")


@pytest.mark.parametrize("step", ["keep_disk", "grow_disk", "define", "power_on"])
async def test_a_resize_that_fails_gives_the_disk_back(bench: Workbench, step: str) -> None:
    """As it was: not as large as the other flavor says, and nothing is kept beside it."""
    before = bench.hypervisor.guest("a")
    larger = bench.dispatch("resize", 2, seconds=0)
    larger = msgspec.structs.replace(larger, guest=msgspec.structs.replace(larger.guest, disk=7))
    await refused(bench, larger, step)
    after = bench.hypervisor.guest("a")
    assert (after.disk, after.kept) == (before.disk, before.kept)
    assert bench.observed() is Observed.SHUTOFF


@pytest.mark.parametrize("step", ["prepare_rescue_disk", "define", "power_on"])
async def test_a_rescue_that_fails_leaves_the_guest_its_own_disk(bench: Workbench, step: str) -> None:
    """It is defined to boot from it, and no rescue disk is left."""
    await refused(bench, rescuing(bench, 2), step)
    after = bench.hypervisor.guest("a")
    assert after.spec is not None
    assert (after.spec.rescue, after.rescue_image) == (None, None)
    assert bench.observed() is Observed.SHUTOFF


async def test_an_agent_killed_while_it_takes_back_does_not_lose_the_disk(bench: Workbench) -> None:
    """It does the steps again, from the one that was being taken back."""
    bench.hypervisor.fail_next("power_on", DriverError("No."))
    hang = bench.hypervisor.hang_next("return_disk")
    resize = await bench.send(bench.dispatch("resize", 2, seconds=0))
    await hang.reached.wait()
    await bench.kill()
    await bench.revive()
    assert (await bench.result(resize)).outcome is Outcome.SUCCEEDED
    assert bench.observed() is Observed.RUNNING
    assert bench.hypervisor.guest("a").kept is not None


async def test_what_cannot_be_taken_back_keeps_nobody_waiting(bench: Workbench) -> None:
    """What failed first is what is told."""
    bench.hypervisor.fail_next("return_disk", DriverError("The disk is read-only."))
    await refused(bench, bench.dispatch("resize", 2, seconds=0), "power_on")


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
