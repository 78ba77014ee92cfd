"""The paths of ``/v1``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router

from stateward.api.compute.services import Services
from stateward.api.http import base_url
from stateward.api.native import (
    adoptions,
    events,
    explain,
    host_plans,
    hosts,
    locks,
    operations,
    overrides,
    policies,
    telling,
    usage,
    webhooks,
)
from stateward.api.native.call import Endpoint, Resource, nothing_here, reply
from stateward.api.native.openapi import document

#: Those with a fixed name before those with an id in its place.
RESOURCES: Final[Mapping[str, Mapping[str, Resource]]] = {
    **events.RESOURCES,
    **operations.RESOURCES,
    **locks.RESOURCES,
    **overrides.RESOURCES,
    **explain.RESOURCES,
    **adoptions.RESOURCES,
    **policies.RESOURCES,
    **hosts.RESOURCES,
    **host_plans.RESOURCES,
    **telling.RESOURCES,
    **usage.RESOURCES,
    **webhooks.RESOURCES,
}


def native_app(services: Services) -> Router:
    """Return the whole API, to be mounted at ``/v1``."""
    described = document(RESOURCES)

    async def openapi(_request: Request) -> Response:
        return reply(described)

    async def root(request: Request) -> Response:
        here = f"{base_url(request, services.public_url)}/v1"
        return reply({"operations": f"{here}/operations", "openapi": f"{here}/openapi.json"})

    return Router(
        [
            Route("/", root, methods=["GET"]),
            Route("/openapi.json", openapi, methods=["GET"]),
            *(Route(path, Endpoint(services, methods)) for path, methods in RESOURCES.items()),
        ],
        redirect_slashes=False,
        default=nothing_here,
    )
