"""Rows of the legal hold: whatever the instance is and whatever is being done to it, it ends off and held (R6).

A request names how the guest is to go off; which row that is, its state decides. Each overtakes what is in flight.
The lock itself is placed by the transaction that admits the row.
"""

from __future__ import annotations

from typing import Final

from stateward.domain import bodies
from stateward.domain.actions.row import ANY_TASK, LIVING, Action, Exempt, OnFailure, Policy, Role
from stateward.domain.states import Observed, TaskState, VmState
from stateward.domain.steps import Step

HOLD: Final = "hold"
_POLICY: Final = Policy("stateward:holds:place", Role.ADMIN)
_ITSELF: Final = Exempt("nothing may keep a hold from being placed (R6)")
#: Where the guest is, or may be, on; what ends in STOPPED.
_ON: Final = frozenset({VmState.ACTIVE, VmState.PAUSED, VmState.STOPPED, VmState.RESCUED})
#: Where the record stays what it is, with a guest that is off.
_STAYS: Final = frozenset({VmState.RESIZED, VmState.SHELVED, VmState.SOFT_DELETED, VmState.ERROR})
#: Each way to go off, by the word for it, with the steps that bring a guest off that way.
_WAYS: Final = {
    "clean": (Step.SHUT_DOWN, Step.POWER_OFF, Step.DISCARD_MEMORY),
    "forced": (Step.POWER_OFF, Step.DISCARD_MEMORY),
}
_HOW: Final = {"clean": "Hold it: shut the guest down", "forced": "Hold it: take the guest's power"}


def _rows(word: str) -> tuple[Action, ...]:
    """Return the rows of a way to go off."""
    steps, how = _WAYS[word], _HOW[word]
    return (
        Action(
            name=HOLD,
            label=word,
            variant=("shutdown", word),
            body=((1, bodies.Hold),),
            when=_ON,
            over=ANY_TASK,
            pending=TaskState.POWERING_OFF,
            becomes=VmState.STOPPED,
            wants=Observed.SHUTOFF,
            guard=_ITSELF,
            policy=_POLICY,
            steps=steps,
            says=f"{how}, overtaking whatever is in flight.",
        ),
        Action(
            name=HOLD,
            label=f"{word}_as_it_is",
            variant=("shutdown", word),
            body=((1, bodies.Hold),),
            when=_STAYS,
            over=ANY_TASK,
            pending=TaskState.POWERING_OFF,
            wants=Observed.SHUTOFF,
            guard=_ITSELF,
            policy=_POLICY,
            steps=steps,
            says=f"{how}; what the instance is besides stays.",
        ),
    )


def _everywhere(word: str) -> tuple[Action, ...]:
    """Return the rows of states in which it does not matter how the guest is to go off."""
    return (
        Action(
            name=HOLD,
            label=f"{word}_building",
            variant=("shutdown", word),
            body=((1, bodies.Hold),),
            when=frozenset({VmState.BUILDING}),
            over=ANY_TASK,
            pending=TaskState.POWERING_OFF,
            becomes=VmState.STOPPED,
            wants=Observed.SHUTOFF,
            guard=_ITSELF,
            policy=_POLICY,
            steps=(Step.POWER_OFF, Step.PREPARE_DISK, Step.DEFINE),
            on_failure=OnFailure.ERROR,
            says="Hold one that is being made: it is made, and not started.",
        ),
        Action(
            name=HOLD,
            label=f"{word}_suspended",
            variant=("shutdown", word),
            body=((1, bodies.Hold),),
            when=frozenset({VmState.SUSPENDED}),
            over=ANY_TASK,
            pending=TaskState.SUSPENDING,
            becomes=VmState.SUSPENDED,
            wants=Observed.SUSPENDED,
            guard=_ITSELF,
            policy=_POLICY,
            steps=(Step.SAVE_MEMORY,),
            says="Hold one that is suspended: its memory stays saved, or is saved again.",
        ),
        Action(
            name=HOLD,
            label=f"{word}_offloaded",
            variant=("shutdown", word),
            body=((1, bodies.Hold),),
            when=frozenset({VmState.SHELVED_OFFLOADED}),
            over=ANY_TASK,
            pending=TaskState.SHELVING_OFFLOADING,
            becomes=VmState.SHELVED_OFFLOADED,
            wants=Observed.MISSING,
            guard=_ITSELF,
            policy=_POLICY,
            steps=(Step.POWER_OFF, Step.DISCARD_MEMORY, Step.REMOVE),
            says="Hold one that is kept as an image: what is being made of it on a host is removed.",
        ),
    )


HOLDS: Final[tuple[Action, ...]] = (
    *_rows("clean"),
    *_rows("forced"),
    Action(
        name=HOLD,
        label="suspend",
        variant=("shutdown", "suspend"),
        body=((1, bodies.Hold),),
        when=frozenset({VmState.ACTIVE, VmState.PAUSED}),
        over=ANY_TASK,
        pending=TaskState.SUSPENDING,
        becomes=VmState.SUSPENDED,
        wants=Observed.SUSPENDED,
        guard=_ITSELF,
        policy=_POLICY,
        steps=(Step.SAVE_MEMORY,),
        says="Hold it: save the guest's memory and take its power, overtaking whatever is in flight.",
    ),
    Action(
        name=HOLD,
        label="suspend_off",
        variant=("shutdown", "suspend"),
        body=((1, bodies.Hold),),
        when=frozenset({VmState.STOPPED, VmState.RESCUED}),
        over=ANY_TASK,
        pending=TaskState.POWERING_OFF,
        becomes=VmState.STOPPED,
        wants=Observed.SHUTOFF,
        guard=_ITSELF,
        policy=_POLICY,
        steps=_WAYS["clean"],
        says="Hold one that has no memory of its own to keep: it is shut down.",
    ),
    Action(
        name=HOLD,
        label="suspend_as_it_is",
        variant=("shutdown", "suspend"),
        body=((1, bodies.Hold),),
        when=_STAYS,
        over=ANY_TASK,
        pending=TaskState.POWERING_OFF,
        wants=Observed.SHUTOFF,
        guard=_ITSELF,
        policy=_POLICY,
        steps=_WAYS["clean"],
        says="Hold one that cannot be suspended: it is shut down, and what it is besides stays.",
    ),
    *(row for word in ("clean", "forced", "suspend") for row in _everywhere(word)),
    Action(
        name=HOLD,
        label="none",
        variant=("shutdown", "none"),
        body=((1, bodies.Hold),),
        when=LIVING,
        over=ANY_TASK,
        guard=_ITSELF,
        policy=_POLICY,
        says="Hold it as it is: nobody changes it, and what is in flight is ended.",
    ),
)
