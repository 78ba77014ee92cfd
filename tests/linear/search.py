"""The search for an order: the just-in-time linearization of Wing and Gong, as improved by Lowe.

The events of a history are gone through in time, and a request gets its place only when some answer forces one. What
is kept is the set of all configurations (state, which of the pending requests have their place) that explain the
history so far. Three things keep that set small, none of which loses an order:

* a pending request whose answer is right now, and that could change nothing in any state (a refusal, a reading), is
  given its place at once: an order in which it comes later stays right when it is moved to here;
* of pending requests that are alike, the one that is answered first is placed first: exchanging the two keeps an
  order right;
* what happens by itself (the end of an operation, the expiry of a lock) is a step of its own that may come whenever
  the model says that it can, so nothing need be known about how long it takes.

It is exact both ways, and knows nothing of locks: what a request does to an instance is the model's to say.
"""

from __future__ import annotations

import bisect
import functools
import itertools
from collections import defaultdict
from collections.abc import Hashable, Sequence
from typing import Generic, Protocol, TypeVar

import msgspec

from tests.linear.history import Outcome


class Timed(Protocol):
    """A request, as far as the search looks at it; times in nanoseconds of one clock."""

    @property
    def invoked(self) -> int:
        """When it began, or before."""
        ...

    @property
    def answered(self) -> int:
        """When it was answered, or later."""
        ...

    @property
    def outcome(self) -> Outcome:
        """What came of it; one that is UNKNOWN need not have been seen by the server."""
        ...


S = TypeVar("S", bound=Hashable)
R = TypeVar("R", bound=Timed)
R_contra = TypeVar("R_contra", bound=Timed, contravariant=True)


class Model(Protocol[S, R_contra]):
    """The sequential instance."""

    def kind(self, request: R_contra) -> Hashable:
        """Say what a request is: those of one kind differ in nothing but their times."""
        ...

    def changes(self, request: R_contra) -> bool:
        """Whether a request of its kind could change anything, in any state."""
        ...

    def after(self, state: S, request: R_contra) -> tuple[S, ...]:
        """Return what the instance may be after a request; nothing where the answer would have been another."""
        ...

    def by_itself(self, state: S) -> tuple[tuple[int, S], ...]:
        """Return what it may become by itself next, each with the time before which it does not."""
        ...


class Violation(msgspec.Struct, Generic[R], frozen=True, kw_only=True):
    """An answer that no order explains."""

    request: R
    #: Why, for people.
    says: str
    #: The requests that were pending when it was answered.
    pending: tuple[R, ...] = ()

    def __str__(self) -> str:
        """Say it in a few lines."""
        return "\n  ".join((f"{self.says}: {self.request}", *(f"beside {each}" for each in self.pending)))


