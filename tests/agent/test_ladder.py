"""The ladder: how each guest is asked, what is done at the end of its time, and what orders make of it (R9, B4).

On virtual time and simulated guests, behind a bus that doubles and delays; the drivers of the last part are scripts.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import looptime
import msgspec
import pytest
import pytest_asyncio

from stateward.agent.driver import DriverError, HypervisorUnavailable
from stateward.agent.simulated import SimulatedDriver, SimulatedHypervisor
from stateward.agent.simulated.driver import EVERYTHING
from stateward.agent.telling import TELL_SECONDS
from stateward.bus.memory import Disorder
from stateward.domain.actions import ACTIONS, key
from stateward.domain.records import Command, Outcome, Result, WaitsFor
from stateward.domain.shutdown import AtDeadline, Ending, Rung
from stateward.domain.states import Cause, Observed
from stateward.domain.steps import LOOKS, Step
from tests.agent.simulated_bench import NEAR
from tests.agent.workbench import BUS, Workbench

pytestmark = [pytest.mark.asyncio, pytest.mark.looptime]

IGNORES = "stateward.acpi=ignore"
FORCE, FAIL, SAVE = AtDeadline
EXTEND, ESCALATE, CANCEL = Command


@pytest_asyncio.fixture(params=[1, 2], ids="disorder-{}".format)
async def bench(request: pytest.FixtureRequest, swift_folder: Path) -> AsyncIterator[Workbench]:
    """Give a running agent, behind a bus that misbehaves in one of two ways."""
    bench = Workbench(swift_folder, disorder=Disorder(seed=request.param, duplicate=0.5))
    with looptime.enabled(strict=True):
        await bench.start()
    yield bench
    with looptime.enabled(strict=True):
        await bench.stop()


def now() -> float:
    return asyncio.get_running_loop().time()


async def until(at: float) -> None:
    await asyncio.sleep(at - now())


async def stop_that_waits(
    bench: Workbench, *, seconds: int = 60, at_deadline: AtDeadline = FORCE, words: str = IGNORES
) -> tuple[str, float]:
    """Begin to stop a guest, and return the operation and when the guest was first asked."""
    await bench.do("create", 1, words=words)
    stop = await bench.send(bench.dispatch("stop", 2, seconds=seconds, at_deadline=at_deadline))
    return stop, (await bench.called("request_shutdown")).began


def outcome(result: Result) -> tuple[Outcome, Ending | None, str | None]:
    return result.outcome, result.ending, result.message


# ---- the table


async def test_no_row_does_anything_before_its_guest_s_shutdown() -> None:
    """But to look: so a wait can be cancelled, and a guest left on, with nothing to undo."""
    before = {
        key(row): row.steps[: row.steps.index(Step.SHUT_DOWN)]
        for row in ACTIONS
        if Step.SHUT_DOWN in row.steps
    }
    # What takes an adopted guest back marks it, and does nothing to it.
    harmless = LOOKS | {Step.TAKE_BACK}
    assert {name: steps for name, steps in before.items() if not harmless.issuperset(steps)} == {}


async def test_what_may_be_saved_ends_with_a_guest_that_is_off() -> None:
    """A row that goes on with the guest has no use for one that sleeps."""
    rows = [row for row in ACTIONS if row.if_saved is not None]
    assert {row.steps for row in rows} == {(Step.SHUT_DOWN, Step.POWER_OFF)}
    assert {row.wants for row in rows} == {Observed.SHUTOFF}


# ---- the choice at the deadline


async def test_fail_leaves_the_guest_on(bench: Workbench) -> None:
    """The operation fails and says so, at the deadline; no power is taken, then or later."""
    stop, pressed = await stop_that_waits(bench, seconds=12, at_deadline=FAIL)
    result = await bench.result(stop)
    assert now() == pytest.approx(pressed + 12, abs=2 * BUS + NEAR)
    assert outcome(result) == (
        Outcome.FAILED,
        Ending.LEFT_ON,
        "The guest did not shut down within 12 s (request) and was left on, as was chosen (image).",
    )
    await asyncio.sleep(100)
    assert bench.observed() is Observed.RUNNING
    assert bench.calls("power_off") == []


async def test_save_writes_the_memory_to_disk(bench: Workbench) -> None:
    """At the deadline, and the power that is taken after it keeps what was saved."""
    stop, pressed = await stop_that_waits(bench, seconds=12, at_deadline=SAVE)
    result = await bench.result(stop)
    assert bench.calls("save_memory")[0].began == pytest.approx(pressed + 12, abs=NEAR)
    assert outcome(result) == (
        Outcome.SUCCEEDED,
        Ending.SAVED,
        "the guest did not shut down within 12 s (request); its memory was saved",
    )
    assert bench.observed() is Observed.SUSPENDED


@pytest.mark.parametrize("at_deadline", AtDeadline)
async def test_a_guest_that_is_off_in_time_has_no_use_for_a_choice(
    bench: Workbench, *, at_deadline: AtDeadline
) -> None:
    """It went off by itself, and stopped is what it is."""
    stop, _pressed = await stop_that_waits(
        bench, seconds=12, at_deadline=at_deadline, words="stateward.shutdown=4"
    )
    assert outcome(await bench.result(stop)) == (
        Outcome.SUCCEEDED,
        Ending.OFF,
        "the guest shut itself down after 4.0 s",
    )
    assert bench.observed() is Observed.SHUTOFF


@pytest.mark.parametrize(
    ("at_deadline", "expected", "observed"),
    [
        (
            FORCE,
            (Outcome.SUCCEEDED, Ending.FORCED, "the guest was halted and could not be asked and was forced"),
            Observed.SHUTOFF,
        ),
        (
            FAIL,
            (
                Outcome.FAILED,
                Ending.LEFT_ON,
                "The guest was halted and could not be asked and was left on, as was chosen (image).",
            ),
            Observed.PAUSED,
        ),
        (
            SAVE,
            (
                Outcome.SUCCEEDED,
                Ending.SAVED,
                "the guest was halted and could not be asked; its memory was saved",
            ),
            Observed.SUSPENDED,
        ),
    ],
)
async def test_a_paused_guest_is_never_asked(
    bench: Workbench,
    *,
    at_deadline: AtDeadline,
    expected: tuple[Outcome, Ending, str],
    observed: Observed,
) -> None:
    """Its choice counts at once, and let run on it has no power button waiting for it."""
    await bench.do("create", 1)
    bench.hypervisor.pause("a")
    began = now()
    result = await bench.do("stop", 2, seconds=60, at_deadline=at_deadline)
    assert now() - began <= 2 * BUS + NEAR
    assert outcome(result) == expected
    assert bench.observed() is observed
    assert bench.calls("request_shutdown") == []
    if at_deadline is FAIL:
        bench.hypervisor.resume("a")
        await asyncio.sleep(100)
        assert bench.observed() is Observed.RUNNING


async def test_a_guest_that_is_halted_in_its_wait_is_not_pressed_again(bench: Workbench) -> None:
    """What was pressed before is all that it will hear of when it is let run."""
    stop, pressed = await stop_that_waits(bench, seconds=22, at_deadline=FAIL)
    await until(pressed + 7)
    bench.hypervisor.pause("a")
    assert (await bench.result(stop)).ending is Ending.LEFT_ON
    assert bench.hypervisor.guest("a").console.count("stateward-guest: power button pressed") == 2


@pytest.mark.parametrize("at_deadline", [FAIL, SAVE])
async def test_no_time_at_all_is_a_deadline_too(bench: Workbench, *, at_deadline: AtDeadline) -> None:
    """Nothing is asked, and what was chosen is done at once."""
    await bench.do("create", 1)
    result = await bench.do("stop", 2, seconds=0, at_deadline=at_deadline)
    assert bench.calls("request_shutdown") == []
    assert (result.ending, bench.observed()) == (
        (Ending.LEFT_ON, Observed.RUNNING) if at_deadline is FAIL else (Ending.SAVED, Observed.SUSPENDED)
    )


async def test_a_memory_that_cannot_be_saved_leaves_the_guest_on(bench: Workbench) -> None:
    """Nobody chose to lose it; the reason is told."""
    bench.hypervisor.fail_next("save_memory", DriverError("The disk is full."))
    stop, _pressed = await stop_that_waits(bench, seconds=5, at_deadline=SAVE)
    assert outcome(await bench.result(stop)) == (
        Outcome.FAILED,
        Ending.LEFT_ON,
        (
            "The guest did not shut down within 5 s (request); its memory could not be saved, "
            "so it was left on: The disk is full."
        ),
    )
    assert bench.observed() is Observed.RUNNING


async def test_a_hypervisor_that_cannot_save_leaves_the_guest_on(swift_folder: Path) -> None:
    """It says so itself; nothing is tried."""
    bench = Workbench(
        swift_folder, disorder=None, capabilities=msgspec.structs.replace(EVERYTHING, suspend=False)
    )
    await bench.start()
    stop, _pressed = await stop_that_waits(bench, seconds=5, at_deadline=SAVE)
    result = await bench.result(stop)
    assert result.ending is Ending.LEFT_ON
    assert result.message is not None
    assert "its hypervisor cannot save its memory, so it was left on" in result.message
    assert bench.calls("save_memory") == []
    await bench.stop()


async def test_a_guest_that_goes_off_under_the_save_is_off(bench: Workbench) -> None:
    """Stopped, and not failed."""
    hang = bench.hypervisor.hang_next("save_memory")
    stop, _pressed = await stop_that_waits(bench, seconds=5, at_deadline=SAVE)
    await hang.reached.wait()
    bench.hypervisor.guest_shutdown("a")
    hang.release()
    result = await bench.result(stop)
    assert (result.outcome, result.ending) == (Outcome.SUCCEEDED, Ending.OFF)
    assert bench.observed() is Observed.SHUTOFF


async def test_a_hypervisor_away_at_the_save_is_waited_for(bench: Workbench) -> None:
    """As for every step."""
    bench.hypervisor.fail_next("save_memory", HypervisorUnavailable("away"))
    stop, _pressed = await stop_that_waits(bench, seconds=5, at_deadline=SAVE)
    assert (await bench.result(stop)).ending is Ending.SAVED


# ---- orders


async def test_an_extension_moves_the_deadline(bench: Workbench) -> None:
    """It counts from when the guest was first asked, and the latest stands however they arrive."""
    stop, pressed = await stop_that_waits(bench, seconds=10)
    await until(pressed + 8)
    for number, seconds in ((2, 30), (1, 20)):
        await bench.order(stop, number, EXTEND, seconds=seconds)
    result = await bench.result(stop)
    assert bench.calls("power_off")[0].began == pytest.approx(pressed + 30, abs=NEAR)
    assert result.shutdown == "the guest did not shut down within 30 s (extended) and was forced"


async def test_an_extension_gives_a_slow_guest_its_time(bench: Workbench) -> None:
    """Ten seconds were not enough; it goes off by itself."""
    stop, pressed = await stop_that_waits(bench, seconds=10, words="stateward.shutdown=20")
    await until(pressed + 5)
    await bench.order(stop, 1, EXTEND, seconds=60)
    result = await bench.result(stop)
    assert (result.ending, result.shutdown) == (Ending.OFF, "the guest shut itself down after 20.0 s")


@pytest.mark.parametrize(
    ("behind", "said"),
    [
        (SimulatedHypervisor.crash, "the guest crashed after 7.0 s"),
        (SimulatedHypervisor.destroy, "the guest's power was taken by somebody else after 7.0 s"),
    ],
    ids=["crashed", "destroyed"],
)
async def test_what_went_off_otherwise_did_not_shut_itself_down(
    bench: Workbench, behind: Callable[[SimulatedHypervisor, str], None], said: str
) -> None:
    """It is off, as was wanted; but whoever reads of it must not believe that its file systems are clean (B4)."""
    stop, pressed = await stop_that_waits(bench, seconds=60)
    await until(pressed + 7)
    behind(bench.hypervisor, "a")
    result = await bench.result(stop)
    assert (result.ending, result.shutdown) == (Ending.OFF, said)


@pytest.mark.parametrize("at_deadline", AtDeadline)
async def test_an_escalation_takes_the_power_at_once(bench: Workbench, *, at_deadline: AtDeadline) -> None:
    """Whatever was chosen for the deadline."""
    stop, pressed = await stop_that_waits(bench, at_deadline=at_deadline)
    await until(pressed + 3)
    await bench.order(stop, 1, ESCALATE)
    result = await bench.result(stop)
    assert bench.calls("power_off")[0].began == pytest.approx(pressed + 3, abs=BUS + NEAR)
    assert (result.outcome, result.ending) == (Outcome.SUCCEEDED, Ending.FORCED)
    assert result.shutdown == "the guest did not shut down within 3.0 s (escalated) and was forced"
    assert bench.observed() is Observed.SHUTOFF


async def test_a_cancel_leaves_everything_as_it_is(bench: Workbench) -> None:
    """At once; the message says that the guest was asked, and it is not asked again."""
    stop, pressed = await stop_that_waits(bench)
    await until(pressed + 7)
    await bench.order(stop, 1, CANCEL)
    result = await bench.result(stop)
    assert now() <= pressed + 7 + 2 * BUS + NEAR
    assert (result.outcome, result.ending) == (Outcome.CANCELLED, None)
    assert result.message is not None
    assert result.message.startswith(
        "Cancelled. The guest was already asked to shut down by its power button, 7.0"
    )
    assert result.message.endswith("s before: nothing more is done to it, and it may still go off by itself.")
    await asyncio.sleep(100)
    assert len(bench.calls("request_shutdown")) == 2
    assert bench.observed() is Observed.RUNNING


async def test_a_cancel_before_the_guest_was_asked(bench: Workbench) -> None:
    """While its hypervisor is away, for one: it says that nothing was asked."""
    await bench.do("create", 1)
    bench.hypervisor.unavailable()
    stop = await bench.send(bench.dispatch("stop", 2, seconds=60))
    await asyncio.sleep(3)
    await bench.order(stop, 1, CANCEL)
    result = await bench.result(stop)
    bench.hypervisor.available()
    await bench.settle()
    assert (result.outcome, result.message) == (
        Outcome.CANCELLED,
        "Cancelled. The guest was not asked to shut down, and stays as it is.",
    )
    assert bench.calls("request_shutdown") == []


async def test_a_cancelled_guest_may_still_go_off(bench: Workbench) -> None:
    """By itself, and that is what is seen of it."""
    stop, pressed = await stop_that_waits(bench, words="stateward.shutdown=5")
    await until(pressed + 2)
    await bench.order(stop, 1, CANCEL)
    assert (await bench.result(stop)).outcome is Outcome.CANCELLED
    await until(pressed + 5 + NEAR)
    guest = bench.hypervisor.guest("a")
    assert (guest.observed, guest.cause) == (Observed.SHUTOFF, Cause.GUEST)


async def test_a_cancel_that_comes_too_late_says_so(bench: Workbench) -> None:
    """The power is being taken: the operation goes on to its end."""
    hang = bench.hypervisor.hang_next("power_off")
    stop, _pressed = await stop_that_waits(bench, seconds=5)
    await hang.reached.wait()
    await bench.order(stop, 1, CANCEL)
    await bench.settle()
    hang.release()
    result = await bench.result(stop)
    assert outcome(result) == (
        Outcome.SUCCEEDED,
        Ending.FORCED,
        "The cancel came too late: the guest did not shut down within 5 s (request) and was forced.",
    )


async def test_a_cancel_that_comes_too_late_leaves_nothing_half_done(bench: Workbench) -> None:
    """What comes after the power was taken is still done: a reboot comes back."""
    await bench.do("create", 1, words=IGNORES)
    hang = bench.hypervisor.hang_next("power_off")
    reboot = await bench.send(bench.dispatch("reboot_soft", 2, seconds=5))
    await hang.reached.wait()
    await bench.order(reboot, 1, CANCEL)
    await bench.settle()
    hang.release()
    assert (await bench.result(reboot)).outcome is Outcome.SUCCEEDED
    assert bench.observed() is Observed.RUNNING
    assert len(bench.calls("power_on")) == 2


async def test_an_order_may_come_before_its_operation(bench: Workbench) -> None:
    """Messages have no order of their own: it counts from the operation's first moment."""
    await bench.do("create", 1, words=IGNORES)
    stop = bench.dispatch("stop", 2, seconds=60)
    await bench.order(stop.operation_id, 1, CANCEL)
    await bench.settle()
    assert (await bench.result(await bench.send(stop))).outcome is Outcome.CANCELLED
    assert bench.calls("request_shutdown") == []


