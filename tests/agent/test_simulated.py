"""Simulated guests, their hypervisor and its driver, on virtual time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio

from stateward.agent.driver import (
    AgentSilent,
    DriverError,
    Guest,
    GuestMissing,
    HypervisorUnavailable,
)
from stateward.agent.simulated import Hang, HostSize, SimulatedDriver, SimulatedHypervisor
from stateward.agent.simulated.behaviour import AGENT_SECONDS
from stateward.agent.simulated.driver import EVERYTHING
from stateward.domain.records import GuestSpec, ImageFacts
from stateward.domain.states import Cause, Observed
from tests.agent.images import FolderImages
from tests.agent.simulated_bench import (
    CRASHED,
    DESTROYED,
    NEAR,
    OFF_BY_ITSELF,
    RUNNING,
    SAVED,
    Bench,
    LoopClock,
    spec_of,
)

pytestmark = [pytest.mark.asyncio, pytest.mark.looptime]


@pytest_asyncio.fixture(params=["memory", "folder"])
async def bench(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bench]:
    """Give an open driver, on guests in memory and on guests in a folder."""
    in_folder: bool = request.param == "folder"
    hypervisor = SimulatedHypervisor(tmp_path, clock=LoopClock()) if in_folder else SimulatedHypervisor()
    bench = Bench(hypervisor)
    await bench.driver.open(bench.note)
    yield bench
    await bench.driver.close()
    hypervisor.close()


# ---- what a guest does


async def test_a_guest_shuts_down_at_once_by_default(bench: Bench) -> None:
    """Within 50 ms, told by an event, and its console says all of it."""
    await bench.boot()
    await bench.driver.request_shutdown("a")
    assert await bench.state() == RUNNING
    await asyncio.sleep(0.05 + NEAR)
    assert [instance_id for _, instance_id in bench.told] == ["a", "a", "a"]
    assert bench.told_at("a") == pytest.approx(0.05, abs=NEAR)
    assert await bench.state() == OFF_BY_ITSELF
    assert await bench.console() == ["up", "power button pressed", "shutting down", "powered off"]


async def test_a_slow_guest_takes_its_time_however_often_it_is_asked(bench: Bench) -> None:
    """The time runs from the first request."""
    await bench.boot("stateward.shutdown=5")
    for _ in range(2):
        await bench.driver.request_shutdown("a")
        await asyncio.sleep(2)
    await asyncio.sleep(1 - NEAR)
    assert await bench.state() == RUNNING
    await asyncio.sleep(2 * NEAR)
    assert await bench.state() == OFF_BY_ITSELF
    assert await bench.console() == [
        "up",
        "power button pressed",
        "shutting down",
        "power button pressed",
        "powered off",
    ]


async def test_a_guest_may_ignore_its_power_button(bench: Bench) -> None:
    """It notes that it was pressed, and runs on; ``shutdown`` changes nothing about that."""
    await bench.boot("quiet stateward.acpi=ignore stateward.shutdown=1")
    await bench.driver.request_shutdown("a")
    await asyncio.sleep(100)
    assert await bench.state() == RUNNING
    assert await bench.console() == ["up", "power button pressed"]


async def test_a_press_while_it_boots_is_lost(bench: Bench) -> None:
    """And the one after is not."""
    await bench.boot("stateward.boot=3")
    await bench.driver.request_shutdown("a")
    assert await bench.console() == []
    await asyncio.sleep(3 + NEAR)
    assert await bench.console() == ["up"]
    assert await bench.state() == RUNNING
    await bench.driver.request_shutdown("a")
    await asyncio.sleep(0.1)
    assert await bench.state() == OFF_BY_ITSELF


async def test_a_guest_may_power_itself_off(bench: Bench) -> None:
    """Counted from when it is up, and told at that moment."""
    await bench.boot("stateward.boot=2 stateward.poweroff_after=10")
    await asyncio.sleep(12 - NEAR)
    assert await bench.state() == RUNNING
    await asyncio.sleep(2 * NEAR)
    assert await bench.state() == OFF_BY_ITSELF
    assert bench.told_at("a") == pytest.approx(12, abs=NEAR)
    assert await bench.console() == ["up", "shutting down", "powered off"]


async def test_a_guest_may_crash(bench: Bench) -> None:
    """It is off after, and can be booted again, to crash again."""
    await bench.boot("stateward.panic_after=4")
    await asyncio.sleep(4 + NEAR)
    assert await bench.state() == CRASHED
    assert await bench.console() == ["up"]
    await bench.driver.power_on("a")
    assert await bench.state() == RUNNING
    await asyncio.sleep(4 + NEAR)
    assert await bench.state() == CRASHED


async def test_whatever_comes_first_happens(bench: Bench) -> None:
    """A guest that is shutting down can still crash, and can power itself off before its time."""
    await bench.boot("stateward.shutdown=9 stateward.panic_after=4", "crashing")
    await bench.boot("stateward.shutdown=9 stateward.poweroff_after=4", "leaving")
    for instance_id in ("crashing", "leaving"):
        await bench.driver.request_shutdown(instance_id)
    await asyncio.sleep(4 + NEAR)
    assert await bench.state("crashing") == CRASHED
    assert await bench.state("leaving") == OFF_BY_ITSELF
    assert await bench.console("leaving") == ["up", "power button pressed", "shutting down", "powered off"]


async def test_a_guest_that_takes_no_time_is_off_when_it_was_asked(bench: Bench) -> None:
    """Zero is a time, too."""
    await bench.boot("stateward.shutdown=0")
    await bench.driver.request_shutdown("a")
    assert await bench.state() == OFF_BY_ITSELF


@pytest.mark.parametrize("word", ["-1", "soon", "inf", "nan", ""])
async def test_a_word_that_cannot_be_read_is_passed_over(bench: Bench, word: str) -> None:
    """The guest behaves as if it were not there."""
    names = ("boot", "shutdown", "poweroff_after", "panic_after")
    await bench.boot(" ".join(f"stateward.{name}={word}" for name in names))
    await asyncio.sleep(100)
    assert await bench.console() == ["up"]
    await bench.driver.request_shutdown("a")
    await asyncio.sleep(0.05 + NEAR)
    assert await bench.state() == OFF_BY_ITSELF


async def test_an_image_without_a_command_line_makes_a_plain_guest(bench: Bench) -> None:
    """No property at all is the common case."""
    spec = spec_of()
    spec = GuestSpec(
        **{field: getattr(spec, field) for field in spec.__struct_fields__ if field != "image"},
        image=ImageFacts(id="image", disk_format="raw"),
    )
    await bench.driver.prepare_disk(spec)
    await bench.driver.define(spec)
    await bench.driver.power_on("a")
    assert await bench.console() == ["up"]


async def test_a_new_definition_counts_from_the_next_boot(bench: Bench) -> None:
    """As with a real hypervisor; the running guest stays as it was."""
    await bench.boot("stateward.acpi=ignore")
    await bench.driver.define(spec_of(words="stateward.shutdown=0"))
    await bench.driver.request_shutdown("a")
    assert await bench.state() == RUNNING
    await bench.driver.power_off("a")
    await bench.driver.power_on("a")
    await bench.driver.request_shutdown("a")
    assert await bench.state() == OFF_BY_ITSELF


async def test_time_stands_still_for_a_halted_guest(bench: Bench) -> None:
    """Paused or saved, what it was doing takes as much longer."""
    await bench.boot("stateward.shutdown=5")
    await bench.driver.request_shutdown("a")
    await asyncio.sleep(2)
    await bench.driver.pause("a")
    await asyncio.sleep(100)
    assert await bench.state() == (Observed.PAUSED, Cause.OPERATOR)
    await bench.driver.save_memory("a")
    await asyncio.sleep(100)
    assert await bench.state() == SAVED
    await bench.driver.restore_memory("a")
    await asyncio.sleep(3 - NEAR)
    assert await bench.state() == RUNNING
    await asyncio.sleep(2 * NEAR)
    assert await bench.state() == OFF_BY_ITSELF


async def test_a_guest_halted_while_it_boots_is_up_that_much_later(bench: Bench) -> None:
    """Its booting stands still, too."""
    await bench.boot("stateward.boot=5")
    await asyncio.sleep(4)
    await bench.driver.pause("a")
    await asyncio.sleep(100)
    await bench.driver.unpause("a")
    await asyncio.sleep(1 - NEAR)
    assert await bench.console() == []
    await asyncio.sleep(2 * NEAR)
    assert await bench.console() == ["up"]


async def test_a_paused_guest_is_not_asked(bench: Bench) -> None:
    """Nothing waits for it when it is let run."""
    await bench.boot()
    await bench.driver.pause("a")
    await bench.driver.request_shutdown("a")
    await bench.driver.unpause("a")
    await asyncio.sleep(100)
    assert await bench.state() == RUNNING
    assert await bench.console() == ["up"]


async def test_a_console_keeps_its_end(bench: Bench) -> None:
    """A guest that is asked for ever does not grow for ever."""
    await bench.boot("stateward.acpi=ignore")
    for _ in range(300):
        await bench.driver.request_shutdown("a")
    assert await bench.console() == ["power button pressed"] * 200


# ---- what the driver refuses


async def test_refusals_say_what_to_do(bench: Bench) -> None:
    """The sentences reach people as they are."""
    with pytest.raises(GuestMissing, match=r"^The simulated hypervisor has no guest a\.$"):
        await bench.driver.power_on("a")
    with pytest.raises(DriverError, match=r"^The disk of guest a is not there: prepare it before"):
        await bench.driver.define(spec_of())
    await bench.boot()
    with pytest.raises(DriverError, match=r"^The guest is running: take its power before it is removed\.$"):
        await bench.driver.remove("a")
    await bench.driver.pause("a")
    with pytest.raises(
        DriverError, match=r"^The guest is paused: take its power, or let it run on, before it boots\.$"
    ):
        await bench.driver.power_on("a")
    await bench.driver.save_memory("a")
    with pytest.raises(
        DriverError, match=r"^The guest is suspended: a boot would throw its saved memory away; reboot it"
    ):
        await bench.driver.power_on("a")
    await bench.driver.discard_memory("a")
    assert await bench.state() == (Observed.SHUTOFF, Cause.OTHER)
    with pytest.raises(
        DriverError, match=r"^The guest is shutoff: it has no saved memory to start from\.$"
    ) as refusal:
        await bench.driver.restore_memory("a")
    assert not isinstance(refusal.value, GuestMissing)


async def test_a_wreck_left_in_memory_must_lose_its_power_first(bench: Bench) -> None:
    """A crashed guest is neither off nor alive."""
    await bench.boot()
    bench.hypervisor.crash("a", kept=True)
    assert await bench.state() == (Observed.CRASHED, Cause.CRASHED)
    for refused in (
        bench.driver.power_on,
        bench.driver.pause,
        bench.driver.unpause,
        bench.driver.save_memory,
    ):
        with pytest.raises(DriverError, match=r"^The guest is crashed: "):
            await refused("a")
    with pytest.raises(DriverError, match=r"^The guest is crashed: take its power"):
        await bench.driver.remove("a")
    await bench.driver.request_shutdown("a")
    assert await bench.state() == (Observed.CRASHED, Cause.CRASHED)
    await bench.driver.power_off("a")
    assert await bench.state() == DESTROYED


async def test_a_driver_that_is_not_open_knows_nothing() -> None:
    """Neither before nor after; the guests are none the worse."""
    bench = Bench(SimulatedHypervisor())
    with pytest.raises(HypervisorUnavailable, match="not connected"):
        await bench.driver.list()
    await bench.driver.open(bench.note)
    await bench.boot()
    await bench.driver.close()
    with pytest.raises(HypervisorUnavailable, match="not connected"):
        await bench.driver.power_off("a")
    await bench.driver.open(bench.note)
    assert await bench.state() == RUNNING


async def test_an_image_that_is_missing_fails_when_the_disk_is_made(tmp_path: Path) -> None:
    """And is not asked for when the disk is there."""

    class Images(FolderImages):
        asked: list[str] = []  # noqa: RUF012 (one store only)

        async def path(self, image_id: str) -> Path:
            self.asked.append(image_id)
            return await super().path(image_id)

    (tmp_path / "image").touch()
    images = Images(tmp_path)
    driver = SimulatedDriver(SimulatedHypervisor(), images=images)
    await driver.open(lambda _: None)
    await driver.prepare_disk(spec_of())
    (tmp_path / "image").unlink()
    await driver.prepare_disk(spec_of())
    assert images.asked == ["image"]
    with pytest.raises(DriverError, match="no image"):
        await driver.prepare_disk(spec_of("b"))
    with pytest.raises(DriverError, match="disk"):
        await driver.define(spec_of("b"))


# ---- behind the driver's back


def reboot(hypervisor: SimulatedHypervisor, _: str) -> None:
    """Reboot the whole host."""
    hypervisor.reboot_host()


def fill_the_disk(hypervisor: SimulatedHypervisor, instance_id: str) -> None:
    """Halt a guest as a full disk does."""
    hypervisor.pause(instance_id, Cause.IO_ERROR)


@pytest.mark.parametrize(
    ("act", "state"),
    [
        (SimulatedHypervisor.destroy, DESTROYED),
        (SimulatedHypervisor.crash, CRASHED),
        (SimulatedHypervisor.pause, (Observed.PAUSED, Cause.OPERATOR)),
        (SimulatedHypervisor.save, SAVED),
        (SimulatedHypervisor.undefine, (Observed.MISSING, Cause.OTHER)),
        (SimulatedHypervisor.guest_shutdown, OFF_BY_ITSELF),
        (reboot, (Observed.SHUTOFF, Cause.OTHER)),
        (fill_the_disk, (Observed.PAUSED, Cause.IO_ERROR)),
    ],
)
async def test_what_happens_behind_our_back_is_seen_and_told(
    bench: Bench, act: Callable[[SimulatedHypervisor, str], None], state: tuple[Observed, Cause]
) -> None:
    """At once, with its cause."""
    await bench.boot()
    await asyncio.sleep(0)
    bench.told.clear()
    act(bench.hypervisor, "a")
    assert bench.told == []
    await asyncio.sleep(0)
    # A boot is told of as well, before the guests.
    assert [instance_id for _, instance_id in bench.told if instance_id is not None] == ["a"]
    assert await bench.state() == state


async def test_guests_are_let_run_and_started_behind_our_back(bench: Bench) -> None:
    """A start uses the saved memory where there is one, as libvirt's does."""
    await bench.boot("stateward.poweroff_after=60")
    await asyncio.sleep(50)
    bench.hypervisor.pause("a")
    bench.hypervisor.resume("a")
    assert await bench.state() == RUNNING
    bench.hypervisor.save("a")
    bench.hypervisor.start("a")
    assert await bench.state() == RUNNING
    await asyncio.sleep(10 + NEAR)
    assert await bench.state() == OFF_BY_ITSELF
    bench.hypervisor.start("a")
    assert await bench.state() == RUNNING
    assert await bench.console() == ["up", "shutting down", "powered off", "up"]


