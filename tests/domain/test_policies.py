"""Policies change the cells that give way, in the order of their layers, and nothing else (R13)."""

from __future__ import annotations

import itertools

import msgspec
import pytest

from stateward.domain.actions import BY_KEY
from stateward.domain.policies import (
    NO_POLICIES,
    BadPolicy,
    Choice,
    CrashLoop,
    Loop,
    Policies,
    Policy,
    Rule,
    check,
)
from stateward.domain.records import Instance
from stateward.domain.states import ON_NO_HOST, Cause, Observed, TaskState, VmState
from stateward.domain.verdicts import VERDICTS, Kind, Layer, Source, Stray, judge, judge_instance
from stateward.domain.verdicts.alternatives import alternatives, gives_way
from tests.rows import instance

A, P, S, T = VmState.ACTIVE, VmState.PAUSED, VmState.SUSPENDED, VmState.STOPPED
CELLS = tuple(itertools.product(VmState, Observed, Cause))


def rule(
    expected: VmState,
    observed: Observed,
    verdict: Kind,
    cause: Cause | None = None,
    action: str | None = None,
) -> Rule:
    return Rule(expected=expected, observed=observed, verdict=verdict, cause=cause, action=action)


def one(*rules: Rule) -> Policies:
    return Policies(named={"p": Policy(rule=rules)}, default="p")


# ---- what may be changed


def test_nothing_final_gives_way() -> None:
    """Neither what is as recorded, nor what is unknown, deleted, or left to somebody else."""
    for expected, observed, cause in CELLS:
        agrees = judge(expected, observed, cause, locked=False).kind is Kind.AGREE
        fixed = expected in {VmState.BUILDING, VmState.ERROR, VmState.SOFT_DELETED, *ON_NO_HOST}
        kinds = alternatives(expected, observed, cause).kinds
        assert (kinds == frozenset()) == (agrees or fixed or observed is Observed.UNKNOWN), (
            expected,
            observed,
        )


def test_a_restore_by_policy_ends_in_agreement() -> None:
    """As one of the table's own: it is admitted in the recorded state and makes the guest as recorded."""
    for expected, observed, cause in CELLS:
        if observed is Observed.DUPLICATE:
            continue
        for name in alternatives(expected, observed, cause).actions:
            action = BY_KEY[name]
            assert expected in action.when
            assert action.becomes in {None, expected}
            assert action.wants is not None
            assert judge(expected, action.wants, Cause.OTHER, locked=False).kind is Kind.AGREE


def test_an_adoption_by_policy_ends() -> None:
    """What the record becomes agrees with the guest, or the guest is what little is left of a crash."""
    for expected, observed, cause in CELLS:
        becomes = alternatives(expected, observed, cause).becomes
        if becomes is not None:
            after = judge(becomes, observed, cause, locked=False)
            assert after.kind is Kind.AGREE or observed is Observed.CRASHED


def test_what_the_table_does_can_be_said_by_a_policy() -> None:
    """So a layer above can take back what one below has changed."""
    for row in VERDICTS:
        locked, held = bool(row.locked), bool(row.held or row.kept_off)
        for cause in row.causes or Cause:
            found = judge(
                row.expected,
                row.observed,
                cause,
                locked=locked,
                held=held,
                adopted=bool(row.adopted),
                stray=row.stray or Stray.OLDER,
            )
            possible = alternatives(row.expected, row.observed, cause)
            if found is row and possible.kinds and gives_way(row, locked=locked, held=held):
                assert row.kind in possible.kinds
                assert row.action in {None, *possible.actions}
                assert row.becomes in {None, possible.becomes}


@pytest.mark.parametrize(
    ("observed", "cause"),
    [
        (Observed.SHUTOFF, Cause.MIGRATION),
        (Observed.SHUTOFF, Cause.SAVED),
        (Observed.PAUSED, Cause.MIGRATION),
        (Observed.PAUSED, Cause.HALF_MIGRATED),
    ],
)
def test_what_may_run_elsewhere_is_never_started(observed: Observed, cause: Cause) -> None:
    """A guest that was migrated away, or is being, or whose memory was saved to a file, outside Stateward."""
    possible = alternatives(A, observed, cause)
    assert possible.kinds == {Kind.IGNORE, Kind.ALERT, Kind.QUARANTINE}
    if observed is Observed.SHUTOFF:
        # Nor recorded as stopped, and started by whoever likes.
        assert alternatives(S, observed, cause) == possible
    assert one(rule(A, observed, Kind.RESTORE)).decide(
        A, observed, cause, choices=(Choice(layer=Layer.DEFAULT, policy="p"),)
    ) is judge(A, observed, cause, locked=False)


