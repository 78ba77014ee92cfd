"""What becomes of a host's instances when the machine has booted, and in which order (R14).

A boot explains that what ran is off, and nothing else: what it explains is planned here, as one plan for the whole
host, and all the rest is judged by the arbiter's table afterwards, through its breaker. Pure; ``arbiter/boots.py``
carries it out, and ADR 0019 says why.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence, Set as AbstractSet
from typing import Final

import msgspec

from stateward.domain.actions import AFTER_BOOT
from stateward.domain.locks import OperationClass
from stateward.domain.records import Instance
from stateward.domain.states import MEMORY_ELSEWHERE, Cause, Observed, VmState
from stateward.domain.verdicts import Kind, Verdict

#: The instance's metadata, the image's property or the flavor's extra spec with a whole number: higher ones are
#: started first.
PRIORITY: Final = "stateward:boot_priority"
#: A number beyond these is passed over, as one that is none.
MOST_PRIORITY: Final = 1000

CAUSE: Final = "host reboot"
#: Told of what waits for its turn.
WAITS: Final = "Its host has rebooted, and it is started again when its turn comes."

_OFF: Final = frozenset({Observed.SHUTOFF, Observed.CRASHED})
#: What a guest that ran, or was halted, can be found as because its host has booted: off, or saved, where the host
#: saved its guests as it went down.
_EXPLAINED: Final[Mapping[VmState, frozenset[Observed]]] = {
    VmState.ACTIVE: _OFF | {Observed.SUSPENDED},
    VmState.RESCUED: _OFF | {Observed.SUSPENDED},
    VmState.PAUSED: _OFF | {Observed.SUSPENDED},
    VmState.RESIZED: _OFF,
}
#: What the record says of one that is not started, where it can say that it is off.
_RECORDED: Final[Mapping[VmState, Mapping[Observed, VmState]]] = {
    state: dict.fromkeys(_OFF, VmState.STOPPED) | {Observed.SUSPENDED: VmState.SUSPENDED}
    for state in (VmState.ACTIVE, VmState.PAUSED)
}


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """How a host's instances are started again; the operator's."""

    #: So many are being started at once.
    parallel: int = 4
    #: Seconds between the last of a priority and the first of the next lower one.
    delay: float = 0.0
    #: Seconds after which one that is still being started holds up lower priorities no longer. It keeps its place
    #: among those that are started at once.
    patience: float = 60.0
    #: Of an instance that names none.
    priority: int = 0


class Kept(enum.StrEnum):
    """What is done about an instance."""

    #: It is started again, by a row of the action table, when its turn comes.
    START = "start"
    #: It is recorded as what it is now.
    ADOPT = "adopt"
    #: It stays as it is, whatever the arbiter's table says of one that is off.
    LEAVE = "leave"
    #: An operation is in flight; what is to be done is seen when that has ended.
    IN_FLIGHT = "in flight"
    #: The boot has nothing to do with it; the arbiter's table judges it.
    TABLE = "table"


class Fate(msgspec.Struct, frozen=True, kw_only=True):
    """What the plan says of one instance."""

    kind: Kept
    #: For START: the key of a row of ``ACTIONS``.
    action: str | None = None
    #: For ADOPT.
    becomes: VmState | None = None
    says: str = ""
    #: A policy has nobody told.
    quiet: bool = False


class TurnState(enum.StrEnum):
    """How far an instance is in its host's plan."""

    WAITING = "waiting"
    STARTED = "started"
    ENDED = "ended"
    #: It stays as the plan left it, until anything is admitted for it.
    LEFT = "left"


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """An instance's place in the plan of a host's boot; one row of ``boot_turns``."""

    instance_id: str
    host: str
    boot_id: str
    #: It counts for as long as the instance has this one.
    fence: int
    priority: int
    #: Those of one priority are started in the order in which they were made.
    number: int
    state: TurnState
    operation_id: str | None = None
    began_at: float | None = None
    ended_at: float | None = None
    #: How it ended.
    outcome: str | None = None
    says: str = WAITS


def explained(instance: Instance) -> bool:
    """Say whether it is what a boot of its host makes of a guest that ran, or was halted."""
    if instance.vm_state is VmState.RESIZED and instance.was is not VmState.ACTIVE:
        return False
    if instance.observed is Observed.SHUTOFF and instance.cause in MEMORY_ELSEWHERE:
        # It was off before.
        return False
    return instance.observed in _EXPLAINED.get(instance.vm_state, frozenset())


def as_rebooted(instance: Instance) -> Instance:
    """Return the instance as the arbiter's table is to judge it: it went off with its host."""
    return msgspec.structs.replace(instance, cause=Cause.HOST) if explained(instance) else instance


