"""What becomes of a host's life, written with what follows from it in the same transaction."""

from __future__ import annotations

import uuid

import sqlalchemy as sa

from stateward.domain.evacuation import PlanKind
from stateward.domain.hosts import Condition, Event, Frozen
from stateward.operations.immediate import system_actor
from stateward.store import host_plans, hosts, operations, strays


def heard_again(connection: sa.Connection, name: str, says: str, now: float) -> None:
    """Take a sign of life of a host: one that was only late is up, one that was declared dead has returned.

    What has returned is not used, and not judged, before it is rid of what was made anew elsewhere; nor is one that
    fell silent while it was not rid of that. Its evacuation is over.
    """
    became = become(connection, name, Event.HEARD, says, now)
    if became is Condition.UP and strays.on(connection, name):
        became = become(connection, name, Event.UNCLEAN, _UNCLEAN, now)
    if became is Condition.UP:
        hosts.thaw(connection, name, Frozen.SILENT)
    elif became is not None:
        hosts.freeze(connection, name, Frozen.SILENT, says, now)
        host_plans.cancel(connection, name, PlanKind.EVACUATE, now, approved=True)


def become(
    connection: sa.Connection,
    name: str,
    event: Event,
    says: str,
    now: float,
    *,
    seq: int | None = None,
    since: float | None = None,
) -> Condition | None:
    """Have an event change a host's condition, and record it; see ``store.hosts.become``."""
    became = hosts.become(connection, name, event, says, now, seq=seq, since=since)
    if became is not None:
        operations.record(
            connection,
            at=now,
            event="host",
            actor=system_actor(f"req-{uuid.uuid4()}"),
            instance_id=None,
            action=became.value,
            detail={"host": name, "says": says},
        )
    return became


_UNCLEAN = "Something is left on it of instances that were made anew elsewhere."
