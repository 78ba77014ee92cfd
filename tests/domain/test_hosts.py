"""The table of a host's conditions."""

from __future__ import annotations

from stateward.domain.hosts import CONDITION_SAYS, SILENT, TRANSITIONS, Condition, Event

#: Written by hand: what becomes of a host in each condition, by each event that changes it.
BECOMES = {
    (Condition.UP, Event.SILENT): Condition.SUSPECT,
    (Condition.UP, Event.UNCLEAN): Condition.RETURNED,
    (Condition.SUSPECT, Event.HEARD): Condition.UP,
    (Condition.SUSPECT, Event.CONFIRMED): Condition.DEAD,
    (Condition.DEAD, Event.HEARD): Condition.RETURNED,
    (Condition.DEAD, Event.FENCED): Condition.FENCED,
    (Condition.FENCED, Event.HEARD): Condition.RETURNED,
    (Condition.RETURNED, Event.SILENT): Condition.SUSPECT,
    (Condition.RETURNED, Event.CLEAN): Condition.UP,
}


def test_every_pair() -> None:
    """What is not written here changes nothing; above all, nothing is fenced that was not confirmed to be dead."""
    assert {(each, row.event): row.becomes for row in TRANSITIONS for each in row.when} == BECOMES
    assert {Condition.SUSPECT, Condition.DEAD, Condition.FENCED} == SILENT


def test_the_table() -> None:
    """At most one row for a pair, and a sentence for each condition."""
    pairs = [(condition, row.event) for row in TRANSITIONS for condition in row.when]
    assert len(pairs) == len(set(pairs)) == len(BECOMES)
    assert set(CONDITION_SAYS) == set(Condition)
