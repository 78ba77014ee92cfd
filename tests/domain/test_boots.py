"""What becomes of instances when their host has booted, and in which order; without I/O."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from stateward.domain.boots import (
    MOST_PRIORITY,
    PRIORITY,
    Pace,
    Turn,
    TurnState,
    as_rebooted,
    explained,
    fate_of,
    next_turns,
    priority_of,
)
from stateward.domain.locks import OperationClass
from stateward.domain.records import FlavorFacts
from stateward.domain.states import Cause, VmState
from stateward.domain.verdicts import judge_instance
from tests.rows import FLAVOR, IMAGE, NOW, instance

#: Of each vm state, what becomes of it when it is found off, and when it is found with a saved memory.
OFF = {
    "building": "table",
    "active": "start boot_start",
    "paused": "adopt stopped",
    "suspended": "table",
    "stopped": "table",
    "rescued": "start boot_rescue",
    "resized": "start boot_start_resized",
    "shelved": "table",
    "shelved_offloaded": "table",
    "soft-delete": "table",
    "error": "table",
}
SAVED = OFF | {"active": "start boot_resume", "paused": "adopt suspended", "resized": "table"}
#: The same of one with a lock that blocks a start.
LOCKED = OFF | {"active": "adopt stopped", "rescued": "leave", "resized": "leave"}
LOCKED_SAVED = SAVED | {"active": "adopt suspended", "rescued": "leave"}


def fate(**changes: Any) -> str:
    found = instance(was=VmState.ACTIVE, **changes)
    said = fate_of(found, judge_instance(as_rebooted(found)))
    return " ".join(filter(None, (said.kind.value, said.action, said.becomes)))


@pytest.mark.parametrize("state", sorted(OFF))
@pytest.mark.parametrize("cause", [Cause.OTHER, Cause.GUEST, Cause.DESTROYED], ids=str)
def test_each_by_its_previous_state(state: str, cause: Cause) -> None:
    """Whatever the hypervisor says it went off of: its host has booted."""
    said = {"vm_state": state, "cause": cause.value}
    assert fate(**said, observed="shutoff") == OFF[state]
    assert fate(**said, observed="suspended") == SAVED[state]
    blocks = {"locked_by": "owner", "owner_blocks": OperationClass.START}
    assert fate(**said, **blocks, observed="shutoff") == LOCKED[state]
    assert fate(**said, **blocks, observed="suspended") == LOCKED_SAVED[state]


@pytest.mark.parametrize("kind", ["owner", "admin", "hold"])
def test_a_lock_of_any_kind_keeps_it_off(kind: str) -> None:
    """And one that blocks something else does not."""
    said = {"vm_state": "active", "observed": "shutoff", "locked_by": kind}
    assert fate(**said, **{f"{kind}_blocks": OperationClass.START}) == "adopt stopped"
    if kind != "hold":
        assert fate(**said, **{f"{kind}_blocks": OperationClass.DELETE}) == "start boot_start"


def test_a_lock_s_reason_is_told() -> None:
    """With what to do."""
    found = instance(observed="shutoff", admin_blocks=OperationClass.START, locked_by="admin")
    assert fate_of(found, judge_instance(as_rebooted(found))).says == (
        "Its host has rebooted, and a lock keeps it from being started: it is recorded as stopped. "
        "Release the lock and start it."
    )


def test_what_is_in_flight_is_seen_later() -> None:
    """Whatever it is."""
    for state in VmState:
        assert fate(vm_state=state.value, observed="shutoff", task_state="powering-off") == "in flight"


def test_a_resized_guest_that_was_off_stays_off() -> None:
    """Its resize never started it."""
    found = instance(vm_state="resized", was=VmState.STOPPED, observed="shutoff")
    assert not explained(found)


@pytest.mark.parametrize("cause", ["saved", "migration"])
@pytest.mark.parametrize("state", ["active", "paused", "rescued", "resized"])
def test_what_was_off_before_with_its_memory_elsewhere(state: str, cause: str) -> None:
    """Started, it would run twice, or on a disk that its memory does not fit."""
    found = instance(vm_state=state, was=VmState.ACTIVE, observed="shutoff", cause=cause)
    assert not explained(found)


@pytest.mark.parametrize("observed", ["running", "paused", "missing", "unknown"])
def test_what_a_boot_does_not_explain(observed: str) -> None:
    """It is the table's, and its breaker's."""
    assert {fate(vm_state=state, observed=observed) for state in OFF} == {"table"}


# The order.


@pytest.mark.parametrize(
    ("metadata", "image", "flavor", "priority"),
    [
        (None, None, None, 7),
        ("3", "2", "1", 3),
        (None, "2", "1", 2),
        (None, None, "-1", -1),
        ("soon", "2", None, 2),
        (str(MOST_PRIORITY), None, None, MOST_PRIORITY),
        (str(MOST_PRIORITY + 1), None, None, 7),
    ],
)
def test_a_priority(metadata: str | None, image: str | None, flavor: str | None, priority: int) -> None:
    """The instance's own goes before its image's and its flavor's; what is no number is passed over."""

    def said(value: str | None) -> dict[str, str]:
        return {} if value is None else {PRIORITY: value}

    specs: FlavorFacts = msgspec.structs.replace(FLAVOR, extra_specs=said(flavor))
    found = instance(
        metadata=said(metadata), image=msgspec.structs.replace(IMAGE, properties=said(image)), flavor=specs
    )
    assert priority_of(found, 7) == priority


