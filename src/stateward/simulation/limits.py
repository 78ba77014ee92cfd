"""How much a script may ask for, so that every one is played in minutes; and what a guest can be told."""

from __future__ import annotations

from typing import Final

from stateward.agent.simulated.behaviour import SECONDS, WORDS, seconds_in

MOST_HOSTS: Final = 100
#: Half a minute to build, on one core.
MOST_INSTANCES: Final = 1000
#: Of virtual time, hosts times seconds: a week of one host. A host's hour takes some two seconds.
_MOST_HOST_SECONDS: Final = 7 * 86_400.0
#: Seconds of a time that a phrase names, as what a clock jumps by: a year, which every calendar can show.
LONGEST: Final = 366 * 86_400.0
#: Of a host or an instance: processors, MiB, GiB.
MOST: Final = 1_000_000_000


def too_many(what: str, count: int) -> str | None:
    """Say that there are too many; None when there are not.

    Args:
        what: ``host`` or ``instance``.
        count: so many.
    """
    most = MOST_HOSTS if what == "host" else MOST_INSTANCES
    return f"A script has {most} {what}s at most." if count > most else None


def too_long(hosts: int, seconds: float) -> str | None:
    """Say that so many hosts cannot be simulated for so many seconds; None when they can."""
    most = _MOST_HOST_SECONDS / hosts
    if seconds <= most:
        return None
    which = "one host" if hosts == 1 else f"{hosts} hosts"
    return f"With {which} a simulation lasts {int(most // 60)}m at most."


def not_told(key: str, value: str) -> str | None:
    """Say why a guest cannot be told a word of ``guest.``; None when it can."""
    if key in SECONDS:
        if seconds_in(value) is None:
            return f"guest.{key} is a number of seconds, not {value!r}."
    elif key not in WORDS:
        return (
            f"There is no guest.{key}; there are {', '.join(f'guest.{each}' for each in (*SECONDS, *WORDS))}."
        )
    elif value not in WORDS[key]:
        return f"guest.{key} is {' or '.join(WORDS[key])}, not {value!r}."
    return None
