"""Arrival: what an agent says gets the control plane's time, whatever its own clock says (R16).

People pay by when something was seen, and a host's clock can be a year wrong. How long an observation waited to be sent
is the difference of two times of one clock, and its error falls out of that; the way here counts as nothing.
"""

from __future__ import annotations

from typing import Final

import msgspec

from stateward.domain.records import Report

#: Seconds that an observation can wait for others, or for a slow look at everything; what says more is a clock that was
#: set meanwhile.
_LONGEST_WAIT: Final = 60.0


def arrived(report: Report, received: float) -> Report:
    """Return a report with its times by our clock: it was sent when it was received (seconds since the epoch)."""

    def ours(at: float) -> float:
        waited = report.at - at
        return received - waited if 0.0 <= waited <= _LONGEST_WAIT else received

    return msgspec.structs.replace(
        report,
        at=received,
        observations=tuple(msgspec.structs.replace(each, at=ours(each.at)) for each in report.observations),
    )
