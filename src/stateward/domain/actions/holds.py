"""Rows of the legal hold: whatever the instance is and whatever is being done to it, it ends off and held (R6).

A request says how the guest is to go off (``WAYS``); which row that comes to, the instance's state decides. Each
overtakes what is in flight. The lock itself is placed by the transaction that admits the row.
"""

from __future__ import annotations

import functools
from typing import Final

from stateward.domain import bodies
from stateward.domain.actions.row import ANY_TASK, LIVING, Action, Exempt, OnFailure, Policy, Role
from stateward.domain.states import Observed, TaskState, VmState
from stateward.domain.steps import Step

#: What all of them have in common.
_hold = functools.partial(
    Action,
    name="hold",
    body=((1, bodies.Hold),),
    over=ANY_TASK,
    without_host=True,
    guard=Exempt("nothing may keep a hold from being placed (R6)"),
    policy=Policy("stateward:holds:place", Role.ADMIN),
)
#: Where the guest is, or may be, on; what ends in STOPPED.
_ON: Final = frozenset({VmState.ACTIVE, VmState.PAUSED, VmState.STOPPED, VmState.RESCUED})
#: Where the record stays what it is, with a guest that is off.
_STAYS: Final = frozenset({VmState.RESIZED, VmState.SHELVED, VmState.SOFT_DELETED, VmState.ERROR})
#: First: an adopted guest that is being given back is kept after all.
_CLEAN: Final = (Step.TAKE_BACK, Step.SHUT_DOWN, Step.POWER_OFF, Step.DISCARD_MEMORY)
_FORCED: Final = (Step.TAKE_BACK, Step.POWER_OFF, Step.DISCARD_MEMORY)

HOLDS: Final[tuple[Action, ...]] = (
    *(
        row
        for label, steps, how in (
            ("clean", _CLEAN, "shut the guest down"),
            ("forced", _FORCED, "take the guest's power"),
        )
        for row in (
            _hold(
                label=label,
                when=_ON,
                pending=TaskState.POWERING_OFF,
                becomes=VmState.STOPPED,
                wants=Observed.SHUTOFF,
                steps=steps,
                says=f"Hold it: {how}, overtaking whatever is in flight.",
            ),
            _hold(
                label=f"{label}_as_it_is",
                when=_STAYS,
                pending=TaskState.POWERING_OFF,
                wants=Observed.SHUTOFF,
                steps=steps,
                says=f"Hold it: {how}; what the instance is besides stays.",
            ),
        )
    ),
    _hold(
        label="suspend",
        when=frozenset({VmState.ACTIVE, VmState.PAUSED}),
        pending=TaskState.SUSPENDING,
        becomes=VmState.SUSPENDED,
        wants=Observed.SUSPENDED,
        steps=(Step.TAKE_BACK, Step.SAVE_IF_ON),
        says="Hold it: save the guest's memory and take its power, overtaking whatever is in flight.",
    ),
    _hold(
        label="building",
        when=frozenset({VmState.BUILDING}),
        pending=TaskState.POWERING_OFF,
        becomes=VmState.STOPPED,
        wants=Observed.SHUTOFF,
        steps=(Step.TAKE_BACK, Step.POWER_OFF, Step.PREPARE_DISK, Step.DEFINE),
        on_failure=OnFailure.ERROR,
        says="Hold one that is being made: it is made, and not started.",
    ),
    _hold(
        label="suspended",
        when=frozenset({VmState.SUSPENDED}),
        pending=TaskState.SUSPENDING,
        becomes=VmState.SUSPENDED,
        wants=Observed.SUSPENDED,
        steps=(Step.TAKE_BACK, Step.SAVE_IF_ON),
        says="Hold one that is suspended: its memory stays saved, or is saved again if it was being resumed.",
    ),
    _hold(
        label="offloaded",
        when=frozenset({VmState.SHELVED_OFFLOADED}),
        pending=TaskState.SHELVING_OFFLOADING,
        becomes=VmState.SHELVED_OFFLOADED,
        wants=Observed.MISSING,
        steps=(Step.POWER_OFF, Step.DISCARD_MEMORY, Step.REMOVE),
        says="Hold one that is kept as an image: what is being made of it on a host is removed.",
    ),
    _hold(
        label="none",
        when=LIVING,
        steps=(Step.STAND_DOWN,),
        says="Hold it as it is: nobody changes it, and what is in flight is ended.",
    ),
)

#: The keys of those that have the guest off, with whether they keep its memory.
ENDS_OFF: Final[dict[str, bool]] = {
    f"{row.name}_{row.label}": row.wants is Observed.SUSPENDED for row in HOLDS if row.wants is not None
}

_LABELS: Final = {row.label: row for row in HOLDS}
_ANY_WAY: Final = ("building", "suspended", "offloaded")
#: The rows of each way to go off, the first that fits the instance's state counts: what has no memory of its own to
#: keep, or cannot be suspended, is shut down.
WAYS: Final[dict[str, tuple[Action, ...]]] = {
    word: tuple(_LABELS[label] for label in labels)
    for word, labels in {
        "clean": ("clean", "clean_as_it_is", *_ANY_WAY),
        "forced": ("forced", "forced_as_it_is", *_ANY_WAY),
        "suspend": ("suspend", "clean", "clean_as_it_is", *_ANY_WAY),
        "none": ("none",),
    }.items()
}
