"""Each verdict, from a guest that was acted on behind our back to what becomes of it and its record."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import looptime
import pytest
import pytest_asyncio

from stateward.agent.simulated import SimulatedHypervisor
from stateward.bus.memory import Disorder
from stateward.domain.bodies import ShutdownOptions
from stateward.domain.records import OperationState
from stateward.domain.states import Cause, Observed, TaskState, VmState
from stateward.store.engine import Database
from tests.agent.simulated_bench import spec_of
from tests.rows import actor
from tests.stack import Stack

pytestmark = [pytest.mark.asyncio, pytest.mark.looptime]


@pytest_asyncio.fixture(params=[1, 2], ids="disorder-{}".format)
async def stack(
    request: pytest.FixtureRequest, inline_database: Database, swift_folder: Path
) -> AsyncIterator[Stack]:
    """Give a running stack, behind a bus that misbehaves in one of two ways."""
    stack = Stack(inline_database, swift_folder, Disorder(seed=request.param, duplicate=0.5))
    with looptime.enabled(strict=True):
        await stack.start()
    yield stack
    with looptime.enabled(strict=True):
        await stack.stop()


Behind = Callable[[SimulatedHypervisor, str], None]


def crash_and_stay(hypervisor: SimulatedHypervisor, instance_id: str) -> None:
    hypervisor.crash(instance_id, kept=True)


def reboot_host(hypervisor: SimulatedHypervisor, _instance_id: str) -> None:
    hypervisor.reboot_host()


def io_error(hypervisor: SimulatedHypervisor, instance_id: str) -> None:
    hypervisor.pause(instance_id, Cause.IO_ERROR)


# ---- active


@pytest.mark.parametrize(
    ("behind", "restored_by"),
    [
        (SimulatedHypervisor.destroy, "restore_start"),
        (SimulatedHypervisor.crash, "restore_start"),
        (crash_and_stay, "restore_start"),
        (SimulatedHypervisor.pause, "restore_unpause"),
        (SimulatedHypervisor.save, "restore_resume"),
        (reboot_host, "boot_start"),
    ],
    ids=["destroyed", "crashed", "crashed-and-kept", "paused", "saved", "host-rebooted"],
)
async def test_an_active_guest_is_brought_back(stack: Stack, behind: Behind, restored_by: str) -> None:
    """Within a second, once, and everybody can read why (R11, R12)."""
    instance_id = await stack.create()
    behind(stack.hypervisor, instance_id)
    assert stack.guest(instance_id) is not Observed.RUNNING
    await asyncio.sleep(1)
    row = await stack.idle(instance_id)
    assert stack.guest(instance_id) is Observed.RUNNING
    assert (row.vm_state, row.observed, row.fault) == (VmState.ACTIVE, Observed.RUNNING, None)
    assert await stack.history(instance_id) == ["create succeeded", f"{restored_by} succeeded"]
    (verdict,) = await stack.verdicts(instance_id)
    assert (verdict["verdict"], verdict["expected"]) == ("restore", "active")
    assert (await stack.operations(instance_id))[-1].message == verdict["says"]


async def test_a_guest_s_own_shutdown_is_adopted(stack: Stack) -> None:
    """It stays off, and its owner sees that it is stopped."""
    instance_id = await stack.create()
    stack.hypervisor.guest_shutdown(instance_id)
    row = await stack.until(instance_id, lambda row: row.vm_state is VmState.STOPPED)
    await asyncio.sleep(60)
    assert row.task_state is None
    assert stack.guest(instance_id) is Observed.SHUTOFF
    assert await stack.history(instance_id) == ["create succeeded", "adopt succeeded"]
    (verdict,) = await stack.verdicts(instance_id)
    assert (verdict["verdict"], verdict["cause"]) == ("adopt", "guest")
    assert (await stack.do("start", instance_id)).vm_state is VmState.ACTIVE


async def test_an_adopted_shutdown_of_a_locked_instance(stack: Stack) -> None:
    """A lock does not keep the record from being true."""
    instance_id = await stack.create()
    await stack.immediate.lock(instance_id, actor(), reason=None, project_id="p")
    stack.hypervisor.guest_shutdown(instance_id)
    row = await stack.until(instance_id, lambda row: row.vm_state is VmState.STOPPED)
    assert row.locked_by == "owner"


async def test_a_locked_guest_is_brought_back_too(stack: Stack) -> None:
    """The record is what the lock protects."""
    instance_id = await stack.create()
    await stack.immediate.lock(instance_id, actor(), reason=None, project_id="p")
    stack.hypervisor.destroy(instance_id)
    await asyncio.sleep(1)
    row = await stack.idle(instance_id)
    assert (row.observed, row.locked_by) == (Observed.RUNNING, "owner")
    assert stack.guest(instance_id) is Observed.RUNNING


# ---- alerts


@pytest.mark.parametrize(
    ("behind", "observed"),
    [
        (SimulatedHypervisor.undefine, Observed.MISSING),
        (io_error, Observed.PAUSED),
    ],
    ids=["undefined", "io-error"],
)
async def test_what_only_a_person_can_mend_is_told_once(
    stack: Stack, behind: Behind, observed: Observed
) -> None:
    """However often it is seen and judged; nothing is changed."""
    instance_id = await stack.create()
    behind(stack.hypervisor, instance_id)
    await asyncio.sleep(100)
    for _ in range(3):
        stack.arbiter.wake(instance_id)
        await asyncio.sleep(1)
    row = await stack.instance(instance_id)
    assert (row.vm_state, row.task_state, row.observed) == (VmState.ACTIVE, None, observed)
    assert stack.guest(instance_id) is observed
    assert await stack.history(instance_id) == ["create succeeded"]
    assert [verdict["verdict"] for verdict in await stack.verdicts(instance_id)] == ["alert"]


async def test_an_alert_that_comes_back_is_told_again(stack: Stack) -> None:
    """What was mended and breaks a second time is news."""
    instance_id = await stack.create()
    for _ in range(2):
        stack.hypervisor.pause(instance_id, Cause.IO_ERROR)
        await asyncio.sleep(25)
        stack.hypervisor.resume(instance_id)
        await asyncio.sleep(25)
    assert [verdict["verdict"] for verdict in await stack.verdicts(instance_id)] == ["alert", "alert"]


async def test_an_alert_that_could_not_be_written_is_written_later(stack: Stack) -> None:
    """A full disk must not swallow what the operator has to know (R15)."""
    instance_id = await stack.create()
    stack.hypervisor.pause(instance_id, Cause.IO_ERROR)
    stack.database.fails(1, after=1)
    await asyncio.sleep(20)
    assert stack.database.failures == 0
    assert [verdict["verdict"] for verdict in await stack.verdicts(instance_id)] == ["alert"]


async def test_a_migration_s_pause_is_left_alone(stack: Stack) -> None:
    """Nobody is told either."""
    instance_id = await stack.create()
    stack.hypervisor.pause(instance_id, Cause.MIGRATION)
    await asyncio.sleep(60)
    assert stack.guest(instance_id) is Observed.PAUSED
    assert await stack.verdicts(instance_id) == []


# ---- paused, suspended, stopped


async def test_a_paused_guest_that_was_resumed_is_paused_again(stack: Stack) -> None:
    """Its processors halt within a second."""
    instance_id = await stack.create()
    await stack.do("pause", instance_id)
    stack.hypervisor.resume(instance_id)
    await asyncio.sleep(1)
    row = await stack.idle(instance_id)
    assert (row.vm_state, row.observed) == (VmState.PAUSED, Observed.PAUSED)
    assert stack.guest(instance_id) is Observed.PAUSED
    assert (await stack.history(instance_id))[-1] == "restore_pause succeeded"


@pytest.mark.parametrize(
    ("behind", "becomes"),
    [(SimulatedHypervisor.destroy, VmState.STOPPED), (SimulatedHypervisor.save, VmState.SUSPENDED)],
    ids=["destroyed", "saved"],
)
async def test_a_paused_guest_that_lost_its_pause(stack: Stack, behind: Behind, becomes: VmState) -> None:
    """It is not started to be paused; the record follows it."""
    instance_id = await stack.create()
    await stack.do("pause", instance_id)
    behind(stack.hypervisor, instance_id)
    await stack.until(instance_id, lambda row: row.vm_state is becomes)
    await asyncio.sleep(30)
    assert (await stack.history(instance_id))[-2:] == ["pause succeeded", "adopt succeeded"]


async def test_a_suspended_guest_that_was_started_is_saved_again(stack: Stack) -> None:
    """With its memory, within a second (R7)."""
    instance_id = await stack.create()
    await stack.do("suspend", instance_id)
    stack.hypervisor.start(instance_id)
    await asyncio.sleep(1)
    row = await stack.idle(instance_id)
    assert (row.vm_state, row.observed) == (VmState.SUSPENDED, Observed.SUSPENDED)
    assert stack.guest(instance_id) is Observed.SUSPENDED
    assert (await stack.history(instance_id))[-1] == "restore_suspend succeeded"


async def test_a_stopped_guest_that_was_started_is_shut_down(stack: Stack) -> None:
    """Cleanly: it gets the time that any stop would give it."""
    instance_id = await stack.create("stateward.shutdown=4")
    await stack.do("stop", instance_id)
    asked = stack.asked(instance_id)
    stack.hypervisor.start(instance_id)
    begin = asyncio.get_running_loop().time()
    row = await stack.until(instance_id, lambda row: row.task_state is TaskState.POWERING_OFF)
    row = await stack.idle(instance_id)
    assert asyncio.get_running_loop().time() - begin == pytest.approx(4.3, abs=0.3)
    assert (row.vm_state, row.observed, row.cause) == (VmState.STOPPED, Observed.SHUTOFF, Cause.GUEST)
    assert stack.asked(instance_id) == asked + 1
    assert (await stack.history(instance_id))[-1] == "restore_stop succeeded"


async def test_a_stopped_and_locked_guest_that_was_started_loses_its_power(stack: Stack) -> None:
    """At once, without being asked: locked off means off (R1)."""
    instance_id = await stack.create("stateward.acpi=ignore")
    await stack.do("stop", instance_id, body=ShutdownOptions(force=True))
    await stack.immediate.lock(instance_id, actor(), reason=None, project_id="p")
    await asyncio.sleep(0.01)
    stack.hypervisor.start(instance_id)
    await asyncio.sleep(0.5)
    row = await stack.idle(instance_id)
    assert (row.vm_state, row.observed, row.cause) == (
        VmState.STOPPED,
        Observed.SHUTOFF,
        Cause.DESTROYED,
    )
    assert stack.asked(instance_id) == 0
    assert (await stack.history(instance_id))[-1] == "restore_off succeeded"


async def test_a_deleted_guest_that_is_found_is_removed(stack: Stack) -> None:
    """Whoever brought it back; the record stays deleted, at the time it was."""
    instance_id = await stack.create()
    gone = await stack.do("delete", instance_id)
    assert gone.vm_state is VmState.DELETED
    driver = stack.agent.driver
    spec = spec_of(instance_id)
    await driver.prepare_disk(spec)
    await driver.define(spec)
    await driver.power_on(instance_id)
    await asyncio.sleep(1)
    row = await stack.idle(instance_id)
    assert stack.hypervisor.guest(instance_id).blank
    assert (row.vm_state, row.terminated_at) == (VmState.DELETED, gone.terminated_at)
    assert await stack.history(instance_id) == ["create succeeded", "delete succeeded", "reap succeeded"]


async def test_a_host_that_rebooted(stack: Stack) -> None:
    """Running ones come back, stopped ones stay off, suspended ones stay suspended, paused ones are stopped (R14)."""
    running, stopped, suspended, paused = [await stack.create() for _ in range(4)]
    await stack.do("stop", stopped)
    await stack.do("suspend", suspended)
    await stack.do("pause", paused)
    stack.hypervisor.unavailable()
    stack.hypervisor.reboot_host()
    await asyncio.sleep(45)
    stack.hypervisor.available()
    await asyncio.sleep(2)
    rows = [await stack.idle(each) for each in (running, stopped, suspended, paused)]
    assert [(row.vm_state, row.observed) for row in rows] == [
        (VmState.ACTIVE, Observed.RUNNING),
        (VmState.STOPPED, Observed.SHUTOFF),
        (VmState.SUSPENDED, Observed.SUSPENDED),
        (VmState.STOPPED, Observed.SHUTOFF),
    ]
    histories = [(await stack.history(each))[-1] for each in (running, stopped, suspended, paused)]
    assert histories == [
        "boot_start succeeded",
        "stop succeeded",
        "suspend succeeded",
        "adopt succeeded",
    ]


# ---- in flight, unknown, crash loops


async def test_nothing_is_judged_while_an_operation_is_in_flight(stack: Stack) -> None:
    """A guest destroyed during its clean shutdown is stopped, as it was to be; nobody starts it (R12)."""
    instance_id = await stack.create("stateward.acpi=ignore")
    await stack.act("stop", instance_id)
    await asyncio.sleep(3)
    stack.hypervisor.destroy(instance_id)
    row = await stack.idle(instance_id)
    await asyncio.sleep(30)
    assert (row.vm_state, row.observed) == (VmState.STOPPED, Observed.SHUTOFF)
    assert await stack.history(instance_id) == ["create succeeded", "stop succeeded"]
    assert await stack.verdicts(instance_id) == []


async def test_what_happened_meanwhile_is_judged_after_the_operation(stack: Stack) -> None:
    """A guest paused during a pause's own wait for its hypervisor agrees; one that is let run on does not."""
    instance_id = await stack.create()
    hang = stack.hypervisor.hang_next("pause")
    await stack.act("pause", instance_id)
    await hang.reached.wait()
    stack.hypervisor.destroy(instance_id)
    await asyncio.sleep(3)
    assert stack.guest(instance_id) is Observed.SHUTOFF
    hang.release()
    await asyncio.sleep(2)
    row = await stack.idle(instance_id)
    assert (row.vm_state, row.observed) == (VmState.ACTIVE, Observed.RUNNING)
    assert await stack.history(instance_id) == [
        "create succeeded",
        "pause failed",
        "restore_start succeeded",
    ]


