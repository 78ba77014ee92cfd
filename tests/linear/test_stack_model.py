"""The model of the stack explains what it must, and nothing else: it is what the proof of B1, B2 and R6 rests on."""

from __future__ import annotations

import random
from typing import Any, Final

import pytest

from stateward.domain.locks import ActorKind
from tests.linear.history import Outcome
from tests.linear.search import Search
from tests.linear.stack_history import Asked, Deed
from tests.linear.stack_model import SLACK, Stack, StackModel

OK, LOCKED = Outcome.ADMITTED, Outcome.LOCKED
#: A time that is long after everything else, and after which everything is.
LATE: Final = 100 * SLACK


def asked(user: str, deed: Deed, at: int, outcome: Outcome = OK, told: str = "", **more: Any) -> Asked:
    """Make a request that was invoked at a time and answered ``takes`` later, by default before the next."""
    if outcome is OK and not told and deed in {Deed.PLACE, Deed.LOCK} and not more.get("overtake"):
        told = "-"
    admin = user in {"admin", "second"}
    return Asked(
        user=user,
        actor=ActorKind.ADMIN if admin else ActorKind.MEMBER,
        deed=deed,
        invoked=at,
        answered=at + more.pop("takes", 5),
        outcome=outcome,
        told=told,
        **more,
    )


def place(user: str, at: int, lock: str, outcome: Outcome = OK, **more: Any) -> Asked:
    return asked(user, Deed.PLACE, at, outcome, lock=lock, name=more.pop("name", lock), **more)


def hold(at: int, lock: str = "h", *, way: str = "none", **more: Any) -> Asked:
    known: dict[str, Any] = {"operation": f"holding {lock}", "end": "succeeded", **more}
    return asked(
        "admin",
        Deed.HOLD,
        at,
        lock=lock,
        name=lock,
        way=way,
        **known,
    )


def release(user: str, at: int, lock: str, outcome: Outcome = OK, **more: Any) -> Asked:
    return asked(user, Deed.RELEASE, at, outcome, lock=lock, **more)


def stop(user: str, at: int, outcome: Outcome = OK, **more: Any) -> Asked:
    known: dict[str, Any] = {"operation": f"stop at {at}", "end": "succeeded"} if outcome is OK else {}
    known |= more
    return asked(user, Deed.STOP, at, outcome, **known)


def change(user: str, at: int, outcome: Outcome = OK) -> Asked:
    return asked(user, Deed.CHANGE, at, outcome)


def override(at: int, *, uses: int = 0, expires: int | None = None, user: str = "second") -> Asked:
    return asked(user, Deed.OVERRIDE, at, lock="h", uses=uses, expires=expires)


def stack(at: int, *locks: str) -> Asked:
    return asked("demo", Deed.STACK, at, told=" ".join(sorted(locks)) or "-")


def view(at: int, told: str) -> Asked:
    return asked("demo", Deed.VIEW, at, told=told)


def work(at: int, told: str) -> Asked:
    return asked("demo", Deed.WORK, at, told=told)


