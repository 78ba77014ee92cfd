"""Posting: to the internet alone, by the name that was given, and the status says what became of it."""

from __future__ import annotations

import asyncio
import contextlib
import socket

import pytest

from stateward import __version__
from stateward.operations import posting
from stateward.operations.posting import HttpPost, NotDelivered, is_public


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True),
        ("127.0.0.1", False),
        ("10.0.0.1", False),
        ("169.254.169.254", False),
        ("::1", False),
        ("fe80::1%eth0", False),
        ("::ffff:10.0.0.1", False),
        ("2606:2800:220:1::1", True),
        ("::ffff:8.8.8.8", True),
        ("::127.0.0.1", False),
        ("::", False),
        ("64:ff9b::8.8.8.8", True),
        ("64:ff9b::a9fe:a9fe", False),
        ("64:ff9b::7f00:1", False),
        ("64:ff9b:1::7f00:1", False),
        ("2002:7f00:1::", False),
        ("fec0::1", False),
        ("fc00::1", False),
        ("ff02::1", False),
        ("ff0e::1", False),
        ("224.0.0.1", False),
        ("192.88.99.1", False),
        ("240.0.0.1", False),
        ("100.64.0.1", False),
    ],
)
def test_which_addresses_are_of_the_internet(address: str, *, public: bool) -> None:
    """By default nothing else is posted to."""
    assert is_public(address) is public


class Listener:
    """A receiver on this machine, by whatever name, that answers with a status and a body, and keeps connections."""

    def __init__(self, status: str, body: bytes = b"content-length: 4\r\n\r\nsaid") -> None:
        self.status = status
        self.body = body
        self.requests: list[bytes] = []
        self.connections = 0
        self.open: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> str:
        self._server = await asyncio.start_server(self._answer, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return f"http://localhost:{self.port}/hook?a=b"

    async def __aexit__(self, *_error: object) -> None:
        self._server.close()
        for writer in self.open:
            writer.close()
        await self._server.wait_closed()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open.add(writer)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                self.requests.append(head + await reader.readexactly(2))
                writer.write(f"HTTP/1.1 {self.status}\r\n".encode() + self.body)
                await writer.drain()
        self.open.discard(writer)
        writer.close()


@pytest.fixture(autouse=True)
def names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every name lead to this machine."""

    async def here(_loop: object, name: str, port: int, **_more: object) -> list[tuple[object, ...]]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr(asyncio.base_events.BaseEventLoop, "getaddrinfo", here)


@pytest.mark.parametrize(
    ("status", "says"),
    [
        ("204 No Content", None),
        ("500 No", "It answered 500: said"),
        ("302 Found", "It answered 302: said"),
        ("410 Gone", "It answered 410: said"),
    ],
)
async def test_over_http(status: str, says: str | None) -> None:
    """To the name that was given, whatever address was looked at; redirects are no delivery."""
    post = HttpPost(seconds=5, private=True)
    listener = Listener(status.replace("204 No Content", "200 OK"))
    async with listener as url:
        if says is None:
            await post(url, b"{}", {"webhook-id": "x"})
        else:
            with pytest.raises(NotDelivered) as error:
                await post(url, b"{}", {"webhook-id": "x"})
            assert (str(error.value), error.value.gone) == (says, "410" in status)
    head = listener.requests[0].decode()
    assert head.startswith("POST /hook?a=b HTTP/1.1\r\n")
    assert f"user-agent: stateward/{__version__}\r\n" in head.lower()
    assert f"host: {url.split('/')[2]}\r\n" in head.lower()
    await post.close()


async def test_what_nobody_may_post_to() -> None:
    """Not this machine, whatever name it goes by; and a port where nobody listens."""
    post = HttpPost(seconds=5, private=False)
    with pytest.raises(NotDelivered, match=r"^localhost is 127\.0\.0\.1, in a private network;"):
        await post("http://localhost:1/", b"{}", {})
    with pytest.raises(NotDelivered, match=r"^127\.0\.0\.1 is in a private network;"):
        await post("http://127.0.0.1:1/", b"{}", {})
    open_post = HttpPost(seconds=5, private=True)
    with pytest.raises(NotDelivered, match="ConnectError"):
        await open_post("http://127.0.0.1:1/", b"{}", {})
    await open_post.close()


async def test_a_connection_is_one_name_s() -> None:
    """Another name at the same address has a certificate of its own to be looked at; few are kept."""
    post = HttpPost(seconds=5, private=True)
    listener = Listener("200 OK")
    async with listener:
        for name, connections in (("a.example", 1), ("a.example", 1), ("b.example", 2), ("a.example", 2)):
            await post(f"http://{name}:{listener.port}/", b"{}", {})
            assert (name, listener.connections) == (name, connections)
        await post.close()


async def test_connections_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that were used longest ago are closed."""
    monkeypatch.setattr(posting, "_KEPT", 2)
    post = HttpPost(seconds=5, private=True)
    listener = Listener("200 OK")
    async with listener:
        for name, connections in (("a", 1), ("b", 2), ("a", 2), ("c", 3), ("a", 3), ("b", 4)):
            await post(f"http://{name}.example:{listener.port}/", b"{}", {})
            assert (name, listener.connections) == (name, connections)
        await post.close()


@pytest.mark.parametrize("status", ["200 OK", "410 Gone"])
async def test_a_body_that_does_not_end(monkeypatch: pytest.MonkeyPatch, status: str) -> None:
    """What was answered counts, and the body is not waited for."""
    monkeypatch.setattr(posting, "_SAYS", 0.01)
    post = HttpPost(seconds=5, private=True)
    listener = Listener(status, b"transfer-encoding: chunked\r\n\r\n4\r\nsaid\r\n")
    async with listener as url, asyncio.timeout(4):
        if status == "200 OK":
            await post(url, b"{}", {})
            await post(url, b"{}", {})
            assert listener.connections == 2
        else:
            with pytest.raises(NotDelivered, match=r"^It answered 410: said$") as error:
                await post(url, b"{}", {})
            assert error.value.gone
        await post.close()
