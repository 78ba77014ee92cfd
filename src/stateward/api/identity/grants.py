"""Who has which role on which project: granting, taking away and listing."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from starlette.requests import Request
from starlette.responses import Response

from stateward.api.faults import ApiFault
from stateward.api.http import base_url, empty, reply, yes_or_no
from stateward.api.identity.caller import Callers
from stateward.api.identity.service import Identity
from stateward.domain.errors import NotFound
from stateward.store import identity as directory
from stateward.store.identity import Assignment
from stateward.store.identity_standing import implied
from stateward.store.identity_tables import PROJECTS, USERS
from stateward.store.rows import Values

#: Filters for what there is none of here: with one of them, no assignment is found.
_NEVER = ("group.id", "scope.domain.id", "scope.system", "scope.OS-INHERIT:inherited_to")


class Grants:
    """The handlers."""

    def __init__(self, identity: Identity, public_url: str | None) -> None:
        """Serve the grants of an identity service's directory."""
        self._identity = identity
        self._callers = Callers(identity)
        self._public_url = public_url

    async def give(self, request: Request) -> Response:
        """Give a user a role on a project."""
        await self._callers.admin(request)
        user_id, project_id, role_id = _named(request)
        await self._identity.change(
            lambda connection: directory.grant(connection, user_id, project_id, role_id)
        )
        return empty()

    async def take(self, request: Request) -> Response:
        """Take it away."""
        await self._callers.admin(request)
        user_id, project_id, role_id = _named(request)
        await self._identity.change(
            lambda connection: directory.ungrant(connection, user_id, project_id, role_id)
        )
        return empty()

    async def check(self, request: Request) -> Response:
        """Say whether a user was given a role on a project: 204 or 404."""
        await self._callers.admin(request)
        user_id, project_id, role_id = _named(request)
        if not await self._identity.database.read(
            lambda connection: directory.has_grant(connection, user_id, project_id, role_id)
        ):
            raise NotFound(f"Could not find role assignment with role: {role_id}, user: {user_id}.")
        return empty()

    async def of_user_on_project(self, request: Request) -> Response:
        """List the roles a user was given on a project."""
        await self._callers.admin(request)
        user_id, project_id = request.path_params["user_id"], request.path_params["project_id"]

        def work(connection: sa.Connection) -> list[Assignment]:
            directory.get(connection, PROJECTS, project_id)
            directory.get(connection, USERS, user_id)
            return directory.assignments(connection, user_id=user_id, project_id=project_id)

        base = base_url(request, self._public_url)
        found = await self._identity.database.read(work)
        roles = [
            {
                "id": one.role_id,
                "name": one.role_name,
                "domain_id": None,
                "links": {"self": f"{base}/identity/v3/roles/{one.role_id}"},
            }
            for one in found
        ]
        return reply({"roles": roles, "links": _links(request)})

    async def index(self, request: Request) -> Response:
        """List who has which role where; callers who are no administrators see their own."""
        query = request.query_params
        wanted = query.get("user.id")
        await self._callers.admin_or(request, wanted or "")
        effective = _flag(request, "effective")
        role_id = query.get("role.id")

        def work(connection: sa.Connection) -> list[Assignment]:
            found = directory.assignments(
                connection,
                user_id=wanted,
                project_id=query.get("scope.project.id"),
                role_id=None if effective else role_id,
            )
            return _spread(connection, found, role_id) if effective else found

        found = [] if any(name in query for name in _NEVER) else await self._identity.database.read(work)
        names = _flag(request, "include_names")
        base = base_url(request, self._public_url)
        return reply(
            {"role_assignments": [_view(base, one, names=names) for one in found], "links": _links(request)}
        )

    async def unsupported(self, request: Request) -> Response:
        """Say plainly that roles are given to users on projects, and in no other way."""
        await self._callers.admin(request)
        raise ApiFault(
            501,
            "Roles are given to users on projects only: there are no groups, and no roles on domains or the system.",
        )


def _named(request: Request) -> tuple[str, str, str]:
    path = request.path_params
    return path["user_id"], path["project_id"], path["role_id"]


def _flag(request: Request, name: str) -> bool:
    return name in request.query_params and yes_or_no(request.query_params[name], name)


def _spread(connection: sa.Connection, found: list[Assignment], role_id: str | None) -> list[Assignment]:
    """Add the roles that others imply, each once, and narrow to one role if that was asked for."""
    by_holder: dict[tuple[str, str], tuple[Assignment, frozenset[str]]] = {}
    for one in found:
        holder = (one.user_id, one.project_id)
        _first, names = by_holder.get(holder, (one, frozenset[str]()))
        by_holder[holder] = (one, names | {one.role_name})
    every = frozenset[str]().union(*(implied(names) for _one, names in by_holder.values()))
    roles: dict[str, Values] = {row["name"]: row for row in directory.roles_named(connection, every)}
    return [
        Assignment(**(_fields(one) | {"role_id": roles[name]["id"], "role_name": name}))
        for one, names in by_holder.values()
        for name in sorted(implied(names))
        if name in roles and role_id in (None, roles[name]["id"])
    ]


def _fields(one: Assignment) -> dict[str, str]:
    return {name: getattr(one, name) for name in one.__struct_fields__}


def _view(base: str, one: Assignment, *, names: bool) -> dict[str, Any]:
    role: dict[str, Any] = {"id": one.role_id}
    user: dict[str, Any] = {"id": one.user_id}
    project: dict[str, Any] = {"id": one.project_id}
    if names:
        role["name"] = one.role_name
        user |= {
            "name": one.user_name,
            "domain": {"id": one.user_domain_id, "name": one.user_domain_name},
        }
        project |= {
            "name": one.project_name,
            "domain": {"id": one.project_domain_id, "name": one.project_domain_name},
        }
    link = f"{base}/identity/v3/projects/{one.project_id}/users/{one.user_id}/roles/{one.role_id}"
    return {"role": role, "user": user, "scope": {"project": project}, "links": {"assignment": link}}


def _links(request: Request) -> dict[str, str | None]:
    return {"next": None, "previous": None, "self": str(request.url)}
