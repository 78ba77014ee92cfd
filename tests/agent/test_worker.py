"""The worker: operations are done once, in order, to their deadline, and never by a worker that is late.

Every message may come twice or late, and what the agent promises holds all the same (B3).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import looptime
import pytest
import pytest_asyncio

from stateward.agent.driver import DriverError, HypervisorUnavailable
from stateward.agent.simulated import Call
from stateward.bus.memory import Disorder
from stateward.domain.records import Outcome
from stateward.domain.states import Cause, Observed
from tests.agent.simulated_bench import NEAR
from tests.agent.workbench import BUS, Workbench

pytestmark = [pytest.mark.asyncio, pytest.mark.looptime]

IGNORES = "stateward.acpi=ignore"


@pytest_asyncio.fixture(params=[1, 2, 3], ids="disorder-{}".format)
async def bench(request: pytest.FixtureRequest, swift_folder: Path) -> AsyncIterator[Workbench]:
    """Give a running agent, behind a bus that misbehaves in one of three ways."""
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


# ---- clean shutdown (R9)


async def test_a_guest_that_ignores_us_is_forced_at_its_deadline(bench: Workbench) -> None:
    """Given 5 s it runs at 4.9 s, and is off at 5 s: neither sooner nor at Nova's 60."""
    await bench.do("create", 1, words=IGNORES)
    stop = await bench.send(bench.dispatch("stop", 2, seconds=5))
    pressed = (await bench.called("request_shutdown")).began
    await until(pressed + 4.9)
    assert bench.observed() is Observed.RUNNING
    await until(pressed + 5 + NEAR)
    assert bench.observed() is Observed.SHUTOFF
    result = await bench.result(stop)
    assert bench.calls("power_off")[0].began == pytest.approx(pressed + 5, abs=NEAR)
    assert (result.outcome, result.shutdown) == (
        Outcome.SUCCEEDED,
        "the guest did not shut down within 5 s (request) and was forced",
    )
    assert result.observation is not None
    assert (result.observation.observed, result.observation.cause) == (Observed.SHUTOFF, Cause.DESTROYED)


async def test_a_guest_that_is_off_early_ends_the_wait(bench: Workbench) -> None:
    """At the moment it is off, by its own doing, and that is what the result says."""
    await bench.do("create", 1, words="stateward.shutdown=2")
    stop = await bench.send(bench.dispatch("stop", 2, seconds=60))
    pressed = (await bench.called("request_shutdown")).began
    result = await bench.result(stop)
    assert now() == pytest.approx(pressed + 2, abs=BUS + NEAR)
    assert result.shutdown == "the guest shut itself down after 2.0 s"
    assert result.observation is not None
    assert result.observation.cause is Cause.GUEST


async def test_a_guest_that_was_booting_is_asked_again(bench: Workbench) -> None:
    """Its first press of the power button was lost; the next comes 5 s after it."""
    await bench.do("create", 1, words="stateward.boot=3 stateward.shutdown=1")
    result = await bench.do("stop", 2, seconds=60)
    first, second = bench.calls("request_shutdown")
    assert second.began == pytest.approx(first.began + 5, abs=NEAR)
    assert result.shutdown == "the guest shut itself down after 6.0 s"


async def test_it_is_asked_every_five_seconds_until_the_deadline(bench: Workbench) -> None:
    """And not at the deadline itself, when its power is taken."""
    await bench.do("create", 1, words=IGNORES)
    await bench.do("stop", 2, seconds=12)
    began = [call.began for call in bench.calls("request_shutdown")]
    assert [at - began[0] for at in began] == pytest.approx([0, 5, 10], abs=NEAR)
    assert bench.calls("power_off")[0].began == pytest.approx(began[0] + 12, abs=NEAR)


async def test_a_guest_that_gets_no_time_is_not_asked(bench: Workbench) -> None:
    """Zero seconds means: take the power."""
    await bench.do("create", 1)
    result = await bench.do("stop", 2, seconds=0)
    assert (result.outcome, result.shutdown) == (Outcome.SUCCEEDED, "the guest was not asked and was forced")
    assert bench.calls("request_shutdown") == []
    assert bench.observed() is Observed.SHUTOFF


async def test_a_guest_that_is_off_already_is_left_alone(bench: Workbench) -> None:
    """Stopping is then done at once."""
    await bench.do("create", 1)
    bench.hypervisor.destroy("a")
    result = await bench.do("stop", 2, seconds=60)
    assert (result.outcome, result.shutdown) == (Outcome.SUCCEEDED, "the guest was off")
    assert bench.calls("request_shutdown") == []


