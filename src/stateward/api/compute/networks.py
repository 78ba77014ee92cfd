"""``/os-networks``, up to 2.35 as in Nova: the networks there are, and the one that is none.

The ``openstack`` client takes ``--network none`` for a network of that name and, where the catalog has no network
service, looks it up here; a server created with its id gets no network, like one created with ``"networks": "none"``.
"""

from __future__ import annotations

from typing import Final

from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from stateward.api.compute.call import Call, Endpoint, reply
from stateward.api.compute.services import Services
from stateward.domain.actions import Policy, Role
from stateward.domain.errors import NotFound
from stateward.domain.networks import NO_NETWORK

_LIST: Final = Policy("os_compute_api:os-networks:list", Role.READER)
_SHOW: Final = Policy("os_compute_api:os-networks:show", Role.READER)
#: The last minor number in which Nova passes these on to its network service.
_LAST: Final = 35


async def index(call: Call) -> Response:
    """List them."""
    return reply({"networks": _shown(call.services)})


async def show(call: Call) -> Response:
    """Show one, by its id."""
    for network in _shown(call.services):
        if network["id"] == call.path["id"]:
            return reply({"network": network})
    raise NotFound(f"Network {call.path['id']} could not be found.")


def _shown(services: Services) -> list[dict[str, str]]:
    real = [{"id": network.id, "label": network.name} for network in services.networks]
    return [*real, {"id": NO_NETWORK, "label": "none"}]


def routes(services: Services, *, legacy: bool = False) -> list[BaseRoute]:
    """Return the routes."""
    return [
        Route(
            "/os-networks",
            Endpoint(services, index, policy=_LIST, until=_LAST, legacy=legacy),
            methods=["GET"],
        ),
        Route(
            "/os-networks/{id}",
            Endpoint(services, show, policy=_SHOW, until=_LAST, legacy=legacy),
            methods=["GET"],
        ),
    ]
