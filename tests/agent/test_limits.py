"""A driver's call that does not come back is given up: no instance waits for it for ever, and no other one at all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import looptime
import pytest
import pytest_asyncio

from stateward.agent.driver import Driver
from stateward.agent.limits import CALL_SECONDS, LIMITS, CallHung, Limits
from stateward.agent.simulated import SimulatedDriver, SimulatedHypervisor
from stateward.domain.records import Outcome
from stateward.domain.states import Observed
from tests.agent.simulated_bench import NEAR
from tests.agent.workbench import BUS, Workbench

pytestmark = [pytest.mark.asyncio, pytest.mark.looptime]

#: Seconds between two heartbeats, and two relists, of the agents here.
HEARTBEAT, RELIST = 5, 10

SAYS = (
    "The hypervisor's call 'power_off' did not come back within 120 s, tried 2 times, and was given up. "
    "It may still take effect later. Look at the hypervisor of this host and at the guest there, "
    "then repeat the action."
)


@pytest_asyncio.fixture
async def bench(swift_folder: Path) -> AsyncIterator[Workbench]:
    """Give a running agent."""
    bench = Workbench(swift_folder, disorder=None)
    with looptime.enabled(strict=True):
        await bench.start()
    yield bench
    with looptime.enabled(strict=True):
        await bench.stop()


def now() -> float:
    return asyncio.get_running_loop().time()


@pytest.mark.parametrize(
    ("action", "method"),
    [("pause", "pause"), ("suspend", "save_memory"), ("suspend", "mark_fence"), ("pause", "get")],
)
async def test_a_call_that_hangs_is_tried_once_more(bench: Workbench, action: str, method: str) -> None:
    """At its limit, not before, and then the operation goes on as if nothing had been."""
    seconds = LIMITS.get(method, CALL_SECONDS)
    await bench.do("create", 1)
    began = now()
    bench.hypervisor.hang_next(method)
    result = await bench.do(action, 2)
    assert now() - began == pytest.approx(seconds, abs=NEAR + BUS)
    assert result.outcome is Outcome.SUCCEEDED
    assert result.message is None
    # The mark and the steps before it are not repeated, and the look after it sees whose the guest is.
    calls = [call.name for call in bench.hypervisor.calls if call.began >= began and call.name == method]
    assert len(calls) >= 2


async def test_a_call_that_always_hangs_ends_the_operation(bench: Workbench) -> None:
    """It says which call, how long it took and what to do; and the lane goes on with what comes next."""
    await bench.do("create", 1)
    began = now()
    for _ in range(2):
        bench.hypervisor.hang_next("power_off")
    result = await bench.do("stop", 2, seconds=0)
    assert now() - began == pytest.approx(2 * CALL_SECONDS, abs=NEAR + BUS)
    assert (result.outcome, result.message) == (
        Outcome.FAILED,
        SAYS,
    )
    assert result.observation is not None
    assert result.observation.observed is Observed.RUNNING
    assert not bench.agent.worker.busy("a")
    assert (await bench.do("stop", 3, seconds=0)).outcome is Outcome.SUCCEEDED


async def test_what_comes_next_need_not_wait_for_more_than_the_limit(bench: Workbench) -> None:
    """A newer operation overtakes the one whose call hangs, as soon as that call is given up."""
    await bench.do("create", 1)
    hang = bench.hypervisor.hang_next("pause")
    pause = await bench.send(bench.dispatch("pause", 2))
    await hang.reached.wait()
    delete = await bench.do("forceDelete", 3)
    assert (await bench.result(pause)).outcome is Outcome.SUPERSEDED
    assert delete.outcome is Outcome.SUCCEEDED


async def test_a_late_effect_is_seen(bench: Workbench) -> None:
    """What was given up and takes effect after all is reported as any change is: the arbiter decides about it."""
    await bench.do("create", 1)
    hangs = [bench.hypervisor.hang_next("pause", outlives=True) for _ in range(2)]
    assert (await bench.do("pause", 2)).outcome is Outcome.FAILED
    reports = len(bench.reports)
    hangs[0].release()
    await asyncio.sleep(NEAR)
    seen = [each.observed for report in bench.reports[reports:] for each in report.observations]
    assert seen[-1] is Observed.PAUSED


async def test_other_guests_and_the_heartbeat_do_not_wait(bench: Workbench) -> None:
    """One guest that cannot be looked at hides no other, and its host is not down."""
    for guest in ("a", "b"):
        await bench.do("create", 1, guest=guest)
    await asyncio.sleep(1)
    hang = bench.hypervisor.hang_next("get")
    began, reports, heartbeats = now(), len(bench.reports), len(bench.heartbeats)
    bench.hypervisor.destroy("a")
    await hang.reached.wait()
    bench.hypervisor.destroy("b")
    await asyncio.sleep(1)
    seen = [each for report in bench.reports[reports:] for each in report.observations]
    assert [(each.instance_id, each.observed) for each in seen] == [("b", Observed.SHUTOFF)]
    assert now() - began < 2
    await asyncio.sleep(2 * HEARTBEAT)
    assert len(bench.heartbeats) - heartbeats == 2


async def test_a_relist_that_hangs_says_that_nothing_can_be_asked(bench: Workbench) -> None:
    """The host lives, its hypervisor does not answer; the next relist that comes back makes it good."""
    await asyncio.sleep(1)
    bench.hypervisor.hang_next("list")
    await asyncio.sleep(RELIST + LIMITS["list"])
    assert bench.heartbeats[-1].reachable is False
    assert bench.heartbeats[-1].detail.startswith(
        "The hypervisor's call 'list' did not come back within 30 s"
    )
    await asyncio.sleep(RELIST)
    assert bench.heartbeats[-1].reachable is True


async def test_an_operators_factor_scales_every_limit() -> None:
    """Those of methods that the table does not name, too."""
    limits = Limits(0.5)
    assert limits.seconds("power_on") == CALL_SECONDS / 2
    assert {name: limits.seconds(name) for name in LIMITS} == {
        name: seconds / 2 for name, seconds in LIMITS.items()
    }


async def test_the_table_names_methods_that_there_are() -> None:
    """A limit under a wrong name would not count."""
    assert [name for name in LIMITS if not callable(getattr(Driver, name, None))] == []


class Stubborn(SimulatedDriver):
    """Hangs even when it is cancelled."""

    async def pause(self, instance_id: str) -> None:
        """Never end."""
        del instance_id
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                await asyncio.sleep(1000)
                raise


async def test_a_call_that_does_not_hear_its_cancellation_is_left(tmp_path: Path) -> None:
    """It is not waited for, by the operation nor by an agent that stops."""
    driver: Driver = Limits().on(Stubborn(SimulatedHypervisor(tmp_path)))
    began = now()
    with pytest.raises(CallHung, match="'pause'"):
        await driver.pause("a")
    assert now() - began == pytest.approx(CALL_SECONDS, abs=NEAR)
    task = asyncio.ensure_future(driver.pause("a"))
    await asyncio.sleep(1)
    task.cancel()
    began = now()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert now() - began < NEAR
    await asyncio.sleep(2000)