async def test_a_test_that_acts_on_the_wrong_guest_is_told(bench: Bench) -> None:
    """Acting on nothing would hide a mistake in the test."""
    hypervisor = bench.hypervisor
    verbs = (hypervisor.destroy, hypervisor.crash, hypervisor.pause, hypervisor.resume, hypervisor.save)
    for verb in (*verbs, hypervisor.start, hypervisor.undefine, hypervisor.guest_shutdown):
        with pytest.raises(GuestMissing):
            verb("a")
    await bench.boot()
    with pytest.raises(DriverError, match=r"^The guest is running: it was started already\.$"):
        hypervisor.start("a")
    hypervisor.destroy("a")
    for verb in verbs:
        with pytest.raises(DriverError, match=r"^The guest is shutoff: "):
            verb("a")


async def test_a_guest_undefined_behind_our_back_keeps_its_disk(bench: Bench) -> None:
    """It can be defined again at once, without its fence, and removing it takes the disk as well."""
    await bench.boot()
    await bench.driver.mark_fence("a", 7)
    bench.hypervisor.undefine("a")
    assert await bench.state() == (Observed.MISSING, Cause.OTHER)
    await bench.driver.define(spec_of())
    assert (await bench.driver.get("a")).fence == 0
    bench.hypervisor.undefine("a")
    await bench.driver.remove("a")
    with pytest.raises(DriverError, match="disk"):
        await bench.driver.define(spec_of())


