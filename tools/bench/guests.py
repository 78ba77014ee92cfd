"""What is measured on a real guest: stopping it, and noticing that somebody else stopped it."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stateward.agent.libvirt import daemons
from tools.bench.served import Served, serve

#: Times a guest is stopped each way, and destroyed behind the API's back.
STOPS, DESTROYS = 7, 40
_SETTLE_SECONDS = 0.5


async def measure_guests(add: Callable[..., None], home: Path) -> None:
    """Measure on a libvirt of one's own, so that nothing of the machine's is touched."""
    place = await daemons.own(home / "libvirt")
    try:
        config = home / "guests.toml"
        config.write_text(
            f'[[host]]\nname = "bench"\ndriver = "libvirt"\nuri = "{place.uri}"\n\n[arbiter]\nrestores = 1000\n'
        )
        with serve(home / "guests", "--config", str(config), "--test-guest") as server:
            images = server.images()
            made = server.call(
                "POST",
                "/servers",
                {
                    "server": {
                        "name": "bench",
                        "flavorRef": "tiny",
                        "imageRef": images["tiny-guest"],
                        "networks": "none",
                    }
                },
            )
            identifier = made["server"]["id"]
            wait(server, identifier, "ACTIVE")
            await _stops(add, server, identifier, place.uri)
            await _destroys(add, server, identifier, place.uri)
            add("resident memory, real guest", server.resident(), "MB", most=150)
            server.call("DELETE", f"/servers/{identifier}")
    finally:
        await daemons.stop_own(home / "libvirt")


def wait(server: Served, identifier: str, status: str) -> dict[str, Any]:
    """Ask until a server has a status and no task, and return it."""
    while True:
        shown: dict[str, Any] = server.call("GET", f"/servers/{identifier}")["server"]
        runs = shown["OS-EXT-STS:power_state"] == 1
        if (
            shown["status"] == status
            and shown["OS-EXT-STS:task_state"] is None
            and runs == (status == "ACTIVE")
        ):
            return shown
        if shown["status"] == "ERROR" != status:
            raise SystemExit(f"the server is in ERROR: {shown.get('fault')}")
        time.sleep(0.002)


def booted(server: Served, identifier: str, boots: int) -> None:
    """Wait until the guest's console says that it is up for the n-th time."""
    while True:
        output = server.call("POST", f"/servers/{identifier}/action", {"os-getConsoleOutput": {}})["output"]
        if output.count("stateward-guest: up") >= boots:
            return
        time.sleep(0.02)


async def virsh(uri: str, *arguments: str) -> str:
    """Run virsh and return what it printed."""
    process = await asyncio.create_subprocess_exec(
        "virsh", "-q", "-c", uri, *arguments, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    return output.decode()


async def _stops(add: Callable[..., None], server: Served, identifier: str, uri: str) -> None:
    """Stop the same guest by the API and by ``virsh shutdown``, in turns."""
    ours: list[float] = []
    theirs: list[float] = []
    for turn in range(STOPS):
        booted(server, identifier, 2 * turn + 1)
        # The guest is left alone for as long as below: what it still does after its boot slows its shutdown.
        await asyncio.sleep(_SETTLE_SECONDS)
        began = time.perf_counter()
        server.call("POST", f"/servers/{identifier}/action", {"os-stop": None})
        wait(server, identifier, "SHUTOFF")
        ours.append(time.perf_counter() - began)
        server.call("POST", f"/servers/{identifier}/action", {"os-start": None})
        wait(server, identifier, "ACTIVE")
        booted(server, identifier, 2 * turn + 2)
        # virsh's own wait: an event loop of its own that ends with the guest.
        events = await asyncio.create_subprocess_exec(
            "virsh", "-q", "-c", uri, "event", identifier, "--event", "lifecycle", "--loop", "--timeout", "60",
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        await asyncio.sleep(_SETTLE_SECONDS)
        began = time.perf_counter()
        await virsh(uri, "shutdown", identifier)
        assert events.stdout is not None
        while b"Stopped" not in await events.stdout.readline():
            pass
        theirs.append(time.perf_counter() - began)
        events.kill()
        await events.wait()
        # The guest's own shutdown is recorded as stopped.
        wait(server, identifier, "SHUTOFF")
        server.call("POST", f"/servers/{identifier}/action", {"os-start": None})
        wait(server, identifier, "ACTIVE")
    add("stop of a real guest by the API, median", statistics.median(ours), "s")
    add("virsh shutdown of the same guest, median", statistics.median(theirs), "s")
    add(
        "the API's stop longer by",
        (statistics.median(ours) - statistics.median(theirs)) * 1000,
        "ms",
        most=100,
    )


async def _destroys(add: Callable[..., None], server: Served, identifier: str, uri: str) -> None:
    """Destroy the guest behind the API's back and ask the API until it tells."""
    seen: list[float] = []
    restored: list[float] = []
    for _ in range(DESTROYS):
        before = wait(server, identifier, "ACTIVE")
        sight = asyncio.create_task(asyncio.to_thread(_sighted, server, before))
        await virsh(uri, "destroy", identifier)
        # virsh waits for QEMU to end; what the API takes longer than that is what is measured.
        gone = time.perf_counter()
        seen.append(max(await sight - gone, 0.0))
        wait(server, identifier, "ACTIVE")
        restored.append(time.perf_counter() - gone)
    seen.sort()
    add(
        "virsh destroy seen in the API after it returned, p99",
        seen[int(len(seen) * 0.99)] * 1000,
        "ms",
        most=250,
    )
    add("... and running again, median", statistics.median(restored) * 1000, "ms")


def _sighted(server: Served, before: dict[str, Any]) -> float:
    """Ask until the API tells that the guest is off, or that something is done about it; return when."""
    while True:
        shown = server.call("GET", f"/servers/{before['id']}")["server"]
        if shown["OS-EXT-STS:power_state"] != 1 or shown["OS-EXT-STS:task_state"] is not None:
            return time.perf_counter()
