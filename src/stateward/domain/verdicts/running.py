"""The verdicts about instances that run, or are halted in memory: active, paused, rescued (R13)."""

from __future__ import annotations

from typing import Final

from stateward.domain.states import MEMORY_ELSEWHERE, Cause, Observed, VmState
from stateward.domain.verdicts.row import (
    Verdict,
    adopt,
    agree,
    alert,
    everywhere,
    half_migrated,
    ignore,
    moved_away,
    restore,
    saved_away,
)

A, P, S, T, R = (
    VmState.ACTIVE,
    VmState.PAUSED,
    VmState.SUSPENDED,
    VmState.STOPPED,
    VmState.RESCUED,
)

#: A guest that is halted for these is let alone: what follows is seen, and judged then.
_HALTED_FOR_A_WHILE: Final = {
    Cause.MIGRATION: "The guest is halted for a migration.",
    Cause.SAVED: "The guest is halted while it is saved or copied outside Stateward; what comes of it is judged then.",
    Cause.GUEST: "The guest has gone to sleep by itself, and wakes by itself.",
}
_BY_HOST, _BY_MEMORY = frozenset({Cause.HOST}), frozenset({Cause.OUT_OF_MEMORY})
_BY_IO = frozenset({Cause.IO_ERROR})

#: Halted by these, it is off, or gone on, in a moment; its power taken meanwhile, what is written would be lost.
_IN_BETWEEN: Final = frozenset({Cause.MIGRATION, Cause.SAVED})

HELD: Final[tuple[Verdict, ...]] = (
    # Whose hold failed to have it off: no other way leads here, since who breaks the glass to let a guest run has the
    # hold not keep it off any more (R6).
    *(
        restore(
            expected,
            observed,
            "restore_held",
            "The guest is held off and is still on; what its hold failed to do is done.",
            causes=None if observed is Observed.RUNNING else frozenset(Cause) - _IN_BETWEEN,
            kept_off=True,
        )
        for expected in (A, P, R)
        for observed in (Observed.RUNNING, Observed.PAUSED)
    ),
    restore(
        R,
        Observed.CRASHED,
        "restore_held",
        "The guest is held off, and its rescue system has crashed; what is left of it is switched off.",
        kept_off=True,
    ),
    # Nothing brings a held guest back, also not Stateward itself (R6).
    *(
        adopt(
            A,
            observed,
            becomes,
            f"The guest is held and {what}; nothing brings it back, so that is recorded.",
            causes=frozenset(Cause) - MEMORY_ELSEWHERE if observed is Observed.SHUTOFF else None,
            held=True,
        )
        for observed, becomes, what in (
            (Observed.SHUTOFF, T, "went off"),
            (Observed.CRASHED, T, "crashed"),
            (Observed.SUSPENDED, S, "was saved and switched off"),
        )
    ),
    adopt(
        A,
        Observed.PAUSED,
        P,
        "The guest is held and was paused outside Stateward; nothing lets it run, so that is recorded.",
        causes=frozenset(Cause) - {Cause.IO_ERROR, Cause.HALF_MIGRATED, *_HALTED_FOR_A_WHILE},
        held=True,
    ),
    *(
        alert(
            R,
            observed,
            "The rescue system is held and does not run any more; nothing brings it back.",
            held=True,
        )
        for observed in (Observed.PAUSED, Observed.SUSPENDED, Observed.SHUTOFF, Observed.CRASHED)
    ),
)

ACTIVE: Final[tuple[Verdict, ...]] = (
    agree(A, Observed.RUNNING),
    alert(
        A,
        Observed.PAUSED,
        "The guest is halted by an I/O error: its storage is full or failing. Running on would lose data.",
        causes=_BY_IO,
    ),
    *(
        ignore(A, Observed.PAUSED, says, causes=frozenset({cause}))
        for cause, says in _HALTED_FOR_A_WHILE.items()
    ),
    half_migrated(A),
    restore(
        A, Observed.PAUSED, "restore_unpause", "The guest was paused outside Stateward; it is let run on."
    ),
    restore(
        A,
        Observed.SUSPENDED,
        "restore_resume",
        "The guest was saved and switched off outside Stateward; it is resumed.",
    ),
    adopt(
        A,
        Observed.SHUTOFF,
        T,
        "The guest shut itself down; it is recorded as stopped.",
        causes=frozenset({Cause.GUEST}),
    ),
    moved_away(A),
    saved_away(A),
    restore(
        A,
        Observed.SHUTOFF,
        "restore_start",
        "The guest went off with its host, which is up again; it is started again.",
        causes=_BY_HOST,
    ),
    *(
        restore(
            A,
            observed,
            "restore_start",
            "The host ran out of memory and its kernel ended the guest; it is started again.",
            causes=_BY_MEMORY,
        )
        for observed in (Observed.SHUTOFF, Observed.CRASHED)
    ),
    restore(
        A,
        Observed.SHUTOFF,
        "restore_start",
        "The guest went off though nobody asked for it; it is started again.",
    ),
    restore(A, Observed.CRASHED, "restore_start", "The guest crashed; it is started again."),
    *everywhere(A),
)

PAUSED: Final[tuple[Verdict, ...]] = (
    agree(P, Observed.PAUSED),
    restore(
        P, Observed.RUNNING, "restore_pause", "The guest was let run outside Stateward; it is paused again."
    ),
    adopt(
        P,
        Observed.SUSPENDED,
        S,
        "The paused guest was saved and switched off outside Stateward; it is recorded as suspended.",
    ),
    moved_away(P),
    saved_away(P),
    adopt(
        P,
        Observed.SHUTOFF,
        T,
        "The paused guest went off with its host and its memory is lost; it is recorded as stopped.",
        causes=_BY_HOST,
    ),
    adopt(
        P,
        Observed.SHUTOFF,
        T,
        "The paused guest went off and its memory is lost; it is recorded as stopped, not started to be paused.",
    ),
    adopt(
        P, Observed.CRASHED, T, "The paused guest crashed and its memory is lost; it is recorded as stopped."
    ),
    *everywhere(P),
)

#: What runs is not the owner's system, so it never becomes anything else by itself.
RESCUED: Final[tuple[Verdict, ...]] = (
    agree(R, Observed.RUNNING),
    alert(
        R,
        Observed.PAUSED,
        "The rescue system is halted by an I/O error: its storage is full or failing. Running on would lose data.",
        causes=_BY_IO,
    ),
    *(
        ignore(R, Observed.PAUSED, says, causes=frozenset({cause}))
        for cause, says in _HALTED_FOR_A_WHILE.items()
    ),
    half_migrated(R),
    restore(
        R,
        Observed.PAUSED,
        "restore_rescue",
        "The rescue system was paused outside Stateward; it is started anew.",
    ),
    moved_away(R),
    saved_away(R),
    *(
        restore(
            R,
            observed,
            "restore_rescue",
            "The rescue system went off; it is started again. Unrescue to boot the instance's own system.",
        )
        for observed in (Observed.SUSPENDED, Observed.SHUTOFF, Observed.CRASHED)
    ),
    *everywhere(R),
)
