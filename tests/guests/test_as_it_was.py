"""What cannot be done to a real guest leaves it as it was: running on, asked for nothing, and it is said why."""

from __future__ import annotations

import asyncio
import subprocess
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio
from msgspec.structs import replace

from stateward.agent.journal import Journal
from stateward.agent.watch import Watch
from stateward.agent.worker import Worker
from stateward.bus.memory import MemoryBus
from stateward.bus.port import RESULTS
from stateward.clock import SystemClock
from stateward.domain.actions import BY_KEY
from stateward.domain.records import Dispatch, GuestSpec, ImageFacts, Outcome, Result
from stateward.domain.states import Observed
from stateward.domain.steps import LOOKS
from tests.agent.contract import PAUSED, PRESSED, RUNNING, UP, Rig
from tests.guests.conftest import NewSpec, TinyImages
from tests.guests.test_disks import small_disk, start

pytestmark = [pytest.mark.guests, pytest.mark.asyncio]


async def carry_out(rig: Rig, action: str, spec: GuestSpec, fence: int) -> Result:
    """Have a worker carry out a row of the table, and return how it went."""
    bus, clock = MemoryBus(), SystemClock()
    results = asyncio.Queue[bytes]()
    await bus.subscribe(RESULTS, results.put)
    worker = Worker(rig.driver, bus, Journal(None, clock.now()), clock, Watch())
    dispatch = Dispatch(
        operation_id=f"{action}-{fence}",
        instance_id=spec.instance_id,
        action=action,
        fence=fence,
        steps=BY_KEY[action].steps,
        guest=spec,
        shutdown=None,
    )
    await worker.handle(msgspec.json.encode(dispatch))
    async with asyncio.timeout(rig.patience):
        result = msgspec.json.decode(await results.get(), type=Result)
    await worker.stop()
    await bus.close()
    return result


@pytest.fixture
def bad(images: TinyImages) -> Iterator[dict[str, ImageFacts]]:
    """Give images that no disk of 1 GiB can be made over: one that was cut off, and one that is too large."""
    found = {name: ImageFacts(id=str(uuid.uuid4()), disk_format="qcow2") for name in ("broken", "large")}
    paths = {name: images.folder / image.id for name, image in found.items()}
    whole = images.files.disk.read_bytes()
    paths["broken"].write_bytes(whole[: len(whole) // 2])
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(paths["large"]), "2G"], check=True)
    yield found
    for path in paths.values():
        path.unlink()


async def test_an_image_that_no_disk_can_be_made_over(
    rig: Rig, new_spec: NewSpec, bad: dict[str, ImageFacts], tmp_path: Path
) -> None:
    """It is found while the guest runs, which goes on with its disk and hears nothing; a good one takes its place."""
    spec = replace(new_spec(), disk=1)
    await rig.driver.prepare_disk(spec)
    await start(rig, spec)
    home = tmp_path / "instances" / spec.instance_id
    before = sorted(path.name for path in home.iterdir())
    for fence, (action, wanted, says) in enumerate(
        (
            ("rebuild", replace(spec, image=bad["broken"]), "The image is broken, upload it again: "),
            (
                "rebuild",
                replace(spec, image=bad["large"]),
                "Flavor's disk is too small for requested image. ",
            ),
            ("rescue", replace(spec, rescue=bad["broken"]), "The image is broken, upload it again: "),
        ),
        start=2,
    ):
        result = await carry_out(rig, action, wanted, fence)
        assert result.outcome is Outcome.FAILED
        assert result.message is not None
        assert result.message.startswith(says)
        assert result.message.endswith(". Nothing was done to the guest.")
        assert result.failed_at in LOOKS
        assert result.observation is not None
        assert result.observation.observed is Observed.RUNNING
        assert sorted(path.name for path in home.iterdir()) == before
    assert await rig.state(spec.instance_id) == RUNNING
    assert (await rig.said(spec.instance_id, UP), await rig.said(spec.instance_id, PRESSED)) == (1, 0)

    result = await carry_out(rig, "rebuild", spec, 5)
    assert (result.outcome, result.failed_at) == (Outcome.SUCCEEDED, None)
    assert await rig.state(spec.instance_id) == RUNNING


@pytest_asyncio.fixture
async def no_room(tmp_path: Path, images: TinyImages, new_spec: NewSpec) -> AsyncIterator[tuple[Rig, Path]]:
    """Give a host that has no room for its guests' memory, and the folder where libvirt puts it."""
    home = tmp_path / "libvirt"
    folder = home / "lib"
    folder.mkdir(parents=True)
    host = small_disk(folder, "4m", home=home, data=tmp_path, images=images, new_spec=new_spec)
    async with host as rig:
        yield rig, folder / "qemu" / "save"


async def test_a_memory_that_there_is_no_room_for(no_room: tuple[Rig, Path]) -> None:
    """The operation fails with what to do, nothing is left of the memory, and the guest goes on; also a halted one."""
    rig, folder = no_room
    spec = rig.spec()
    await rig.driver.prepare_disk(spec)
    await start(rig, spec)
    full = "The guest's memory cannot be saved: the host's disk is full. Free some of it, and try again."

    result = await carry_out(rig, "suspend", spec, 2)
    assert (result.outcome, result.message) == (Outcome.FAILED, full)
    assert result.observation is not None
    assert result.observation.observed is Observed.RUNNING
    assert await rig.state(spec.instance_id) == RUNNING
    assert list(folder.iterdir()) == []

    await rig.driver.pause(spec.instance_id)
    result = await carry_out(rig, "restore_suspend", spec, 3)
    assert (result.outcome, result.message) == (Outcome.FAILED, full)
    assert await rig.state(spec.instance_id) == PAUSED
    assert list(folder.iterdir()) == []

    # It is the same guest still: it lives on where it was halted, and obeys.
    await rig.driver.unpause(spec.instance_id)
    await rig.driver.request_shutdown(spec.instance_id)
    await rig.until(spec.instance_id, Observed.SHUTOFF)
    assert await rig.said(spec.instance_id, UP) == 1
