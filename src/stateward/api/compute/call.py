"""One request to the Compute API: who asks, in which version, and how its answer is sent.

Everything that all of Nova's resources have in common is here once: token, microversion, policy, request id,
faults and the headers of each answer. A handler is a function of a ``Call`` that returns a ``Response``.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar, cast

import msgspec
import structlog
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from stateward.api.compute.services import Services
from stateward.api.faults import ApiFault, Unauthorized, fault, status_of
from stateward.api.http import has_nul, read_body
from stateward.api.identity.tokens import Token
from stateward.api.once import Once, ticket_of
from stateward.api.policy import allow
from stateward.api.wording import invalid
from stateward.domain.actions import Policy
from stateward.domain.errors import Invalid
from stateward.domain.records import Actor
from stateward.operations.admission import Admission
from stateward.operations.immediate import Done, Immediate

T = TypeVar("T")

log = structlog.get_logger()

MIN_MINOR: Final = 1
#: The newest microversion that is true of what is implemented (docs/compatibility.md lists them).
MAX_MINOR: Final = 104
#: Bytes a body may have; Nova's own limit is 114,688.
MAX_BODY: Final = 1024 * 1024
#: Names the operation that a request was admitted as.
OPERATION_HEADER: Final = "x-stateward-operation"


class Call:
    """A request that has a good token and a version."""

    __slots__ = (
        "_raw",
        "_receive",
        "_request",
        "_scope",
        "legacy",
        "minor",
        "once",
        "request_id",
        "root",
        "services",
        "token",
    )

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        services: Services,
        token: Token,
        *,
        minor: int,
        legacy: bool,
        request_id: str,
        root: str,
    ) -> None:
        """Keep the parts."""
        self._scope = scope
        self._receive = receive
        self._request: Request | None = None
        self._raw: bytes | None = None
        #: For a request with an Idempotency-Key.
        self.once: Once | None = None
        self.services = services
        self.token = token
        #: The microversion's minor number: 73 for 2.73.
        self.minor = minor
        #: Asked by ``/v2``, which has no microversions.
        self.legacy = legacy
        self.request_id = request_id
        #: The address the client used, up to and with the API's version, without a slash at the end.
        self.root = root

    @property
    def request(self) -> Request:
        """The whole request; made when it is asked for, because many handlers need only the path."""
        if self._request is None:
            self._request = Request(self._scope, self._receive)
        return self._request

    @property
    def path(self) -> dict[str, str]:
        """The path's parameters."""
        parameters: dict[str, str] = self._scope["path_params"]
        return parameters

    @property
    def project_id(self) -> str:
        """The project the token is for."""
        return self.token.project_id or ""

    @property
    def visible_project(self) -> str | None:
        """The only project whose instances exist for the caller; None for all."""
        return None if self.token.is_admin else self.project_id

    @property
    def actor(self) -> Actor:
        """The caller, as the audit trail keeps it."""
        return self.token.actor(self.request_id)

    @property
    def bookmark(self) -> str:
        """The address without the API's version, for ``bookmark`` links."""
        return self.root.rsplit("/compute/", 1)[0] + "/compute"

    def admission(self, answer: Callable[[Any], Response]) -> Admission:
        """Return where this request's one operation is admitted.

        Args:
            answer: makes the request's answer of what its write gives (``Admitted``, or several of them); kept
                under the request's key in the same transaction.
        """
        admission = self.services.admission
        return admission if self.once is None else admission.on(self.once.database(answer))

    def immediate(self, answer: Callable[[Done], Response]) -> Immediate:
        """Return where this request's one immediate action is done; see ``admission``."""
        immediate = self.services.immediate
        return immediate if self.once is None else immediate.on(self.once.database(answer))

    async def take_key(self, key: str) -> Once:
        """Have what this request admits done once for a key.

        Raises:
            ApiFault: the body is too large.
            Invalid: the key is none.
        """
        self._raw = await self.body()
        request = self.request
        parts = (request.method, request.url.path, request.url.query, str(self.minor), self.project_id)
        ticket = ticket_of(self.token.user_id, key, *parts, self._raw)
        self.once = Once(self.services.database, self.services.clock, ticket)
        return self.once

    def allow(self, policy: Policy) -> None:
        """Go on only if the caller's role is enough.

        Raises:
            Forbidden: it is not.
        """
        allow(self.token, policy)

    async def body(self) -> bytes:
        """Read the body, up to its limit.

        Raises:
            ApiFault: it is too large (413).
        """
        if self._raw is not None:
            return self._raw
        return await read_body(self.request, most=MAX_BODY)

    async def json(self) -> dict[str, Any]:
        """Read the body as a JSON object.

        Raises:
            ApiFault: it says that it is something else (415), or is too large (413).
            Invalid: it is none, or has a NUL character in it, which no database column takes.
        """
        kind = self.request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind not in _JSON:
            raise ApiFault(415, "Unsupported Content-Type")
        raw = await self.body()
        try:
            decoded = msgspec.json.decode(raw)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Invalid(f"cannot understand JSON: {error}") from None
        if has_nul(raw):
            raise Invalid("The request's body has a NUL character in it, which is not allowed.")
        if not isinstance(decoded, dict):
            raise Invalid("Malformed request body")
        # JSON's members have names, so an object is this.
        return cast("dict[str, Any]", decoded)

    async def member(self, name: str, kind: type[T]) -> T:
        """Read the body as an object with one member of this name and type; others beside it are passed over.

        Raises:
            Invalid: it is not so, with the field and why.
        """
        body = await self.json()
        if name not in body:
            raise Invalid(f"'{name}' is a required property")
        found: T = convert(body[name], kind, name)
        return found