async def test_an_order_is_for_its_own_operation(bench: Workbench) -> None:
    """One to the operation that was overtaken does not touch the one that overtook it."""
    stop, pressed = await stop_that_waits(bench)
    delete = await bench.send(bench.dispatch("delete", 3, seconds=20))
    await bench.settle()
    await bench.order(stop, 1, ESCALATE)
    await bench.settle()
    await until(pressed + 15)
    assert bench.observed() is Observed.RUNNING
    assert (await bench.result(delete)).outcome is Outcome.SUCCEEDED
    await bench.order(delete, 1, CANCEL)
    await bench.settle()
    assert bench.hypervisor.guest("a").blank


@pytest.mark.parametrize("command", Command)
@pytest.mark.parametrize("dead", ["when it was given", "after it was taken"])
async def test_an_order_survives_the_agent(bench: Workbench, *, command: Command, dead: str) -> None:
    """Taken before its death or after its next start, it counts as it would have."""
    stop, pressed = await stop_that_waits(bench, seconds=20)
    await until(pressed + 5)
    seconds = 40 if command is EXTEND else None
    if dead == "when it was given":
        await bench.kill()
        await until(pressed + 8)
        await bench.revive()
        await bench.order(stop, 1, command, seconds=seconds)
    else:
        hang = bench.hypervisor.hang_next("get")
        await hang.reached.wait()
        await bench.order(stop, 1, command, seconds=seconds)
        await bench.settle()
        await bench.kill()
        await bench.revive()
    result = await bench.result(stop)
    match command:
        case Command.EXTEND:
            assert bench.calls("power_off")[0].began == pytest.approx(pressed + 40, abs=NEAR)
        case Command.ESCALATE:
            assert now() <= pressed + 11
            assert result.ending is Ending.FORCED
        case Command.CANCEL:
            assert now() <= pressed + 11
            assert result.outcome is Outcome.CANCELLED
            assert bench.observed() is Observed.RUNNING


