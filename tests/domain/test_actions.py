"""The table of actions holds together: whatever is derived from it can rely on this."""

from __future__ import annotations

import itertools
from typing import Literal, get_args, get_origin, get_type_hints

import pytest

from stateward.domain import bodies
from stateward.domain.actions import (
    ACTIONS,
    ADOPT,
    AFTER_BOOT,
    BY_KEY,
    CREATE,
    WAYS,
    Action,
    Exempt,
    OnFailure,
    Role,
    alternatives,
    body_type,
    key,
    of_wire,
    pending_owners,
    pick,
    restores,
)
from stateward.domain.actions.holds import HOLDS
from stateward.domain.locks import ALL_CLASSES, OperationClass
from stateward.domain.states import Cause, TaskState, VmState
from stateward.domain.steps import STEP_SAYS, Step
from stateward.domain.verdicts import Kind, judge

WIRES = sorted({row.wire for row in ACTIONS if row.wire is not None})


def by_key(row: Action) -> str:
    return key(row)


def test_keys_are_unique() -> None:
    """A stored operation is found again by its row's key, so no two rows may share one."""
    assert len(BY_KEY) == len(ACTIONS)
    assert all(BY_KEY[key(row)] is row for row in ACTIONS)


def test_keys_are_what_is_stored() -> None:
    """Renaming one would orphan the operations that old versions wrote; adding one is fine here."""
    assert sorted(BY_KEY) == [
        "adopt",
        "adopt_guest",
        "arrive",
        "arrive_stopped",
        "boot_paused",
        "boot_rescue",
        "boot_resume",
        "boot_start",
        "boot_start_resized",
        "changePassword",
        "confirmResize",
        "confirmResize_stopped",
        "create",
        "createBackup",
        "createImage",
        "delete",
        "delete_metadata",
        "delete_soft",
        "evacuate",
        "evacuate_anew",
        "evacuate_anew_off",
        "evacuate_anew_stopped",
        "evacuate_off",
        "evacuate_stopped",
        "forceDelete",
        "getConsoleOutput",
        "get_serial_console",
        "get_spice_console",
        "get_vnc_console",
        "halt_stray",
        "hold_building",
        "hold_clean",
        "hold_clean_as_it_is",
        "hold_forced",
        "hold_forced_as_it_is",
        "hold_none",
        "hold_offloaded",
        "hold_suspend",
        "hold_suspended",
        "lock",
        "migrate",
        "migrate_stopped",
        "os-migrateLive",
        "pause",
        "place_lock",
        "place_lock_overtaking",
        "reap",
        "reap_adopted",
        "reboot_hard",
        "reboot_soft",
        "rebuild",
        "rebuild_stopped",
        "reclaim",
        "release_guest",
        "release_lock",
        "release_stray",
        "remove_stray",
        "rescue",
        "reset_state",
        "resize",
        "resize_away",
        "resize_away_stopped",
        "resize_stopped",
        "restore",
        "restore_held",
        "restore_held_saved",
        "restore_off",
        "restore_offloaded",
        "restore_pause",
        "restore_paused",
        "restore_rescue",
        "restore_resume",
        "restore_start",
        "restore_stop",
        "restore_suspend",
        "restore_unpause",
        "resume",
        "revertResize",
        "revertResize_stopped",
        "shelve",
        "shelveOffload",
        "start",
        "stop",
        "stop_force",
        "suspend",
        "trigger_crash_dump",
        "unlock",
        "unpause",
        "unrescue",
        "unshelve",
        "unshelve_offloaded",
        "update",
        "update_metadata",
        "update_tags",
    ]


@pytest.mark.parametrize("wire", WIRES)
def test_variants_are_complete(wire: str) -> None:
    """Rows of one wire name differ in one field and cover each of its values, in capitals, exactly once."""
    rows = [row for row in of_wire(wire) if row.label is None]
    fields = {None if row.variant is None else row.variant[0] for row in rows}
    assert len(fields) == 1
    (field,) = fields
    if field is None:
        assert len(rows) == 1
        return
    body = rows[0].body[-1][1]
    struct = next((kind for kind in get_args(body) if kind is not type(None)), body)
    hint = get_type_hints(struct)[field]
    possible = {False, True} if hint is bool else {value.upper() for value in get_args(hint)}
    assert hint is bool or get_origin(hint) is Literal
    given = [row.variant[1] for row in rows if row.variant is not None]
    assert set(given) == possible
    assert len(given) == len(possible)
    assert {row.body for row in rows} == {rows[0].body}


