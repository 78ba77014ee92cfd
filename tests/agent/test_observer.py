"""The observer: what it reports, how soon, and that it says so when it cannot know (R12)."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import looptime
import msgspec
import pytest
import pytest_asyncio

from stateward.agent.simulated import SimulatedDriver
from stateward.agent.simulated.driver import EVERYTHING
from stateward.bus.port import NobodyAnswered, console_subject
from stateward.domain.records import ConsoleReply, ConsoleRequest
from stateward.domain.states import Cause, Observed
from tests.agent.simulated_bench import NEAR, spec_of
from tests.agent.workbench import Workbench
from tests.stack import encoded

pytestmark = [pytest.mark.asyncio, pytest.mark.looptime]


@pytest_asyncio.fixture(params=[True])
async def bench(request: pytest.FixtureRequest, swift_folder: Path) -> AsyncIterator[Workbench]:
    """Give an agent that is not started yet; ``params`` says whether its driver tells of changes."""
    bench = Workbench(
        swift_folder, disorder=None, capabilities=msgspec.structs.replace(EVERYTHING, events=request.param)
    )
    yield bench
    with looptime.enabled(strict=True):
        await bench.stop()


async def boot(bench: Workbench, *names: str) -> None:
    """Make running guests before the agent starts."""
    driver = SimulatedDriver(bench.hypervisor)
    await driver.open(lambda _id: None)
    for name in names:
        await driver.prepare_disk(spec_of(name))
        await driver.define(spec_of(name))
        await driver.power_on(name)
    await driver.close()
    bench.hypervisor.calls.clear()


def seen(bench: Workbench) -> list[dict[str, Observed]]:
    """Return what every report of a few says."""
    assert not any(report.complete for report in bench.reports)
    return [{each.instance_id: each.observed for each in report.observations} for report in bench.reports]


async def everything(bench: Workbench) -> dict[str, Observed]:
    """Ask for everything; it is what the last tally was made of."""
    report = (await bench.inventory()).report
    assert report is not None
    assert (report.complete, report.digest) == (True, bench.tallies[-1].digest)
    assert bench.tallies[-1].count == len(report.observations)
    return {each.instance_id: each.observed for each in report.observations}


async def test_an_agent_begins_with_everything(bench: Workbench) -> None:
    """One tally and one heartbeat, at once, from one bulk call."""
    await boot(bench, "a", "b")
    await bench.start()
    await asyncio.sleep(NEAR)
    assert (seen(bench), len(bench.tallies)) == ([], 1)
    (heartbeat,) = bench.heartbeats
    assert (heartbeat.host, heartbeat.reachable, heartbeat.running) == ("h", True, 2)
    assert [call.name for call in bench.hypervisor.calls] == ["list", "facts"]
    assert await everything(bench) == {"a": Observed.RUNNING, "b": Observed.RUNNING}


async def test_a_change_is_reported_at_once(bench: Workbench) -> None:
    """Not at the next relist; with its cause, and of this guest only (B8)."""
    await boot(bench, "a", "b")
    await bench.start()
    await asyncio.sleep(3)
    bench.hypervisor.destroy("a")
    begin = asyncio.get_running_loop().time()
    await asyncio.sleep(NEAR)
    assert seen(bench) == [{"a": Observed.SHUTOFF}]
    (observation,) = bench.reports[-1].observations
    assert observation.cause is Cause.DESTROYED
    assert observation.at == pytest.approx(bench.clock.now() - NEAR, abs=2 * NEAR)
    assert asyncio.get_running_loop().time() - begin < 2 * NEAR


async def test_changes_of_one_moment_share_a_report(bench: Workbench) -> None:
    """A host that loses all its guests does not send a message for each."""
    await boot(bench, "a", "b", "c")
    await bench.start()
    await asyncio.sleep(3)
    for name in "abc":
        bench.hypervisor.destroy(name)
    await asyncio.sleep(NEAR)
    assert seen(bench) == [dict.fromkeys("abc", Observed.SHUTOFF)]


async def test_a_guest_that_is_gone_is_reported_missing(bench: Workbench) -> None:
    """By name, at once."""
    await boot(bench, "a")
    await bench.start()
    await asyncio.sleep(3)
    bench.hypervisor.undefine("a")
    await asyncio.sleep(NEAR)
    assert seen(bench) == [{"a": Observed.MISSING}]


async def test_everything_is_looked_at_every_ten_seconds(bench: Workbench) -> None:
    """In one small message while nothing changes, and the host says every five that it lives (R12)."""
    await boot(bench, *(f"g{n}" for n in range(50)))
    await bench.start()
    await asyncio.sleep(30.5)
    assert (seen(bench), len(bench.tallies)) == ([], 4)
    assert {(tally.count, tally.digest) for tally in bench.tallies} == {(50, bench.tallies[0].digest)}
    assert max(len(encoded(tally)) for tally in bench.tallies) < 120
    assert len(bench.heartbeats) == 7
    names = Counter(call.name for call in bench.hypervisor.calls)
    assert names == {"list": 4, "facts": 1, "addresses": 3}


@pytest.mark.parametrize("bench", [False], indirect=True, ids=["no-events"])
async def test_a_lost_event_is_made_good_by_the_relist(bench: Workbench) -> None:
    """With a driver that tells of nothing, the change is in the next tally."""
    await boot(bench, "a")
    await bench.start()
    await asyncio.sleep(3)
    bench.hypervisor.destroy("a")
    await asyncio.sleep(6.9)
    assert len(bench.tallies) == 1
    await asyncio.sleep(0.2)
    assert len({tally.digest for tally in bench.tallies}) == 2
    assert (seen(bench), await everything(bench)) == ([], {"a": Observed.SHUTOFF})


async def test_numbers_rise_and_are_older_than_the_answers(bench: Workbench) -> None:
    """A report's number was taken before the question: a change after it has a higher one."""
    await boot(bench, "a")
    await bench.start()
    await asyncio.sleep(3)
    hang = bench.hypervisor.hang_next("list")
    await asyncio.sleep(7.5)
    bench.hypervisor.destroy("a")
    later = await bench.agent.worker.observe("a")
    hang.release()
    await asyncio.sleep(NEAR)
    assert later is not None
    assert bench.tallies[-1].seq < later.seq
    numbers = [tally.seq for tally in bench.tallies]
    assert numbers == sorted(set(numbers))
    report = (await bench.inventory()).report
    assert report is not None
    assert {each.seq for each in report.observations} == {report.seq}
    assert report.seq > later.seq