async def test_a_killed_agent_knows_how_the_shutdown_ended(bench: Workbench) -> None:
    """The step was done; what was noted of it is part of the next life's result."""
    hang = bench.hypervisor.hang_next("power_off")
    stop, _pressed = await stop_that_waits(bench, seconds=5, at_deadline=SAVE)
    await hang.reached.wait()
    await bench.kill()
    await bench.revive()
    assert outcome(await bench.result(stop)) == (
        Outcome.SUCCEEDED,
        Ending.SAVED,
        "the guest did not shut down within 5 s (request); its memory was saved",
    )


async def test_a_memory_saved_by_a_former_life_is_known(bench: Workbench) -> None:
    """It was killed between the save and its note."""
    stop, pressed = await stop_that_waits(bench, seconds=5, at_deadline=SAVE)
    await until(pressed + 4)
    await bench.kill()
    bench.hypervisor.save("a")
    await bench.revive()
    assert (await bench.result(stop)).ending is Ending.SAVED


# ---- what is told of it


async def test_a_quick_operation_tells_nothing(bench: Workbench) -> None:
    """What is over at once costs no message and no write."""
    create = await bench.send(bench.dispatch("create", 1))
    await bench.result(create)
    await bench.settle()
    assert bench.told(create) == []


async def test_a_wait_is_told_once(bench: Workbench) -> None:
    """Where it is, until when, and how the guest was asked: not each press of the button, and not each second."""
    stop, pressed = await stop_that_waits(bench, seconds=30)
    await bench.result(stop)
    (told,) = bench.told(stop)
    assert (told.step, told.number, told.of, told.waits_for) == (Step.SHUT_DOWN, 1, 2, WaitsFor.GUEST)
    epoch = bench.clock.now() - now()
    assert told.signalled_at == pytest.approx(epoch + pressed, abs=NEAR)
    assert told.deadline == pytest.approx(epoch + pressed + 30, abs=NEAR)
    assert told.rung is Rung.POWER_BUTTON
    assert told.at == pytest.approx(epoch + pressed, abs=TELL_SECONDS)


