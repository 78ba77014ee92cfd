"""Locks: which classes of operations they block, whom they bind, and what an instance's stack of them amounts to.

A lock is a row in the database, never a flag of the hypervisor (R1). An instance has any number of them; the
instance row carries their union per kind, so that one UPDATE's WHERE clause can test it (ADR 0002).
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import Final

import msgspec


class OperationClass(enum.IntFlag):
    """The classes of operations a lock can block; an action's ``guard`` names the classes it belongs to."""

    START = 1
    STOP = 2
    DELETE = 4
    CHANGE = 8


ALL_CLASSES: Final = (
    OperationClass.START | OperationClass.STOP | OperationClass.DELETE | OperationClass.CHANGE
)


class LockKind(enum.StrEnum):
    """Who placed a lock, which decides whom it binds."""

    OWNER = "owner"
    ADMIN = "admin"
    HOLD = "hold"


class ActorKind(enum.StrEnum):
    """Who is asking: a customer, the provider's staff, or the control plane itself."""

    MEMBER = "member"
    ADMIN = "admin"
    SYSTEM = "system"


#: Whom a lock of each kind binds. Admins pass owner and admin locks as in Nova 34 (recorded in the audit trail).
#: The control plane itself is bound by every lock (R1: reclaiming deleted instances, say); what it does to keep the
#: record true is exempt by its rows. A hold binds everybody (R6).
BINDS: Final[dict[LockKind, frozenset[ActorKind]]] = {
    LockKind.OWNER: frozenset({ActorKind.MEMBER, ActorKind.SYSTEM}),
    LockKind.ADMIN: frozenset({ActorKind.MEMBER, ActorKind.SYSTEM}),
    LockKind.HOLD: frozenset(ActorKind),
}

#: The kind shown as ``locked_by`` and ``locked_reason`` when several locks hold: the strongest.
_STRENGTH: Final = (LockKind.HOLD, LockKind.ADMIN, LockKind.OWNER)


class Lock(msgspec.Struct, frozen=True, kw_only=True):
    """One lock on one instance."""

    id: str
    instance_id: str
    kind: LockKind
    #: The user who placed it.
    holder: str
    #: At most 255 characters (Nova 2.73).
    reason: str | None
    blocks: OperationClass
    #: Seconds since the epoch.
    placed_at: float


class LockSummary(msgspec.Struct, frozen=True, kw_only=True):
    """The union of an instance's locks, as the instance row carries it."""

    owner_blocks: OperationClass
    admin_blocks: OperationClass
    hold_blocks: OperationClass
    #: Which lock a reader is shown; a hold shows as the provider's.
    locked_by: str | None
    locked_reason: str | None


def summarise(locks: Iterable[Lock]) -> LockSummary:
    """Fold a stack of locks into what the instance row carries (R5: each kind keeps its own union)."""
    stack = list(locks)
    blocks = dict.fromkeys(LockKind, OperationClass(0))
    for lock in stack:
        blocks[lock.kind] |= lock.blocks
    shown = next((lock for kind in _STRENGTH for lock in stack if lock.kind is kind), None)
    locked_by = None
    if shown is not None:
        locked_by = "owner" if shown.kind is LockKind.OWNER else "admin"
    return LockSummary(
        owner_blocks=blocks[LockKind.OWNER],
        admin_blocks=blocks[LockKind.ADMIN],
        hold_blocks=blocks[LockKind.HOLD],
        locked_by=locked_by,
        locked_reason=shown.reason if shown is not None else None,
    )


def kind_placed_by(actor_kind: ActorKind, *, in_own_project: bool) -> LockKind:
    """Return the kind of lock that Nova's ``lock`` places for an actor.

    An admin acting in the server's own project counts as its owner (recorded from Nova 34).
    """
    return LockKind.ADMIN if actor_kind is ActorKind.ADMIN and not in_own_project else LockKind.OWNER


def kind_released_by(actor_kind: ActorKind, present: Iterable[LockKind]) -> LockKind | None:
    """Return which lock Nova's ``unlock`` takes away, None when there is none to take.

    The admin's unlock takes the admin's lock first and leaves the owner's (R5); a second unlock takes that.

    Raises:
        PermissionError: a member asks while the provider's lock holds.
    """
    kinds = frozenset(present) - {LockKind.HOLD}
    if LockKind.ADMIN in kinds:
        if actor_kind is not ActorKind.ADMIN:
            raise PermissionError
        return LockKind.ADMIN
    return LockKind.OWNER if LockKind.OWNER in kinds else None
