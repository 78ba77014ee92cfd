"""A body that each action of the Compute API takes, so that tests can be derived from the table of actions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, get_args

import msgspec

from stateward.domain.actions import ACTIONS, Action

#: Every key that the body of an action can have.
WIRES: Final = sorted({row.wire for row in ACTIONS if row.wire is not None})

_OPTIONS: Final[dict[str, Any]] = {
    "changePassword": {"adminPass": "secret"},
    "createBackup": {"name": "b", "backup_type": "daily", "rotation": 1},
    "createImage": {"name": "i"},
    "evacuate": {},
    "os-getSPICEConsole": {"type": "spice-html5"},
    "os-getSerialConsole": {"type": "serial"},
    "os-getVNCConsole": {"type": "novnc"},
    "os-migrateLive": {"host": None, "block_migration": "auto"},
    "os-resetState": {"state": "active"},
}


def options(row: Action, *, image: str, flavor: str) -> Any:
    """Return options that pick this row; ``image`` and ``flavor`` are what a row that needs one gets."""
    assert row.wire is not None
    if row.variant is not None:
        name, value = row.variant
        return {name: value}
    named = {"rebuild": {"imageRef": image}, "resize": {"flavorRef": flavor}}
    return named.get(row.wire, _OPTIONS.get(row.wire))


def version(row: Action) -> int:
    """Return the minor number of a microversion that has this row: the last."""
    return 104 if row.until is None else row.until


def accepted(name: str) -> int:
    """Return the status with which Nova 34 answers that it has begun what rows of a name, or a wire's word, do."""
    return {"rescue": 200, "confirmResize": 204, "delete": 204, "evacuate": 200}.get(name, 202)


def members() -> list[str]:
    """Return the name of every member that the body of some action has."""
    return sorted({name for row in ACTIONS for _, kind in row.body for name in _members_of(kind)})


def _members_of(kind: Any) -> Iterator[str]:
    for part in (kind, *get_args(kind)):
        if isinstance(part, type) and issubclass(part, msgspec.Struct):
            yield from (field.encode_name for field in msgspec.structs.fields(part))
