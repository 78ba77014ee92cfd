"""The arbiter's table is total, has no dead row, and says what the requirements say."""

from __future__ import annotations

import itertools

import msgspec
import pytest

from stateward.domain.actions import ACTIONS, BY_KEY, Role, key, restores
from stateward.domain.locks import ALL_CLASSES
from stateward.domain.policies import NO_POLICIES
from stateward.domain.states import ON_NO_HOST, Cause, Observed, TaskState, VmState
from stateward.domain.steps import Step
from stateward.domain.verdicts import IN_FLIGHT, VERDICTS, Kind, Stray, Verdict, judge, judge_instance
from stateward.domain.verdicts.alternatives import alternatives
from tests.rows import instance

#: How an instance can be locked, as (locked, held, kept off).
FREE, LOCKED, HELD, KEPT_OFF = (
    (False, False, False),
    (True, False, False),
    (True, True, False),
    (True, True, True),
)
Locks = tuple[bool, bool, bool]
#: What is known of a copy elsewhere counts for one observation only.
COMBINATIONS = tuple(
    (expected, observed, cause, locks, stray, adopted)
    for expected, observed, cause, locks, stray, adopted in itertools.product(
        VmState, Observed, Cause, (FREE, LOCKED, HELD, KEPT_OFF), Stray, (False, True)
    )
    if observed is Observed.DUPLICATE or stray is Stray.RUNNING
)


def judged(  # noqa: PLR0917 (a combination, unpacked)
    expected: VmState,
    observed: Observed,
    cause: Cause,
    locks: Locks,
    stray: Stray,
    adopted: bool = False,  # noqa: FBT001, FBT002 (the last of a combination)
) -> Verdict:
    locked, held, kept_off = locks
    return judge(
        expected,
        observed,
        cause,
        locked=locked,
        held=held,
        kept_off=kept_off,
        adopted=adopted,
        stray=stray,
    )


def matches(row: Verdict, combination: tuple[VmState, Observed, Cause, Locks, Stray, bool]) -> bool:
    expected, observed, cause, locks, stray, adopted = combination
    asked = (row.locked, row.held, row.kept_off)
    return (
        row.expected is expected
        and row.observed is observed
        and (row.causes is None or cause in row.causes)
        and row.stray in {None, stray}
        and row.adopted in {None, adopted}
        and all(one in {None, is_so} for one, is_so in zip(asked, locks, strict=True))
    )


def test_every_combination_has_a_verdict() -> None:
    """There is a row for each, and ``judge`` returns the first of them."""
    for combination in COMBINATIONS:
        rows = [row for row in VERDICTS if matches(row, combination)]
        assert rows, combination
        assert judged(*combination) is rows[0]


def test_every_row_is_reached() -> None:
    """A row that another hides would be a rule nobody follows."""
    reached = {id(judged(*combination)) for combination in COMBINATIONS}
    assert [row for row in VERDICTS if id(row) not in reached] == []


def test_a_row_says_what_follows_and_nothing_else() -> None:
    """Only a restore names an action, only an adoption a new state, and all say why in a sentence.

    What is put in quarantine is halted elsewhere, and ends in error where there is a record to say so.
    """
    for row in VERDICTS:
        if row.kind is Kind.QUARANTINE:
            assert (row.observed, row.action) == (Observed.DUPLICATE, "halt_stray")
            assert row.becomes is (None if row.expected in ON_NO_HOST else VmState.ERROR)
        else:
            assert (row.action is not None) == (row.kind is Kind.RESTORE)
            assert (row.becomes is not None) == (row.kind is Kind.ADOPT)
        assert row.by is None
        assert row.says.endswith(".")
        assert row.says[0].isupper()


def as_recorded(state: VmState) -> set[Observed]:
    return {row.observed for row in VERDICTS if row.expected is state and row.kind is Kind.AGREE}


def test_a_restore_is_admitted_and_ends_in_agreement() -> None:
    """Its action is the arbiter's own, is admitted in the expected state, keeps it, and makes the guest so.

    Only what a hold failed to do ends in the state that the hold would have ended in.
    """
    for row in VERDICTS:
        if row.action is None:
            continue
        action = BY_KEY[row.action]
        if action.elsewhere:
            assert (row.observed, action.becomes, action.pending) == (Observed.DUPLICATE, None, None)
            assert row.expected in action.when
            continue
        assert action.policy.role is Role.SYSTEM
        assert row.expected in action.when
        ends = T if action.name == "restore_held" else row.expected
        assert action.becomes in {None, ends}
        assert action.steps
        # A resized instance may be on or off, and one in error anything; a hold that keeps it off decides.
        assert {action.wants} == as_recorded(ends) or row.kept_off


