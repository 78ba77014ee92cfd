"""What the tests of simulated guests are made of: a spec, clocks, and a driver that is looked at."""

from __future__ import annotations

import asyncio

from stateward.agent.driver import Driver
from stateward.agent.simulated import SimulatedDriver, SimulatedHypervisor
from stateward.domain.records import GuestSpec, ImageFacts
from stateward.domain.states import Cause, Observed

#: Virtual seconds that a turn of the event loop may take in these tests.
NEAR = 0.001

RUNNING = (Observed.RUNNING, Cause.OTHER)
OFF_BY_ITSELF = (Observed.SHUTOFF, Cause.GUEST)
DESTROYED = (Observed.SHUTOFF, Cause.DESTROYED)
CRASHED = (Observed.SHUTOFF, Cause.CRASHED)
SAVED = (Observed.SUSPENDED, Cause.SAVED)


def spec_of(instance_id: str = "a", words: str = "", disk: int = 0) -> GuestSpec:
    """Make a spec whose guest behaves as the words say; disk in GiB."""
    return GuestSpec(
        instance_id=instance_id,
        domain_name=f"instance-{instance_id}",
        display_name=f"the guest {instance_id}",
        project_id="p",
        vcpus=1,
        memory=64,
        disk=disk,
        image=ImageFacts(id="image", disk_format="qcow2", properties={"os_command_line": words}),
    )


class LoopClock:
    """A wall clock that goes with virtual time, from a date on that is not the loop's zero."""

    def now(self) -> float:
        """Return seconds since the epoch."""
        return 1_700_000_000.0 + asyncio.get_running_loop().time()


class SetClock:
    """A wall clock that is set by hand."""

    def __init__(self) -> None:
        self.at = 1_700_000_000.0

    def now(self) -> float:
        """Return seconds since the epoch."""
        return self.at


class Bench:
    """A driver and its hypervisor, and when it told of a change."""

    def __init__(self, hypervisor: SimulatedHypervisor) -> None:
        self.hypervisor = hypervisor
        self.driver: Driver = SimulatedDriver(hypervisor)
        self.told: list[tuple[float, str | None]] = []

    def told_at(self, instance_id: str) -> float:
        """Return the loop's time at which the last change was told, which must be of this guest."""
        at, told = self.told[-1]
        assert told == instance_id
        return at

    def note(self, instance_id: str | None) -> None:
        """Note a change, with the loop's time rounded to a millisecond."""
        self.told.append((round(asyncio.get_running_loop().time(), 3), instance_id))

    async def boot(self, words: str = "", instance_id: str = "a") -> str:
        """Make a guest and boot it."""
        spec = spec_of(instance_id, words)
        await self.driver.prepare_disk(spec)
        await self.driver.define(spec)
        await self.driver.power_on(instance_id)
        return instance_id

    async def state(self, instance_id: str = "a") -> tuple[Observed, Cause]:
        """Look at a guest, by ``get`` and by ``list``, which must agree."""
        guest = await self.driver.get(instance_id)
        listed = [each for each in await self.driver.list() if each.instance_id == instance_id]
        assert listed == ([] if guest.observed is Observed.MISSING else [guest])
        return guest.observed, guest.cause

    async def console(self, instance_id: str = "a") -> list[str]:
        """Return what its console says, without the prefix that each line must have."""
        text = (await self.driver.console(instance_id)).decode()
        assert text == "" or text.endswith("\n")
        words = [line.split(": ", 1) for line in text.splitlines()]
        assert {prefix for prefix, _ in words} <= {"stateward-guest"}
        return [what for _, what in words]
