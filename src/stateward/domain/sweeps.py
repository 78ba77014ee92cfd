"""Sweeps: how many instances of a host may change at once, and what a second signal makes of more (B5).

A hypervisor that restarts, answers half its list or none of it says of guests that run that they are gone. So what
would change more of a live host's instances than an operator expects is not believed by its word alone.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import Final

import msgspec

from stateward.domain.states import Observed


class SweepLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What is believed of a host at once: more than so many instances *and* more than so many percent are a sweep."""

    instances: int = 5
    percent: float = 20.0
    #: Seconds over which changes that come one by one are counted together.
    window: float = 10.0
    #: Seconds that a verdict waits for others, on a host that has enough instances for a sweep.
    pause: float = 1.0

    def allow(self, changing: int, total: int) -> bool:
        """Whether so many of a host's instances may change at once."""
        return changing <= self.instances or changing * 100 <= total * self.percent


class Trace(msgspec.Struct, frozen=True, kw_only=True):
    """What can be found of a guest past the way in which guests are listed; None: that cannot be told."""

    #: A process runs it.
    process: bool | None = None
    #: Its definition is on the disk.
    defined: bool | None = None
    #: What a connection says that was made for this.
    seen: Observed | None = None


class Signal(enum.StrEnum):
    """What a second signal makes of a sweep."""

    CONFIRMED = "confirmed"
    CONTRADICTED = "contradicted"
    #: It does not say enough; an operator must.
    UNCLEAR = "unclear"


_ON: Final = frozenset({Observed.RUNNING, Observed.PAUSED})
_OFF: Final = frozenset({Observed.SHUTOFF, Observed.SUSPENDED, Observed.MISSING})


def signal(claims: Iterable[tuple[Observed, Trace]]) -> Signal:
    """Say what traces make of a sweep's claims: confirmed when each is, contradicted when one is."""
    each = {_one(observed, trace) for observed, trace in claims}
    if Signal.CONTRADICTED in each:
        return Signal.CONTRADICTED
    return Signal.UNCLEAR if Signal.UNCLEAR in each else Signal.CONFIRMED


def _one(observed: Observed, trace: Trace) -> Signal:
    process, defined, seen = trace.process, trace.defined, trace.seen
    if (
        seen not in {None, Observed.UNKNOWN, observed}
        or (process is True and observed in _OFF)
        or (process is False and observed in _ON)
        or (defined is True and observed is Observed.MISSING)
    ):
        return Signal.CONTRADICTED
    proved = (
        (observed in _ON and process is True)
        or (observed is Observed.CRASHED and seen is Observed.CRASHED)
        or (observed in _OFF and process is False and (observed is not Observed.MISSING or defined is False))
    )
    return Signal.CONFIRMED if proved else Signal.UNCLEAR
