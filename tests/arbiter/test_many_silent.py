"""A thousand hosts of which fifty fall silent at once: the control plane's own network is the suspect."""

from __future__ import annotations

import asyncio
import time

import pytest
import sqlalchemy as sa

from stateward.arbiter.deaths import DeathRules, Deaths
from stateward.arbiter.witnesses import Evidence, Means, Word
from stateward.bus.memory import MemoryBus
from stateward.domain.hosts import Condition, Frozen
from stateward.store import hosts
from stateward.store.engine import Database
from stateward.store.tables import HOSTS, OPERATIONS
from tests.arbiter.test_reports import make_arbiter
from tests.operations.desk import Desk

ALL, SILENT = 1000, 50


class Nobody:
    """Who would be asked, and would have the power taken, of a host that is silent by itself."""

    def __init__(self) -> None:
        self.asked = 0

    async def ask(self, host: str, since: float) -> Evidence:
        """Say that it is dead."""
        del host, since
        self.asked += 1
        return Evidence(word=Word.DEAD, says="It is dead.")

    async def fence(self, host: str) -> str:
        """Take its power."""
        self.asked += 1
        return host


@pytest.mark.asyncio
@pytest.mark.looptime
async def test_fifty_of_a_thousand_at_once(inline_database: Database) -> None:
    """One alert; nobody is asked or fenced, and no guest of theirs is judged, also one that was seen off before."""
    desk, nobody = Desk(inline_database), Nobody()
    means = Means(witnesses=(nobody,), fence=nobody)
    deaths = Deaths(desk.admission, MemoryBus(), DeathRules(), means=lambda _host: means)
    names = [f"h{number:04}" for number in range(ALL)]
    heard = sa.update(HOSTS).values(heard_seq=HOSTS.c.heard_seq + 1)

    def register(connection: sa.Connection) -> None:
        for name in names:
            hosts.register(connection, name, "nova")
        connection.execute(heard)

    await desk.database.write(register)
    guests = [await desk.add(host=name, observed="shutoff", cause="destroyed") for name in names[:SILENT]]
    await deaths.look()
    took = list[float]()
    for _ in range(5):
        await asyncio.sleep(10.0)
        await desk.database.write(
            lambda connection: connection.execute(heard.where(HOSTS.c.name.not_in(names[:SILENT])))
        )
        began = time.perf_counter()
        await deaths.look()
        took.append(time.perf_counter() - began)
    print(f"\n{ALL} hosts looked at, {SILENT} of them silent: {max(took) * 1000:.0f} ms at most")  # noqa: T201 (with -s it is seen)

    pulses = await desk.database.read(hosts.pulses)
    suspects = [each.name for each in pulses if each.condition is Condition.SUSPECT]
    assert suspects == names[:SILENT]
    assert {each.frozen for each in pulses if each.name in suspects} == {Frozen.SILENT}
    assert {each.condition for each in pulses} == {Condition.SUSPECT, Condition.UP}
    assert nobody.asked == 0
    alerts = [detail["says"] for event, _action, detail in await desk.audit() if event == "alert"]
    assert alerts == [
        "50 of 1000 hosts are silent at once: the control plane's own network is the suspect. No host is declared dead."
    ]
    arbiter = make_arbiter(desk.database)
    assert [await arbiter.reconcile(guest) for guest in guests] == [None] * SILENT
    count = sa.select(sa.func.count()).select_from(OPERATIONS)
    assert await desk.database.read(lambda connection: connection.execute(count).scalar_one()) == 0
