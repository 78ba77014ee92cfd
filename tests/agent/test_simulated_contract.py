"""The driver contract on simulated guests, in memory and in a folder, on virtual time."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from stateward.agent.simulated import SimulatedDriver, SimulatedHypervisor
from stateward.agent.simulated.guests import Origin
from tests.agent.contract import Changes, DriverContract, Rig
from tests.agent.contract_adoption import AdoptionContract
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


class Hand:
    """An operator who makes simulated guests."""

    def __init__(self, hypervisor: SimulatedHypervisor) -> None:
        self.hypervisor = hypervisor
        self._made = 0

    def make(self, *, autostart: bool = False, transient: bool = False) -> str:
        """Make a guest that runs."""
        self._made += 1
        spec = spec_of(f"stranger-{self._made}")
        self.hypervisor.make(spec, autostart=autostart, transient=transient)
        return spec.instance_id

    def is_as_made(self, guest: str, *, autostart: bool) -> bool:
        """Say whether nothing of ours is left."""
        found = self.hypervisor.guest(guest)
        return (found.origin, found.fence) == (Origin(autostart=autostart), 0)

    def life(self, guest: str) -> object:
        """Return its run: the times it was booted for."""
        return self.hypervisor.guest(guest).run


@pytest.fixture
def by_hand(rig: Rig) -> Hand:
    """Give an operator."""
    assert isinstance(rig.driver, SimulatedDriver)
    return Hand(rig.driver.hypervisor)


@pytest.mark.looptime
class TestAdoption(AdoptionContract):
    """What it says of guests that somebody else made."""


@pytest.mark.looptime
class TestDisks(DiskContract):
    """What it says of disks."""
