"""Policies: what an operator, or an owner who may, wants done instead of what the arbiter's table says (R13).

A policy is a list of rules, each of which changes cells of the table. Policies are chosen in layers: the default, the
host's, the flavor's, the image's, the project's, the instance's; a later one goes before those above it, and what it
has no rule for is left to them, and at last to the table. What may be changed is a closed set
(``verdicts/alternatives.py``), checked once when the settings are read. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Final

import msgspec

from stateward.domain.records import Instance
from stateward.domain.states import Cause, Observed, VmState
from stateward.domain.verdicts import Kind, Layer, Source, Stray, Verdict, in_flight, judge
from stateward.domain.verdicts.alternatives import Alternatives, alternatives, could_act, gives_way

#: The key of a flavor's extra specs and of an instance's metadata, and the image's property.
KEY: Final = "stateward:policy"
IMAGE_PROPERTY: Final = "stateward_policy"

Positive = Annotated[float, msgspec.Meta(gt=0)]


class BadPolicy(Exception):
    """A policy cannot be used; ``str()`` names it and its rule, and says what could be."""


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[[policy.NAME.rule]]``: what is done in the cells that it names, as far as they give way to that."""

    expected: VmState
    observed: Observed
    #: None: whatever the cause.
    cause: Cause | None = None
    verdict: Kind
    #: Where a guest can be brought back in several ways: which; None: the usual one.
    action: str | None = None


