"""How a guest behaves, read where a real test guest reads it: in the words of its kernel's command line."""

from __future__ import annotations

import math
from typing import Final

import msgspec

from stateward.domain.records import GuestSpec

#: The image property that becomes the command line.
COMMAND_LINE: Final = "os_command_line"

#: Seconds a guest takes to shut down when its image does not say.
DEFAULT_SHUTDOWN: Final = 0.05

#: Seconds an agent inside a guest has to answer, as with libvirt.
AGENT_SECONDS: Final = 5.0


#: The words ``stateward.*`` that are followed by seconds.
SECONDS: Final = ("shutdown", "boot", "poweroff_after", "panic_after")
#: The others, with what they can be.
WORDS: Final = {"acpi": ("ignore",), "agent": ("answer", "mute")}


def seconds_in(text: str) -> float | None:
    """Read a number of seconds; None for what is none."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and value >= 0 else None


class Behaviour(msgspec.Struct, frozen=True, kw_only=True):
    """What a guest does between boot and power off; seconds, all of them."""

    #: Whether it acts on its power button.
    obeys: bool
    shutdown: float
    #: From power on until it is up; a press of the power button before that is lost.
    boot: float
    #: Counted from when it is up.
    poweroff_after: float | None
    panic_after: float | None
    #: The agent inside: ``answer``, ``mute`` (it never does), or None for no agent.
    agent: str | None


def behaviour(spec: GuestSpec) -> Behaviour:
    """Read the ``stateward.*`` words of the command line of the image that it boots from.

    What cannot be read counts as not there.
    """
    properties = (spec.rescue or spec.image).properties
    words = dict(word.split("=", 1) for word in properties.get(COMMAND_LINE, "").split() if "=" in word)

    def seconds(name: str) -> float | None:
        return seconds_in(words.get(f"stateward.{name}", ""))

    shutdown = seconds("shutdown")
    return Behaviour(
        obeys=words.get("stateward.acpi") != "ignore",
        shutdown=DEFAULT_SHUTDOWN if shutdown is None else shutdown,
        boot=seconds("boot") or 0.0,
        poweroff_after=seconds("poweroff_after"),
        panic_after=seconds("panic_after"),
        agent=words.get("stateward.agent"),
    )
