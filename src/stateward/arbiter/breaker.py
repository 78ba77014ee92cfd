"""The breaker: counts what a host's reports would change at once, and says when that is too much to be believed (B5).

It counts by the event loop's time: no clock that jumps makes a sweep, or hides one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Final

from stateward.domain.sweeps import SweepLimits

_DEFAULT: Final = SweepLimits()


class Breaker:
    """Counts, for each host by itself. What it has counted dies with the process, and with the window."""

    def __init__(self, limits: Mapping[str | None, SweepLimits]) -> None:
        """Keep what the operator says of hosts by name; None is for all others."""
        self._limits = limits
        #: Instances that were let change, by host, and when.
        self._changed: dict[str, dict[str, float]] = {}

    def limits(self, host: str) -> SweepLimits:
        """Return what counts for a host."""
        return self._limits.get(host) or self._limits.get(None) or _DEFAULT

    def trips(self, host: str, changing: Iterable[str], total: int) -> bool:
        """Whether these instances, with those that changed a moment ago, are too many of so many."""
        limits = self.limits(host)
        return not limits.allow(len(self._recent(host).keys() | set(changing)), total)

    def let(self, host: str, changing: Iterable[str]) -> None:
        """Note that these instances were let change."""
        now = asyncio.get_running_loop().time()
        self._recent(host).update(dict.fromkeys(changing, now))

    def forget(self, host: str) -> None:
        """Begin anew with a host: what it said was confirmed, or taken back."""
        self._changed.pop(host, None)

    def pause(self, host: str, total: int) -> float:
        """Return the seconds that a verdict waits for others to come: none where there are too few for a sweep."""
        limits = self.limits(host)
        return limits.pause if not limits.allow(total, total) else 0.0

    def recent(self, host: str) -> frozenset[str]:
        """Return the instances that changed a moment ago."""
        return frozenset(self._recent(host))

    def _recent(self, host: str) -> dict[str, float]:
        since = asyncio.get_running_loop().time() - self.limits(host).window
        recent = {each: at for each, at in self._changed.get(host, {}).items() if at > since}
        self._changed[host] = recent
        return recent
