"""The Compute API's server resources over a whole control plane with simulated guests, on virtual time."""

from __future__ import annotations

from typing import Any, Final, cast

import httpx2
import msgspec
from starlette.routing import Mount, Router

from stateward.api.compute import server_actions, server_diagnostics
from stateward.api.compute.services import Services
from stateward.api.identity.service import Identity
from stateward.operations.changes import Changes
from stateward.operations.control import Control
from tests.api.resources.conftest import Answer, Tokens
from tests.stack import Stack

_MODULES: Final = (server_actions, server_diagnostics)


class Cloud:
    """A running stack, asked over HTTP as somebody in some version."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.services = Services(
            database=stack.database,
            identity=cast("Identity", Tokens()),
            admission=stack.admission,
            immediate=stack.immediate,
            control=Control(stack.database, stack.clock, stack.dispatcher.wake),
            changes=Changes(),
            bus=stack.bus,
            clock=stack.clock,
        )
        routes = [route for module in _MODULES for route in module.routes(self.services)]
        self.app = Router([Mount("/compute/v2.1", app=Router(routes, redirect_slashes=False))])

    async def __call__(
        self, method: str, path: str, body: object = None, *, by: str = "member", v: int = 1
    ) -> Answer:
        """Ask once; ``v`` is a minor number."""
        headers = {"x-auth-token": by, "openstack-api-version": f"compute 2.{v}"}
        transport = httpx2.ASGITransport(app=self.app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://cloud") as client:
            content = None if body is None else msgspec.json.encode(body)
            response = await client.request(method, "/compute/v2.1" + path, content=content, headers=headers)
        decoded = msgspec.json.decode(response.content) if response.content else None
        return Answer(response.status_code, decoded, dict(response.headers))

    async def act(
        self, instance_id: str, name: str, options: Any = None, *, by: str = "member", v: int = 1
    ) -> Answer:
        """Ask for an action."""
        return await self("POST", f"/servers/{instance_id}/action", {name: options}, by=by, v=v)
