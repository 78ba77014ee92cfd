"""``/servers``: list, show, rename, delete; creating and acting have modules of their own."""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import urlencode

import msgspec
from sqlalchemy.exc import DataError
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from stateward.api.compute.call import OPERATION_HEADER, Call, Endpoint, empty, reply
from stateward.api.compute.server_actions import check
from stateward.api.compute.server_create import Name, Text, check_hostname, create_server, display_name
from stateward.api.compute.server_queries import bad_pattern, query_of
from stateward.api.compute.servers_seen import find
from stateward.api.compute.services import Services
from stateward.api.compute.views import brief, detail, host_status
from stateward.domain.actions import BY_KEY, CREATE, Policy, Role, alternatives
from stateward.domain.errors import Invalid, Refusal, Refused
from stateward.domain.records import Instance
from stateward.operations.admission import Admitted
from stateward.store import instances, server_groups

_INDEX: Final = Policy("os_compute_api:servers:index", Role.READER)
_DETAIL: Final = Policy("os_compute_api:servers:detail", Role.READER)
_SHOW: Final = Policy("os_compute_api:servers:show", Role.READER)
_DESCRIPTION, _HOSTNAME, _PIN = 19, 90, 104


class ServerUpdate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What ``PUT /servers/{id}`` can change."""

    name: Name | None = None
    description: Text | msgspec.UnsetType | None = msgspec.UNSET
    hostname: str | None = None
    #: Only None can be asked for: servers stay where they are, so none is pinned.
    pinned_availability_zone: Name | msgspec.UnsetType | None = msgspec.UNSET
    accessIPv4: str | None = None  # noqa: N815 (Nova's name)
    accessIPv6: str | None = None  # noqa: N815 (Nova's name)


async def index(call: Call) -> Response:
    """List servers, briefly."""
    found, more = await _page(call)
    body: dict[str, Any] = {"servers": [brief(call, instance) for instance in found]}
    return reply(_with_next(call, body, found, more=more))


async def index_detail(call: Call) -> Response:
    """List servers whole."""
    found, more = await _page(call)
    up = await host_status(call)
    body: dict[str, Any] = {"servers": [detail(call, instance, up, single=False) for instance in found]}
    return reply(_with_next(call, body, found, more=more))


async def show(call: Call) -> Response:
    """Show one server."""
    return await _whole(call, await find(call, call.path["id"]))


async def update(call: Call) -> Response:
    """Change name, description or hostname; locked or not."""
    action = BY_KEY["update"]
    await check(call, action, call.path["id"])
    wanted = await call.member("server", ServerUpdate)
    changes: dict[str, Any] = {}
    if wanted.name is not None:
        changes["name"] = display_name(call, wanted.name)
    if wanted.description is not msgspec.UNSET:
        _since(call, "description", _DESCRIPTION)
        changes["description"] = wanted.description
    if wanted.hostname is not None:
        _since(call, "hostname", _HOSTNAME)
        check_hostname(call, wanted.hostname)
        changes["hostname"] = wanted.hostname
    if wanted.pinned_availability_zone is not msgspec.UNSET:
        _since(call, "pinned_availability_zone", _PIN)
        if wanted.pinned_availability_zone is not None:
            raise Invalid("A server cannot be pinned to its availability zone: it never leaves it.")
    done = await call.services.immediate.change(
        action, call.path["id"], call.actor, lambda _instance: changes, project_id=call.visible_project
    )
    return await _whole(call, done.admitted.instance)


async def delete(call: Call) -> Response:
    """Admit the deletion; asking again while it is under way changes nothing (204).

    Where the operator keeps deleted instances for a while, most are; those that cannot be are removed at once.
    """
    rows = alternatives("delete") if call.services.reclaims else (BY_KEY["delete"],)
    await check(call, rows[0], call.path["id"])

    def answer(admitted: Admitted) -> Response:
        return empty(204, {OPERATION_HEADER: admitted.operation.id})

    try:
        admitted = await call.admission(answer).admit(
            rows, call.path["id"], call.actor, project_id=call.visible_project
        )
    except Refused as refused:
        under_way = {row.pending for row in rows}
        if refused.refusal is Refusal.WRONG_TASK_STATE and refused.facts["task_state"] in under_way:
            return empty(204)
        raise
    return answer(admitted)


async def _whole(call: Call, instance: Instance) -> Response:
    """Show a server alone; a group that was deleted since has no members."""
    group_id = instance.group_id
    if group_id is not None and not await call.services.database.read(
        lambda connection: server_groups.get(connection, group_id)
    ):
        instance = msgspec.structs.replace(instance, group_id=None)
    return reply({"server": detail(call, instance, await host_status(call), single=True)})


def _since(call: Call, name: str, minor: int) -> None:
    if call.minor < minor:
        raise Invalid(
            "Invalid input for field/attribute server. "
            f"Additional properties are not allowed ('{name}' was unexpected)"
        )


async def _page(call: Call) -> tuple[list[Instance], bool]:
    query = query_of(call)
    try:
        found = await call.services.database.read(lambda connection: instances.page(connection, query))
    except LookupError as error:
        raise Invalid(f"marker [{error.args[0]}] not found") from None
    except DataError:
        # PostgreSQL's regular expressions are not quite Python's, which the pattern was checked by.
        raise bad_pattern(str(query.name)) from None
    return found, query.limit is not None and len(found) == query.limit


def _with_next(call: Call, body: dict[str, Any], found: list[Instance], *, more: bool) -> dict[str, Any]:
    if more and found:
        params = [
            (name, value) for name, value in call.request.query_params.multi_items() if name != "marker"
        ]
        path = call.request.url.path.split("/compute/", 1)[1].split("/", 1)[1]
        if call.legacy:
            path = path.split("/", 1)[1]
        href = f"{call.root}/{path}?{urlencode([*params, ('marker', found[-1].id)])}"
        body["servers_links"] = [{"rel": "next", "href": href}]
    return body


def routes(services: Services, *, legacy: bool = False) -> list[BaseRoute]:
    """Return the routes, the most used first."""

    def at(path: str, method: str, handler: Any, policy: Policy | None, *, keyed: bool = False) -> Route:
        endpoint = Endpoint(services, handler, policy=policy, legacy=legacy, keyed=keyed)
        return Route(path, endpoint, methods=[method])

    return [
        at("/servers/detail", "GET", index_detail, _DETAIL),
        at("/servers/{id}", "GET", show, _SHOW),
        at("/servers", "GET", index, _INDEX),
        at("/servers", "POST", create_server, CREATE.policy, keyed=True),
        at("/servers/{id}", "PUT", update, None),
        at("/servers/{id}", "DELETE", delete, None, keyed=True),
    ]
