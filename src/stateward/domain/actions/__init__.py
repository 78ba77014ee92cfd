"""THE TABLE: everything that can be done to an instance, one row each (R2).

Nothing else names an action. The guarded UPDATE, the admission's explanation, the route, the policy, the agent's
steps, the docs (``docs/actions.md``), the state diagram and the derived tests are all made from these rows.
``docs/adding-an-action.md`` says how to add one.

Facts about Nova are of Nova 34 (Compute API 2.104).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from stateward.domain.actions.adoption import ADOPT, ADOPTION
from stateward.domain.actions.holds import ENDS_OFF, HOLDS, WAYS
from stateward.domain.actions.life import CREATE, LIFE
from stateward.domain.actions.moves import MOVES
from stateward.domain.actions.notes import NOTES
from stateward.domain.actions.power import POWER
from stateward.domain.actions.row import Action, Exempt, OnFailure, Policy, Role
from stateward.domain.actions.system import BOOTS, ITS_OWN, KEEPS_RECORD
from stateward.domain.states import TaskState

__all__ = [
    "ACTIONS",
    "ADOPT",
    "AFTER_BOOT",
    "BY_KEY",
    "CREATE",
    "ENDS_OFF",
    "WAYS",
    "Action",
    "Exempt",
    "OnFailure",
    "Policy",
    "Role",
    "alternatives",
    "body_type",
    "key",
    "of_wire",
    "pending_owners",
    "pick",
    "restores",
]

ACTIONS: Final[tuple[Action, ...]] = (*LIFE, *POWER, *MOVES, *ADOPTION, *HOLDS, *NOTES, *ITS_OWN, *BOOTS)


def restores() -> frozenset[str]:
    """Return the keys of the rows by which the arbiter brings guests back to the record."""
    return frozenset(
        key(row) for row in ACTIONS if row.guard is KEEPS_RECORD and row.is_operation and row.pending
    )


def key(action: Action) -> str:
    """Return the name that is unique to a row: the action's, with its variant or its label."""
    if action.label is not None:
        return f"{action.name}_{action.label}"
    if action.variant is None or action.variant[1] is False:
        return action.name
    value = action.variant[1]
    return f"{action.name}_{'force' if value is True else str(value).lower()}"


BY_KEY: Final[dict[str, Action]] = {key(action): action for action in ACTIONS}

#: By the key of the row that restores a guest, the key of the one that starts it again after its host has booted.
AFTER_BOOT: Final[dict[str, str]] = {key(row).replace("boot_", "restore_"): key(row) for row in BOOTS}


def of_wire(wire: str) -> tuple[Action, ...]:
    """Return the rows a request's body key can mean; empty when there is no such action."""
    return tuple(action for action in ACTIONS if action.wire == wire)


def pick(rows: tuple[Action, ...], body: object) -> tuple[Action, ...]:
    """Choose among the rows of one wire name by the decoded body.

    Several are left where what is done depends on the instance's state; their states do not overlap, so at most
    one of them is admitted.
    """
    found = tuple(
        row for row in rows if row.variant is None or getattr(body, row.variant[0], False) == row.variant[1]
    )
    if not found:
        msg = f"no row of {rows[0].wire} matches {body!r}"
        raise LookupError(msg)
    return found


def alternatives(name: str) -> tuple[Action, ...]:
    """Return the rows of a name that one request can mean: the one named, and its labels."""
    rows = [action for action in ACTIONS if action.name == name and action.variant is None]
    return tuple(row for row in rows if row.wire == rows[0].wire)


def body_type(action: Action, minor: int) -> Any:
    """Return the type a body must have at a microversion's minor number."""
    return [kind for since, kind in action.body if since <= minor][-1]


def pending_owners() -> Iterator[tuple[TaskState, str]]:
    """Yield each task state with the rows that set it, for the docs and the totality test."""
    for action in ACTIONS:
        if action.pending is not None:
            yield action.pending, key(action)
