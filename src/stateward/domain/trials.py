"""What the arbiter would do in a case that somebody thinks of: by each cause, and by which rule (R13)."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import TypeVar

import msgspec

from stateward.domain.errors import Invalid
from stateward.domain.policies import Choice, Policies
from stateward.domain.states import Cause, Observed, VmState
from stateward.domain.verdicts import Kind, Layer, Stray, Verdict

E = TypeVar("E", bound=enum.StrEnum)


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """A case."""

    expected: VmState
    observed: Observed
    #: None: each.
    cause: Cause | None = None
    locked: bool = False
    #: A hold is on it, and perhaps keeps the guest off.
    held: bool = False
    kept_off: bool = False
    #: Of a copy on another host (``observed`` is ``duplicate``): which; None: one that runs.
    copy: Stray | None = None
    #: As if the instance named them, the first before those after it; the default policy is below them.
    policies: tuple[str, ...] = ()


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What follows, for some causes alike."""

    causes: tuple[Cause, ...]
    verdict: Kind
    #: The key of a row of the action table.
    action: str | None
    becomes: VmState | None
    decided_by: str
    says: str


def try_out(policies: Policies, trial: Trial) -> list[Outcome]:
    """Return what would follow, those causes together for which it is the same.

    Raises:
        Invalid: a policy is not there, or there is no copy to say anything of.
    """
    if trial.copy is not None and trial.observed is not Observed.DUPLICATE:
        raise Invalid(
            f"A copy is seen as {Observed.DUPLICATE}; leave copy out where {trial.observed} is seen."
        )
    choices = tuple(_choices(policies, trial.policies))
    found: dict[Verdict, list[Cause]] = {}
    for cause in Cause if trial.cause is None else (trial.cause,):
        verdict = policies.decide(
            trial.expected,
            trial.observed,
            cause,
            locked=trial.locked or trial.held,
            held=trial.held or trial.kept_off,
            kept_off=trial.kept_off,
            stray=trial.copy or Stray.RUNNING,
            choices=choices,
        )
        # By what is said of them: the rows of two causes may match differently and still be one to who asks.
        found.setdefault(msgspec.structs.replace(verdict, causes=None), []).append(cause)
    return [outcome(verdict, causes) for verdict, causes in found.items()]


def outcome(verdict: Verdict, causes: Iterable[Cause]) -> Outcome:
    """Return a verdict as it is shown."""
    return Outcome(
        causes=tuple(causes),
        verdict=verdict.kind,
        action=verdict.action,
        becomes=verdict.becomes,
        decided_by=verdict.decided_by,
        says=verdict.says,
    )


def _choices(policies: Policies, names: Iterable[str]) -> Iterable[Choice]:
    for name in names:
        refused = policies.refusal(name, by_owner=False)
        if refused is not None:
            known = ", ".join(sorted(policies.named)) or "none"
            raise Invalid(f"{refused} There are: {known}.")
        yield Choice(layer=Layer.INSTANCE, policy=name)
    if policies.default is not None:
        yield Choice(layer=Layer.DEFAULT, policy=policies.default)


def word(kind: type[E], value: str, what: str) -> E:
    """Return a member by its word.

    Raises:
        Invalid: there is none; it names those that there are.
    """
    try:
        return kind(value)
    except ValueError:
        raise Invalid(f"{value!r} is no {what}; there are: {', '.join(kind)}.") from None
