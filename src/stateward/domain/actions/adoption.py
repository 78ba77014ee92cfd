"""Rows by which guests that somebody else made come under management, and are given back."""

from __future__ import annotations

from typing import Final

from stateward.domain.actions.row import CHANGE, DELETE, START, STOP, Action, Exempt, OnFailure, Policy, Role
from stateward.domain.states import Observed, TaskState, VmState
from stateward.domain.steps import Step

ADOPT: Final = Action(
    name="adopt_guest",
    # One that was given back, or deleted; of any other there is no row yet, and this inserts it.
    when=frozenset({VmState.DELETED}),
    pending=TaskState.SPAWNING,
    becomes=VmState.ACTIVE,
    as_found=True,
    undo="release_guest",
    wants=Observed.RUNNING,
    guard=Exempt("there is nothing to lock before it"),
    policy=Policy("stateward:adoptions:adopt", Role.ADMIN),
    steps=(Step.ADOPT,),
    on_failure=OnFailure.ERROR,
    says="Take over a guest that its host has already, as it is, and without touching it; its state is the one it has.",
)

ADOPTION: Final[tuple[Action, ...]] = (
    ADOPT,
    Action(
        name="release_guest",
        when=frozenset(
            {VmState.ACTIVE, VmState.PAUSED, VmState.SUSPENDED, VmState.STOPPED, VmState.ERROR},
        ),
        pending=TaskState.DELETING,
        becomes=VmState.DELETED,
        wants=Observed.MISSING,
        # What is given back is kept by no lock any more, whichever class it blocks.
        guard=START | STOP | DELETE | CHANGE,
        bound=True,
        policy=Policy("stateward:adoptions:release", Role.ADMIN),
        steps=(Step.RELEASE,),
        says="Give an adopted guest back as it is, and without touching it; its record ends as a deleted one's.",
    ),
)
