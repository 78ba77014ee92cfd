"""Posting to addresses that people named: nothing but http and https, and by default nothing in private networks.

A name is resolved here and the connection made to the address that was looked at, so that it cannot mean another a
moment later. Connections are kept for the name that they were made to: whoever shares its address does not share its
certificate.
"""

from __future__ import annotations

import asyncio
import contextlib
import http
import ipaddress
import socket
from collections.abc import AsyncGenerator, Mapping
from typing import TYPE_CHECKING, Final, Protocol
from urllib.parse import urlsplit

from stateward import __version__
from stateward.domain.errors import Invalid

if TYPE_CHECKING:
    import ssl

    import httpx2

#: Bytes of an answer that are read: enough for its sentence, should it be a refusal.
_READ: Final = 200
#: Seconds they are waited for: the status is what counts, and a connection whose answer was read is used again.
_SAYS: Final = 0.5
#: Receivers to whom connections are kept, beyond those that are being posted to.
_KEPT: Final = 32
#: Characters of an address at most.
_LONGEST_URL: Final = 2048


class NotDelivered(Exception):
    """Nobody took it; ``str()`` says why. ``gone``: nobody ever will."""

    def __init__(self, says: str, *, gone: bool = False) -> None:
        """Keep both."""
        super().__init__(says)
        self.gone = gone


class Post(Protocol):
    """Sends a message to an address."""

    async def __call__(self, url: str, body: bytes, headers: Mapping[str, str]) -> None:
        """Send it once.

        Raises:
            NotDelivered: it was not taken.
        """
        ...


class _Line:
    """Connections to one receiver, and how many use them now."""

    def __init__(self, client: httpx2.AsyncClient) -> None:
        self.client = client
        self.users = 0


class HttpPost:
    """Posts over HTTP; redirects are not followed."""

    def __init__(self, *, seconds: float, private: bool) -> None:
        """Give each message so many seconds; ``private``: also to addresses that are not on the internet."""
        self._seconds = seconds
        self._private = private
        self._tls: ssl.SSLContext | None = None
        #: By scheme, name and port; the one that was used last is the last.
        self._lines: dict[tuple[str, str, int], _Line] = {}

    async def __call__(self, url: str, body: bytes, headers: Mapping[str, str]) -> None:
        """Send it once.

        Raises:
            NotDelivered: it was not taken.
        """
        import httpx2  # noqa: PLC0415 (costs 0.1 s and some memory, and most servers have no webhook)

        parsed = urlsplit(url)
        name = parsed.hostname or ""
        number = parsed.port or (443 if parsed.scheme == "https" else 80)
        try:
            async with self._line(parsed.scheme, name, number) as client:
                async with asyncio.timeout(self._seconds):
                    address = await self._address(name, number)
                    host = f"[{address}]" if ":" in address else address
                    port = "" if parsed.port is None else f":{parsed.port}"
                    target = parsed._replace(netloc=f"{host}{port}", fragment="").geturl()
                    request = client.build_request(
                        "POST",
                        target,
                        content=body,
                        headers={**headers, "host": parsed.netloc},
                        extensions={"sni_hostname": name},
                    )
                    response = await client.send(request, stream=True)
                try:
                    said = await _beginning(response)
                finally:
                    await response.aclose()
        except TimeoutError:
            raise NotDelivered(f"It did not answer within {self._seconds:g} s.") from None
        except (httpx2.HTTPError, OSError, ValueError) as error:
            raise NotDelivered(f"{type(error).__name__}: {error}".rstrip(": ")) from None
        if not response.is_success:
            gone = response.status_code == http.HTTPStatus.GONE
            raise NotDelivered(f"It answered {response.status_code}: {said}".rstrip(": "), gone=gone)

    async def close(self) -> None:
        """Close what is open."""
        while self._lines:
            _key, line = self._lines.popitem()
            await line.client.aclose()

    @contextlib.asynccontextmanager
    async def _line(self, *key: *tuple[str, str, int]) -> AsyncGenerator[httpx2.AsyncClient]:
        """Give what posts to one receiver alone; those that nobody posts to are closed, the oldest first."""
        import httpx2  # noqa: PLC0415 (as above)

        line = self._lines.pop(key, None) or _Line(self._client())
        self._lines[key] = line
        line.users += 1
        try:
            yield line.client
        finally:
            line.users -= 1
            idle = [each for each, other in self._lines.items() if not other.users]
            # Out of sight before any is waited for: somebody else may close, or begin to post, meanwhile.
            closing = [self._lines.pop(each) for each in idle[: max(len(self._lines) - _KEPT, 0)]]
            for old in closing:
                with contextlib.suppress(httpx2.HTTPError, OSError):
                    await old.client.aclose()

    def _client(self) -> httpx2.AsyncClient:
        import httpx2  # noqa: PLC0415 (as above)

        if self._tls is None:
            self._tls = httpx2.create_ssl_context(trust_env=False)
        return httpx2.AsyncClient(
            follow_redirects=False,
            trust_env=False,
            timeout=self._seconds,
            verify=self._tls,
            headers={"user-agent": f"stateward/{__version__}"},
        )

    async def _address(self, name: str, port: int) -> str:
        """Return an address of a name that may be posted to.

        Raises:
            NotDelivered: it has none.
            OSError: it cannot be resolved.
        """
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(name, port, type=socket.SOCK_STREAM)
        addresses = [str(each[4][0]) for each in found]
        for address in addresses:
            if self._private or is_public(address):
                return address
        where = "" if addresses == [name] else f"{', '.join(addresses)}, "
        raise NotDelivered(
            f"{name} is {where}in a private network; the setting webhooks.private_addresses is off."
        )


