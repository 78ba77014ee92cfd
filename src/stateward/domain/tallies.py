"""What happened in all, counted from the audit trail: totals that no restart makes smaller, and no kill makes wrong.

A tally is a fold over the trail's records from the first on, kept with the number of the last one that is in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

#: Upper bounds of the buckets of times, in seconds; what is above is in the last.
BOUNDS: Final = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
#: Restores whose end is waited for, at most: one that is overtaken ends without a record.
_PENDING: Final = 10_000


class Histogram(msgspec.Struct, kw_only=True):
    """How many times lay in each bucket, and their sum in seconds."""

    buckets: list[int] = msgspec.field(default_factory=lambda: [0] * (len(BOUNDS) + 1))
    sum: float = 0.0

    def add(self, seconds: float) -> None:
        """Count a time; below 0 (two clocks) is 0."""
        seconds = max(seconds, 0.0)
        self.buckets[next((i for i, bound in enumerate(BOUNDS) if seconds <= bound), len(BOUNDS))] += 1
        self.sum += seconds


class Detail(msgspec.Struct, frozen=True):
    """What of a record's detail is counted."""

    outcome: str | None = None
    verdict: str | None = None
    expected: str | None = None
    observed: str | None = None
    seen_at: float | None = None


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """A record of the trail, as far as it is counted."""

    number: int
    at: float
    event: str
    action: str | None
    actor_kind: str
    instance_id: str | None
    operation_id: str | None
    detail: Detail


class Tally(msgspec.Struct, kw_only=True):
    """Totals of the trail up to a record."""

    #: The last record that is counted.
    number: int = 0
    #: By action, then by what became of it: accepted, succeeded, failed …
    operations: dict[str, dict[str, int]] = msgspec.field(default_factory=dict[str, dict[str, int]])
    #: By ``verdict|expected|observed``.
    verdicts: dict[str, int] = msgspec.field(default_factory=dict[str, int])
    #: By action: what locks refused.
    refused: dict[str, int] = msgspec.field(default_factory=dict[str, int])
    alerts: int = 0
    #: From when an agent saw a deviation to the verdict.
    detect: Histogram = msgspec.field(default_factory=Histogram)
    #: From then to the end of the operation that brought the guest back.
    restore: Histogram = msgspec.field(default_factory=Histogram)
    #: The operation that was admitted last for an instance by the control plane, until its verdict is read.
    admitted: dict[str, str] = msgspec.field(default_factory=dict[str, str])
    #: Restores that have not ended: when what they are for was seen.
    pending: dict[str, float] = msgspec.field(default_factory=dict[str, float])

    def count(self, lines: Sequence[Line]) -> None:
        """Go on with the next records."""
        for line in lines:
            self._count(line)
            self.number = line.number

    def _count(self, line: Line) -> None:
        action = line.action or ""
        match line.event:
            case "admitted":
                self._operation(action, "accepted")
                if line.actor_kind == "system" and line.instance_id and line.operation_id:
                    _forget(self.admitted)
                    self.admitted[line.instance_id] = line.operation_id
            case "finished":
                self._operation(action, line.detail.outcome or "")
                seen = self.pending.pop(line.operation_id or "", None)
                if seen is not None and line.detail.outcome == "succeeded":
                    self.restore.add(line.at - seen)
            case "verdict":
                self._verdict(line)
            case "alert":
                self.alerts += 1
            case "refused":
                self.refused[action] = self.refused.get(action, 0) + 1
            case _:
                pass

    def _operation(self, action: str, outcome: str) -> None:
        outcomes = self.operations.setdefault(action, {})
        outcomes[outcome] = outcomes.get(outcome, 0) + 1

    def _verdict(self, line: Line) -> None:
        detail = line.detail
        key = "|".join((detail.verdict or "", detail.expected or "", detail.observed or ""))
        self.verdicts[key] = self.verdicts.get(key, 0) + 1
        if line.action == "alert":
            self.alerts += 1
        if detail.seen_at is None:
            return
        self.detect.add(line.at - detail.seen_at)
        operation = self.admitted.pop(line.instance_id or "", None)
        if detail.verdict == "restore" and operation is not None:
            _forget(self.pending)
            self.pending[operation] = detail.seen_at


def _forget(kept: dict[str, float] | dict[str, str]) -> None:
    """Make room for one more: the oldest goes."""
    if len(kept) >= _PENDING:
        del kept[next(iter(kept))]
