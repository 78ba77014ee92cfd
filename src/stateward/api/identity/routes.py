"""The addresses of the identity service, below ``/identity``."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from stateward.api.http import NOT_FOUND, Endpoint, Handler, base_url, reply
from stateward.api.identity.auth import AuthResources
from stateward.api.identity.caller import Callers
from stateward.api.identity.catalog import CatalogResources
from stateward.api.identity.credentials import Credentials
from stateward.api.identity.grants import Grants
from stateward.api.identity.kinds import DOMAIN, PROJECT, ROLE, USER
from stateward.api.identity.resources import Resources
from stateward.api.identity.service import Identity


def identity_routes(identity: Identity, *, public_url: str | None = None) -> list[BaseRoute]:
    """Return the routes of the identity service, to be mounted at ``/identity``.

    Args:
        identity: the service.
        public_url: the server's address for clients; None: what each request's Host header says.
    """
    return [
        *_discovery(public_url),
        *_auth(identity, public_url),
        *_directory(identity, public_url),
        *_grants(identity, public_url),
        *_catalog(identity, public_url),
        Route("/{rest:path}", NOT_FOUND),
    ]


def _route(path: str, **handlers: Handler) -> Route:
    return Route(path, Endpoint(handlers))


def _discovery(public_url: str | None) -> list[Route]:
    def version(request: Request) -> dict[str, Any]:
        return {
            "id": "v3.14",
            "status": "stable",
            "updated": "2020-04-07T00:00:00Z",
            "links": [{"rel": "self", "href": f"{base_url(request, public_url)}/identity/v3/"}],
            "media-types": [
                {"base": "application/json", "type": "application/vnd.openstack.identity-v3+json"}
            ],
        }

    async def versions(request: Request) -> Response:
        return reply({"versions": {"values": [version(request)]}}, 300)

    async def v3(request: Request) -> Response:
        return reply({"version": version(request)})

    return [_route("/", GET=versions), _route("/v3", GET=v3), _route("/v3/", GET=v3)]


def _auth(identity: Identity, public_url: str | None) -> list[Route]:
    auth = AuthResources(identity, public_url)
    projects = Resources(PROJECT, identity, public_url)
    return [
        _route("/v3/auth/tokens", POST=auth.log_in, GET=auth.show, DELETE=auth.revoke),
        _route("/v3/auth/projects", GET=projects.projects_of_caller),
        _route("/v3/auth/domains", GET=auth.nothing),
        _route("/v3/groups", GET=auth.nothing),
        _route("/v3/auth/system", GET=auth.nothing),
        _route("/v3/auth/catalog", GET=auth.catalog),
    ]


def _directory(identity: Identity, public_url: str | None) -> list[Route]:
    routes: list[Route] = []
    for kind in (PROJECT, USER, ROLE):
        one = Resources(kind, identity, public_url)
        routes += [
            _route(f"/v3/{kind.plural}", GET=one.index, POST=one.create),
            _route(f"/v3/{kind.plural}/{{row_id}}", GET=one.show, PATCH=one.change, DELETE=one.delete),
        ]
    domains = Resources(DOMAIN, identity, public_url)
    users = Resources(USER, identity, public_url)
    projects = Resources(PROJECT, identity, public_url)
    credentials = Credentials(identity, public_url)
    return [
        *routes,
        _route("/v3/domains", GET=domains.index),
        _route("/v3/domains/{row_id}", GET=domains.show),
        _route("/v3/users/{row_id}/projects", GET=projects.projects_of_user),
        _route("/v3/users/{row_id}/password", POST=users.set_own_password),
        _route("/v3/users/{user_id}/application_credentials", GET=credentials.index, POST=credentials.create),
        _route(
            "/v3/users/{user_id}/application_credentials/{credential_id}",
            GET=credentials.show,
            DELETE=credentials.delete,
        ),
    ]


def _grants(identity: Identity, public_url: str | None) -> list[Route]:
    grants = Grants(identity, public_url)
    refused: dict[str, Handler] = dict.fromkeys(("GET", "HEAD", "PUT", "DELETE"), grants.unsupported)
    return [
        _route("/v3/role_assignments", GET=grants.index),
        _route("/v3/projects/{project_id}/users/{user_id}/roles", GET=grants.of_user_on_project),
        _route(
            "/v3/projects/{project_id}/users/{user_id}/roles/{role_id}",
            PUT=grants.give,
            HEAD=grants.check,
            GET=grants.check,
            DELETE=grants.take,
        ),
        *(
            Route(path, Endpoint(refused))
            for path in (
                "/v3/projects/{project_id}/groups/{rest:path}",
                "/v3/domains/{domain_id}/users/{rest:path}",
                "/v3/domains/{domain_id}/groups/{rest:path}",
                "/v3/system/{rest:path}",
            )
        ),
    ]


def _catalog(identity: Identity, public_url: str | None) -> list[Route]:
    shown = CatalogResources(Callers(identity), public_url)
    return [
        _route("/v3/services", GET=shown.services),
        _route("/v3/services/{service_id}", GET=shown.service),
        _route("/v3/endpoints", GET=shown.endpoints),
        _route("/v3/endpoints/{endpoint_id}", GET=shown.endpoint),
        _route("/v3/regions", GET=shown.regions),
        _route("/v3/regions/{region_id}", GET=shown.region),
    ]
