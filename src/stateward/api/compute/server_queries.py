"""The query strings of ``GET /servers``: filters, sorting and paging, as Nova reads them."""

from __future__ import annotations

import re
from typing import Any, Final

from stateward.api.compute.call import Call
from stateward.api.compute.paging import only, size
from stateward.api.faults import ApiFault
from stateward.api.http import seconds_of_iso
from stateward.api.wording import short
from stateward.domain.errors import Forbidden, Invalid
from stateward.domain.states import TaskState, VmState, states_of_status
from stateward.store.instances import Query

#: What the time of a regular expression depends on: it grows with the name's length to the power of its repeats.
_LONGEST_PATTERN, _MOST_REPEATS = 255, 3
#: An escaped character, or a set of characters with what is in it.
_ESCAPED: Final = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]", re.DOTALL)
_BACK_REFERENCE: Final = re.compile(r"\\[1-9]")
_REPEATED_GROUP: Final = re.compile(r"\)[*+?{]")
_REPEAT: Final = re.compile(r"[*+{]")
TRUE: Final = frozenset({"1", "on", "t", "true", "y", "yes"})
FALSE: Final = frozenset({"0", "f", "false", "n", "no", "off"})
_LOCKED, _CHANGES_BEFORE, _TAGS, _MEMBER_FILTERS, _HOSTNAME, _STATUS = 73, 66, 26, 83, 90, 38

#: Sort keys of Nova's that a column stands behind.
_SORT: Final = {
    "created_at": "created_at",
    "updated_at": "updated_at",
    "launched_at": "launched_at",
    "terminated_at": "terminated_at",
    "uuid": "id",
    "display_name": "name",
    "display_description": "description",
    "hostname": "hostname",
    "host": "host",
    "node": "host",
    "vm_state": "vm_state",
    "task_state": "task_state",
    "project_id": "project_id",
    "user_id": "user_id",
    "key_name": "key_name",
    "availability_zone": "zone",
    "locked_by": "locked_by",
    "locked": "locked_by",
}
#: Filters any caller may use, by the column they narrow.
_PLAIN: Final = {
    "name": "name",
    "image": "image_id",
    "flavor": "flavor_id",
    "reservation_id": "reservation_id",
}
#: Filters for admins; for members from 2.83 where Nova opened them, else passed over without a word, as in Nova.
_ADMINS: Final = {"host": "host", "node": "host", "locked_by": "locked_by"}
_OPENED: Final = {"availability_zone": "zone", "key_name": "key_name", "user_id": "user_id"}
#: What Nova also knows and nothing here is told apart by: passed over. From 2.75 other names are refused.
_PASSED_OVER: Final = (
    *("accessIPv4", "accessIPv6", "access_ip_v4", "access_ip_v6", "auto_disk_config", "config_drive"),
    *("created_at", "description", "display_description", "display_name", "image_ref", "instance_type_id"),
    *(
        "kernel_id",
        "launch_index",
        "launched_at",
        "power_state",
        "progress",
        "ramdisk_id",
        "root_device_name",
    ),
    *("soft_deleted", "terminated_at", "updated_at"),
)
#: What an address of a server begins with.
_ADDRESSES: Final = ("ip", "ip6")


def boolean(text: str) -> bool:
    """Read a truth value as Nova does.

    Raises:
        Invalid: it is none of the words.
    """
    word = text.strip().lower()
    if word in TRUE:
        return True
    if word in FALSE:
        return False
    words = ", ".join(f"'{each}'" for each in sorted(TRUE | FALSE))
    raise Invalid(f"Unrecognized value '{text}', acceptable values are: {words}")


def moment(name: str, text: str) -> float:
    """Read a time of ISO 8601 as seconds since the epoch; one without a zone is UTC.

    Raises:
        Invalid: it is not one.
    """
    try:
        return seconds_of_iso(text)
    except ValueError:
        raise Invalid(
            f"Invalid input for query parameters {name}. Value: {text}. '{text}' is not a 'date-time'"
        ) from None


def query_of(call: Call) -> Query:
    """Read a request's filters, sorting and paging.

    Raises:
        Invalid: one of them cannot be understood.
        Forbidden: one of them is for admins.
    """
    only(call, *_KNOWN)
    params = call.request.query_params
    admin = call.token.is_admin
    found: dict[str, Any] = {
        "limit": size(params.get("limit", "0"), most=call.services.max_limit),
        "marker": params.get("marker"),
        "sort": _sort(call),
        "project_id": _project(call),
    }
    found |= {field: params[name] for name, field in _PLAIN.items() if name in params}
    if admin:
        found |= {field: params[name] for name, field in _ADMINS.items() if name in params}
    if admin or call.minor >= _MEMBER_FILTERS:
        found |= {field: params[name] for name, field in _OPENED.items() if name in params}
    if "hostname" in params and (admin or call.minor >= _HOSTNAME):
        found["hostname"] = params["hostname"]
    if "uuid" in params:
        found["ids"] = frozenset(params.getlist("uuid"))
    asked = [params[name] for name in _ADDRESSES if params.get(name)]
    if asked:
        # Nova's is a pattern, found at the beginning; of patterns, those that people write for an address are known.
        found["address"] = asked[0].removeprefix("^").replace("\\.", ".")
    if isinstance(found.get("name"), str):
        _check_pattern(str(found["name"]))
    found |= _states(call)
    found |= _times(call)
    if call.minor >= _LOCKED and "locked" in params:
        found["locked"] = boolean(params.getlist("locked")[-1])
    if call.minor >= _TAGS:
        found |= {
            field: frozenset(params[name].split(",")) for name, field in _TAG_FIELDS.items() if name in params
        }
    return Query(**found)


