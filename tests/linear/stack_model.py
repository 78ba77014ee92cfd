"""The sequential instance with a stack of locks: what it answers to requests that come one after the other.

Written down a second time on purpose, from the requirements (R3-R6, B1, B2) and not from the table of actions or from
what computes the union of locks, so that a wrong row is found and not believed.

Three things happen by themselves. An operation in flight ends, as it is known to have ended. A lock whose time is up
is taken away, at some moment after its time and never before (B2). And where an operation was overtaken in the middle,
its guest may be on while the record says off, or off while it says on; the arbiter then adopts that or brings the
guest back (R13). Which of the two it does depends on what no client can see, so either is allowed, but only there; and
of a guest that its hold has off, only that it goes off after all (R6).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from stateward.domain.locks import ActorKind
from tests.linear.history import Outcome
from tests.linear.stack_history import Asked, Deed

NOTHING: Final = "-"
#: Nanoseconds by which two clocks of one machine may differ, as they are compared here: the one that locks expire by,
#: and the one that requests are timed by.
SLACK: Final = 20_000_000

#: What the words say that a lock blocks.
_BLOCKED: Final = {
    "all": {"start", "stop", "delete", "change"},
    "power": {"start", "stop"},
    **{word: {word} for word in ("start", "stop", "delete", "change")},
}
#: What has to be free for a deed.
_NEEDS: Final = {Deed.STOP: "stop", Deed.START: "start", Deed.RESUME: "start", Deed.CHANGE: "change"}
#: The state that it begins in, what is shown of it, and the state that it ends in.
_POWER: Final = {
    Deed.STOP: ("active", "powering-off", "stopped"),
    Deed.START: ("stopped", "powering-on", "active"),
    Deed.RESUME: ("suspended", "resuming", "active"),
}
_READINGS: Final = frozenset({Deed.VIEW, Deed.STACK, Deed.WORK})


class Held(NamedTuple):
    """A named lock, or a hold."""

    id: str
    #: ``owner``, ``admin`` or ``hold``.
    kind: str
    holder: str
    name: str
    blocks: str
    sealed: bool
    expires: int | None
    #: A hold that has the guest off, until somebody breaks the glass to let it run.
    off: bool = False

    def stops(self, actor: ActorKind, what: str) -> bool:
        """Whether it keeps somebody from something: a hold everybody, any other lock everybody but admins."""
        return (self.kind == "hold" or actor is ActorKind.MEMBER) and what in _BLOCKED[self.blocks]


class Work(NamedTuple):
    """An operation in flight."""

    #: As a lock's answer names it.
    name: str
    shown: str
    becomes: str
    id: str
    #: How it is known to end; empty for what nobody asked for, which may end in any way.
    end: str


class Leave(NamedTuple):
    """What one admin may pass one hold by: so many operations, or (its number among the admin's) for a while."""

    lock: str
    user: str
    uses: int
    number: int | None


class Stack(NamedTuple):
    """An instance."""

    #: The two unnamed locks.
    owner: bool = False
    admin: bool = False
    named: frozenset[Held] = frozenset()
    leaves: frozenset[Leave] = frozenset()
    vm_state: str = "active"
    work: Work | None = None
    #: An operation was overtaken in the middle, and nothing has made sure of the guest since.
    doubt: bool = False
    #: The last hold that had the guest off had its memory saved, and so does what makes up for it.
    saves: bool = False

    @property
    def locked_by(self) -> str:
        """Whose lock a reader is shown: the provider's first."""
        kinds = {lock.kind for lock in self.named}
        if self.admin or kinds & {"admin", "hold"}:
            return "admin"
        return "owner" if self.owner or "owner" in kinds else NOTHING

    def find(self, lock_id: str) -> Held | None:
        """Return a named lock."""
        return next((lock for lock in self.named if lock.id == lock_id), None)


class StackModel:
    """The model as the search asks it, for one history."""

    def __init__(self, history: list[Asked]) -> None:
        """Learn until when each admin's overrides were good; nothing else of what was answered."""
        self._until: dict[str, list[int]] = {}
        for request in sorted(history, key=lambda each: each.expires or 0):
            if request.deed is Deed.OVERRIDE and request.expires is not None:
                self._until.setdefault(request.user, []).append(request.expires)

    def kind(self, request: Asked) -> tuple[object, ...]:
        """See ``Model``."""
        return (
            request.user,
            request.deed,
            request.outcome,
            request.told,
            request.lock,
            request.name,
            # Of several overrides of one lock.
            (request.uses, request.expires) if request.deed is Deed.OVERRIDE else None,
            request.operation,
            self._ended(request),
            self._late(request),
        )

    def changes(self, request: Asked) -> bool:
        """See ``Model``."""
        if request.deed is Deed.CHANGE and request.actor is ActorKind.MEMBER:
            return False
        return request.outcome is Outcome.ADMITTED and request.deed not in _READINGS

    def after(self, state: Stack, request: Asked) -> tuple[Stack, ...]:
        """See ``Model``."""
        if request.outcome is Outcome.OVERTAKEN:
            return (state,)
        found = dict.fromkeys(
            then
            for outcome, told, then in self._answers(state, request)
            if (outcome, told) == (request.outcome, request.told)
        )
        return tuple(found)

    def by_itself(self, state: Stack) -> tuple[tuple[int, Stack], ...]:
        """See ``Model``."""
        expired = (
            (lock.expires - SLACK, _without(state, lock)) for lock in state.named if lock.expires is not None
        )
        return (*expired, *((0, then) for then in (*_ended(state), *_arbitrated(state))))

    def _ended(self, request: Asked) -> tuple[int, int]:
        """Say which of an admin's overrides for a while were surely over, and which surely not, when it was asked.

        Those up to the first number are over, those from the second on are good; the clock is looked at once in
        between, which may have been on either side of the others.
        """
        until = self._until.get(request.user, []) if request.deed in _NEEDS else []
        return (
            sum(each + SLACK < request.invoked for each in until),
            sum(each - SLACK <= request.answered for each in until),
        )

    def _late(self, request: Asked) -> bool:
        """Whether a lock that somebody wants may have come after its own expiry."""
        return (
            request.deed is Deed.PLACE
            and request.expires is not None
            and request.expires - SLACK <= request.answered
        )

    def _answers(self, state: Stack, request: Asked) -> Iterator[tuple[Outcome, str, Stack]]:
        """Give every answer that there can be, with what is told and what the instance is then."""
        match request.deed:
            case Deed.VIEW | Deed.STACK | Deed.WORK:
                yield Outcome.ADMITTED, _seen(state, request.deed), state
            case Deed.LOCK:
                placed = (
                    state._replace(owner=True)
                    if request.actor is ActorKind.MEMBER
                    else state._replace(admin=True)
                )
                yield Outcome.ADMITTED, _in_flight(state), placed
            case Deed.UNLOCK:
                if state.admin and request.actor is ActorKind.MEMBER:
                    yield Outcome.FORBIDDEN, "", state
                else:
                    freed = state._replace(admin=False) if state.admin else state._replace(owner=False)
                    yield Outcome.ADMITTED, "", freed
            case Deed.PLACE | Deed.HOLD:
                yield from self._placed(state, request)
            case Deed.RELEASE:
                yield _released(state, request)
            case Deed.OVERRIDE:
                yield self._given(state, request)
            case Deed.STOP | Deed.START | Deed.RESUME | Deed.CHANGE:
                yield from self._done(state, request)

    def _placed(self, state: Stack, request: Asked) -> Iterator[tuple[Outcome, str, Stack]]:
        kind = "owner" if request.actor is ActorKind.MEMBER else "admin"
        lock = Held(
            id=request.lock,
            kind="hold" if request.deed is Deed.HOLD else kind,
            holder=request.user,
            name=request.name,
            blocks=request.blocks,
            sealed=request.sealed,
            expires=request.expires,
            off=request.deed is Deed.HOLD and request.way != "none",
        )
        if self._late(request):
            yield Outcome.TOO_LATE, "", state
        if any(each[1:4] == lock[1:4] for each in state.named):
            # One name of one holder stands for one lock at a time.
            yield Outcome.NAME_TAKEN, "", state
            return
        placed = state._replace(named=state.named | {lock})
        if request.deed is Deed.PLACE and not request.overtake:
            yield Outcome.ADMITTED, _in_flight(state), placed
            return
        overtaken = _overtaken(placed)
        if overtaken is None:
            return
        if lock.off:
            saves = request.way == "suspend" and state.vm_state == "active"
            becomes = "suspended" if saves or state.vm_state == "suspended" else "stopped"
            shown = "suspending" if becomes == "suspended" else "powering-off"
            work = Work("hold", shown, becomes, request.operation, request.end)
            overtaken = overtaken._replace(work=work, saves=becomes == "suspended")
        yield Outcome.ADMITTED, "", overtaken

    def _given(self, state: Stack, request: Asked) -> tuple[Outcome, str, Stack]:
        lock = state.find(request.lock)
        if lock is None:
            return Outcome.NOT_FOUND, "", state
        if lock.kind != "hold":
            return Outcome.BINDS_NO_ADMIN, "", state
        number = None
        if request.expires is not None:
            number = self._until[request.user].index(request.expires)
        left = request.uses + sum(
            each.uses for each in state.leaves if each[:2] == (lock.id, request.user) and number is None
        )
        leave = Leave(lock.id, request.user, left if number is None else 0, number)
        others = frozenset(
            each
            for each in state.leaves
            if number is not None or each[:2] != (lock.id, request.user) or each.number is not None
        )
        return Outcome.ADMITTED, "", state._replace(leaves=others | {leave})

    def _done(self, state: Stack, request: Asked) -> Iterator[tuple[Outcome, str, Stack]]:
        what = _NEEDS[request.deed]
        unnamed = request.actor is ActorKind.MEMBER and (state.owner or state.admin)
        binding = [lock for lock in state.named if lock.stops(request.actor, what)]
        if request.actor is ActorKind.MEMBER and (unnamed or binding):
            yield Outcome.LOCKED, "", state
            return
        for leaves in self._passes(state, request, binding):
            if leaves is None:
                yield Outcome.LOCKED, "", state
            else:
                yield _begun(state, request, leaves)

    def _passes(self, state: Stack, request: Asked, binding: list[Held]) -> list[frozenset[Leave] | None]:
        """Return what an admin may have left who passed all these holds; None among them: some may have stopped it."""
        over, good = self._ended(request)
        ways: list[frozenset[Leave] | None] = [state.leaves]
        for lock in binding:
            mine = [each for each in state.leaves if each[:2] == (lock.id, request.user)]
            whiles = [each.number for each in mine if each.number is not None and each.number >= over]
            counted = next((each for each in mine if each.number is None and each.uses), None)
            then: list[frozenset[Leave] | None] = []
            for leaves in ways:
                if leaves is None:
                    then.append(None)
                    continue
                if whiles:
                    # One for a while is not used up, and so used first.
                    then.append(leaves)
                if whiles and max(whiles) >= good:
                    continue
                if counted is None:
                    then.append(None)
                else:
                    then.append(leaves - {counted} | {counted._replace(uses=counted.uses - 1)})
            ways = list(dict.fromkeys(then))
        return ways


def _seen(state: Stack, reading: Deed) -> str:
    """Return what a reading tells."""
    if reading is Deed.VIEW:
        shown = NOTHING if state.work is None else state.work.shown
        return f"{state.vm_state} {shown} {state.locked_by}"
    if reading is Deed.STACK:
        unnamed = [word for word, there in (("owner", state.owner), ("admin", state.admin)) if there]
        return " ".join(sorted([*unnamed, *(lock.id for lock in state.named)])) or NOTHING
    # What Stateward does of itself has an id that no client was told.
    return NOTHING if state.work is None else state.work.id or NOTHING


def _begun(state: Stack, request: Asked, leaves: frozenset[Leave]) -> tuple[Outcome, str, Stack]:
    if request.deed is Deed.CHANGE:
        return Outcome.ADMITTED, "", state._replace(leaves=leaves)
    begins, shown, becomes = _POWER[request.deed]
    if state.vm_state != begins:
        return Outcome.WRONG_VM_STATE, state.vm_state, state
    if state.work is not None:
        return Outcome.WRONG_TASK_STATE, state.work.shown, state
    work = Work(request.deed.value, shown, becomes, request.operation, request.end)
    # Only who broke the glass starts what is held, and then it is not held off any more.
    named = state.named
    if becomes == "active":
        named = frozenset(lock._replace(off=False) for lock in named)
    return Outcome.ADMITTED, "", state._replace(leaves=leaves, work=work, named=named)


def _released(state: Stack, request: Asked) -> tuple[Outcome, str, Stack]:
    lock = state.find(request.lock)
    if lock is None:
        return Outcome.NOT_FOUND, "", state
    own = lock.kind == "owner" and lock.holder == request.user and not lock.sealed
    if request.actor is ActorKind.MEMBER and not own:
        return Outcome.FORBIDDEN, "", state
    return Outcome.ADMITTED, "", _without(state, lock)


def _without(state: Stack, lock: Held) -> Stack:
    """Take a lock away, and with it what was good for passing it."""
    leaves = frozenset(each for each in state.leaves if each.lock != lock.id)
    return state._replace(named=state.named - {lock}, leaves=leaves)


def _in_flight(state: Stack) -> str:
    return NOTHING if state.work is None else state.work.name


def _overtaken(state: Stack) -> Stack | None:
    """End what is in flight; None if that is known to have ended otherwise."""
    if state.work is None:
        return state
    if state.work.end not in {"", "superseded"}:
        return None
    return state._replace(work=None, doubt=True)


def _ended(state: Stack) -> Iterator[Stack]:
    """Give what the instance may be when its operation ends by itself."""
    work = state.work
    if work is None:
        return
    if work.end in {"", "succeeded"}:
        # A stop leaves a saved memory be, and what is to be saved may be off: of the guest nothing is sure after those.
        sure = work.name in {"start", "resume"} or (work.name == "hold" and work.becomes == "stopped")
        yield state._replace(vm_state=work.becomes, work=None, doubt=state.doubt and not sure)
    if work.end in {"", "failed"} and state.doubt:
        yield state._replace(work=None)


def _arbitrated(state: Stack) -> Iterator[Stack]:
    """Give what the arbiter may make of a guest that is not as it is recorded."""
    if not state.doubt or state.work is not None:
        return
    held = any(lock.kind == "hold" for lock in state.named)
    match state.vm_state:
        case "active" if any(lock.off for lock in state.named):
            # Its hold failed to have it off, or was overtaken in that; that is done, or was done and is recorded.
            for becomes, shown in (("stopped", "powering-off"), ("suspended", "suspending")):
                yield state._replace(vm_state=becomes)
                if state.saves == (becomes == "suspended"):
                    yield state._replace(work=Work("restore", shown, becomes, "", ""))
        case "active":
            yield state._replace(vm_state="stopped")
            # Whoever holds it off has to let go of it first.
            for shown in () if held else ("powering-on", "resuming"):
                yield state._replace(work=Work("restore", shown, "active", "", ""))
            if held:
                yield state._replace(vm_state="suspended")
        case "stopped":
            yield state._replace(work=Work("restore", "powering-off", "stopped", "", ""))
        case _:
            yield state._replace(vm_state="stopped")
            yield state._replace(work=Work("restore", "suspending", "suspended", "", ""))
