"""The states an instance can be in, in Nova's own words, each with the sentence that documents it.

Three kinds of state, three owners (ADR 0001): ``VmState`` is the record (what the control plane believes),
``TaskState`` says which operation is in flight, and ``Observed`` with ``Cause`` is what a hypervisor said last.
``PowerState`` is the number Nova shows for the observation.
"""

from __future__ import annotations

import enum
from typing import Final


class VmState(enum.StrEnum):
    """The recorded, stable state of an instance (Nova ``vm_state``)."""

    BUILDING = "building"
    ACTIVE = "active"
    PAUSED = "paused"
    SUSPENDED = "suspended"
    STOPPED = "stopped"
    RESCUED = "rescued"
    RESIZED = "resized"
    SHELVED = "shelved"
    SHELVED_OFFLOADED = "shelved_offloaded"
    SOFT_DELETED = "soft-delete"
    ERROR = "error"
    DELETED = "deleted"


class TaskState(enum.StrEnum):
    """The operation in flight (Nova ``task_state``); no row keeps one without an unfinished operation (B3)."""

    SPAWNING = "spawning"
    POWERING_OFF = "powering-off"
    POWERING_ON = "powering-on"
    REBOOTING = "rebooting"
    REBOOTING_HARD = "rebooting_hard"
    PAUSING = "pausing"
    UNPAUSING = "unpausing"
    SUSPENDING = "suspending"
    RESUMING = "resuming"
    DELETING = "deleting"
    SOFT_DELETING = "soft-deleting"
    RESTORING = "restoring"
    RESCUING = "rescuing"
    UNRESCUING = "unrescuing"
    REBUILDING = "rebuilding"
    RESIZE_PREP = "resize_prep"
    RESIZE_MIGRATING = "resize_migrating"
    RESIZE_FINISH = "resize_finish"
    RESIZE_CONFIRMING = "resize_confirming"
    RESIZE_REVERTING = "resize_reverting"
    SHELVING = "shelving"
    SHELVING_OFFLOADING = "shelving_offloading"
    UNSHELVING = "unshelving"
    IMAGE_SNAPSHOT = "image_snapshot"
    IMAGE_BACKUP = "image_backup"


class PowerState(enum.IntEnum):
    """Nova's numbers for ``OS-EXT-STS:power_state``."""

    NOSTATE = 0
    RUNNING = 1
    PAUSED = 3
    SHUTDOWN = 4
    CRASHED = 6
    SUSPENDED = 7


class Observed(enum.StrEnum):
    """What a hypervisor says of a guest; ``MISSING`` and ``UNKNOWN`` are answers of their own (R12)."""

    RUNNING = "running"
    PAUSED = "paused"
    SUSPENDED = "suspended"
    SHUTOFF = "shutoff"
    CRASHED = "crashed"
    MISSING = "missing"
    UNKNOWN = "unknown"
    #: It is on another host than its record's, or there too; never an instance's own observation.
    DUPLICATE = "duplicate"


class Cause(enum.StrEnum):
    """Why a guest is in its observed state, as far as the hypervisor tells (libvirt's reason numbers)."""

    GUEST = "guest"
    DESTROYED = "destroyed"
    CRASHED = "crashed"
    #: The host's kernel ended it for want of memory, and that is known.
    OUT_OF_MEMORY = "out-of-memory"
    #: Halted: its memory or its disk is being written to a file. Off: its memory is in a file that the hypervisor does
    #: not keep for it, so only whoever has that file can go on with it.
    SAVED = "saved"
    OPERATOR = "operator"
    IO_ERROR = "io-error"
    MIGRATION = "migration"
    #: A migration broke off when a part of its memory was there and the rest here; neither half can run.
    HALF_MIGRATED = "half-migrated"
    #: It went off with its host, or while its host's daemon was away.
    HOST = "host"
    OTHER = "other"


#: Off by these, the guest's memory is somewhere else, and may run on; started here it would run twice, or on a disk
#: that its memory does not fit.
MEMORY_ELSEWHERE: Final[frozenset[Cause]] = frozenset({Cause.MIGRATION, Cause.SAVED})

#: The vm states of what was deleted, whether it can be restored or not; lists leave them out, as in Nova 34.
ENDED: Final[frozenset[VmState]] = frozenset({VmState.SOFT_DELETED, VmState.DELETED})

#: The vm states in which an instance takes up nothing on any host; its claims end where one of them begins.
ON_NO_HOST: Final[frozenset[VmState]] = frozenset({VmState.DELETED, VmState.SHELVED_OFFLOADED})

