"""Break-glass: an admin's leave to pass a lock that binds admins, for one operation or for a while (R6)."""

from __future__ import annotations

from typing import Any

import msgspec
import sqlalchemy as sa

from stateward.domain.locks import Lock
from stateward.store.tables import OVERRIDES

_COLUMNS = OVERRIDES.c


class Override(msgspec.Struct, frozen=True, kw_only=True):
    """One leave. Times are seconds since the epoch."""

    id: str
    instance_id: str
    lock_id: str
    #: Whose it is: nobody else can use it.
    user_id: str
    reason: str
    asked_at: float
    #: None: until its operations are used up.
    expires_at: float | None
    #: Operations it is still good for; None: as many as come before it expires.
    left: int | None
    needs_approval: bool
    approved_by: str | None = None
    approved_at: float | None = None

    def good(self, now: float) -> bool:
        """Whether it lets its admin pass at a time."""
        return (
            (not self.needs_approval or self.approved_at is not None)
            and (self.expires_at is None or now < self.expires_at)
            and (self.left is None or self.left > 0)
        )


def _override_of(row: sa.Row[Any]) -> Override:
    return Override(**{name: getattr(row, name) for name in Override.__struct_fields__})


def insert(connection: sa.Connection, override: Override) -> None:
    """Keep a new one."""
    connection.execute(sa.insert(OVERRIDES).values(msgspec.structs.asdict(override)))


def get(connection: sa.Connection, override_id: str) -> Override | None:
    """Return one; None when there is none of this id."""
    row = connection.execute(sa.select(OVERRIDES).where(_COLUMNS.id == override_id)).one_or_none()
    return None if row is None else _override_of(row)


def of_instance(connection: sa.Connection, instance_id: str) -> list[Override]:
    """Return an instance's, oldest first."""
    statement = sa.select(OVERRIDES).where(_COLUMNS.instance_id == instance_id).order_by(_COLUMNS.asked_at)
    return [_override_of(row) for row in connection.execute(statement)]


def approve(connection: sa.Connection, override_id: str, user_id: str, now: float) -> bool:
    """Have a second admin agree; False when it needs none, has one, is over, or the second is the first."""
    statement = (
        sa.update(OVERRIDES)
        .where(
            _COLUMNS.id == override_id,
            _COLUMNS.needs_approval,
            _COLUMNS.approved_at.is_(None),
            _COLUMNS.user_id != user_id,
            sa.or_(_COLUMNS.expires_at.is_(None), _COLUMNS.expires_at > now),
        )
        .values(approved_by=user_id, approved_at=now)
    )
    return connection.execute(statement).rowcount == 1


def take(connection: sa.Connection, lock: Lock, instance_id: str, user_id: str, now: float) -> str | None:
    """Use an admin's leave to pass a lock once, and return its id; None when there is none that is good.

    One that is counted is counted down by the same statement that finds it: it is never used twice.
    """
    good = (
        sa.select(_COLUMNS.id)
        .where(
            _COLUMNS.instance_id == instance_id,
            _COLUMNS.lock_id == lock.id,
            _COLUMNS.user_id == user_id,
            sa.or_(sa.not_(_COLUMNS.needs_approval), _COLUMNS.approved_at.is_not(None)),
            sa.or_(_COLUMNS.expires_at.is_(None), _COLUMNS.expires_at > now),
            sa.or_(_COLUMNS.left.is_(None), _COLUMNS.left > 0),
        )
        # One for a while first: it is not used up.
        .order_by(_COLUMNS.left.is_not(None), _COLUMNS.asked_at)
        .limit(1)
        .scalar_subquery()
    )
    statement = (
        sa.update(OVERRIDES)
        .where(_COLUMNS.id == good, sa.or_(_COLUMNS.left.is_(None), _COLUMNS.left > 0))
        .values(left=_COLUMNS.left - 1)
        .returning(_COLUMNS.id)
    )
    found: str | None = connection.execute(statement).scalar()
    return found
