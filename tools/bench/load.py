"""A load of several clients on keep-alive connections, cheap enough to measure servers and not itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from itertools import cycle


class _Client(asyncio.Protocol):
    """Sends the next request as soon as the last answer is whole; counts them and their time."""

    def __init__(self, requests: Iterator[bytes], until: float, done: asyncio.Future[None]) -> None:
        self.latencies: list[float] = []
        self.statuses: dict[bytes, int] = {}
        self._requests = requests
        self._until = until
        self._done = done
        self._buffer = b""
        self._sent = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._next()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, found, rest = self._buffer.partition(b"\r\n\r\n")
        if not found:
            return
        length = 0
        for line in head.split(b"\r\n"):
            if line.lower().startswith(b"content-length:"):
                length = int(line.split(b":")[1])
        if len(rest) < length:
            return
        self._buffer = b""
        status = head[9:12]
        self.statuses[status] = self.statuses.get(status, 0) + 1
        self.latencies.append(time.perf_counter() - self._sent)
        self._next()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._done.done():
            self._done.set_result(None)

    def _next(self) -> None:
        self._sent = time.perf_counter()
        if self._sent >= self._until:
            self._transport.close()
            return
        self._transport.write(next(self._requests))


def request(method: str, path: str, *, token: str = "", body: bytes = b"", version: str = "2.104") -> bytes:
    """Write a request out once, to be sent many times."""
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(body)}"]
    if token:
        lines += [f"X-Auth-Token: {token}", f"OpenStack-API-Version: compute {version}"]
    if body:
        lines.append("Content-Type: application/json")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


class Measured:
    """What a load gave: requests a second, latencies in seconds, answers by status."""

    def __init__(self, latencies: list[float], statuses: dict[int, int], seconds: float) -> None:
        """Keep the figures."""
        self.latencies = sorted(latencies)
        self.statuses = statuses
        self.rate = len(latencies) / seconds

    def quantile(self, share: float) -> float:
        """Return the latency that this share of requests did not exceed, in seconds."""
        return self.latencies[min(int(len(self.latencies) * share), len(self.latencies) - 1)]


async def load(port: int, per_client: list[list[bytes]], seconds: float) -> Measured:
    """Let each client send its requests round and round for some seconds."""
    loop = asyncio.get_running_loop()
    began = time.perf_counter()
    clients: list[_Client] = []
    ends: list[asyncio.Future[None]] = []
    for requests in per_client:
        done = loop.create_future()
        _transport, client = await loop.create_connection(
            lambda requests=requests, done=done: _Client(cycle(requests), began + seconds, done),  # type: ignore[misc]
            "127.0.0.1",
            port,
        )
        clients.append(client)
        ends.append(done)
    await asyncio.gather(*ends)
    statuses: dict[int, int] = {}
    for client in clients:
        for status, count in client.statuses.items():
            statuses[int(status)] = statuses.get(int(status), 0) + count
    latencies = [latency for client in clients for latency in client.latencies]
    return Measured(latencies, statuses, time.perf_counter() - began)
