"""An instance's stack of locks, changed inside the transaction that holds its row.

The rows of ``locks`` are what is true; the columns of ``instances`` are their union, which the WHERE clause of every
guarded UPDATE tests. Both change together or not at all.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
import sqlalchemy as sa

from stateward.domain.errors import Conflict, Invalid
from stateward.domain.locks import ALL_CLASSES, Lock, LockKind, OperationClass, summarise
from stateward.domain.records import Instance
from stateward.store import instances, locks


class LockWish(msgspec.Struct, frozen=True, kw_only=True):
    """A lock that somebody wants placed; see ``Lock``."""

    kind: LockKind
    holder: str
    name: str = ""
    reason: str | None = None
    ticket: str | None = None
    blocks: OperationClass = ALL_CLASSES
    #: Seconds since the epoch.
    expires_at: float | None = None
    sealed: bool = False
    off: bool = False

    def made(
        self,
        now: float,
        *,
        instance_id: str | None = None,
        project_id: str | None = None,
        tag: str | None = None,
    ) -> Lock:
        """Make the lock, on an instance or on a project.

        Raises:
            Invalid: its parts do not go together.
        """
        if self.expires_at is not None and self.expires_at <= now:
            raise Invalid("The lock would expire in the past; give a later time, or none.")
        if self.sealed and self.kind is not LockKind.OWNER:
            raise Invalid(
                "Only an owner's lock can be sealed; the provider's is never released by the owner."
            )
        if self.kind is LockKind.HOLD and (self.blocks is not ALL_CLASSES or self.expires_at is not None):
            raise Invalid(
                "A hold blocks all operations until it is released; it has no 'blocks' and no expiry."
            )
        if not self.name and (self.blocks != ALL_CLASSES or self.expires_at is not None):
            # It takes the place of the one before, which must not lose by it.
            raise Invalid("A lock that expires, or does not block all operations, needs a name.")
        return Lock(
            id=str(uuid.uuid4()),
            instance_id=instance_id,
            project_id=project_id,
            tag=tag,
            kind=self.kind,
            name=self.name,
            holder=self.holder,
            reason=self.reason,
            ticket=self.ticket,
            blocks=self.blocks,
            placed_at=now,
            expires_at=self.expires_at,
            sealed=self.sealed,
            off=self.off,
        )


def stack_of(connection: sa.Connection, instance: Instance) -> list[Lock]:
    """Return the locks that hold for an instance, those it inherits too, oldest first."""
    return locks.of_instance(connection, instance.id, instance.project_id, instance.tags)


def place_in(connection: sa.Connection, held: Instance, wish: LockWish, now: float) -> tuple[Instance, Lock]:
    """Place a lock on an instance whose row this transaction holds.

    The unnamed lock of a kind takes the place of the one that is there: locking again without a reason clears the
    old reason, since the new lock says what holds now. A seal stays.

    Raises:
        Conflict: its holder has one of this kind and name there.
        Invalid: the wish's parts do not go together.
    """
    lock = wish.made(now, instance_id=held.id)
    if not lock.name and lock.kind is not LockKind.HOLD:
        for present in stack_of(connection, held):
            if present.kind is lock.kind and not present.name and not present.inherited:
                locks.release(connection, present.id)
                lock = msgspec.structs.replace(lock, sealed=lock.sealed or present.sealed)
    if not locks.place(connection, lock):
        raise _there_already(lock)
    return restack(connection, held), lock


def _there_already(lock: Lock) -> Conflict:
    return Conflict(
        f"You have a lock named {lock.name!r} on {lock.scope} already: release it, or name this one otherwise."
    )


def restack(connection: sa.Connection, held: Instance) -> Instance:
    """Write the union of the locks that hold now into the row that this transaction holds."""
    return instances.change_held(connection, held, columns_of(stack_of(connection, held)))


def columns_of(stack: Iterable[Lock]) -> Mapping[str, Any]:
    """Fold locks into the columns that the guarded UPDATEs test."""
    summary = summarise(stack)
    return {
        "owner_blocks": int(summary.owner_blocks),
        "admin_blocks": int(summary.admin_blocks),
        "hold_blocks": int(summary.hold_blocks),
        "kept_off": summary.kept_off,
        "locked_by": summary.locked_by,
        "locked_reason": summary.locked_reason,
    }


def place_on_project(connection: sa.Connection, lock: Lock, now: float) -> list[str]:
    """Place a lock that a project's instances inherit, those made later too; return the ids of those that do now.

    Raises:
        Conflict: its holder has one of this kind and name there.
    """
    project_id = _project_of(lock)
    locks.hold_project(connection, project_id, alone=True)
    if not locks.place(connection, lock):
        raise _there_already(lock)
    return _restack_project(connection, lock, project_id, now)


def release_from_project(
    connection: sa.Connection, lock: Lock, now: float, *, expired: bool = False
) -> list[str] | None:
    """Take away a lock that a project's instances inherit; return the ids of those that did.

    None: it is gone, or has not ``expired`` after all.
    """
    project_id = _project_of(lock)
    locks.hold_project(connection, project_id, alone=True)
    gone = locks.release_expired(connection, lock.id, now) if expired else locks.release(connection, lock.id)
    return _restack_project(connection, lock, project_id, now) if gone else None


def _project_of(lock: Lock) -> str:
    if lock.project_id is None:
        msg = f"lock {lock.id} is on one instance, not on a project"
        raise ValueError(msg)
    return lock.project_id


def _restack_project(connection: sa.Connection, lock: Lock, project_id: str, now: float) -> list[str]:
    """Write the unions anew of all instances that inherit a lock, or did until now."""
    # The UPDATE holds their rows, so that no other lock comes between the reading of their stacks and the writing.
    tags = instances.touch_project(connection, project_id, lock.tag, now)
    own = locks.of_several(connection, list(tags))
    inherited = locks.of_project(connection, project_id)
    stacks = locks.stacks(own, inherited, tags, project_id)
    instances.write_locks(connection, {each: columns_of(stack) for each, stack in stacks.items()})
    return list(tags)


def told(lock: Lock) -> dict[str, Any]:
    """Say of a lock what the audit trail keeps."""
    return {
        "id": lock.id,
        "scope": lock.scope,
        "kind": lock.kind.value,
        "name": lock.name,
        "holder": lock.holder,
        "reason": lock.reason,
        "ticket": lock.ticket,
        "blocks": int(lock.blocks),
        "expires_at": lock.expires_at,
        "sealed": lock.sealed,
        "off": lock.off,
    }
