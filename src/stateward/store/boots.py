"""The plans of hosts' boots: whose turn is still to come, and how far the others are (R14)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec
import sqlalchemy as sa

from stateward.domain.boots import Turn, TurnState
from stateward.domain.records import Instance
from stateward.store.tables import BOOT_TURNS, INSTANCES

_COLUMNS = BOOT_TURNS.c
#: In these an instance is nobody else's to judge.
_AWAITS: Final = (TurnState.WAITING.value, TurnState.LEFT.value)
_OPEN: Final = (TurnState.WAITING.value, TurnState.STARTED.value)

#: Of the row of ``instances`` at hand: a plan counts for as long as nothing was admitted since.
AWAITS: Final = (
    sa.select(_COLUMNS.instance_id)
    .where(
        _COLUMNS.instance_id == INSTANCES.c.id,
        _COLUMNS.fence == INSTANCES.c.fence,
        _COLUMNS.state.in_(_AWAITS),
    )
    .correlate(INSTANCES)
    .exists()
)


def _turn_of(row: sa.Row[Any]) -> Turn:
    return msgspec.convert(row, Turn, from_attributes=True)


def turns(connection: sa.Connection, host: str, *, hold: bool = False) -> list[Turn]:
    """Return a host's plan; ``hold`` keeps whoever else would carry it out waiting until the transaction ends."""
    statement = sa.select(BOOT_TURNS).where(_COLUMNS.host == host).order_by(_COLUMNS.instance_id)
    return [_turn_of(row) for row in connection.execute(statement.with_for_update() if hold else statement)]


def open_on(connection: sa.Connection) -> list[str]:
    """Return the hosts whose plans are not at their end."""
    return list(
        connection.execute(
            sa.select(_COLUMNS.host).where(_COLUMNS.state.in_(_OPEN)).distinct().order_by(_COLUMNS.host)
        ).scalars()
    )


def awaited(connection: sa.Connection, instance: Instance) -> Turn | None:
    """Return the turn that an instance waits for, or by which it is left as it is; None: it is judged as any other."""
    row = connection.execute(
        sa.select(BOOT_TURNS).where(
            _COLUMNS.instance_id == instance.id,
            _COLUMNS.fence == instance.fence,
            _COLUMNS.state.in_(_AWAITS),
        )
    ).one_or_none()
    return None if row is None else _turn_of(row)


def begin(connection: sa.Connection, host: str, plan: Sequence[Turn]) -> None:
    """Put a plan in the place of whatever plan there was for the host."""
    connection.execute(sa.delete(BOOT_TURNS).where(_COLUMNS.host == host))
    for turn in plan:
        # From a host that it has left since.
        connection.execute(sa.delete(BOOT_TURNS).where(_COLUMNS.instance_id == turn.instance_id))
    if plan:
        connection.execute(sa.insert(BOOT_TURNS), [msgspec.to_builtins(turn) for turn in plan])


def change(connection: sa.Connection, turn: Turn, **changes: Any) -> Turn:
    """Write how far an instance is; the plan's rows are held."""
    connection.execute(
        sa.update(BOOT_TURNS)
        .where(_COLUMNS.instance_id == turn.instance_id, _COLUMNS.boot_id == turn.boot_id)
        .values(**changes)
    )
    return msgspec.structs.replace(turn, **changes)


def end(connection: sa.Connection, host: str) -> None:
    """Forget a plan, but for what it leaves as it is."""
    connection.execute(
        sa.delete(BOOT_TURNS).where(_COLUMNS.host == host, _COLUMNS.state != TurnState.LEFT.value)
    )
