"""What a row of the arbiter's table is made of, and the rows that every recorded state has alike (R13)."""

from __future__ import annotations

import enum
from typing import Any, Final

import msgspec

from stateward.domain.states import ON_NO_HOST, Cause, Observed, VmState


class Kind(enum.StrEnum):
    """What a verdict amounts to."""

    #: The guest is as recorded.
    AGREE = "agree"
    #: Nothing is done, and nobody is told: nothing can be said yet.
    IGNORE = "ignore"
    #: The record follows the guest.
    ADOPT = "adopt"
    #: The guest is brought back to the record, by the row of the action table named.
    RESTORE = "restore"
    #: The operator is told; nothing is changed.
    ALERT = "alert"
    #: The instance is put in error and left to a person, its guest exactly as it is; the operator is told.
    QUARANTINE = "quarantine"


class Stray(enum.StrEnum):
    """A copy of an instance on another host than its record's, as far as that is known (``Observed.DUPLICATE``)."""

    #: By the fences of what was done there it is what the instance was before its record's host got it.
    OLDER = "older"
    #: The same, and it runs.
    OLDER_RUNNING = "older-running"
    #: It runs, and nothing proves that it is the older one.
    RUNNING = "running"
    #: It is off, or halted, and nothing proves that it is the older one.
    RESTING = "resting"


class Layer(enum.StrEnum):
    """Where a policy was chosen; a later one goes before those above it."""

    DEFAULT = "default"
    HOST = "host"
    FLAVOR = "flavor"
    IMAGE = "image"
    PROJECT = "project"
    INSTANCE = "instance"


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """The rule of a policy that decided instead of the table."""

    layer: Layer
    policy: str
    #: Its place among the policy's rules, from 1.
    rule: int

    def __str__(self) -> str:
        """Name it for people."""
        return f"policy {self.policy} ({self.layer}), rule {self.rule}"


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """One row: the match, and what follows."""

    expected: VmState
    observed: Observed
    #: None matches every cause.
    causes: frozenset[Cause] | None = None
    #: None matches locked and unlocked instances.
    locked: bool | None = None
    #: Whether a hold is on it; None matches both.
    held: bool | None = None
    #: Whether a hold keeps the guest off; None matches both.
    kept_off: bool | None = None
    #: Whether it was adopted, so that its definition and its disks are its owner's; None matches both.
    adopted: bool | None = None
    #: Of a copy on another host: which; None matches all.
    stray: Stray | None = None
    kind: Kind
    #: For RESTORE: the key of a row of ``ACTIONS``; for QUARANTINE: what is done to a stray copy, if anything.
    action: str | None = None
    #: For ADOPT: the vm state the record takes; for QUARANTINE ERROR, or None where the record has no guest.
    becomes: VmState | None = None
    #: Of ADOPT: whether the operator is told as well.
    alerts: bool = False
    #: For people, told with the verdict.
    says: str
    #: The rule that changed it; None: it is the table's own.
    by: Source | None = None

    @property
    def decided_by(self) -> str:
        """Say what decided, for people and records."""
        return "table" if self.by is None else str(self.by)


def agree(expected: VmState, observed: Observed) -> Verdict:
    """Return the row of a guest that is as recorded."""
    return Verdict(expected=expected, observed=observed, kind=Kind.AGREE, says="The guest is as recorded.")


def ignore(expected: VmState, observed: Observed, says: str, **match: Any) -> Verdict:
    """Return a row after which nothing is done."""
    return Verdict(expected=expected, observed=observed, kind=Kind.IGNORE, says=says, **match)


def alert(expected: VmState, observed: Observed, says: str, **match: Any) -> Verdict:
    """Return a row after which the operator is told."""
    return Verdict(expected=expected, observed=observed, kind=Kind.ALERT, says=says, **match)


def adopt(expected: VmState, observed: Observed, becomes: VmState, says: str, **match: Any) -> Verdict:
    """Return a row after which the record follows the guest."""
    return Verdict(expected=expected, observed=observed, kind=Kind.ADOPT, becomes=becomes, says=says, **match)


