"""Breaking the glass: an admin passes a lock that binds admins, by naming it and saying why (R6).

The leave itself is used by the admission, in the transaction that it admits something in. Here it is asked for, and
where the operator wants that, agreed to by a second admin. All of it is recorded.
"""

from __future__ import annotations

import uuid
from typing import Any, Self

import sqlalchemy as sa
import structlog

from stateward.domain.errors import Conflict, Forbidden, Invalid, NotFound, Refusal, Refused
from stateward.domain.locks import BINDS
from stateward.domain.records import Actor
from stateward.operations import stacking
from stateward.operations.admission import Admission
from stateward.operations.refusals import recorded
from stateward.store import instances, operations, overrides
from stateward.store.engine import Database
from stateward.store.overrides import Override

log = structlog.get_logger()


class Overriding:
    """Gives leave to pass locks; ``second_admin``: only when another admin agrees."""

    def __init__(self, admission: Admission, *, second_admin: bool) -> None:
        """Use an admission's database and clock."""
        self._admission = admission
        self._second_admin = second_admin

    def on(self, database: Database) -> Self:
        """Return the same on another database: one that adds to what each transaction does."""
        return type(self)(self._admission.on(database), second_admin=self._second_admin)

    async def ask(
        self,
        instance_id: str,
        lock_id: str,
        actor: Actor,
        *,
        reason: str,
        uses: int | None = None,
        seconds: float | None = None,
    ) -> Override:
        """Have leave to pass a lock, for so many operations (one, when nothing is said) or for so many seconds.

        Args:
            instance_id: which instance.
            lock_id: the lock that is passed; others hold on.
            actor: the admin; nobody else can use it.
            reason: why, for the audit trail.
            uses: operations it is good for, from 1.
            seconds: how long it is good for.

        Raises:
            Conflict: the lock does not bind admins, so there is nothing to pass.
            Invalid: both a number of operations and a time are given, or one that is not above 0.
            NotFound: no such lock holds for the instance.
            Refused: there is no such instance.
        """
        if uses is not None and seconds is not None:
            raise Invalid("Say for how many operations, or for how many seconds; not both.")
        if (uses is not None and uses < 1) or (seconds is not None and seconds <= 0):
            raise Invalid("The number of operations, or of seconds, must be above 0.")

        def work(connection: sa.Connection) -> Override:
            now = self._admission.clock.now()
            held = instances.hold(connection, instance_id)
            if held is None:
                raise Refused(Refusal.NOT_FOUND, instance_id=instance_id)
            stack = stacking.stack_of(connection, held)
            lock = next((each for each in stack if each.id == lock_id), None)
            if lock is None:
                raise NotFound(f"Instance {instance_id} has no lock {lock_id}; it may have been released.")
            if actor.kind not in BINDS[lock.kind]:
                raise Conflict(f"Lock {lock_id} does not bind administrators; there is nothing to override.")
            override = Override(
                id=str(uuid.uuid4()),
                instance_id=instance_id,
                lock_id=lock_id,
                user_id=actor.user_id,
                reason=reason,
                asked_at=now,
                expires_at=None if seconds is None else now + seconds,
                left=(uses or 1) if seconds is None else None,
                needs_approval=self._second_admin,
            )
            overrides.insert(connection, override)
            self._record(connection, now, "override_asked", actor, override)
            return override

        return _announced("an administrator may pass a hold", await self._admission.database.write(work))

    async def approve(self, override_id: str, actor: Actor) -> Override:
        """Agree, as the second admin, to what another one asked for.

        Raises:
            Conflict: it needs nobody's agreement, has it, or is over.
            Forbidden: who asked cannot agree too.
            NotFound: there is no such override.
        """

        def work(connection: sa.Connection) -> Override:
            now = self._admission.clock.now()
            if not overrides.approve(connection, override_id, actor.user_id, now):
                found = overrides.get(connection, override_id)
                if found is None:
                    raise NotFound(f"There is no override {override_id}.")
                if found.needs_approval and found.user_id == actor.user_id:
                    with recorded(connection, "approve_override", found.instance_id, actor, now):
                        raise Forbidden("stateward:overrides:approve:own")
                raise Conflict(f"Override {override_id} cannot be approved: {_why(found, now)}.")
            approved = overrides.get(connection, override_id)
            if approved is None:
                msg = f"override {override_id} vanished inside the transaction that approved it"
                raise RuntimeError(msg)
            self._record(connection, now, "override_approved", actor, approved)
            return approved

        return _announced("a second administrator agreed", await self._admission.database.write(work))

    def _record(
        self, connection: sa.Connection, now: float, event: str, actor: Actor, override: Override
    ) -> None:
        detail: dict[str, Any] = {
            "override": override.id,
            "lock": override.lock_id,
            "reason": override.reason,
            "operations": override.left,
            "expires_at": override.expires_at,
        }
        operations.record(
            connection,
            at=now,
            event=event,
            actor=actor,
            instance_id=override.instance_id,
            detail=detail,
        )


def _announced(what: str, override: Override) -> Override:
    """Tell the operator's log, once it is durable."""
    log.warning(
        what,
        override=override.id,
        instance=override.instance_id,
        lock=override.lock_id,
        user=override.user_id,
        reason=override.reason,
        approved_by=override.approved_by,
        awaits_approval=override.needs_approval and override.approved_at is None,
    )
    return override


def _why(override: Override, now: float) -> str:
    if not override.needs_approval:
        return "it needs no second administrator"
    if override.approved_at is not None:
        return "a second administrator has agreed already"
    return (
        "its time is over" if override.expires_at is not None and override.expires_at <= now else "it changed"
    )
