"""Measures what it costs to watch: a host of a thousand guests, and a thousand hosts of a hundred (R12, B5).

    python -m tools.bench.steady [--seconds S]

Agents of the thousand hosts are messages of the form and at the pace that real ones send; the arbiter, its heartbeats
and its database are the server's own, in this one process.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import gc
import statistics
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import libvirt
import msgspec
import sqlalchemy as sa
import uvloop

from stateward.agent.journal import Journal
from stateward.agent.libvirt.driver import LibvirtDriver
from stateward.agent.observer import Observer
from stateward.agent.watch import Watch
from stateward.agent.worker import Worker
from stateward.arbiter.reconcile import Arbiter
from stateward.bus.memory import MemoryBus
from stateward.bus.port import HOSTS, TALLIES, questions_subject
from stateward.clock import SystemClock
from stateward.domain.questions import Answer, Inventory, Question
from stateward.domain.records import HostReport, Observation, Report, Tally
from stateward.domain.states import Cause, Observed, VmState
from stateward.domain.sweeps import Trace
from stateward.operations.admission import Admission, ShutdownDefaults
from stateward.operations.heartbeats import keep_heartbeats
from stateward.store import hosts
from stateward.store.engine import Database, open_database
from stateward.store.schema import migrate
from stateward.store.tables import INSTANCES, OPERATIONS
from tests.agent.images import FolderImages
from tests.rows import values

Add = Callable[..., None]

GUESTS = 1000
FLEET = 1000
EACH = 100
#: Seconds between two tallies and two heartbeats of a host, by default.
RELIST, HEARTBEAT = 10.0, 5.0

_XML = """<domain type='test'><name>instance-{number:08x}</name><uuid>{id}</uuid><memory unit='MiB'>64</memory>
<vcpu>1</vcpu><os><type>hvm</type></os><metadata><stateward:instance xmlns:stateward="https://stateward.dev/ns/1"
id="{id}" project="p" fence="1"/></metadata></domain>"""

_question = msgspec.json.Decoder[Question](Question)


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(prog="python -m tools.bench.steady", description=__doc__)
    parser.add_argument("--seconds", type=float, default=30.0, help="length of the steady state (default 30)")
    options = parser.parse_args()

    def add(what: str, value: float, unit: str, *, most: float | None = None) -> None:
        target = "" if most is None else f"<= {most:g} {'ok' if value <= most else 'MISSED'}"
        print(f"{what:<62} {value:>9.3f} {unit:<4} {target}", flush=True)

    with tempfile.TemporaryDirectory(prefix="stateward-bench-") as folder:
        measure_steady(add, Path(folder), options.seconds)


def measure_steady(add: Add, home: Path, seconds: float) -> None:
    """Measure both, one after the other."""
    uvloop.run(_host(add, home / "host"))
    uvloop.run(_fleet(add, home / "fleet", seconds))


async def _host(add: Add, home: Path) -> None:  # noqa: PLR0915 (one measurement after another)
    """Measure a full look at a thousand of libvirt's test guests against its bare bulk call, in turns."""
    home.mkdir(parents=True)
    driver = LibvirtDriver(uri="test:///default", folder=home, images=FolderImages(home))
    await driver.open(lambda _instance_id: None)
    # All of this process's connections to it see the same guests.
    connection = libvirt.open("test:///default")
    ids = [str(uuid.uuid4()) for _ in range(GUESTS)]
    for number, each in enumerate(ids, start=1):
        connection.createXML(_XML.format(number=number, id=each))
    database = await _database(home / "host.db")
    await database.write(functools.partial(_fill, names=["h"], ids=[ids]))
    bus = MemoryBus()
    arbiter = _arbiter(database)
    await arbiter.intake.start(bus)
    observer = Observer(
        host="h",
        driver=driver,
        worker=Worker(driver, bus, Journal(home / "journal.db", time.time()), SystemClock(), Watch()),
        bus=bus,
        clock=SystemClock(),
        relist_seconds=RELIST,
        heartbeat_seconds=HEARTBEAT,
    )

    async def answer(payload: bytes) -> bytes:
        question = _question.decode(payload)
        above = question.above if isinstance(question, Inventory) else 0
        return msgspec.json.encode(Answer(report=await observer.inventory(above)))

    await bus.answer(questions_subject("h"), answer)
    for _ in range(5):
        # The first ask for everything; from then on it is known.
        await observer.relist()
        await asyncio.sleep(0.2)
    bare: list[float] = []
    alone: list[float] = []
    ours: list[float] = []
    used: list[float] = []
    whole: list[float] = []
    gc.collect()
    for _ in range(60):
        began, cpu = time.perf_counter(), time.process_time()
        connection.getAllDomainStats(libvirt.VIR_DOMAIN_STATS_STATE)
        bare.append(time.perf_counter() - began)
        alone.append(time.process_time() - cpu)
        began, cpu = time.perf_counter(), time.process_time()
        await observer.relist()
        await _quiet(bus)
        ours.append(time.perf_counter() - began)
        used.append(time.process_time() - cpu)
        began = time.perf_counter()
        await arbiter.intake.take(await observer.inventory(0))
        whole.append(time.perf_counter() - began)
    cpu = time.process_time()
    for _ in range(50):
        await observer.heartbeat()
    beat = (time.process_time() - cpu) / 50
    add(f"bare bulk call, {GUESTS} domains of test:///", statistics.median(bare) * 1000, "ms")
    add("full relist with comparison", statistics.median(ours) * 1000, "ms")
    add("… / the bare call", statistics.median(o / b for o, b in zip(ours, bare, strict=True)), "x", most=1.5)
    add("… processor time, / the bare call's", statistics.median(used) / statistics.median(alone), "x")
    add("… when everything is asked for and compared row by row", statistics.median(whole) * 1000, "ms")
    share = 100 * (statistics.median(used) / RELIST + beat / HEARTBEAT)
    add("steady state, of one core per 1,000 instances", share, "%", most=2)
    await driver.close()
    connection.close()
    await arbiter.stop()
    await bus.close()
    await database.close()


