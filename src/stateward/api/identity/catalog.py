"""The service catalog: what this one process serves, at the address the client reached it by."""

from __future__ import annotations

import uuid
from typing import Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from stateward.api.http import base_url, reply
from stateward.api.identity.caller import Callers
from stateward.api.identity.tokens import Token
from stateward.domain.errors import NotFound

REGION: Final = "RegionOne"
_INTERFACES: Final = ("public", "internal", "admin")
#: Makes the ids of services and endpoints from their names, so that they are the same in every process.
_NAMESPACE: Final = uuid.UUID("6f0f3c0e-5a5e-4f5d-9d43-0c6f6f0c6a7b")


class Service(msgspec.Struct, frozen=True):
    """One service of the catalog."""

    type: str
    name: str
    description: str
    #: After the server's address.
    path: str

    @property
    def id(self) -> str:
        """Its id."""
        return uuid.uuid5(_NAMESPACE, self.type).hex

    def endpoint_id(self, interface: str) -> str:
        """Return the id of one of its endpoints."""
        return uuid.uuid5(_NAMESPACE, f"{self.type}/{interface}").hex


SERVICES: Final = (
    Service("compute", "nova", "Compute", "/compute/v2.1"),
    Service("compute_legacy", "nova_legacy", "Compute, legacy v2", "/compute/v2/{project_id}"),
    Service("image", "glance", "Image", "/image"),
    Service("network", "neutron", "Network", "/network"),
    Service("stateward", "stateward", "Operations", "/v1"),
    Service("identity", "keystone", "Identity", "/identity"),
)


def catalog(base: str, token: Token) -> list[dict[str, Any]]:
    """Return the catalog of a token; empty for one that is for no project."""
    if token.project_id is None:
        return []
    return [
        {
            "id": service.id,
            "type": service.type,
            "name": service.name,
            "endpoints": [
                {
                    "id": service.endpoint_id(interface),
                    "interface": interface,
                    "region": REGION,
                    "region_id": REGION,
                    "url": base + service.path.replace("{project_id}", token.project_id),
                }
                for interface in _INTERFACES
            ],
        }
        for service in SERVICES
    ]


class CatalogResources:
    """The handlers of services, endpoints and regions, which only show what is built in."""

    def __init__(self, callers: Callers, public_url: str | None) -> None:
        """Show it to administrators."""
        self._callers = callers
        self._public_url = public_url

    async def services(self, request: Request) -> Response:
        """List the services."""
        await self._callers.admin(request)
        query = request.query_params
        shown = [
            _service_view(base_url(request, self._public_url), service)
            for service in SERVICES
            if query.get("type", service.type) == service.type
            and query.get("name", service.name) == service.name
        ]
        return reply({"services": shown, "links": {"next": None, "previous": None, "self": str(request.url)}})

    async def service(self, request: Request) -> Response:
        """Show a service."""
        await self._callers.admin(request)
        wanted = request.path_params["service_id"]
        for service in SERVICES:
            if service.id == wanted:
                return reply({"service": _service_view(base_url(request, self._public_url), service)})
        raise NotFound(f"Could not find service: {wanted}.")

    async def endpoints(self, request: Request) -> Response:
        """List the endpoints."""
        await self._callers.admin(request)
        query = request.query_params
        shown = [
            endpoint
            for endpoint in self._all_endpoints(request)
            if all(
                query.get(key, endpoint[key]) == endpoint[key]
                for key in ("service_id", "interface", "region_id", "region")
            )
        ]
        return reply(
            {"endpoints": shown, "links": {"next": None, "previous": None, "self": str(request.url)}}
        )

    async def endpoint(self, request: Request) -> Response:
        """Show an endpoint."""
        await self._callers.admin(request)
        wanted = request.path_params["endpoint_id"]
        for endpoint in self._all_endpoints(request):
            if endpoint["id"] == wanted:
                return reply({"endpoint": endpoint})
        raise NotFound(f"Could not find endpoint: {wanted}.")

    async def regions(self, request: Request) -> Response:
        """List the one region."""
        await self._callers.anyone(request)
        region = _region_view(base_url(request, self._public_url))
        return reply(
            {"regions": [region], "links": {"next": None, "previous": None, "self": str(request.url)}}
        )

    async def region(self, request: Request) -> Response:
        """Show the one region."""
        await self._callers.anyone(request)
        wanted = request.path_params["region_id"]
        if wanted != REGION:
            raise NotFound(f"Could not find region: {wanted}.")
        return reply({"region": _region_view(base_url(request, self._public_url))})

    def _all_endpoints(self, request: Request) -> list[dict[str, Any]]:
        base = base_url(request, self._public_url)
        return [
            {
                "id": service.endpoint_id(interface),
                "interface": interface,
                "region": REGION,
                "region_id": REGION,
                "service_id": service.id,
                "url": base + service.path,
                "enabled": True,
                "links": {"self": f"{base}/identity/v3/endpoints/{service.endpoint_id(interface)}"},
            }
            for service in SERVICES
            for interface in _INTERFACES
        ]


def _service_view(base: str, service: Service) -> dict[str, Any]:
    return {
        "id": service.id,
        "type": service.type,
        "name": service.name,
        "description": service.description,
        "enabled": True,
        "links": {"self": f"{base}/identity/v3/services/{service.id}"},
    }


def _region_view(base: str) -> dict[str, Any]:
    return {
        "id": REGION,
        "description": "",
        "parent_region_id": None,
        "links": {"self": f"{base}/identity/v3/regions/{REGION}"},
    }
