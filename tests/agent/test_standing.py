"""An agent that asks first what it may do: whatever fails before it takes operations, it takes them in the end.

Its heartbeats go on meanwhile, so that nobody else would notice.
"""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import looptime
import msgspec
import pytest
import pytest_asyncio

from stateward.agent.agent import Agent
from stateward.agent.journal import Journal
from stateward.agent.simulated import SimulatedDriver
from stateward.agent.worker import result_of
from stateward.bus.port import STANDING
from stateward.domain.questions import Standing
from stateward.domain.records import Outcome
from tests.agent.workbench import Workbench

pytestmark = [pytest.mark.asyncio, pytest.mark.looptime]

#: Larger than any number that this agent would begin with.
ABOVE = 2_000_000_000 << 28


class Asking(Workbench):
    """One whose agent asks first, with a journal on a disk that can be full."""

    def __init__(self, folder: Path) -> None:
        self._journals: list[sqlite3.Connection] = []
        super().__init__(folder, disorder=None)
        self.standing = Standing(overtaken={}, above=0)
        self.asked = 0

    def make_agent(self, journal: str = "journal.db") -> Agent:
        """Make it."""
        connect = sqlite3.connect

        def connected(*where: Any, **how: Any) -> sqlite3.Connection:
            self._journals.append(connect(*where, **how))
            return self._journals[-1]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sqlite3, "connect", connected)
            return self._make(journal)

    def _make(self, journal: str) -> Agent:
        return Agent(
            host="h",
            driver=SimulatedDriver(self.hypervisor),
            bus=self.bus,
            clock=self.clock,
            journal=self._folder / journal,
            asks_first=True,
        )

    async def start(self) -> None:
        """Start it with a control plane that answers."""
        await self.bus.answer(STANDING, self._answer)
        await super().start()

    def full(self, *, full: bool) -> None:
        """Have the journal be written no more, or again."""
        self._journals[-1].execute(f"PRAGMA query_only = {full:d}")

    async def _answer(self, payload: bytes) -> bytes:
        self.asked += 1
        return msgspec.json.encode(self.standing)


@pytest_asyncio.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Asking]:
    """Give an agent that is not started yet."""
    bench = Asking(tmp_path)
    yield bench
    with looptime.enabled(strict=True):
        await bench.stop()


async def test_what_was_overtaken_cannot_be_noted_at_first(bench: Asking) -> None:
    """It asks again, notes it, and takes the operations that waited; its numbers are kept for its next life too."""
    bench.standing = Standing(overtaken={"b": 5}, above=ABOVE)
    bench.full(full=True)
    await bench.start()
    create = await bench.send(bench.dispatch("create", 1))
    await bench.settle()
    assert (bench.asked, bench.results[create]) == (1, [])
    bench.full(full=False)
    assert (await bench.result(create)).outcome is Outcome.SUCCEEDED
    assert bench.asked == 2
    assert bench.agent.worker.journal.fence("b") == 5
    bench.agent.worker.journal.close()
    assert Journal(bench.journal, 0.0).next_seq() > ABOVE


async def test_what_a_former_life_left_cannot_be_gone_on_with_at_first(bench: Asking) -> None:
    """A result that could not be noted as sent is sent again, and what was begun is finished once."""
    journal, at = bench.agent.worker.journal, bench.clock.now()
    done, begun = bench.dispatch("create", 1), bench.dispatch("create", 1, guest="b")
    for each in (done, begun):
        assert journal.accept(each, at)
    journal.finished(result_of(done, Outcome.SUCCEEDED, None))
    bench.full(full=True)
    await bench.start()
    await bench.settle()
    assert bench.calls("prepare_disk", "b") == []
    bench.full(full=False)
    assert (await bench.result(begun.operation_id)).outcome is Outcome.SUCCEEDED
    assert len(bench.results[done.operation_id]) == 2
    assert len(bench.calls("prepare_disk", "b")) == 1
    assert (await bench.do("stop", 2, guest="b", seconds=0)).outcome is Outcome.SUCCEEDED
