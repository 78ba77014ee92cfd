"""Simulated guests in a folder: they outlive every process, and several processes act on them."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from stateward.agent.driver import DriverError, GuestMissing, HypervisorUnavailable
from stateward.agent.simulated import SimulatedHypervisor
from stateward.agent.simulated.__main__ import main
from stateward.domain.states import Cause, Observed
from tests.agent.simulated_bench import (
    CRASHED,
    DESTROYED,
    NEAR,
    OFF_BY_ITSELF,
    RUNNING,
    SAVED,
    Bench,
    LoopClock,
    SetClock,
    spec_of,
)

pytestmark = [pytest.mark.asyncio, pytest.mark.looptime]


async def test_guests_in_a_folder_live_while_no_process_does(tmp_path: Path) -> None:
    """Whoever opens the folder later finds them as the time makes them."""
    clock = SetClock()
    first = Bench(SimulatedHypervisor(tmp_path, clock=clock))
    await first.driver.open(first.note)
    await first.boot("stateward.shutdown=5", "asked")
    await first.boot("stateward.boot=10 stateward.poweroff_after=20", "leaving")
    await first.boot("stateward.panic_after=31", "crashing")
    await first.boot("stateward.poweroff_after=1", "paused")
    await first.driver.mark_fence("asked", 4)
    await first.driver.request_shutdown("asked")
    await first.driver.pause("paused")

    async def found_after(seconds: float) -> dict[str, Observed]:
        clock.at = 1_700_000_000.0 + seconds
        # The hypervisor before is neither closed nor asked again, as after kill -9.
        bench = Bench(SimulatedHypervisor(tmp_path, clock=clock))
        await bench.driver.open(bench.note)
        found = {guest.instance_id: guest.observed for guest in await bench.driver.list()}
        if seconds >= 31:
            assert await bench.state("asked") == OFF_BY_ITSELF
            assert (await bench.driver.get("asked")).fence == 4
            assert await bench.state("crashing") == CRASHED
            assert await bench.console("leaving") == ["up", "shutting down", "powered off"]
        await bench.driver.close()
        return found

    on, off = Observed.RUNNING, Observed.SHUTOFF
    halted = Observed.PAUSED
    assert await found_after(4.9) == {"asked": on, "leaving": on, "crashing": on, "paused": halted}
    assert await found_after(5.1) == {"asked": off, "leaving": on, "crashing": on, "paused": halted}
    assert await found_after(30.5) == {"asked": off, "leaving": off, "crashing": on, "paused": halted}
    assert await found_after(31.5) == {"asked": off, "leaving": off, "crashing": off, "paused": halted}
    await first.driver.close()


async def test_a_clock_that_is_set_back_does_not_hold_a_guest_up(tmp_path: Path) -> None:
    """What was waited for on the event loop's clock is due when it has passed there."""
    clock = SetClock()
    bench = Bench(SimulatedHypervisor(tmp_path, clock=clock))
    await bench.driver.open(bench.note)
    await bench.boot("stateward.poweroff_after=10")
    clock.at -= 3600
    await asyncio.sleep(10 + NEAR)
    assert bench.told_at("a") == pytest.approx(10, abs=NEAR)
    assert await bench.state() == OFF_BY_ITSELF
    await bench.driver.close()


async def test_another_process_acts_behind_our_back(tmp_path: Path) -> None:
    """It is told within a tenth of a second, with the guest's id, and seen at once."""
    bench = Bench(SimulatedHypervisor(tmp_path, clock=LoopClock()))
    await bench.driver.open(bench.note)
    await bench.boot()
    await asyncio.sleep(0)
    bench.told.clear()
    other = SimulatedHypervisor(tmp_path, clock=LoopClock())
    other.destroy("a")
    assert await bench.state() == DESTROYED
    await asyncio.sleep(0)
    assert [instance_id for _, instance_id in bench.told] == ["a"]
    other.start("a")
    await asyncio.sleep(0.1)
    assert [instance_id for _, instance_id in bench.told] == ["a", "a"]
    await bench.driver.power_off("a")
    await bench.driver.remove("a")
    with pytest.raises(GuestMissing):
        other.destroy("a")
    await bench.driver.close()


async def test_another_process_knows_better_than_our_timer(tmp_path: Path) -> None:
    """A guest destroyed elsewhere in the moment before it would have gone off by itself stays destroyed."""
    bench = Bench(SimulatedHypervisor(tmp_path, clock=LoopClock()))
    await bench.driver.open(bench.note)
    await bench.boot("stateward.poweroff_after=1.02")
    other = SimulatedHypervisor(tmp_path, clock=LoopClock())
    await asyncio.sleep(1.015)
    other.destroy("a")
    await asyncio.sleep(0.01)
    assert await bench.state() == DESTROYED
    await bench.driver.close()


