"""The rules by which a running operation is extended, escalated or cancelled (B4).

Pure: ``order`` says from an operation's row what it is to be told next, or why it is not. The store writes that in
one UPDATE that is guarded by everything the decision was made of. The agent, who alone knows what the guest does at
this moment, has the last word on a cancel: one that reaches it after the guest's time was up changes nothing.
"""

from __future__ import annotations

from typing import Final

from stateward.domain.actions import BY_KEY
from stateward.domain.errors import Conflict, Forbidden, Invalid
from stateward.domain.locks import ActorKind
from stateward.domain.records import Command, Operation, Order
from stateward.domain.steps import Step

#: Whose operations a caller of each kind may control. A lock does not matter: who may begin an operation may end its
#: wait. But what the provider began, an owner neither delays nor calls off.
CONTROLS: Final[dict[ActorKind, frozenset[ActorKind]]] = {
    ActorKind.MEMBER: frozenset({ActorKind.MEMBER}),
    ActorKind.ADMIN: frozenset(ActorKind),
    ActorKind.SYSTEM: frozenset(ActorKind),
}

#: What nobody may do while a hold keeps the instance off (R6).
HOLD_REFUSES: Final = frozenset({Command.EXTEND, Command.CANCEL})


def waits_for_guest(steps: tuple[Step, ...]) -> bool:
    """Say whether an operation of these steps has a wait that can be controlled."""
    return Step.SHUT_DOWN in steps


def order(
    command: Command,
    operation: Operation,
    actor: ActorKind,
    *,
    held: bool,
    seconds: int | None = None,
    cap: int,
) -> Order | None:
    """Return what an operation is to be told; None when that stands already.

    Args:
        command: what is wanted.
        operation: its row as it is.
        actor: who asks.
        held: whether a hold keeps the instance off.
        seconds: for ``EXTEND``: what the guest shall get in all, from when it was first asked.
        cap: the operator's, in seconds; more is cut to it.

    Raises:
        Forbidden: the operation is not the caller's to control.
        Invalid: ``seconds`` is no time to extend to.
        Conflict: it is finished, has no wait, or is past the point where this could be done.
    """
    if operation.actor_kind not in CONTROLS[actor]:
        raise Forbidden(f"stateward:operations:{command}")
    _check_state(command, operation)
    if held and command in HOLD_REFUSES:
        raise Conflict(f"A hold keeps instance {operation.instance_id} off; it cannot be told to {command}.")
    standing = operation.order
    if standing is not None and standing.command is not Command.EXTEND:
        if standing.command is command:
            return None
        raise Conflict(f"Operation {operation.id} was already told to {standing.command}.")
    if command is Command.EXTEND:
        seconds = _extension(operation, seconds, cap)
        if seconds == given_seconds(operation):
            return None
    return Order(
        operation_id=operation.id,
        instance_id=operation.instance_id,
        number=1 if standing is None else standing.number + 1,
        command=command,
        seconds=seconds if command is Command.EXTEND else None,
    )


def given_seconds(operation: Operation) -> int:
    """Return what the guest gets in all, in seconds from when it was first asked: as admitted, or as extended."""
    if operation.order is not None and operation.order.seconds is not None:
        return operation.order.seconds
    shutdown = operation.params.get("shutdown")
    return 0 if shutdown is None else int(shutdown["seconds"])


def _check_state(command: Command, operation: Operation) -> None:
    if operation.finished_at is not None:
        raise Conflict(
            f"Operation {operation.id} is finished ({operation.state}); it cannot be told to {command} any more."
        )
    steps = BY_KEY[operation.action].steps
    if not waits_for_guest(steps):
        raise Conflict(
            f"Operation {operation.id} ({operation.action}) has no wait for its guest; "
            f"there is nothing to {command}."
        )
    progress = operation.progress
    if progress is not None and progress.step in steps[steps.index(Step.SHUT_DOWN) + 1 :]:
        raise Conflict(
            f"Operation {operation.id} is past its guest's shutdown, at step {progress.step} "
            f"({progress.number} of {progress.of}), which cannot be undone; it is too late to {command}."
        )


def _extension(operation: Operation, seconds: int | None, cap: int) -> int:
    if seconds is None or seconds <= 0:
        raise Invalid(f"Invalid input for field/attribute seconds. Value: {seconds}. It must be from 1 up")
    given = given_seconds(operation)
    wanted = min(seconds, cap)
    if wanted < given:
        raise Conflict(
            f"The guest of operation {operation.id} gets {given} seconds already; it can be given more, not less."
        )
    return wanted