class Loop(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """When restores pause, and when they stop; None: as the layer below says."""

    #: So many within ``seconds`` are a crash loop.
    restores: Annotated[int, msgspec.Meta(ge=1)] | None = None
    seconds: Positive | None = None
    #: Seconds before the second one, and what that is multiplied by before each further one.
    pause: Annotated[float, msgspec.Meta(ge=0)] | None = None
    factor: Annotated[float, msgspec.Meta(ge=1)] | None = None


class CrashLoop(msgspec.Struct, frozen=True, kw_only=True):
    """A guest that had to be brought back this often within so many seconds is left alone, in ERROR."""

    restores: int = 5
    seconds: float = 600.0
    #: Seconds before the second restore within that time, and what that is multiplied by before each further one.
    pause: float = 0.5
    factor: float = 2.0

    def wait(self, tries: int) -> float:
        """Return the seconds to wait after the end of so many restores before the next one."""
        return self.pause * self.factor ** (tries - 1) if tries else 0.0


class Policy(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[policy.NAME]``: rules, of which the first that matches counts, and the bounds of restoring."""

    #: For people.
    says: str = ""
    rule: tuple[Rule, ...] = ()
    crash_loop: Loop = Loop()


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """A policy that a layer names for an instance."""

    layer: Layer
    policy: str
    #: Why it is not followed; None: it is.
    refused: str | None = None


class Policies(msgspec.Struct, frozen=True, kw_only=True):
    """All policies of a deployment, and where they are chosen."""

    named: Mapping[str, Policy] = {}
    default: str | None = None
    #: By the host's name, and by the project's id.
    hosts: Mapping[str, str] = {}
    projects: Mapping[str, str] = {}
    #: What owners may choose, by their instances' metadata and their images' properties.
    selectable: frozenset[str] = frozenset()
    crash_loop: CrashLoop = CrashLoop()

    def chosen(self, instance: Instance) -> tuple[Choice, ...]:
        """Return what the layers name for an instance, the one that goes first at the front."""
        wishes = (
            (Layer.INSTANCE, instance.metadata.get(KEY), True),
            (Layer.PROJECT, self.projects.get(instance.project_id), False),
            (Layer.IMAGE, instance.image.properties.get(IMAGE_PROPERTY), True),
            (Layer.FLAVOR, instance.flavor.extra_specs.get(KEY), False),
            (Layer.HOST, self.hosts.get(instance.host), False),
            (Layer.DEFAULT, self.default, False),
        )
        return tuple(
            Choice(layer=layer, policy=name, refused=self.refusal(name, by_owner=by_owner))
            for layer, name, by_owner in wishes
            if name is not None
        )

    def refusal(self, name: str, *, by_owner: bool) -> str | None:
        """Say why a policy cannot be chosen; None when it can."""
        if name not in self.named:
            return f"There is no policy called {name}."
        if by_owner and name not in self.selectable:
            return f"The policy {name} is not one that owners may choose."
        return None

    def judge(self, instance: Instance) -> Verdict:
        """Judge an instance's row; an operation in flight is never judged (R12)."""
        return in_flight(
            instance,
            self.decide(
                instance.vm_state,
                instance.observed,
                instance.cause,
                locked=instance.locked,
                held=instance.held,
                kept_off=instance.kept_off,
                adopted=instance.adopted_as is not None,
                choices=self.chosen(instance),
            ),
        )

    def judge_stray(self, instance: Instance, stray: Stray) -> Verdict:
        """Judge a copy of an instance on another host than its record's."""
        return in_flight(
            instance,
            self.decide(
                instance.vm_state,
                Observed.DUPLICATE,
                Cause.OTHER,
                locked=instance.locked,
                held=instance.held,
                kept_off=instance.kept_off,
                adopted=instance.adopted_as is not None,
                stray=stray,
                choices=self.chosen(instance),
            ),
        )

    def decide(
        self,
        expected: VmState,
        observed: Observed,
        cause: Cause,
        *,
        locked: bool = False,
        held: bool = False,
        kept_off: bool = False,
        adopted: bool = False,
        stray: Stray = Stray.RUNNING,
        choices: tuple[Choice, ...] = (),
    ) -> Verdict:
        """Return what is done in a case: the table's row, unless a policy's rule changes it.

        Args:
            expected: the recorded vm state.
            observed: what was seen.
            cause: why, as far as that is known.
            locked: whether anything locks the instance.
            held: whether a hold is on it.
            kept_off: whether a hold keeps it off.
            adopted: whether it was adopted.
            stray: of a copy on another host: which.
            choices: the policies that count, the one that goes first at the front.
        """
        row = judge(
            expected,
            observed,
            cause,
            locked=locked,
            held=held,
            kept_off=kept_off,
            adopted=adopted,
            stray=stray,
        )
        if not choices or not gives_way(row, locked=locked, held=held or kept_off):
            return row
        possible = alternatives(expected, observed, cause)
        for choice in choices:
            if choice.refused is not None:
                continue
            for number, rule in enumerate(self.named[choice.policy].rule, 1):
                if _matches(rule, expected, observed, cause) and rule.verdict in possible.kinds:
                    source = Source(layer=choice.layer, policy=choice.policy, rule=number)
                    return _changed(row, rule, possible, source)
        return row

    def may_act(self, expected: VmState, observed: Observed, cause: Cause) -> bool:
        """Say whether a policy could have something done in a case where the table alone does nothing."""
        return bool(self.named) and could_act(expected, observed, cause)

    def crash_loop_of(self, instance: Instance) -> CrashLoop:
        """Return when restores of an instance pause and stop: each bound as the first layer that has it says."""
        found = self.crash_loop
        for choice in reversed(self.chosen(instance)):
            if choice.refused is None:
                said = msgspec.structs.asdict(self.named[choice.policy].crash_loop)
                found = msgspec.structs.replace(
                    found, **{name: value for name, value in said.items() if value is not None}
                )
        return found


#: No policy at all: the table alone.
NO_POLICIES: Final = Policies()


def check(policies: Policies) -> None:
    """Refuse policies that cannot be followed.

    Raises:
        BadPolicy: a name is of no policy, or a rule asks for what makes no sense; it says what would.
    """
    for where, name in _named_in(policies):
        if name not in policies.named:
            known = ", ".join(sorted(policies.named)) or "none"
            raise BadPolicy(f"{where} names the policy {name}, which is not there; there are: {known}.")
    for name, policy in policies.named.items():
        for number, rule in enumerate(policy.rule, 1):
            _check_rule(f"policy {name}, rule {number}", rule)


def _named_in(policies: Policies) -> Iterator[tuple[str, str]]:
    if policies.default is not None:
        yield "policies.default", policies.default
    for host, name in policies.hosts.items():
        yield f"host {host}", name
    for project, name in policies.projects.items():
        yield f"project {project} in policies.projects", name
    for name in sorted(policies.selectable):
        yield "policies.selectable", name


def _check_rule(where: str, rule: Rule) -> None:
    causes = tuple(Cause) if rule.cause is None else (rule.cause,)
    possible = [alternatives(rule.expected, rule.observed, cause) for cause in causes]
    kinds = {kind for each in possible for kind in each.kinds}
    cell = f"an instance recorded as {rule.expected} and seen {rule.observed}" + (
        f" ({rule.cause})" if rule.cause is not None else ""
    )
    if not kinds:
        raise BadPolicy(f"{where}: what is done with {cell} cannot be changed by a policy.")
    if rule.verdict not in kinds:
        offered = ", ".join(sorted(kinds))
        raise BadPolicy(
            f"{where}: the verdict {rule.verdict} makes no sense for {cell}; possible are: {offered}."
        )
    if rule.action is None:
        return
    actions = list(dict.fromkeys(action for each in possible for action in each.actions))
    if rule.verdict is not Kind.RESTORE or rule.action not in actions:
        offered = (
            f"the verdict restore can name: {', '.join(actions)}" if actions else "nothing restores that"
        )
        raise BadPolicy(f"{where}: the action {rule.action} is not possible for {cell}; {offered}.")


def _matches(rule: Rule, expected: VmState, observed: Observed, cause: Cause) -> bool:
    return (
        rule.expected is expected
        and rule.observed is observed
        and (rule.cause is None or rule.cause is cause)
    )


_DONE: Final = {
    Kind.IGNORE: "nothing is done",
    Kind.ALERT: "the operator is told and nothing is changed",
    Kind.QUARANTINE: "the instance is put in error and left to a person",
}


def _changed(row: Verdict, rule: Rule, possible: Alternatives, source: Source) -> Verdict:
    """Return a row as a rule has it."""
    action: str | None = None
    becomes: VmState | None = None
    match rule.verdict:
        case Kind.RESTORE:
            action = rule.action or possible.actions[0]
            done = f"it is brought back by {action}"
        case Kind.ADOPT:
            becomes = possible.becomes
            done = f"it is recorded as {becomes}"
        case Kind.QUARANTINE:
            becomes, done = VmState.ERROR, _DONE[rule.verdict]
        case _:
            done = _DONE[rule.verdict]
    return msgspec.structs.replace(
        row,
        kind=rule.verdict,
        action=action,
        becomes=becomes,
        by=source,
        says=f"Recorded as {row.expected} and seen {row.observed}; by {source}, {done}.",
    )