async def test_a_paused_guest_is_not_asked(bench: Workbench) -> None:
    """The request would fire when it is let run; its power is taken instead."""
    await bench.do("create", 1)
    bench.hypervisor.pause("a")
    result = await bench.do("stop", 2, seconds=60)
    assert result.shutdown == "the guest was halted and could not be asked and was forced"
    assert bench.calls("request_shutdown") == []
    assert bench.observed() is Observed.SHUTOFF


async def test_a_soft_reboot_comes_back(bench: Workbench) -> None:
    """Off by itself, and on again."""
    await bench.do("create", 1, words="stateward.shutdown=3")
    result = await bench.do("reboot_soft", 2, seconds=60)
    assert (result.outcome, result.shutdown) == (
        Outcome.SUCCEEDED,
        "the guest shut itself down after 3.0 s",
    )
    assert bench.observed() is Observed.RUNNING
    assert len(bench.calls("power_on")) == 2


# ---- overtaking


async def test_a_forced_stop_ends_the_wait_at_once(bench: Workbench) -> None:
    """The clean stop ends as superseded, and the power is taken without its deadline."""
    await bench.do("create", 1, words=IGNORES)
    clean = await bench.send(bench.dispatch("stop", 2, seconds=60))
    pressed = (await bench.called("request_shutdown")).began
    await until(pressed + 7)
    forced = await bench.do("stop_force", 3, seconds=0)
    assert now() <= pressed + 7 + 2 * BUS + NEAR
    assert forced.outcome is Outcome.SUCCEEDED
    assert (await bench.result(clean)).outcome is Outcome.SUPERSEDED
    assert bench.observed() is Observed.SHUTOFF


async def test_a_delete_overtakes_a_stop(bench: Workbench) -> None:
    """The guest is gone when the delete's own time is over, not when the stop's would have been."""
    await bench.do("create", 1, words=IGNORES)
    clean = await bench.send(bench.dispatch("stop", 2, seconds=3600))
    pressed = (await bench.called("request_shutdown")).began
    deleted = await bench.do("delete", 3, seconds=5)
    assert now() == pytest.approx(pressed + 5, abs=2 * BUS + NEAR)
    assert deleted.outcome is Outcome.SUCCEEDED
    assert (await bench.result(clean)).outcome is Outcome.SUPERSEDED
    assert bench.hypervisor.guest("a").blank
    assert deleted.observation is not None
    assert deleted.observation.observed is Observed.MISSING


async def test_a_step_under_way_is_finished_and_the_next_not_begun(bench: Workbench) -> None:
    """A driver's call cannot be taken back; what comes after it can be left."""
    hang = bench.hypervisor.hang_next("define")
    create = await bench.send(bench.dispatch("create", 1))
    await hang.reached.wait()
    delete = await bench.send(bench.dispatch("forceDelete", 2))
    await bench.settle()
    hang.release()
    assert (await bench.result(create)).outcome is Outcome.SUPERSEDED
    assert (await bench.result(delete)).outcome is Outcome.SUCCEEDED
    assert bench.calls("power_on") == []
    assert bench.hypervisor.guest("a").blank


async def test_a_stale_fence_is_refused(bench: Workbench) -> None:
    """An operation that was overtaken before it arrived touches nothing, and says so."""
    await bench.do("create", 1)
    await bench.do("stop", 5, seconds=0)
    calls = len(bench.hypervisor.calls)
    late = await bench.do("start", 4)
    assert (late.outcome, late.message) == (
        Outcome.SUPERSEDED,
        "A newer operation had reached the host before it.",
    )
    changes = {"power_on", "define", "mark_fence"}
    assert {call.name for call in list(bench.hypervisor.calls)[calls:]} & changes == set()
    assert bench.observed() is Observed.SHUTOFF


async def test_reordered_operations_leave_the_newest(bench: Workbench) -> None:
    """However stop, start and pause arrive, the one admitted last is what holds."""
    await bench.do("create", 1)
    sent = [bench.dispatch("stop", 2, seconds=0), bench.dispatch("start", 3), bench.dispatch("pause", 4)]
    for dispatch in (sent[2], sent[0], sent[1]):
        await bench.send(dispatch)
    assert (await bench.result("pause-4-a")).outcome is Outcome.SUCCEEDED
    await bench.settle()
    assert bench.observed() is Observed.PAUSED


# ---- duplicates


