"""``/flavors``: list, show, create, describe, delete; extra specs and access have modules of their own."""

from __future__ import annotations

import uuid
from typing import Annotated, Any, Final

import msgspec
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from stateward.api.compute import flavor_access, flavor_extra_specs
from stateward.api.compute.call import Call, Endpoint, Handler, convert, empty, reply
from stateward.api.compute.paging import Page, bad_marker, next_page, only, page_of, whole_number
from stateward.api.compute.server_queries import boolean
from stateward.api.compute.services import Services
from stateward.api.compute.views import links
from stateward.domain.actions import Policy, Role
from stateward.domain.errors import Invalid
from stateward.store import flavors
from stateward.store.flavors import Flavor, FlavorQuery, NewFlavor

_DESCRIPTION, _EXTRA_SPECS, _SWAP_IS_A_NUMBER, _NO_FACTOR = 55, 61, 75, 102
#: Nova's column is a signed 32-bit integer.
_MOST: Final = 0x7FFFFFFF
_LARGEST_FACTOR: Final = 3.40282e38

Digits = Annotated[str, msgspec.Meta(pattern=r"^[0-9]{1,10}\Z")]
Positive = Annotated[int, msgspec.Meta(ge=1, le=_MOST)]
NotNegative = Annotated[int, msgspec.Meta(ge=0, le=_MOST)]
Name = Annotated[
    str, msgspec.Meta(min_length=1, max_length=255, pattern=r"^(?!\s)[^\x00-\x1f\x7f]*(?<!\s)\Z")
]
FlavorId = Annotated[
    str, msgspec.Meta(min_length=1, max_length=255, pattern=r"^(?! )[a-zA-Z0-9. _-]+(?<! )\Z")
]
Description = Annotated[str, msgspec.Meta(max_length=65535, pattern=r"^[^\x00]*\Z")]
Factor = Annotated[float, msgspec.Meta(gt=0, le=_LARGEST_FACTOR)]
FactorText = Annotated[str, msgspec.Meta(pattern=r"^[0-9]{1,38}(\.[0-9]{1,38})?\Z")]

#: Nova's sort keys, and the column behind each. What every flavor has alike leaves the order to the number.
_SORT: Final = {
    "created_at": "number",
    "description": "description",
    "disabled": "number",
    "ephemeral_gb": "ephemeral",
    "flavorid": "id",
    "id": "number",
    "is_public": "public",
    "memory_mb": "ram",
    "name": "name",
    "root_gb": "disk",
    "rxtx_factor": "rxtx_factor",
    "swap": "swap",
    "updated_at": "number",
    "vcpu_weight": "number",
    "vcpus": "vcpus",
}


class FlavorBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a new flavor is described by; numbers may come as text, as in Nova."""

    name: Name
    id: FlavorId | int | float | None = None
    ram: Positive | Digits
    vcpus: Positive | Digits
    disk: NotNegative | Digits
    ephemeral: NotNegative | Digits = msgspec.field(default=0, name="OS-FLV-EXT-DATA:ephemeral")
    swap: NotNegative | Digits = 0
    rxtx_factor: FactorText | Factor | msgspec.UnsetType = msgspec.UNSET
    public: bool | str = msgspec.field(default=True, name="os-flavor-access:is_public")


class DescribedFlavorBody(FlavorBody, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The same from the microversion on that has descriptions."""

    description: Description | None = None


