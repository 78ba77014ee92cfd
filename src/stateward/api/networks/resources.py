"""Networks, subnets and ports in Neutron's form.

Networks are everybody's and the operator's to change; a port is its server's and shown to that server's project.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NoReturn

from starlette.requests import Request
from starlette.responses import Response

from stateward.api.faults import Unauthorized
from stateward.api.http import base_url, reply
from stateward.api.identity import Identity, Token
from stateward.domain.errors import Invalid, NotFound
from stateward.domain.networks import NO_NETWORK, Network, Port, subnet_id
from stateward.domain.records import Instance
from stateward.domain.states import Observed
from stateward.store import instances
from stateward.store.engine import Database

#: Collections that clients look into and that nothing is in.
EMPTY: Final = ("extensions", "floatingips", "routers", "security-groups")

#: What Neutron limits.
_QUOTAS: Final = (
    *("floatingip", "network", "port", "rbac_policy", "router", "security_group", "security_group_rule"),
    *("subnet", "subnetpool"),
)

#: What a query says besides which resources it wants.
_NO_FILTERS: Final = frozenset({"fields", "limit", "marker", "page_reverse", "sort_dir", "sort_key"})


class NetworkResources:
    """The handlers."""

    def __init__(
        self, networks: tuple[Network, ...], database: Database, identity: Identity, public_url: str | None
    ) -> None:
        """Show these networks."""
        self._networks = networks
        self._database = database
        self._identity = identity
        self._public_url = public_url

    async def versions(self, request: Request) -> Response:
        """List the one version."""
        links = [{"rel": "self", "href": f"{base_url(request, self._public_url)}/network/v2.0/"}]
        return reply({"versions": [{"id": "v2.0", "status": "CURRENT", "links": links}]})

    async def version(self, request: Request) -> Response:
        """List the version's resources."""
        await self._caller(request)
        base = f"{base_url(request, self._public_url)}/network/v2.0"
        return reply(
            {
                "resources": [
                    {
                        "name": name[:-1],
                        "collection": name,
                        "links": [{"rel": "self", "href": f"{base}/{name}"}],
                    }
                    for name in ("networks", "subnets", "ports")
                ]
            }
        )

    async def networks(self, request: Request) -> Response:
        """List the networks; the one that is none is there for whoever asks for it by name or id."""
        token = await self._caller(request)
        shown = [_network(network.id, network.name, token) for network in self._networks]
        if {"name", "id"} & set(request.query_params):
            shown.append(_network(NO_NETWORK, "none", token))
        return reply({"networks": _filtered(request, shown)})

    async def network(self, request: Request) -> Response:
        """Show a network."""
        token = await self._caller(request)
        wanted = request.path_params["id"]
        for identifier, name in (*((each.id, each.name) for each in self._networks), (NO_NETWORK, "none")):
            if identifier == wanted:
                return reply({"network": _network(identifier, name, token)})
        raise NotFound(f"Network {wanted} could not be found.")

    async def subnets(self, request: Request) -> Response:
        """List each network's one subnet."""
        token = await self._caller(request)
        return reply({"subnets": _filtered(request, [_subnet(each, token) for each in self._networks])})

    async def subnet(self, request: Request) -> Response:
        """Show a subnet."""
        token = await self._caller(request)
        for network in self._networks:
            if subnet_id(network.id) == request.path_params["id"]:
                return reply({"subnet": _subnet(network, token)})
        raise NotFound(f"Subnet {request.path_params['id']} could not be found.")

    async def ports(self, request: Request) -> Response:
        """List the ports of the caller's servers."""
        return reply({"ports": _filtered(request, await self._ports(request))})

    async def port(self, request: Request) -> Response:
        """Show a port."""
        for port in await self._ports(request):
            if port["id"] == request.path_params["id"]:
                return reply({"port": port})
        raise NotFound(f"Port {request.path_params['id']} could not be found.")

    async def nothing(self, request: Request) -> Response:
        """List nothing."""
        await self._caller(request)
        name = request.url.path.rstrip("/").rpartition("/")[2].replace("-", "_")
        return reply({name: list[object]()})

    async def quota(self, request: Request) -> Response:
        """Show that nothing is limited."""
        await self._caller(request)
        return reply({"quota": dict.fromkeys(_QUOTAS, -1)})

    async def none_of_it(self, request: Request) -> NoReturn:
        """Show one of what there is none of."""
        await self._caller(request)
        raise NotFound(f"{request.path_params['id']} could not be found.")

    async def refuse(self, request: Request) -> NoReturn:
        """Refuse any change."""
        await self._caller(request)
        raise Invalid(
            "Networks are set up by the operator ([[network]] in the settings), and ports by their servers.",
        )

    async def _caller(self, request: Request) -> Token:
        value = request.headers.get("x-auth-token")
        if value is None:
            raise Unauthorized
        token = await self._identity.verify(value)
        if token.project_id is None:
            raise Unauthorized("The token is not for a project. Ask for one that is.")
        return token

    async def _ports(self, request: Request) -> list[dict[str, Any]]:
        token = await self._caller(request)
        wanted = request.query_params.getlist("device_id")
        query = instances.Query(
            project_id=None if token.is_admin else token.project_id, ids=frozenset(wanted) if wanted else None
        )
        found = await self._database.read(lambda connection: instances.page(connection, query))
        return [_port(instance, port) for instance in found for port in instance.ports]


def _filtered(request: Request, shown: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Keep what has one of the wanted values in each member that the query names; what has no such member goes."""
    filters = {
        name: request.query_params.getlist(name) for name in request.query_params if name not in _NO_FILTERS
    }
    return [
        each for each in shown if all(_words(each.get(name)) in wanted for name, wanted in filters.items())
    ]


def _words(value: object) -> str:
    """Write a value as queries do."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _network(identifier: str, name: str, token: Token) -> dict[str, Any]:
    return {
        "id": identifier,
        "name": name,
        "status": "ACTIVE",
        "admin_state_up": True,
        "shared": True,
        "router:external": False,
        "is_default": False,
        "mtu": 1500,
        "port_security_enabled": False,
        "subnets": [] if identifier == NO_NETWORK else [subnet_id(identifier)],
        "tenant_id": token.project_id,
        "project_id": token.project_id,
        "description": "",
        "availability_zones": [],
        "tags": [],
    }


def _subnet(network: Network, token: Token) -> dict[str, Any]:
    """Show a subnet; which addresses it has is known to the hosts, each of which may have others."""
    return {
        "id": subnet_id(network.id),
        "name": network.name,
        "network_id": network.id,
        "ip_version": 4,
        "enable_dhcp": True,
        "cidr": None,
        "gateway_ip": None,
        "allocation_pools": [],
        "dns_nameservers": [],
        "host_routes": [],
        "tenant_id": token.project_id,
        "project_id": token.project_id,
        "description": "",
        "tags": [],
    }


def _port(instance: Instance, port: Port) -> dict[str, Any]:
    return {
        "id": port.id,
        "name": "",
        "network_id": port.network_id,
        "mac_address": port.mac,
        "fixed_ips": [
            {"subnet_id": subnet_id(port.network_id), "ip_address": each.address}
            for each in instance.addresses
            if each.mac == port.mac
        ],
        "device_id": instance.id,
        "device_owner": f"compute:{instance.zone}",
        "status": "ACTIVE" if instance.observed is Observed.RUNNING else "DOWN",
        "admin_state_up": True,
        "security_groups": [],
        "port_security_enabled": False,
        "tenant_id": instance.project_id,
        "project_id": instance.project_id,
        "description": "",
        "tags": [],
    }
