"""Locks: which classes of operations they block, whom they bind, and what an instance's stack of them amounts to.

A lock is a row in the database, never a flag of the hypervisor (R1). An instance has any number of them; the
instance row carries their union per kind, so that one UPDATE's WHERE clause can test it (ADR 0002).
"""

from __future__ import annotations

import datetime as dt
import enum
from collections.abc import Iterable
from typing import Final

import msgspec

from stateward.domain.errors import Invalid


class OperationClass(enum.IntFlag):
    """The classes of operations a lock can block; an action's ``guard`` names the classes it belongs to."""

    START = 1
    STOP = 2
    DELETE = 4
    CHANGE = 8


ALL_CLASSES: Final = (
    OperationClass.START | OperationClass.STOP | OperationClass.DELETE | OperationClass.CHANGE
)

#: The words by which people say which classes a lock blocks (B2).
CLASS_SETS: Final[dict[str, OperationClass]] = {
    "delete": OperationClass.DELETE,
    "stop": OperationClass.STOP,
    "start": OperationClass.START,
    "power": OperationClass.START | OperationClass.STOP,
    "change": OperationClass.CHANGE,
    "all": ALL_CLASSES,
}


def classes_of(words: Iterable[str]) -> OperationClass:
    """Return the union of what words mean.

    Raises:
        Invalid: one of them is none of ``CLASS_SETS``, or there is none.
    """
    blocks = OperationClass(0)
    for word in words:
        if word not in CLASS_SETS:
            raise Invalid(f"There are no operations called {word!r}; a lock blocks {', '.join(CLASS_SETS)}.")
        blocks |= CLASS_SETS[word]
    if not blocks:
        raise Invalid(f"A lock has to block something: {', '.join(CLASS_SETS)}.")
    return blocks


def words_of(blocks: OperationClass) -> list[str]:
    """Return the fewest words that mean these classes."""
    found: list[str] = []
    for word, classes in sorted(CLASS_SETS.items(), key=lambda each: -each[1].bit_count()):
        if blocks & classes == classes:
            found.append(word)
            blocks &= ~classes
    return found


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
    """One lock: on one instance, or on a project's (those with a tag), which inherit it (B2).

    ``scope`` says on what; see ``scope_of``. It is unique together with ``kind``, ``holder`` and ``name``.
    """

    id: str
    #: None for a lock that instances inherit.
    instance_id: str | None
    #: Whose instances inherit it; None for a lock on one instance.
    project_id: str | None = None
    #: Only those with this tag do; None: all of them.
    tag: str | None = None
    kind: LockKind
    #: Nova's ``lock`` places the unnamed one.
    name: str = ""
    #: The user who placed it.
    holder: str
    #: At most 255 characters (Nova 2.73).
    reason: str | None
    #: The provider's own reference; never shown to customers.
    ticket: str | None = None
    blocks: OperationClass
    #: Seconds since the epoch, all of them. Until the lock is taken away it holds, also past ``expires_at``: expiry
    #: is an event, written like a release, and no admission ever looks at a clock (B1).
    placed_at: float
    expires_at: float | None = None
    #: When it was told that it expires soon.
    warned_at: float | None = None
    #: An owner's lock that only the provider can release (R4).
    sealed: bool = False
    #: A hold under which the guest is kept off; without it the guest is left as it is, and cannot be changed (R6).
    off: bool = False

    @property
    def inherited(self) -> bool:
        """Whether it is on a project, and not on one instance."""
        return self.instance_id is None

    @property
    def scope(self) -> str:
        """What it is on, in one word."""
        return scope_of(instance_id=self.instance_id, project_id=self.project_id, tag=self.tag)

    def holds_for(self, project_id: str, tags: Iterable[str]) -> bool:
        """Whether an instance of a project with these tags inherits it."""
        return self.project_id == project_id and (self.tag is None or self.tag in tags)


def scope_of(*, instance_id: str | None = None, project_id: str | None = None, tag: str | None = None) -> str:
    """Say what a lock is on: one instance, a project, or those of a project that have a tag."""
    if instance_id is not None:
        return f"instance {instance_id}"
    return f"project {project_id}" if tag is None else f"project {project_id} tag {tag}"


class LockSummary(msgspec.Struct, frozen=True, kw_only=True):
    """The union of an instance's locks, as the instance row carries it."""

    owner_blocks: OperationClass
    admin_blocks: OperationClass
    hold_blocks: OperationClass
    #: A hold keeps the guest off.
    kept_off: bool
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
        kept_off=any(lock.off for lock in stack),
        locked_by=locked_by,
        locked_reason=shown.reason if shown is not None else None,
    )


def explained(locks: Iterable[Lock]) -> str:
    """Say who locked, since when, why, and until when, one sentence each; what a customer may know.

    The strongest first. Of the provider's locks neither the person nor the ticket is named.
    """
    stack = sorted(locks, key=lambda lock: (_STRENGTH.index(lock.kind), lock.placed_at))
    return " ".join(_explained(lock) for lock in stack)


def _explained(lock: Lock) -> str:
    who = {
        LockKind.OWNER: f"user {lock.holder}",
        LockKind.ADMIN: "the provider",
        LockKind.HOLD: "the provider (a hold)",
    }[lock.kind]
    named = f" as {lock.name!r}" if lock.name and lock.kind is LockKind.OWNER else ""
    what = "" if lock.blocks == ALL_CLASSES else f" against {', '.join(words_of(lock.blocks))}"
    where = " with the whole project" if lock.inherited and lock.tag is None else ""
    where = f" with everything tagged {lock.tag!r}" if lock.inherited and lock.tag is not None else where
    until = "" if lock.expires_at is None else f" until {_time(lock.expires_at)}"
    why = "." if lock.reason is None else f": {lock.reason}"
    return f"It was locked{what}{where} by {who}{named} at {_time(lock.placed_at)}{until}{why}"


def _time(at: float) -> str:
    return dt.datetime.fromtimestamp(at, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def kind_placed_by(actor_kind: ActorKind, *, in_own_project: bool) -> LockKind:
    """Return the kind of lock that Nova's ``lock`` places for an actor.

    An admin acting in the server's own project counts as its owner (recorded from Nova 34).
    """
    return LockKind.ADMIN if actor_kind is ActorKind.ADMIN and not in_own_project else LockKind.OWNER


def released_by_unlock(actor_kind: ActorKind, stack: Iterable[Lock]) -> Lock | None:
    """Return which lock Nova's ``unlock`` takes away, None when there is none to take.

    It knows only the unnamed locks of the instance itself. The admin's unlock takes the admin's lock first and leaves
    the owner's (R5); a second unlock takes that.

    Raises:
        PermissionError: a member asks while the provider's lock holds, or the owner's is sealed (R4).
    """
    unnamed = {lock.kind: lock for lock in stack if not lock.name and not lock.inherited}
    found = unnamed.get(LockKind.ADMIN) or unnamed.get(LockKind.OWNER)
    if found is not None and actor_kind is not ActorKind.ADMIN and not members_release(found):
        raise PermissionError
    return found


def members_release(lock: Lock) -> bool:
    """Whether the provider is not needed to release a lock (R4, R5, R6)."""
    return lock.kind is LockKind.OWNER and not lock.sealed


def may_release(lock: Lock, actor_kind: ActorKind, user_id: str) -> bool:
    """Whether an actor may release a lock that it names.

    An admin may release any. A member may release what members release: the unnamed one, as in Nova whoever placed
    it, and a named one that the member placed.
    """
    if actor_kind is ActorKind.ADMIN:
        return True
    return members_release(lock) and (not lock.name or lock.holder == user_id)
