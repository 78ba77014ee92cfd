"""THE ARBITER'S TABLE: what is done when a guest is not as its record says (R13).

A row is chosen by the recorded vm state, what was observed, its cause, and whether the instance is locked or held; the
first match counts. The table covers every combination (tested), so there is no fall-through in code. Policies change
what may give way (``domain/policies.py``); ``docs/verdicts.md`` is made of both.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Final

import msgspec

from stateward.domain.records import Instance
from stateward.domain.states import Cause, Observed, VmState
from stateward.domain.verdicts.resting import (
    DECIDED_ELSEWHERE,
    GIVEN_BACK,
    GONE,
    KEPT,
    KEPT_OFF,
    RESIZED,
    STOPPED,
    SUSPENDED,
)
from stateward.domain.verdicts.row import Kind, Layer, Source, Stray, Verdict
from stateward.domain.verdicts.running import ACTIVE, HELD, PAUSED, RESCUED

__all__ = [
    "IN_FLIGHT",
    "VERDICTS",
    "Kind",
    "Layer",
    "Source",
    "Stray",
    "Verdict",
    "in_flight",
    "judge",
    "judge_instance",
]

#: What a hold says goes before everything else.
VERDICTS: Final[tuple[Verdict, ...]] = (
    *HELD,
    *KEPT_OFF,
    *ACTIVE,
    *PAUSED,
    *SUSPENDED,
    *STOPPED,
    *RESCUED,
    *RESIZED,
    *KEPT,
    *GIVEN_BACK,
    *GONE,
    *DECIDED_ELSEWHERE,
)

IN_FLIGHT: Final = "An operation is in flight; its result will be compared."


def _by_pair() -> dict[tuple[VmState, Observed], tuple[Verdict, ...]]:
    found: defaultdict[tuple[VmState, Observed], list[Verdict]] = defaultdict(list)
    for row in VERDICTS:
        found[row.expected, row.observed].append(row)
    return {pair: tuple(rows) for pair, rows in found.items()}


#: The table's rows in their order, by what each report is compared by.
_BY_PAIR: Final = _by_pair()


def judge(
    expected: VmState,
    observed: Observed,
    cause: Cause,
    *,
    locked: bool,
    held: bool = False,
    kept_off: bool = False,
    adopted: bool = False,
    stray: Stray = Stray.RUNNING,
) -> Verdict:
    """Return the row for a combination; the table has one for each. ``stray`` counts for ``DUPLICATE`` only."""
    return next(
        row
        for row in _BY_PAIR[expected, observed]
        if (row.causes is None or cause in row.causes)
        and (row.locked is None or row.locked == locked)
        and (row.held is None or row.held == held)
        and (row.kept_off is None or row.kept_off == kept_off)
        and (row.adopted is None or row.adopted == adopted)
        and (row.stray is None or row.stray is stray)
    )


def judge_instance(instance: Instance) -> Verdict:
    """Judge an instance's row by the table alone; an operation in flight is never judged (R12)."""
    return in_flight(
        instance,
        judge(
            instance.vm_state,
            instance.observed,
            instance.cause,
            locked=instance.locked,
            held=instance.held,
            kept_off=instance.kept_off,
            adopted=instance.adopted_as is not None,
        ),
    )


def in_flight(instance: Instance, verdict: Verdict) -> Verdict:
    """Return a verdict as it stands while an operation works on the instance: nothing is done then."""
    if instance.task_state is None or verdict.kind is Kind.AGREE:
        return verdict
    return msgspec.structs.replace(
        verdict, kind=Kind.IGNORE, action=None, becomes=None, by=None, says=IN_FLIGHT
    )
