"""The driver contract on simulated guests, in memory and in a folder, on virtual time."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from stateward.agent.simulated import SimulatedDriver, SimulatedHypervisor
from tests.agent.contract import Changes, DriverContract, Rig
from tests.agent.contract_disks import DiskContract
from tests.agent.images import FolderImages
from tests.agent.simulated_bench import LoopClock, spec_of


@pytest_asyncio.fixture(params=["memory", "folder"])
async def rig(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Rig]:
    """Give an opened driver."""
    in_folder: bool = request.param == "folder"
    hypervisor = SimulatedHypervisor(tmp_path, clock=LoopClock()) if in_folder else SimulatedHypervisor()
    images = tmp_path / "images"
    images.mkdir()
    (images / "image").touch()
    driver = SimulatedDriver(hypervisor, images=FolderImages(images))
    changes = Changes()
    await driver.open(changes)
    numbers = itertools.count()
    yield Rig(driver=driver, changes=changes, spec=lambda: spec_of(f"guest-{next(numbers)}"))
    await driver.close()
    hypervisor.close()


@pytest.mark.looptime
class TestContract(DriverContract):
    """The contract on simulated guests."""


@pytest.mark.looptime
class TestDisks(DiskContract):
    """What it says of disks."""
