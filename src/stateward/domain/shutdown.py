"""How long a guest gets to shut down, what is done when it has not, and who said so (R9).

Pure. Time and choice are each found by themselves: the request decides over the instance's metadata, that over the
image's properties, the flavor's extra specs, the host's settings and the default, in this order. The operator's cap
bounds the time, and the operator's list of choices bounds the choice. Zero seconds means: do not ask the guest.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, TypeVar

import msgspec

from stateward.domain.errors import Invalid

T = TypeVar("T")

#: The key in metadata, image properties and extra specs; Nova's own name for the time.
PROPERTY: Final = "os_shutdown_timeout"
CHOICE_PROPERTY: Final = "os_shutdown_at_deadline"

#: Seconds between two presses of the power button while the guest has not gone off: a guest that was still
#: booting when it was pressed first never saw it.
RESEND_SECONDS: Final = 5.0

#: Nova's own default.
DEFAULT_SECONDS: Final = 60

#: The longest time anybody may ask for, in seconds, unless the operator sets another cap.
DEFAULT_CAP_SECONDS: Final = 3600


class AtDeadline(enum.StrEnum):
    """What is done with a guest that is on when its time is up."""

    #: Its power is taken.
    FORCE = "force"
    #: It stays on, and the operation fails and says so.
    FAIL = "fail"
    #: Its memory is written to disk; only where an action may end with a suspended instance.
    SAVE = "save"


class Rung(enum.StrEnum):
    """How a guest is asked to shut down: the ladder's rungs, in their order."""

    AGENT = "agent"
    POWER_BUTTON = "power-button"


class Ending(enum.StrEnum):
    """How a clean shutdown ended, for the record."""

    #: The guest was or went off by itself.
    OFF = "off"
    FORCED = "forced"
    SAVED = "saved"
    #: It did not go off and was left on.
    LEFT_ON = "left-on"


class Layer(msgspec.Struct, frozen=True, kw_only=True):
    """What one layer says; None where it says nothing."""

    #: ``request``, ``metadata``, ``image``, ``flavor``, ``host`` or ``default``.
    origin: str
    seconds: int | None = None
    at_deadline: AtDeadline | None = None


class ShutdownPlan(msgspec.Struct, frozen=True, kw_only=True):
    """The time a guest gets, in seconds, what is done at its end, and which layer each came from."""

    seconds: int
    #: A layer's, or ``forced`` when the request said so.
    origin: str
    at_deadline: AtDeadline = AtDeadline.FORCE
    at_deadline_origin: str = "default"


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What the operator lets anybody have."""

    #: Seconds; no layer gets more.
    cap: int = DEFAULT_CAP_SECONDS
    #: ``FORCE`` cannot be taken away: an owner may always take the power.
    choices: frozenset[AtDeadline] = frozenset(AtDeadline)


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


def parse_choice(value: object) -> AtDeadline | None:
    """Read a stored property as a choice; None, and passed over, when it is none."""
    return next((each for each in AtDeadline if each.value == value), None)


def layer(origin: str, properties: Mapping[str, str]) -> Layer:
    """Read what a layer's properties say."""
    return Layer(
        origin=origin,
        seconds=parse_seconds(properties.get(PROPERTY)),
        at_deadline=parse_choice(properties.get(CHOICE_PROPERTY)),
    )


def plan(
    layers: Sequence[Layer],
    *,
    force: bool = False,
    action: str,
    may_save: bool = False,
    limits: Limits | None = None,
) -> ShutdownPlan:
    """Choose the time a guest gets to shut down, and what is done at its end.

    Args:
        layers: in the order of their weight, the default last; the first whose value can be used decides.
        force: take the power at the end of the request's seconds, at once when it names none. Other layers
            do not count then: a person who forces a stop does not want the image's hour.
        action: the action's name, for the refusal.
        may_save: whether the action may end with a suspended instance. Where it may not, a layer below the request
            that says ``save`` is passed over: an image must not make its instances impossible to delete.
        limits: the operator's; None: none but the defaults.

    Raises:
        Invalid: the request itself names a choice that it cannot have.
    """
    limits = limits or Limits()
    allowed = limits.choices | {AtDeadline.FORCE}
    if not may_save:
        allowed -= {AtDeadline.SAVE}
    requested = next((each for each in layers if each.origin == "request"), Layer(origin="request"))
    _check_request(requested, force=force, action=action, may_save=may_save, allowed=allowed)
    if force and not requested.seconds:
        return ShutdownPlan(seconds=0, origin="forced", at_deadline_origin="request")
    seconds, origin = _first(((each.seconds, each.origin) for each in layers), DEFAULT_SECONDS)
    if force:
        at_deadline, by = AtDeadline.FORCE, "request"
    else:
        usable = ((each.at_deadline if each.at_deadline in allowed else None, each.origin) for each in layers)
        at_deadline, by = _first(usable, AtDeadline.FORCE)
    return ShutdownPlan(
        seconds=min(seconds, limits.cap), origin=origin, at_deadline=at_deadline, at_deadline_origin=by
    )


def _first(values: Iterable[tuple[T | None, str]], default: T) -> tuple[T, str]:
    return next(((value, origin) for value, origin in values if value is not None), (default, "default"))


def _check_request(
    requested: Layer, *, force: bool, action: str, may_save: bool, allowed: frozenset[AtDeadline]
) -> None:
    choice = requested.at_deadline
    if choice is None:
        return
    if force and choice is not AtDeadline.FORCE:
        why = f"'force' takes the power; with it only '{AtDeadline.FORCE}' can be chosen"
    elif choice is AtDeadline.SAVE and not may_save:
        why = f"'{action}' cannot end with a saved memory; choose 'force' or 'fail'"
    elif choice not in allowed:
        why = f"'{choice}' is not one of {sorted(each.value for each in allowed)}, which the operator allows"
    else:
        return
    raise Invalid(f"Invalid input for field/attribute at_deadline. Value: {choice}. {why}")
