"""THE ARBITER'S TABLE: what is done when a guest is not as its record says (R13).

A row is chosen by the recorded vm state, what was observed, its cause, and whether the instance is locked or held; the
first match counts. The table covers every combination (tested), so there is no fall-through in code.
"""

from __future__ import annotations

import enum
from typing import Final

import msgspec

from stateward.domain.records import Instance
from stateward.domain.states import Cause, Observed, VmState


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
    kind: Kind
    #: For RESTORE: the key of a row of ``ACTIONS``.
    action: str | None = None
    #: For ADOPT: the vm state the record takes.
    becomes: VmState | None = None
    #: For people, told with the verdict.
    says: str


def _agree(expected: VmState, observed: Observed) -> Verdict:
    return Verdict(expected=expected, observed=observed, kind=Kind.AGREE, says="The guest is as recorded.")


def _unknown(expected: VmState) -> Verdict:
    return Verdict(
        expected=expected,
        observed=Observed.UNKNOWN,
        kind=Kind.IGNORE,
        says="The hypervisor could not be asked; nothing is concluded from that.",
    )


def _missing(expected: VmState) -> Verdict:
    return Verdict(
        expected=expected,
        observed=Observed.MISSING,
        kind=Kind.ALERT,
        says="The hypervisor does not know the guest any more; its disk may still be there. An operator must look.",
    )


A, P, S, T = VmState.ACTIVE, VmState.PAUSED, VmState.SUSPENDED, VmState.STOPPED
R, Z, V, F, K = (
    VmState.RESCUED,
    VmState.RESIZED,
    VmState.SHELVED,
    VmState.SHELVED_OFFLOADED,
    VmState.SOFT_DELETED,
)

