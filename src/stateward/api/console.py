"""The serial console over a websocket: who holds a good token sees and types (ADR 0010).

Bytes go both ways in binary messages, as clients of Nova's serial proxy send and expect them (subprotocol ``binary``,
or none). A refusal is an answer instead of the websocket; an end is its close, with the reason.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import secrets
from typing import Final
from urllib.parse import urlsplit

import msgspec
from itsdangerous import BadSignature, Signer
from itsdangerous.encoding import base64_decode, base64_encode
from itsdangerous.exc import BadData
from starlette.responses import Response
from starlette.routing import BaseRoute, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from stateward.api.faults import fault
from stateward.bus.console import ConsoleEnded, Consoles, ConsoleStream, ConsoleUnavailable
from stateward.clock import Clock
from stateward.domain.states import VmState
from stateward.store import instances
from stateward.store.engine import Database, StoreUnavailable

#: Where the websocket is.
PATH: Final = "/console"
_SUBPROTOCOL: Final = "binary"
#: The websocket's code for an end that its client did not ask for.
_GOING_AWAY: Final = 1001


class BadConsoleToken(Exception):
    """A token gives no access, or none any more; ``str()`` says why."""


class _Claims(msgspec.Struct, frozen=True, array_like=True):
    instance_id: str
    #: Seconds since the epoch.
    expires_at: float
    #: Makes each token another one.
    nonce: str


_DECODER: Final = msgspec.msgpack.Decoder(_Claims)


class ConsoleTokens:
    """Tokens for one instance's console, signed; nothing is stored of them."""

    def __init__(self, secret: bytes, clock: Clock, *, seconds: float) -> None:
        """Sign with a secret, by another salt than logins: neither is good for the other."""
        self._signer = Signer(
            secret, salt=b"stateward console", key_derivation="hmac", digest_method=hashlib.sha256
        )
        self._clock = clock
        self._seconds = seconds

    def issue(self, instance_id: str) -> str:
        """Make a token that is safe in addresses."""
        claims = _Claims(instance_id, self._clock.now() + self._seconds, secrets.token_urlsafe(9))
        return self._signer.sign(base64_encode(msgspec.msgpack.encode(claims))).decode("ascii")

    def open(self, token: str) -> str:
        """Return the id of the instance that a token is for.

        Raises:
            BadConsoleToken: it was not issued here, or too long ago.
        """
        try:
            claims = _DECODER.decode(base64_decode(self._signer.unsign(token)))
        except (BadSignature, BadData, msgspec.DecodeError, UnicodeError):
            raise BadConsoleToken("The token is not one of a console of this cloud.") from None
        if claims.expires_at <= self._clock.now():
            raise BadConsoleToken("The token has expired. Ask for a new address of the console.")
        return claims.instance_id


class ConsoleAccess(msgspec.Struct, frozen=True, kw_only=True):
    """What the websocket needs."""

    tokens: ConsoleTokens
    ports: Consoles
    database: Database
    #: Host names, besides the server's own, of pages that may connect.
    allowed_origins: frozenset[str] = frozenset()

    async def connect(self, socket: WebSocket) -> None:
        """Serve one websocket from its handshake to its end."""
        opened = await self._open(socket)
        if isinstance(opened, Response):
            await socket.send_denial_response(opened)
            return
        try:
            offered: list[str] = socket.scope["subprotocols"]
            await socket.accept(subprotocol=_SUBPROTOCOL if _SUBPROTOCOL in offered else None)
            why = await _carry(socket, opened)
            if why is not None:
                with contextlib.suppress(RuntimeError, WebSocketDisconnect):
                    await socket.close(_GOING_AWAY, why)
        finally:
            await opened.close()

    async def _open(self, socket: WebSocket) -> ConsoleStream | Response:
        """Connect to the console that the token is for, or say why not."""
        if not self._may_come_from(socket):
            return fault(403, "Pages of this origin may not connect to consoles ([console] allowed_origins).")
        try:
            instance_id = self.tokens.open(socket.query_params.get("token", ""))
            instance = await self.database.read(lambda connection: instances.get(connection, instance_id))
        except BadConsoleToken as error:
            return fault(403, str(error))
        except StoreUnavailable as error:
            return fault(503, str(error))
        if instance is None or instance.vm_state is VmState.DELETED:
            return fault(404, f"Instance {instance_id} could not be found.")
        try:
            return await self.ports.open(instance.host, instance.id)
        except ConsoleUnavailable as error:
            return fault(409, str(error))

    def _may_come_from(self, socket: WebSocket) -> bool:
        """Say whether the page that connects is one of ours, as Nova's proxy does; programs send no origin."""
        origin = socket.headers.get("origin")
        if origin is None:
            return True
        try:
            name = urlsplit(origin).hostname
            own = urlsplit(f"//{socket.headers.get('host', '')}").hostname
        except ValueError:
            return False
        return name is not None and (name == own or name in self.allowed_origins)


async def _carry(socket: WebSocket, console: ConsoleStream) -> str | None:
    """Carry bytes both ways until one end is over; return why the console's is, None when the client left."""
    reading = asyncio.create_task(_to_client(socket, console), name="console to client")
    typing = asyncio.create_task(_to_console(socket, console), name="client to console")
    tasks = (reading, typing)
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        ended = next(task for task in tasks if task.done())
        return ended.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _to_client(socket: WebSocket, console: ConsoleStream) -> str | None:
    try:
        while True:
            await socket.send_bytes(await console.read())
    except ConsoleEnded as ended:
        return str(ended)
    except (WebSocketDisconnect, RuntimeError):
        return None


async def _to_console(socket: WebSocket, console: ConsoleStream) -> str | None:
    while True:
        message = await socket.receive()
        if message["type"] == "websocket.disconnect":
            return None
        data: bytes = message.get("bytes") or (message.get("text") or "").encode()
        try:
            await console.write(data)
        except ConsoleEnded as ended:
            return str(ended)


def console_routes(access: ConsoleAccess | None) -> list[BaseRoute]:
    """Return the websocket's route; none where no consoles are offered."""
    return [] if access is None else [WebSocketRoute(PATH, access.connect)]
