"""The sequential instance: what one instance answers to requests that come one after the other.

Written down a second time on purpose, from the requirements (R3, R5, B1) and not from the action table, so that a
wrong row is found and not believed. Small enough to be checked by reading it.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from stateward.domain.locks import ActorKind
from tests.linear.history import Outcome, Verb

NOTHING: Final = "-"


class State(NamedTuple):
    """An instance: its two locks, its vm state, and the operation in flight."""

    owner: bool = False
    admin: bool = False
    stopped: bool = False
    #: The operation that was admitted last and is not finished: ``STOP``, ``START`` or none.
    in_flight: Verb | None = None

    @property
    def vm_state(self) -> str:
        """The recorded state; it changes when the operation is finished."""
        return "stopped" if self.stopped else "active"

    @property
    def task_state(self) -> str:
        """What the API shows of the operation in flight."""
        return {Verb.STOP: "powering-off", Verb.START: "powering-on"}.get(
            self.in_flight or Verb.READ, NOTHING
        )

    @property
    def locked_by(self) -> str:
        """Whose lock a reader is shown: the strongest."""
        return "admin" if self.admin else "owner" if self.owner else NOTHING


class Answer(NamedTuple):
    """What a client is told."""

    outcome: Outcome
    told: str = ""


def react(state: State, actor: ActorKind, verb: Verb) -> tuple[Answer, State]:
    """Answer one request and return what the instance is then.

    A lock's answer tells the operation in flight, a refusal the state that it refuses for, a reading everything.
    """
    match verb:
        case Verb.READ:
            told = f"{state.vm_state} {state.task_state} {state.locked_by}"
            return Answer(Outcome.ADMITTED, told), state
        case Verb.LOCK:
            then = state._replace(owner=True) if actor is ActorKind.MEMBER else state._replace(admin=True)
            return Answer(Outcome.ADMITTED, state.in_flight or NOTHING), then
        case Verb.UNLOCK:
            if state.admin and actor is ActorKind.MEMBER:
                return Answer(Outcome.FORBIDDEN), state
            then = state._replace(admin=False) if state.admin else state._replace(owner=False)
            return Answer(Outcome.ADMITTED), then
        case Verb.STOP | Verb.START:
            if actor is ActorKind.MEMBER and (state.owner or state.admin):
                return Answer(Outcome.LOCKED), state
            if state.stopped is not (verb is Verb.START):
                return Answer(Outcome.WRONG_VM_STATE, state.vm_state), state
            if state.in_flight is not None:
                return Answer(Outcome.WRONG_TASK_STATE, state.task_state), state
            return Answer(Outcome.ADMITTED), state._replace(in_flight=verb)


def finish(state: State) -> State:
    """Return what the instance is when its operation in flight is finished; without one it stays as it is."""
    if state.in_flight is None:
        return state
    return state._replace(stopped=state.in_flight is Verb.STOP, in_flight=None)
