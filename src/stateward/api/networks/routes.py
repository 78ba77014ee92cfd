"""The addresses of the network service, below ``/network``."""

from __future__ import annotations

from starlette.routing import BaseRoute, Route

from stateward.api.http import NOT_FOUND, Endpoint, Handler
from stateward.api.identity import Identity
from stateward.api.networks.resources import EMPTY, NetworkResources
from stateward.domain.networks import Network
from stateward.store.engine import Database


def network_routes(
    networks: tuple[Network, ...], database: Database, identity: Identity, *, public_url: str | None = None
) -> list[BaseRoute]:
    """Return the routes of the network service, to be mounted at ``/network``.

    Args:
        networks: those that the operator set up.
        database: has the ports.
        identity: knows the callers.
        public_url: the server's address for clients; None: what each request's Host header says.
    """
    one = NetworkResources(networks, database, identity, public_url)
    collections: dict[str, tuple[Handler, Handler]] = {
        "networks": (one.networks, one.network),
        "subnets": (one.subnets, one.subnet),
        "ports": (one.ports, one.port),
        **dict.fromkeys(EMPTY, (one.nothing, one.none_of_it)),
    }
    return [
        _route("/", GET=one.versions),
        *(_route(path, GET=one.version) for path in ("/v2.0", "/v2.0/")),
        *(_route(f"/v2.0/{name}", GET=every, POST=one.refuse) for name, (every, _) in collections.items()),
        *(
            _route(f"/v2.0/{name}/{{id}}", GET=single, PUT=one.refuse, DELETE=one.refuse)
            for name, (_, single) in collections.items()
        ),
        *(_route(f"/v2.0/quotas/{{id}}{more}", GET=one.quota) for more in ("", "/default")),
        Route("/{rest:path}", NOT_FOUND),
    ]


def _route(path: str, **handlers: Handler) -> Route:
    return Route(path, Endpoint(handlers))
