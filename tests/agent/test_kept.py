"""Keeping daemons that were started here: whatever goes wrong with a start, the next one is tried."""

from __future__ import annotations

import asyncio
import errno
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio
from structlog.testing import capture_logs

from stateward.agent.libvirt.daemons import kept
from stateward.agent.libvirt.pidfile import Daemon, DaemonError

#: Seconds that a loaded machine may take for anything.
PATIENCE = 60.0


class Daemons:
    """One daemon after the other, by one pid file; each is a process that only sleeps."""

    def __init__(self, folder: Path) -> None:
        self.daemon = Daemon("libvirtd", "", folder)
        self._pid_file = folder / "libvirtd.pid"
        self._now: asyncio.subprocess.Process | None = None

    async def run(self) -> None:
        """Start one."""
        self._now = await asyncio.create_subprocess_exec(
            "sh", "-c", "echo; read _; exit", str(self._pid_file), stdin=PIPE, stdout=PIPE
        )
        assert self._now.stdout is not None
        # Before it runs, Linux shows an empty command line of it.
        await self._now.stdout.readline()
        self._pid_file.write_text(str(self._now.pid), encoding="ascii")

    async def end(self) -> None:
        """End the one that runs."""
        process, self._now = self._now, None
        if process is not None:
            process.kill()
            # The next one may run before this one is buried.
            await process.wait()


@pytest_asyncio.fixture
async def daemons(tmp_path: Path) -> AsyncIterator[Daemons]:
    """Give a daemon that runs."""
    found = Daemons(tmp_path)
    await found.run()
    yield found
    await found.end()


async def test_whatever_a_start_fails_by_it_is_tried_again(daemons: Daemons) -> None:
    """A full disk, no process to be had: the daemon is away for that long, and not until the server is restarted."""
    fails: list[Exception] = [
        OSError(errno.ENOSPC, "No space left on device"),
        DaemonError("It has no memory."),
        RuntimeError("can't start new thread"),
    ]
    started = asyncio.Event()

    async def start() -> None:
        if fails:
            raise fails.pop(0)
        await daemons.run()
        started.set()

    with capture_logs() as logs:
        keeping = asyncio.create_task(kept([daemons.daemon], start, first_pause=0.0))
        await asyncio.sleep(0)
        await daemons.end()
        async with asyncio.timeout(PATIENCE):
            await started.wait()
        # It is kept still.
        started.clear()
        await daemons.end()
        async with asyncio.timeout(PATIENCE):
            await started.wait()
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
    assert [each["event"] for each in logs if each["log_level"] == "error"] == [
        "it could not be started; it is tried again"
    ] * 2