@pytest.mark.parametrize(
    ("wire", "body", "chosen"),
    [
        ("os-stop", None, "stop"),
        ("os-stop", bodies.ShutdownOptions(), "stop"),
        ("os-stop", bodies.ShutdownOptions(timeout=5), "stop"),
        ("os-stop", bodies.ShutdownOptions(force=True), "stop_force"),
        ("os-stop", bodies.ShutdownOptions(force=True, timeout=5), "stop_force"),
        ("reboot", bodies.RebootOptions(type="SOFT"), "reboot_soft"),
        ("reboot", bodies.RebootOptions(type="HARD"), "reboot_hard"),
        ("reboot", bodies.RebootOptions(type="Soft"), "reboot_soft"),
        ("reboot", bodies.RebootOptions(type="hard"), "reboot_hard"),
        ("os-start", None, "start"),
    ],
)
def test_a_body_picks_its_row(wire: str, body: object, chosen: str) -> None:
    """What the request says decides between the rows of one wire name."""
    assert [key(row) for row in pick(of_wire(wire), body)] == [chosen]


def test_the_state_decides_where_the_body_does_not() -> None:
    """Both rows are tried; their states tell them apart."""
    rows = pick(of_wire("resize"), bodies.Resize(flavorRef="2"))
    assert [key(row) for row in rows] == ["resize", "resize_stopped"]


def test_no_row_matches_a_body_of_another_action() -> None:
    """Decoding has refused such a body; if it did not, that is a fault to be seen, not a guess."""
    with pytest.raises(LookupError, match="no row of reboot"):
        pick(of_wire("reboot"), bodies.LockOptions())


def test_an_unknown_wire_name_has_no_rows() -> None:
    """The API then says that there is no such action."""
    assert of_wire("os-explode") == ()


@pytest.mark.parametrize("row", ACTIONS, ids=by_key)
def test_bodies_rise_and_begin_with_the_first_microversion(row: Action) -> None:
    """So every microversion that has the action has a type for its body."""
    since = [minor for minor, _ in row.body]
    assert since == sorted(set(since))
    assert since[0] <= row.since
    assert body_type(row, 10_000) is row.body[-1][1]


def test_a_body_changes_with_its_microversion() -> None:
    """``lock`` takes anything up to 2.72 and a reason from 2.73 on."""
    lock = BY_KEY["lock"]
    assert body_type(lock, 72) is lock.body[0][1]
    assert body_type(lock, 73) is lock.body[1][1]


@pytest.mark.parametrize("row", ACTIONS, ids=by_key)
def test_what_an_agent_works_on_has_a_goal(row: Action) -> None:
    """Rows with steps say what the record becomes and what the guest must then be seen as, or that both stay."""
    if not row.is_operation:
        assert (row.pending, row.becomes, row.wants) == (None, None, None)
        return
    assert row.becomes is None or row.wants is not None
    # Only what brings several states' guests to what they all want has a goal and no state of its own, and what is
    # done to a copy of the guest.
    keeps = row in HOLDS or key(row) in restores() | set(AFTER_BOOT.values())
    assert (row.becomes is not None or row.wants is None or keeps) != row.elsewhere
    assert row.pending is not None or row.becomes is None or row.name == "reap"
    # The arbiter tries again, until it is a crash loop.
    assert row.on_failure is OnFailure.KEEP or row.policy.role is not Role.SYSTEM


@pytest.mark.parametrize("row", [row for row in ACTIONS if row.becomes is not None], ids=by_key)
def test_the_goal_is_what_the_arbiter_agrees_with(row: Action) -> None:
    """Or the arbiter would undo what the operation did."""
    assert row.becomes is not None
    assert row.wants is not None
    assert judge(row.becomes, row.wants, Cause.OTHER, locked=False).kind is Kind.AGREE


@pytest.mark.parametrize("row", ACTIONS, ids=by_key)
def test_a_guard_is_given(row: Action) -> None:
    """Classes that a lock can block, or a reason why none does (R2)."""
    if isinstance(row.guard, Exempt):
        assert len(row.guard.reason) > 10
        assert row.guarded == OperationClass(0)
    else:
        assert row.guarded == row.guard
        assert row.guard & ALL_CLASSES == row.guard
        assert row.guard != OperationClass(0)


def test_guard_has_no_default() -> None:
    """An author who forgets it is told so before anything runs (R2)."""
    with pytest.raises(TypeError, match="guard"):
        Action(name="x", when=frozenset(), policy=CREATE.policy, says="X.")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


@pytest.mark.parametrize("row", [row for row in ACTIONS if row.is_operation], ids=by_key)
def test_what_changes_a_guest_is_guarded(row: Action) -> None:
    """Except what makes it, what brings it back to the record, a hold, and what only reads its disk."""
    exempt = isinstance(row.guard, Exempt)
    reads = row.becomes is None and row.wants is None and Step.SNAPSHOT in row.steps
    # What was on its way ends on a host, or as it was: a lock does not undo what was admitted before it (B1).
    on_its_way = row.policy.role is Role.SYSTEM and row.places
    nothing = row.steps == (Step.STAND_DOWN,)
    assert exempt == (
        nothing
        or row in {CREATE, ADOPT}
        or row in HOLDS
        or reads
        or on_its_way
        or row.elsewhere
        or key(row) in restores() | {"reap", "reap_adopted"}
    )


