"""Waves: so many hosts silent at once that this machine's own network is the suspect (B5, ADR 0020).

What an operator says of some of them leaves fewer that wait for a word, and makes the wave no smaller: their silence
has the same cause. They count until they are heard again, or until nothing of the wave waits any more.
"""

from __future__ import annotations

from collections.abc import Sequence

from stateward.domain.hosts import SILENT, Condition
from stateward.store.hosts import Pulse


def waits(pulse: Pulse) -> bool:
    """Say whether a host is silent and nobody has said anything of it: neither that it is dead, nor maintained."""
    return pulse.condition is Condition.SUSPECT and not pulse.maintained


class Wave:
    """Knows which hosts are silent together, from one look at all of them to the next."""

    def __init__(self, *, many: int, share: float) -> None:
        """More than so many hosts, or more than this share of all, are too many at once; one never is."""
        self._many = many
        self._share = share
        #: Those of the last look, while they were too many. None: there was none in this life of the process.
        self._last: frozenset[str] | None = None

    def look(self, pulses: Sequence[Pulse]) -> list[Pulse]:
        """Look at all hosts; return those that are silent at once, and none where they are not too many."""
        waiting = [each for each in pulses if waits(each)]
        last = _spoken_for_since(waiting, pulses) if self._last is None else self._last
        silent = [each for each in pulses if waits(each) or (each.name in last and each.condition in SILENT)]
        count = len(silent)
        if not waiting or count <= 1 or (count <= self._many and count <= self._share * len(pulses)):
            silent = []
        self._last = frozenset(each.name for each in silent)
        return silent


def _spoken_for_since(waiting: Sequence[Pulse], pulses: Sequence[Pulse]) -> frozenset[str]:
    """Return the hosts of whom something was said since the first of those that wait fell silent.

    All that a former life of the process has left of a wave; one too many is only one more that a person confirms.
    """
    first = min((each.since or 0.0 for each in waiting), default=None)
    return frozenset(
        each.name
        for each in pulses
        if first is not None and (each.condition is Condition.SUSPECT or (each.since or 0.0) >= first)
    )
