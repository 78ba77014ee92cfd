"""Many instances that are locked or unlocked at once: nothing was seen of them, and the others are not kept waiting."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
import sqlalchemy as sa

from stateward.arbiter.reconcile import Arbiter
from stateward.bus.memory import MemoryBus
from stateward.domain.verdicts import Verdict
from stateward.store import observations
from stateward.store.engine import Database
from tests.operations.desk import Desk

pytestmark = [pytest.mark.asyncio, pytest.mark.looptime]


class Listing(Arbiter):
    """Notes what is judged, and in which order, among the parts that are looked through."""

    noted: list[str | int]

    async def reconcile(self, instance_id: str) -> Verdict | None:
        """Note it; judging is tested elsewhere."""
        self.noted.append(instance_id)
        return None


async def test_they_are_looked_through_in_parts(
    inline_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only those of which something may follow are judged; what is due is judged between the parts."""
    desk = Desk(inline_database)
    ids = [await desk.add(observed="running") for _ in range(1200)]
    odd = await desk.add(vm_state="stopped", observed="running")
    told = await desk.add(observed="running", alerted="active paused io-error")
    crashed = await desk.add(observed="crashed")
    arbiter = Listing(desk.admission)
    noted = arbiter.noted = list[str | int]()
    look = observations.seen_by_id

    def counted(connection: sa.Connection, some: Sequence[str]) -> list[observations.Seen]:
        noted.append(len(some))
        return look(connection, some)

    monkeypatch.setattr(observations, "seen_by_id", counted)
    arbiter.review([odd, *ids, told])
    arbiter.wake(crashed)
    await arbiter.start(MemoryBus())
    await asyncio.sleep(1)
    await arbiter.stop()
    assert noted == [crashed, 500, odd, 500, 202, told]


async def test_a_row_that_cannot_be_judged_does_not_end_the_judging(
    inline_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is due after it is judged."""
    desk = Desk(inline_database)
    odd = await desk.add(vm_state="stopped", observed="running")
    crashed = await desk.add(observed="crashed")
    arbiter = Listing(desk.admission)
    arbiter.noted = []

    def fault(*_: object) -> Verdict:
        msg = "a fault of ours"
        raise RuntimeError(msg)

    monkeypatch.setattr(observations.Seen, "verdict", fault)
    arbiter.review([odd])
    await arbiter.start(MemoryBus())
    await asyncio.sleep(1)
    arbiter.wake(crashed)
    await asyncio.sleep(1)
    await arbiter.stop()
    assert arbiter.noted == [crashed]
