"""The daemons of libvirt that Stateward started: nobody else starts them again."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, MutableMapping
from pathlib import Path
from typing import Any

import libvirt
import pytest
import pytest_asyncio
from structlog.testing import capture_logs

from stateward.agent.libvirt import daemons
from stateward.agent.libvirt.daemons import LibvirtPlace
from stateward.agent.libvirt.pidfile import Daemon, DaemonError

pytestmark = [pytest.mark.asyncio, pytest.mark.guests]

#: Seconds that a loaded machine may take for anything.
PATIENCE = 60.0


@pytest_asyncio.fixture
async def folder() -> AsyncIterator[Path]:
    """Make a folder whose path is short enough for a socket's; what runs on it is ended."""
    made = Path(tempfile.mkdtemp(prefix="stateward-"))
    try:
        yield made
    finally:
        await daemons.stop_own(made)
        shutil.rmtree(made)


@pytest.fixture
def logs() -> Iterator[list[MutableMapping[str, Any]]]:
    """Give what is logged."""
    with capture_logs() as found:
        yield found


async def test_a_libvirtd_that_ends_is_started_again(
    folder: Path, logs: list[MutableMapping[str, Any]]
) -> None:
    """However often; also one that was told to end."""
    await daemons.own(folder)
    server = Daemon("libvirtd", "", folder / "libvirt")
    started = asyncio.Queue[LibvirtPlace]()

    async def start() -> None:
        await started.put(await daemons.own(folder))

    keeping = asyncio.create_task(daemons.kept([server], start, first_pause=0.0))
    for how in (signal.SIGKILL, signal.SIGTERM):
        await asyncio.sleep(0)
        before = server.pid()
        assert before is not None
        os.kill(before, how)
        async with asyncio.timeout(PATIENCE):
            place = await started.get()
        assert server.pid() not in {None, before}
    assert [each["program"] for each in logs] == ["libvirtd"] * 2
    keeping.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await keeping
    connection = libvirt.open(place.uri)
    assert connection.getType() == "QEMU"
    connection.close()


async def until_over(server: Daemon, start: Callable[[], Awaitable[None]]) -> None:
    """Kill a daemon that is kept, and wait until it is not kept any more."""
    keeping = asyncio.create_task(daemons.kept([server], start, first_pause=0.0))
    await asyncio.sleep(0)
    pid = server.pid()
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    async with asyncio.timeout(PATIENCE):
        await keeping


async def test_one_that_somebody_else_runs_is_theirs(
    folder: Path, logs: list[MutableMapping[str, Any]]
) -> None:
    """It was ended to be run otherwise: what Stateward started is not looked after any more."""
    await daemons.own(folder)
    server = Daemon("libvirtd", "", folder / "libvirt")

    async def there_already() -> None:
        """Start nothing."""

    await until_over(server, there_already)
    assert [each["program"] for each in logs] == ["libvirtd"]


async def test_one_that_cannot_be_started_is_told_and_tried_again(
    folder: Path, logs: list[MutableMapping[str, Any]]
) -> None:
    """Until it can."""
    await daemons.own(folder)
    server = Daemon("libvirtd", "", folder / "libvirt")
    tries = 0

    async def start() -> None:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise DaemonError("It has no memory.")

    await until_over(server, start)
    assert [each.get("error") for each in logs] == [
        None,
        "It has no memory.",
        None,
        "It has no memory.",
        None,
    ]
