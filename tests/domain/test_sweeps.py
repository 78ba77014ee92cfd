"""How many may change at once, and what a second look makes of more."""

from __future__ import annotations

import pytest

from stateward.domain.states import Observed
from stateward.domain.sweeps import Signal, SweepLimits, Trace, signal

GONE = Trace(process=False, defined=False, seen=Observed.MISSING)


@pytest.mark.parametrize(
    ("changing", "total", "allowed"),
    [
        (0, 0, True),
        (5, 5, True),
        (6, 6, False),
        (6, 30, True),
        (7, 30, False),
        (20, 100, True),
        (21, 100, False),
    ],
)
def test_what_may_change_at_once(changing: int, total: int, allowed: bool) -> None:  # noqa: FBT001 (a parameter)
    """Up to five in any case, and up to a fifth of a larger host's."""
    assert SweepLimits().allow(changing, total) is allowed


@pytest.mark.parametrize(
    ("observed", "trace", "expected"),
    [
        (Observed.MISSING, GONE, Signal.CONFIRMED),
        (Observed.MISSING, Trace(process=False, defined=False), Signal.CONFIRMED),
        (Observed.MISSING, Trace(process=False), Signal.UNCLEAR),
        (Observed.MISSING, Trace(process=False, defined=True), Signal.CONTRADICTED),
        (Observed.MISSING, Trace(process=True, defined=False), Signal.CONTRADICTED),
        (Observed.MISSING, Trace(seen=Observed.MISSING), Signal.UNCLEAR),
        (Observed.MISSING, Trace(seen=Observed.SHUTOFF), Signal.CONTRADICTED),
        (Observed.SHUTOFF, Trace(process=False), Signal.CONFIRMED),
        (Observed.SHUTOFF, Trace(process=True), Signal.CONTRADICTED),
        (Observed.SHUTOFF, Trace(process=False, seen=Observed.RUNNING), Signal.CONTRADICTED),
        (Observed.SHUTOFF, Trace(defined=True), Signal.UNCLEAR),
        (Observed.SUSPENDED, Trace(process=False, seen=Observed.UNKNOWN), Signal.CONFIRMED),
        (Observed.RUNNING, Trace(process=True, seen=Observed.RUNNING), Signal.CONFIRMED),
        (Observed.RUNNING, Trace(process=False), Signal.CONTRADICTED),
        (Observed.PAUSED, Trace(), Signal.UNCLEAR),
        (Observed.CRASHED, Trace(process=True, seen=Observed.CRASHED), Signal.CONFIRMED),
        (Observed.CRASHED, Trace(process=False), Signal.UNCLEAR),
    ],
)
def test_what_a_trace_makes_of_a_claim(observed: Observed, trace: Trace, expected: Signal) -> None:
    """What cannot be told is never taken for a yes, and one word against it is enough."""
    assert signal([(observed, trace)]) is expected


def test_one_that_is_contradicted_speaks_for_all() -> None:
    """And one that is not clear leaves all open."""
    confirmed, unclear = (Observed.MISSING, GONE), (Observed.MISSING, Trace())
    contradicted = (Observed.MISSING, Trace(process=True))
    assert signal([confirmed, confirmed]) is Signal.CONFIRMED
    assert signal([confirmed, unclear]) is Signal.UNCLEAR
    assert signal([confirmed, unclear, contradicted]) is Signal.CONTRADICTED
