"""What is refused because of a lock is in the audit trail, although nothing else of it is kept."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import sqlalchemy as sa

from stateward.domain.errors import Forbidden, Kept, Refusal, Refused
from stateward.domain.locks import ActorKind
from stateward.domain.records import Actor
from stateward.store import operations


@contextmanager
def recorded(
    connection: sa.Connection, action: str, instance_id: str | None, actor: Actor, now: float
) -> Generator[None]:
    """Record a lock's refusal that goes through here: somebody was kept from something (B7).

    Not what the control plane itself was kept from: it asks again and again, every minute, and its log has it.
    """
    try:
        yield
    except (Refused, Forbidden, Kept) as error:
        by_lock = not isinstance(error, Refused) or error.refusal is Refusal.LOCKED
        if by_lock and actor.kind is not ActorKind.SYSTEM:
            operations.record(
                connection,
                at=now,
                event="refused",
                actor=actor,
                instance_id=instance_id,
                action=action,
                detail={"why": error.sentence if isinstance(error, Forbidden) else str(error)},
                lasting=True,
            )
        raise
