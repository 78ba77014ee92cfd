"""Servers with broken locks are convicted, by the same clients and the same checker."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.harness import ServerProcess
from tests.linear import test_stack
from tests.linear.broken_stack import FAULTS
from tests.linear.test_linear import convict, record

pytestmark = [pytest.mark.asyncio, pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.mark.parametrize(
    ("fault", "clients"),
    [
        ("check-then-act", 16),
        ("stale-locks", 16),
        ("early-answer", 16),
        # With more clients there is always some unlock beside it that explains what was freed.
        ("frees-both", 4),
    ],
)
async def test_a_broken_server_is_convicted(tmp_path: Path, fault: str, clients: int) -> None:
    """A violation is found in what some thousand requests recorded, whatever is broken."""
    program = (sys.executable, "-m", "tests.linear.broken", fault)
    # The fault is in the server at all times; which requests meet it is the machine's doing.
    found = []
    for seed in range(3, 13):
        # A new one each time, which has nothing of the last one's.
        folder = tmp_path / str(seed)
        folder.mkdir()
        async with ServerProcess(folder, program=program) as server:
            found = convict(await record(server, requests=2000, seed=seed, clients=clients))
            await server.stop()
        if found:
            break
    print(found[:1])  # noqa: T201
    assert found


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_broken_stack_is_convicted(tmp_path: Path, fault: str) -> None:
    """The same of stacked locks, holds, expiry and overrides."""
    program = (sys.executable, "-m", "tests.linear.broken_stack", fault)
    found = []
    for seed in range(3, 43):
        folder = tmp_path / str(seed)
        folder.mkdir()
        async with test_stack.simulated(folder, program=program) as server:
            histories = await test_stack.record(server, requests=1500, seed=seed, clients=12, instances=2)
            await server.stop()
        found = test_stack.convict(histories)
        if found:
            break
    print(found[:1])  # noqa: T201
    assert found
