"""Operations that a host's boot comes in the middle of, at every step: all are finished, and records true (R14, B3)."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final

import pytest

from stateward.domain.actions import BY_KEY
from stateward.domain.verdicts import Kind, judge_instance
from stateward.store.engine import Database
from tests.crash.points import Point, Traps, When, points
from tests.stack import Stack

pytestmark = [pytest.mark.asyncio, pytest.mark.looptime]

#: By the operation: what is done before it, and the recorded states it may end in. Where there are two, the boot came
#: before the guest was, or after it was, and what it was went with the host's memory.
CASES: Final[dict[str, tuple[str | None, frozenset[str]]]] = {
    "stop": (None, frozenset({"stopped"})),
    "stop_force": (None, frozenset({"stopped"})),
    "start": ("stop", frozenset({"active"})),
    "reboot_soft": (None, frozenset({"active"})),
    "reboot_hard": (None, frozenset({"active"})),
    "pause": (None, frozenset({"active", "stopped"})),
    "unpause": ("pause", frozenset({"active", "stopped"})),
    "suspend": (None, frozenset({"active", "suspended"})),
    "resume": ("suspend", frozenset({"active", "stopped"})),
    "rescue": (None, frozenset({"rescued"})),
    "unrescue": ("rescue", frozenset({"active"})),
    "delete": (None, frozenset({"deleted"})),
}


@pytest.mark.parametrize(
    "action",
    [pytest.param(each, marks=() if each == "stop" else pytest.mark.slow) for each in CASES],
)
async def test_an_operation_in_flight_is_finished(
    inline_database: Database, swift_folder: Path, action: str
) -> None:
    """Wherever in it the host, the agent and the control plane went down; nothing is started twice in a boot."""
    first, ends = CASES[action]
    stack = Stack(inline_database, swift_folder, None)
    await stack.start()
    derived = points(BY_KEY[action])
    found: list[tuple[Point, str]] = []
    # What is killed in its wait for a guest cannot wait until all others are where they are to be.
    for group in (
        [point for point in derived if point.when is not When.DURING],
        [point for point in derived if point.when is When.DURING],
    ):
        ready = [(point, await stack.create("stateward.shutdown=3")) for point in group]
        for _, instance_id in ready:
            if first is not None:
                await stack.do(first, instance_id)
        with pytest.MonkeyPatch.context() as patch:
            traps = Traps(stack.agent, patch)
            for point, instance_id in ready:
                traps.set(instance_id, point)
                await stack.act(action, instance_id)
            async with asyncio.timeout(100):
                await traps.reached()
            stack.hypervisor.calls.clear()
            stack.hypervisor.reboot_host()
            await stack.stop()
        stack = Stack(inline_database, swift_folder, None, after=stack)
        await stack.start()
        await asyncio.sleep(60)
        started = [
            call.instance_id for call in stack.hypervisor.calls if call.name == "power_on" and not call.error
        ]
        assert len(started) == len(set(started))
        found += ready
    wrong: list[str] = []
    for point, instance_id in found:
        row = await stack.instance(instance_id)
        operations = await stack.operations(instance_id)
        if any(each.finished_at is None for each in operations) or row.task_state is not None:
            wrong.append(f"{point}: not finished: {await stack.history(instance_id)}")
        elif row.vm_state not in ends or judge_instance(row).kind is not Kind.AGREE:
            wrong.append(f"{point}: {row.vm_state} {row.observed}: {await stack.history(instance_id)}")
        elif stack.guest(instance_id) is not row.observed:
            wrong.append(f"{point}: {stack.guest(instance_id)}, and not {row.observed}")
    assert not wrong, "\n".join(wrong)
    await stack.stop()
