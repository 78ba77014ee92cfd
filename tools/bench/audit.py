"""What the audit trail costs: the same admissions with it and without, in turns; and how long it takes to verify.

    python -m tools.bench.audit [--turns N] [--database URL]

The admissions are the server's own (lock and unlock: each a guarded UPDATE, its operation and its record), called in
this process without HTTP, which would only make the trail's share smaller. Processor time is given beside throughput,
because on a shared machine the disk and the neighbours decide the latter.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa
import uvloop

from stateward.clock import SystemClock
from stateward.domain.audit import Check
from stateward.domain.locks import ActorKind
from stateward.domain.records import Actor
from stateward.domain.states import Cause, Observed, VmState
from stateward.operations.admission import Admission, ShutdownDefaults
from stateward.operations.immediate import Immediate
from stateward.store import audit, instances, operations
from stateward.store.audit_trail import reading
from stateward.store.engine import open_database
from stateward.store.schema import migrate
from tests.postgres import running

CLIENTS = 8
RECORDS = 100_000
#: Seconds of each turn.
TURN = 0.5

ACTOR = Actor(
    kind=ActorKind.MEMBER, user_id=uuid.uuid4().hex, project_id="p", request_id=f"req-{uuid.uuid4()}"
)


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(prog="python -m tools.bench.audit", description=__doc__)
    parser.add_argument("--turns", type=int, default=20, help="turns of each kind (default 20)")
    parser.add_argument("--database", metavar="URL", help="only on this database, which is left filled")
    options = parser.parse_args()
    if options.database:
        _measure(report, options.database, options.turns)
        return
    with tempfile.TemporaryDirectory(prefix="stateward-bench-") as folder:
        measure_audit(report, Path(folder), options.turns)


def measure_audit(add: Callable[..., None], folder: Path, turns: int = 20) -> None:
    """Measure on a new SQLite file and on a new PostgreSQL; ``add`` is told each figure."""
    _measure(add, f"sqlite:///{folder / 'audit.db'}", turns)
    with running(durable=True) as server, server.bare() as url:
        _measure(add, url.render_as_string(), turns)


def _measure(add: Callable[..., None], url: str, turns: int) -> None:
    uvloop.run(_compare(add, url, turns))
    uvloop.run(_fill(url))
    began = time.process_time()
    with reading(url) as trail:
        check = Check()
        for record in trail.records():
            check.follow(record)
        flaws = check.end(trail.head())
    took = time.process_time() - began
    if flaws:
        raise RuntimeError(f"the trail is not whole: {flaws[0].says}")
    add(
        f"{_name(url)}: verifying 100,000 audit records, processor time",
        took * RECORDS / check.seen,
        "s",
        most=2,
    )


def _name(url: str) -> str:
    return "SQLite" if url.startswith("sqlite") else "PostgreSQL"


async def _compare(add: Callable[..., None], url: str, turns: int) -> None:
    where = _name(url)
    database = open_database(url)
    await migrate(database)
    found = [str(uuid.uuid4()) for _ in range(CLIENTS)]
    await database.write(lambda connection: [instances.insert(connection, row(each)) for each in found])
    admission = Admission(database, SystemClock(), ShutdownDefaults(), lambda: None)
    immediate = Immediate(admission, lambda _instance_id: None)
    name = "chain_sqlite" if database.dialect == "sqlite" else "commit_unsealed"
    real: Callable[[Any, Sequence[Any]], None] = getattr(audit, name)

    def without(connection: Any, _entries: Sequence[Any]) -> None:
        real(connection, ())

    # Of each turn: admissions a second, and the processor's seconds for each, without and with.
    speeds: list[tuple[float, float]] = []
    efforts: list[tuple[float, float]] = []
    for turn in range(turns + 1):
        speed: dict[bool, float] = {}
        effort: dict[bool, float] = {}
        for kept in (turn % 2 == 0, turn % 2 == 1):
            setattr(audit, name, real if kept else without)
            began, worked = time.perf_counter(), time.process_time()
            end = began + TURN
            done = sum(await asyncio.gather(*(_lock(immediate, each, end) for each in found)))
            speed[kept] = done / (time.perf_counter() - began)
            await database.seal()
            effort[kept] = (time.process_time() - worked) / done
        # The first turn finds nothing warm.
        if turn:
            speeds.append((speed[False], speed[True]))
            efforts.append((effort[False], effort[True]))
    setattr(audit, name, real)
    await database.close()
    lost = statistics.median(1 - kept / dropped for dropped, kept in speeds)
    more = statistics.median(kept / dropped - 1 for dropped, kept in efforts)
    add(f"{where}: admissions without an audit trail", statistics.median(each[0] for each in speeds), "/s")
    add(f"{where}: admissions with it", statistics.median(each[1] for each in speeds), "/s")
    add(f"{where}: throughput lost to it, median of turns", lost, "of 1", most=0.1)
    add(f"{where}: processor time of an admission, more", more, "of 1")


async def _lock(immediate: Immediate, instance_id: str, end: float) -> int:
    """Lock and unlock until a time; return how often."""
    done = 0
    while time.perf_counter() < end:
        await immediate.lock(instance_id, ACTOR, reason="bench", project_id="p")
        await immediate.unlock(instance_id, ACTOR, project_id="p")
        done += 2
    return done


async def _fill(url: str) -> None:
    database = open_database(url)
    for _batch in range(RECORDS // 1000):
        await database.write(_thousand)
    await database.close()


def _thousand(connection: sa.Connection) -> None:
    for _record in range(1000):
        operations.record(
            connection,
            at=time.time(),
            event="admitted",
            actor=ACTOR,
            instance_id=str(uuid.uuid4()),
            operation_id=str(uuid.uuid4()),
            action="stop",
            detail={"shutdown": {"seconds": 60, "origin": "default", "at_deadline": "force"}},
        )


def row(instance_id: str) -> dict[str, Any]:
    """Return the columns of an active instance."""
    return {
        "id": instance_id,
        "project_id": "p",
        "user_id": "u",
        "name": "bench",
        "hostname": "bench",
        "host": "h",
        "zone": "nova",
        "flavor": {"id": "1", "name": "small", "vcpus": 1, "ram": 128, "disk": 1},
        "image": {"id": "image", "disk_format": "qcow2"},
        "metadata": {},
        "tags": (),
        "reservation_id": "r",
        "created_at": 0.0,
        "updated_at": 0.0,
        "vm_state": VmState.ACTIVE.value,
        "fence": 1,
        "observed": Observed.RUNNING.value,
        "cause": Cause.OTHER.value,
    }


def report(what: str, value: float, unit: str, *, most: float | None = None) -> None:
    """Print a figure beside its target."""
    target = "" if most is None else f"<= {most:g} {'ok' if value <= most else 'MISSED'}"
    print(f"{what:<58} {value:>10.3f} {unit:<6} {target}", flush=True)


if __name__ == "__main__":
    main()