RIGHT = {
    "releasing one lock leaves the other": [
        place("demo", 0, "a"),
        place("colleague", 10, "b", blocks="stop"),
        release("demo", 20, "a"),
        stop("demo", 30, LOCKED),
        change("demo", 40),
        stack(50, "b"),
    ],
    "a lock binds no admin": [place("demo", 0, "a"), stop("admin", 10)],
    "a colleague's lock is not released": [
        place("colleague", 0, "a"),
        release("demo", 10, "a", Outcome.FORBIDDEN),
        release("admin", 20, "a"),
        release("colleague", 30, "a", Outcome.NOT_FOUND),
    ],
    "a sealed lock is not released by who placed it": [
        place("demo", 0, "a", sealed=True),
        release("demo", 10, "a", Outcome.FORBIDDEN),
        release("admin", 20, "a"),
    ],
    "a name is free again": [
        place("demo", 0, "a", name="n"),
        place("demo", 10, "", Outcome.NAME_TAKEN, name="n"),
        place("colleague", 20, "b", name="n"),
        release("demo", 30, "a"),
        place("demo", 40, "c", name="n"),
        stack(50, "b", "c"),
    ],
    "a hold binds admins, and shows as the provider's": [
        hold(0),
        view(10, "active - admin"),
        stop("second", 20, LOCKED),
        asked("demo", Deed.UNLOCK, 30),
        release("second", 40, "h"),
        stop("second", 50),
    ],
    "a hold overtakes a stop": [
        stop("demo", 0, end="superseded"),
        hold(10, way="suspend"),
        view(20, "active suspending admin"),
        work(30, "holding h"),
        view(40, "suspended - admin"),
    ],
    "a hold comes after a stop that succeeded": [stop("demo", 0), hold(10), view(20, "stopped - admin")],
    "what an overtaken stop left is adopted": [
        stop("demo", 0, end="superseded"),
        place("demo", 10, "a", overtake=True),
        view(20, "active - owner"),
        view(30, "stopped - owner"),
    ],
    "what an overtaken stop left is brought back": [
        stop("demo", 0, end="superseded"),
        place("demo", 10, "a", overtake=True),
        view(20, "active powering-on owner"),
        view(30, "active - owner"),
    ],
    "a hold that was overtaken by another is made up for": [
        hold(0, way="suspend", end="superseded"),
        hold(10, "i"),
        view(20, "active suspending admin"),
        view(30, "suspended - admin"),
    ],
    "a hold that failed is made up for": [
        stop("demo", 0, end="superseded"),
        hold(10, way="forced", end="failed"),
        view(20, "active - admin"),
        view(30, "active powering-off admin"),
        view(40, "stopped - admin"),
    ],
    "a lock waits for what was admitted before it": [
        stop("demo", 0),
        place("demo", 10, "a", told="stop"),
        view(20, "active powering-off owner"),
        view(30, "stopped - owner"),
    ],
    "a lock expires some time after its time is up": [
        place("demo", 0, "a", expires=2 * SLACK),
        stack(3 * SLACK, "a"),
        stop("colleague", 4 * SLACK, LOCKED),
        stack(5 * SLACK),
        stop("colleague", 6 * SLACK),
    ],
    "a lock that would have expired": [place("demo", LATE, "", Outcome.TOO_LATE, expires=1)],
    "an override is good for two operations": [
        hold(0),
        override(10, uses=1),
        override(20, uses=1),
        change("second", 30),
        change("second", 40),
        change("second", 50, LOCKED),
    ],
    "an override that was refused for another reason is still good": [
        hold(0),
        override(10, uses=1),
        asked("second", Deed.START, 20, Outcome.WRONG_VM_STATE, "active"),
        change("second", 30),
        change("second", 40, LOCKED),
    ],
    "an override is good for a while": [
        hold(0),
        override(10, expires=LATE),
        *(change("second", at) for at in range(20, 200, 10)),
        change("second", LATE, LOCKED),
        change("second", LATE + 10),
        change("second", 2 * LATE, LOCKED),
    ],
}