@pytest.mark.parametrize("name", sorted({row.name for row in ACTIONS if row.label is not None}))
def test_rows_that_differ_by_state_do_not_overlap(name: str) -> None:
    """So at most one of them is admitted, and to a client they are one action."""
    rows = alternatives(name)
    if rows[0].policy.role is Role.SYSTEM or name == "place_lock":
        return  # What follows an operation is named by its row, not found by state; of locks, the request names it.
    if rows[0] in HOLDS:
        return  # Of those, ``WAYS`` has the rows that one request can mean.
    assert len(rows) > 1
    for one, other in itertools.combinations(rows, 2):
        apart = not one.when & other.when or (one.was is not None and other.was not in {None, one.was})
        assert apart or "soft" in {one.label, other.label}, "only the operator's choice tells these apart"
        assert (one.wire, one.since, one.body) == (other.wire, other.since, other.body)
        assert (one.policy, one.guard) == (other.policy, other.guard)


@pytest.mark.parametrize("way", WAYS)
def test_a_hold_is_admitted_in_every_state(way: str) -> None:
    """Whatever is in flight; and it names the row that it comes to (R6)."""
    for state in VmState:
        rows = [row for row in WAYS[way] if state in row.when]
        assert bool(rows) == (state is not VmState.DELETED)
        assert all(row.over == frozenset(TaskState) for row in rows)
        # Saved where that can be chosen; it is the first that fits that counts.
        assert len(rows) <= (2 if way == "suspend" and state in {VmState.ACTIVE, VmState.PAUSED} else 1)


def test_every_task_state_is_set_by_an_operation() -> None:
    """And only by operations, which also end it (B3)."""
    owners = list(pending_owners())
    assert {task_state for task_state, _ in owners} == set(TaskState)
    assert all(BY_KEY[name].is_operation for _, name in owners)


@pytest.mark.parametrize("row", ACTIONS, ids=by_key)
def test_an_operation_is_admitted_somewhere(row: Action) -> None:
    """Only ``create`` has no state before it; of what is deleted the guest is removed, or comes back."""
    assert (row.when == frozenset()) == (row is CREATE)
    assert (VmState.DELETED in row.when) == (row.name == "reap" or row is ADOPT or row.elsewhere)


@pytest.mark.parametrize("row", ACTIONS, ids=by_key)
def test_a_row_says_what_it_does(row: Action) -> None:
    """The docs are made of these sentences."""
    assert row.says.endswith(".")
    assert row.says[0].isupper()


@pytest.mark.parametrize("step", Step)
def test_every_step_is_used_and_documented(step: Step) -> None:
    """A step that no row has would never be run."""
    assert any(step in row.steps for row in ACTIONS)
    assert STEP_SAYS[step].endswith(".")


@pytest.mark.parametrize(
    ("gone", "made", "looked_at"),
    [
        (Step.DISCARD_DISK, Step.PREPARE_DISK, Step.CHECK_IMAGE),
        (Step.DISCARD_RESCUE_DISK, Step.PREPARE_RESCUE_DISK, Step.CHECK_RESCUE_IMAGE),
    ],
)
def test_what_a_guest_is_shut_down_for_is_looked_at_first(gone: Step, made: Step, looked_at: Step) -> None:
    """An image that no disk can be made over must be found while the guest still runs."""
    rows = [row for row in ACTIONS if {Step.SHUT_DOWN, gone, made} <= set(row.steps)]
    assert rows
    assert {row.steps[0] for row in rows} == {looked_at}


def test_what_comes_to_a_host_is_made_from_its_copy() -> None:
    """A disk of another image is an older copy's there; any other row's is the instance, whatever it was made from."""
    rows = [row for row in ACTIONS if row.places]
    assert {row.name for row in rows} == {"unshelve", "arrive"}
    assert {row.steps[:2] for row in rows} == {(Step.DISCARD_STALE_DISK, Step.PREPARE_DISK)}
    assert [row for row in ACTIONS if Step.DISCARD_STALE_DISK in row.steps] == rows


@pytest.mark.parametrize("row", [row for row in ACTIONS if Step.SHUT_DOWN in row.steps], ids=by_key)
def test_asking_is_followed_by_taking_the_power(row: Action) -> None:
    """Forcing at the deadline is the next step's work; without it a guest that ignores us would run on."""
    assert row.steps[row.steps.index(Step.SHUT_DOWN) + 1] is Step.POWER_OFF


def test_what_overtakes_a_save_throws_the_memory_away_or_keeps_it_as_such() -> None:
    """A guest that is recorded as anything but suspended must not have a saved memory: no start would boot it."""
    saving = {row.pending for row in ACTIONS if row.if_saved or Step.SAVE_MEMORY in row.steps}
    overtaking = [row for row in ACTIONS if row.over & saving and row.is_operation]
    assert {key(row) for row in overtaking} >= {"stop_force", "reboot_hard", "delete", "hold_clean"}
    for row in overtaking:
        keeps = row.becomes is VmState.SUSPENDED or row.steps == (Step.STAND_DOWN,)
        had_none = row.when == frozenset({VmState.BUILDING})
        assert keeps or had_none or Step.DISCARD_MEMORY in row.steps, key(row)