async def test_a_duplicate_runs_once(bench: Workbench) -> None:
    """While it runs and after it has finished; every answer is the same."""
    await bench.do("create", 1)
    stop = bench.dispatch("stop", 2, seconds=60)
    for _ in range(5):
        await bench.send(stop)
    first = await bench.result(stop.operation_id)
    calls = len(bench.calls("power_off"))
    for _ in range(5):
        await bench.send(stop)
    await bench.settle()
    assert len(bench.results[stop.operation_id]) >= 6
    assert all(result == first for result in bench.results[stop.operation_id])
    assert calls == len(bench.calls("power_off")) == 1


# ---- many at once


async def test_nobody_waits_for_another_guest(bench: Workbench) -> None:
    """Nineteen stop at once while the twentieth takes its minute."""
    guests = [f"g{n}" for n in range(20)]
    slow = guests[7]
    await asyncio.gather(
        *(bench.do("create", 1, guest=guest, words=IGNORES if guest == slow else "") for guest in guests)
    )
    begin = now()
    others = (bench.do("stop", 2, guest=guest, seconds=60) for guest in guests if guest != slow)
    slow_stop = asyncio.ensure_future(bench.do("stop", 2, guest=slow, seconds=60))
    await asyncio.gather(*others)
    assert now() - begin <= 0.05 + 2 * BUS + NEAR
    await slow_stop
    assert now() - begin == pytest.approx(60, abs=2 * BUS + NEAR)


async def test_deadlines_run_side_by_side(bench: Workbench) -> None:
    """Twenty guests that ignore us are all forced after 5 s, not one after the other."""
    guests = [f"g{n}" for n in range(20)]
    await asyncio.gather(*(bench.do("create", 1, guest=guest, words=IGNORES) for guest in guests))
    begin = now()
    await asyncio.gather(*(bench.do("stop", 2, guest=guest, seconds=5) for guest in guests))
    assert now() - begin <= 5 + 2 * BUS + NEAR
    assert {bench.observed(guest) for guest in guests} == {Observed.SHUTOFF}


# ---- a hypervisor that is away


async def test_an_operation_waits_for_its_hypervisor(bench: Workbench) -> None:
    """It fails nothing and goes on at the moment the hypervisor is back."""
    await bench.do("create", 1)
    bench.hypervisor.unavailable()
    pause = await bench.send(bench.dispatch("pause", 2))
    await asyncio.sleep(100.3)
    assert bench.results[pause] == []
    back = now()
    bench.hypervisor.available()
    result = await bench.result(pause)
    assert now() <= back + BUS + NEAR
    assert result.outcome is Outcome.SUCCEEDED
    assert bench.observed() is Observed.PAUSED


async def test_a_deadline_that_passed_while_the_hypervisor_was_away(bench: Workbench) -> None:
    """The guest had its time; its power is taken as soon as that can be done."""
    await bench.do("create", 1, words=IGNORES)
    stop = await bench.send(bench.dispatch("stop", 2, seconds=10))
    pressed = (await bench.called("request_shutdown")).began
    await until(pressed + 2)
    bench.hypervisor.unavailable()
    await until(pressed + 30)
    assert bench.observed() is Observed.RUNNING
    bench.hypervisor.available()
    result = await bench.result(stop)
    assert bench.calls("power_off")[-1].began == pytest.approx(pressed + 30, abs=NEAR)
    assert result.shutdown == "the guest did not shut down within 10 s (request) and was forced"


async def test_a_hypervisor_back_in_time_does_not_move_the_deadline(bench: Workbench) -> None:
    """Away from 2 s to 4 s, and still forced at 10 s."""
    await bench.do("create", 1, words=IGNORES)
    stop = await bench.send(bench.dispatch("stop", 2, seconds=10))
    pressed = (await bench.called("request_shutdown")).began
    await until(pressed + 2)
    bench.hypervisor.unavailable()
    await until(pressed + 4)
    bench.hypervisor.available()
    await bench.result(stop)
    assert bench.calls("power_off")[-1].began == pytest.approx(pressed + 10, abs=NEAR)


async def test_an_operation_that_waits_for_its_hypervisor_is_overtaken(bench: Workbench) -> None:
    """What came for the instance meanwhile is what is done when it is back."""
    await bench.do("create", 1)
    bench.hypervisor.unavailable()
    pause = await bench.send(bench.dispatch("pause", 2))
    await asyncio.sleep(10)
    delete = await bench.send(bench.dispatch("forceDelete", 3))
    assert (await bench.result(pause)).outcome is Outcome.SUPERSEDED
    bench.hypervisor.available()
    assert (await bench.result(delete)).outcome is Outcome.SUCCEEDED
    assert bench.hypervisor.guest("a").blank


