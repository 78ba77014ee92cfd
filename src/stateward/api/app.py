"""The one application: identity, images and compute behind one address, and what machines ask of a server."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable
from functools import cached_property
from typing import TYPE_CHECKING

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from stateward.api.compute import (
    extensions,
    flavors,
    host_services,
    hypervisors,
    instance_actions,
    keypairs,
    limits,
    networks,
    quotas,
    remote_consoles,
    server_actions,
    server_diagnostics,
    server_groups,
    server_metadata,
    server_ports,
    servers,
    versions,
    zones,
)
from stateward.api.compute.services import Services
from stateward.api.console import console_routes
from stateward.api.faults import fault
from stateward.api.identity import identity_routes
from stateward.api.images import Images, image_routes
from stateward.api.native import native_app
from stateward.api.networks import network_routes

if TYPE_CHECKING:
    from stateward.api.metrics import Metrics

#: Says whether the server can do its work now, and what is missing.
Ready = Callable[[], Awaitable[tuple[bool, dict[str, object]]]]

_SENTENCES = {
    404: "The resource could not be found.",
    405: "The method specified is not allowed for this resource.",
}


class Application:
    """Sends each request to its API. The Compute API is reached directly: it has its own faults and headers."""

    def __init__(self, compute: Router, others: Starlette) -> None:
        """Keep both."""
        self._compute = compute
        self._others = others

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http" or not scope["path"].startswith("/compute/"):
            await self._others(scope, receive, send)
            return
        # What tells Starlette to raise what it would answer in plain text (405).
        scope["app"] = self
        try:
            await self._compute(scope, receive, send)
        except HTTPException as error:
            await _http_exception(None, error)(scope, receive, send)


class _Scrapes:
    """Answers scrapes, with what is loaded for the first of them."""

    def __init__(self, services: Services) -> None:
        """Keep the services."""
        self._services = services

    @cached_property
    def _metrics(self) -> Metrics:
        from stateward.api.metrics import Metrics  # noqa: PLC0415 (its library costs a start 0.1 s; many are never scraped)

        return Metrics(self._services)

    async def answer(self, request: Request) -> Response:
        """Answer one."""
        return await self._metrics.answer(request)


def build(services: Services, images: Images, ready: Ready) -> Application:
    """Put the application together."""

    async def healthz(_request: Request) -> Response:
        return Response("ok\n", media_type="text/plain")

    async def readyz(_request: Request) -> Response:
        good, detail = await ready()
        return Response(
            msgspec.json.encode({"ready": good, **detail}),
            200 if good else 503,
            media_type="application/json",
        )

    others = Starlette(
        routes=[
            Mount("/compute/v2.1", routes=versions.document_routes(services)),
            Mount("/compute/v2/{project_id}", routes=versions.document_routes(services, legacy=True)),
            Mount("/compute", routes=versions.routes(services)),
            Mount("/identity", routes=identity_routes(services.identity, public_url=services.public_url)),
            Mount(
                "/network",
                routes=network_routes(
                    services.networks, services.database, services.identity, public_url=services.public_url
                ),
            ),
            Mount("/image", routes=image_routes(images, services.identity, public_url=services.public_url)),
            Mount("/v1", app=native_app(services)),
            *console_routes(services.consoles),
            Route("/metrics", _Scrapes(services).answer),
            Route("/healthz", healthz),
            Route("/readyz", readyz),
            Route("/", _root),
        ],
        exception_handlers={HTTPException: _http_exception},
    )
    return Application(_compute(services, others), others)


def _compute(services: Services, default: ASGIApp) -> Router:
    """Return the Compute API in both versions; the most used resources are looked for first."""
    modules = (
        servers,
        server_actions,
        remote_consoles,
        server_metadata,
        server_ports,
        server_diagnostics,
        instance_actions,
        flavors,
        keypairs,
        limits,
        zones,
        host_services,
        hypervisors,
        extensions,
        quotas,
        networks,
        server_groups,
    )
    routes: list[BaseRoute] = []
    for prefix, legacy in (("/compute/v2.1", False), ("/compute/v2/{project_id}", True)):
        for module in modules:
            for route in module.routes(services, legacy=legacy):
                if not isinstance(route, Route):
                    raise TypeError(f"{module.__name__} has a route that is none: {route!r}")
                routes.append(Route(prefix + route.path, route.endpoint, methods=sorted(route.methods or ())))
    return Router(routes, redirect_slashes=False, default=default)


def _http_exception(_request: Request | None, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    response = fault(status, _SENTENCES.get(status, str(getattr(error, "detail", ""))))
    response.headers["x-openstack-request-id"] = f"req-{uuid.uuid4()}"
    return response


async def _root(request: Request) -> Response:
    base = f"{request.url.scheme}://{request.headers.get('host', 'localhost')}"
    services = {"compute": "compute", "identity": "identity", "image": "image", "stateward": "v1"}
    return JSONResponse({name: f"{base}/{path}" for name, path in services.items()})
