"""Histories of an instance with a stack of locks: what its users asked, when, and what they were told.

As in ``history`` only what a client can see is recorded. What is known of a request later (how the operation ended
that it began) is recorded with it: then the order has to explain that as well.
"""

from __future__ import annotations

import enum

import msgspec

from stateward.domain.locks import ActorKind
from tests.linear.history import Outcome


class Deed(enum.StrEnum):
    """What was asked."""

    #: Nova's: they place and take away the unnamed lock of the owner, or of the provider.
    LOCK = "lock"
    UNLOCK = "unlock"
    #: A named lock, beside those that are there; and its release by its id, or that of a hold.
    PLACE = "place"
    RELEASE = "release"
    #: A legal hold.
    HOLD = "hold"
    #: An administrator's leave to pass one hold.
    OVERRIDE = "override"
    STOP = "stop"
    START = "start"
    RESUME = "resume"
    #: Of the metadata: done when it is admitted.
    CHANGE = "change"
    #: The server's view: the vm state, the task state and who locks it.
    VIEW = "view"
    #: The locks that hold, by id.
    STACK = "stack"
    #: The operations that are not finished.
    WORK = "work"


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """One request and its answer; times in nanoseconds of one monotonic clock."""

    user: str
    actor: ActorKind
    deed: Deed
    #: Not after the request left, and not before the answer came.
    invoked: int
    answered: int
    outcome: Outcome
    #: What the answer told beside its outcome: see ``stack_model``.
    told: str = ""
    #: The lock that is meant: of one that is placed, the id that its answer gave it.
    lock: str = ""
    name: str = ""
    #: Words for what it blocks.
    blocks: str = "all"
    sealed: bool = False
    overtake: bool = False
    #: How a hold has the guest go off.
    way: str = ""
    #: Operations that an override is good for; 0 when it is good for a while.
    uses: int = 0
    #: When the lock expires, or the override ends.
    expires: int | None = None
    #: The operation that was admitted, by its id, and how it ended; known afterwards.
    operation: str = ""
    end: str = ""

    def __str__(self) -> str:
        """Say it in one line."""
        parts = {
            "lock": self.lock[:8],
            "name": self.name,
            "blocks": self.blocks if self.deed is Deed.PLACE else "",
            "sealed": self.sealed,
            "overtake": self.overtake,
            "way": self.way,
            "uses": self.uses,
            "expires": self.expires,
            "operation": self.operation[:8],
            "end": self.end,
        }
        more = ", ".join(f"{name} {value}" for name, value in parts.items() if value)
        told = f" ({self.told})" if self.told else ""
        return (
            f"{self.user}: {self.deed} {self.outcome}{told} [{self.invoked} .. {self.answered}]"
            f"{f', {more}' if more else ''}"
        )
