"""Scheduler hints: what the maker of a server asks of its place, beside the server in the body."""

from __future__ import annotations

import re
from typing import Any, Final, cast

import msgspec

from stateward.api.wording import short
from stateward.domain.errors import Invalid

#: The member's name, and the one that Nova still takes as well.
_NAMES: Final = ("os:scheduler_hints", "OS-SCH-HNT:scheduler_hints")
#: The name by which a request for servers asks for a lock on them, as a member of ``server`` or as a hint.
LOCK: Final = "stateward:lock"
_UUID: Final = re.compile(r"[0-9a-fA-F]{8}(?:-?[0-9a-fA-F]{4}){3}-?[0-9a-fA-F]{12}")
#: Servers that one hint may name.
_MOST: Final = 100


class Hints(msgspec.Struct, frozen=True, kw_only=True):
    """The hints that are heeded; any other may be given, as in Nova, and is shown but changes nothing."""

    group: str | None = None
    same_host: tuple[str, ...] = ()
    different_host: tuple[str, ...] = ()
    #: What a lock blocks that each server has from its first moment (``stateward:lock``), for clients that cannot say
    #: more of it.
    lock: tuple[str, ...] = ()
    #: All of them, as they were given; None: there were none.
    given: dict[str, Any] | None = None


def hints_of(body: dict[str, Any]) -> Hints:
    """Read the hints of a request for new servers.

    Raises:
        Invalid: they are no object, or a heeded one is not what it must be.
    """
    name = next((name for name in _NAMES if name in body), None)
    if name is None:
        return Hints()
    if not isinstance(body[name], dict):
        raise Invalid(
            f"Invalid input for field/attribute {name}. Value: {short(body[name])}. "
            f"{short(repr(body[name]))} is not of type 'object'"
        )
    # JSON's members have names, so an object is this.
    given = cast("dict[str, Any]", body[name])
    return Hints(
        group=_uuid("group", given["group"]) if "group" in given else None,
        same_host=_uuids("same_host", given.get("same_host", [])),
        different_host=_uuids("different_host", given.get("different_host", [])),
        lock=_words(given[LOCK]) if LOCK in given else (),
        given=given or None,
    )


def _words(value: object) -> tuple[str, ...]:
    """Read what a lock blocks: words, with commas between them."""
    if not isinstance(value, str):
        raise Invalid(f"Invalid input for field/attribute {LOCK}. Value: {short(value)}. It must be text.")
    return tuple(word.strip() for word in value.split(","))


def _uuids(name: str, value: object) -> tuple[str, ...]:
    """Read one id, or a list of them."""
    each = cast("list[object]", value) if isinstance(value, list) else [value]
    if len(each) > _MOST:
        raise Invalid(f"Invalid input for field/attribute {name}. It names more than {_MOST} servers.")
    return tuple(_uuid(name, one) for one in each)


def _uuid(name: str, value: object) -> str:
    if not isinstance(value, str) or not _UUID.fullmatch(value):
        raise Invalid(
            f"Invalid input for field/attribute {name}. Value: {short(value)}. "
            f"{short(repr(value))} is not a 'uuid'"
        )
    return value.lower()
