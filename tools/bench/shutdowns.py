"""Many guests asked to shut down at once: how long until all are off, and what others feel of it meanwhile."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable

from tools.bench.load import Measured, load, request
from tools.bench.served import Served

GUESTS = 50
#: Seconds that each of them takes to shut down.
TAKES = 30.0
#: Seconds before and while they do, that others' requests are measured for.
IDLE, BUSY = 5.0, TAKES - 5.0
_ACTION = "/compute/v2.1/servers/{}/action"


async def measure_shutdowns(add: Callable[..., None], server: Served, slow: list[str], other: str) -> None:
    """Stop all of ``slow`` at once; meanwhile read ``other``, and lock and unlock it."""
    before = await _others(server, other, IDLE)
    began = time.perf_counter()
    stop = json.dumps({"os-stop": None}).encode()
    await _each(
        server.port, [request("POST", _ACTION.format(each), token=server.token, body=stop) for each in slow]
    )
    add(f"{GUESTS} clean stops admitted", time.perf_counter() - began, "s")
    during = await _others(server, other, BUSY)
    await asyncio.to_thread(_all_off, server, len(slow))
    add(f"{GUESTS} guests that take {TAKES:g} s, all off", time.perf_counter() - began, "s", most=TAKES + 1.5)
    for what, idle, busy in zip(("GET", "lock and unlock"), before, during, strict=True):
        for name, share in (("median", 0.5), ("p95", 0.95)):
            add(f"{what}, {name}, idle", idle.quantile(share) * 1000, "ms")
            ratio = busy.quantile(share) / idle.quantile(share)
            add(f"{what}, {name}, during / idle", ratio, "x", most=2)


def _all_off(server: Served, count: int) -> None:
    while len(server.call("GET", "/servers?limit=1000&status=SHUTOFF")["servers"]) < count:
        time.sleep(0.02)


async def _others(server: Served, other: str, seconds: float) -> tuple[Measured, Measured]:
    """Read from one client and lock and unlock from another, both without a pause."""
    read = request("GET", f"/compute/v2.1/servers/{other}", token=server.token)
    pair = [
        request("POST", _ACTION.format(other), token=server.token, body=body)
        for body in (b'{"lock": null}', b'{"unlock": null}')
    ]
    reads, locks = await asyncio.gather(
        load(server.port, [[read]], seconds), load(server.port, [pair], seconds)
    )
    return reads, locks


async def _each(port: int, requests: list[bytes]) -> None:
    """Send each request once, on one connection, without waiting for answers in between."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"".join(requests))
    for _ in requests:
        head = await reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 202"):
            raise SystemExit(f"a stop was answered {head[:200]!r}")
    writer.close()
