"""Times as people type and read them: durations and ISO 8601."""

from __future__ import annotations

import datetime as dt
import re
from typing import Any, Final

import click

_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_PART: Final = re.compile(r"(\d+)([smhdw])")
_DURATION: Final = re.compile(rf"(?:{_PART.pattern})+")
_HOW: Final = "write a duration, as 90m, 2h or 1d12h, or a time of ISO 8601, as 2030-01-31T18:00:00Z"


def duration(text: str) -> int:
    """Return the seconds of a duration as ``1d12h``.

    Raises:
        ValueError: it is none; ``str()`` is for people.
    """
    if not _DURATION.fullmatch(text):
        raise ValueError(f"{text!r} is no duration: write it as 90s, 15m, 2h or 1d12h")
    return sum(int(number) * _SECONDS[unit] for number, unit in _PART.findall(text))


def moment(text: str, now: dt.datetime) -> str:
    """Return the time that a duration from now, or a time of ISO 8601, means; without a zone it is UTC.

    Raises:
        ValueError: it is neither, or beyond the calendar; ``str()`` is for people.
    """
    try:
        if _DURATION.fullmatch(text):
            found = now + dt.timedelta(seconds=duration(text))
        else:
            found = dt.datetime.fromisoformat(text)
            found = found if found.tzinfo else found.replace(tzinfo=dt.UTC)
        return found.astimezone(dt.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    except (ValueError, OverflowError):
        raise ValueError(f"{text!r} is no time: {_HOW}") from None


def to_second(text: str | None) -> str | None:
    """Return a time of the server's to the second, for people."""
    return None if text is None else f"{text[:19]}Z"


class Moment(click.ParamType[str]):
    """An option that takes a duration or a time, and gives the time in ISO 8601."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Read it."""
        try:
            return moment(str(value), dt.datetime.now(dt.UTC))
        except ValueError as error:
            self.fail(str(error), param, ctx)


class Duration(click.ParamType[int]):
    """An option that takes a duration, and gives its seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read it."""
        try:
            return duration(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)