#: What a body may say that it is; a client that says nothing, or only that it is text, means JSON (Nova's rule).
_JSON: Final = frozenset({"", "text/plain", "application/json", "application/vnd.openstack.compute+json"})
_COMPUTE_VERSION: Final = re.compile(r"(?:^|,)\s*compute\s+([^\s,]+)")
_VERSION: Final = re.compile(r"(?P<major>[1-9]\d*)\.(?P<minor>0|[1-9]\d*)")
_VERSION_HEADERS: Final = {
    minor: (
        (b"openstack-api-version", f"compute 2.{minor}".encode()),
        (b"x-openstack-nova-api-version", f"2.{minor}".encode()),
        (b"vary", b"OpenStack-API-Version, X-OpenStack-Nova-API-Version"),
    )
    for minor in range(MIN_MINOR, MAX_MINOR + 1)
}


def convert(value: object, kind: Any, name: str) -> Any:
    """Check a decoded value against a type; ``name`` is what it is called in the body.

    Raises:
        Invalid: in Nova's words.
    """
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise invalid(value, error, root=name, kind=kind) from None


def reply(content: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Answer with JSON."""
    return Response(msgspec.json.encode(content), status, headers, media_type="application/json")


def empty(status: int, headers: dict[str, str] | None = None) -> Response:
    """Answer without a body."""
    return Response(b"", status, headers)


Handler = Callable[[Call], Awaitable[Response]]


class Endpoint:
    """An ASGI application around one handler: Starlette routes to it without wrapping it in its own request."""

    def __init__(
        self,
        services: Services,
        handler: Handler,
        *,
        policy: Policy | None,
        since: int = 1,
        until: int = MAX_MINOR,
        legacy: bool = False,
        keyed: bool = False,
    ) -> None:
        """Serve ``handler`` in the microversions from ``since`` to ``until``.

        Args:
            services: what handlers use.
            handler: the function.
            policy: checked before the handler; None where the handler must look at something first.
            since: the first minor number that has the resource.
            until: the last one.
            legacy: for ``/v2``.
            keyed: an Idempotency-Key counts: the handler admits one operation, by the call's ``admission`` or
                ``immediate``.
        """
        self._services = services
        self._handler = handler
        self._policy = policy
        self._since = since
        self._until = until
        self._legacy = legacy
        self._keyed = keyed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        request_id = f"req-{uuid.uuid4()}"
        headers = RequestHeaders(scope)
        minor: int | None = None
        try:
            minor = MIN_MINOR if self._legacy else headers.minor()
            response = await self._answer(scope, receive, headers, minor, request_id)
        except ClientDisconnect:
            return
        except Exception as error:  # noqa: BLE001 (every answer has the API's format)
            response = answer_to(error, request_id)
        raw = request_id.encode()
        response.raw_headers += ((b"x-openstack-request-id", raw), (b"x-compute-request-id", raw))
        if minor is not None and not self._legacy:
            response.raw_headers += _VERSION_HEADERS[minor]
        await response(scope, receive, send)

    async def _answer(
        self, scope: Scope, receive: Receive, headers: RequestHeaders, minor: int, request_id: str
    ) -> Response:
        if not self._since <= minor <= self._until:
            raise ApiFault(404, "The resource could not be found.")
        if b"%00" in scope["query_string"] or "\x00" in scope["path"]:
            # PostgreSQL's text has no NUL; no id or name has one, so nothing of this address exists.
            raise ApiFault(404, "The resource could not be found.")
        if headers.token is None:
            raise Unauthorized
        token = await self._services.identity.verify(headers.token)
        if token.project_id is None:
            raise Unauthorized("The token is not for a project. Ask for one that is.")
        root = self._services.root(scope["scheme"], headers.host, legacy=self._legacy)
        if self._legacy:
            wanted = scope["path_params"].get("project_id")
            if wanted != token.project_id and not token.is_admin:
                raise Invalid("Malformed request URL: URL's project_id does not match the token's.")
            root = f"{root}/{wanted}"
        call = Call(
            scope,
            receive,
            self._services,
            token,
            minor=minor,
            legacy=self._legacy,
            request_id=request_id,
            root=root,
        )
        if self._policy is not None:
            call.allow(self._policy)
        if headers.key is not None and self._keyed:
            once = await call.take_key(headers.key)
            return await once.run(lambda: self._handler(call))
        return await self._handler(call)


class RequestHeaders:
    """The headers that every request is looked at for, found in one pass."""

    __slots__ = ("_nova", "_openstack", "host", "key", "token")

    def __init__(self, scope: Scope) -> None:
        self.token: str | None = None
        self.host = "localhost"
        self.key: str | None = None
        self._openstack: str | None = None
        self._nova: str | None = None
        for name, value in scope["headers"]:
            if name == b"x-auth-token":
                self.token = value.decode("latin-1")
            elif name == b"openstack-api-version":
                self._openstack = value.decode("latin-1")
            elif name == b"host":
                self.host = value.decode("latin-1")
            elif name == b"x-openstack-nova-api-version":
                self._nova = value.decode("latin-1")
            elif name == b"idempotency-key":
                self.key = value.decode("latin-1")

    def minor(self) -> int:
        """Return the microversion that is asked for, as Nova negotiates it; its minor number.

        Raises:
            ApiFault: it is not written as a version (400), or is out of range (406).
        """
        text: str | None = None
        if self._openstack is not None:
            found = _COMPUTE_VERSION.findall(self._openstack)
            text = found[-1] if found else None
        text = text or self._nova
        if text is None:
            return MIN_MINOR
        if text == "latest":
            return MAX_MINOR
        version = _VERSION.fullmatch(text)
        if version is None:
            raise ApiFault(
                400,
                f"API Version String {text} is of invalid format. Must be of format MajorNum.MinorNum.",
            )
        minor = int(version["minor"])
        if version["major"] != "2" or not MIN_MINOR <= minor <= MAX_MINOR:
            raise ApiFault(
                406,
                f"Version {text} is not supported by the API. "
                f"Minimum is 2.{MIN_MINOR} and maximum is 2.{MAX_MINOR}.",
            )
        return minor


def answer_to(error: Exception, request_id: str) -> Response:
    """Turn any error into a fault; one of our own is logged and named by its request id only."""
    known = status_of(error)
    if known is not None:
        return fault(*known)
    log.error("a request failed by a fault of Stateward's own", request=request_id, exc_info=error)
    return fault(
        500,
        "Unexpected API Error. Please report this with the log's entry of the same request id. "
        f"{type(error).__name__} ({request_id})",
    )
