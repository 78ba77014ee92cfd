"""Totals of the trail: what is counted of a record, and that it does not matter where a count was kept."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from stateward.domain.tallies import BOUNDS, Detail, Histogram, Line, Tally

RESTORED: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("admitted", "restore_start", {}),
    (
        "verdict",
        "restore_start",
        {"verdict": "restore", "expected": "active", "observed": "shutoff", "seen_at": 99.9},
    ),
    ("finished", "restore_start", {"outcome": "succeeded"}),
)


def lines(*said: tuple[str, str, dict[str, Any]], by: str = "system") -> list[Line]:
    """Make records a second apart, from 100 s on."""
    return [
        Line(
            number=number,
            at=99.0 + number,
            event=event,
            action=action,
            actor_kind=by,
            instance_id="i",
            operation_id="o",
            detail=Detail(**detail),
        )
        for number, (event, action, detail) in enumerate(said, start=1)
    ]


def test_a_guest_that_was_brought_back() -> None:
    """Detected 1.1 s after it was seen, and back 2.1 s after."""
    tally = Tally()
    tally.count(lines(*RESTORED))
    assert tally.number == 3
    assert tally.operations == {"restore_start": {"accepted": 1, "succeeded": 1}}
    assert tally.verdicts == {"restore|active|shutoff": 1}
    assert (tally.detect.buckets[BOUNDS.index(2.5)], round(tally.detect.sum, 3)) == (1, 1.1)
    assert (tally.restore.buckets[BOUNDS.index(2.5)], round(tally.restore.sum, 3)) == (1, 2.1)
    assert (tally.pending, tally.admitted) == ({}, {})


def test_one_that_was_not() -> None:
    """A restore that failed is no time to restore."""
    tally = Tally()
    tally.count(lines(*RESTORED[:2], ("finished", "restore_start", {"outcome": "failed"})))
    assert sum(tally.restore.buckets) == 0
    assert tally.pending == {}


def test_what_else_is_counted() -> None:
    """Refusals by locks, and alerts of both kinds."""
    tally = Tally()
    tally.count(
        lines(("refused", "stop", {}), ("alert", "sweep", {}), ("verdict", "alert", {"verdict": "alert"}))
    )
    assert (tally.refused, tally.alerts) == ({"stop": 1}, 2)
    assert sum(tally.detect.buckets) == 0


@pytest.mark.parametrize("kept", range(4))
def test_it_goes_on_from_wherever_it_was_kept(kept: int) -> None:
    """As if it had never been interrupted."""
    whole, part = Tally(), Tally()
    whole.count(lines(*RESTORED))
    part.count(lines(*RESTORED)[:kept])
    part = msgspec.json.decode(msgspec.json.encode(part), type=Tally)
    part.count(lines(*RESTORED)[kept:])
    assert part == whole


def test_a_clock_that_went_back() -> None:
    """No time is below 0, and none is lost at the top."""
    histogram = Histogram()
    histogram.add(-5)
    histogram.add(10_000)
    assert (histogram.buckets[0], histogram.buckets[-1], histogram.sum) == (1, 1, 10_000)
