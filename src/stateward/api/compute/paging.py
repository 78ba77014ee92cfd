"""Pages of lists that are not servers, and query strings that a microversion reads strictly."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final
from urllib.parse import urlencode

import msgspec

from stateward.api.compute.call import Call
from stateward.api.wording import short
from stateward.domain.errors import Invalid

#: From here on, Nova refuses query parameters it does not know.
STRICT: Final = 75
#: Digits of a number that any database's integers can be compared with; more of them are a mistake.
NUMBER: Final = re.compile(r"[0-9]{1,18}", re.ASCII)


class Page(msgspec.Struct, frozen=True):
    """Which part of a list is asked for."""

    #: Entries at most.
    limit: int
    #: What the entry before the first is named by; None: from the beginning.
    marker: str | None


def natural(name: str, text: str) -> int:
    """Read a query parameter that is a number from 0 up.

    Raises:
        Invalid: it is none.
    """
    if not NUMBER.fullmatch(text):
        raise Invalid(
            f"Invalid input for query parameters {name}. Value: {short(text)}. "
            f"'{short(text)}' does not match '^[0-9]*$'"
        )
    return int(text)


def size(text: str, *, most: int) -> int:
    """Read a page's ``limit``, at most ``most``; 0 asks for as many as there may be.

    Raises:
        Invalid: it is not a number from 0 up.
    """
    return min(natural("limit", text) or most, most)


def page_of(call: Call) -> Page:
    """Read ``limit`` and ``marker``; a limit of 0, or none, is the largest.

    Raises:
        Invalid: the limit is not a number from 0 up.
    """
    params = call.request.query_params
    return Page(size(params.get("limit", "0"), most=call.services.max_limit), params.get("marker"))


def next_page(
    call: Call, page: Page, collection: str, found: Sequence[object], last: object
) -> dict[str, list[dict[str, str]]]:
    """Give the member that leads to the next page; nothing when a page is not full, so that none follows.

    Args:
        call: the request.
        page: what it asked for.
        collection: the path of the list, below the API's version.
        found: the entries of the page.
        last: what the last of them is named by.
    """
    if len(found) < page.limit:
        return {}
    params = [(name, value) for name, value in call.request.query_params.multi_items() if name != "marker"]
    href = f"{call.root}/{collection}?{urlencode([*params, ('marker', str(last))])}"
    name = collection.removesuffix("/detail").removeprefix("os-")
    return {f"{name}_links": [{"rel": "next", "href": href}]}


def bad_marker(error: LookupError) -> Invalid:
    """Say that nothing is named by a marker."""
    return Invalid(f"marker [{error.args[0]}] not found")


def only(call: Call, *names: str) -> None:
    """Refuse query parameters other than these, in the microversions that do.

    Raises:
        Invalid: there is another.
    """
    if call.minor < STRICT:
        return
    for name in call.request.query_params:
        if name not in names:
            raise Invalid(f"Additional properties are not allowed ('{name}' was unexpected)")


def whole_number(call: Call, name: str) -> int | None:
    """Read a filter that is a whole number; None when it is not given.

    Raises:
        Invalid: it is something else.
    """
    text: Any = call.request.query_params.get(name)
    if text is None:
        return None
    if not NUMBER.fullmatch(text.removeprefix("-")):
        raise Invalid(f"Invalid {name} filter [{text}]")
    return int(text)
