"""The checker finds what it must, and nothing else: it is what the proof of B1 rests on."""

from __future__ import annotations

import random
import time

import pytest

from stateward.domain.locks import ActorKind
from tests.linear.checker import bound_by_a_lock, check, refused_without_a_lock
from tests.linear.histories import explained, spoilt, working
from tests.linear.history import Outcome, Request, Verb

MEMBER, ADMIN = ActorKind.MEMBER, ActorKind.ADMIN
OK, LOCKED = Outcome.ADMITTED, Outcome.LOCKED


def asked(  # noqa: PLR0917 (a table is easiest to read in columns)
    actor: ActorKind, verb: Verb, invoked: int, answered: int, outcome: Outcome = OK, told: str = ""
) -> Request:
    if verb is Verb.LOCK and outcome is OK and not told:
        told = "-"
    return Request(
        client=0, actor=actor, verb=verb, invoked=invoked, answered=answered, outcome=outcome, told=told
    )


RIGHT = {
    "nothing at all": [],
    "a stop before a lock is finished after it, and the lock names it": [
        asked(MEMBER, Verb.STOP, 0, 1),
        asked(MEMBER, Verb.LOCK, 2, 3, told="stop"),
        asked(MEMBER, Verb.READ, 4, 5, told="active powering-off owner"),
        asked(MEMBER, Verb.READ, 6, 7, told="stopped - owner"),
    ],
    "a stop beside a lock may come first": [
        asked(MEMBER, Verb.LOCK, 0, 10),
        asked(MEMBER, Verb.STOP, 1, 9),
        asked(MEMBER, Verb.START, 11, 12, LOCKED),
    ],
    "a refusal beside a lock may come after it": [
        asked(MEMBER, Verb.LOCK, 0, 10),
        asked(MEMBER, Verb.STOP, 1, 9, LOCKED),
    ],
    "an admin passes both locks": [
        asked(MEMBER, Verb.LOCK, 0, 1),
        asked(ADMIN, Verb.LOCK, 2, 3),
        asked(ADMIN, Verb.STOP, 4, 5),
    ],
    "the provider's unlock leaves the owner's lock": [
        asked(MEMBER, Verb.LOCK, 0, 1),
        asked(ADMIN, Verb.LOCK, 2, 3),
        asked(ADMIN, Verb.UNLOCK, 4, 5),
        asked(MEMBER, Verb.STOP, 6, 7, LOCKED),
        asked(ADMIN, Verb.UNLOCK, 8, 9),
        asked(MEMBER, Verb.STOP, 10, 11),
    ],
    "a lock without an answer may hold": [
        asked(MEMBER, Verb.LOCK, 0, 10, Outcome.UNKNOWN),
        asked(MEMBER, Verb.STOP, 1, 2),
        asked(MEMBER, Verb.STOP, 11, 12, LOCKED),
    ],
    "a lock without an answer may never have come": [
        asked(MEMBER, Verb.LOCK, 0, 10, Outcome.UNKNOWN),
        asked(MEMBER, Verb.STOP, 11, 12),
    ],
    "what was overtaken says nothing": [
        asked(MEMBER, Verb.LOCK, 0, 1),
        asked(MEMBER, Verb.STOP, 2, 3, Outcome.OVERTAKEN),
    ],
}

#: The history, and the number of the answer that no order explains.
WRONG = {
    "a stop after a lock": ([asked(MEMBER, Verb.LOCK, 0, 1), asked(MEMBER, Verb.STOP, 2, 3)], 1),
    "a stop after the provider's lock, though the owner unlocked": (
        [
            asked(ADMIN, Verb.LOCK, 0, 1),
            asked(MEMBER, Verb.UNLOCK, 2, 3, Outcome.FORBIDDEN),
            asked(MEMBER, Verb.STOP, 4, 5),
        ],
        2,
    ),
    "the provider's unlock took both locks": (
        [
            asked(MEMBER, Verb.LOCK, 0, 1),
            asked(ADMIN, Verb.LOCK, 2, 3),
            asked(ADMIN, Verb.UNLOCK, 4, 5),
            asked(MEMBER, Verb.STOP, 6, 7),
        ],
        3,
    ),
    "a refusal without a lock": ([asked(MEMBER, Verb.STOP, 0, 1, LOCKED)], 0),
    "a refusal after the unlock": (
        [
            asked(MEMBER, Verb.LOCK, 0, 1),
            asked(MEMBER, Verb.UNLOCK, 2, 3),
            asked(MEMBER, Verb.STOP, 4, 5, LOCKED),
        ],
        2,
    ),
    "an admin refused as locked": (
        [asked(ADMIN, Verb.LOCK, 0, 1), asked(ADMIN, Verb.STOP, 2, 3, LOCKED)],
        1,
    ),
    "a member released the provider's lock": (
        [asked(ADMIN, Verb.LOCK, 0, 1), asked(MEMBER, Verb.UNLOCK, 2, 3)],
        1,
    ),
    "two stops at once": ([asked(MEMBER, Verb.STOP, 0, 10), asked(MEMBER, Verb.STOP, 1, 9)], 0),
    "a lock that hides what is in flight": (
        [
            asked(MEMBER, Verb.STOP, 0, 1),
            asked(MEMBER, Verb.LOCK, 2, 3, told="-"),
            asked(ADMIN, Verb.STOP, 4, 5, Outcome.WRONG_TASK_STATE, "powering-off"),
        ],
        2,
    ),
    "a stop that acts after the lock it was checked before": (
        [
            asked(MEMBER, Verb.STOP, 0, 10),
            asked(MEMBER, Verb.LOCK, 1, 2),
            asked(MEMBER, Verb.READ, 3, 4, told="active - owner"),
            asked(MEMBER, Verb.READ, 11, 12, told="active powering-off owner"),
        ],
        0,
    ),
    "a lock that is answered before it is there": (
        [asked(MEMBER, Verb.LOCK, 0, 1), asked(MEMBER, Verb.READ, 2, 3, told="active - -")],
        1,
    ),
    "a lock without an answer that comes after the death": (
        [
            asked(MEMBER, Verb.LOCK, 0, 10, Outcome.UNKNOWN),
            asked(MEMBER, Verb.READ, 11, 12, told="active - -"),
            asked(MEMBER, Verb.STOP, 13, 14, LOCKED),
        ],
        2,
    ),
}


