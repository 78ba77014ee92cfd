"""The connection to libvirt: whatever goes wrong with connecting, it is tried again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import libvirt
import pytest

from stateward.agent.driver import HypervisorUnavailable
from stateward.agent.libvirt import connection as module
from stateward.agent.libvirt.connection import Change, Connection, Lane
from stateward.threads import apart
from tests.harness import until

#: Seconds that a loaded machine may take for anything.
PATIENCE = 60.0


class Threads:
    """Starts no thread for some purposes, once for each."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *refused: str) -> None:
        self.refused = list(refused)
        #: What was to be done on those.
        self.left: list[Callable[[], Any]] = []
        monkeypatch.setattr(module, "apart", self._apart)

    async def _apart(self, name: str, call: Callable[[], Any], **named: Any) -> Any:
        if name in self.refused:
            self.refused.remove(name)
            self.left.append(call)
            msg = "can't start new thread"
            raise RuntimeError(msg)
        return await apart(name, call, **named)


def kind(connection: libvirt.virConnect) -> str:
    return connection.getType()


async def answers(connection: Connection) -> None:
    """Wait until it is up."""

    async def look() -> bool | None:
        try:
            return True if await connection.run(Lane.LOOK, kind) == "TEST" else None
        except HypervisorUnavailable:
            return None

    await until(look, seconds=PATIENCE, says=lambda: "nobody connects again")


def _deaf(_uuid: str | None, _change: Change) -> None:
    """Hear of nothing."""


async def test_without_a_thread_at_first_it_opens_and_tries_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server starts, and says why its hypervisor cannot be asked."""
    threads = Threads(monkeypatch, "libvirt-connect")
    connection = Connection("test:///default", _deaf)
    async with asyncio.timeout(PATIENCE):
        await connection.open()
    with pytest.raises(HypervisorUnavailable, match="can't start new thread"):
        await connection.run(Lane.LOOK, kind)
    await answers(connection)
    assert threads.refused == []
    await connection.close()


async def test_without_a_thread_it_connects_again_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither to close what was lost nor to connect anew."""
    anew = asyncio.Event()

    def changed(uuid: str | None, change: Change) -> None:
        if (uuid, change) == (None, Change.DEFINITION):
            anew.set()

    connection = Connection("test:///default", changed)
    threads = Threads(monkeypatch)
    lost = [True]

    def alive(_: libvirt.virConnect) -> bool:
        # The first one is gone before it is looked at.
        if lost:
            threads.refused += ["libvirt-close", "libvirt-connect"]
            return not lost.pop()
        return True

    monkeypatch.setattr(module, "_alive", alive)
    await connection.open()
    async with asyncio.timeout(PATIENCE):
        await anew.wait()
    await answers(connection)
    assert threads.refused == []
    await connection.close()
    # The first one's closing: or what libvirt has in this process's memory would outlive the test.
    threads.left[0]()
