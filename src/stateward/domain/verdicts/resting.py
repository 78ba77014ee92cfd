"""The verdicts about instances that are off, on no host, or left to somebody who decides (R13)."""

from __future__ import annotations

from typing import Final

from stateward.domain.states import ON_NO_HOST, Cause, Observed, VmState
from stateward.domain.verdicts.row import (
    Verdict,
    adopt,
    agree,
    alert,
    everywhere,
    ignore,
    moved_away,
    restore,
)

S, T, Z = VmState.SUSPENDED, VmState.STOPPED, VmState.RESIZED
#: What has a guest that something is seen of.
_FOUND: Final = (Observed.RUNNING, Observed.PAUSED, Observed.SUSPENDED, Observed.SHUTOFF, Observed.CRASHED)
_ON: Final = (Observed.RUNNING, Observed.PAUSED)

KEPT_OFF: Final[tuple[Verdict, ...]] = tuple(
    restore(
        expected,
        observed,
        "restore_off",
        "The guest is held off and was started outside Stateward; its power is taken.",
        kept_off=True,
    )
    for expected in (Z, VmState.ERROR)
    for observed in (*_ON, Observed.CRASHED)
)

SUSPENDED: Final[tuple[Verdict, ...]] = (
    agree(S, Observed.SUSPENDED),
    restore(
        S,
        Observed.RUNNING,
        "restore_suspend",
        "The guest was resumed outside Stateward; its memory is saved again.",
    ),
    restore(
        S,
        Observed.PAUSED,
        "restore_suspend",
        "The guest was resumed outside Stateward and is halted; its memory is saved again.",
    ),
    moved_away(S),
    # A memory that libvirt keeps is seen as suspended. Whether this one is in somebody's file, or was removed while no
    # agent looked, nobody can tell.
    alert(
        S,
        Observed.SHUTOFF,
        "The memory that was saved of the guest is not there any more: it was saved to a file outside Stateward (virsh "
        "save), or removed (virsh managedsave-remove). Restore that file (virsh restore), or reboot it hard to go on "
        "without that memory; restored after that, it would damage its disk.",
        causes=frozenset({Cause.SAVED}),
    ),
    *(
        adopt(
            S,
            observed,
            T,
            "The guest is held, and the memory that was saved of it is gone; it is recorded as stopped. Find out who "
            "took it.",
            held=True,
            alerts=True,
        )
        for observed in (Observed.SHUTOFF, Observed.CRASHED)
    ),
    adopt(S, Observed.SHUTOFF, T, "The saved memory is gone; the instance is recorded as stopped."),
    adopt(
        S,
        Observed.CRASHED,
        T,
        "The guest was resumed outside Stateward and crashed; it is recorded as stopped.",
    ),
    *everywhere(S),
)

STOPPED: Final[tuple[Verdict, ...]] = (
    agree(T, Observed.SHUTOFF),
    *(
        restore(
            T,
            observed,
            "restore_off",
            "The guest is locked off and was started outside Stateward; its power is taken.",
            locked=True,
        )
        for observed in _ON
    ),
    restore(
        T, Observed.RUNNING, "restore_stop", "The guest was started outside Stateward; it is shut down again."
    ),
    restore(
        T,
        Observed.PAUSED,
        "restore_off",
        "The guest was started outside Stateward and is halted, so it cannot be asked; its power is taken.",
    ),
    alert(
        T,
        Observed.SUSPENDED,
        "A stopped guest has a saved memory that Stateward did not make. Remove it or resume it by hand.",
    ),
    restore(
        T,
        Observed.CRASHED,
        "restore_off",
        "The guest was started outside Stateward and crashed; what is left of it is switched off.",
    ),
    *everywhere(T),
)

#: On or off, whichever it was before; a person is about to decide.
RESIZED: Final[tuple[Verdict, ...]] = (
    agree(Z, Observed.RUNNING),
    agree(Z, Observed.SHUTOFF),
    *(
        ignore(Z, observed, "The resize is not confirmed yet; what the guest is then is judged after that.")
        for observed in (Observed.PAUSED, Observed.SUSPENDED, Observed.CRASHED)
    ),
    *everywhere(Z),
)

#: Shelved, and deleted but kept for a while: off.
KEPT: Final[tuple[Verdict, ...]] = tuple(
    verdict
    for expected, what in (
        (VmState.SHELVED, "shelved"),
        (VmState.SOFT_DELETED, "deleted, and kept for a while"),
    )
    for verdict in (
        agree(expected, Observed.SHUTOFF),
        *(
            restore(
                expected,
                observed,
                "restore_off",
                f"The instance is {what}, and its guest was started outside Stateward; its power is taken.",
            )
            for observed in _FOUND
            if observed is not Observed.SHUTOFF
        ),
        *everywhere(expected),
    )
)

#: Deleted, and its guest is its owner's again: what they keep of it (a snapshot, a saved memory, a definition) has our
#: mark from before, and brings it back.
GIVEN_BACK: Final[tuple[Verdict, ...]] = tuple(
    restore(
        VmState.DELETED,
        observed,
        "release_stray" if observed is Observed.DUPLICATE else "reap_adopted",
        "The instance was adopted and is its owner's again, but its guest bears the mark of before; that is taken off, "
        "and the guest is left as it is.",
        adopted=True,
    )
    for observed in (*_FOUND, Observed.DUPLICATE)
)

#: On no host: what is found of them is removed.
GONE: Final[tuple[Verdict, ...]] = tuple(
    verdict
    for expected, action, says in (
        (
            VmState.SHELVED_OFFLOADED,
            "restore_offloaded",
            "The instance is kept as an image only, but a guest of it was found; it is removed.",
        ),
        (VmState.DELETED, "reap", "The instance is deleted, but its guest was found; it is removed."),
    )
    for verdict in (
        *(restore(expected, observed, action, says) for observed in _FOUND),
        *everywhere(expected),
    )
)
assert {verdict.expected for verdict in GONE} == ON_NO_HOST  # noqa: S101 (a row would be missing)

#: A person, or the operation in flight, decides.
DECIDED_ELSEWHERE: Final[tuple[Verdict, ...]] = tuple(
    verdict
    for expected, says in (
        (VmState.ERROR, "The instance is in error; whoever resolves that decides what it shall be."),
        (VmState.BUILDING, "The instance is still being made."),
    )
    for verdict in (
        *(ignore(expected, observed, says) for observed in (*_FOUND, Observed.MISSING)),
        *everywhere(expected),
    )
)
