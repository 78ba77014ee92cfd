"""The one application: identity, images and compute behind one address, and what machines ask of a server."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route, Router
from starlette.types import Receive, Scope, Send

from stateward.api.compute import (
    extensions,
    flavors,
    host_services,
    hypervisors,
    instance_actions,
    keypairs,
    limits,
    quotas,
    server_actions,
    server_metadata,
    servers,
    versions,
    zones,
)
from stateward.api.compute.services import Services
from stateward.api.faults import fault
from stateward.api.identity import identity_routes
from stateward.api.images import Images, image_routes

#: Says whether the server can do its work now, and what is missing.
Ready = Callable[[], Awaitable[tuple[bool, dict[str, object]]]]

_SENTENCES = {
    404: "The resource could not be found.",
    405: "The method specified is not allowed for this resource.",
}


def build(services: Services, images: Images, ready: Ready) -> Starlette:
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

    app = Starlette(
        routes=[
            Mount("/compute/v2.1", app=_compute(services, legacy=False)),
            Mount("/compute/v2/{project_id}", app=_compute(services, legacy=True)),
            Mount("/compute", routes=versions.routes(services)),
            Mount("/identity", routes=identity_routes(services.identity)),
            Mount("/image", routes=image_routes(images, services.identity)),
            Route("/healthz", healthz),
            Route("/readyz", readyz),
            Route("/", _root),
        ],
        exception_handlers={HTTPException: _http_exception},
    )
    # "/compute/v2.1/" is a document, "/compute/v2.1/servers/" is nothing; nobody is sent from one to the other.
    app.router.redirect_slashes = False
    return app


def _compute(services: Services, *, legacy: bool) -> Router:
    """Return the Compute API of one version; the most used resources are looked for first."""
    modules = (
        servers,
        server_actions,
        server_metadata,
        instance_actions,
        flavors,
        keypairs,
        limits,
        zones,
        host_services,
        hypervisors,
        extensions,
        quotas,
    )
    routes = [route for module in modules for route in module.routes(services, legacy=legacy)]
    routes += versions.document_routes(services, legacy=legacy)
    return Router(routes, redirect_slashes=False, default=_nothing_here)


async def _nothing_here(scope: Scope, receive: Receive, send: Send) -> None:
    await fault(404, _SENTENCES[404])(scope, receive, send)


async def _http_exception(_request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    response = fault(status, _SENTENCES.get(status, str(getattr(error, "detail", ""))))
    response.headers["x-openstack-request-id"] = f"req-{uuid.uuid4()}"
    return response


async def _root(request: Request) -> Response:
    base = f"{request.url.scheme}://{request.headers.get('host', 'localhost')}"
    services = ("compute", "identity", "image")
    return JSONResponse({name: f"{base}/{name}" for name in services})
