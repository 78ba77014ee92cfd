"""A small client of this server's APIs, on the standard library: asking, and following a stream of events."""

from __future__ import annotations

import contextlib
import http
import re
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable, Generator, Iterator
from http.client import HTTPException, HTTPResponse
from typing import Any, Final, cast
from urllib.parse import quote, urlencode

import click
import msgspec

from stateward.cli.credentials import Cloud, login_of

#: Seconds an answer may take.
_TIMEOUT: Final = 60.0
#: Seconds a stream may be silent: several heartbeats of the server's.
_SILENCE: Final = 60.0
_ID: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
#: Keystone's ids of projects, with or without dashes.
_PROJECT_ID: Final = re.compile(r"[0-9a-f]{32}")
#: Servers that an ambiguous name is told to mean, at most.
_TOLD: Final = 5

Operation = dict[str, Any]
#: An event, in CloudEvents' JSON form.
Told = dict[str, Any]


class Failed(Exception):
    """What was asked cannot be done; ``str()`` is for people."""


class Unreachable(Failed):
    """The server does not answer."""


class NoSuch(Failed):
    """There is no such thing."""


class NotAllowed(Failed):
    """Who asks may not do it."""


def server_named(name: str, ask: Callable[[str], Any], *, admin: bool) -> str:
    """Return the id of the server with a name; an id is returned as it is.

    Args:
        name: or the id.
        ask: gives the answer of a path of the Compute API.
        admin: look in all projects: an administrator acts on others' servers, and must not mean the wrong one.

    Raises:
        Failed: there is none, or there are several.
    """
    if _ID.fullmatch(name):
        return name
    query = {"name": f"^{re.escape(name)}$", "limit": str(_TOLD + 1)} | (
        {"all_tenants": "1"} if admin else {}
    )
    found: list[dict[str, str]] = ask(f"/servers/detail?{urlencode(query)}")["servers"]
    if not found:
        raise NoSuch(f"There is no server that is named {name!r}.")
    if len(found) > 1:
        ids = ", ".join(f"{each['id']} (project {each['tenant_id']})" for each in found[:_TOLD])
        more = "" if len(found) <= _TOLD else " and more"
        raise Failed(f"Several servers are named {name!r}; use an id: {ids}{more}.")
    return found[0]["id"]


def in_path(name: str) -> str:
    """Quote a name that is one part of a path.

    Raises:
        click.UsageError: nothing can have it; a server would read a slash as the beginning of another part.
    """
    if not name or "/" in name or name in {".", ".."}:
        raise click.UsageError(f"{name!r} is no name: it is empty, dots, or has a '/' in it.")
    return quote(name, safe="")


