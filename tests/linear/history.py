"""Histories: what clients asked of one instance, when, and what they were told.

Only what a client can see is recorded, so a history convicts a server whatever it is made of.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable

import msgspec

from stateward.domain.locks import ActorKind


class Verb(enum.StrEnum):
    """What was asked."""

    LOCK = "lock"
    UNLOCK = "unlock"
    STOP = "stop"
    START = "start"
    #: The server's view: the vm state, the task state and who locks it.
    READ = "read"


class Outcome(enum.StrEnum):
    """What was answered."""

    ADMITTED = "admitted"
    LOCKED = "locked"
    WRONG_VM_STATE = "wrong vm state"
    WRONG_TASK_STATE = "wrong task state"
    #: A member's unlock while the provider's lock holds, or the release of a lock that is not the member's.
    FORBIDDEN = "forbidden"
    #: There is no such lock, or no more.
    NOT_FOUND = "not found"
    #: Its holder has a lock of this name there.
    NAME_TAKEN = "name taken"
    #: The lock would have expired before it was placed.
    TOO_LATE = "too late"
    #: There is nothing to override.
    BINDS_NO_ADMIN = "binds no admin"
    #: Another request changed the instance at the same moment: nothing was done, and nothing is said of its state.
    OVERTAKEN = "overtaken"
    #: No answer came: it may have been admitted or refused, or never have arrived.
    UNKNOWN = "unknown"


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One request and its answer; times in nanoseconds of one monotonic clock."""

    client: int
    actor: ActorKind
    verb: Verb
    #: Not after the request left.
    invoked: int
    #: Not before the answer came; without an answer, not before the server was certainly dead.
    answered: int
    outcome: Outcome
    #: What the answer told beside its outcome: see ``model.react``.
    told: str = ""

    def __str__(self) -> str:
        """Say it in one line."""
        told = f" ({self.told})" if self.told else ""
        return (
            f"client {self.client}, {self.actor}: {self.verb} {self.outcome}{told}"
            f" [{self.invoked} .. {self.answered}]"
        )


class History:
    """The requests of several clients to one instance, in no order."""

    def __init__(self, requests: Iterable[Request] = ()) -> None:
        """Begin with some requests."""
        self.requests = list(requests)

    def add(self, request: Request) -> None:
        """Record one request, after its answer."""
        self.requests.append(request)

    def count(self) -> dict[str, int]:
        """Count the requests by verb and outcome, for people."""
        found: dict[str, int] = {}
        for request in self.requests:
            name = f"{request.verb} {request.outcome}"
            found[name] = found.get(name, 0) + 1
        return dict(sorted(found.items()))
