"""The phrases of a script's events: how each is written, and what it does to the cluster.

A phrase is one row of ``PHRASES``; the docs and the messages about bad scripts are made from them. In a pattern,
``{…}`` is something named, ``(a|b)`` a choice and ``[…]`` may be left out.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec

from stateward.simulation.limits import LONGEST
from stateward.simulation.script import BadScript, EventLine, Script, seconds_of
from stateward.simulation.world import World


class Given(msgspec.Struct, frozen=True, kw_only=True):
    """What an event names."""

    #: The instances, by name.
    which: tuple[str, ...] = ()
    host: str = ""
    #: Who asks; ``customer`` or ``operator``.
    who: str = "customer"
    verb: str = ""
    seconds: float | None = None
    word: str = ""
    text: str = ""


Act = Callable[[World, Given], Awaitable[None]]


class Phrase(msgspec.Struct, frozen=True):
    """One row."""

    pattern: str
    act: Act
    #: For the docs.
    says: str


class Occurrence(msgspec.Struct, frozen=True, kw_only=True):
    """An event that was understood."""

    at: float | None
    text: str
    given: Given
    act: Act


#: What each name in a pattern may look like.
_KINDS: Final = {
    "who": r"customer|operator",
    "which": r"[A-Za-z0-9_*?,-]+",
    "host": r"[A-Za-z0-9_-]+",
    "time": r"[0-9][0-9.hms]*",
    "offset": r"[+-][0-9][0-9.hms]*",
    "text": r".+",
}
_PIECE: Final = re.compile(r"\{(?P<name>[a-z]+)\}|\((?P<choice>[^()]+)\)|(?P<open>\[)|(?P<close>\])")


def compiled(pattern: str) -> re.Pattern[str]:
    """Make the regular expression of a pattern; its choices are called ``verb``, ``word``, ``more``, in order."""
    found: list[str] = []
    choices = iter(("verb", "word", "more"))
    end = 0
    for piece in _PIECE.finditer(pattern):
        found.append(re.escape(pattern[end : piece.start()]))
        end = piece.end()
        if piece["name"]:
            found.append(f"(?P<{piece['name']}>{_KINDS[piece['name']]})")
        elif piece["choice"]:
            words = "|".join(re.escape(word) for word in piece["choice"].split("|"))
            found.append(f"(?P<{next(choices)}>{words})")
        else:
            found.append("(?:" if piece["open"] else ")?")
    found.append(re.escape(pattern[end:]))
    return re.compile("".join(found))


def understand(script: Script, event: EventLine, phrases: tuple[Phrase, ...]) -> Occurrence:
    """Find the phrase of an event and what it names.

    Raises:
        BadScript: there is none, or it names what is not there.
    """
    for phrase in phrases:
        found = _compiled(phrase.pattern).fullmatch(event.text)
        if found is not None:
            given = _given(script, event, found.groupdict())
            return Occurrence(at=event.at, text=event.text, given=given, act=phrase.act)
    raise BadScript(event.line, _unknown(event.text, phrases))


_cache: dict[str, re.Pattern[str]] = {}


def _compiled(pattern: str) -> re.Pattern[str]:
    if pattern not in _cache:
        _cache[pattern] = compiled(pattern)
    return _cache[pattern]


def _given(script: Script, event: EventLine, parts: dict[str, str | None]) -> Given:
    which: list[str] = []
    for pattern in (parts.get("which") or "").split(","):
        names = script.named(pattern) if pattern else []
        if pattern and not names:
            raise BadScript(
                event.line, f"There is no instance {pattern}: declare it by 'instance {pattern} on HOST'."
            )
        which += [name for name in names if name not in which]
    host = parts.get("host") or ""
    if host and host not in {each.name for each in script.hosts}:
        raise BadScript(event.line, f"There is no host {host}: declare it by 'host {host}'.")
    when = parts.get("time") or parts.get("offset")
    return Given(
        which=tuple(which),
        host=host,
        who=parts.get("who") or event.text.split(maxsplit=1)[0],
        verb=parts.get("verb") or "",
        seconds=None if when is None else _seconds(when, event.line),
        word=parts.get("word") or "",
        text=parts.get("text") or parts.get("more") or "",
    )


def _seconds(text: str, line: int) -> float:
    seconds = seconds_of(text.lstrip("+-"))
    if seconds is None:
        raise BadScript(line, f"{text!r} is no time; write 10s, 1m30s or 500ms.")
    if seconds > LONGEST:
        raise BadScript(line, f"{text!r} is too long; {LONGEST / 3600:.0f}h is the most.")
    return -seconds if text.startswith("-") else seconds


def _unknown(text: str, phrases: tuple[Phrase, ...]) -> str:
    word = text.split(maxsplit=1)[0]
    alike = [phrase.pattern for phrase in phrases if word in _beginnings(phrase)]
    if not alike:
        words = sorted({each for phrase in phrases for each in _beginnings(phrase)})
        return f"Nothing that happens begins with {word!r}; it begins with {', '.join(words)}."
    listed = "\n  ".join(alike)
    return f"{text!r} is not understood. What begins so is one of:\n  {listed}"


def _beginnings(phrase: Phrase) -> list[str]:
    """Return the words that a phrase can begin with."""
    return phrase.pattern.split(maxsplit=1)[0].replace("{who}", _KINDS["who"]).split("|")