def check_url(text: str) -> str:
    """Return an address that can be told.

    Raises:
        Invalid: it is none of http or https, or has a name and a password in it, which every list would show.
    """
    try:
        parsed = urlsplit(text)
        good = parsed.scheme in {"http", "https"} and bool(parsed.hostname) and parsed.port != 0
    except ValueError:
        raise Invalid(
            f"{text[:200]!r} is no address of a webhook: it is like https://example.org/path."
        ) from None
    if not good or len(text) > _LONGEST_URL or not text.isascii() or not text.isprintable() or " " in text:
        raise Invalid(f"{text[:200]!r} is no address of a webhook: it is like https://example.org/path.")
    if parsed.username is not None or parsed.password is not None:
        raise Invalid(
            "An address with a name or a password in it is not kept; a webhook's messages are signed."
        )
    return text


#: Addresses of IPv6 that lead to one of IPv4, their last 32 bits, where a network translates (RFC 6052).
_TRANSLATED: Final = ipaddress.IPv6Network("64:ff9b::/96")
#: What is no one's on the internet, though not every version of ``ipaddress`` says so: IPv4 within IPv6 in ways that
#: were given up (RFC 4291, 3056), and their relays (RFC 7526).
_GIVEN_UP: Final = (
    ipaddress.IPv6Network("::/96"),
    ipaddress.IPv6Network("2002::/16"),
    ipaddress.IPv4Network("192.88.99.0/24"),
)


def is_public(address: str) -> bool:
    """Say whether an address is one of the internet, and of one machine there."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(parsed, ipaddress.IPv6Address):
        inner = parsed.ipv4_mapped
        if parsed in _TRANSLATED:
            inner = ipaddress.IPv4Address(parsed.packed[-4:])
        if inner is not None:
            return is_public(str(inner))
        if parsed.is_site_local:
            return False
    if any(parsed in network for network in _GIVEN_UP):
        return False
    return parsed.is_global and not (parsed.is_multicast or parsed.is_reserved)


async def _beginning(response: httpx2.Response) -> str:
    """Return what an answer begins with, as far as that comes soon; the status has said already what became of it."""
    import httpx2  # noqa: PLC0415 (as above)

    raw = b""
    with contextlib.suppress(TimeoutError, httpx2.HTTPError):
        async with asyncio.timeout(_SAYS):
            async for chunk in response.aiter_raw():
                raw += chunk
                if len(raw) >= _READ:
                    break
    return " ".join(raw[:_READ].decode("utf-8", "replace").split())
