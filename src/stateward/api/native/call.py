"""One request to ``/v1``: who asks, and how its answer is sent.

Faults are problem documents (RFC 9457), here and nowhere else.
"""

from __future__ import annotations

import http
import uuid
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, TypeVar

import msgspec
import structlog
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from stateward.api.compute.services import Services
from stateward.api.faults import Unauthorized, status_of
from stateward.api.http import base_url, has_nul, read_body
from stateward.api.identity.tokens import Token
from stateward.api.native.sentences import sentence
from stateward.api.native.views import Problem
from stateward.api.once import HEADER, Once, ticket_of
from stateward.api.policy import allow
from stateward.domain.actions import Policy
from stateward.domain.errors import Invalid, NotFound
from stateward.domain.records import Actor

T = TypeVar("T")

log = structlog.get_logger()


class Call:
    """A request that has a good token for a project."""

    def __init__(self, services: Services, request: Request, token: Token, request_id: str) -> None:
        """Keep the parts."""
        self.services = services
        self.request = request
        self.token = token
        self.request_id = request_id
        #: For a request with an Idempotency-Key.
        self.once: Once | None = None
        self._raw: bytes | None = None

    @property
    def base(self) -> str:
        """The server's address, without a slash at the end."""
        return base_url(self.request, self.services.public_url)

    @property
    def visible_project(self) -> str | None:
        """The only project whose instances exist for the caller; None for all."""
        return None if self.token.is_admin else self.token.project_id or ""

    @property
    def actor(self) -> Actor:
        """The caller, as the audit trail keeps it."""
        return self.token.actor(self.request_id)

    async def body(self, kind: type[T]) -> T:
        """Read the body as an object of a type; no body counts as an empty object.

        Raises:
            ApiFault: it is too large (413).
            Invalid: it is not so; the sentence names the member.
        """
        raw = await self._body() or b"{}"
        try:
            decoded = msgspec.json.decode(raw, type=kind)
        except msgspec.ValidationError as error:
            raise Invalid(f"The request's body cannot be used: {sentence(error, kind)}") from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Invalid(f"The request's body cannot be used: {error}") from None
        if has_nul(raw):
            raise Invalid("The request's body has a NUL character in it, which is not allowed.")
        return decoded

    def only(self, *names: str) -> None:
        """Refuse query parameters other than these.

        Raises:
            Invalid: there is another.
        """
        for name in self.request.query_params:
            if name not in names:
                known = ", ".join(names) or "none"
                raise Invalid(f"The query parameter {name!r} is not known here; known are: {known}.")

    async def take_key(self) -> Once | None:
        """Have what this request changes done once, if it names a key.

        Raises:
            ApiFault: the body is too large.
            Invalid: the key is none.
        """
        key = self.request.headers.get(HEADER)
        if key is None:
            return None
        parts = (self.request.method, self.request.url.path, self.token.project_id or "")
        ticket = ticket_of(self.token.user_id, key, *parts, await self._body())
        self.once = Once(self.services.database, self.services.clock, ticket)
        return self.once

    async def _body(self) -> bytes:
        if self._raw is None:
            self._raw = await read_body(self.request)
        return self._raw


Handler = Callable[[Call], Awaitable[Response]]


class Resource(msgspec.Struct, frozen=True, kw_only=True):
    """One method of one path: what serves it, and what its document says."""

    handler: Handler
    summary: str
    policy: Policy
    #: The type of its body; None: it has none.
    body: Any = None
    #: The type of its answer; None for a stream of events.
    answer: Any = None
    status: int = 200
    #: Query parameters with what they mean.
    query: Mapping[str, str] = {}


class Endpoint:
    """An ASGI application for one path."""

    def __init__(self, services: Services, methods: Mapping[str, Resource]) -> None:
        """Serve these methods; HEAD is GET without the body."""
        self._services = services
        self._methods = dict(methods)
        if "GET" in methods:
            self._methods.setdefault("HEAD", methods["GET"])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        request_id = f"req-{uuid.uuid4()}"
        try:
            response = await self._answer(Request(scope, receive), request_id)
        except ClientDisconnect:
            return
        except Exception as error:  # noqa: BLE001 (every answer has the API's format)
            response = _answer_to(error, request_id)
        response.headers["x-openstack-request-id"] = request_id
        response.headers["vary"] = "X-Auth-Token"
        await response(scope, receive, send)

    async def _answer(self, request: Request, request_id: str) -> Response:
        # PostgreSQL's text has no NUL; no id has one, so nothing of this address exists.
        if "\x00" in request.url.path or "%00" in request.url.query:
            raise NotFound(_UNKNOWN)
        resource = self._methods.get(request.method)
        if resource is None:
            response = problem(405, "The method is not allowed for this resource.", request_id)
            response.headers["allow"] = ", ".join(sorted(self._methods))
            return response
        sealed = request.headers.get("x-auth-token")
        if sealed is None:
            raise Unauthorized
        token = await self._services.identity.verify(sealed)
        if token.project_id is None:
            raise Unauthorized("The token is not for a project. Ask for one that is.")
        allow(token, resource.policy)
        call = Call(self._services, request, token, request_id)
        call.only(*resource.query)
        once = await call.take_key() if request.method == "POST" else None
        if once is not None:
            return await once.run(lambda: resource.handler(call))
        return await resource.handler(call)


def reply(content: object, status: int = 200) -> Response:
    """Answer with JSON."""
    return Response(msgspec.json.encode(content), status, media_type="application/json")


def problem(status: int, detail: str, request_id: str) -> Response:
    """Make a refusal."""
    content = Problem(
        type="about:blank",
        title=http.HTTPStatus(status).phrase,
        status=status,
        detail=detail,
        request_id=request_id,
    )
    headers = {"www-authenticate": "Keystone"} if status == http.HTTPStatus.UNAUTHORIZED else None
    return Response(msgspec.json.encode(content), status, headers, media_type="application/problem+json")


async def nothing_here(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer for an address that is none of ``/v1``'s."""
    request_id = f"req-{uuid.uuid4()}"
    response = problem(404, _UNKNOWN, request_id)
    response.headers["x-openstack-request-id"] = request_id
    await response(scope, receive, send)


def _answer_to(error: Exception, request_id: str) -> Response:
    known = status_of(error)
    if known is not None:
        return problem(*known, request_id)
    log.error("a request failed by a fault of Stateward's own", request=request_id, exc_info=error)
    return problem(500, f"A fault of Stateward's own; its log has more under {request_id}.", request_id)


_UNKNOWN: Final = "The resource could not be found."