async def test_a_rebooted_host_keeps_what_was_on_disk(bench: Bench) -> None:
    """Running, paused and crashed guests are off; saved ones stay saved; off ones keep their cause."""
    for instance_id in ("running", "paused", "wreck", "saved", "stopped"):
        await bench.boot(instance_id=instance_id)
    await bench.driver.pause("paused")
    bench.hypervisor.crash("wreck", kept=True)
    await bench.driver.save_memory("saved")
    await bench.driver.power_off("stopped")
    bench.hypervisor.reboot_host()
    found = {guest.instance_id: (guest.observed, guest.cause) for guest in await bench.driver.list()}
    lost = (Observed.SHUTOFF, Cause.OTHER)
    assert found == {"running": lost, "paused": lost, "wreck": lost, "saved": SAVED, "stopped": DESTROYED}


# ---- events


async def test_every_change_is_told_once(bench: Bench) -> None:
    """Whoever made it; what changes nothing is not told, nor are fences and disks."""
    await bench.driver.prepare_disk(spec_of())
    steps: list[tuple[Callable[[], object], int]] = [
        (lambda: bench.driver.define(spec_of()), 1),
        (lambda: bench.driver.define(spec_of()), 0),
        (lambda: bench.driver.mark_fence("a", 3), 0),
        (lambda: bench.driver.power_on("a"), 1),
        (lambda: bench.driver.power_on("a"), 0),
        (lambda: bench.driver.pause("a"), 1),
        (lambda: bench.driver.unpause("a"), 1),
        (lambda: bench.driver.save_memory("a"), 1),
        (lambda: bench.driver.restore_memory("a"), 1),
        (lambda: bench.driver.power_off("a"), 1),
        (lambda: bench.driver.power_off("a"), 0),
        (lambda: bench.driver.remove("a"), 1),
        (lambda: bench.driver.remove("a"), 0),
    ]
    for number, (step, times) in enumerate(steps):
        bench.told.clear()
        answer = step()
        if asyncio.iscoroutine(answer):
            await answer
        await asyncio.sleep(0)
        assert (number, [instance_id for _, instance_id in bench.told]) == (number, ["a"] * times)


