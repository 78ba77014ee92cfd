"""The Compute API for servers, and ``/v1``, over a whole control plane with simulated guests, on virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from typing import Any, Final, cast
from urllib.parse import urlsplit

import httpx2
import msgspec
from starlette.routing import Mount, Router

from stateward.api.compute import remote_consoles, server_actions, server_diagnostics
from stateward.api.compute.services import Services
from stateward.api.console import ConsoleAccess, ConsoleTokens, console_routes
from stateward.api.identity.service import Identity
from stateward.api.native import native_app
from stateward.operations.changes import Changes
from stateward.operations.control import Control
from tests.api.resources.conftest import Answer, Tokens
from tests.stack import Stack

_MODULES: Final = (server_actions, server_diagnostics, remote_consoles)


class Cloud:
    """A running stack, asked over HTTP as somebody in some version."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.access = ConsoleAccess(
            tokens=ConsoleTokens(b"a secret", stack.clock, seconds=600),
            ports=stack.consoles,
            database=stack.database,
            allowed_origins=frozenset({"dashboard.example.org"}),
        )
        self.services = Services(
            consoles=self.access,
            database=stack.database,
            identity=cast("Identity", Tokens()),
            admission=stack.admission,
            asking=stack.asking,
            immediate=stack.immediate,
            control=Control(stack.database, stack.clock, stack.dispatcher.wake),
            changes=Changes(),
            bus=stack.bus,
            clock=stack.clock,
        )
        routes = [route for module in _MODULES for route in module.routes(self.services)]
        self.app = Router(
            [
                Mount("/compute/v2.1", app=Router(routes, redirect_slashes=False)),
                Mount("/v1", app=native_app(self.services)),
                *console_routes(self.access),
            ]
        )

    async def __call__(
        self, method: str, path: str, body: object = None, *, by: str = "member", v: int = 1
    ) -> Answer:
        """Ask the Compute API once; ``v`` is a minor number."""
        return await self._ask(method, f"/compute/v2.1{path}", body, by=by, v=v)

    async def native(self, method: str, path: str, body: object = None, *, by: str = "member") -> Answer:
        """Ask ``/v1`` once."""
        return await self._ask(method, f"/v1{path}", body, by=by, v=1)

    async def _ask(self, method: str, path: str, body: object, *, by: str, v: int) -> Answer:
        headers = {"x-auth-token": by, "openstack-api-version": f"compute 2.{v}"}
        transport = httpx2.ASGITransport(app=self.app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://cloud") as client:
            content = None if body is None else msgspec.json.encode(body)
            response = await client.request(method, path, content=content, headers=headers)
        decoded = msgspec.json.decode(response.content) if response.content else None
        return Answer(response.status_code, decoded, dict(response.headers))

    async def act(
        self, instance_id: str, name: str, options: Any = None, *, by: str = "member", v: int = 1
    ) -> Answer:
        """Ask for an action."""
        return await self("POST", f"/servers/{instance_id}/action", {name: options}, by=by, v=v)


class Socket:
    """A websocket's client end, spoken to the application directly."""

    def __init__(self, cloud: Cloud, url: str, *, subprotocols: tuple[str, ...] = (), **headers: str) -> None:
        self._cloud = cloud
        parts = urlsplit(url)
        self._scope: Any = {
            "type": "websocket",
            "asgi": {"version": "3.0"},
            "scheme": parts.scheme,
            "path": parts.path,
            "root_path": "",
            "query_string": parts.query.encode(),
            "headers": [(b"host", parts.netloc.encode())]
            + [(name.encode(), value.encode()) for name, value in headers.items()],
            "subprotocols": list(subprotocols),
            "extensions": {"websocket.http.response": {}},
        }
        self._to: asyncio.Queue[Any] = asyncio.Queue()
        self._from: asyncio.Queue[MutableMapping[str, Any]] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None

    async def connect(self) -> MutableMapping[str, Any]:
        """Shake hands; return the first answer."""
        self._to.put_nowait({"type": "websocket.connect"})
        self._task = asyncio.create_task(self._cloud.app(self._scope, self._to.get, self._from.put))
        return await self._from.get()

    async def refused(self) -> tuple[int, str]:
        """Shake hands in vain; return the status and the sentence."""
        start = await self.connect()
        assert start["type"] == "websocket.http.response.start"
        body = await self._from.get()
        (said,) = msgspec.json.decode(body["body"]).values()
        await self.ended()
        assert said["code"] == start["status"]
        return int(start["status"]), str(said["message"])

    def type(self, text: str | bytes) -> None:
        """Send a message."""
        kind = "text" if isinstance(text, str) else "bytes"
        self._to.put_nowait({"type": "websocket.receive", kind: text})

    async def next(self) -> MutableMapping[str, Any]:
        """Return what the server sends next."""
        return await self._from.get()

    async def leave(self) -> None:
        """Go away."""
        self._to.put_nowait({"type": "websocket.disconnect", "code": 1001})
        await self.ended()

    async def ended(self) -> None:
        """Wait until the server has let go."""
        assert self._task is not None
        await self._task