VERDICTS: Final[tuple[Verdict, ...]] = (
    # ---- held: nothing brings it back, also not Stateward itself (R6)
    *(
        Verdict(
            expected=A,
            observed=observed,
            held=True,
            kind=Kind.ADOPT,
            becomes=becomes,
            says=f"The guest is held and {what}; nothing brings it back, so that is recorded.",
        )
        for observed, becomes, what in (
            (Observed.SHUTOFF, T, "went off"),
            (Observed.CRASHED, T, "crashed"),
            (Observed.SUSPENDED, S, "was saved and switched off"),
        )
    ),
    Verdict(
        expected=A,
        observed=Observed.PAUSED,
        causes=frozenset(Cause) - {Cause.IO_ERROR, Cause.MIGRATION},
        held=True,
        kind=Kind.ADOPT,
        becomes=P,
        says="The guest is held and was paused outside Stateward; nothing lets it run, so that is recorded.",
    ),
    *(
        Verdict(
            expected=R,
            observed=observed,
            held=True,
            kind=Kind.ALERT,
            says="The rescue system is held and does not run any more; nothing brings it back.",
        )
        for observed in (Observed.PAUSED, Observed.SUSPENDED, Observed.SHUTOFF, Observed.CRASHED)
    ),
    *(
        Verdict(
            expected=expected,
            observed=observed,
            kept_off=True,
            kind=Kind.RESTORE,
            action="restore_off",
            says="The guest is held off and was started outside Stateward; its power is taken.",
        )
        for expected in (Z, VmState.ERROR)
        for observed in (Observed.RUNNING, Observed.PAUSED, Observed.CRASHED)
    ),
    # ---- active
    _agree(A, Observed.RUNNING),
    Verdict(
        expected=A,
        observed=Observed.PAUSED,
        causes=frozenset({Cause.IO_ERROR}),
        kind=Kind.ALERT,
        says="The guest is halted by an I/O error: its storage is full or failing. Running on would lose data.",
    ),
    Verdict(
        expected=A,
        observed=Observed.PAUSED,
        causes=frozenset({Cause.MIGRATION}),
        kind=Kind.IGNORE,
        says="The guest is halted for a migration.",
    ),
    Verdict(
        expected=A,
        observed=Observed.PAUSED,
        kind=Kind.RESTORE,
        action="restore_unpause",
        says="The guest was paused outside Stateward; it is let run on.",
    ),
    Verdict(
        expected=A,
        observed=Observed.SUSPENDED,
        kind=Kind.RESTORE,
        action="restore_resume",
        says="The guest was saved and switched off outside Stateward; it is resumed.",
    ),
    Verdict(
        expected=A,
        observed=Observed.SHUTOFF,
        causes=frozenset({Cause.GUEST}),
        kind=Kind.ADOPT,
        becomes=T,
        says="The guest shut itself down; it is recorded as stopped.",
    ),
    Verdict(
        expected=A,
        observed=Observed.SHUTOFF,
        kind=Kind.RESTORE,
        action="restore_start",
        says="The guest went off though nobody asked for it; it is started again.",
    ),
    Verdict(
        expected=A,
        observed=Observed.CRASHED,
        kind=Kind.RESTORE,
        action="restore_start",
        says="The guest crashed; it is started again.",
    ),
    _missing(A),
    _unknown(A),
    # ---- paused
    _agree(P, Observed.PAUSED),
    Verdict(
        expected=P,
        observed=Observed.RUNNING,
        kind=Kind.RESTORE,
        action="restore_pause",
        says="The guest was let run outside Stateward; it is paused again.",
    ),
    Verdict(
        expected=P,
        observed=Observed.SUSPENDED,
        kind=Kind.ADOPT,
        becomes=S,
        says="The paused guest was saved and switched off outside Stateward; it is recorded as suspended.",
    ),
    Verdict(
        expected=P,
        observed=Observed.SHUTOFF,
        kind=Kind.ADOPT,
        becomes=T,
        says="The paused guest went off and its memory is lost; it is recorded as stopped, not started to be paused.",
    ),
    Verdict(
        expected=P,
        observed=Observed.CRASHED,
        kind=Kind.ADOPT,
        becomes=T,
        says="The paused guest crashed and its memory is lost; it is recorded as stopped.",
    ),
    _missing(P),
    _unknown(P),
    # ---- suspended
    _agree(S, Observed.SUSPENDED),
    Verdict(
        expected=S,
        observed=Observed.RUNNING,
        kind=Kind.RESTORE,
        action="restore_suspend",
        says="The guest was resumed outside Stateward; its memory is saved again.",
    ),
    Verdict(
        expected=S,
        observed=Observed.PAUSED,
        kind=Kind.RESTORE,
        action="restore_suspend",
        says="The guest was resumed outside Stateward and is halted; its memory is saved again.",
    ),
    Verdict(
        expected=S,
        observed=Observed.SHUTOFF,
        kind=Kind.ADOPT,
        becomes=T,
        says="The saved memory is gone; the instance is recorded as stopped.",
    ),
    Verdict(
        expected=S,
        observed=Observed.CRASHED,
        kind=Kind.ADOPT,
        becomes=T,
        says="The guest was resumed outside Stateward and crashed; it is recorded as stopped.",
    ),
    _missing(S),
    _unknown(S),
    # ---- stopped
    _agree(T, Observed.SHUTOFF),
    *(
        Verdict(
            expected=T,
            observed=observed,
            locked=True,
            kind=Kind.RESTORE,
            action="restore_off",
            says="The guest is locked off and was started outside Stateward; its power is taken.",
        )
        for observed in (Observed.RUNNING, Observed.PAUSED)
    ),
    Verdict(
        expected=T,
        observed=Observed.RUNNING,
        kind=Kind.RESTORE,
        action="restore_stop",
        says="The guest was started outside Stateward; it is shut down again.",
    ),
    Verdict(
        expected=T,
        observed=Observed.PAUSED,
        kind=Kind.RESTORE,
        action="restore_off",
        says="The guest was started outside Stateward and is halted, so it cannot be asked; its power is taken.",
    ),
    Verdict(
        expected=T,
        observed=Observed.SUSPENDED,
        kind=Kind.ALERT,
        says="A stopped guest has a saved memory that Stateward did not make. Remove it or resume it by hand.",
    ),
    Verdict(
        expected=T,
        observed=Observed.CRASHED,
        kind=Kind.RESTORE,
        action="restore_off",
        says="The guest was started outside Stateward and crashed; what is left of it is switched off.",
    ),
    _missing(T),
    _unknown(T),
    # ---- rescued: what runs is not the owner's system, so it never becomes anything else by itself
    _agree(R, Observed.RUNNING),
    Verdict(
        expected=R,
        observed=Observed.PAUSED,
        kind=Kind.RESTORE,
        action="restore_rescue",
        says="The rescue system was paused outside Stateward; it is started anew.",
    ),
    *(
        Verdict(
            expected=R,
            observed=observed,
            kind=Kind.RESTORE,
            action="restore_rescue",
            says="The rescue system went off; it is started again. Unrescue to boot the instance's own system.",
        )
        for observed in (Observed.SUSPENDED, Observed.SHUTOFF, Observed.CRASHED)
    ),
    _missing(R),
    _unknown(R),
    # ---- resized: on or off, whichever it was before; a person is about to decide
    _agree(Z, Observed.RUNNING),
    _agree(Z, Observed.SHUTOFF),
    *(
        Verdict(
            expected=Z,
            observed=observed,
            kind=Kind.IGNORE,
            says="The resize is not confirmed yet; what the guest is then is judged after that.",
        )
        for observed in (Observed.PAUSED, Observed.SUSPENDED, Observed.CRASHED)
    ),
    _missing(Z),
    _unknown(Z),
    # ---- shelved, and deleted but kept for a while: off
    *(
        verdict
        for expected, what in ((V, "shelved"), (K, "deleted, and kept for a while"))
        for verdict in (
            _agree(expected, Observed.SHUTOFF),
            *(
                Verdict(
                    expected=expected,
                    observed=observed,
                    kind=Kind.RESTORE,
                    action="restore_off",
                    says=f"The instance is {what}, and its guest was started outside Stateward; its power is taken.",
                )
                for observed in (Observed.RUNNING, Observed.PAUSED, Observed.SUSPENDED, Observed.CRASHED)
            ),
            _missing(expected),
            _unknown(expected),
        )
    ),
    # ---- offloaded: on no host
    _agree(F, Observed.MISSING),
    _unknown(F),
    *(
        Verdict(
            expected=F,
            observed=observed,
            kind=Kind.RESTORE,
            action="restore_offloaded",
            says="The instance is kept as an image only, but a guest of it was found; it is removed.",
        )
        for observed in Observed
        if observed not in {Observed.MISSING, Observed.UNKNOWN}
    ),
    # ---- error and building: a person, or the operation in flight, decides
    *(
        Verdict(
            expected=expected,
            observed=observed,
            kind=Kind.IGNORE,
            says=says,
        )
        for expected, says in (
            (VmState.ERROR, "The instance is in error; whoever resolves that decides what it shall be."),
            (VmState.BUILDING, "The instance is still being made."),
        )
        for observed in Observed
    ),
    # ---- deleted
    _agree(VmState.DELETED, Observed.MISSING),
    _unknown(VmState.DELETED),
    *(
        Verdict(
            expected=VmState.DELETED,
            observed=observed,
            kind=Kind.RESTORE,
            action="reap",
            says="The instance is deleted, but its guest was found; it is removed.",
        )
        for observed in Observed
        if observed not in {Observed.MISSING, Observed.UNKNOWN}
    ),
)

IN_FLIGHT: Final = "An operation is in flight; its result will be compared."


def judge(
    expected: VmState,
    observed: Observed,
    cause: Cause,
    *,
    locked: bool,
    held: bool = False,
    kept_off: bool = False,
) -> Verdict:
    """Return the row for a combination; the table has one for each."""
    return next(
        row
        for row in VERDICTS
        if row.expected is expected
        and row.observed is observed
        and (row.causes is None or cause in row.causes)
        and (row.locked is None or row.locked == locked)
        and (row.held is None or row.held == held)
        and (row.kept_off is None or row.kept_off == kept_off)
    )


def judge_instance(instance: Instance) -> Verdict:
    """Judge an instance's row; an operation in flight is never judged (R12)."""
    verdict = judge(
        instance.vm_state,
        instance.observed,
        instance.cause,
        locked=instance.locked,
        held=instance.held,
        kept_off=instance.kept_off,
    )
    if instance.task_state is not None and verdict.kind is not Kind.AGREE:
        return msgspec.structs.replace(verdict, kind=Kind.IGNORE, action=None, becomes=None, says=IN_FLIGHT)
    return verdict