async def test_a_change_is_seen_before_it_is_told(bench: Bench) -> None:
    """Whoever looks because he was told sees it."""
    seen: list[tuple[Observed, Cause]] = []
    tasks: list[asyncio.Task[None]] = []

    async def look() -> None:
        seen.append(await second.state())

    second = Bench(bench.hypervisor)
    await second.driver.open(lambda _: tasks.append(asyncio.ensure_future(look())))
    await bench.boot("stateward.poweroff_after=5")
    await asyncio.sleep(6)
    assert seen[-1] == OFF_BY_ITSELF
    await second.driver.close()


async def test_two_drivers_are_both_told_until_they_close(bench: Bench) -> None:
    """An event that was on its way when a driver closed does not reach it."""
    second = Bench(bench.hypervisor)
    await second.driver.open(second.note)
    await bench.boot()
    await asyncio.sleep(0)
    assert second.told == bench.told != []
    second.told.clear()
    bench.told.clear()
    bench.hypervisor.destroy("a")
    await second.driver.close()
    await asyncio.sleep(0)
    assert (len(second.told), len(bench.told)) == (0, 1)


async def test_file_systems_are_frozen_by_an_agent_that_answers(bench: Bench) -> None:
    """Once, also when it is repeated; a mute agent is waited for as long as a real one."""
    await bench.boot("stateward.agent=answer")
    for _ in range(2):
        await bench.driver.snapshot(spec_of(), "image", quiesce=True)
    assert (await bench.console())[-2:] == ["file systems frozen", "file systems thawed"]
    assert bench.hypervisor.guest("a").snapshots == ("image",)
    await bench.boot("stateward.agent=mute", "b")
    began = asyncio.get_running_loop().time()
    with pytest.raises(AgentSilent):
        await bench.driver.snapshot(spec_of("b"), "other", quiesce=True)
    assert asyncio.get_running_loop().time() - began == pytest.approx(AGENT_SECONDS, abs=NEAR)
    assert bench.hypervisor.guest("b").snapshots == ()


