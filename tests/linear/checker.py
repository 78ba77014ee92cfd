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

The search is the just-in-time linearization of Wing and Gong, as improved by Lowe: the events are gone through in
time, and a request gets its place only when some answer forces one. What is kept is the set of all configurations
(state, which of the pending requests have their place) that explain the history so far. Three things keep that set
small, none of which loses an order:

* a pending request whose answer is right now, and that could change nothing in any state (a refusal, a reading), is
  given its place at once: an order in which it comes later stays right when it is moved to here;
* of pending requests that are alike, the one that is answered first is placed first: exchanging the two keeps an
  order right;
* the end of an operation is a step of its own that may come whenever one is in flight, so nothing need be known
  about how long operations take.

``bound_by_a_lock`` and ``refused_without_a_lock`` look at two of these properties alone, by intervals, in
O(n log n): they miss some violations, but each one they find is certain, and is told by itself. They share nothing
with the search but the records.
"""

from __future__ import annotations

import bisect
import functools
import itertools
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from stateward.domain.locks import ActorKind
from tests.linear.history import Outcome, Request, Verb
from tests.linear.model import Answer, State, every_state, finish, react

_STATES: Final = every_state()
_NUMBER: Final = {state: number for number, state in enumerate(_STATES)}
_FINISH: Final = [_NUMBER[finish(state)] for state in _STATES]

#: What a request is in the search: those that are alike differ in nothing but their times.
_Kind = tuple[ActorKind, Verb, Outcome, str]


class Violation(msgspec.Struct, frozen=True, kw_only=True):
    """An answer that no order explains."""

    request: Request
    #: Why, for people.
    says: str
    #: The requests that were pending when it was answered.
    pending: tuple[Request, ...] = ()

    def __str__(self) -> str:
        """Say it in a few lines."""
        return "\n  ".join((f"{self.says}: {self.request}", *(f"beside {each}" for each in self.pending)))


def check(requests: Iterable[Request], initial: State | None = None) -> Violation | None:
    """Decide whether a history of one instance is linearizable; return the first answer that none explains.

    Args:
        requests: the history, in any order.
        initial: what the instance was before; active and unlocked when not given.
    """
    history = list(requests)
    events = sorted(
        itertools.chain(
            # Of equal times the invocation counts as the earlier one: that makes fewer orders forbidden.
            ((request.invoked, 0, number) for number, request in enumerate(history)),
            ((request.answered, 1, number) for number, request in enumerate(history)),
        )
    )
    search = _Search(_NUMBER[initial or State()])
    for _at, what, number in events:
        request = history[number]
        if what == 0:
            search.invoke(number, request)
        elif not search.answer(number):
            return Violation(
                request=request,
                says="no order of the requests explains the answer",
                pending=tuple(history[other] for other in search.pending if other != number),
            )
    return None


class _Search:
    """The configurations that explain a history up to some moment."""

    def __init__(self, state: int) -> None:
        #: The request numbers that were invoked and not answered, with their slot: their bit in a configuration.
        self.pending: dict[int, int] = {}
        self.widest = 1
        #: (state, the slots of the pending requests that have their place)
        self._configurations: set[tuple[int, int]] = {(state, 0)}
        self._free: list[int] = []
        self._slots = 0
        self._kinds: dict[int, _Kind] = {}
        self._answered: dict[int, tuple[int, int]] = {}
        self._by_kind: defaultdict[_Kind, list[int]] = defaultdict(list)
        self._tables: dict[_Kind, list[int | None]] = {}
        #: The kinds that change nothing in any state in which their answer is right.
        self._harmless: set[_Kind] = set()

    def invoke(self, number: int, request: Request) -> None:
        """Let a request be given its place from now on."""
        if self._free:
            slot = self._free.pop()
        else:
            slot = self._slots
            self._slots += 1
        kind = (request.actor, request.verb, request.outcome, request.told)
        if kind not in self._tables:
            table = self._tables[kind] = [_after(state, kind) for state in _STATES]
            if all(then in {None, state} for state, then in enumerate(table)):
                self._harmless.add(kind)
        self.pending[number] = slot
        self._kinds[slot] = kind
        self._answered[slot] = (request.answered, number)
        bisect.insort(self._by_kind[kind], slot, key=self._answered.__getitem__)

    def answer(self, number: int) -> bool:
        """Keep the configurations in which the request has its place, made from those that have not placed it.

        Returns:
            Whether there is any; if not, the history is not linearizable.
        """
        slot = self.pending[number]
        bit = 1 << slot
        kept = {(state, placed & ~bit) for state, placed in self._configurations if placed & bit}
        waiting = [each for each in self._configurations if not each[1] & bit]
        if self._kinds[slot][2] is Outcome.UNKNOWN:
            # It need not ever have been seen by the server.
            kept.update(waiting)
        kept |= self._place(slot, waiting)
        if not kept:
            return False
        self.widest = max(self.widest, len(kept))
        self._configurations = kept
        del self.pending[number]
        kind = self._kinds.pop(slot)
        self._by_kind[kind].remove(slot)
        if not self._by_kind[kind]:
            del self._by_kind[kind]
        self._free.append(slot)
        return True

    def _place(self, slot: int, waiting: list[tuple[int, int]]) -> set[tuple[int, int]]:
        """Return the configurations in which this request is the last to be given its place."""
        bit = 1 << slot
        found: set[tuple[int, int]] = set()
        seen: set[tuple[int, int]] = set()
        # Worked out once for an answer, for they are looked at for every configuration.
        readings, changing = functools.cache(self._readings), self._changing()
        while waiting:
            state, placed = waiting.pop()
            placed |= readings(state)
            if placed & bit:
                found.add((state, placed & ~bit))
                continue
            if (state, placed) in seen:
                continue
            seen.add((state, placed))
            if _FINISH[state] != state:
                waiting.append((_FINISH[state], placed))
            for table, bits in changing:
                then = table[state]
                if then is None:
                    continue
                for first in bits:
                    if placed & first:
                        continue
                    if first == bit:
                        found.add((then, placed))
                    else:
                        waiting.append((then, placed | first))
                    break
        return found

    def _changing(self) -> list[tuple[list[int | None], list[int]]]:
        """Return, for each kind that may change something, what comes after each state, and its slots as bits."""
        return [
            (self._tables[kind], [1 << each for each in slots])
            for kind, slots in self._by_kind.items()
            if kind not in self._harmless
        ]

    def _readings(self, state: int) -> int:
        """Return the slots of the pending requests that are answered rightly in a state and change nothing ever."""
        slots = 0
        for kind, those in self._by_kind.items():
            if kind in self._harmless and self._tables[kind][state] is not None:
                for each in those:
                    slots |= 1 << each
        return slots


def _after(state: State, kind: _Kind) -> int | None:
    """Return the number of the state after a request; None where the answer would have been another."""
    actor, verb, outcome, told = kind
    if outcome is Outcome.OVERTAKEN:
        return _NUMBER[state]
    answer, then = react(state, actor, verb)
    if outcome is not Outcome.UNKNOWN and answer != Answer(outcome, told):
        return None
    return _NUMBER[then]


# ---- two properties by themselves


def bound_by_a_lock(requests: Sequence[Request]) -> list[Violation]:
    """Find operations that were admitted though a lock certainly bound them.

    That is: invoked after a lock was answered, and answered before any unlock was invoked that could have taken
    that lock away after it was placed. Admins are bound by nobody here.
    """
    found: list[Violation] = []
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


def refused_without_a_lock(requests: Sequence[Request]) -> list[Violation]:
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
    found: list[Violation] = []
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


def every_violation(requests: Sequence[Request], initial: State | None = None) -> list[Violation]:
    """Return what all three checks find; ``check`` stops at its first."""
    first = check(requests, initial)
    certain = [*bound_by_a_lock(requests), *refused_without_a_lock(requests)]
    return certain if first is None else [first, *certain]