#: Every cell that can be, changed in every way that it can be.
EVERYTHING = Policies(
    named={
        f"{kind} {number}": Policy(
            rule=tuple(
                rule(expected, observed, kind, cause)
                for expected, observed, cause in CELLS
                if kind in alternatives(expected, observed, cause).kinds
            )
        )
        for number, kind in enumerate(Kind)
    }
)


@pytest.mark.parametrize("name", EVERYTHING.named)
def test_no_policy_passes_a_lock_or_a_hold(name: str) -> None:
    """Nothing that a lock or hold keeps off is let run, and what is deleted stays deleted (R1, R6)."""
    choices = (Choice(layer=Layer.INSTANCE, policy=name),)
    for expected, observed, cause in CELLS:
        row = judge(expected, observed, cause, locked=True, held=True)
        assert EVERYTHING.decide(expected, observed, cause, locked=True, held=True, choices=choices) is row
        found = EVERYTHING.decide(expected, observed, cause, locked=True, choices=choices)
        if expected in {P, S, T, VmState.SHELVED} and observed in {Observed.RUNNING, Observed.PAUSED}:
            assert found is judge(expected, observed, cause, locked=True)
        if expected in {VmState.DELETED, VmState.SOFT_DELETED, VmState.ERROR, VmState.BUILDING}:
            assert found is judge(expected, observed, cause, locked=True)
        if found.kind is Kind.ADOPT and expected is not A:
            assert found.becomes in {S, T}


@pytest.mark.parametrize("name", EVERYTHING.named)
def test_two_never_run(name: str) -> None:
    """Whatever a policy says of copies: one that runs and may be the right one is halted (R14)."""
    choices = (Choice(layer=Layer.INSTANCE, policy=name),)
    for expected in VmState:
        for stray in (Stray.OLDER_RUNNING, Stray.RUNNING, Stray.RESTING):
            found = EVERYTHING.decide(expected, Observed.DUPLICATE, Cause.OTHER, stray=stray, choices=choices)
            assert found is judge(expected, Observed.DUPLICATE, Cause.OTHER, locked=False, stray=stray)
        older = EVERYTHING.decide(
            expected, Observed.DUPLICATE, Cause.OTHER, stray=Stray.OLDER, choices=choices
        )
        assert older.kind in {Kind.RESTORE, Kind.ALERT, Kind.IGNORE}
        assert older.action in {None, "remove_stray"}


# ---- layers


def layered() -> Policies:
    """Name a policy in each layer, each of which has something else done with a guest that crashed."""
    kinds = (Kind.ADOPT, Kind.ALERT, Kind.IGNORE, Kind.QUARANTINE, Kind.RESTORE, Kind.ALERT)
    return Policies(
        named={
            layer.value: Policy(rule=(rule(A, Observed.CRASHED, kind),))
            for layer, kind in zip(Layer, kinds, strict=True)
        },
        default="default",
        hosts={"h": "host"},
        projects={"p": "project"},
        selectable=frozenset({"image", "instance"}),
    )


def crashed(*layers: str) -> Instance:
    """Return an active instance that crashed, with policies named where only some layers look."""
    plain = instance(vm_state=A, observed=Observed.CRASHED, cause=Cause.CRASHED)
    specs = {"stateward:policy": "flavor"} if "flavor" in layers else {}
    properties = {"stateward_policy": "image"} if "image" in layers else {}

    return msgspec.structs.replace(
        plain,
        host="h" if "host" in layers else "another",
        project_id="p" if "project" in layers else "another",
        metadata={"stateward:policy": "instance"} if "instance" in layers else {},
        flavor=msgspec.structs.replace(plain.flavor, extra_specs=specs),
        image=msgspec.structs.replace(plain.image, properties=properties),
    )


