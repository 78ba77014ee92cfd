"""What telling costs: the same operations with nobody told, with state intervals, and with listeners too, in turns.

    python -m tools.bench.telling [--turns N]

An operation is a stop or a start whose result is applied, in this process without HTTP and agents, which would only
make the share of telling smaller: a change of state and three events each. Intervals: the triggers that write them.
Listeners: two webhooks that take everything at once, and a reader that follows the trail as a stream does.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import statistics
import tempfile
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Mapping
from pathlib import Path

import msgspec
import sqlalchemy as sa
import uvloop

from stateward.clock import SystemClock
from stateward.domain.actions import BY_KEY
from stateward.domain.events import WHOLE, Filter, Place, Reader, cloud_event
from stateward.domain.records import Outcome, Result
from stateward.operations.admission import Admission, ShutdownDefaults
from stateward.operations.changes import Changes
from stateward.operations.completion import Completion
from stateward.operations.courier import Courier, bodies
from stateward.operations.webhooks import Wanted, Webhooks
from stateward.store import instances, told
from stateward.store.engine import Database, open_database
from stateward.store.schema import migrate
from tools.bench.audit import ACTOR, CLIENTS, TURN, report, row

#: Of an operation; and who is told them.
_EVENTS = 3
_LISTENERS = 3
_TRIGGERS = (
    "instances_begin",
    "instances_recorded",
    "instances_deleted",
    "instances_revived",
    "instances_observed",
)


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(prog="python -m tools.bench.telling", description=__doc__)
    parser.add_argument("--turns", type=int, default=20, help="turns of each kind (default 20)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="stateward-bench-") as folder:
        measure_telling(report, Path(folder), options.turns)


def measure_telling(add: Callable[..., None], folder: Path, turns: int = 20) -> None:
    """Measure on new SQLite files; ``add`` is told each figure."""
    uvloop.run(_compare(add, folder, turns))


class _Side:
    """A database with operations on it, and listeners or none."""

    def __init__(self, database: Database, *, intervals: bool, listeners: bool) -> None:
        self.database = database
        self.intervals = intervals
        self.listeners = listeners
        self.clock = SystemClock()
        self.changes = Changes()
        self.admission = Admission(database, self.clock, ShutdownDefaults(), self.changes.changed)
        self.completion = Completion(self.admission, self.changes.changed)
        self.ids = [str(uuid.uuid4()) for _ in range(CLIENTS)]
        self.delivered = 0

    async def prepare(self) -> None:
        await migrate(self.database)
        if not self.intervals:
            await self.database.write(_drop)
        ids = self.ids
        await self.database.write(
            lambda connection: [instances.insert(connection, row(each)) for each in ids]
        )

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncGenerator[None]:
        if not self.listeners:
            yield
            return
        hooks = Webhooks(self.database, self.clock, self._take, "/stateward")
        for each in await self.database.read(
            lambda connection: connection.execute(sa.text("SELECT name FROM webhooks")).all()
        ):
            await hooks.delete(each[0], ACTOR)
        for name in ("one", "two"):
            await hooks.add(Wanted(name=name, url="https://example.org/"), ACTOR)
        courier = Courier(self.database, self.clock, self.changes, self._take, bodies("/stateward"))
        await courier.start()
        follower = asyncio.create_task(self._follow())
        try:
            yield
        finally:
            follower.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await follower
            await courier.stop()

    async def _take(self, url: str, body: bytes, headers: Mapping[str, str]) -> None:
        self.delivered += 1

    async def _follow(self) -> None:
        place = Place(await self.database.read(told.head), WHOLE)
        with self.changes.following(None) as follower:
            while True:
                await follower.wait(0.25)
                await asyncio.sleep(0.05)
                at = place
                batch = await self.database.read(
                    lambda connection: told.after(connection, at, Filter(), Reader())  # noqa: B023 (read before the loop goes on)
                )
                for event in batch.events:
                    msgspec.json.encode(cloud_event(event, Reader(), "/stateward"))
                place = max(place, Place(batch.upto, WHOLE))

    async def work(self, instance_id: str, end: float) -> int:
        done = 0
        while time.perf_counter() < end:
            for action in ("stop", "start"):
                admitted = await self.admission.admit(BY_KEY[action], instance_id, ACTOR)
                result = Result(
                    operation_id=admitted.operation.id,
                    instance_id=instance_id,
                    fence=admitted.operation.fence,
                    outcome=Outcome.SUCCEEDED,
                    message=None,
                    observation=None,
                )
                await self.completion.handle(msgspec.json.encode(result))
                done += 1
        return done


def _drop(connection: sa.Connection) -> None:
    for name in _TRIGGERS:
        connection.execute(sa.text(f"DROP TRIGGER {name}"))


async def _compare(add: Callable[..., None], folder: Path, turns: int) -> None:
    kinds = {
        "nobody told": (False, False),
        "intervals": (True, False),
        "intervals and listeners": (True, True),
    }
    sides = {
        name: _Side(
            open_database(f"sqlite:///{folder / f'telling-{number}.db'}"),
            intervals=intervals,
            listeners=listeners,
        )
        for number, (name, (intervals, listeners)) in enumerate(kinds.items())
    }
    for side in sides.values():
        await side.prepare()
    speeds: dict[str, list[float]] = {name: [] for name in kinds}
    efforts: dict[str, list[float]] = {name: [] for name in kinds}
    names = list(kinds)
    for turn in range(turns + 1):
        for name in names[turn % 3 :] + names[: turn % 3]:
            side = sides[name]
            async with side.listening():
                began, worked = time.perf_counter(), time.process_time()
                end = began + TURN
                done = sum(await asyncio.gather(*(side.work(each, end) for each in side.ids)))
                speed = done / (time.perf_counter() - began)
                effort = (time.process_time() - worked) / done
            # The first turn finds nothing warm.
            if turn:
                speeds[name].append(speed)
                efforts[name].append(effort)
    for side in sides.values():
        await side.database.close()
    bare = names[0]
    add(f"operations a second, {bare}", statistics.median(speeds[bare]), "/s")
    add(f"processor time of an operation, {bare}", 1000 * statistics.median(efforts[bare]), "ms")
    for name in names[1:]:
        lost = statistics.median(1 - b / a for a, b in zip(speeds[bare], speeds[name], strict=True))
        more = statistics.median(b / a - 1 for a, b in zip(efforts[bare], efforts[name], strict=True))
        add(f"throughput lost to {name}, median of turns", lost, "of 1")
        add(f"processor time more with {name}", more, "of 1")
    listeners = statistics.median(
        b - a for a, b in zip(efforts[names[1]], efforts[names[2]], strict=True)
    ) / (_EVENTS * _LISTENERS)
    add("processor time of an event for each listener", 1e6 * listeners, "us")
    add("events delivered meanwhile", float(sides[names[-1]].delivered), "")


if __name__ == "__main__":
    main()