VM_STATE_SAYS: Final[dict[VmState, str]] = {
    VmState.BUILDING: "Accepted and being made for the first time.",
    VmState.ACTIVE: "Running.",
    VmState.PAUSED: "Its processors are halted; its memory stays in the host's memory.",
    VmState.SUSPENDED: "Off, its memory saved on disk; resume continues where it was.",
    VmState.STOPPED: "Off, with its disk kept.",
    VmState.RESCUED: "Running a rescue image, its own disk attached as the second one.",
    VmState.RESIZED: "Has another flavor; to be confirmed, or reverted to the one before.",
    VmState.SHELVED: "Off, its disk also kept in the image store; still on its host.",
    VmState.SHELVED_OFFLOADED: "On no host; its disk is kept in the image store.",
    VmState.SOFT_DELETED: "Deleted and off; it can be restored until its time has passed.",
    VmState.ERROR: "An operation could not finish; the fault says why and what to do.",
    VmState.DELETED: "Gone, with its disk; only its history can be read.",
}

POWER_OF_OBSERVED: Final[dict[Observed, PowerState]] = {
    Observed.RUNNING: PowerState.RUNNING,
    Observed.PAUSED: PowerState.PAUSED,
    # A saved guest's domain is shut off; Nova 34 with libvirt shows 4 for it as well.
    Observed.SUSPENDED: PowerState.SHUTDOWN,
    Observed.SHUTOFF: PowerState.SHUTDOWN,
    Observed.CRASHED: PowerState.CRASHED,
    Observed.MISSING: PowerState.NOSTATE,
    Observed.UNKNOWN: PowerState.NOSTATE,
    Observed.DUPLICATE: PowerState.NOSTATE,
}

_STATUS: Final[dict[VmState, str]] = {
    VmState.BUILDING: "BUILD",
    VmState.ACTIVE: "ACTIVE",
    VmState.PAUSED: "PAUSED",
    VmState.SUSPENDED: "SUSPENDED",
    VmState.STOPPED: "SHUTOFF",
    VmState.RESCUED: "RESCUE",
    VmState.RESIZED: "VERIFY_RESIZE",
    VmState.SHELVED: "SHELVED",
    VmState.SHELVED_OFFLOADED: "SHELVED_OFFLOADED",
    VmState.SOFT_DELETED: "SOFT_DELETED",
    VmState.ERROR: "ERROR",
    VmState.DELETED: "DELETED",
}

_STATUS_IN_TASK: Final[dict[tuple[VmState, TaskState], str]] = {
    (VmState.ACTIVE, TaskState.REBOOTING): "REBOOT",
    (VmState.ACTIVE, TaskState.REBOOTING_HARD): "HARD_REBOOT",
    (VmState.ACTIVE, TaskState.REBUILDING): "REBUILD",
    (VmState.STOPPED, TaskState.REBUILDING): "REBUILD",
    (VmState.ERROR, TaskState.REBUILDING): "REBUILD",
    # Between two hosts it is an image for a moment.
    **{
        (vm_state, task_state): "RESIZE"
        for vm_state in (VmState.ACTIVE, VmState.STOPPED, VmState.SHELVED_OFFLOADED)
        for task_state in (TaskState.RESIZE_PREP, TaskState.RESIZE_MIGRATING, TaskState.RESIZE_FINISH)
    },
    (VmState.RESIZED, TaskState.RESIZE_REVERTING): "REVERT_RESIZE",
}


def status(vm_state: VmState, task_state: TaskState | None) -> str:
    """Return the API's ``status`` word for a pair of states, as Nova derives it."""
    if task_state is not None:
        in_task = _STATUS_IN_TASK.get((vm_state, task_state))
        if in_task is not None:
            return in_task
    return _STATUS[vm_state]


def states_of_status(word: str) -> tuple[frozenset[VmState], frozenset[TaskState]] | None:
    """Return what a ``?status=`` filter selects: vm states, and task states when the word needs one.

    An empty set of task states means any. None: no such status exists.
    """
    word = word.upper()
    in_task = [pair for pair, name in _STATUS_IN_TASK.items() if name == word]
    if in_task:
        return frozenset(pair[0] for pair in in_task), frozenset(pair[1] for pair in in_task)
    found = frozenset(state for state, name in _STATUS.items() if name == word)
    return (found, frozenset()) if found else None


def why(before: tuple[Observed, Cause], now: tuple[Observed, Cause]) -> Cause:
    """Return why a guest is as it is now, having been seen before: a hypervisor that restarts forgets reasons.

    One that is still off, and of which it does not know any more that its memory is elsewhere, is off by that still.
    """
    off = before[0] is now[0] is Observed.SHUTOFF
    return before[1] if off and now[1] is Cause.OTHER and before[1] in MEMORY_ELSEWHERE else now[1]


def deviation(expected: VmState, observed: Observed, cause: Cause) -> str:
    """Return what is recorded and what was seen, as the row keeps of which of them a person was told."""
    return f"{expected} {observed} {cause}"