async def test_a_rescued_guest_behaves_as_its_rescue_image_says(bench: Bench) -> None:
    """And as its own again after; its disks are told apart by their images."""
    await bench.boot("stateward.poweroff_after=1")
    await asyncio.sleep(2)
    spec = spec_of(words="stateward.poweroff_after=1")
    rescued = msgspec.structs.replace(spec, rescue=ImageFacts(id="tools", disk_format="raw"))
    await bench.driver.prepare_rescue_disk(rescued)
    await bench.driver.define(rescued)
    await bench.driver.power_on("a")
    await asyncio.sleep(2)
    assert await bench.state() == RUNNING
    guest = bench.hypervisor.guest("a")
    assert (guest.disk_image, guest.rescue_image) == ("image", "tools")
    await bench.driver.power_off("a")
    await bench.driver.discard_rescue_disk("a")
    await bench.driver.define(spec)
    await bench.driver.power_on("a")
    await asyncio.sleep(2)
    assert await bench.state() == OFF_BY_ITSELF


async def test_a_driver_without_events_tells_nothing() -> None:
    """Only polls see changes then."""
    silent = msgspec.structs.replace(EVERYTHING, events=False)
    bench = Bench(SimulatedHypervisor())
    bench.driver = SimulatedDriver(bench.hypervisor, capabilities=silent)
    await bench.driver.open(bench.note)
    await bench.boot("stateward.poweroff_after=1")
    await asyncio.sleep(2)
    assert bench.told == []
    assert await bench.state() == OFF_BY_ITSELF


