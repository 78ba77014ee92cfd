"""The words for states, as clients see them."""

from __future__ import annotations

import itertools

import pytest

from stateward.domain.states import (
    POWER_OF_OBSERVED,
    VM_STATE_SAYS,
    Observed,
    PowerState,
    TaskState,
    VmState,
    states_of_status,
    status,
)

PAIRS = tuple(itertools.product(VmState, (None, *TaskState)))
WORDS = sorted({status(*pair) for pair in PAIRS})


def test_the_words() -> None:
    """Nova's own, no more and no fewer."""
    assert WORDS == [
        "ACTIVE",
        "BUILD",
        "DELETED",
        "ERROR",
        "HARD_REBOOT",
        "PAUSED",
        "REBOOT",
        "REBUILD",
        "RESCUE",
        "RESIZE",
        "REVERT_RESIZE",
        "SHELVED",
        "SHELVED_OFFLOADED",
        "SHUTOFF",
        "SOFT_DELETED",
        "SUSPENDED",
        "VERIFY_RESIZE",
    ]


@pytest.mark.parametrize(
    ("vm_state", "task_state", "word"),
    [
        (VmState.BUILDING, TaskState.SPAWNING, "BUILD"),
        (VmState.ACTIVE, None, "ACTIVE"),
        (VmState.ACTIVE, TaskState.POWERING_OFF, "ACTIVE"),
        (VmState.ACTIVE, TaskState.REBOOTING, "REBOOT"),
        (VmState.ACTIVE, TaskState.REBOOTING_HARD, "HARD_REBOOT"),
        (VmState.STOPPED, TaskState.REBOOTING_HARD, "SHUTOFF"),
        (VmState.ERROR, TaskState.DELETING, "ERROR"),
        (VmState.ACTIVE, TaskState.RESIZE_PREP, "RESIZE"),
        (VmState.STOPPED, TaskState.RESIZE_PREP, "RESIZE"),
        (VmState.RESIZED, TaskState.RESIZE_CONFIRMING, "VERIFY_RESIZE"),
        (VmState.RESIZED, TaskState.RESIZE_REVERTING, "REVERT_RESIZE"),
        (VmState.ERROR, TaskState.REBUILDING, "REBUILD"),
        (VmState.SOFT_DELETED, None, "SOFT_DELETED"),
        (VmState.SHELVED_OFFLOADED, TaskState.UNSHELVING, "SHELVED_OFFLOADED"),
        (VmState.STOPPED, None, "SHUTOFF"),
        (VmState.SUSPENDED, None, "SUSPENDED"),
        (VmState.PAUSED, TaskState.UNPAUSING, "PAUSED"),
    ],
)
def test_the_word_for_a_pair(vm_state: VmState, task_state: TaskState | None, word: str) -> None:
    """A reboot shows only while the instance is active, as in Nova."""
    assert status(vm_state, task_state) == word


@pytest.mark.parametrize("word", WORDS)
def test_a_filter_selects_what_shows_as_its_word(word: str) -> None:
    """Every pair that shows as the word is selected, and for a word of a task no other."""
    found = states_of_status(word)
    assert found is not None
    vm_states, task_states = found
    for vm_state, task_state in PAIRS:
        selected = vm_state in vm_states and (not task_states or task_state in task_states)
        if status(vm_state, task_state) == word or task_states:
            assert selected == (status(vm_state, task_state) == word)


def test_a_filter_in_small_letters() -> None:
    """Nova takes either case."""
    assert states_of_status("shutoff") == states_of_status("SHUTOFF")


def test_no_such_word() -> None:
    """The API answers that with an empty list or a refusal; it must be able to tell."""
    assert states_of_status("ON_FIRE") is None


def test_every_observation_has_a_power_state() -> None:
    """Including those that say nothing about power."""
    assert {observed: POWER_OF_OBSERVED[observed] for observed in Observed} == {
        Observed.RUNNING: PowerState.RUNNING,
        Observed.PAUSED: PowerState.PAUSED,
        Observed.SUSPENDED: PowerState.SHUTDOWN,
        Observed.SHUTOFF: PowerState.SHUTDOWN,
        Observed.CRASHED: PowerState.CRASHED,
        Observed.MISSING: PowerState.NOSTATE,
        Observed.UNKNOWN: PowerState.NOSTATE,
        Observed.DUPLICATE: PowerState.NOSTATE,
    }


@pytest.mark.parametrize("state", VmState)
def test_every_state_is_documented(state: VmState) -> None:
    """The docs and the diagram are made of these sentences."""
    assert VM_STATE_SAYS[state].endswith(".")
