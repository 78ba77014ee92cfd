"""What the embedded services share of HTTP: routing by method, bodies, JSON, faults and addresses.

They answer faults in Keystone's format, which every OpenStack client can read.
"""

from __future__ import annotations

import datetime as dt
import http
import re
import uuid
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, TypeVar

import msgspec
import structlog
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from stateward.api.faults import ApiFault, status_of
from stateward.domain.errors import Invalid, NotFound

T = TypeVar("T")
Handler = Callable[[Request], Awaitable[Response]]

log = structlog.get_logger()

#: Bytes a JSON body may have.
MAX_JSON: Final = 1024 * 1024
#: An escaped NUL; an even number of backslashes before it escape each other.
_NUL: Final = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")


class Endpoint:
    """An ASGI application for one path: a handler for each method, and faults for everything else."""

    def __init__(self, handlers: Mapping[str, Handler]) -> None:
        """Serve these methods; HEAD is GET without the body, unless it has a handler of its own."""
        self._handlers = dict(handlers)
        if "GET" in handlers:
            self._handlers.setdefault("HEAD", handlers["GET"])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        request = Request(scope, receive)
        request_id = f"req-{uuid.uuid4()}"
        request.state.request_id = request_id
        try:
            response = await self._answer(request)
        except ClientDisconnect:
            return
        except Exception as error:  # noqa: BLE001 (every answer has the API's format)
            response = _answer_to(error, request_id)
        response.headers["x-openstack-request-id"] = request_id
        response.headers["vary"] = "X-Auth-Token"
        await response(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        # PostgreSQL's text has no NUL; no id or name has one, so nothing of this address exists.
        if "\x00" in request.url.path or "%00" in request.url.query:
            raise NotFound("The resource could not be found.")
        handler = self._handlers.get(request.method)
        if handler is None:
            response = fault(405, "The method is not allowed for the requested URL.")
            response.headers["allow"] = ", ".join(sorted(self._handlers))
            return response
        return await handler(request)


async def not_found(_request: Request) -> Response:
    """Answer for an address that is none of the service's."""
    return fault(404, "The resource could not be found.")


#: For the last route of a service: whatever no other route is for.
NOT_FOUND: Final = Endpoint(
    {"GET": not_found, "POST": not_found, "PUT": not_found, "PATCH": not_found, "DELETE": not_found}
)


def fault(status: int, message: str) -> Response:
    """Make an answer in Keystone's fault format."""
    body = {"error": {"code": status, "message": message, "title": http.HTTPStatus(status).phrase}}
    response = reply(body, status)
    if status == http.HTTPStatus.UNAUTHORIZED:
        response.headers["www-authenticate"] = 'Keystone uri="/identity"'
    return response


def reply(content: object, status: int = 200) -> Response:
    """Answer with JSON."""
    return Response(msgspec.json.encode(content), status, media_type="application/json")


def empty() -> Response:
    """Answer that it is done and there is nothing to say: 204."""
    return Response(b"", http.HTTPStatus.NO_CONTENT)


async def read_body(request: Request, *, most: int = MAX_JSON) -> bytes:
    """Read a body of at most so many bytes.

    Raises:
        ApiFault: it is larger, or is announced to be (413).
    """
    too_large = ApiFault(413, f"The request's body is larger than {most} bytes.")
    announced = request.headers.get("content-length", "0")
    if announced.isdecimal() and int(announced) > most:
        raise too_large
    raw = bytearray()
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > most:
            raise too_large
    return bytes(raw)


async def json_body(request: Request) -> Any:
    """Read and decode a body of at most ``MAX_JSON`` bytes.

    Raises:
        ApiFault: it is larger (413).
        Invalid: it is not JSON, or has NUL characters, which no database column takes.
    """
    raw = await read_body(request)
    try:
        decoded = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Invalid(f"The request's body is not JSON: {error}") from None
    if has_nul(raw):
        raise Invalid("The request's body has a NUL character in it, which is not allowed.")
    return decoded


def has_nul(raw: bytes) -> bool:
    """Whether a text of a JSON document has a NUL character in it, which no column of PostgreSQL's takes."""
    return b"\\u0000" in raw and _NUL.search(raw) is not None


async def json_object(request: Request) -> dict[str, Any]:
    """Read a body that is a JSON object.

    Raises:
        ApiFault: it is too large.
        Invalid: it is none.
    """
    return convert(await json_body(request), dict[str, Any])


def convert(value: object, kind: type[T]) -> T:
    """Check a decoded value against a type.

    Raises:
        Invalid: with what is wrong and where.
    """
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise Invalid(f"Invalid input: {error}") from None


def whole_number(text: str, name: str, *, most: int) -> int:
    """Read a query parameter that is a number of things, from 0; what is larger than ``most`` counts as that.

    Raises:
        Invalid: it is no such number.
    """
    # Python refuses to convert numbers of thousands of digits, with an error of its own.
    if not (text.isascii() and text.isdecimal() and len(text) <= _LONGEST_NUMBER):
        raise Invalid(f"Invalid input for query parameter {name}: {text!r} is not a whole number from 0.")
    return min(int(text), most)


def yes_or_no(text: str, name: str) -> bool:
    """Read a query parameter that says yes or no, in any of the ways OpenStack clients write it.

    Raises:
        Invalid: it says neither.
    """
    match text.lower():
        case "true" | "1" | "yes" | "":
            return True
        case "false" | "0" | "no":
            return False
        case _:
            raise Invalid(f"Invalid input for query parameter {name}: {text!r} is neither true nor false.")


def base_url(request: Request, public_url: str | None) -> str:
    """Return the server's address, without a slash at the end.

    Args:
        request: whose Host header says how the client reaches the server.
        public_url: how all clients reach it, where that is configured.
    """
    if public_url is not None:
        return public_url.rstrip("/")
    return f"{request.url.scheme}://{request.headers.get('host', 'localhost')}"


def iso_time(seconds: float) -> str:
    """Write a time (seconds since the epoch) as Keystone does, with microseconds."""
    moment = dt.datetime.fromtimestamp(seconds, dt.UTC)
    return moment.replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def seconds_of_iso(time: str | dt.datetime) -> float:
    """Return a time of ISO 8601 in seconds since the epoch; one without a zone is UTC.

    Raises:
        ValueError: it is none, or one that ``iso_time`` cannot write: in UTC it is not in the years 1 to 9999.
    """
    parsed = dt.datetime.fromisoformat(time) if isinstance(time, str) else time
    seconds = (parsed if parsed.tzinfo else parsed.replace(tzinfo=dt.UTC)).timestamp()
    # What cannot be shown is refused where it comes in, not where it goes out.
    dt.datetime.fromtimestamp(seconds, dt.UTC)
    return seconds


def time_asked_for(text: str, name: str) -> float:
    """Read a query parameter that is a time, as seconds since the epoch.

    Raises:
        Invalid: it is none.
    """
    try:
        return seconds_of_iso(text)
    except ValueError:
        raise Invalid(
            f"Invalid input for query parameter {name}: {text!r} is no time; write one of ISO 8601, as "
            "2030-01-31T18:00:00Z."
        ) from None


def _answer_to(error: Exception, request_id: str) -> Response:
    known = status_of(error)
    if known is not None:
        return fault(*known)
    log.error("a request failed by a fault of Stateward's own", request=request_id, exc_info=error)
    return fault(
        500, f"An unexpected error prevented the server from fulfilling your request ({request_id})."
    )


_LONGEST_NUMBER: Final = 18
