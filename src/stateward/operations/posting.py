"""Posting to addresses that people named: nothing but http and https, and by default nothing in private networks.

A name is resolved here and the connection made to the address that was looked at, so that it cannot mean another a
moment later.
"""

from __future__ import annotations

import asyncio
import http
import ipaddress
import socket
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, Protocol
from urllib.parse import urlsplit

from stateward.domain.errors import Invalid

if TYPE_CHECKING:
    import httpx2

#: Bytes of an answer that are read: enough for its sentence, should it be a refusal.
_READ: Final = 200


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


class HttpPost:
    """Posts over HTTP; redirects are not followed."""

    def __init__(self, *, seconds: float, private: bool) -> None:
        """Give each message so many seconds; ``private``: also to addresses that are not on the internet."""
        self._seconds = seconds
        self._private = private
        self._client: httpx2.AsyncClient | None = None

    async def __call__(self, url: str, body: bytes, headers: Mapping[str, str]) -> None:
        """Send it once.

        Raises:
            NotDelivered: it was not taken.
        """
        import httpx2  # noqa: PLC0415 (costs 0.1 s and some memory, and most servers have no webhook)

        if self._client is None:
            self._client = httpx2.AsyncClient(follow_redirects=False, trust_env=False, timeout=self._seconds)
        parsed = urlsplit(url)
        name = parsed.hostname or ""
        try:
            async with asyncio.timeout(self._seconds):
                address = await self._address(name, parsed.port or (443 if parsed.scheme == "https" else 80))
                host = f"[{address}]" if ":" in address else address
                port = "" if parsed.port is None else f":{parsed.port}"
                target = parsed._replace(netloc=f"{host}{port}", fragment="").geturl()
                request = self._client.build_request(
                    "POST",
                    target,
                    content=body,
                    headers={**headers, "host": parsed.netloc},
                    extensions={"sni_hostname": name},
                )
                response = await self._client.send(request, stream=True)
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
        if self._client is not None:
            await self._client.aclose()
            self._client = None

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
        raise NotDelivered(
            f"{name} is {', '.join(addresses)}, in a private network; the setting webhooks.private_addresses is off."
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


def is_public(address: str) -> bool:
    """Say whether an address is one of the internet."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return (mapped or parsed).is_global


async def _beginning(response: httpx2.Response) -> str:
    raw = b""
    async for chunk in response.aiter_raw():
        raw += chunk
        if len(raw) >= _READ:
            break
    return " ".join(raw[:_READ].decode("utf-8", "replace").split())
