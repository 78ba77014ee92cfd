"""What a list of images is asked for in its address: filters, order and page."""

from __future__ import annotations

import csv
from typing import Any, Final
from urllib.parse import urlencode

from starlette.datastructures import QueryParams

from stateward.api.http import whole_number, yes_or_no
from stateward.domain.errors import Invalid
from stateward.store.images import SORTABLE, Direction, Image, Query

_DEFAULT_LIMIT: Final = 25
_MOST: Final = 1000
#: More bytes than any disk has, and fewer than the column holds.
_MOST_BYTES: Final = 2**62
_EQUAL: Final = ("id", "name", "owner", "status", "visibility", "disk_format", "container_format")
#: Of these, several values can be asked for at once: ``in:a,b``.
_SEVERAL: Final = ("id", "name", "status", "disk_format", "container_format")
_YES_OR_NO: Final = {"protected": "protected", "os_hidden": "hidden"}
_MEMBER_STATUS: Final = ("accepted", "pending", "rejected", "all")
#: Have a meaning of their own; whatever else is in the address is an additional property.
_KNOWN: Final = frozenset(
    {
        *_EQUAL,
        *_YES_OR_NO,
        "limit",
        "marker",
        "sort",
        "sort_key",
        "sort_dir",
        "tag",
        "size_min",
        "size_max",
        "member_status",
    }
)


def read_query(params: QueryParams, after: Image | None) -> Query:
    """Read an address's query.

    Args:
        params: it.
        after: the image that the parameter ``marker`` names.

    Raises:
        Invalid: something in it has no meaning.
    """
    asked = {name: params[name] for name in _EQUAL if name in params}
    among = {
        name: _several(text) for name, text in asked.items() if name in _SEVERAL and text.startswith("in:")
    }
    equal: dict[str, Any] = {name: value for name, value in asked.items() if name not in among}
    if equal.get("visibility") == "all":
        del equal["visibility"]
    equal["hidden"] = False
    for name, column in _YES_OR_NO.items():
        if name in params:
            equal[column] = yes_or_no(params[name], name)
    member_status = params.get("member_status", "accepted")
    if member_status not in _MEMBER_STATUS:
        raise Invalid(f"Invalid input for query parameter member_status: {member_status!r}.")
    return Query(
        equal=equal,
        among=among,
        properties={name: value for name, value in params.multi_items() if name not in _KNOWN},
        tags=tuple(params.getlist("tag")),
        size_min=_bytes(params, "size_min"),
        size_max=_bytes(params, "size_max"),
        member_status=None if member_status == "all" else member_status,
        sort=_sort(params),
        after=after,
        limit=_limit(params),
    )


def next_page(params: QueryParams, images: list[Image], query: Query) -> str | None:
    """Return the address of the page after this one; None when this is the last."""
    if not images or len(images) < query.limit:
        return None
    rest = [(name, value) for name, value in params.multi_items() if name != "marker"]
    return f"/v2/images?{urlencode([*rest, ('marker', images[-1].id)])}"


def _several(text: str) -> frozenset[str]:
    """Return the values of ``in:a,b``; one in quotes may have commas in it."""
    (values,) = csv.reader([text.removeprefix("in:")]) if text != "in:" else ([],)
    return frozenset(values)


def _limit(params: QueryParams) -> int:
    return whole_number(params["limit"], "limit", most=_MOST) if "limit" in params else _DEFAULT_LIMIT


def _bytes(params: QueryParams, name: str) -> int | None:
    return whole_number(params[name], name, most=_MOST_BYTES) if name in params else None


def _sort(params: QueryParams) -> tuple[tuple[str, Direction], ...]:
    """Return the keys asked for, and after them those that leave no two images equal."""
    if "sort" in params:
        asked = [tuple(part.partition(":")[::2]) for part in params["sort"].split(",")]
    else:
        keys, directions = params.getlist("sort_key"), params.getlist("sort_dir")
        # One direction is for all keys.
        directions = directions * len(keys) if len(directions) == 1 else directions
        if len(directions) not in {0, len(keys)}:
            raise Invalid("Number of sort dirs does not match the number of sort keys")
        asked = list(zip(keys, directions or [""] * len(keys), strict=True))
    sort: dict[str, Direction] = {}
    for key, word in asked:
        sort.setdefault(_sort_key(key), _direction(word))
    for key in ("created_at", "id"):
        sort.setdefault(key, "desc")
    return tuple(sort.items())


def _sort_key(key: str) -> str:
    if key not in SORTABLE:
        raise Invalid(f"Invalid sort key: {key}. Must be one of: {', '.join(sorted(SORTABLE))}.")
    return key


def _direction(word: str) -> Direction:
    match word:
        case "asc":
            return "asc"
        case "desc" | "":
            return "desc"
        case _:
            raise Invalid(f"Invalid sort direction: {word}. Must be asc or desc.")
