"""Locks as requests bring them and as answers show them, for both APIs."""

from __future__ import annotations

import contextlib
import uuid

import msgspec

from stateward.api.http import iso_time, seconds_of_iso
from stateward.api.wording import short
from stateward.domain.bodies import LockWanted
from stateward.domain.errors import Forbidden, Invalid
from stateward.domain.locks import ActorKind, Lock, LockKind, classes_of, kind_placed_by, words_of
from stateward.domain.records import Actor
from stateward.operations.stacking import LockWish


class LockView(msgspec.Struct, frozen=True, kw_only=True):
    """One lock, as far as the caller may know it."""

    id: str
    #: ``owner``: the customer's; ``admin`` and ``hold``: the provider's.
    kind: LockKind
    name: str
    #: The user who placed it; null for a customer where that is the provider.
    holder: str | None
    reason: str | None
    #: The provider's own reference; null for a customer.
    ticket: str | None
    #: What it blocks: all, power, stop, start, delete, change.
    blocks: list[str]
    placed_at: str
    expires_at: str | None
    #: Only the provider can release it.
    sealed: bool
    #: The guest is kept off.
    off: bool
    #: The instance has it from its project; it is released there.
    inherited: bool
    project_id: str | None
    #: Only instances with this tag have it.
    tag: str | None


def lock_view(lock: Lock, *, admin: bool) -> LockView:
    """Show a lock; ``admin``: to somebody who may know what is the provider's to know."""
    known = admin or lock.kind is LockKind.OWNER
    return LockView(
        id=lock.id,
        kind=lock.kind,
        name=lock.name,
        holder=lock.holder if known else None,
        reason=lock.reason,
        ticket=lock.ticket if known else None,
        blocks=words_of(lock.blocks),
        placed_at=iso_time(lock.placed_at),
        expires_at=None if lock.expires_at is None else iso_time(lock.expires_at),
        sealed=lock.sealed,
        off=lock.off,
        inherited=lock.inherited,
        project_id=lock.project_id,
        tag=lock.tag,
    )


def wish_of(
    wanted: LockWanted, actor: Actor, project_id: str, *, kind: LockKind | None = None, named: bool = False
) -> LockWish:
    """Return the lock that a request wants.

    Args:
        wanted: what it says.
        actor: who asks.
        project_id: whose instance it is.
        kind: what the request says that it is; None: as Nova's ``lock`` decides by who asks.
        named: give it a name where it has none, since it stands beside others.

    Raises:
        Forbidden: a member wants the provider's lock.
        Invalid: what it blocks, or when it expires, cannot be read.
    """
    if kind is not None and kind is not LockKind.OWNER and actor.kind is not ActorKind.ADMIN:
        raise Forbidden(f"stateward:locks:place:{kind.value}")
    blocks = classes_of(wanted.blocks)
    expires_at = None if wanted.expires_at is None else _expiry(wanted.expires_at)
    name = wanted.name
    if not name and (named or expires_at is not None or "all" not in words_of(blocks)):
        name = f"lock-{uuid.uuid4().hex[:8]}"
    return LockWish(
        kind=kind or kind_placed_by(actor.kind, in_own_project=actor.project_id == project_id),
        holder=actor.user_id,
        name=name,
        reason=wanted.reason,
        ticket=wanted.ticket,
        blocks=blocks,
        expires_at=expires_at,
        sealed=wanted.sealed,
    )


def _expiry(text: str) -> float:
    """Read when a lock expires (seconds since the epoch).

    Raises:
        Invalid: it is no time, or one that cannot be shown.
    """
    with contextlib.suppress(ValueError):
        return seconds_of_iso(text)
    raise Invalid(
        f"Invalid input for field/attribute expires_at. Value: {short(text)}. It must be a time of ISO 8601, as "
        "2030-01-31T18:00:00Z."
    )