class Search(Generic[S, R]):
    """The configurations that explain a history up to some moment."""

    def __init__(self, model: Model[S, R], initial: S) -> None:
        """Begin with an instance as it is before the first request."""
        #: Configurations looked at, and the most that were kept at a time.
        self.visited = 0
        self.widest = 1
        self._model = model
        self._states = [initial]
        self._number = {initial: 0}
        #: What each state may become by itself, by number; worked out when it is first looked at.
        self._drift: dict[int, tuple[tuple[int, int], ...]] = {}
        #: (the state's number, the slots of the pending requests that have their place)
        self._configurations: set[tuple[int, int]] = {(0, 0)}
        #: The requests that were invoked and not answered, with their slot: their bit in a configuration.
        self._pending: dict[int, int] = {}
        self._free: list[int] = []
        self._slots = 0
        self._requests: dict[int, R] = {}
        self._kinds: dict[int, Hashable] = {}
        self._answered: dict[int, tuple[int, int]] = {}
        self._by_kind: defaultdict[Hashable, list[int]] = defaultdict(list)
        #: What comes after each state, by kind.
        self._tables: dict[Hashable, dict[int, tuple[int, ...]]] = {}
        self._harmless: set[Hashable] = set()

    def check(self, history: Sequence[R]) -> Violation[R] | None:
        """Go through a history, in any order; return the first answer that no order explains."""
        events = sorted(
            itertools.chain(
                # Of equal times the invocation counts as the earlier one: that makes fewer orders forbidden.
                ((request.invoked, 0, number) for number, request in enumerate(history)),
                ((request.answered, 1, number) for number, request in enumerate(history)),
            )
        )
        for at, what, number in events:
            if what == 0:
                self._invoke(number, history[number])
            elif not self._answer(number, at):
                return Violation(
                    request=history[number],
                    says="no order of the requests explains the answer",
                    pending=tuple(history[other] for other in self._pending if other != number),
                )
        return None

    @property
    def states(self) -> list[S]:
        """What the instance may be now."""
        return [
            self._states[number] for number in sorted({number for number, _placed in self._configurations})
        ]

    def _invoke(self, number: int, request: R) -> None:
        """Let a request be given its place from now on."""
        if self._free:
            slot = self._free.pop()
        else:
            slot = self._slots
            self._slots += 1
        kind = self._model.kind(request)
        if kind not in self._tables:
            self._tables[kind] = {}
            if request.outcome is not Outcome.UNKNOWN and not self._model.changes(request):
                self._harmless.add(kind)
        self._pending[number] = slot
        self._requests[slot] = request
        self._kinds[slot] = kind
        self._answered[slot] = (request.answered, number)
        bisect.insort(self._by_kind[kind], slot, key=self._answered.__getitem__)

    def _answer(self, number: int, at: int) -> bool:
        """Keep the configurations in which the request has its place, made from those that have not placed it.

        Returns:
            Whether there is any; if not, the history is not linearizable.
        """
        slot = self._pending[number]
        bit = 1 << slot
        kept = {(state, placed & ~bit) for state, placed in self._configurations if placed & bit}
        waiting = [each for each in self._configurations if not each[1] & bit]
        if self._requests[slot].outcome is Outcome.UNKNOWN:
            # It need not ever have been seen by the server.
            kept.update(waiting)
        kept |= self._place(slot, waiting, at)
        if not kept:
            return False
        self.widest = max(self.widest, len(kept))
        self._configurations = kept
        del self._pending[number], self._requests[slot]
        kind = self._kinds.pop(slot)
        self._by_kind[kind].remove(slot)
        if not self._by_kind[kind]:
            del self._by_kind[kind]
        self._free.append(slot)
        return True

    def _place(self, slot: int, waiting: list[tuple[int, int]], at: int) -> set[tuple[int, int]]:
        """Return the configurations in which this request is the last to be given its place."""
        bit = 1 << slot
        found: set[tuple[int, int]] = set()
        seen: set[tuple[int, int]] = set()
        # Worked out once for an answer, for they are looked at for every configuration.
        harmless = functools.cache(self._explained)
        changing = [
            (kind, self._tables[kind], [1 << each for each in slots])
            for kind, slots in self._by_kind.items()
            if kind not in self._harmless
        ]
        while waiting:
            state, placed = waiting.pop()
            placed |= harmless(state)
            if placed & bit:
                found.add((state, placed & ~bit))
                continue
            if (state, placed) in seen:
                continue
            seen.add((state, placed))
            for begin, then in self._drifts(state):
                if begin <= at:
                    waiting.append((then, placed))
            for then, first in self._next(changing, state, placed):
                if first == bit:
                    found.add((then, placed))
                else:
                    waiting.append((then, placed | first))
        self.visited += len(seen)
        return found

    def _next(
        self,
        changing: list[tuple[Hashable, dict[int, tuple[int, ...]], list[int]]],
        state: int,
        placed: int,
    ) -> list[tuple[int, int]]:
        """Return what may come after a state by a request that may change something, each with the request's bit."""
        found: list[tuple[int, int]] = []
        for kind, table, bits in changing:
            after = table.get(state)
            if after is None:
                after = self._after(kind, state)
            if not after:
                continue
            for first in bits:
                if not placed & first:
                    found += [(then, first) for then in after]
                    break
        return found

    def _explained(self, state: int) -> int:
        """Return the slots of the pending requests that are answered rightly in a state and change nothing ever."""
        slots = 0
        for kind, those in self._by_kind.items():
            if kind in self._harmless and self._after(kind, state):
                for each in those:
                    slots |= 1 << each
        return slots

    def _after(self, kind: Hashable, state: int) -> tuple[int, ...]:
        table = self._tables[kind]
        found = table.get(state)
        if found is None:
            # They are alike in all but their times, so the model is asked about any of them.
            request = self._requests[self._by_kind[kind][0]]
            then = self._model.after(self._states[state], request)
            found = table[state] = tuple(map(self._numbered, then))
        return found

    def _drifts(self, state: int) -> tuple[tuple[int, int], ...]:
        found = self._drift.get(state)
        if found is None:
            becomes = self._model.by_itself(self._states[state])
            found = self._drift[state] = tuple((begin, self._numbered(then)) for begin, then in becomes)
        return found

    def _numbered(self, state: S) -> int:
        number = self._number.get(state)
        if number is None:
            number = self._number[state] = len(self._states)
            self._states.append(state)
        return number
