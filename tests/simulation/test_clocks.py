"""Hosts whose clocks are wrong: what was used, and when it was seen, is told by the control plane's clock (R16)."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from stateward.simulation.engine import play
from stateward.simulation.script import parse
from stateward.simulation.world import World
from stateward.store import intervals
from stateward.store.intervals import Interval
from stateward.store.tables import AUDIT


class Used:
    """What was used of ``web1`` between the script's beginning and its end; looked at by ``play``."""

    def __init__(self) -> None:
        self.began = 0.0
        self.found: dict[str, list[tuple[str, float, float | None]]] = {}
        #: When what verdicts are about was seen.
        self.seen: list[float] = []

    async def begin(self, world: World) -> None:
        """Note the time."""
        self.began = world.clock.now()

    async def end(self, world: World) -> None:
        """Look."""
        one, now = world.id_of("web1"), world.clock.now()
        query = sa.select(AUDIT.c.detail).where(AUDIT.c.event == "verdict").order_by(AUDIT.c.number)

        def look(connection: sa.Connection) -> list[Interval]:
            self.seen = [self._since(row.detail["seen_at"]) for row in connection.execute(query)]
            return intervals.of_instances(connection, [one], begin=self.began, end=now + 1e9)[one]

        for each in await world.database.look(look):
            ended = None if each.ended is None else self._since(each.ended)
            self.found.setdefault(each.kind, []).append((each.state, self._since(each.began), ended))

    def _since(self, at: float) -> float:
        return round(max(at - self.began, 0.0), 3)


def used(*lines: str) -> Used:
    """Play a script of a host with ``web1``."""
    found = Used()
    play(parse("\n".join(("host h1", "instance web1 on h1", *lines))), begin=found.begin, end=found.end)
    return found


@pytest.mark.parametrize("offset", ["+0s", "+8760h", "-8760h", "+1h", "-1h"])
def test_a_clock_that_is_wrong(offset: str) -> None:
    """What is adopted is billed from when it was seen, and what comes after it as of when that was seen."""
    found = used(
        f"at 5s clock of h1 jumps {offset}",
        "at 10s guest web1 powers itself off",
        "at 20s customer starts web1",
        "at 30s virsh destroy web1",
        "until 1m",
    )
    assert found.found == {
        "recorded": [("active", 0.0, 10.01), ("stopped", 10.01, 20.07), ("active", 20.07, None)],
        "observed": [
            ("running", 0.0, 10.01),
            ("shutoff", 10.01, 20.07),
            ("running", 20.07, 30.01),
            ("shutoff", 30.01, 30.08),
            ("running", 30.08, None),
        ],
    }
    assert found.seen == [10.01, 30.01]