class Client:
    """Speaks to one cloud; logs in when it must."""

    def __init__(self, cloud: Cloud) -> None:
        """Enter this cloud."""
        self._cloud = cloud
        self._tls: ssl.SSLContext | None = None
        self._token: str | None = None
        self._endpoints: dict[str, str] = {}
        self._admin = False
        #: The project that was logged in to, by its names.
        self._own: dict[str, str] = {}

    def operations(self, **filters: str | tuple[str, ...] | None) -> list[Operation]:
        """Return the newest operations that the filters let through."""
        given = {name: value for name, value in filters.items() if value not in {None, ()}}
        page: dict[str, Any] = self._ask("GET", "stateward", f"/operations?{urlencode(given, doseq=True)}")
        found: list[Operation] = page["operations"]
        return found

    def operation(self, name: str) -> Operation:
        """Return the operation of an id, or a server's running, else newest, operation.

        Raises:
            Failed: there is none.
        """
        server = name
        if _ID.fullmatch(name):
            with contextlib.suppress(NoSuch):
                return self._one("GET", f"/operations/{name}")
        else:
            try:
                server = self.server(name)
            except NoSuch:
                raise Failed(f"There is no operation and no server that is named {name!r}.") from None
        found = self.operations(instance=server, limit="50")
        running = [each for each in found if not each["final"]]
        if not found:
            raise Failed(f"There is no operation, and no server with one, that is named {name!r}.")
        return (running or found)[0]

    def server(self, name: str) -> str:
        """Return the id of the server with a name; an id is returned as it is.

        Raises:
            Failed: there is none, or there are several.
        """
        if self._token is None and not _ID.fullmatch(name):
            self._log_in()
        return server_named(name, lambda path: self._ask("GET", "compute", path), admin=self._admin)

    def project(self, name: str) -> str:
        """Return the id of the project with a name; an id is returned as it is.

        Raises:
            Failed: there is none, or there are several.
        """
        if self._token is None:
            self._log_in()
        if name in self._own or _PROJECT_ID.fullmatch(name.replace("-", "")):
            return self._own.get(name, name)
        found: list[dict[str, str]] = []
        if self._admin:
            found = self._ask("GET", "identity", f"/v3/projects?{urlencode({'name': name})}")["projects"]
        if len(found) != 1:
            many = "Several projects are" if found else "There is no project that is"
            raise Failed(f"{many} named {name!r}{'; use an id' if found else ''}.")
        return found[0]["id"]

    def order(self, operation_id: str, command: str, **options: int) -> Operation:
        """Give an order to an operation, and return it as it is then.

        Raises:
            Failed: with what the server says.
        """
        return self._one("POST", f"/operations/{operation_id}/{command}", options)

    def native(self, method: str, path: str, body: object = None) -> Any:
        """Ask Stateward's own API; None where it answers nothing.

        Raises:
            Failed: with what the server says.
        """
        return self._ask(method, "stateward", path, body)

    def follow(self, operation_id: str) -> Iterator[Operation]:
        """Return an operation as it is and then after each change, until its end or the stream's.

        Raises:
            Failed: it cannot be followed.
            Unreachable: the stream broke.
        """
        with self._open("GET", "stateward", f"/operations/{operation_id}/events", timeout=_SILENCE) as stream:
            while True:
                try:
                    line = stream.readline()
                except (OSError, HTTPException) as error:
                    raise Unreachable(f"The server stopped answering: {error}") from None
                if not line:
                    return
                if line.startswith(b"data: "):
                    yield from _decoded(line[6:])["operations"]

    def events(self, **filters: str | tuple[str, ...] | None) -> list[Told]:
        """Return the newest events that the filters let through, oldest first.

        Raises:
            Failed: with what the server says.
        """
        with self._open("GET", "stateward", _events_path(filters), accept="application/json") as response:
            found: list[Told] = _decoded(_read(response))["events"]
            return found

    def follow_events(
        self, last: str | None, **filters: str | tuple[str, ...] | None
    ) -> Iterator[tuple[str, Told | None]]:
        """Return each event with its id, as it happens, until the stream's end; None: only the place has moved.

        Args:
            last: the id after which to begin; None: now.
            filters: as those of the API.

        Raises:
            Failed: they cannot be followed.
            Unreachable: the stream broke.
        """
        path = _events_path({**filters, "after": last})
        with self._open("GET", "stateward", path, timeout=_SILENCE, accept="text/event-stream") as stream:
            place, event = last or "", None
            while True:
                try:
                    line = stream.readline()
                except (OSError, HTTPException) as error:
                    raise Unreachable(f"The server stopped answering: {error}") from None
                if not line:
                    return
                name, _, value = line.rstrip(b"\n").partition(b": ")
                if name == b"id":
                    place = value.decode()
                elif name == b"data":
                    event = _decoded(value)
                elif not line.strip():
                    yield place, event
                    event = None

    def _one(self, method: str, path: str, body: object = None) -> Operation:
        found: Operation = self._ask(method, "stateward", path, body)
        return found

    def _ask(self, method: str, service: str, path: str, body: object = None) -> Any:
        with self._open(method, service, path, body) as response:
            raw = _read(response)
            return _decoded(raw) if raw or response.status != http.HTTPStatus.NO_CONTENT else None

    @contextlib.contextmanager
    def _open(
        self,
        method: str,
        service: str,
        path: str,
        body: object = None,
        *,
        timeout: float = _TIMEOUT,
        accept: str = "*/*",
    ) -> Generator[HTTPResponse]:
        """Ask, once more with a new token when the old one has ended."""
        fresh = self._token is None
        while True:
            if self._token is None:
                self._log_in()
            address = self._endpoints.get(service)
            if address is None:
                raise Failed(f"This cloud's catalog has no service of type {service!r}: it is no Stateward.")
            headers = {"x-auth-token": self._token or "", "accept": accept}
            try:
                with self._send(method, address + path, headers, body, timeout) as response:
                    yield response
            except _NotAllowedIn:
                if fresh:
                    raise
                self._token, fresh = None, True
            else:
                return

    def _log_in(self) -> None:
        auth = self._cloud.auth
        address = (auth.auth_url or "").rstrip("/")
        if not address.endswith("/v3"):
            address += "/v3"
        with self._send("POST", f"{address}/auth/tokens", {}, login_of(auth), _TIMEOUT) as response:
            token = response.headers["x-subject-token"]
            said = _decoded(_read(response))["token"]
        self._endpoints = {
            service["type"]: endpoint["url"]
            for service in said.get("catalog", [])
            for endpoint in service["endpoints"]
            if endpoint["interface"] == "public"
        }
        self._admin = "admin" in {role["name"] for role in said.get("roles", [])}
        self._own = {
            said["project"][key]: said["project"]["id"] for key in ("id", "name") if "project" in said
        }
        self._token = token

    @contextlib.contextmanager
    def _send(
        self, method: str, url: str, headers: dict[str, str], body: object, timeout: float
    ) -> Generator[HTTPResponse]:
        data = None if body is None else msgspec.json.encode(body)
        if data is not None:
            headers = headers | {"content-type": "application/json"}
        address = quote(url, safe="/:?&=%[]@!$'()*+,;~#")
        # The credentials were checked to name an http address.
        request = urllib.request.Request(address, data, headers, method=method)  # noqa: S310
        try:
            response = urllib.request.urlopen(request, timeout=timeout, context=self._context(url))  # noqa: S310
        except urllib.error.HTTPError as error:
            with error:
                raise _refused(error.code, error.read()) from None
        except (OSError, HTTPException) as error:
            why = getattr(error, "reason", error)
            raise Unreachable(f"The server cannot be reached at {url.partition('?')[0]}: {why}") from None
        with response:
            yield cast("HTTPResponse", response)

    def _context(self, url: str) -> ssl.SSLContext | None:
        if not url.startswith("https:"):
            return None
        if self._tls is None:
            try:
                self._tls = ssl.create_default_context(cafile=self._cloud.cacert)
            except OSError as error:
                raise Failed(f"The file {self._cloud.cacert} cannot be used as cacert: {error}") from None
            if not self._cloud.verify:
                self._tls.check_hostname = False
                self._tls.verify_mode = ssl.CERT_NONE
        return self._tls


class _NotAllowedIn(Failed):
    """The token or the credentials are not good."""


def _events_path(filters: dict[str, str | tuple[str, ...] | None]) -> str:
    given = {name: value for name, value in filters.items() if value not in {None, ()}}
    return f"/events?{urlencode(given, doseq=True)}"


def _read(response: HTTPResponse) -> bytes:
    try:
        return response.read()
    except (OSError, HTTPException) as error:
        raise Unreachable(f"The server stopped answering: {error}") from None


def _decoded(raw: bytes) -> Any:
    try:
        return msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise Failed("The server's answer is not JSON; is it a Stateward?") from None


def _refused(status: int, raw: bytes) -> Failed:
    """Make the error of a refusal, in whichever of the APIs' formats it is."""
    sentence = f"The server answered {status} {http.HTTPStatus(status).phrase}."
    with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError, AttributeError, StopIteration):
        body: Any = msgspec.json.decode(raw)
        fault: Any = body if "detail" in body else next(iter(body.values()))
        sentence = str(fault.get("detail") or fault.get("message") or sentence)
    kinds: dict[int, type[Failed]] = {401: _NotAllowedIn, 403: NotAllowed, 404: NoSuch}
    return kinds.get(status, Failed)(sentence)
