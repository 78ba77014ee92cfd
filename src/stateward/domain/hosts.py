"""What is known of hosts, beyond what they say of themselves: whether they can be used, and whether they are judged.

A host is dead when two say so: its silence, and a second signal. It is fenced when somebody who can take its power says
that this was done. Only then its instances can be made anew elsewhere, and until it is rid of what is left of those, a
host that comes back is not used (ADR 0020).
"""

from __future__ import annotations

import enum
from typing import Final

import msgspec


class Frozen(enum.StrEnum):
    """Why no instance of a host is judged for now."""

    #: A sweep would have changed too many of them at once (B5).
    SWEEP = "sweep"
    #: The machine has booted, and its inventory is not known whole yet (R14).
    BOOT = "boot"
    #: It is not heard of.
    SILENT = "silent"
    #: An operator said so: it is maintained.
    MAINTENANCE = "maintenance"


#: For who may not know the host, nor what else is on it.
FROZEN_SAYS: Final[dict[Frozen, str]] = {
    Frozen.SWEEP: "What its host says is not believed until it is confirmed; nothing is done about it meanwhile.",
    Frozen.BOOT: "The machine has booted; its instances are judged once its whole inventory is known.",
    Frozen.SILENT: "Its host is not heard of; nothing is done about it meanwhile.",
    Frozen.MAINTENANCE: "Its host is maintained; nothing is done about it meanwhile.",
}


class Condition(enum.StrEnum):
    """Whether a host can be used."""

    UP = "up"
    SUSPECT = "suspect"
    DEAD = "dead"
    FENCED = "fenced"
    RETURNED = "returned"


class Power(enum.StrEnum):
    """Whether a host has power, as its management controller says."""

    ON = "on"
    OFF = "off"
    UNKNOWN = "unknown"


class PowerSaid(msgspec.Struct, frozen=True, kw_only=True):
    """What a management controller says, and that in a sentence."""

    power: Power
    says: str


class Event(enum.StrEnum):
    """What can become of a host."""

    #: No heartbeat came for as long as the operator has patience.
    SILENT = "silent"
    #: A heartbeat came again.
    HEARD = "heard"
    #: A second signal, or the operator, says that it is dead.
    CONFIRMED = "confirmed"
    #: Its power was taken, as a fence or the operator says.
    FENCED = "fenced"
    #: Something is left on it of instances that were made anew elsewhere.
    UNCLEAN = "unclean"
    #: Nothing is left on it of instances that were made anew elsewhere.
    CLEAN = "clean"


CONDITION_SAYS: Final[dict[Condition, str]] = {
    Condition.UP: "It is heard of, or has not been silent for long.",
    Condition.SUSPECT: "It is silent; nothing of it is judged, and nothing is done about it.",
    Condition.DEAD: "It is silent and a second signal says that it is dead; its power may still be on.",
    Condition.FENCED: "It is dead and its power was taken: its instances can be evacuated.",
    Condition.RETURNED: "It was declared dead and is heard of again; it is not used until its strays are gone.",
}


class Transition(msgspec.Struct, frozen=True, kw_only=True):
    """One row: what an event makes of a host that is in one of these conditions."""

    event: Event
    when: frozenset[Condition]
    becomes: Condition


#: An event that has no row for a host's condition changes nothing.
TRANSITIONS: Final[tuple[Transition, ...]] = (
    Transition(
        event=Event.SILENT, when=frozenset({Condition.UP, Condition.RETURNED}), becomes=Condition.SUSPECT
    ),
    Transition(event=Event.HEARD, when=frozenset({Condition.SUSPECT}), becomes=Condition.UP),
    Transition(
        event=Event.HEARD, when=frozenset({Condition.DEAD, Condition.FENCED}), becomes=Condition.RETURNED
    ),
    Transition(event=Event.CONFIRMED, when=frozenset({Condition.SUSPECT}), becomes=Condition.DEAD),
    Transition(event=Event.FENCED, when=frozenset({Condition.DEAD}), becomes=Condition.FENCED),
    Transition(event=Event.UNCLEAN, when=frozenset({Condition.UP}), becomes=Condition.RETURNED),
    Transition(event=Event.CLEAN, when=frozenset({Condition.RETURNED}), becomes=Condition.UP),
)

#: Where a sign of life is news.
SILENT: Final = frozenset(each for row in TRANSITIONS if row.event is Event.HEARD for each in row.when)