def fate_of(instance: Instance, verdict: Verdict) -> Fate:
    """Say what becomes of an instance of a host that has booted.

    Args:
        instance: as it was before, and is seen now.
        verdict: what the arbiter's table and its policies say of it ``as_rebooted``.
    """
    if instance.task_state is not None:
        return Fate(kind=Kept.IN_FLIGHT)
    if not explained(instance):
        return Fate(kind=Kept.TABLE)
    resized = instance.vm_state is VmState.RESIZED
    if not resized and verdict.kind is Kind.QUARANTINE:
        return Fate(kind=Kept.ADOPT, becomes=VmState.ERROR, says=verdict.says)
    if not resized and verdict.kind is Kind.ADOPT:
        return Fate(kind=Kept.ADOPT, becomes=verdict.becomes, says=verdict.says)
    action = AFTER_BOOT.get("restore_start_resized" if resized else verdict.action or "")
    if action is None or not (resized or verdict.kind is Kind.RESTORE):
        return Fate(kind=Kept.LEAVE, says=verdict.says, quiet=verdict.kind is Kind.IGNORE)
    if (instance.owner_blocks | instance.admin_blocks | instance.hold_blocks) & OperationClass.START:
        return _locked_fate(instance)
    return Fate(kind=Kept.START, action=action, says=_SAYS[instance.vm_state])


_SAYS: Final[Mapping[VmState, str]] = {
    VmState.ACTIVE: "Its host has rebooted and it ran before; it is started again.",
    VmState.RESIZED: "Its host has rebooted and it ran before; it is started again, with its resize to be confirmed.",
    VmState.RESCUED: "Its host has rebooted and it was being rescued; its rescue system is started again.",
    VmState.PAUSED: "Its host has rebooted and it was paused, which a policy has it be again; its memory is lost.",
}


def _locked_fate(instance: Instance) -> Fate:
    """Say what becomes of an instance that would be started and has a lock that blocks it."""
    why = "Its host has rebooted, and a lock keeps it from being started"
    becomes = _RECORDED.get(instance.vm_state, {}).get(instance.observed)
    if becomes is None:
        return Fate(
            kind=Kept.LEAVE,
            says=f"{why}: it stays off. Release the lock and reboot it hard, or go on with it.",
        )
    word = "suspended" if becomes is VmState.SUSPENDED else "stopped"
    return Fate(
        kind=Kept.ADOPT,
        becomes=becomes,
        says=f"{why}: it is recorded as {word}. Release the lock and start it.",
    )


def priority_of(instance: Instance, default: int) -> int:
    """Return an instance's priority: its own, its image's, its flavor's, or the default."""
    for properties in (instance.metadata, instance.image.properties, instance.flavor.extra_specs):
        try:
            priority = int(properties[PRIORITY])
        except (KeyError, ValueError):
            continue
        if abs(priority) <= MOST_PRIORITY:
            return priority
    return default


def next_turns(
    turns: Sequence[Turn], ready: AbstractSet[str], pace: Pace, now: float
) -> tuple[list[Turn], float | None]:
    """Say which instances are to be started now.

    Args:
        turns: the whole plan of a host; no time in it lies ahead of ``now``.
        ready: those of the waiting ones, by id, that nothing else is being done to; the others hold nobody up.
        pace: the operator's.
        now: seconds since the epoch.

    Returns:
        Those whose turn it is, and the seconds after which to ask again if nothing happens until then; None: no time
        will make a difference.
    """
    waiting = [turn for turn in turns if turn.state is TurnState.WAITING and turn.instance_id in ready]
    if not waiting:
        return [], None
    priority = max(turn.priority for turn in waiting)
    before = [turn for turn in turns if turn.priority > priority and turn.state is not TurnState.LEFT]
    begins = max((_through(turn, pace) for turn in before if turn.began_at is not None), default=None)
    if begins is not None and begins + pace.delay > now:
        return [], begins + pace.delay - now
    free = pace.parallel - sum(turn.state is TurnState.STARTED for turn in turns)
    group = sorted((turn for turn in waiting if turn.priority == priority), key=lambda turn: turn.number)
    return group[: max(free, 0)], None


def _through(turn: Turn, pace: Pace) -> float:
    """Return when a turn that has begun holds up lower priorities no longer."""
    latest = (turn.began_at or 0.0) + pace.patience
    return latest if turn.ended_at is None else min(turn.ended_at, latest)


def summary(fates: Iterable[Fate]) -> dict[str, int]:
    """Count what a plan makes of the instances of a host."""
    counts = {kind.value: 0 for kind in Kept}
    for fate in fates:
        counts[fate.kind.value] += 1
    return counts
