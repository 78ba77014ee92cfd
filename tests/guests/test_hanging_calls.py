"""Calls of libvirt that never come back: others are served all the same, and closing does not wait for them."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import libvirt
import pytest
import pytest_asyncio

from stateward.agent.driver import HypervisorUnavailable
from stateward.agent.libvirt.connection import Change, Connection, Lane
from stateward.agent.libvirt.daemons import LibvirtPlace, own, stop_own
from tests.harness import until

pytestmark = [pytest.mark.asyncio, pytest.mark.guests]

#: Seconds that a loaded machine may take for anything.
PATIENCE = 60.0


@pytest.fixture
def folder() -> Iterator[Path]:
    """Give a folder with a path short enough for libvirt's sockets."""
    path = Path(tempfile.mkdtemp(prefix="stateward-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest_asyncio.fixture
async def place(folder: Path) -> AsyncIterator[LibvirtPlace]:
    """Give a libvirtd without guests."""
    yield await own(folder)
    await stop_own(folder)


@pytest_asyncio.fixture
async def connection(place: LibvirtPlace) -> AsyncIterator[Connection]:
    """Give a connection to it that is up."""
    found = Connection(place.uri, _deaf)
    await found.open()
    yield found
    await found.close()


def _deaf(_uuid: str | None, _change: Change) -> None:
    """Hear of nothing."""


class Hanging:
    """Calls that come back when they are let go, and the connections they were made on."""

    def __init__(self) -> None:
        self.connections: list[libvirt.virConnect] = []
        self._go = threading.Event()

    def call(self, connection: libvirt.virConnect) -> str:
        """Hang."""
        self.connections.append(connection)
        self._go.wait()
        return connection.getType()

    def release(self) -> None:
        """Let all of them go on."""
        self._go.set()

    async def begin(self, connection: Connection, count: int) -> None:
        """Make so many calls at a time and give them up."""
        before = len(self.connections)
        calls = [asyncio.create_task(connection.run(Lane.ACT, self.call)) for _ in range(count)]

        async def look() -> bool | None:
            return True if len(self.connections) == before + count else None

        await until(look, seconds=PATIENCE, says=lambda: f"{len(self.connections) - before} calls were begun")
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)


def kind(connection: libvirt.virConnect) -> str:
    return connection.getType()


async def test_hanging_calls_use_up_neither_threads_nor_connections(connection: Connection) -> None:
    """More of them than the lane has calls at a time; each takes its connection with it, and gets a new one."""

    async def renewed() -> bool | None:
        return None if connection.renewing else True

    hanging = Hanging()
    for _ in range(9):
        await hanging.begin(connection, 1)
        answers = await asyncio.gather(*(connection.run(Lane.ACT, kind) for _ in range(16)))
        assert set(answers) == {"QEMU"}
        await until(renewed, seconds=PATIENCE, says=lambda: "no new connection was made")
    assert len({id(each) for each in hanging.connections}) == 9
    hanging.release()
    assert await connection.run(Lane.ACT, kind) == "QEMU"


async def test_as_many_as_libvirtd_can_work_on_make_it_count_as_away(connection: Connection) -> None:
    """It says why and what to do; when they have come back, so has libvirtd."""
    hanging = Hanging()
    for _ in range(5):
        await hanging.begin(connection, 4)
    with pytest.raises(HypervisorUnavailable, match="20 calls hang; restart libvirtd"):
        await connection.run(Lane.LOOK, kind)
    hanging.release()

    async def look() -> str | None:
        try:
            return await connection.run(Lane.LOOK, kind)
        except HypervisorUnavailable:
            return None

    assert await until(look, seconds=PATIENCE, says=lambda: "libvirtd still counts as away") == "QEMU"


async def test_closing_does_not_wait_for_what_hangs(place: LibvirtPlace) -> None:
    """Five seconds are for calls that do come back."""
    connection = Connection(place.uri, _deaf)
    await connection.open()
    hanging = Hanging()
    await hanging.begin(connection, 1)
    began = time.monotonic()
    async with asyncio.timeout(PATIENCE):
        await connection.close()
    assert time.monotonic() - began > 4
    hanging.release()