@pytest.mark.parametrize("history", RIGHT.values(), ids=RIGHT.keys())
def test_a_right_history_is_let_pass(history: list[Request]) -> None:
    """Each is explained by some order, the slow search says so too, and no interval check objects."""
    assert check(history) is None
    assert explained(history)
    assert not bound_by_a_lock(history)
    assert not refused_without_a_lock(history)


@pytest.mark.parametrize(("history", "guilty"), WRONG.values(), ids=WRONG.keys())
def test_a_planted_violation_is_found(history: list[Request], guilty: int) -> None:
    """At the answer that makes it one, whatever the order of the record."""
    assert not explained(history)
    shuffled = random.Random(1).sample(history, len(history))
    for record in history, shuffled:
        found = check(record)
        assert found is not None
        assert found.request == history[guilty]


@pytest.mark.parametrize(
    ("name", "bound", "without"),
    [
        ("a stop after a lock", 1, 0),
        ("a stop after the provider's lock, though the owner unlocked", 1, 0),
        ("a refusal without a lock", 0, 1),
        ("a refusal after the unlock", 0, 1),
        # An admin's second unlock would have taken the owner's lock: by intervals alone this cannot be told.
        ("the provider's unlock took both locks", 0, 0),
        ("two stops at once", 0, 0),
    ],
)
def test_the_interval_checks_find_their_own(name: str, bound: int, without: int) -> None:
    """Each of the two finds the violations of its own property that intervals can tell."""
    history, _guilty = WRONG[name]
    assert len(bound_by_a_lock(history)) == bound
    assert len(refused_without_a_lock(history)) == without


def test_the_search_agrees_with_trying_every_order() -> None:
    """On 3,000 small histories, half of them spoilt, it gives the answer of the slow search."""
    dice = random.Random(4711)
    verdicts = {True: 0, False: 0}
    for seed in range(3000):
        history = working(seed=seed, clients=dice.randint(2, 5), requests=dice.randint(1, 7))
        assert explained(history)
        if seed % 2:
            for _ in range(dice.randint(1, 3)):
                history = spoilt(history, dice)
        right = explained(history)
        assert (check(history) is None) is right, "\n".join(map(str, history))
        if right:
            assert not bound_by_a_lock(history)
            assert not refused_without_a_lock(history)
        verdicts[right] += 1
    assert min(verdicts.values()) > 500


@pytest.mark.slow
@pytest.mark.parametrize("finishing", [0.02, 0.4, 1.0])
def test_a_long_right_history_passes_and_one_wrong_answer_in_it_does_not(finishing: float) -> None:
    """Twenty thousand requests of sixteen clients, in seconds, however long operations take."""
    history = working(seed=7, clients=16, requests=20_000, finishing=finishing)
    began = time.process_time()
    assert check(history) is None
    assert not bound_by_a_lock(history)
    assert not refused_without_a_lock(history)
    assert time.process_time() - began < 20
    # A member's stop that was refused as locked when nothing else was pending, told to have been admitted.
    ordered = sorted(history, key=lambda each: each.answered)
    found = None
    # In its middle: to find it, the search goes through all that comes before once more.
    for number in range(5_000, 5_200):
        guilty = ordered[number]
        if guilty.outcome is LOCKED:
            changed = [*ordered[:number], asked(MEMBER, guilty.verb, guilty.invoked, guilty.answered)]
            found = check([*changed, *ordered[number + 1 :]])
            if found is not None:
                break
    assert found is not None
