"""The wall clock, as a thing that is handed in: tests hand in another, and nothing reads the time by itself.

Waiting is done on the event loop's clock, which tests replace by a virtual one.
"""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Tells the time of day."""

    def now(self) -> float:
        """Return seconds since the epoch."""
        ...


class SystemClock:
    """The machine's clock."""

    def now(self) -> float:
        """Return seconds since the epoch."""
        return time.time()
