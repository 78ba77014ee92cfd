"""Measures everything in one run and says which targets are met.

    python -m tools.bench [--seconds S] [--json FILE] [--no-guests]

Ratios are of figures measured side by side in this run: absolute times of a shared machine mean little.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tools.bench.audit import measure_audit
from tools.bench.guests import measure_guests
from tools.bench.load import load, request
from tools.bench.served import Served, serve
from tools.bench.shutdowns import GUESTS, TAKES, measure_shutdowns
from tools.bench.steady import measure_steady
from tools.bench.telling import measure_telling

CLIENTS = 8
INSTANCES = 1000


class Report:
    """The figures with their targets, printed as they come."""

    def __init__(self) -> None:
        """Nothing yet."""
        self.rows: list[dict[str, Any]] = []

    def add(
        self, what: str, value: float, unit: str, *, most: float | None = None, least: float | None = None
    ) -> None:
        """Add a figure; ``most`` or ``least`` is its target."""
        met = (most is None or value <= most) and (least is None or value >= least)
        target = f"<= {most:g}" if most is not None else f">= {least:g}" if least is not None else ""
        self.rows.append({"what": what, "value": round(value, 3), "unit": unit, "target": target, "met": met})
        mark = "" if not target else "ok" if met else "MISSED"
        print(f"{what:<58} {value:>10.3f} {unit:<6} {target:<9} {mark}", flush=True)


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(prog="python -m tools.bench", description=__doc__)
    parser.add_argument("--seconds", type=float, default=4.0, help="length of each load (default 4)")
    parser.add_argument("--json", type=Path, help="write the figures to this file as well")
    parser.add_argument("--no-guests", action="store_true", help="leave out what needs real guests")
    options = parser.parse_args()
    report = Report()
    print(
        f"{platform.machine()}, {os.cpu_count()} processors, Python {platform.python_version()}, {time.strftime('%F')}"
    )
    with tempfile.TemporaryDirectory(prefix="stateward-bench-") as folder:
        home = Path(folder)
        home.chmod(0o755)
        measure_api(report, home, options.seconds)
        measure_audit(report.add, home)
        measure_steady(report.add, home, seconds=5 * options.seconds)
        measure_telling(report.add, home)
        if not options.no_guests:
            asyncio.run(measure_guests(report.add, home))
    if options.json:
        options.json.write_text(json.dumps(report.rows, indent=1) + "\n")


def measure_api(report: Report, home: Path, seconds: float) -> None:
    """Measure the API on simulated guests, and the floor in turns with it."""
    with serve(home / "simulated", "--driver", "simulated"):
        pass
    with serve(home / "simulated", "--driver", "simulated") as server:
        report.add("ready on second start", server.ready, "s", most=1.5)
        image = make_image(server)
        report.add("100 creates to ACTIVE, simulated", create(server, image, 100), "s", most=2)
        create(server, image, INSTANCES - 100)
        servers = server.call("GET", "/servers?limit=1000")["servers"]
        ids = [each["id"] for each in servers]
        port, stop = start_floor(home / "floor.db", INSTANCES)
        try:
            for what, ours, floors, name in loads(server, ids):
                ratio(report, what, name, ours=(server.port, ours), floors=(port, floors), seconds=seconds)
        finally:
            stop()
        one = asyncio.run(load(server.port, [[get(server, ids[7])]], seconds / 2)).quantile(0.5)
        hundred = request("GET", "/compute/v2.1/servers/detail?limit=100", token=server.token)
        many = asyncio.run(load(server.port, [[hundred]], seconds / 2)).quantile(0.5)
        report.add("one GET, one client, median", one * 1000, "ms")
        report.add("list of 100 details, one client, median", many * 1000, "ms")
        report.add("list of 100 details / one GET", many / one, "x", most=12)
        slow = make_image(server, os_command_line=f"stateward.shutdown={TAKES:g}")
        create(server, slow, GUESTS)
        newest = server.call("GET", f"/servers?limit={GUESTS}&sort_key=created_at&sort_dir=desc")["servers"]
        asyncio.run(measure_shutdowns(report.add, server, [each["id"] for each in newest], ids[0]))
        report.add("resident memory, 1,000 instances, after the load", server.resident(), "MB", most=150)


def get(server: Served, identifier: str) -> bytes:
    """Return a GET of one server."""
    return request("GET", f"/compute/v2.1/servers/{identifier}", token=server.token)


def loads(server: Served, ids: list[str]) -> list[tuple[str, list[list[bytes]], list[list[bytes]], str]]:
    """Return the loads: what, our requests by client, the floor's, and the unit of a rate."""
    path = "/compute/v2.1/servers/{}/action"
    lock = json.dumps({"lock": {"locked_reason": "billing db"}}).encode()
    unlock = json.dumps({"unlock": None}).encode()
    pairs = [
        [request("POST", path.format(ids[client]), token=server.token, body=body) for body in (lock, unlock)]
        for client in range(CLIENTS)
    ]
    floor_pairs = [
        [request("POST", f"/{client}", body=json.dumps({"locked": value}).encode()) for value in (1, 0)]
        for client in range(CLIENTS)
    ]
    gets = [[get(server, each) for each in ids[client::CLIENTS]] for client in range(CLIENTS)]
    floor_gets = [
        [request("GET", f"/{number}") for number in range(client, INSTANCES, CLIENTS)]
        for client in range(CLIENTS)
    ]
    return [("GET server", gets, floor_gets, "req/s"), ("lock and unlock", pairs, floor_pairs, "req/s")]