async def test_a_restarted_agent_is_told_of_what_comes() -> None:
    """Timers do not need the driver that was there when the guest was asked."""
    hypervisor = SimulatedHypervisor()
    first = Bench(hypervisor)
    await first.driver.open(first.note)
    await first.boot("stateward.shutdown=5", "slow")
    await first.boot("stateward.shutdown=1", "quick")
    for instance_id in ("slow", "quick"):
        await first.driver.request_shutdown(instance_id)
    await first.driver.close()
    await asyncio.sleep(3)
    second = Bench(hypervisor)
    await second.driver.open(second.note)
    assert await second.state("quick") == OFF_BY_ITSELF
    assert await second.state("slow") == RUNNING
    await asyncio.sleep(3)
    assert second.told_at("slow") == pytest.approx(5, abs=NEAR)
    await second.driver.close()


# ---- disturbances


async def test_a_hypervisor_that_is_away_answers_nothing_and_changes_nothing(bench: Bench) -> None:
    """Its guests live on; one call of ``changed(None)`` says that it is back."""
    await bench.boot("stateward.shutdown=5")
    await bench.driver.request_shutdown("a")
    await asyncio.sleep(1)
    bench.told.clear()
    bench.hypervisor.unavailable()
    driver = bench.driver
    calls = [
        driver.facts(),
        driver.list(),
        *(call("a") for call in (driver.get, driver.power_off, driver.remove, driver.console)),
        driver.prepare_disk(spec_of("b")),
    ]
    for call in calls:
        with pytest.raises(HypervisorUnavailable, match=r"^The simulated hypervisor does not answer\.$"):
            await call
    await asyncio.sleep(10)
    assert bench.told == []
    bench.hypervisor.available()
    await asyncio.sleep(0)
    assert [instance_id for _, instance_id in bench.told] == [None]
    assert await bench.state() == OFF_BY_ITSELF
    bench.hypervisor.available()
    await asyncio.sleep(0)
    assert len(bench.told) == 1


async def test_a_driver_opens_while_the_hypervisor_is_away(bench: Bench) -> None:
    """And is told when it comes back."""
    bench.hypervisor.unavailable()
    late = Bench(bench.hypervisor)
    await late.driver.open(late.note)
    bench.hypervisor.available()
    await asyncio.sleep(0)
    assert [instance_id for _, instance_id in late.told] == [None]
    await late.driver.close()


async def test_calls_fail_before_or_after_their_effect(bench: Bench) -> None:
    """In the order in which they were told to, and only so often."""
    await bench.boot()
    lost = HypervisorUnavailable("lost")
    bench.hypervisor.fail_next("power_off", DriverError("refused"))
    bench.hypervisor.fail_next("power_off", lost, after=True)
    with pytest.raises(DriverError, match="refused"):
        await bench.driver.power_off("a")
    assert await bench.state() == RUNNING
    with pytest.raises(HypervisorUnavailable, match="lost"):
        await bench.driver.power_off("a")
    assert await bench.state() == DESTROYED
    await bench.driver.power_off("a")
    assert [call.error for call in bench.hypervisor.calls if call.name == "power_off"][1:] == [lost, None]