def test_every_restoring_action_is_in_the_table() -> None:
    """An action of the arbiter's that neither a verdict nor a policy can name would never be used."""
    named = {row.action for row in VERDICTS if row.action is not None}
    # By which of its rows is chosen as it is carried out.
    assert "restore_held" in named
    named.add("restore_held_saved")
    by_policy = {
        action
        for cell in itertools.product(VmState, Observed, Cause)
        for action in alternatives(*cell).actions
    }
    assert by_policy - named == {"restore_paused"}
    elsewhere = {key(action) for action in ACTIONS if action.elsewhere}
    assert restores() | {"reap", "reap_adopted"} | elsewhere == named | by_policy


def test_an_adoption_ends() -> None:
    """What is adopted is then as recorded, or is restored; it is never adopted a second time."""
    for expected, observed, cause, locks, stray, adopted in COMBINATIONS:
        row = judged(expected, observed, cause, locks, stray, adopted)
        if row.becomes is not None and row.kind is Kind.ADOPT:
            after = judged(row.becomes, observed, cause, locks, stray, adopted)
            agrees = observed in as_recorded(row.becomes)
            assert after.kind is (Kind.AGREE if agrees else Kind.RESTORE), row


@pytest.mark.parametrize("expected", VmState)
def test_unknown_changes_nothing(expected: VmState) -> None:
    """A hypervisor that cannot be asked says nothing about any guest (R12)."""
    assert judge(expected, Observed.UNKNOWN, Cause.OTHER, locked=True).kind is Kind.IGNORE


A, P, R, S, T, E, D = (
    VmState.ACTIVE,
    VmState.PAUSED,
    VmState.RESCUED,
    VmState.SUSPENDED,
    VmState.STOPPED,
    VmState.ERROR,
    VmState.DELETED,
)


