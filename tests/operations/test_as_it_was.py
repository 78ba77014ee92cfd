"""What cannot be done leaves instance and guest as they were: the whole control plane, on simulated guests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import looptime
import pytest
import pytest_asyncio

from stateward.agent.driver import DriverError
from stateward.bus.memory import Disorder
from stateward.domain.records import Instance
from stateward.domain.states import Observed, VmState
from stateward.store.engine import Database
from tests.stack import Stack

pytestmark = [pytest.mark.asyncio, pytest.mark.looptime]


@pytest_asyncio.fixture
async def stack(inline_database: Database, swift_folder: Path) -> AsyncIterator[Stack]:
    """Give a running stack, behind a bus that misbehaves."""
    stack = Stack(inline_database, swift_folder, Disorder(seed=1, duplicate=0.5))
    with looptime.enabled(strict=True):
        await stack.start()
    yield stack
    with looptime.enabled(strict=True):
        await stack.stop()


def said(instance: Instance) -> str | None:
    return None if instance.fault is None else instance.fault.message


async def test_a_memory_that_there_is_no_room_for(stack: Stack) -> None:
    """A suspend fails with what to do; the guest runs on, and is suspended when there is room again."""
    server = await stack.create()
    full = "The guest's memory cannot be saved: the host's disk is full. Free some of it, and try again."
    stack.hypervisor.fail_next("save_memory", DriverError(full))
    instance = await stack.do("suspend", server)
    assert (instance.vm_state, instance.task_state, said(instance)) == (VmState.ACTIVE, None, full)
    assert stack.guest(server) is Observed.RUNNING
    assert await stack.history(server) == ["create succeeded", "suspend failed"]
    assert (await stack.operations(server))[-1].message == full
    instance = await stack.do("suspend", server)
    assert (instance.vm_state, said(instance)) == (VmState.SUSPENDED, None)
    assert stack.guest(server) is Observed.SUSPENDED