def turn(name: str, priority: int = 0, state: TurnState = TurnState.WAITING, **more: Any) -> Turn:
    return Turn(
        instance_id=name,
        host="h",
        boot_id="b",
        fence=1,
        priority=priority,
        number=int(name),
        state=state,
        **more,
    )


def chosen(*turns: Turn, busy: str = "", **pace: Any) -> tuple[str, float | None]:
    ready = {each.instance_id for each in turns} - set(busy)
    found, again_in = next_turns(turns, ready, Pace(**({"parallel": 2} | pace)), NOW)
    return "".join(each.instance_id for each in found), again_in


STARTED, ENDED, LEFT = TurnState.STARTED, TurnState.ENDED, TurnState.LEFT


def test_so_many_at_once() -> None:
    """The older ones first; those that are being started count until they are, and what is left does not."""
    four = [turn(each) for each in "4312"]
    assert chosen(*four) == ("12", None)
    assert chosen(turn("0", state=STARTED, began_at=NOW), *four) == ("1", None)
    assert chosen(*(turn(each, state=STARTED, began_at=NOW) for each in "56"), *four) == ("", None)
    assert chosen(turn("0", state=LEFT), turn("9", state=ENDED, began_at=NOW, ended_at=NOW), *four) == (
        "12",
        None,
    )


def test_higher_priorities_first() -> None:
    """A lower one waits for the higher ones to be started, and then for the delay."""
    low, high = turn("1"), turn("2", 5)
    assert chosen(low, high, delay=10) == ("2", None)
    began = turn("2", 5, STARTED, began_at=NOW - 3)
    assert chosen(low, began, patience=60, delay=10) == ("", 67)
    ended = turn("2", 5, ENDED, began_at=NOW - 3, ended_at=NOW - 1)
    assert chosen(low, ended, delay=10) == ("", 9)
    assert chosen(low, ended, delay=1) == ("1", None)


def test_a_slow_one_holds_up_nobody_for_ever() -> None:
    """After the operator's patience it takes its place among those that are started at once, and nothing else."""
    low, other = turn("1"), turn("3")
    slow = turn("2", 5, STARTED, began_at=NOW - 60)
    assert chosen(low, other, slow, patience=60) == ("1", None)
    assert chosen(low, other, slow, patience=60, parallel=1) == ("", None)


def test_what_is_in_flight_holds_up_nobody() -> None:
    """Nobody knows how long it takes; and what was given up did not begin."""
    assert chosen(turn("1"), turn("2", 5), busy="2") == ("1", None)
    assert chosen(turn("1"), turn("2", 5, ENDED, ended_at=NOW), delay=10) == ("1", None)
    assert chosen(turn("1"), busy="1") == ("", None)