def ratio(
    report: Report,
    what: str,
    unit: str,
    *,
    ours: tuple[int, list[list[bytes]]],
    floors: tuple[int, list[list[bytes]]],
    seconds: float,
) -> None:
    """Measure ours and the floor in turns, three times each, and report the medians and the median ratio."""
    rates: list[tuple[float, float]] = []
    for turn in range(4):
        length = seconds / 4 if turn == 0 else seconds
        mine = asyncio.run(load(ours[0], ours[1], length))
        floor = asyncio.run(load(floors[0], floors[1], length))
        for measured in (mine, floor):
            bad = {status: count for status, count in measured.statuses.items() if status not in {200, 202}}
            if bad:
                raise SystemExit(f"{what}: unexpected answers {bad}")
        if turn:
            rates.append((mine.rate, floor.rate))
    report.add(f"{what}, {CLIENTS} clients", statistics.median(rate[0] for rate in rates), unit)
    report.add(f"{what}, {CLIENTS} clients, the floor", statistics.median(rate[1] for rate in rates), unit)
    report.add(
        f"{what}, ours / floor", statistics.median(mine / floor for mine, floor in rates), "x", least=0.5
    )


def make_image(server: Served, **properties: str) -> str:
    """Upload a small image with these properties and return its id."""
    body = {"name": "bench", "disk_format": "raw", "container_format": "bare", **properties}
    image = server.ask("POST", "/image/v2/images", body)
    server.upload(f"/image/v2/images/{image['id']}/file", b"\0" * 1024)
    return str(image["id"])


def create(server: Served, image: str, count: int) -> float:
    """Create servers with 8 clients and return the seconds until all are ACTIVE."""
    body = json.dumps(
        {"server": {"name": "bench", "flavorRef": "tiny", "imageRef": image, "networks": "none"}}
    ).encode()
    one = request("POST", "/compute/v2.1/servers", token=server.token, body=body)
    began = time.perf_counter()
    asyncio.run(_post(server.port, one, count))
    # A page holds 1,000 at most: those that are being made are counted, not those that were.
    while server.call("GET", "/servers?limit=1&status=BUILD")["servers"]:
        time.sleep(0.01)
    took = time.perf_counter() - began
    if server.call("GET", "/servers?limit=1&status=ERROR")["servers"]:
        raise SystemExit("a server that was to be measured is in ERROR")
    return took


async def _post(port: int, raw: bytes, count: int) -> None:
    async def client(share: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(share):
            writer.write(raw)
            head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 202"):
                raise SystemExit(f"create was answered {head[:200]!r}")
            length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length"))
            await reader.readexactly(int(length.split(b":")[1]))
        writer.close()

    shares = [count // CLIENTS + (number < count % CLIENTS) for number in range(CLIENTS)]
    await asyncio.gather(*(client(share) for share in shares))


def start_floor(database: Path, instances: int) -> tuple[int, Callable[[], None]]:
    """Start the floor and return its port, and how to stop it."""
    listening = socket.create_server(("127.0.0.1", 0))
    os.set_inheritable(listening.fileno(), True)  # noqa: FBT003 (the interface of os)
    process = subprocess.Popen(
        [sys.executable, "-m", "tools.bench.floor", str(database), str(listening.fileno()), str(instances)],
        close_fds=False,
    )
    port = listening.getsockname()[1]
    listening.close()

    def stop() -> None:
        process.terminate()
        process.wait()

    return port, stop


if __name__ == "__main__":
    main()
