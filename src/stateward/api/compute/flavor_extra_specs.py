"""``/flavors/{id}/os-extra_specs``: what a flavor says besides its size."""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from stateward.api.compute.call import Call, Endpoint, Handler, convert, empty, reply
from stateward.api.compute.services import Services
from stateward.domain.actions import Policy, Role
from stateward.domain.errors import Invalid, NotFound
from stateward.store import flavors

_LONGEST: Final = 255
Key = Annotated[str, msgspec.Meta(pattern=r"^[a-zA-Z0-9-_:. ]{1,255}\Z")]
Value = Annotated[str, msgspec.Meta(max_length=_LONGEST, pattern=r"^[^\x00]*\Z")]
#: Nova takes numbers too, and keeps them as text.
Specs = dict[Key, Value | int | float]


async def index(call: Call) -> Response:
    """Show a flavor's extra specs."""
    return reply({"extra_specs": await _specs(call)})


async def show(call: Call) -> Response:
    """Show one."""
    key = call.path["key"]
    specs = await _specs(call)
    if key not in specs:
        raise NotFound(flavors.no_extra_spec(call.path["id"], key))
    return reply({key: specs[key]})


async def create(call: Call) -> Response:
    """Set some and leave the others; answers with what was sent, as Nova does."""
    specs: dict[str, Any] = await call.member("extra_specs", Specs)
    await _add(call, specs)
    return reply({"extra_specs": specs})


async def update(call: Call) -> Response:
    """Set the one that the path names."""
    specs: dict[str, Any] = convert(await call.json(), Specs, "body")
    if len(specs) != 1:
        raise Invalid(
            f"Invalid input for field/attribute body. Value: {specs}. It must have exactly one member"
        )
    if call.path["key"] not in specs:
        raise Invalid("Request body and URI mismatch")
    await _add(call, specs)
    return reply(specs)


async def delete(call: Call) -> Response:
    """Remove one."""
    await call.services.database.write(
        lambda connection: flavors.drop_extra_spec(connection, call.path["id"], call.path["key"])
    )
    return empty(200)


async def _specs(call: Call) -> dict[str, str]:
    flavor = await call.services.database.read(
        lambda connection: flavors.find(connection, call.path["id"], project_id=call.visible_project)
    )
    return flavor.extra_specs


async def _add(call: Call, specs: dict[str, Any]) -> None:
    texts = {key: convert(str(value), Value, key) for key, value in specs.items()}
    await call.services.database.write(
        lambda connection: flavors.add_extra_specs(connection, call.path["id"], texts)
    )


def _rule(name: str, role: Role) -> Policy:
    return Policy(f"os_compute_api:os-flavor-extra-specs:{name}", role)


def routes(services: Services, *, legacy: bool = False) -> list[BaseRoute]:
    """Return the routes."""

    def at(path: str, method: str, handler: Handler, policy: Policy) -> Route:
        return Route(path, Endpoint(services, handler, policy=policy, legacy=legacy), methods=[method])

    base = "/flavors/{id}/os-extra_specs"
    return [
        at(base, "GET", index, _rule("index", Role.READER)),
        at(base, "POST", create, _rule("create", Role.ADMIN)),
        at(base + "/{key}", "GET", show, _rule("show", Role.READER)),
        at(base + "/{key}", "PUT", update, _rule("update", Role.ADMIN)),
        at(base + "/{key}", "DELETE", delete, _rule("delete", Role.ADMIN)),
    ]