@pytest.mark.parametrize(
    ("layers", "decides", "kind"),
    [
        ((), Layer.DEFAULT, Kind.ADOPT),
        (("host",), Layer.HOST, Kind.ALERT),
        (("host", "flavor"), Layer.FLAVOR, Kind.IGNORE),
        (("host", "flavor", "image"), Layer.IMAGE, Kind.QUARANTINE),
        (("host", "flavor", "image", "project"), Layer.PROJECT, Kind.RESTORE),
        (("host", "flavor", "image", "project", "instance"), Layer.INSTANCE, Kind.ALERT),
        (("flavor", "instance"), Layer.INSTANCE, Kind.ALERT),
    ],
)
def test_the_nearest_layer_decides(layers: tuple[str, ...], decides: Layer, kind: Kind) -> None:
    """And the verdict says which it was, and by which rule."""
    policies = layered()
    check(policies)
    verdict = policies.judge(crashed(*layers))
    assert verdict.kind is kind
    assert verdict.by == Source(layer=decides, policy=decides.value, rule=1)
    assert verdict.decided_by == f"policy {decides} ({decides}), rule 1"
    assert verdict.decided_by in verdict.says


def test_what_a_layer_has_no_rule_for_is_left_to_those_below() -> None:
    """And at last to the table."""
    policies = Policies(
        named={
            "low": Policy(rule=(rule(A, Observed.SHUTOFF, Kind.ALERT, Cause.DESTROYED),)),
            "high": Policy(
                rule=(
                    rule(A, Observed.SHUTOFF, Kind.RESTORE, Cause.GUEST),
                    rule(A, Observed.SHUTOFF, Kind.QUARANTINE, Cause.GUEST),
                )
            ),
        }
    )
    choices = (Choice(layer=Layer.PROJECT, policy="high"), Choice(layer=Layer.DEFAULT, policy="low"))

    def decided(cause: Cause) -> tuple[Kind, str | None, str]:
        found = policies.decide(A, Observed.SHUTOFF, cause, choices=choices)
        return found.kind, found.action, found.decided_by

    assert decided(Cause.GUEST) == (Kind.RESTORE, "restore_start", "policy high (project), rule 1")
    assert decided(Cause.DESTROYED) == (Kind.ALERT, None, "policy low (default), rule 1")
    assert decided(Cause.CRASHED) == (Kind.RESTORE, "restore_start", "table")


def test_owners_choose_only_what_they_may() -> None:
    """By metadata and by an image's property; why another is not followed can be read."""

    policies = msgspec.structs.replace(layered(), selectable=frozenset({"image"}))
    row = crashed("image", "instance")
    assert policies.chosen(row) == (
        Choice(
            layer=Layer.INSTANCE,
            policy="instance",
            refused="The policy instance is not one that owners may choose.",
        ),
        Choice(layer=Layer.IMAGE, policy="image"),
        Choice(layer=Layer.DEFAULT, policy="default"),
    )
    assert policies.judge(row).by == Source(layer=Layer.IMAGE, policy="image", rule=1)
    unknown = msgspec.structs.replace(row, metadata={"stateward:policy": "nonsense"})
    assert policies.chosen(unknown)[0].refused == "There is no policy called nonsense."


def test_an_operation_in_flight_is_not_judged_by_policies_either() -> None:
    """Whatever they say (R12)."""
    row = instance(vm_state=A, observed=Observed.CRASHED, cause=Cause.CRASHED, task_state=TaskState.REBOOTING)
    assert layered().judge(row) == judge_instance(row)
    assert layered().judge_stray(row, Stray.OLDER).kind is Kind.IGNORE


def test_a_paused_instance_after_its_host_has_booted() -> None:
    """It is stopped, or by policy started and paused again, or left to a person (R14)."""
    assert NO_POLICIES.decide(P, Observed.SHUTOFF, Cause.HOST).becomes is T
    for kind, action, becomes in (
        (Kind.RESTORE, "restore_paused", None),
        (Kind.QUARANTINE, None, VmState.ERROR),
        (Kind.ALERT, None, None),
    ):
        policies = one(rule(P, Observed.SHUTOFF, kind, Cause.HOST))
        check(policies)
        choices = (Choice(layer=Layer.DEFAULT, policy="p"),)
        found = policies.decide(P, Observed.SHUTOFF, Cause.HOST, choices=choices)
        assert (found.kind, found.action, found.becomes) == (kind, action, becomes)


def test_a_rule_may_name_the_way_back() -> None:
    """A stopped guest that runs is shut down, or loses its power."""
    policies = one(rule(T, Observed.RUNNING, Kind.RESTORE, action="restore_off"))
    check(policies)
    choices = (Choice(layer=Layer.DEFAULT, policy="p"),)
    assert policies.decide(T, Observed.RUNNING, Cause.OTHER, choices=choices).action == "restore_off"


# ---- crash loops


