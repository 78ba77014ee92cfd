"""Made-up histories: those of an instance that works, from a seed, and the slow but obvious check of small ones."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Sequence
from typing import Final

import msgspec

from stateward.domain.locks import ActorKind
from tests.linear.history import Outcome, Request, Verb
from tests.linear.model import Answer, State, finish, react

#: How often each verb is asked for.
_MIX: Final = {Verb.LOCK: 3, Verb.UNLOCK: 4, Verb.STOP: 5, Verb.START: 5, Verb.READ: 3}

#: What need not have had any effect.
_SILENT: Final = frozenset({Outcome.UNKNOWN, Outcome.OVERTAKEN})


def working(*, seed: int, clients: int, requests: int, finishing: float = 0.4) -> list[Request]:
    """Make a history that is linearizable by construction: every request takes effect between its two times.

    Args:
        seed: of all choices.
        clients: how many ask at the same time; every fourth is an admin.
        requests: how many in all.
        finishing: the chance that an operation in flight is finished before the next request takes effect.
    """
    dice = random.Random(seed)
    # (time of effect, client, actor, verb, invoked)
    waiting: list[tuple[int, int, ActorKind, Verb, int]] = []
    state = State()
    history: list[Request] = []
    free = [(0, client) for client in range(clients)]
    heapq.heapify(free)
    begun = 0
    while len(history) < requests:
        if free and begun < requests and (not waiting or free[0][0] <= waiting[0][0]):
            at, client = heapq.heappop(free)
            begun += 1
            actor = ActorKind.ADMIN if client % 4 == 3 else ActorKind.MEMBER
            verb = dice.choices(list(_MIX), list(_MIX.values()))[0]
            heapq.heappush(waiting, (at + dice.randint(1, 100), client, actor, verb, at))
            continue
        at, client, actor, verb, invoked = heapq.heappop(waiting)
        if dice.random() < finishing:
            state = finish(state)
        answer, state = react(state, actor, verb)
        answered = at + dice.randint(1, 100)
        history.append(
            Request(
                client=client,
                actor=actor,
                verb=verb,
                invoked=invoked,
                answered=answered,
                outcome=answer.outcome,
                told=answer.told,
            )
        )
        heapq.heappush(free, (answered + dice.randint(1, 20), client))
    return history


def spoilt(history: Sequence[Request], dice: random.Random) -> list[Request]:
    """Change one answer, or take one away, at random; what comes out may still be linearizable."""
    spoilt = list(history)
    number = dice.randrange(len(spoilt))
    request = spoilt[number]
    if dice.random() < 0.25:
        spoilt[number] = msgspec.structs.replace(request, outcome=Outcome.UNKNOWN, told="")
        return spoilt
    states = [
        State(owner=owner, admin=admin, stopped=stopped)
        for owner, admin, stopped in itertools.product((False, True), repeat=3)
    ]
    answer, _then = react(dice.choice(states), request.actor, request.verb)
    spoilt[number] = msgspec.structs.replace(request, outcome=answer.outcome, told=answer.told)
    return spoilt


def explained(history: Sequence[Request], state: State | None = None) -> bool:
    """Say whether some order explains a small history, by trying all of them."""
    state = state or State()
    if all(each.outcome in _SILENT for each in history):
        return True
    first_answer = min(each.answered for each in history)
    for number, request in enumerate(history):
        if request.invoked > first_answer:
            continue
        rest = [*history[:number], *history[number + 1 :]]
        if request.outcome in _SILENT and explained(rest, state):
            return True
        for now in {state, finish(state)}:
            answer, then = react(now, request.actor, request.verb)
            fits = request.outcome is Outcome.UNKNOWN or answer == Answer(request.outcome, request.told)
            if fits and explained(rest, then):
                return True
    return False