async def _fleet(add: Add, home: Path, seconds: float) -> None:
    home.mkdir(parents=True)
    database = await _database(home / "fleet.db")
    names = [f"host-{number:04}" for number in range(FLEET)]
    ids = [[str(uuid.uuid4()) for _ in range(EACH)] for _ in names]
    await database.write(functools.partial(_fill, names=names, ids=ids))
    bus = MemoryBus()
    arbiter = _arbiter(database)
    await arbiter.start(bus)
    heartbeats = await keep_heartbeats(bus, database, SystemClock())
    fleet = [_Agent(name, some, bus) for name, some in zip(names, ids, strict=True)]
    for each in fleet:
        await each.start()
    began, cpu = time.perf_counter(), time.process_time()
    for each in fleet:
        await each.tally()
    await _quiet(bus)
    add("first look at all of them after a start", time.perf_counter() - began, "s")
    for each in fleet:
        # Their rows agree: from here on the digest is known.
        await each.tally()
    await _quiet(bus)
    asked = sum(each.asked for each in fleet)
    gc.collect()
    gc.freeze()
    began, cpu = time.perf_counter(), time.process_time()
    tasks = [
        asyncio.create_task(_pace(fleet, RELIST, _Agent.tally)),
        asyncio.create_task(_pace(fleet, HEARTBEAT, _Agent.beat)),
    ]
    await asyncio.sleep(seconds)
    share = 100 * (time.process_time() - cpu) / (time.perf_counter() - began)
    add(f"steady state, {FLEET} hosts of {EACH} instances, of one core", share, "%", most=15)
    add("… questions asked meanwhile", sum(each.asked for each in fleet) - asked, "")
    victim = fleet[7]
    victim.crash()
    began = time.perf_counter()
    await victim.tally()
    while await database.read(_operations) < EACH:  # noqa: ASYNC110 (it is admitted by others, who tell nobody)
        await asyncio.sleep(0.005)
    add("a host's 100 crash at once: all restores admitted", time.perf_counter() - began, "s", most=2)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await arbiter.stop()
    await bus.close()
    await heartbeats.stop()
    await database.close()