#: The history, and the number of the answer that no order explains.
WRONG = {
    "releasing one lock took the other": (
        [place("demo", 0, "a"), place("colleague", 10, "b"), release("demo", 20, "a"), stop("demo", 30)],
        3,
    ),
    "the other lock is not listed any more": (
        [place("demo", 0, "a"), place("colleague", 10, "b"), release("demo", 20, "a"), stack(30)],
        3,
    ),
    "another's lock was released": ([place("colleague", 0, "a"), release("demo", 10, "a")], 1),
    "a sealed lock was released": ([place("demo", 0, "a", sealed=True), release("demo", 10, "a")], 1),
    "the provider's lock was released by a member": (
        [place("admin", 0, "a"), release("demo", 10, "a")],
        1,
    ),
    "one lock was released twice": (
        [place("demo", 0, "a"), release("demo", 10, "a"), release("admin", 20, "a")],
        2,
    ),
    "a name twice": ([place("demo", 0, "a", name="n"), place("demo", 10, "b", name="n")], 1),
    "a lock blocks what it does not name": (
        [place("demo", 0, "a", blocks="delete"), stop("demo", 10, LOCKED)],
        1,
    ),
    "a stop under a hold, by an admin": ([hold(0), stop("second", 10)], 1),
    "a stop that acts after the lock it was checked before": (
        [
            stop("demo", 0, takes=100),
            place("demo", 10, "a", overtake=False),
            view(20, "active - owner"),
            view(110, "active powering-off owner"),
        ],
        0,
    ),
    "a hold over a stop that succeeds after all": (
        [stop("demo", 0), hold(10), view(20, "active - admin")],
        2,
    ),
    "a hold beside what it should have overtaken": (
        [stop("demo", 0, end="superseded"), hold(10, way="forced"), work(20, "stop at 0")],
        2,
    ),
    "a stop is unfinished after a hold": (
        [stop("demo", 0, end="superseded"), hold(10), view(20, "active powering-off admin")],
        2,
    ),
    "a guest that nothing was overtaken of changes by itself": (
        [view(0, "active - -"), view(10, "stopped - -")],
        1,
    ),
    "a held guest is started by the arbiter": (
        [
            stop("demo", 0, end="superseded"),
            hold(10),
            view(20, "active powering-on admin"),
        ],
        2,
    ),
    "a guest whose memory shall be kept has its power taken": (
        [
            hold(0, way="suspend", end="superseded"),
            hold(10, "i"),
            view(20, "active powering-off admin"),
        ],
        2,
    ),
    "a guest that is held as it is goes off": (
        [
            stop("demo", 0, end="superseded"),
            hold(10),
            view(20, "active powering-off admin"),
        ],
        2,
    ),
    "a guest that the glass was broken for is switched off again": (
        [
            hold(0, way="suspend", end="superseded"),
            hold(10, "i"),
            view(20, "suspended - admin"),
            *(override(30, uses=1), asked("second", Deed.OVERRIDE, 40, lock="i", uses=1)),
            asked("second", Deed.RESUME, 50, operation="resume at 50", end="superseded"),
            hold(60, "j"),
            view(70, "active - admin"),
            view(80, "active suspending admin"),
        ],
        7,
    ),
    "a lock expires early": (
        [place("demo", 0, "a", expires=LATE), stack(LATE // 2), stack(2 * LATE)],
        1,
    ),
    "an expired lock is back": (
        [
            place("demo", 0, "a", expires=2 * SLACK),
            stack(4 * SLACK),
            stop("colleague", 5 * SLACK, LOCKED),
        ],
        2,
    ),
    "an override is used twice": (
        [hold(0), override(10, uses=1), change("second", 20), change("second", 30)],
        3,
    ),
    "an override is used by another": ([hold(0), override(10, uses=1), change("admin", 20)], 2),
    "an override of a hold passes the next one": (
        [hold(0), override(10, uses=9), hold(20, "i"), change("second", 30)],
        3,
    ),
    "an override is used when its time is over": (
        [hold(0), override(10, expires=LATE), change("second", 2 * LATE)],
        2,
    ),
    "an override is refused in its time": (
        [hold(0), override(10, expires=LATE), change("second", 20, LOCKED)],
        2,
    ),
    "an override of what was released": ([hold(0), release("admin", 10, "h"), override(20, uses=1)], 2),
}


def guilty_of(history: list[Asked]) -> Asked | None:
    """Return the first answer that no order explains."""
    found = Search(StackModel(history), Stack()).check(history)
    return None if found is None else found.request


@pytest.mark.parametrize("history", RIGHT.values(), ids=RIGHT.keys())
def test_a_right_history_is_let_pass(history: list[Asked]) -> None:
    """Whatever the order of the record."""
    assert guilty_of(history) is None
    assert guilty_of(random.Random(1).sample(history, len(history))) is None


@pytest.mark.parametrize(("history", "guilty"), WRONG.values(), ids=WRONG.keys())
def test_a_planted_violation_is_found(history: list[Asked], guilty: int) -> None:
    """At the answer that makes it one, and nothing before it is one."""
    assert guilty_of(history) == history[guilty]
    assert guilty_of(random.Random(1).sample(history, len(history))) == history[guilty]
