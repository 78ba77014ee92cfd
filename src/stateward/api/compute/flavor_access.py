"""``/flavors/{id}/os-flavor-access`` and the actions that give and take access to a private flavor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Final

import msgspec
import sqlalchemy as sa
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from stateward.api.compute.call import Call, Endpoint, convert, reply
from stateward.api.compute.services import Services
from stateward.domain.actions import Policy, Role
from stateward.domain.errors import Invalid, NotFound
from stateward.store import flavors

#: From here on, a public flavor refuses to be given access to.
_PRIVATE_ONLY: Final = 7


class Access(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who is given access, or loses it."""

    tenant: Annotated[str, msgspec.Meta(min_length=1, max_length=255, pattern=r"^[^\x00]*\Z")]


async def index(call: Call) -> Response:
    """List the projects that may use a private flavor."""

    def read(connection: sa.Connection) -> list[str]:
        flavor = flavors.find(connection, call.path["id"])
        if flavor.public:
            raise NotFound("Access list not available for public flavors.")
        return flavors.projects(connection, flavor)

    return _view(call, await call.services.database.read(read))


async def act(call: Call) -> Response:
    """Give a project access, or take it."""
    body = await call.json()
    if len(body) != 1:
        raise Invalid("Malformed request body")
    (name, content), *_ = body.items()
    if name not in _ACTIONS:
        raise Invalid(f"There is no such action: {name}")
    policy, work = _ACTIONS[name]
    call.allow(policy)
    wanted: Access = convert(content, Access, name)
    projects = await call.services.database.write(lambda connection: work(connection, call, wanted.tenant))
    return _view(call, projects)


def _give(connection: sa.Connection, call: Call, project_id: str) -> list[str]:
    return flavors.give_access(
        connection, call.path["id"], project_id, private_only=call.minor >= _PRIVATE_ONLY
    )


def _take(connection: sa.Connection, call: Call, project_id: str) -> list[str]:
    return flavors.take_access(connection, call.path["id"], project_id)


def _view(call: Call, projects: list[str]) -> Response:
    return reply(
        {"flavor_access": [{"flavor_id": call.path["id"], "tenant_id": project} for project in projects]}
    )


def _rule(name: str) -> Policy:
    return Policy(f"os_compute_api:os-flavor-access{name}", Role.ADMIN)


_ACTIONS: Final[Mapping[str, tuple[Policy, Callable[[sa.Connection, Call, str], list[str]]]]] = {
    "addTenantAccess": (_rule(":add_tenant_access"), _give),
    "removeTenantAccess": (_rule(":remove_tenant_access"), _take),
}


def routes(services: Services, *, legacy: bool = False) -> list[BaseRoute]:
    """Return the routes."""
    listing = Endpoint(services, index, policy=_rule(""), legacy=legacy)
    action = Endpoint(services, act, policy=None, legacy=legacy)
    return [
        Route("/flavors/{id}/os-flavor-access", listing, methods=["GET"]),
        Route("/flavors/{id}/action", action, methods=["POST"]),
    ]