def restore(expected: VmState, observed: Observed, action: str, says: str, **match: Any) -> Verdict:
    """Return a row after which the guest follows the record."""
    return Verdict(expected=expected, observed=observed, kind=Kind.RESTORE, action=action, says=says, **match)


def moved_away(expected: VmState) -> Verdict:
    """Return the row of a guest that was migrated off its host by somebody else: started here it would run twice."""
    return alert(
        expected,
        Observed.SHUTOFF,
        "The guest was migrated to another host outside Stateward, and may run there. Migrate it back, then let it "
        "be seen.",
        causes=frozenset({Cause.MIGRATION}),
    )


#: What an operator does to have a guest start anew, where it cannot be rebooted.
_STARTED_ANEW: Final = {VmState.RESCUED: "unrescue it"}


def saved_away(expected: VmState) -> Verdict:
    """Return the row of a guest whose memory is in somebody's file: were it started, that would not fit its disk."""
    return alert(
        expected,
        Observed.SHUTOFF,
        "The guest's memory was saved to a file outside Stateward (virsh save). Restore that file (virsh restore), or "
        f"{_STARTED_ANEW.get(expected, 'reboot it hard')} to go on without that memory; restored after that, it would "
        "damage its disk.",
        causes=frozenset({Cause.SAVED}),
    )


def half_migrated(expected: VmState) -> Verdict:
    """Return the row of a guest whose memory is on two hosts: let run, it would miss the half that is not here."""
    return alert(
        expected,
        Observed.PAUSED,
        "A migration outside Stateward broke off half-way (post-copy), and a part of the guest's memory is on the "
        "other host. Resume the migration (virsh migrate --postcopy-resume), or destroy the guest there and "
        f"{_STARTED_ANEW.get(expected, 'reboot it hard')} to go on without that memory.",
        causes=frozenset({Cause.HALF_MIGRATED}),
    )


def everywhere(expected: VmState) -> tuple[Verdict, ...]:
    """Return the rows that each recorded state has: a guest that is missing, unknown, or on another host too."""
    return (*_missing(expected), _unknown(expected), *_duplicate(expected))


def _missing(expected: VmState) -> tuple[Verdict, ...]:
    if expected in ON_NO_HOST:
        return (agree(expected, Observed.MISSING),)
    if expected in {VmState.ERROR, VmState.BUILDING}:
        return ()
    return (
        alert(
            expected,
            Observed.MISSING,
            "The hypervisor does not know the guest any more; its disk may still be there. An operator must look.",
        ),
    )


def _unknown(expected: VmState) -> Verdict:
    return ignore(
        expected,
        Observed.UNKNOWN,
        "The hypervisor could not be asked; nothing is concluded from that.",
    )


def _duplicate(expected: VmState) -> tuple[Verdict, ...]:
    """Return the rows of a copy on another host: two must never run, and the only good one must not be removed."""
    return (
        restore(
            expected,
            Observed.DUPLICATE,
            "remove_stray",
            "An older copy of the guest was found on another host than the record's; that copy is removed.",
            stray=Stray.OLDER,
        ),
        restore(
            expected,
            Observed.DUPLICATE,
            "halt_stray",
            "An older copy of the guest runs on another host than the record's; it is halted there at once, and then "
            "removed.",
            stray=Stray.OLDER_RUNNING,
        ),
        Verdict(
            expected=expected,
            observed=Observed.DUPLICATE,
            stray=Stray.RUNNING,
            kind=Kind.QUARANTINE,
            action="halt_stray",
            becomes=None if expected in ON_NO_HOST else VmState.ERROR,
            says="A copy of the guest runs on another host than the record's, and nothing proves that it is the older "
            "one. It is halted there, and both are kept: find out which is right, and remove the other by hand.",
        ),
        alert(
            expected,
            Observed.DUPLICATE,
            "A copy of the guest was found on another host than the record's. It does not run, and nothing proves that "
            "it is the older one; it is kept. Find out which is right, and remove the other by hand.",
            stray=Stray.RESTING,
        ),
    )