@pytest.mark.parametrize(
    ("expected", "observed", "cause", "locked", "kind", "what"),
    [
        # Its own shutdown is the guest's right; every other way off is not.
        (A, Observed.SHUTOFF, Cause.GUEST, False, Kind.ADOPT, T),
        (A, Observed.SHUTOFF, Cause.GUEST, True, Kind.ADOPT, T),
        (A, Observed.SHUTOFF, Cause.DESTROYED, False, Kind.RESTORE, "restore_start"),
        (A, Observed.SHUTOFF, Cause.CRASHED, False, Kind.RESTORE, "restore_start"),
        (A, Observed.SHUTOFF, Cause.HOST, False, Kind.RESTORE, "restore_start"),
        (A, Observed.SHUTOFF, Cause.OUT_OF_MEMORY, False, Kind.RESTORE, "restore_start"),
        # It may run on the host that it was migrated to.
        (A, Observed.SHUTOFF, Cause.MIGRATION, False, Kind.ALERT, None),
        (P, Observed.SHUTOFF, Cause.MIGRATION, False, Kind.ALERT, None),
        (S, Observed.SHUTOFF, Cause.MIGRATION, True, Kind.ALERT, None),
        # The memory that somebody saved to a file must not come back to a disk that went on without it.
        *((each, Observed.SHUTOFF, Cause.SAVED, False, Kind.ALERT, None) for each in (A, P, R, S)),
        (S, Observed.SHUTOFF, Cause.SAVED, True, Kind.ALERT, None),
        (T, Observed.SHUTOFF, Cause.SAVED, False, Kind.AGREE, None),
        (A, Observed.SHUTOFF, Cause.OTHER, False, Kind.RESTORE, "restore_start"),
        (A, Observed.CRASHED, Cause.CRASHED, False, Kind.RESTORE, "restore_start"),
        (A, Observed.PAUSED, Cause.OPERATOR, False, Kind.RESTORE, "restore_unpause"),
        (A, Observed.PAUSED, Cause.IO_ERROR, False, Kind.ALERT, None),
        (A, Observed.PAUSED, Cause.MIGRATION, False, Kind.IGNORE, None),
        # Neither half of a migration that broke off can run, so somebody must be told (R15).
        *((each, Observed.PAUSED, Cause.HALF_MIGRATED, False, Kind.ALERT, None) for each in (A, R)),
        # A guest that sleeps wakes by itself, and one that is being saved is saved in a moment.
        (A, Observed.PAUSED, Cause.GUEST, False, Kind.IGNORE, None),
        (A, Observed.PAUSED, Cause.SAVED, False, Kind.IGNORE, None),
        (A, Observed.SUSPENDED, Cause.SAVED, False, Kind.RESTORE, "restore_resume"),
        (A, Observed.MISSING, Cause.OTHER, False, Kind.ALERT, None),
        # A paused one found running and a stopped one found paused are different cells (R13).
        (P, Observed.RUNNING, Cause.OTHER, False, Kind.RESTORE, "restore_pause"),
        (P, Observed.SHUTOFF, Cause.HOST, False, Kind.ADOPT, T),
        (P, Observed.SUSPENDED, Cause.SAVED, False, Kind.ADOPT, S),
        (T, Observed.PAUSED, Cause.OPERATOR, False, Kind.RESTORE, "restore_off"),
        # A lock protects being off (R1): what is locked off gets no minute to shut down.
        (T, Observed.RUNNING, Cause.OTHER, False, Kind.RESTORE, "restore_stop"),
        (T, Observed.RUNNING, Cause.OTHER, True, Kind.RESTORE, "restore_off"),
        (T, Observed.SUSPENDED, Cause.SAVED, False, Kind.ALERT, None),
        # A suspended one stays suspended (R7, R14).
        (S, Observed.RUNNING, Cause.OTHER, True, Kind.RESTORE, "restore_suspend"),
        (S, Observed.PAUSED, Cause.OTHER, False, Kind.RESTORE, "restore_suspend"),
        (S, Observed.SHUTOFF, Cause.OTHER, False, Kind.ADOPT, T),
        # In error a person decides; what is deleted stays deleted.
        (E, Observed.SHUTOFF, Cause.DESTROYED, False, Kind.IGNORE, None),
        (D, Observed.RUNNING, Cause.OTHER, False, Kind.RESTORE, "reap"),
        (D, Observed.SHUTOFF, Cause.OTHER, True, Kind.RESTORE, "reap"),
        (D, Observed.MISSING, Cause.OTHER, False, Kind.AGREE, None),
    ],
)
def test_what_the_requirements_say(
    *,
    expected: VmState,
    observed: Observed,
    cause: Cause,
    locked: bool,
    kind: Kind,
    what: object,
) -> None:
    """The cells that a requirement speaks of, one by one."""
    row = judge(expected, observed, cause, locked=locked)
    assert (row.kind, row.action or row.becomes) == (kind, what)


@pytest.mark.parametrize(
    ("stray", "kind", "action", "becomes"),
    [
        (Stray.OLDER, Kind.RESTORE, "remove_stray", None),
        (Stray.OLDER_RUNNING, Kind.RESTORE, "halt_stray", None),
        (Stray.RUNNING, Kind.QUARANTINE, "halt_stray", E),
        (Stray.RESTING, Kind.ALERT, None, None),
    ],
)
def test_a_copy_elsewhere_never_runs_beside_it(
    stray: Stray, kind: Kind, action: str | None, becomes: VmState | None
) -> None:
    """Only what is certain to be older is removed; what is not is halted or kept (R14)."""
    for expected, cause, (locked, held, kept_off) in itertools.product(
        VmState, Cause, (FREE, LOCKED, HELD, KEPT_OFF)
    ):
        row = judge(
            expected, Observed.DUPLICATE, cause, locked=locked, held=held, kept_off=kept_off, stray=stray
        )
        end = None if expected in ON_NO_HOST else becomes
        assert (row.kind, row.action, row.becomes) == (kind, action, end)


@pytest.mark.parametrize("task_state", TaskState)
def test_an_operation_in_flight_is_not_judged(task_state: TaskState) -> None:
    """Whatever it does to the guest meanwhile is no deviation (R12)."""
    for expected, observed, cause in itertools.product(VmState, Observed, Cause):
        row = instance(vm_state=expected, task_state=task_state, observed=observed, cause=cause)
        verdict = judge_instance(row)
        idle = judge(expected, observed, cause, locked=False)
        if idle.kind is Kind.AGREE:
            assert verdict is idle
        else:
            assert (verdict.kind, verdict.action, verdict.becomes) == (Kind.IGNORE, None, None)
            assert verdict.says == IN_FLIGHT


