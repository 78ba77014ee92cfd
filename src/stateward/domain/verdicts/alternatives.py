"""What a policy may make of a cell of the arbiter's table, and what gives way to none (R13).

A closed set: whatever is not named here is refused when the settings are read, so that no policy can bring a guest
to a state that its record has no meaning for, start one that may run elsewhere, or pass a lock or a hold.
"""

from __future__ import annotations

import functools
from typing import Final

import msgspec

from stateward.domain.states import ON_NO_HOST, Cause, Observed, VmState
from stateward.domain.verdicts import Kind, Stray, Verdict, judge

A, P, S, T, R, V = (
    VmState.ACTIVE,
    VmState.PAUSED,
    VmState.SUSPENDED,
    VmState.STOPPED,
    VmState.RESCUED,
    VmState.SHELVED,
)

#: What the record becomes when it follows a guest; only instances of these states may become another by that.
_ADOPTED_FROM: Final = frozenset({A, P, S, T})
_ADOPTED_AS: Final = {
    Observed.RUNNING: A,
    Observed.PAUSED: P,
    Observed.SUSPENDED: S,
    Observed.SHUTOFF: T,
    Observed.CRASHED: T,
}

#: What brings a guest back to its record, the usual way first: keys of rows of ``ACTIONS``.
_RESTORED_BY: Final[dict[tuple[VmState, Observed], tuple[str, ...]]] = {
    (A, Observed.SHUTOFF): ("restore_start",),
    (A, Observed.CRASHED): ("restore_start",),
    (A, Observed.PAUSED): ("restore_unpause",),
    (A, Observed.SUSPENDED): ("restore_resume",),
    (P, Observed.RUNNING): ("restore_pause",),
    (P, Observed.SHUTOFF): ("restore_paused",),
    (P, Observed.CRASHED): ("restore_paused",),
    (S, Observed.RUNNING): ("restore_suspend",),
    (S, Observed.PAUSED): ("restore_suspend",),
    (T, Observed.RUNNING): ("restore_stop", "restore_off"),
    (T, Observed.PAUSED): ("restore_off",),
    (T, Observed.SUSPENDED): ("restore_off",),
    (T, Observed.CRASHED): ("restore_off",),
    **{
        (R, observed): ("restore_rescue",)
        for observed in (Observed.PAUSED, Observed.SUSPENDED, Observed.SHUTOFF, Observed.CRASHED)
    },
    **{
        (V, observed): ("restore_off",)
        for observed in (Observed.RUNNING, Observed.PAUSED, Observed.SUSPENDED, Observed.CRASHED)
    },
}

#: Halted by these, a guest is in the middle of something: it is neither let run nor recorded as paused.
_PASSING: Final = frozenset({Cause.MIGRATION, Cause.HALF_MIGRATED, Cause.SAVED, Cause.GUEST})
#: Of these somebody else decides, or they are deleted, or on no host.
_FIXED: Final = frozenset({VmState.BUILDING, VmState.ERROR, VmState.SOFT_DELETED, *ON_NO_HOST})
#: Shall be off, or halted: found on, a lock that holds them so goes before every policy (R1).
_NOT_ON: Final = frozenset({P, S, T, V})
_ON: Final = frozenset({Observed.RUNNING, Observed.PAUSED})
_TELLING: Final = frozenset({Kind.IGNORE, Kind.ALERT, Kind.QUARANTINE})


class Alternatives(msgspec.Struct, frozen=True, kw_only=True):
    """What a cell may be changed to; nothing at all where ``kinds`` is empty."""

    kinds: frozenset[Kind] = frozenset()
    #: Keys of rows of ``ACTIONS``, the usual one first.
    actions: tuple[str, ...] = ()
    becomes: VmState | None = None


_NONE: Final = Alternatives()


@functools.cache
def alternatives(expected: VmState, observed: Observed, cause: Cause) -> Alternatives:
    """Return what a policy may make of a cell, leaving locks and holds aside; each guest of each list asks it."""
    if observed is Observed.DUPLICATE:
        return _of_duplicate(expected)
    agrees = judge(expected, observed, cause, locked=False).kind is Kind.AGREE
    if expected in _FIXED or observed is Observed.UNKNOWN or agrees:
        return _NONE
    kinds = set(_TELLING)
    actions: tuple[str, ...] = ()
    becomes: VmState | None = None
    if not _passes(expected, observed, cause):
        actions = _RESTORED_BY.get((expected, observed), ())
        becomes = _ADOPTED_AS.get(observed) if expected in _ADOPTED_FROM else None
    if actions:
        kinds.add(Kind.RESTORE)
    if becomes is not None:
        kinds.add(Kind.ADOPT)
    return Alternatives(kinds=frozenset(kinds), actions=actions, becomes=becomes)


def gives_way(row: Verdict, *, locked: bool, held: bool) -> bool:
    """Say whether the table's row for an instance may be changed by a policy at all."""
    if held or row.kind is Kind.AGREE:
        return False
    if row.observed is Observed.DUPLICATE:
        # Two running is never a matter of taste; whether an older copy is removed at once may be.
        return row.stray is Stray.OLDER and bool(_of_duplicate(row.expected).kinds)
    return not (locked and row.expected in _NOT_ON and row.observed in _ON)


def could_act(expected: VmState, observed: Observed, cause: Cause) -> bool:
    """Say whether some policy could have the record or the guest of a cell changed."""
    return bool(alternatives(expected, observed, cause).kinds & {Kind.ADOPT, Kind.RESTORE, Kind.QUARANTINE})


def _of_duplicate(expected: VmState) -> Alternatives:
    if expected in _FIXED:
        return _NONE
    return Alternatives(kinds=frozenset({Kind.IGNORE, Kind.ALERT, Kind.RESTORE}), actions=("remove_stray",))


def _passes(expected: VmState, observed: Observed, cause: Cause) -> bool:
    """Say whether a guest may run elsewhere, or will be something else by itself."""
    return (expected in {A, R} and observed is Observed.PAUSED and cause in _PASSING) or (
        observed is Observed.SHUTOFF
        and (cause is Cause.MIGRATION or (expected in {A, P, S, R} and cause is Cause.SAVED))
    )