# ---- failures


async def test_a_refusal_of_the_hypervisor_is_the_result(bench: Workbench) -> None:
    """In its own words, with what the guest is now; and the next operation is none the worse for it."""
    bench.hypervisor.fail_next("power_on", DriverError("The host has no memory left."))
    failed = await bench.do("create", 1)
    assert (failed.outcome, failed.message) == (Outcome.FAILED, "The host has no memory left.")
    assert failed.observation is not None
    assert failed.observation.observed is Observed.SHUTOFF
    assert (await bench.do("reboot_hard", 2)).outcome is Outcome.SUCCEEDED


async def test_a_fault_of_our_own_is_a_result_too(bench: Workbench) -> None:
    """No instance stays in a task state because of a bug (B3)."""
    bench.hypervisor.fail_next("define", ZeroDivisionError("oops"))
    failed = await bench.do("create", 1)
    assert failed.outcome is Outcome.FAILED
    assert failed.message == "Internal fault of the agent: ZeroDivisionError('oops')"
    assert (await bench.do("forceDelete", 2)).outcome is Outcome.SUCCEEDED


async def test_a_result_says_nothing_of_a_guest_that_cannot_be_asked(bench: Workbench) -> None:
    """A hypervisor that goes away after the last step leaves the observation out (R12)."""
    await bench.do("create", 1)
    hang = bench.hypervisor.hang_next("pause")
    pause = await bench.send(bench.dispatch("pause", 2))
    await hang.reached.wait()
    bench.hypervisor.fail_next("get", DriverError("gone"))
    hang.release()
    result = await bench.result(pause)
    assert (result.outcome, result.observation) == (Outcome.SUCCEEDED, None)


# ---- an agent that is killed


async def test_a_killed_agent_keeps_the_deadline(bench: Workbench) -> None:
    """Killed at 7 s and started at 11 s, it still forces at 20 s: the guest was shutting down all the while."""
    await bench.do("create", 1, words=IGNORES)
    stop = await bench.send(bench.dispatch("stop", 2, seconds=20))
    pressed = (await bench.called("request_shutdown")).began
    await until(pressed + 7)
    await bench.kill()
    await until(pressed + 11)
    await bench.revive()
    await until(pressed + 19.9)
    assert bench.observed() is Observed.RUNNING
    result = await bench.result(stop)
    assert bench.calls("power_off")[0].began == pytest.approx(pressed + 20, abs=NEAR)
    assert result.shutdown == "the guest did not shut down within 20 s (request) and was forced"


async def test_an_agent_that_was_dead_over_the_deadline_forces_at_once(bench: Workbench) -> None:
    """The time does not begin anew."""
    await bench.do("create", 1, words=IGNORES)
    stop = await bench.send(bench.dispatch("stop", 2, seconds=20))
    pressed = (await bench.called("request_shutdown")).began
    await until(pressed + 1)
    await bench.kill()
    await until(pressed + 50)
    await bench.revive()
    await bench.result(stop)
    assert bench.calls("power_off")[0].began == pytest.approx(pressed + 50, abs=NEAR)


async def test_a_guest_that_went_off_while_the_agent_was_dead(bench: Workbench) -> None:
    """It shut itself down, and that is what is said of it."""
    await bench.do("create", 1, words="stateward.shutdown=5")
    stop = await bench.send(bench.dispatch("stop", 2, seconds=20))
    pressed = (await bench.called("request_shutdown")).began
    await until(pressed + 1)
    await bench.kill()
    await until(pressed + 9)
    await bench.revive()
    result = await bench.result(stop)
    assert result.outcome is Outcome.SUCCEEDED
    assert result.observation is not None
    assert result.observation.cause is Cause.GUEST


async def test_a_revived_agent_does_not_repeat_finished_steps(bench: Workbench) -> None:
    """It goes on with the step that was not finished."""
    hang = bench.hypervisor.hang_next("power_on")
    create = await bench.send(bench.dispatch("create", 1))
    await hang.reached.wait()
    await bench.kill()
    await bench.revive()
    assert (await bench.result(create)).outcome is Outcome.SUCCEEDED
    assert len(bench.calls("prepare_disk")) == 1
    assert len(bench.calls("define")) == 1
    assert bench.observed() is Observed.RUNNING