async def test_a_call_hangs_until_it_is_released(bench: Bench) -> None:
    """Nothing has come of it until then, and other calls go past it."""
    await bench.boot()
    hang: Hang = bench.hypervisor.hang_next("power_off")
    hanging = asyncio.ensure_future(bench.driver.power_off("a"))
    await hang.reached.wait()
    await asyncio.sleep(1000)
    assert await bench.state() == RUNNING
    assert not hanging.done()
    hang.release()
    await hanging
    assert await bench.state() == DESTROYED


async def test_a_hanging_call_that_is_cancelled_changes_nothing(bench: Bench) -> None:
    """It is remembered as one that never ended."""
    await bench.boot()
    hang = bench.hypervisor.hang_next("power_off")
    hanging = asyncio.ensure_future(bench.driver.power_off("a"))
    await hang.reached.wait()
    hanging.cancel()
    await asyncio.wait([hanging])
    hang.release()
    assert await bench.state() == RUNNING
    (call,) = (call for call in bench.hypervisor.calls if call.name == "power_off")
    assert (call.ended, call.error) == (None, None)


async def test_calls_take_their_latency_and_are_recorded(bench: Bench) -> None:
    """With the loop's time of their beginning and end; the effect comes at the end."""
    await bench.boot("stateward.shutdown=1")
    bench.hypervisor.calls.clear()
    bench.hypervisor.set_latency(0.5)
    bench.hypervisor.set_latency(2, "request_shutdown")
    await bench.driver.request_shutdown("a")
    bench.hypervisor.set_latency(0)
    await asyncio.sleep(0.25)
    await bench.driver.list()
    bench.hypervisor.set_latency(0.5)
    await asyncio.sleep(0.5)
    assert await bench.driver.get("a") == Guest(instance_id="a", observed=Observed.SHUTOFF, cause=Cause.GUEST)
    rows = [
        (call.name, call.instance_id, round(call.began, 2), round(call.ended or -1, 2))
        for call in bench.hypervisor.calls
    ]
    assert rows == [
        ("request_shutdown", "a", 0.0, 2.0),
        ("list", None, 2.25, 2.25),
        ("get", "a", 2.75, 3.25),
    ]


# ---- the host


async def test_the_host_is_as_large_as_it_was_made() -> None:
    """Its disk in use is what was promised to guests."""
    driver = SimulatedDriver(SimulatedHypervisor(size=HostSize(vcpus=4, memory=4096, disk=50)))
    await driver.open(lambda _: None)
    for instance_id, disk in (("a", 10), ("b", 5), ("c", 0)):
        await driver.prepare_disk(spec_of(instance_id, disk=disk))
    await driver.remove("b")
    facts = await driver.facts()
    assert (facts.hypervisor_type, facts.vcpus, facts.memory, facts.disk, facts.disk_used) == (
        "simulated",
        4,
        4096,
        50,
        10,
    )


async def test_a_host_is_large_by_default() -> None:
    """Large enough that no test runs out of it by accident."""
    driver = SimulatedDriver(SimulatedHypervisor())
    await driver.open(lambda _: None)
    facts = await driver.facts()
    assert (facts.vcpus, facts.memory, facts.disk, facts.disk_used) == (1000, 1048576, 10240, 0)


# ---- cost


@pytest.mark.looptime(False)  # noqa: FBT003 - looptime's own way to switch itself off
async def test_creating_and_listing_cost_next_to_nothing(bench: Bench) -> None:
    """A hundred guests in 50 ms, and a list of a thousand in 5 ms, of processor time; the best of several counts."""

    async def seconds(work: Callable[[], object]) -> float:
        begin = time.process_time()
        answer = work()
        if asyncio.iscoroutine(answer):
            await answer
        return time.process_time() - begin

    numbers = iter(range(1000))

    async def create() -> None:
        for _ in range(100):
            await bench.boot("stateward.shutdown=100", f"guest-{next(numbers)}")

    assert min([await seconds(create) for _ in range(10)]) < 0.05
    for instance_id in [guest.instance_id for guest in await bench.driver.list()]:
        await bench.driver.request_shutdown(instance_id)
    assert len(await bench.driver.list()) == 1000
    assert min([await seconds(bench.driver.list) for _ in range(20)]) < 0.005
