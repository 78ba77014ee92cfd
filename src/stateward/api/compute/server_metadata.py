"""``/servers/{id}/metadata`` and ``/servers/{id}/tags``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import quote

from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from stateward.api.compute.call import Call, Endpoint, Handler, convert, empty, reply
from stateward.api.compute.server_actions import check
from stateward.api.compute.server_create import Metadata, Tag
from stateward.api.compute.servers_seen import find
from stateward.api.compute.services import Services
from stateward.domain.actions import BY_KEY, Action, Policy, Role
from stateward.domain.errors import Invalid, NotFound
from stateward.domain.records import Instance

_SHOW: Final = Policy("os_compute_api:server-metadata:show", Role.READER)
_TAGS_SHOW: Final = Policy("os_compute_api:os-server-tags:show", Role.READER)
_TAGS_SINCE: Final = 26
#: Items or tags of one server at most; Nova's defaults.
_MOST_ITEMS, _MOST_TAGS = 128, 50


async def _change(call: Call, action: Action, field: str, change: Callable[[Any], Any]) -> Any:
    """Change one column by a function of its value, and return what it is now."""
    await check(call, action, call.path["id"])

    def changed(instance: Instance) -> Mapping[str, Any]:
        return {field: change(getattr(instance, field))}

    done = await call.services.immediate.change(
        action, call.path["id"], call.actor, changed, project_id=call.visible_project
    )
    return getattr(done.admitted.instance, field)


async def metadata_list(call: Call) -> Response:
    """Show all items."""
    instance = await find(call, call.path["id"])
    return reply({"metadata": instance.metadata})


async def metadata_show(call: Call) -> Response:
    """Show one item."""
    instance = await find(call, call.path["id"])
    name = call.path["key"]
    if name not in instance.metadata:
        raise NotFound("Metadata item was not found")
    return reply({"meta": {name: instance.metadata[name]}})


async def metadata_add(call: Call) -> Response:
    """Add or change some items and leave the others."""
    items = await call.member("metadata", Metadata)
    now = await _change(call, BY_KEY["update_metadata"], "metadata", lambda old: _few(old | items))
    return reply({"metadata": now})


async def metadata_replace(call: Call) -> Response:
    """Put these items in the stead of all."""
    items = await call.member("metadata", Metadata)
    now = await _change(call, BY_KEY["update_metadata"], "metadata", lambda _old: _few(items))
    return reply({"metadata": now})


async def metadata_set(call: Call) -> Response:
    """Set one item."""
    items = await call.member("meta", Metadata)
    name = call.path["key"]
    if list(items) != [name]:
        raise Invalid("Request body and URI mismatch")
    await _change(call, BY_KEY["update_metadata"], "metadata", lambda old: _few(old | items))
    return reply({"meta": items})


async def metadata_delete(call: Call) -> Response:
    """Remove one item."""
    name = call.path["key"]

    def without(old: dict[str, str]) -> dict[str, str]:
        if name not in old:
            raise NotFound("Metadata item was not found")
        return {key: value for key, value in old.items() if key != name}

    await _change(call, BY_KEY["delete_metadata"], "metadata", without)
    return empty(204)


def _few(items: dict[str, str]) -> dict[str, str]:
    if len(items) > _MOST_ITEMS:
        raise Invalid(f"Maximum number of metadata items exceeds {_MOST_ITEMS}")
    return items


async def tags_list(call: Call) -> Response:
    """Show all tags."""
    instance = await find(call, call.path["id"])
    return reply({"tags": instance.tags})


async def tags_replace(call: Call) -> Response:
    """Put these tags in the stead of all."""
    tags = await call.member("tags", list[Tag])
    now = await _change(call, BY_KEY["update_tags"], "tags", lambda _old: _few_tags(tuple(sorted(set(tags)))))
    return reply({"tags": now})


async def tags_clear(call: Call) -> Response:
    """Remove all tags."""
    await _change(call, BY_KEY["update_tags"], "tags", lambda _old: ())
    return empty(204)


async def tag_show(call: Call) -> Response:
    """Answer 204 if the server has the tag."""
    instance = await find(call, call.path["id"])
    _has(instance.id, instance.tags, call.path["tag"])
    return empty(204)


async def tag_add(call: Call) -> Response:
    """Add a tag: 201 when it is new, 204 when it was there."""
    tag = convert(call.path["tag"], Tag, "tag")
    new: list[bool] = []

    def added(old: tuple[str, ...]) -> tuple[str, ...]:
        new.append(tag not in old)
        return _few_tags(tuple(sorted({*old, tag})))

    await _change(call, BY_KEY["update_tags"], "tags", added)
    location = f"{call.root}/servers/{call.path['id']}/tags/{quote(tag)}"
    return empty(201, {"location": location}) if new[-1] else empty(204)


async def tag_delete(call: Call) -> Response:
    """Remove a tag."""
    tag = call.path["tag"]

    def without(old: tuple[str, ...]) -> tuple[str, ...]:
        _has(call.path["id"], old, tag)
        return tuple(each for each in old if each != tag)

    await _change(call, BY_KEY["update_tags"], "tags", without)
    return empty(204)


def _has(instance_id: str, tags: tuple[str, ...], tag: str) -> None:
    if tag not in tags:
        raise NotFound(f"Server {instance_id} has no tag '{tag}'")


def _few_tags(tags: tuple[str, ...]) -> tuple[str, ...]:
    if len(tags) > _MOST_TAGS:
        raise Invalid(f"The number of tags exceeded the per-server limit {_MOST_TAGS}")
    return tags


def routes(services: Services, *, legacy: bool = False) -> list[BaseRoute]:
    """Return the routes."""

    def at(path: str, method: str, handler: Handler, policy: Policy | None = None, since: int = 1) -> Route:
        endpoint = Endpoint(services, handler, policy=policy, since=since, legacy=legacy)
        return Route(path, endpoint, methods=[method])

    return [
        at("/servers/{id}/metadata", "GET", metadata_list, _SHOW),
        at("/servers/{id}/metadata", "POST", metadata_add),
        at("/servers/{id}/metadata", "PUT", metadata_replace),
        at("/servers/{id}/metadata/{key}", "GET", metadata_show, _SHOW),
        at("/servers/{id}/metadata/{key}", "PUT", metadata_set),
        at("/servers/{id}/metadata/{key}", "DELETE", metadata_delete),
        at("/servers/{id}/tags", "GET", tags_list, _TAGS_SHOW, _TAGS_SINCE),
        at("/servers/{id}/tags", "PUT", tags_replace, None, _TAGS_SINCE),
        at("/servers/{id}/tags", "DELETE", tags_clear, None, _TAGS_SINCE),
        at("/servers/{id}/tags/{tag}", "GET", tag_show, _TAGS_SHOW, _TAGS_SINCE),
        at("/servers/{id}/tags/{tag}", "PUT", tag_add, None, _TAGS_SINCE),
        at("/servers/{id}/tags/{tag}", "DELETE", tag_delete, None, _TAGS_SINCE),
    ]
