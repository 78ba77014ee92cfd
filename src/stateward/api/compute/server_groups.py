"""``/os-server-groups``: a project's server groups; an admin may list all projects'."""

from __future__ import annotations

import uuid
from typing import Annotated, Any, Literal

import msgspec
import sqlalchemy as sa
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from stateward.api.compute.call import Call, Endpoint, Handler, convert, empty, reply
from stateward.api.compute.paging import natural, only, size
from stateward.api.compute.services import Services
from stateward.domain.actions import Policy, Role
from stateward.domain.errors import Invalid, NotFound
from stateward.domain.placement import GroupPolicy
from stateward.store import server_groups
from stateward.store.server_groups import NewServerGroup, ServerGroup

_OWNER, _SOFT, _ONE_POLICY = 13, 15, 64

#: No spaces around it and nothing that cannot be seen, as Nova's names are.
Name = Annotated[
    str,
    msgspec.Meta(min_length=1, max_length=255, pattern=r"^(?!\s)[^\x00-\x1f\x7f]*(?<!\s)\Z"),
]
OnePolicy = Annotated[list[Literal["anti-affinity", "affinity"]], msgspec.Meta(min_length=1, max_length=1)]
OneOfAll = Annotated[list[GroupPolicy], msgspec.Meta(min_length=1, max_length=1)]
#: A number, or one in a string, as Nova takes it; it must fit the database.
Count = (
    Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
    | Annotated[str, msgspec.Meta(pattern=r"^[1-9][0-9]{0,8}\Z")]
)


class GroupRules(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a policy is to be applied."""

    max_server_per_host: Count | msgspec.UnsetType = msgspec.UNSET


class GroupBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a new group is described by, until 2.14."""

    name: Name
    policies: OnePolicy


class SoftGroupBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The same from the microversion on that has soft policies, until 2.63."""

    name: Name
    policies: OneOfAll


class RuledGroupBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The same from the microversion on that has one policy with rules."""

    name: Name
    policy: GroupPolicy
    rules: GroupRules = GroupRules()


def _view(call: Call, group: ServerGroup, members: list[str]) -> dict[str, Any]:
    shown: dict[str, Any] = {"id": group.id, "name": group.name, "members": members}
    if call.minor >= _ONE_POLICY:
        rules = {} if group.most_per_host is None else {"max_server_per_host": group.most_per_host}
        shown |= {"policy": group.policy.value, "rules": rules}
    else:
        # Nova never had any metadata here and shows that until 2.63.
        shown |= {"policies": [group.policy.value], "metadata": {}}
    if call.minor >= _OWNER:
        shown |= {"project_id": group.project_id, "user_id": group.user_id}
    return shown


async def index(call: Call) -> Response:
    """List the project's groups; for an admin who asks for ``all_projects``, everybody's."""
    only(call, "all_projects", "limit", "offset")
    params = call.request.query_params
    everywhere = "all_projects" in params and call.token.is_admin
    limit = size(params.get("limit", "0"), most=call.services.max_limit)
    offset = natural("offset", params.get("offset", "0"))

    def read(connection: sa.Connection) -> list[dict[str, Any]]:
        found = server_groups.page(
            connection,
            None if everywhere else call.project_id,
            limit=limit,
            offset=offset,
        )
        members = server_groups.members(connection, [group.id for group in found])
        return [_view(call, group, members[group.id]) for group in found]

    return reply({"server_groups": await call.services.database.read(read)})


async def show(call: Call) -> Response:
    """Show one group."""
    group_id = call.path["id"]

    def read(connection: sa.Connection) -> dict[str, Any]:
        group = server_groups.get(connection, group_id, call.visible_project)
        if group is None:
            raise _not_found(group_id)
        return _view(call, group, server_groups.members(connection, [group_id])[group_id])

    return reply({"server_group": await call.services.database.read(read)})


async def create(call: Call) -> Response:
    """Make a group; Nova answers 200."""
    body = await call.json()
    if "server_group" not in body:
        raise Invalid("'server_group' is a required property")
    for name in body:
        if name != "server_group":
            raise Invalid(f"Additional properties are not allowed ('{name}' was unexpected)")
    name, policy, most = _described(call, body["server_group"])
    new = NewServerGroup(
        id=str(uuid.uuid4()),
        project_id=call.project_id,
        user_id=call.token.user_id,
        name=name,
        policy=policy,
        most_per_host=most,
    )
    made = await call.services.database.write(lambda connection: server_groups.create(connection, new))
    return reply({"server_group": _view(call, made, [])})


def _described(call: Call, raw: object) -> tuple[str, GroupPolicy, int | None]:
    """Return name, policy and ``max_server_per_host``, in this microversion's form.

    Raises:
        Invalid: it is not so.
    """
    if call.minor < _ONE_POLICY:
        kind = SoftGroupBody if call.minor >= _SOFT else GroupBody
        old: GroupBody | SoftGroupBody = convert(raw, kind, "server_group")
        return old.name, GroupPolicy(old.policies[0]), None
    new: RuledGroupBody = convert(raw, RuledGroupBody, "server_group")
    most = new.rules.max_server_per_host
    if most is msgspec.UNSET:
        return new.name, new.policy, None
    if new.policy is not GroupPolicy.ANTI_AFFINITY:
        raise Invalid("Only anti-affinity policy supports rules.")
    return new.name, new.policy, int(most)


async def delete(call: Call) -> Response:
    """Delete a group; its servers stay."""
    group_id = call.path["id"]
    gone = await call.services.database.write(
        lambda connection: server_groups.delete(connection, group_id, call.visible_project)
    )
    if not gone:
        raise _not_found(group_id)
    return empty(204)


def _not_found(group_id: str) -> NotFound:
    return NotFound(f"Instance group {group_id} could not be found.")


def routes(services: Services, *, legacy: bool = False) -> list[BaseRoute]:
    """Return the routes."""

    def at(path: str, method: str, handler: Handler, role: Role) -> Route:
        policy = Policy(f"os_compute_api:os-server-groups:{handler.__name__}", role)
        endpoint = Endpoint(services, handler, policy=policy, legacy=legacy)
        return Route(f"/os-server-groups{path}", endpoint, methods=[method])

    return [
        at("", "GET", index, Role.READER),
        at("", "POST", create, Role.MEMBER),
        at("/{id}", "GET", show, Role.READER),
        at("/{id}", "DELETE", delete, Role.MEMBER),
    ]