async def test_another_process_switches_the_hypervisor_away(tmp_path: Path) -> None:
    """And back, which is told; who opens the folder meanwhile finds it away."""
    bench = Bench(SimulatedHypervisor(tmp_path, clock=LoopClock()))
    await bench.driver.open(bench.note)
    other = SimulatedHypervisor(tmp_path, clock=LoopClock())
    other.unavailable()
    with pytest.raises(HypervisorUnavailable):
        await bench.driver.list()
    assert SimulatedHypervisor(tmp_path, clock=LoopClock()).away
    other.available()
    await asyncio.sleep(0.1)
    assert [instance_id for _, instance_id in bench.told] == [None]
    assert await bench.driver.list() == []
    await bench.driver.close()


async def test_a_write_that_fails_leaves_everything_as_it_was(tmp_path: Path) -> None:
    """A refused change is not half kept, and what other processes write after it is still seen."""
    bench = Bench(SimulatedHypervisor(tmp_path, clock=LoopClock()))
    other = Bench(SimulatedHypervisor(tmp_path, clock=LoopClock()))
    for each in (bench, other):
        await each.driver.open(each.note)
    with pytest.raises(DriverError):
        await bench.driver.define(spec_of())
    await other.boot()
    assert await bench.state() == RUNNING
    for each in (bench, other):
        await each.driver.close()


@pytest.mark.looptime(False)  # noqa: FBT003 - looptime's own way to switch itself off
async def test_a_killed_process_leaves_its_guests_shutting_down(tmp_path: Path) -> None:
    """``kill -9`` in the middle of a guest's shutdown, with real processes; the last of its minute is real time too."""
    script = (
        "import asyncio, sys, pathlib, time\n"
        "sys.path.insert(0, sys.argv[2])\n"
        "from stateward.agent.simulated import SimulatedHypervisor\n"
        "from tests.agent.simulated_bench import Bench\n"
        "async def run():\n"
        "    bench = Bench(SimulatedHypervisor(pathlib.Path(sys.argv[1])))\n"
        "    await bench.driver.open(bench.note)\n"
        "    await bench.boot('stateward.shutdown=60')\n"
        "    before = time.time()\n"
        "    await bench.driver.request_shutdown('a')\n"
        "    print(before, flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(run())\n"
    )
    folder = tmp_path / "guests"
    here = str(Path(__file__).parents[2])
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, str(folder), here, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    asked = float(await process.stdout.readline())
    os.kill(process.pid, signal.SIGKILL)
    assert await process.wait() == -signal.SIGKILL
    clock = SetClock()
    # Half of it has passed for the guest, however long the machine took to get here.
    clock.at = asked + 30
    bench = Bench(SimulatedHypervisor(folder, clock=clock))
    await bench.driver.open(bench.note)
    assert await bench.state() == RUNNING
    await bench.driver.close()
    clock.at = asked + 59
    began = time.monotonic()
    bench = Bench(SimulatedHypervisor(folder, clock=clock))
    await bench.driver.open(bench.note)
    async with asyncio.timeout(60):
        while not bench.told:  # noqa: ASYNC110 - on purpose not through what is tested
            await asyncio.sleep(0.01)
    # Not before; how much later, the machine decides.
    assert time.monotonic() - began >= 1
    assert await bench.state() == OFF_BY_ITSELF
    assert await bench.console() == ["up", "power button pressed", "shutting down", "powered off"]
    await bench.driver.close()


async def test_the_command_line_acts_behind_our_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each verb with its effect; a refusal is a sentence and an exit status."""
    bench = Bench(SimulatedHypervisor(tmp_path))
    await bench.driver.open(bench.note)
    await bench.boot()
    folder = str(tmp_path)
    for verb, state in (
        ("pause", (Observed.PAUSED, Cause.OPERATOR)),
        ("resume", RUNNING),
        ("save", SAVED),
        ("start", RUNNING),
        ("shutdown", OFF_BY_ITSELF),
        ("start", RUNNING),
        ("crash", CRASHED),
        ("start", RUNNING),
        ("destroy", DESTROYED),
    ):
        assert main([folder, verb, "a"]) == 0
        assert await bench.state() == state
    assert capsys.readouterr() == ("", "")
    assert main([folder, "destroy", "a"]) == 1
    assert capsys.readouterr() == ("", "The guest is shutoff: it has no power to take.\n")
    assert main([folder, "start", "a"]) == 0
    assert main([folder, "reboot-host"]) == 0
    assert main([folder, "list"]) == 0
    assert capsys.readouterr() == ("a shutoff other the guest a\n", "")
    assert main([folder, "unavailable"]) == 0
    with pytest.raises(HypervisorUnavailable):
        await bench.driver.list()
    assert main([folder, "available"]) == 0
    assert main([folder, "undefine", "a"]) == 0
    assert await bench.driver.list() == []
    with pytest.raises(SystemExit):
        main([str(tmp_path / "none"), "list"])
    await bench.driver.close()
