"""``/os-services``: each host's agent, shown as Nova's compute service, and what the operator says of it."""

from __future__ import annotations

import re
from typing import Annotated, Any, Final, Literal

import msgspec
import sqlalchemy as sa
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from stateward.api.compute.call import Call, Endpoint, convert, reply
from stateward.api.compute.paging import only
from stateward.api.compute.server_queries import boolean
from stateward.api.compute.services import Services
from stateward.api.compute.views import when_precisely
from stateward.domain.actions import Policy, Role
from stateward.domain.errors import Invalid, NotFound
from stateward.store import hosts
from stateward.store.hosts import Host

BINARY: Final = "nova-compute"
_LIST: Final = Policy("os_compute_api:os-services:list", Role.ADMIN)
_UPDATE: Final = Policy("os_compute_api:os-services:update", Role.ADMIN)
_FORCED_DOWN, BY_UUID = 11, 53
_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII | re.IGNORECASE)

Reason = Annotated[str, msgspec.Meta(min_length=1, max_length=255, pattern=r"^[^\x00]*\Z")]
Word = Annotated[str, msgspec.Meta(min_length=1, max_length=255)]


class ServiceUpdate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is said of the service that the path names (2.53)."""

    status: Literal["enabled", "disabled"] | None = None
    disabled_reason: Reason | None = None
    forced_down: bool | str | None = None


class NamedService(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is said of the service that the body names; the path says the verb (to 2.52)."""

    host: Word
    binary: Word
    disabled_reason: Reason | None = None


class ForcedService(NamedService, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The same from the microversion on that can force a service down."""

    forced_down: bool | str | None = None


def identifier(call: Call, host: Host) -> int | str:
    """Return what a host is named by in this microversion."""
    return host.id if call.minor >= BY_UUID else host.number


def state(call: Call, host: Host) -> str:
    """Say whether a host was heard of lately."""
    return "up" if host.up(call.services.clock.now(), call.services.host_patience) else "down"


def status(host: Host) -> str:
    """Say whether new instances may go to a host."""
    return "enabled" if host.enabled else "disabled"


def check_uuid(text: str) -> None:
    """Refuse what cannot be a UUID.

    Raises:
        Invalid: it is none.
    """
    if not _UUID.fullmatch(text):
        raise Invalid(f"Invalid uuid {text}")


def _view(call: Call, host: Host) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "id": identifier(call, host),
        "binary": BINARY,
        "host": host.name,
        "zone": host.zone,
        "status": status(host),
        "state": state(call, host),
        "updated_at": None if host.seen_at is None else when_precisely(host.seen_at),
        "disabled_reason": host.disabled_reason,
    }
    if call.minor >= _FORCED_DOWN:
        shown["forced_down"] = host.forced_down
    return shown


async def index(call: Call) -> Response:
    """List services, of one host or one binary when asked."""
    only(call, "host", "binary")
    params = call.request.query_params
    every = await call.services.database.read(hosts.every)
    name, binary = params.get("host"), params.get("binary")
    shown = [
        _view(call, host)
        for host in every
        if (not name or host.name == name) and (not binary or binary == BINARY)
    ]
    return reply({"services": shown})


async def update(call: Call) -> Response:
    """Enable or disable a host for new instances, or say that it is down."""
    return await (_by_id(call) if call.minor >= BY_UUID else _by_name(call))


async def _by_id(call: Call) -> Response:
    wanted_id = call.path["id"]
    check_uuid(wanted_id)
    wanted: ServiceUpdate = convert(await call.json(), ServiceUpdate, "body")
    changes: dict[str, Any] = {}
    if wanted.status == "enabled":
        if wanted.disabled_reason:
            raise Invalid("Specifying 'disabled_reason' with status 'enabled' is invalid.")
        changes |= {"enabled": True, "disabled_reason": None}
    elif wanted.status == "disabled":
        changes |= {"enabled": False, "disabled_reason": wanted.disabled_reason}
    if wanted.forced_down is not None:
        changes["forced_down"] = _truth(wanted.forced_down)
    if not changes:
        raise Invalid("No updates were requested. Fields 'status' or 'forced_down' should be specified.")

    def change(connection: sa.Connection) -> Host:
        if not hosts.change(connection, wanted_id, changes):
            raise NotFound(f"Service {wanted_id} could not be found.")
        return next(host for host in hosts.every(connection) if host.id == wanted_id)

    return reply({"service": _view(call, await call.services.database.write(change))})


async def _by_name(call: Call) -> Response:
    verb = call.path["id"]
    kind = ForcedService if call.minor >= _FORCED_DOWN else NamedService
    wanted: NamedService = convert(await call.json(), kind, "body")
    changes, shown = _meant(verb, wanted)
    if wanted.binary != BINARY:
        raise Invalid(
            f"Updating a {wanted.binary} service is not supported. Only nova-compute services can be updated."
        )

    def change(connection: sa.Connection) -> None:
        for host in hosts.every(connection):
            if host.name == wanted.host:
                hosts.change(connection, host.id, changes)
                return
        raise NotFound(f"Could not find binary {BINARY} on host {wanted.host}.")

    await call.services.database.write(change)
    return reply({"service": {"host": wanted.host, "binary": BINARY, **shown}})


def _meant(verb: str, wanted: NamedService) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the changes that a verb of the path asks for, and what is answered.

    Raises:
        Invalid: the body lacks what the verb needs.
        NotFound: there is no such verb.
    """
    reason = wanted.disabled_reason
    match verb:
        case "enable":
            return {"enabled": True, "disabled_reason": None}, {"status": "enabled"}
        case "disable":
            return {"enabled": False, "disabled_reason": None}, {"status": "disabled"}
        case "disable-log-reason":
            if reason is None:
                raise Invalid("Missing disabled reason field")
            changes = {"enabled": False, "disabled_reason": reason}
            return changes, {"status": "disabled", "disabled_reason": reason}
        case "force-down" if isinstance(wanted, ForcedService):
            if wanted.forced_down is None:
                raise Invalid("Missing forced_down field")
            forced = {"forced_down": _truth(wanted.forced_down)}
            return forced, forced
        case _:
            raise NotFound("Unknown action")


def _truth(value: bool | str) -> bool:  # noqa: FBT001 (the body's value)
    return value if isinstance(value, bool) else boolean(value)


def routes(services: Services, *, legacy: bool = False) -> list[BaseRoute]:
    """Return the routes."""
    listing = Endpoint(services, index, policy=_LIST, legacy=legacy)
    changing = Endpoint(services, update, policy=_UPDATE, legacy=legacy)
    return [
        Route("/os-services", listing, methods=["GET"]),
        Route("/os-services/{id}", changing, methods=["PUT"]),
    ]