_TAG_FIELDS: Final = {
    "tags": "tags_all",
    "tags-any": "tags_any",
    "not-tags": "not_tags_all",
    "not-tags-any": "not_tags_any",
}
_KNOWN: Final = (
    *(*_PLAIN, *_ADMINS, *_OPENED, *_PASSED_OVER, *_ADDRESSES, *_TAG_FIELDS),
    *("all_tenants", "changes-before", "changes-since", "deleted", "hostname", "limit", "locked", "marker"),
    *("project_id", "sort_dir", "sort_key", "status", "task_state", "tenant_id", "uuid", "vm_state"),
)


def _project(call: Call) -> str | None:
    """Return the one project to list, None for all; others than one's own are for admins."""
    params = call.request.query_params
    everywhere = "all_tenants" in params and (params["all_tenants"] == "" or boolean(params["all_tenants"]))
    if not everywhere:
        return call.project_id
    if not call.token.is_admin:
        raise Forbidden("os_compute_api:servers:index:get_all_tenants")
    return params.get("project_id") or params.get("tenant_id")


def _check_pattern(text: str) -> None:
    """Refuse what is no regular expression, or one that a long name could keep a database busy with for ever."""
    try:
        re.compile(text)
    except (re.error, OverflowError, RecursionError):
        raise bad_pattern(text) from None
    plain = _ESCAPED.sub("x", text)
    if (
        len(text) > _LONGEST_PATTERN
        or "(?" in plain
        or _BACK_REFERENCE.search(text)
        or _REPEATED_GROUP.search(plain)
        or len(_REPEAT.findall(plain)) > _MOST_REPEATS
    ):
        raise Invalid(
            f"Invalid filter: '{short(text)}' is too complex. A name filter has no repeated or special groups, no "
            f"references back, at most {_MOST_REPEATS} repeats and {_LONGEST_PATTERN} characters."
        )


def bad_pattern(text: str) -> Invalid:
    """Say that a filter is none."""
    return Invalid(f"Invalid filter: '{short(text)}' is not a regular expression")


def _states(call: Call) -> dict[str, Any]:
    params = call.request.query_params
    found = _status(call) if "status" in params else {}
    if call.token.is_admin or call.minor >= _MEMBER_FILTERS:
        if "task_state" in params:
            found["task_states"] = frozenset(
                TaskState(each) for each in params.getlist("task_state") if each in set(TaskState)
            )
        if "vm_state" in params and "status" not in params:
            found["vm_states"] = frozenset(
                VmState(each) for each in params.getlist("vm_state") if each in set(VmState)
            )
    if "deleted" in params and call.token.is_admin:
        found["deleted"] = boolean(params["deleted"])
    return found


def _status(call: Call) -> dict[str, Any]:
    words = call.request.query_params.getlist("status")
    vm_states: set[VmState] = set()
    task_states: set[TaskState] = set()
    for word in words:
        selected = states_of_status(word)
        if selected is not None:
            vm_states |= selected[0]
            task_states |= selected[1]
    if not vm_states and call.minor >= _STATUS:
        raise Invalid("Invalid status value")
    found: dict[str, Any] = {"vm_states": frozenset(vm_states)}
    if VmState.DELETED in vm_states:
        if not call.token.is_admin:
            raise ApiFault(403, "Only administrators may list deleted instances")
        found["deleted"] = None
    elif VmState.SOFT_DELETED in vm_states:
        # Nova shows these to admins only; who deleted a server must be able to find it to restore it.
        found["deleted"] = None
    if task_states and len(words) == 1:
        found["task_states"] = frozenset(task_states)
    return found


def _times(call: Call) -> dict[str, Any]:
    params = call.request.query_params
    found: dict[str, Any] = {}
    if "changes-since" in params:
        found["changed_since"] = moment("changes-since", params["changes-since"])
        # What was deleted since is a change too (Nova).
        found["deleted"] = None
    if call.minor >= _CHANGES_BEFORE and "changes-before" in params:
        found["changed_before"] = moment("changes-before", params["changes-before"])
        found["deleted"] = None
    return found


def _sort(call: Call) -> tuple[tuple[str, bool], ...]:
    params = call.request.query_params
    keys = params.getlist("sort_key")
    directions = params.getlist("sort_dir")
    pairs: list[tuple[str, bool]] = []
    for number, name in enumerate(keys):
        if name == "locked" and call.minor < _LOCKED:
            continue
        column = _SORT.get(name)
        if column is None:
            raise Invalid(
                f"Invalid input for query parameters sort_key. Value: {name}. '{name}' is not a sort key"
            )
        direction = directions[number] if number < len(directions) else "desc"
        if direction not in {"asc", "desc"}:
            raise Invalid(
                f"Invalid input for query parameters sort_dir. Value: {direction}. "
                f"'{direction}' does not match '^(?i)(asc|desc)$'"
            )
        pairs.append((column, direction == "desc"))
    return tuple(pairs) or (("created_at", True),)
