"""Policies, from a guest that was acted on behind our back to what becomes of it, its record and the audit trail."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import looptime
import pytest
import pytest_asyncio

from stateward.bus.memory import Disorder
from stateward.domain.locks import ActorKind, LockKind
from stateward.domain.policies import CrashLoop, Loop, Policies, Policy, Rule, check
from stateward.domain.states import Cause, Observed, VmState
from stateward.domain.verdicts import Kind
from stateward.operations.locking import Locking
from stateward.operations.stacking import LockWish
from stateward.store.engine import Database
from tests.rows import actor
from tests.stack import Stack

pytestmark = [pytest.mark.asyncio, pytest.mark.looptime]

A, P, T = VmState.ACTIVE, VmState.PAUSED, VmState.STOPPED

POLICIES = Policies(
    named={
        "base": Policy(
            rule=(
                Rule(expected=A, observed=Observed.CRASHED, verdict=Kind.QUARANTINE),
                Rule(expected=P, observed=Observed.SHUTOFF, cause=Cause.HOST, verdict=Kind.RESTORE),
                Rule(expected=P, observed=Observed.SHUTOFF, cause=Cause.DESTROYED, verdict=Kind.RESTORE),
                Rule(expected=T, observed=Observed.RUNNING, verdict=Kind.ADOPT),
            )
        ),
        "keep-on": Policy(
            rule=(Rule(expected=A, observed=Observed.SHUTOFF, cause=Cause.GUEST, verdict=Kind.RESTORE),),
            crash_loop=Loop(restores=2, pause=10, factor=3),
        ),
        "leave": Policy(rule=(Rule(expected=T, observed=Observed.RUNNING, verdict=Kind.IGNORE),)),
    },
    default="base",
    selectable=frozenset({"keep-on", "leave"}),
    crash_loop=CrashLoop(seconds=600),
)


@pytest_asyncio.fixture
async def stack(inline_database: Database, swift_folder: Path) -> AsyncIterator[Stack]:
    """Give a running stack whose arbiter follows policies."""
    check(POLICIES)
    stack = Stack(inline_database, swift_folder, Disorder(seed=1, duplicate=0.5), policies=POLICIES)
    with looptime.enabled(strict=True):
        await stack.start()
    yield stack
    with looptime.enabled(strict=True):
        await stack.stop()


async def test_quarantine(stack: Stack) -> None:
    """The instance is in error with why, its guest exactly as it is, and a person is told once."""
    instance_id = await stack.create()
    stack.hypervisor.crash(instance_id, kept=True)
    row = await stack.until(instance_id, lambda row: row.vm_state is VmState.ERROR)
    await asyncio.sleep(60)
    assert stack.guest(instance_id) is Observed.CRASHED
    assert row.fault is not None
    assert row.fault.message == (
        "Recorded as active and seen crashed; by policy base (default), rule 1, the instance is put in error and left "
        "to a person. Its guest is left as it is; find out why, then reset the instance's state."
    )
    assert await stack.history(instance_id) == ["create succeeded", "adopt succeeded"]
    (verdict,) = await stack.verdicts(instance_id)
    assert (verdict["verdict"], verdict["decided_by"]) == ("quarantine", "policy base (default), rule 1")
    (told,) = await stack.verdicts(instance_id, "alert")
    assert (told["verdict"], told["says"]) == ("quarantine", row.fault.message)


async def test_a_paused_guest_comes_back_paused(stack: Stack) -> None:
    """After its host has booted, or somebody took its power, where a policy says so; its memory is lost (R14)."""
    instance_id = await stack.create()
    await stack.do("pause", instance_id)
    for behind, action in (
        (stack.hypervisor.reboot_host, "boot_paused"),
        (lambda: stack.hypervisor.destroy(instance_id), "restore_paused"),
    ):
        behind()
        await asyncio.sleep(2)
        row = await stack.idle(instance_id)
        assert (row.vm_state, row.observed, stack.guest(instance_id)) == (P, Observed.PAUSED, Observed.PAUSED)
        assert (await stack.history(instance_id))[-1] == f"{action} succeeded"


async def test_the_record_may_follow_a_guest_that_was_started(stack: Stack) -> None:
    """Unless a lock keeps it off: that goes before every policy (R1)."""
    instance_id = await stack.create()
    await stack.do("stop", instance_id)
    stack.hypervisor.start(instance_id)
    await asyncio.sleep(2)
    row = await stack.idle(instance_id)
    assert (row.vm_state, stack.guest(instance_id)) == (A, Observed.RUNNING)
    await stack.do("stop", instance_id)

    await stack.immediate.lock(instance_id, actor(), reason=None, project_id="p")
    stack.hypervisor.start(instance_id)
    await asyncio.sleep(2)
    row = await stack.idle(instance_id)
    assert (row.vm_state, stack.guest(instance_id)) == (T, Observed.SHUTOFF)
    assert (await stack.history(instance_id))[-1] == "restore_off succeeded"


async def test_restores_back_off_and_stop_as_the_instance_s_policy_says(stack: Stack) -> None:
    """At once, after ten seconds, and then no more; each bound from the nearest layer that has it."""
    instance_id = await stack.create("", stateward_policy="keep-on")
    began = asyncio.get_running_loop().time()
    stack.hypervisor.guest_shutdown(instance_id)
    await asyncio.sleep(1)
    assert (await stack.idle(instance_id)).vm_state is A
    assert stack.guest(instance_id) is Observed.RUNNING
    stack.hypervisor.guest_shutdown(instance_id)
    await asyncio.sleep(5)
    assert stack.guest(instance_id) is Observed.SHUTOFF
    assert (await stack.instance(instance_id)).vm_state is A
    await asyncio.sleep(10)
    assert stack.guest(instance_id) is Observed.RUNNING
    stack.hypervisor.guest_shutdown(instance_id)
    row = await stack.until(instance_id, lambda row: row.vm_state is VmState.ERROR)
    assert asyncio.get_running_loop().time() - began < 30
    await asyncio.sleep(60)
    assert stack.guest(instance_id) is Observed.SHUTOFF
    assert await stack.history(instance_id) == [
        "create succeeded",
        "restore_start succeeded",
        "restore_start succeeded",
        "adopt succeeded",
    ]
    assert row.fault is not None
    assert row.fault.message.startswith("The guest had to be brought back 2 times within 600 seconds")
    assert "by policy keep-on (image), rule 1" in row.fault.message
    (told,) = await stack.verdicts(instance_id, "alert")
    assert (told["cause"], told["says"]) == ("guest", row.fault.message)


async def test_whoever_may_not_choose_a_policy_does_not(stack: Stack) -> None:
    """The table, and the layers below, decide."""
    instance_id = await stack.create("", stateward_policy="base")
    stack.hypervisor.guest_shutdown(instance_id)
    await asyncio.sleep(2)
    assert (await stack.idle(instance_id)).vm_state is T


async def test_a_lock_that_is_inherited_has_what_is_ignored_judged_again(stack: Stack) -> None:
    """A stopped guest that runs, as its policy leaves it, is off as soon as its project is locked."""
    instance_id = await stack.create("", stateward_policy="leave")
    await stack.do("stop_force", instance_id)
    stack.hypervisor.start(instance_id)
    await asyncio.sleep(60)
    assert stack.guest(instance_id) is Observed.RUNNING
    locking = Locking(stack.admission, stack.immediate, lambda: None)
    await locking.place_on_project(
        "p", None, actor(ActorKind.ADMIN), LockWish(kind=LockKind.ADMIN, holder="an admin", name="unpaid")
    )
    await asyncio.sleep(2)
    assert stack.guest(instance_id) is Observed.SHUTOFF
    assert (await stack.history(instance_id))[-1] == "restore_off succeeded"