def test_an_instance_is_judged_by_its_own_columns() -> None:
    """Locked by anybody counts as locked."""
    for locked_by, action in ((None, "restore_stop"), ("owner", "restore_off"), ("admin", "restore_off")):
        row = instance(vm_state=T, observed=Observed.RUNNING, locked_by=locked_by)
        assert judge_instance(row).action == action


@pytest.mark.parametrize("observed", sorted(set(Observed) - {Observed.MISSING, Observed.UNKNOWN}))
def test_what_was_given_back_is_its_owner_s(observed: Observed) -> None:
    """No verdict about a deleted instance that was adopted takes its guest's power, memory or definition."""
    for locks, cause, stray in itertools.product((FREE, LOCKED, HELD, KEPT_OFF), Cause, Stray):
        row = judged(D, observed, cause, locks, stray, adopted=True)
        assert row.action is not None
        assert BY_KEY[row.action].steps == (Step.RELEASE,)
    found = instance(vm_state=D, observed=Observed.RUNNING, adopted_as="theirs")
    assert judge_instance(found).action == NO_POLICIES.judge(found).action == "reap_adopted"
    assert NO_POLICIES.judge_stray(found, Stray.RUNNING).action == "release_stray"


def test_nothing_brings_a_held_guest_back() -> None:
    """No verdict about an instance under a hold starts a guest that is off, or lets a halted one run (R6)."""
    for combination in COMBINATIONS:
        row = judged(*combination)
        off = combination[1] not in {Observed.RUNNING, Observed.PAUSED}
        # What is done to a copy elsewhere only ever halts or removes it.
        if combination[3] not in {HELD, KEPT_OFF} or row.action is None or BY_KEY[row.action].elsewhere:
            continue
        assert BY_KEY[row.action].wants is not Observed.RUNNING, combination
        assert not off or BY_KEY[row.action].wants in {Observed.SHUTOFF, Observed.MISSING}, combination


@pytest.mark.parametrize("expected", [VmState.STOPPED, VmState.RESIZED, VmState.ERROR, VmState.SHELVED])
def test_what_is_kept_off_is_switched_off_again(expected: VmState) -> None:
    """Whoever started it, and however: also where nothing would be judged without the hold (R6)."""
    for observed, cause in itertools.product((Observed.RUNNING, Observed.PAUSED), Cause):
        row = judged(expected, observed, cause, KEPT_OFF, Stray.RUNNING)
        assert (row.kind, row.action) == (Kind.RESTORE, "restore_off")


@pytest.mark.parametrize("expected", [A, P, VmState.RESCUED])
def test_what_a_hold_failed_to_have_off_goes_off(expected: VmState) -> None:
    """Whatever its record says; what is just being saved or migrated is judged a moment later (R6)."""
    for observed, cause in itertools.product((Observed.RUNNING, Observed.PAUSED), Cause):
        row = judged(expected, observed, cause, KEPT_OFF, Stray.RUNNING)
        if observed is Observed.PAUSED and cause in {Cause.SAVED, Cause.MIGRATION}:
            assert row.action is None
        else:
            assert (row.kind, row.action) == (Kind.RESTORE, "restore_held")
        # A hold that leaves it as it is does not switch it off.
        assert judged(expected, observed, cause, HELD, Stray.RUNNING).action not in {
            "restore_held",
            "restore_off",
        }


@pytest.mark.parametrize("observed", [Observed.SHUTOFF, Observed.CRASHED])
def test_a_saved_memory_that_is_gone_under_a_hold_is_told(observed: Observed) -> None:
    """It is evidence (R6); without a hold it is the owner's, and nobody is told."""
    for locks, alerts in ((FREE, False), (LOCKED, False), (HELD, True), (KEPT_OFF, True)):
        row = judged(S, observed, Cause.OTHER, locks, Stray.RUNNING)
        assert (row.kind, row.becomes, row.alerts) == (Kind.ADOPT, T, alerts)


def test_an_instance_is_judged_by_its_own_holds() -> None:
    """By the columns that its locks are folded into."""
    free = instance(vm_state=A, observed=Observed.SHUTOFF, cause=Cause.DESTROYED)
    assert judge_instance(free).action == "restore_start"
    held = msgspec.structs.replace(free, hold_blocks=ALL_CLASSES, locked_by="admin")
    assert judge_instance(held).becomes is T
    resized = instance(vm_state=VmState.RESIZED, observed=Observed.RUNNING, hold_blocks=15, locked_by="admin")
    assert judge_instance(resized).kind is Kind.AGREE
    assert judge_instance(msgspec.structs.replace(resized, kept_off=True)).action == "restore_off"
