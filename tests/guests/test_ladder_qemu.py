"""The ladder on real guests: what is chosen for the deadline, and orders on the way to it (R9, B4)."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio

from stateward.agent.agent import Agent
from stateward.agent.libvirt.daemons import LibvirtPlace
from stateward.agent.libvirt.driver import LibvirtDriver
from stateward.bus.memory import MemoryBus
from stateward.bus.port import RESULTS, control_subject, operations_subject
from stateward.clock import SystemClock
from stateward.domain.actions import BY_KEY
from stateward.domain.records import Command, Dispatch, GuestSpec, Order, Outcome, Result
from stateward.domain.shutdown import AtDeadline, Ending, ShutdownPlan
from stateward.domain.states import Cause, Observed
from tests.agent.contract import PRESSED, UP
from tests.guests.conftest import NewSpec, TinyImages

pytestmark = [pytest.mark.guests, pytest.mark.asyncio]

IGNORED = "stateward.acpi=ignore"
#: Seconds that a guest without KVM may take for anything it does.
PATIENCE = 240.0


class Host:
    """An agent on real guests, and what it answers."""

    def __init__(self, place: LibvirtPlace, folder: Path, images: TinyImages) -> None:
        self.driver = LibvirtDriver(uri=place.uri, folder=folder, images=images)
        self.bus = MemoryBus()
        self.agent = Agent(host="h", driver=self.driver, bus=self.bus, clock=SystemClock(), journal=None)
        self._fences = itertools.count(1)
        self._results: dict[str, asyncio.Future[Result]] = {}

    async def start(self) -> None:
        """Begin."""
        await self.bus.subscribe(RESULTS, self._take)
        await self.agent.start()

    async def stop(self) -> None:
        """Remove what is left, and end."""
        for guest in await self.driver.list():
            await self.driver.power_off(guest.instance_id)
            await self.driver.remove(guest.instance_id)
        await self.agent.stop()
        await self.bus.close()

    async def send(
        self, action: str, spec: GuestSpec, seconds: int = 0, at_deadline: AtDeadline = AtDeadline.FORCE
    ) -> asyncio.Future[Result]:
        """Send an operation, and return what will be its result."""
        fence = next(self._fences)
        dispatch = Dispatch(
            operation_id=f"{action}-{fence}",
            instance_id=spec.instance_id,
            action=action,
            fence=fence,
            steps=BY_KEY[action].steps,
            guest=spec,
            shutdown=ShutdownPlan(seconds=seconds, origin="request", at_deadline=at_deadline),
        )
        future = self._results[dispatch.operation_id] = asyncio.get_running_loop().create_future()
        await self.bus.publish(operations_subject("h"), msgspec.json.encode(dispatch), message_id=f"{fence}")
        return future

    async def order(
        self, spec: GuestSpec, operation: str, command: Command, seconds: int | None = None
    ) -> None:
        """Send an order to an operation."""
        order = Order(
            operation_id=operation,
            instance_id=spec.instance_id,
            number=1,
            command=command,
            seconds=seconds,
        )
        await self.bus.publish(control_subject("h"), msgspec.json.encode(order), message_id=f"{operation}.1")

    async def boot(self, spec: GuestSpec) -> None:
        """Make a guest and wait until it is up."""
        result = await (await self.send("create", spec))
        assert result.outcome is Outcome.SUCCEEDED, result.message
        await self.says(spec, UP)

    async def says(self, spec: GuestSpec, line: str, times: int = 1) -> None:
        """Wait until a guest's console has said a line so often."""
        async with asyncio.timeout(PATIENCE):
            while (await self.driver.console(spec.instance_id)).count(line.encode()) < times:  # noqa: ASYNC110 - a file has no event
                await asyncio.sleep(0.02)

    async def seen(self, spec: GuestSpec) -> tuple[Observed, Cause]:
        """Look at a guest."""
        guest = await self.driver.get(spec.instance_id)
        return guest.observed, guest.cause

    async def _take(self, payload: bytes) -> None:
        result = msgspec.json.decode(payload, type=Result)
        self._results[result.operation_id].set_result(result)


@pytest_asyncio.fixture
async def host(place: LibvirtPlace, images: TinyImages, tmp_path: Path) -> AsyncIterator[Host]:
    """Give an agent on the session's libvirtd."""
    host = Host(place, tmp_path, images)
    await host.start()
    yield host
    await host.stop()


async def test_a_guest_that_ignores_us_is_left_on_and_forced_as_was_chosen_and_told(
    host: Host, new_spec: NewSpec
) -> None:
    """Fail at the deadline, then cancel, then escalate: one boot for the three."""
    spec = new_spec(IGNORED)
    await host.boot(spec)
    failed = await (await host.send("stop", spec, seconds=1, at_deadline=AtDeadline.FAIL))
    assert (failed.outcome, failed.ending) == (Outcome.FAILED, Ending.LEFT_ON)
    assert failed.message == (
        "The guest did not shut down within 1 s (request) and was left on, as was chosen (default)."
    )
    await host.says(spec, PRESSED)
    assert await host.seen(spec) == (Observed.RUNNING, Cause.OTHER)

    stop = await host.send("stop", spec, seconds=600)
    await host.says(spec, PRESSED, times=2)
    await host.order(spec, "stop-3", Command.CANCEL)
    cancelled = await stop
    assert cancelled.outcome is Outcome.CANCELLED
    assert cancelled.message is not None
    assert cancelled.message.startswith(
        "Cancelled. The guest was already asked to shut down by its power button"
    )
    assert await host.seen(spec) == (Observed.RUNNING, Cause.OTHER)

    stop = await host.send("stop", spec, seconds=600, at_deadline=AtDeadline.FAIL)
    await host.says(spec, PRESSED, times=3)
    await host.order(spec, "stop-4", Command.ESCALATE)
    # Long before its ten minutes are over; libvirt takes up to 2 s until a QEMU without KVM is gone.
    async with asyncio.timeout(PATIENCE):
        forced = await stop
    assert (forced.outcome, forced.ending) == (Outcome.SUCCEEDED, Ending.FORCED)
    assert await host.seen(spec) == (Observed.SHUTOFF, Cause.DESTROYED)


async def test_a_guest_that_ignores_us_is_saved_where_that_was_chosen(host: Host, new_spec: NewSpec) -> None:
    spec = new_spec(IGNORED)
    await host.boot(spec)
    result = await (await host.send("stop", spec, seconds=1, at_deadline=AtDeadline.SAVE))
    assert (result.outcome, result.ending) == (Outcome.SUCCEEDED, Ending.SAVED)
    assert await host.seen(spec) == (Observed.SUSPENDED, Cause.SAVED)
    resumed = await (await host.send("resume", spec))
    assert resumed.outcome is Outcome.SUCCEEDED
    assert (await host.driver.console(spec.instance_id)).count(UP.encode()) == 1


async def test_a_slow_guest_that_is_given_more_time_shuts_itself_down(host: Host, new_spec: NewSpec) -> None:
    spec = new_spec("stateward.shutdown=3")
    await host.boot(spec)
    stop = await host.send("stop", spec, seconds=2)
    # Before it is seen that the guest was asked: on a slow machine its two seconds may be over by then.
    await host.order(spec, "stop-2", Command.EXTEND, seconds=int(PATIENCE))
    await host.says(spec, PRESSED)
    result = await stop
    assert (result.outcome, result.ending) == (Outcome.SUCCEEDED, Ending.OFF)
    assert await host.seen(spec) == (Observed.SHUTOFF, Cause.GUEST)