async def test_an_agent_that_lost_count_is_told(bench: Workbench) -> None:
    """Its journal was lost and its clock set back: its numbers rise above those that are known, and stay there."""
    await boot(bench, "a")
    await bench.start()
    await asyncio.sleep(1)
    above = bench.tallies[0].seq + (1 << 40)
    report = (await bench.inventory(above)).report
    assert report is not None
    assert report.seq > above
    await bench.kill()
    await bench.revive()
    await asyncio.sleep(1)
    assert bench.tallies[-1].seq > report.seq


async def test_a_hypervisor_that_is_away_is_not_a_host_without_guests(bench: Workbench) -> None:
    """No report at all; the heartbeat says what is wrong, at the moment it is noticed."""
    await boot(bench, "a")
    await bench.start()
    await asyncio.sleep(3)
    bench.hypervisor.unavailable()
    bench.hypervisor.destroy("a")
    await asyncio.sleep(30)
    assert (seen(bench), len(bench.tallies)) == ([], 1)
    answer = await bench.inventory()
    assert (answer.report, answer.unavailable) == (None, True)
    assert [heartbeat.reachable for heartbeat in bench.heartbeats[:5]] == [True, True, True, False, False]
    assert bench.heartbeats[-1].detail == "The simulated hypervisor does not answer."


async def test_a_hypervisor_that_is_back_is_looked_at_in_full(bench: Workbench) -> None:
    """At once: anything can have happened meanwhile."""
    await boot(bench, "a", "b")
    await bench.start()
    await asyncio.sleep(3)
    bench.hypervisor.unavailable()
    bench.hypervisor.destroy("a")
    await asyncio.sleep(30)
    bench.hypervisor.available()
    await asyncio.sleep(NEAR)
    assert len(bench.tallies) == 2
    assert await everything(bench) == {"a": Observed.SHUTOFF, "b": Observed.RUNNING}
    assert (bench.heartbeats[-1].reachable, bench.heartbeats[-1].detail) == (True, "")


async def test_a_fault_of_our_own_does_not_end_the_watching(bench: Workbench) -> None:
    """After a second it begins again, with a relist."""
    await boot(bench, "a")
    await bench.start()
    await asyncio.sleep(3)
    bench.hypervisor.fail_next("get", ZeroDivisionError("oops"))
    bench.hypervisor.destroy("a")
    await asyncio.sleep(1.1)
    assert len(bench.tallies) == 2
    assert (seen(bench), await everything(bench)) == ([], {"a": Observed.SHUTOFF})


async def test_looking_gives_the_state_of_now(bench: Workbench) -> None:
    """Or nothing, when the hypervisor cannot be asked."""
    await boot(bench, "a")
    await bench.start()
    observation = await bench.agent.worker.observe("a")
    assert observation is not None
    assert (observation.instance_id, observation.observed) == ("a", Observed.RUNNING)
    assert observation.at == pytest.approx(bench.clock.now(), abs=NEAR)
    bench.hypervisor.unavailable()
    assert await bench.agent.worker.observe("a") is None


async def ask(bench: Workbench, lines: int | None) -> ConsoleReply:
    request = ConsoleRequest(instance_id="a", lines=lines)
    answer = await bench.bus.ask(console_subject("h"), msgspec.json.encode(request), timeout=5)
    return msgspec.json.decode(answer, type=ConsoleReply)


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (None, ["up", "power button pressed", "shutting down"]),
        (2, ["power button pressed", "shutting down"]),
        (0, []),
        (99, ["up", "power button pressed", "shutting down"]),
    ],
)
async def test_the_console(bench: Workbench, lines: int | None, expected: list[str]) -> None:
    """The end of the log, as many lines as were asked for."""
    await boot(bench, "a")
    await bench.start()
    await bench.agent.driver.request_shutdown("a")
    reply = await ask(bench, lines)
    assert reply == ConsoleReply(output="".join(f"stateward-guest: {line}\n" for line in expected))


async def test_a_console_that_cannot_be_read(bench: Workbench) -> None:
    """The reason is the answer; a host that does not answer is something else."""
    await bench.start()
    bench.hypervisor.unavailable()
    assert (await ask(bench, None)).error == "The simulated hypervisor does not answer."
    with pytest.raises(NobodyAnswered, match=r"console\.elsewhere"):
        await bench.bus.ask(console_subject("elsewhere"), b"", timeout=1)