async def _quiet(bus: MemoryBus) -> None:
    """Return when every message has been handled."""
    while bus.busy:  # noqa: ASYNC110 (the bus tells nobody)
        await asyncio.sleep(0)


async def _pace(fleet: list[_Agent], period: float, act: Callable[[_Agent], Any]) -> None:
    """Have each act once a period, evenly over it."""
    loop = asyncio.get_running_loop()
    begin, number = loop.time(), 0
    while True:
        due = int((loop.time() - begin) / period * len(fleet))
        while number < due:
            await act(fleet[number % len(fleet)])
            number += 1
        await asyncio.sleep(0.02)


class _Agent:
    """What an agent sends, and answers."""

    def __init__(self, host: str, ids: list[str], bus: MemoryBus) -> None:
        self._host = host
        self._ids = ids
        self._bus = bus
        self._seq = 1 << 40
        self._observed, self._cause = Observed.RUNNING, Cause.OTHER
        self.asked = 0

    async def start(self) -> None:
        await self._bus.answer(questions_subject(self._host), self._answer)

    def crash(self) -> None:
        self._observed, self._cause = Observed.SHUTOFF, Cause.CRASHED

    def _next(self) -> int:
        self._seq += 1
        return self._seq

    async def tally(self) -> None:
        tally = Tally(host=self._host, seq=self._next(), count=len(self._ids), digest=self._observed.value)
        await self._bus.publish(TALLIES, msgspec.json.encode(tally), message_id="")

    async def beat(self) -> None:
        seq = self._next()
        report = HostReport(
            host=self._host,
            driver="libvirt",
            hypervisor_type="QEMU",
            hypervisor_version=8002000,
            reachable=True,
            detail="",
            vcpus=64,
            memory=262144,
            disk=10240,
            disk_used=512,
            running=len(self._ids),
            cpu_info='{"arch": "x86_64", "model": "EPYC", "vendor": "AMD"}',
            at=time.time(),
            boot_id="b",
            seq=seq,
        )
        await self._bus.publish(HOSTS, msgspec.json.encode(report), message_id="")

    async def _answer(self, payload: bytes) -> bytes:
        self.asked += 1
        question = _question.decode(payload)
        if not isinstance(question, Inventory):
            gone = Trace(process=False, defined=True, seen=self._observed)
            return msgspec.json.encode(Answer(traces=dict.fromkeys(self._ids, gone)))
        seq, at = self._next(), time.time()
        report = Report(
            host=self._host,
            complete=True,
            observations=tuple(
                Observation(instance_id=each, observed=self._observed, cause=self._cause, seq=seq, at=at)
                for each in self._ids
            ),
            seq=seq,
            at=at,
            digest=self._observed.value,
            boot_id="b",
        )
        return msgspec.json.encode(Answer(report=report))


async def _database(path: Path) -> Database:
    database = open_database(f"sqlite:///{path}")
    await migrate(database)
    return database


def _arbiter(database: Database) -> Arbiter:
    return Arbiter(Admission(database, SystemClock(), ShutdownDefaults(), lambda: None))


def _fill(connection: sa.Connection, *, names: list[str], ids: list[list[str]]) -> None:
    for name, some in zip(names, ids, strict=True):
        hosts.register(connection, name, "nova")
        connection.execute(
            sa.insert(INSTANCES),
            [
                values(id=each, host=name, vm_state=VmState.ACTIVE.value, observed=Observed.RUNNING.value)
                for each in some
            ],
        )


def _operations(connection: sa.Connection) -> int:
    return int(connection.execute(sa.select(sa.func.count()).select_from(OPERATIONS)).scalar_one())


if __name__ == "__main__":
    main()
