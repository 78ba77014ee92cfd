"""What a row of the action table is made of (R2)."""

from __future__ import annotations

import enum
from typing import Any, Final

import msgspec

from stateward.domain.locks import OperationClass
from stateward.domain.states import Observed, TaskState, VmState
from stateward.domain.steps import LETS_RUN, NEEDS_OWN, Step

START, STOP, DELETE, CHANGE = OperationClass


class Exempt(msgspec.Struct, frozen=True):
    """No lock blocks the action, and this is why."""

    reason: str


class Role(enum.StrEnum):
    """The least a caller must be, within the server's project; an admin may do all of it anywhere."""

    READER = "reader"
    MEMBER = "member"
    ADMIN = "admin"
    #: Only the control plane itself: no request can name the action.
    SYSTEM = "system"


class Policy(msgspec.Struct, frozen=True):
    """Nova's rule name, shown when it refuses, and the default role."""

    rule: str
    role: Role


class OnFailure(enum.StrEnum):
    """What the record says after an operation that could not finish; the fault is kept either way."""

    #: The vm state stays; the arbiter then compares it with what is there.
    KEEP = "keep"
    ERROR = "error"


class Disk(enum.StrEnum):
    """What becomes of the disk of an instance whose host has died."""

    #: It is on storage that other hosts reach.
    SHARED = "shared"
    #: It is on the dead host; another one is made of the image.
    ANEW = "anew"


class Action(msgspec.Struct, frozen=True, kw_only=True):
    """One row. ``guard`` has no default on purpose: leaving it out is a type error (R2)."""

    #: Nova's name for the instance action and in its refusals.
    name: str
    #: Tells rows of one name apart that begin in different states; part of the key.
    label: str | None = None
    #: The key in the body of ``POST /servers/{id}/action``; None where the API has another way in, or none.
    wire: str | None = None
    #: The (field, value) of the body that picks this row among those of one wire name.
    variant: tuple[str, Any] | None = None
    #: The first microversion that has it, as its minor number.
    since: int = 1
    #: The last microversion that has it; None when all later ones do.
    until: int | None = None
    #: The type a body must have, by the minor microversion from which it holds, in rising order.
    body: tuple[tuple[int, Any], ...] = ((1, Any),)
    #: The vm states it is admitted in.
    when: frozenset[VmState]
    #: Admitted only of an instance that was in this vm state before the resize that is not confirmed yet.
    was: VmState | None = None
    #: Task states it is admitted over, besides none. For an operation (a row with steps or ``pending``) that
    #: means overtaking what is in flight: the fence goes up and the other ends as superseded.
    over: frozenset[TaskState] = frozenset()
    pending: TaskState | None = None
    #: The vm state after it; None: it stays.
    becomes: VmState | None = None
    #: The vm state after it is the one that its guest was found in (``strangers.STATE_OF``), not ``becomes``.
    as_found: bool = False
    #: The vm state when the guest's memory was saved at its deadline instead of its power taken (R9). None where
    #: that cannot be chosen, because the action goes on with a guest that is off.
    if_saved: VmState | None = None
    #: The name of an action that follows at once when it succeeded, for the same actor, where settings say so.
    then: str | None = None
    #: The key of the row that clears up after it failed, where its guest may be left half made, or off; followed
    #: only where that row is admitted, and not when the guest was left on, as was chosen.
    undo: str | None = None
    #: The instance goes to another host, where room for it is claimed as this is admitted.
    leaves: bool = False
    #: The vm state that a confirm or revert ends in, where it is not the one that the row begins in.
    comes_from: VmState | None = None
    #: The instance's host was fenced, and it is made on another one, where room for it is claimed as this is admitted.
    evacuates: Disk | None = None
    #: The instance is on no host; one is found in the transaction that admits it.
    places: bool = False
    #: It works on another host than the instance's, which whoever asks for it names; the record stays as it is.
    elsewhere: bool = False
    #: Admitted of an instance on no host too, where there is nothing to do for it.
    without_host: bool = False
    #: What the guest must be seen as for the result to be true; the arbiter restores towards it.
    wants: Observed | None = None
    guard: OperationClass | Exempt
    #: Every lock binds everybody: an administrator, who passes others' locks elsewhere, releases them first.
    bound: bool = False
    policy: Policy
    steps: tuple[Step, ...] = ()
    on_failure: OnFailure = OnFailure.KEEP
    #: It carries out a verdict of the arbiter, so it is not admitted while its host's instances are not judged
    #: (``Frozen``); tested for every row that the arbiter's table names.
    by_verdict: bool = False
    #: One sentence for the docs.
    says: str

    @property
    def is_operation(self) -> bool:
        """Whether an agent works on it; the rest is done when it is admitted."""
        return bool(self.steps)

    @property
    def lets_run(self) -> bool:
        """Whether a guest runs by it that may have been off, or halted."""
        return not LETS_RUN.isdisjoint(self.steps)

    @property
    def needs_own(self) -> bool:
        """Whether the guest's definition and disks must be ours: one that was adopted cannot have it done."""
        moves = self.places or self.leaves or self.evacuates is not None
        return moves or not NEEDS_OWN.isdisjoint(self.steps)

    @property
    def needs_adopted(self) -> bool:
        """Whether only an adopted guest can have it done."""
        return Step.RELEASE in self.steps

    @property
    def guarded(self) -> OperationClass:
        """The operation classes that locks can block it by; none when exempt."""
        return OperationClass(0) if isinstance(self.guard, Exempt) else self.guard


LIVING: Final = frozenset(VmState) - {VmState.DELETED}
#: Where an instance has a disk that nothing else is being done to.
SETTLED: Final = frozenset({VmState.ACTIVE, VmState.PAUSED, VmState.SUSPENDED, VmState.STOPPED})
ANY_TASK: Final = frozenset(TaskState)
COMPUTE: Final = "os_compute_api:"


def member(rule: str) -> Policy:
    """Return the policy of a rule that members of the server's project pass, as most of Nova's are."""
    return Policy(COMPUTE + rule, Role.MEMBER)


def admin(rule: str) -> Policy:
    """Return the policy of a rule that only admins pass."""
    return Policy(COMPUTE + rule, Role.ADMIN)
