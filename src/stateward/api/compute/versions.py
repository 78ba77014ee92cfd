"""The version documents, by which clients find out what there is; they need no token."""

from __future__ import annotations

from typing import Any, Final

from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope

from stateward.api.compute.call import MAX_MINOR, MIN_MINOR, Call, Endpoint, Handler, RequestHeaders, reply
from stateward.api.compute.services import Services
from stateward.api.identity.tokens import Token

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
_NOBODY: Final = Token(
    user_id="",
    user_name="",
    project_id=None,
    project_name=None,
    roles=frozenset(),
    is_admin=False,
    issued_at=0.0,
    expires_at=0.0,
    audit_id="",
)


class _Open(Endpoint):
    """An endpoint for everybody, with a token or without; the microversion is negotiated as anywhere."""

    async def _answer(
        self, scope: Scope, receive: Receive, headers: RequestHeaders, minor: int, request_id: str
    ) -> Response:
        call = Call(
            scope,
            receive,
            self._services,
            _NOBODY,
            minor=minor,
            legacy=self._legacy,
            request_id=request_id,
            root=self._services.root(scope["scheme"], headers.host, legacy=self._legacy),
        )
        return await self._handler(call)


def _self_link(call: Call, *, legacy: bool) -> dict[str, str]:
    return {"rel": "self", "href": f"{call.bookmark}/{'v2' if legacy else 'v2.1'}/"}


async def _index(call: Call) -> Response:
    versions = [
        {**document, "links": [_self_link(call, legacy=legacy)]}
        for document, legacy in ((_V20, True), (_V21, False))
    ]
    return reply({"versions": versions})


async def _show(call: Call) -> Response:
    described = {"rel": "describedby", "type": "text/html", "href": "http://docs.openstack.org/"}
    media = f"application/vnd.openstack.compute+json;version={'2' if call.legacy else '2.1'}"
    version = {
        **(_V20 if call.legacy else _V21),
        "links": [_self_link(call, legacy=call.legacy), described],
        "media-types": [{"base": "application/json", "type": media}],
    }
    return reply({"version": version})


def document_routes(services: Services, *, legacy: bool = False) -> list[BaseRoute]:
    """Return the route of one version's own document, at the version's root."""
    return [Route("/", _Open(services, _show, policy=None, legacy=legacy), methods=["GET"])]


def routes(services: Services) -> list[BaseRoute]:
    """Return the routes of the list of versions, and of each version's root without its last slash."""

    def at(path: str, handler: Handler, *, legacy: bool) -> Route:
        return Route(path, _Open(services, handler, policy=None, legacy=legacy), methods=["GET"])

    return [
        # Not of the old version, but like it without a microversion.
        at("/", _index, legacy=True),
        at("/v2.1", _show, legacy=False),
        at("/v2", _show, legacy=True),
        at("/v2/", _show, legacy=True),
        at("/v2/{project_id}", _show, legacy=True),
    ]
