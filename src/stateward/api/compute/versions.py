"""The version documents, by which clients find out what there is; they need no token."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from stateward.api.compute.call import MAX_MINOR, MIN_MINOR, answer_to, reply, requested_minor
from stateward.api.compute.services import Services
from stateward.api.faults import ApiFault

_V20: Final[dict[str, Any]] = {
    "id": "v2.0",
    "status": "SUPPORTED",
    "version": "",
    "min_version": "",
    "updated": "2011-01-21T11:33:21Z",
}
_V21: Final[dict[str, Any]] = {
    "id": "v2.1",
    "status": "CURRENT",
    "version": f"2.{MAX_MINOR}",
    "min_version": f"2.{MIN_MINOR}",
    "updated": "2013-07-23T11:33:21Z",
}


def _self_link(services: Services, request: Request, *, legacy: bool) -> dict[str, str]:
    return {"rel": "self", "href": f"{services.root(request, legacy=legacy)}/"}


def _document(services: Services, request: Request, *, legacy: bool) -> dict[str, Any]:
    described = {"rel": "describedby", "type": "text/html", "href": "http://docs.openstack.org/"}
    media = f"application/vnd.openstack.compute+json;version={'2' if legacy else '2.1'}"
    return {
        "version": {
            **(_V20 if legacy else _V21),
            "links": [_self_link(services, request, legacy=legacy), described],
            "media-types": [{"base": "application/json", "type": media}],
        }
    }


def _identified(response: Response) -> Response:
    request_id = f"req-{uuid.uuid4()}"
    response.headers["x-openstack-request-id"] = request_id
    response.headers["x-compute-request-id"] = request_id
    return response


def _show(services: Services, *, legacy: bool) -> Callable[[Request], Awaitable[Response]]:
    async def show(request: Request) -> Response:
        try:
            minor = MIN_MINOR if legacy else requested_minor(request)
        except ApiFault as error:
            return _identified(answer_to(error, ""))
        response = _identified(reply(_document(services, request, legacy=legacy)))
        if not legacy:
            response.headers["openstack-api-version"] = f"compute 2.{minor}"
            response.headers["x-openstack-nova-api-version"] = f"2.{minor}"
            response.headers["vary"] = "OpenStack-API-Version, X-OpenStack-Nova-API-Version"
        return response

    return show


def document_routes(services: Services, *, legacy: bool = False) -> list[BaseRoute]:
    """Return the route of one version's own document, at the version's root."""
    return [Route("/", _show(services, legacy=legacy), methods=["GET"])]


def routes(services: Services) -> list[BaseRoute]:
    """Return the routes of the list of versions, and of each version's root without its last slash."""

    async def index(request: Request) -> Response:
        versions = [
            {**document, "links": [_self_link(services, request, legacy=legacy)]}
            for document, legacy in ((_V20, True), (_V21, False))
        ]
        return _identified(reply({"versions": versions}))

    current, old = _show(services, legacy=False), _show(services, legacy=True)
    return [
        Route("/", index, methods=["GET"]),
        Route("/v2.1", current, methods=["GET"]),
        Route("/v2", old, methods=["GET"]),
        Route("/v2/", old, methods=["GET"]),
        Route("/v2/{project_id}", old, methods=["GET"]),
    ]