async def test_an_extension_and_a_new_life_are_told(bench: Workbench) -> None:
    """With numbers that rise, and with the same first signal."""
    stop, pressed = await stop_that_waits(bench, seconds=30)
    await until(pressed + 5)
    await bench.order(stop, 1, EXTEND, seconds=50)
    await until(pressed + 10)
    await bench.kill()
    await bench.revive()
    await bench.result(stop)
    told = bench.told(stop)
    assert [round((each.deadline or 0) - (each.signalled_at or 0)) for each in told] == [30, 50, 50]
    assert len({each.signalled_at for each in told}) == 1


async def test_a_hypervisor_that_is_away_is_told(bench: Workbench) -> None:
    """The operation waits for it and not for the guest."""
    await bench.do("create", 1, words=IGNORES)
    bench.hypervisor.unavailable()
    stop = await bench.send(bench.dispatch("stop", 2, seconds=5))
    await asyncio.sleep(5)
    bench.hypervisor.available()
    await bench.result(stop)
    assert [each.waits_for for each in bench.told(stop)] == [WaitsFor.HYPERVISOR, WaitsFor.GUEST]


# ---- the rungs


class Answering(SimulatedDriver):
    """A driver whose guests' agents say that they will, as a script says from when on."""

    script: itertools.chain[bool]

    async def request_shutdown(self, instance_id: str, *, by_agent: bool = True) -> Rung | None:
        """Ask the agent if it is there and may be asked, else press the button."""
        answers = next(self.script) and by_agent
        pressed = await super().request_shutdown(instance_id)
        return Rung.AGENT if answers else pressed


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        # It said that it would, and did not: the button is next, and stays.
        ([True, True, True], [Rung.AGENT, Rung.POWER_BUTTON, Rung.POWER_BUTTON]),
        # It was booting when it was asked first, and its agent came up later.
        ([False, True, True], [Rung.POWER_BUTTON, Rung.AGENT, Rung.POWER_BUTTON]),
        ([False, False, False], [Rung.POWER_BUTTON] * 3),
    ],
)
async def test_an_agent_is_asked_until_it_has_answered_once(
    swift_folder: Path, *, script: list[bool], expected: list[Rung]
) -> None:
    """Agent, power button, power button again."""
    rungs: list[Rung | None] = []

    class Listed(Answering):
        async def request_shutdown(self, instance_id: str, *, by_agent: bool = True) -> Rung | None:
            rungs.append(await super().request_shutdown(instance_id, by_agent=by_agent))
            return rungs[-1]

    bench = Workbench(swift_folder, disorder=None, driver=Listed)
    Listed.script = itertools.chain(script)
    await bench.start()
    stop, _pressed = await stop_that_waits(bench, seconds=12)
    await bench.result(stop)
    assert rungs == expected
    assert bench.told(stop)[-1].rung is expected[-1]
    await bench.stop()