async def test_a_revived_agent_answers_a_repeated_dispatch(bench: Workbench) -> None:
    """With the result it had before, in case that was lost; nothing is done again."""
    create = bench.dispatch("create", 1)
    first = await bench.result(await bench.send(create))
    await bench.kill()
    await bench.revive()
    bench.results.clear()
    await bench.send(create)
    assert await bench.result(create.operation_id) == first
    assert len(bench.calls("power_on")) == 1


async def test_a_revived_agent_still_refuses_older_fences(bench: Workbench) -> None:
    """It knows them from its journal."""
    await bench.do("create", 3)
    await bench.kill()
    await bench.revive()
    assert (await bench.do("stop", 2, seconds=0)).outcome is Outcome.SUPERSEDED
    assert bench.observed() is Observed.RUNNING


# ---- a worker that is late


async def test_a_lost_journal_does_not_let_old_fences_act(bench: Workbench) -> None:
    """The guest itself carries the newest fence."""
    await bench.do("create", 3)
    await bench.kill()
    await bench.revive("another.db")
    late = await bench.do("stop", 2, seconds=0)
    assert (late.outcome, late.message) == (Outcome.SUPERSEDED, "Overtaken by a newer operation.")
    assert bench.observed() is Observed.RUNNING
    assert (await bench.do("stop", 4, seconds=0)).outcome is Outcome.SUCCEEDED


async def test_a_worker_that_wakes_in_its_wait_takes_no_power(bench: Workbench) -> None:
    """It waited for a guest while another worker did something newer: its next step is not begun."""
    await bench.do("create", 1, words=IGNORES)
    late = await bench.send(bench.dispatch("stop", 2, seconds=10))
    pressed = (await bench.called("request_shutdown")).began
    await until(pressed + 3)
    zombie = bench.agent
    await bench.revive("another.db")
    assert (await bench.do("reboot_hard", 3)).outcome is Outcome.SUCCEEDED
    assert bench.observed() is Observed.RUNNING
    taken = len(bench.calls("power_off"))
    await until(pressed + 11)
    assert (await bench.result(late)).outcome is Outcome.SUPERSEDED
    assert len(bench.calls("power_off")) == taken
    assert bench.observed() is Observed.RUNNING
    await zombie.stop()


async def test_a_worker_that_wakes_with_its_hypervisor_does_not_act(bench: Workbench) -> None:
    """It waited for the hypervisor while another worker did something newer."""
    await bench.do("create", 1)
    hang = bench.hypervisor.hang_next("pause")
    bench.hypervisor.fail_next("pause", HypervisorUnavailable("away"))
    late = await bench.send(bench.dispatch("pause", 2))
    await hang.reached.wait()
    zombie = bench.agent
    await bench.revive("another.db")
    assert (await bench.do("stop", 3, seconds=60)).outcome is Outcome.SUCCEEDED
    assert (await bench.do("start", 4)).outcome is Outcome.SUCCEEDED
    hang.release()
    assert (await bench.result(late)).outcome is Outcome.SUPERSEDED
    assert bench.observed() is Observed.RUNNING
    await zombie.stop()


# ---- what a result carries


async def test_a_result_is_at_least_as_new_as_its_number(bench: Workbench) -> None:
    """The number is taken before the guest is asked, and rises from operation to operation."""
    numbers: list[int] = []
    for fence, action in enumerate(("create", "pause", "unpause", "suspend", "resume"), 1):
        result = await bench.do(action, fence)
        assert result.observation is not None
        numbers.append(result.observation.seq)
    assert numbers == sorted(set(numbers))


def names(calls: list[Call]) -> list[str]:
    return [call.name for call in calls]


async def test_the_fence_is_with_the_guest_before_the_first_step(bench: Workbench) -> None:
    """Or a worker that is late could slip in between."""
    await bench.do("create", 1)
    begin = len(bench.hypervisor.calls)
    await bench.do("pause", 2)
    changes = [call for call in list(bench.hypervisor.calls)[begin:] if call.name not in {"get", "list"}]
    assert names(changes)[:2] == ["mark_fence", "pause"]
    assert bench.hypervisor.guest("a").fence == 2


async def test_a_new_guest_carries_its_fence_from_the_start(bench: Workbench) -> None:
    """It is marked before it runs for the first time."""
    await bench.do("create", 7)
    order = [
        call.name for call in bench.hypervisor.calls if call.name in {"define", "mark_fence", "power_on"}
    ]
    assert order == ["define", "mark_fence", "power_on"]
    assert bench.hypervisor.guest("a").fence == 7