async def test_a_hypervisor_that_is_away_changes_nothing(stack: Stack) -> None:
    """Whatever happens there; what is seen when it is back is judged then (R12)."""
    instance_id = await stack.create()
    stack.hypervisor.unavailable()
    stack.hypervisor.destroy(instance_id)
    await asyncio.sleep(300)
    row = await stack.instance(instance_id)
    assert (row.vm_state, row.task_state, row.observed) == (VmState.ACTIVE, None, Observed.RUNNING)
    assert await stack.verdicts(instance_id) == []
    stack.hypervisor.available()
    await asyncio.sleep(1)
    assert (await stack.idle(instance_id)).observed is Observed.RUNNING
    assert stack.guest(instance_id) is Observed.RUNNING
    assert (await stack.history(instance_id))[-1] == "restore_start succeeded"


async def test_a_guest_that_keeps_crashing_is_left_alone(stack: Stack) -> None:
    """After five restarts it is in error, with what to do; and a person's reboot is tried as ever."""
    instance_id = await stack.create("stateward.panic_after=3")
    row = await stack.until(instance_id, lambda row: row.vm_state is VmState.ERROR)
    await asyncio.sleep(60)
    assert stack.guest(instance_id) is Observed.SHUTOFF
    assert await stack.history(instance_id) == [
        "create succeeded",
        *["restore_start succeeded"] * 5,
        "adopt succeeded",
    ]
    assert row.fault is not None
    assert row.fault.message.startswith("The guest had to be brought back 5 times within ")
    assert "reboot it hard" in row.fault.message
    await stack.act("reboot_hard", instance_id)
    row = await stack.until(instance_id, lambda row: row.vm_state is VmState.ACTIVE)
    assert row.fault is None


async def test_crashes_that_are_far_apart_are_no_loop(stack: Stack) -> None:
    """Ten in as many hours are ten restarts."""
    instance_id = await stack.create()
    for _ in range(7):
        await asyncio.sleep(300)
        stack.hypervisor.crash(instance_id)
        await asyncio.sleep(1)
        row = await stack.idle(instance_id)
        assert (row.vm_state, row.observed) == (VmState.ACTIVE, Observed.RUNNING)
    states = [each.state for each in await stack.operations(instance_id)]
    assert states == [OperationState.SUCCEEDED] * 8


async def test_a_report_that_could_not_be_kept_is_not_lost(stack: Stack) -> None:
    """It is delivered again, and counts then: the guest is back long before the next relist (B8)."""
    instance_id = await stack.create()
    await asyncio.sleep(1)
    stack.database.fails(1)
    stack.hypervisor.destroy(instance_id)
    await asyncio.sleep(1)
    assert stack.database.failures == 0
    row = await stack.idle(instance_id)
    assert (row.observed, stack.guest(instance_id)) == (Observed.RUNNING, Observed.RUNNING)
    assert (await stack.history(instance_id))[-1] == "restore_start succeeded"
