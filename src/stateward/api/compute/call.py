"""One request to the Compute API: who asks, in which version, and how its answer is sent.

Everything that all of Nova's resources have in common is here once: token, microversion, policy, request id,
faults and the headers of each answer. A handler is a function of a ``Call`` that returns a ``Response``.
"""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

import msgspec
import structlog
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from stateward.api.compute.services import Services
from stateward.api.faults import ApiFault, Unauthorized, fault, invalid, status_of
from stateward.api.identity.tokens import Token
from stateward.domain.actions import Policy, Role
from stateward.domain.errors import Forbidden, Invalid
from stateward.domain.locks import ActorKind
from stateward.domain.records import Actor

T = TypeVar("T")

log = structlog.get_logger()

MIN_MINOR: Final = 1
#: The newest microversion that is true of what is implemented (docs/compatibility.md lists them).
MAX_MINOR: Final = 104
#: Bytes a body may have; Nova's own limit is 114,688.
MAX_BODY: Final = 1024 * 1024


class Call:
    """A request that has a good token and a version."""

    __slots__ = ("legacy", "minor", "request", "request_id", "root", "services", "token")

    def __init__(
        self,
        request: Request,
        services: Services,
        token: Token,
        *,
        minor: int,
        legacy: bool,
        request_id: str,
        root: str,
    ) -> None:
        """Keep the parts."""
        self.request = request
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
    def path(self) -> dict[str, str]:
        """The path's parameters."""
        return self.request.path_params

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
        return Actor(
            kind=ActorKind.ADMIN if self.token.is_admin else ActorKind.MEMBER,
            user_id=self.token.user_id,
            project_id=self.project_id,
            request_id=self.request_id,
        )

    @property
    def bookmark(self) -> str:
        """The address without the API's version, for ``bookmark`` links."""
        return self.root.rsplit("/compute/", 1)[0] + "/compute"

    def allow(self, policy: Policy) -> None:
        """Go on only if the caller's role is enough.

        Raises:
            Forbidden: it is not.
        """
        token = self.token
        match policy.role:
            case Role.READER:
                enough = token.is_admin or "reader" in token.roles
            case Role.MEMBER:
                enough = token.is_admin or "member" in token.roles
            case Role.ADMIN:
                enough = token.is_admin
            case Role.SYSTEM:
                enough = False
        if not enough:
            raise Forbidden(policy.rule)

    async def body(self) -> bytes:
        """Read the body, up to its limit.

        Raises:
            ApiFault: it is too large (413).
        """
        announced = self.request.headers.get("content-length", "0")
        if announced.isdigit() and int(announced) > MAX_BODY:
            raise ApiFault(413, _TOO_LARGE)
        chunks: list[bytes] = []
        size = 0
        async for chunk in self.request.stream():
            size += len(chunk)
            if size > MAX_BODY:
                raise ApiFault(413, _TOO_LARGE)
            chunks.append(chunk)
        return b"".join(chunks)

    async def json(self) -> dict[str, Any]:
        """Read the body as a JSON object.

        Raises:
            Invalid: it is none.
        """
        raw = await self.body()
        try:
            decoded = msgspec.json.decode(raw)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Invalid(f"cannot understand JSON: {error}") from None
        if not isinstance(decoded, dict):
            raise Invalid("Malformed request body")
        return decoded

    async def member(self, name: str, kind: type[T]) -> T:
        """Read the body as an object with one member of this name and type; others beside it are passed over.

        Raises:
            Invalid: it is not so, with the field and why.
        """
        body = await self.json()
        if name not in body:
            raise Invalid(
                f"Invalid input for field/attribute body. Value: {body}. '{name}' is a required property"
            )
        return convert(body[name], kind, name)


_TOO_LARGE: Final = f"The request's body is larger than {MAX_BODY} bytes."


def convert(value: object, kind: Any, name: str) -> Any:
    """Check a decoded value against a type; ``name`` is what it is called in the body.

    Raises:
        Invalid: in Nova's words.
    """
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise invalid(value, error, root=name) from None


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
    ) -> None:
        """Serve ``handler`` in the microversions from ``since`` to ``until``.

        Args:
            services: what handlers use.
            handler: the function.
            policy: checked before the handler; None where the handler must look at something first.
            since: the first minor number that has the resource.
            until: the last one.
            legacy: for ``/v2``.
        """
        self._services = services
        self._handler = handler
        self._policy = policy
        self._since = since
        self._until = until
        self._legacy = legacy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        request = Request(scope, receive)
        request_id = f"req-{uuid.uuid4()}"
        minor: int | None = None
        try:
            minor = MIN_MINOR if self._legacy else requested_minor(request)
            response = await self._answer(request, minor, request_id)
        except ClientDisconnect:
            return
        except Exception as error:  # noqa: BLE001 (every answer has the API's format)
            response = answer_to(error, request_id)
        headers = response.headers
        headers["x-openstack-request-id"] = request_id
        headers["x-compute-request-id"] = request_id
        if minor is not None and not self._legacy:
            headers["openstack-api-version"] = f"compute 2.{minor}"
            headers["x-openstack-nova-api-version"] = f"2.{minor}"
            headers["vary"] = "OpenStack-API-Version, X-OpenStack-Nova-API-Version"
        await response(scope, receive, send)

    async def _answer(self, request: Request, minor: int, request_id: str) -> Response:
        if not self._since <= minor <= self._until:
            raise ApiFault(404, "The resource could not be found.")
        value = request.headers.get("x-auth-token")
        if value is None:
            raise Unauthorized
        token = await self._services.identity.verify(value)
        if token.project_id is None:
            raise Unauthorized("The token is not for a project. Ask for one that is.")
        root = self._services.root(request, legacy=self._legacy)
        if self._legacy:
            wanted = request.path_params.get("project_id")
            if wanted != token.project_id and not token.is_admin:
                raise Invalid("Malformed request URL: URL's project_id does not match the token's.")
            root = f"{root}/{wanted}"
        call = Call(
            request,
            self._services,
            token,
            minor=minor,
            legacy=self._legacy,
            request_id=request_id,
            root=root,
        )
        if self._policy is not None:
            call.allow(self._policy)
        return await self._handler(call)


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


def requested_minor(request: Request) -> int:
    """Read the microversion a request asks for, as Nova negotiates it.

    Raises:
        ApiFault: it is not written as a version (400), or is out of range (406).
    """
    wanted = request.headers.get("openstack-api-version")
    if wanted is not None:
        versions = [part.split()[1:] for part in wanted.split(",") if part.split()[:1] == ["compute"]]
        text = versions[-1][0] if versions and versions[-1] else None
    else:
        text = None
    text = text or request.headers.get("x-openstack-nova-api-version")
    if text is None:
        return MIN_MINOR
    if text == "latest":
        return MAX_MINOR
    major, dot, minor = text.partition(".")
    if (
        not (dot and major.isdecimal() and minor.isdecimal())
        or major.startswith("0")
        or (len(minor) > 1 and minor.startswith("0"))
    ):
        raise ApiFault(
            400, f"API Version String {text} is of invalid format. Must be of format MajorNum.MinorNum."
        )
    if major != "2" or not MIN_MINOR <= int(minor) <= MAX_MINOR:
        raise ApiFault(
            406,
            f"Version {text} is not supported by the API. Minimum is 2.{MIN_MINOR} and maximum is 2.{MAX_MINOR}.",
        )
    return int(minor)
