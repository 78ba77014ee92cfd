"""How long a guest gets to shut down, and who said so (R9).

Pure arithmetic: the request decides over the instance's metadata, that over the image's property, that over the
configured default; the operator's cap bounds them all. Zero means: do not ask the guest, take the power.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

#: The metadata key and image property both carry Nova's name.
PROPERTY: Final = "os_shutdown_timeout"

#: Seconds between two presses of the power button while the guest has not gone off: a guest that was still
#: booting when it was pressed first never saw it.
RESEND_SECONDS: Final = 5.0

#: The longest time anybody may ask for, in seconds, unless the operator sets another cap.
DEFAULT_CAP_SECONDS: Final = 3600


class ShutdownPlan(msgspec.Struct, frozen=True, kw_only=True):
    """The time a guest gets, in seconds, and which of the layers it came from."""

    seconds: int
    #: ``request``, ``metadata``, ``image`` or ``default``; ``forced`` when the request said so.
    origin: str


def parse_seconds(value: object) -> int | None:
    """Read a stored property as whole seconds; None when it is not a number from 0 up.

    A property that cannot be read is passed over, as in Nova: an image's typing error must not make every
    instance of it impossible to stop.
    """
    if isinstance(value, bool) or not isinstance(value, str | int):
        return None
    try:
        seconds = int(value)
    except ValueError:
        return None
    return seconds if seconds >= 0 else None


def plan(
    *,
    force: bool = False,
    requested: int | None,
    metadata: Mapping[str, str],
    image: Mapping[str, str],
    default: int,
    cap: int = DEFAULT_CAP_SECONDS,
) -> ShutdownPlan:
    """Choose the time a guest gets to shut down.

    Args:
        force: take the power at the end of ``requested`` seconds, at once when that is None. Other layers
            do not count then: a person who forces a stop does not want the image's hour.
        requested: seconds named by the request.
        metadata: the instance's metadata.
        image: the image's properties.
        default: the configured seconds (Nova's own default is 60).
        cap: no layer gets more than this many seconds.
    """
    if force and not requested:
        return ShutdownPlan(seconds=0, origin="forced")
    layers = (
        ("request", requested),
        ("metadata", parse_seconds(metadata.get(PROPERTY))),
        ("image", parse_seconds(image.get(PROPERTY))),
    )
    for origin, seconds in layers:
        if seconds is not None:
            return ShutdownPlan(seconds=min(seconds, cap), origin=origin)
    return ShutdownPlan(seconds=min(default, cap), origin="default")