class FlavorUpdate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All that can be changed of a flavor."""

    description: Description | None


def detail(call: Call, flavor: Flavor) -> dict[str, Any]:
    """Show a flavor whole."""
    shown: dict[str, Any] = {
        "id": flavor.id,
        "name": flavor.name,
        "ram": flavor.ram,
        "disk": flavor.disk,
        "swap": flavor.swap if call.minor >= _SWAP_IS_A_NUMBER else flavor.swap or "",
        "OS-FLV-EXT-DATA:ephemeral": flavor.ephemeral,
        "OS-FLV-DISABLED:disabled": False,
        "vcpus": flavor.vcpus,
        "os-flavor-access:is_public": flavor.public,
        "links": links(call, "flavors", flavor.id),
    }
    if call.minor < _NO_FACTOR:
        shown["rxtx_factor"] = flavor.rxtx_factor
    if call.minor >= _DESCRIPTION:
        shown["description"] = flavor.description
    if call.minor >= _EXTRA_SPECS:
        shown["extra_specs"] = flavor.extra_specs
    return shown


def brief(call: Call, flavor: Flavor) -> dict[str, Any]:
    """Show a flavor in a list without details."""
    shown: dict[str, Any] = {
        "id": flavor.id,
        "name": flavor.name,
        "links": links(call, "flavors", flavor.id),
    }
    if call.minor >= _DESCRIPTION:
        shown["description"] = flavor.description
    return shown


async def index(call: Call) -> Response:
    """List flavors, briefly."""
    page, found = await _page(call)
    body: dict[str, Any] = {"flavors": [brief(call, flavor) for flavor in found]}
    return reply(body | next_page(call, page, "flavors", found, found[-1].id if found else None))


async def index_detail(call: Call) -> Response:
    """List flavors whole."""
    page, found = await _page(call)
    body: dict[str, Any] = {"flavors": [detail(call, flavor) for flavor in found]}
    return reply(body | next_page(call, page, "flavors/detail", found, found[-1].id if found else None))


async def show(call: Call) -> Response:
    """Show one flavor; a private one only to admins and the projects that have access."""
    found = await call.services.database.read(
        lambda connection: flavors.find(connection, call.path["id"], project_id=call.visible_project)
    )
    return reply({"flavor": detail(call, found)})


async def create(call: Call) -> Response:
    """Make a flavor."""
    body = await call.member("flavor", DescribedFlavorBody if call.minor >= _DESCRIPTION else FlavorBody)
    factor = 1.0
    if body.rxtx_factor is not msgspec.UNSET:
        if call.minor >= _NO_FACTOR:
            raise Invalid(
                f"Invalid input for field/attribute flavor. Value: {msgspec.to_builtins(body)}. "
                "Additional properties are not allowed ('rxtx_factor' was unexpected)"
            )
        factor = convert(float(body.rxtx_factor), Factor, "rxtx_factor")
    new = NewFlavor(
        id=str(uuid.uuid4()) if body.id is None else convert(str(body.id), FlavorId, "id"),
        name=body.name,
        vcpus=_number("vcpus", body.vcpus, least=1),
        ram=_number("ram", body.ram, least=1),
        disk=_number("disk", body.disk, least=0),
        ephemeral=_number("OS-FLV-EXT-DATA:ephemeral", body.ephemeral, least=0),
        swap=_number("swap", body.swap, least=0),
        rxtx_factor=factor,
        public=body.public if isinstance(body.public, bool) else boolean(body.public),
        description=body.description if isinstance(body, DescribedFlavorBody) else None,
    )
    made = await call.services.database.write(lambda connection: flavors.create(connection, new))
    return reply({"flavor": detail(call, made)})


def _number(name: str, value: int | str, *, least: int) -> int:
    number: int = convert(int(value), Positive if least else NotNegative, name)
    return number


async def update(call: Call) -> Response:
    """Change a flavor's description."""
    body = await call.member("flavor", FlavorUpdate)
    changed = await call.services.database.write(
        lambda connection: flavors.describe(connection, call.path["id"], body.description)
    )
    return reply({"flavor": detail(call, changed)})


async def delete(call: Call) -> Response:
    """Remove a flavor; instances keep what they were made with."""
    await call.services.database.write(lambda connection: flavors.delete(connection, call.path["id"]))
    return empty(202)


async def _page(call: Call) -> tuple[Page, list[Flavor]]:
    only(call, "limit", "marker", "is_public", "minRam", "minDisk", "sort_key", "sort_dir")
    page = page_of(call)
    sort, descending = _sort(call)
    query = FlavorQuery(
        public=_public(call) if call.token.is_admin else True,
        project_id=call.project_id,
        min_ram=whole_number(call, "minRam"),
        min_disk=whole_number(call, "minDisk"),
        sort=sort,
        descending=descending,
        limit=page.limit,
        marker=page.marker,
    )
    try:
        return page, await call.services.database.read(lambda connection: flavors.page(connection, query))
    except LookupError as error:
        raise bad_marker(error) from None


def _public(call: Call) -> bool | None:
    text = call.request.query_params.get("is_public")
    if text is None:
        return True
    if text.lower() == "none":
        return None
    try:
        return boolean(text)
    except Invalid:
        raise Invalid(f"Invalid is_public filter [{text}]") from None


def _sort(call: Call) -> tuple[str, bool]:
    params = call.request.query_params
    key, direction = params.get("sort_key") or "flavorid", params.get("sort_dir") or "asc"
    if key not in _SORT:
        raise Invalid(
            f"Invalid input for query parameters sort_key. Value: {key}. '{key}' is not one of {sorted(_SORT)}"
        )
    if direction not in {"asc", "desc"}:
        raise Invalid(
            f"Invalid input for query parameters sort_dir. Value: {direction}. "
            f"'{direction}' is not one of ['asc', 'desc']"
        )
    return _SORT[key], direction == "desc"


def _manage(rule: str) -> Policy:
    return Policy(f"os_compute_api:os-flavor-manage:{rule}", Role.ADMIN)


def routes(services: Services, *, legacy: bool = False) -> list[BaseRoute]:
    """Return the routes, the most used first."""

    def at(path: str, method: str, handler: Handler, policy: Policy | None, since: int = 1) -> Route:
        endpoint = Endpoint(services, handler, policy=policy, since=since, legacy=legacy)
        return Route(path, endpoint, methods=[method])

    return [
        at("/flavors/detail", "GET", index_detail, None),
        at("/flavors/{id}", "GET", show, None),
        at("/flavors", "GET", index, None),
        at("/flavors", "POST", create, _manage("create")),
        at("/flavors/{id}", "PUT", update, _manage("update"), since=_DESCRIPTION),
        at("/flavors/{id}", "DELETE", delete, _manage("delete")),
        *flavor_extra_specs.routes(services, legacy=legacy),
        *flavor_access.routes(services, legacy=legacy),
    ]