def test_each_bound_of_a_crash_loop_is_the_nearest_layers() -> None:
    """What no layer says is as the settings say."""

    named = {
        name: Policy(crash_loop=loop)
        for name, loop in (("default", Loop(restores=9, pause=2)), ("host", Loop(restores=3)))
    }
    policies = Policies(named=named, default="default", hosts={"h": "host"}, crash_loop=CrashLoop(seconds=60))
    row = instance()
    assert policies.crash_loop_of(msgspec.structs.replace(row, host="h")) == CrashLoop(
        restores=3, seconds=60, pause=2, factor=2
    )
    assert policies.crash_loop_of(msgspec.structs.replace(row, host="x")).restores == 9


def test_restores_back_off() -> None:
    """The first waits for nothing; each further one longer."""
    loop = CrashLoop(pause=1, factor=3)
    assert [loop.wait(tries) for tries in range(5)] == [0, 1, 3, 9, 27]


# ---- what is refused at the start


@pytest.mark.parametrize(
    ("refused", "says"),
    [
        (
            rule(VmState.DELETED, Observed.RUNNING, Kind.ALERT),
            (
                "policy p, rule 1: what is done with an instance recorded as deleted and seen running cannot be "
                "changed by a policy."
            ),
        ),
        (
            rule(A, Observed.UNKNOWN, Kind.RESTORE),
            (
                "policy p, rule 1: what is done with an instance recorded as active and seen unknown cannot be "
                "changed by a policy."
            ),
        ),
        (
            rule(P, Observed.SUSPENDED, Kind.RESTORE),
            (
                "policy p, rule 1: the verdict restore makes no sense for an instance recorded as paused and seen "
                "suspended; possible are: adopt, alert, ignore, quarantine."
            ),
        ),
        (
            rule(A, Observed.SHUTOFF, Kind.ADOPT, Cause.MIGRATION),
            (
                "policy p, rule 1: the verdict adopt makes no sense for an instance recorded as active and seen "
                "shutoff (migration); possible are: alert, ignore, quarantine."
            ),
        ),
        (
            rule(A, Observed.CRASHED, Kind.AGREE),
            (
                "policy p, rule 1: the verdict agree makes no sense for an instance recorded as active and seen "
                "crashed; possible are: adopt, alert, ignore, quarantine, restore."
            ),
        ),
        (
            rule(A, Observed.CRASHED, Kind.RESTORE, action="delete"),
            (
                "policy p, rule 1: the action delete is not possible for an instance recorded as active and seen "
                "crashed; the verdict restore can name: restore_start."
            ),
        ),
        (
            rule(A, Observed.CRASHED, Kind.ALERT, action="restore_start"),
            (
                "policy p, rule 1: the action restore_start is not possible for an instance recorded as active and "
                "seen crashed; the verdict restore can name: restore_start."
            ),
        ),
        (
            rule(A, Observed.MISSING, Kind.ALERT, action="restore_start"),
            (
                "policy p, rule 1: the action restore_start is not possible for an instance recorded as active and "
                "seen missing; nothing restores that."
            ),
        ),
    ],
)
def test_a_rule_that_makes_no_sense(refused: Rule, says: str) -> None:
    """Is refused with what would."""
    with pytest.raises(BadPolicy) as caught:
        check(one(refused))
    assert str(caught.value) == says


@pytest.mark.parametrize(
    ("policies", "says"),
    [
        (
            Policies(named={"b": Policy(), "a": Policy()}, default="x"),
            "policies.default names the policy x, which is not there; there are: a, b.",
        ),
        (
            Policies(hosts={"h": "x"}),
            "host h names the policy x, which is not there; there are: none.",
        ),
        (
            Policies(projects={"pr": "x"}),
            "project pr in policies.projects names the policy x, which is not there; there are: none.",
        ),
        (
            Policies(selectable=frozenset({"x"})),
            "policies.selectable names the policy x, which is not there; there are: none.",
        ),
    ],
)
def test_a_policy_that_is_not_there(policies: Policies, says: str) -> None:
    """Is refused wherever it is named."""
    with pytest.raises(BadPolicy) as caught:
        check(policies)
    assert str(caught.value) == says


def test_without_policies_the_table_decides() -> None:
    """Row for row, and no policy could act."""
    for expected, observed, cause in CELLS:
        assert NO_POLICIES.decide(expected, observed, cause) is judge(expected, observed, cause, locked=False)
        assert not NO_POLICIES.may_act(expected, observed, cause)
