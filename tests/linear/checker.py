"""Checks of histories: was every answer one that an instance with working locks could have given?

``check`` decides linearizability against ``model``: whether there is one order of all requests, and of the ends of
the operations they began, such that

* a request that was answered before another was invoked comes before it,
* every answer, the refusals with their reasons and the readings included, is the one that the sequential instance
  gives at its place in the order,
* a request without an answer has its place before the moment the server was certainly dead, or none at all.

It is exact both ways: None is a proof that such an order exists, a violation one that there is none. What that says
of locks (B1): no operation that a lock binds was admitted, anywhere in the order, between the lock and its unlock;
no refusal as locked was given while nothing was locked; and what was in flight when a lock was placed is what its
answer named. A server that checks and then acts is convicted by the readings, and by the answers of other requests,
that come between the two.

``bound_by_a_lock`` and ``refused_without_a_lock`` look at two of these properties alone, by intervals, in
O(n log n): they miss some violations, but each one they find is certain, and is told by itself. They share nothing
with the search but the records.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterable, Sequence
from typing import Final

from stateward.domain.locks import ActorKind
from tests.linear.history import Outcome, Request, Verb
from tests.linear.model import Answer, State, finish, react
from tests.linear.search import Search, Violation

#: What a request is in the search: those that are alike differ in nothing but their times.
_Kind = tuple[ActorKind, Verb, Outcome, str]


class _TwoLocks:
    """The model of the two locks, as the search asks it."""

    def kind(self, request: Request) -> _Kind:
        """See ``Model``."""
        return (request.actor, request.verb, request.outcome, request.told)

    def changes(self, request: Request) -> bool:
        """Only what was admitted does, unless it reads."""
        return request.outcome is Outcome.ADMITTED and request.verb is not Verb.READ

    def after(self, state: State, request: Request) -> tuple[State, ...]:
        """See ``Model``."""
        if request.outcome is Outcome.OVERTAKEN:
            return (state,)
        answer, then = react(state, request.actor, request.verb)
        if request.outcome is not Outcome.UNKNOWN and answer != Answer(request.outcome, request.told):
            return ()
        return (then,)

    def by_itself(self, state: State) -> tuple[tuple[int, State], ...]:
        """An operation in flight ends."""
        return () if state.in_flight is None else ((0, finish(state)),)


def check(requests: Iterable[Request], initial: State | None = None) -> Violation[Request] | None:
    """Decide whether a history of one instance is linearizable; return the first answer that none explains.

    Args:
        requests: the history, in any order.
        initial: what the instance was before; active and unlocked when not given.
    """
    return Search(_TwoLocks(), initial or State()).check(list(requests))


# ---- two properties by themselves


def bound_by_a_lock(requests: Sequence[Request]) -> list[Violation[Request]]:
    """Find operations that were admitted though a lock certainly bound them.

    That is: invoked after a lock was answered, and answered before any unlock was invoked that could have taken
    that lock away after it was placed. Admins are bound by nobody here.
    """
    found: list[Violation[Request]] = []
    for kind in ActorKind.MEMBER, ActorKind.ADMIN:
        locks = sorted(_of(requests, Verb.LOCK, {kind}), key=lambda each: each.answered)
        answered = [each.answered for each in locks]
        # The latest invocation among the locks that were answered up to each of them.
        invoked = list(itertools.accumulate((each.invoked for each in locks), max))
        # A member takes away the owner's lock only, an admin either; one without an answer may have.
        releasers = {ActorKind.ADMIN, kind}
        unlocks = sorted(
            _of(requests, Verb.UNLOCK, releasers, or_unknown=True), key=lambda each: each.invoked
        )
        unlock_invoked = [each.invoked for each in unlocks]
        unlock_answered = list(itertools.accumulate((each.answered for each in unlocks), max))
        for request in requests:
            if not _changes_as_member(request) or request.outcome is not Outcome.ADMITTED:
                continue
            before = bisect.bisect_left(answered, request.invoked)
            if not before:
                continue
            unlocked = bisect.bisect_right(unlock_invoked, request.answered)
            if not unlocked or unlock_answered[unlocked - 1] < invoked[before - 1]:
                says = f"admitted though the {'owner' if kind is ActorKind.MEMBER else 'admin'} lock held"
                found.append(Violation(request=request, says=says))
    return found


def refused_without_a_lock(requests: Sequence[Request]) -> list[Violation[Request]]:
    """Find refusals as locked that were given while certainly nothing was locked.

    That is: for every lock that was invoked before the refusal was answered, an unlock that takes this kind of lock
    away whatever else is locked was invoked after the lock was answered, and answered before the refused request
    was invoked.
    """
    held: list[list[tuple[int, int]]] = []
    for kind in ActorKind.MEMBER, ActorKind.ADMIN:
        locks = sorted(_of(requests, Verb.LOCK, {kind}, or_unknown=True), key=lambda each: each.invoked)
        unlocks = sorted(_of(requests, Verb.UNLOCK, {kind}), key=lambda each: each.invoked)
        unlock_invoked = [each.invoked for each in unlocks]
        # The first answer among the unlocks that were invoked from each of them on.
        answered = list(itertools.accumulate((each.answered for each in reversed(unlocks)), min))[::-1]
        spans: list[tuple[int, int]] = []
        for lock in locks:
            after = bisect.bisect_right(unlock_invoked, lock.answered)
            spans.append((lock.invoked, answered[after] if after < len(unlocks) else _NEVER))
        # Until when a lock may have held that was invoked up to each of them.
        until = list(itertools.accumulate((end for _begin, end in spans), max))
        held.append([(begin, end) for (begin, _end), end in zip(spans, until, strict=True)])
    found: list[Violation[Request]] = []
    for request in requests:
        if request.outcome is not Outcome.LOCKED:
            continue
        if not any(_may_hold(spans, request) for spans in held):
            found.append(Violation(request=request, says="refused as locked though nothing was"))
    return found


_NEVER: Final = 1 << 63


def _may_hold(spans: list[tuple[int, int]], request: Request) -> bool:
    before = bisect.bisect_right(spans, (request.answered, _NEVER))
    return bool(before) and spans[before - 1][1] >= request.invoked


def _changes_as_member(request: Request) -> bool:
    return request.actor is ActorKind.MEMBER and request.verb in {Verb.STOP, Verb.START}


def _of(
    requests: Sequence[Request], verb: Verb, actors: set[ActorKind], *, or_unknown: bool = False
) -> list[Request]:
    """Return the admitted requests of a verb by some actors; and, if wanted, those that may have been admitted."""
    outcomes = {Outcome.ADMITTED, Outcome.UNKNOWN} if or_unknown else {Outcome.ADMITTED}
    return [
        each for each in requests if each.verb is verb and each.actor in actors and each.outcome in outcomes
    ]


def every_violation(requests: Sequence[Request], initial: State | None = None) -> list[Violation[Request]]:
    """Return what all three checks find; ``check`` stops at its first."""
    first = check(requests, initial)
    certain = [*bound_by_a_lock(requests), *refused_without_a_lock(requests)]
    return certain if first is None else [first, *certain]
