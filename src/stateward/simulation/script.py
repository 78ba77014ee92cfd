"""Scripts: what there is, what happens when, and what is to be seen of it (docs/simulate.md)."""

from __future__ import annotations

import fnmatch
import re
import tomllib
from collections.abc import Sequence
from typing import Any, Final, cast

import msgspec

from stateward.settings import BadSettings, Settings, of_tables
from stateward.simulation.limits import MOST, not_told, too_long, too_many

_TIME: Final = re.compile(
    r"(?:(?P<h>\d+)h)?(?:(?P<m>\d+)m(?!s))?(?:(?P<s>\d+(?:\.\d+)?)s)?(?:(?P<ms>\d+)ms)?", re.ASCII
)
_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
_SERIES: Final = re.compile(
    r"(?P<stem>[A-Za-z_-]*)(?P<first>\d{1,9})\.\.(?P=stem)(?P<last>\d{1,9})", re.ASCII
)
_OPTION: Final = re.compile(r"(?P<key>[^\s=]+)=(?P<value>\S+)")
_PLACE: Final = re.compile(
    r"(?P<name>\S+)(?: on (?P<host>\S+))?(?: (?P<state>[a-z-]+(?![\w.=:-])))?(?P<options>(?: \S+=\S+)*)"
)
#: Seconds that a simulation goes on after its last event when the script does not say how long.
_REST: Final = 60.0


class BadScript(Exception):
    """A script cannot be run; ``str()`` names the line and says what to change."""

    def __init__(self, line: int, message: str) -> None:
        """Keep the number of the line, from 1; 0 when it is about the whole file."""
        self.line = line
        super().__init__(f"line {line}: {message}" if line else message)


class HostLine(msgspec.Struct, frozen=True, kw_only=True):
    """A host; memory in MiB, disk in GiB."""

    name: str
    vcpus: int = 64
    memory: int = 262144
    disk: int = 10000
    zone: str = "nova"
    #: Its instances' disks are on storage that all hosts so marked share.
    shared: bool = False


class InstanceLine(msgspec.Struct, frozen=True, kw_only=True):
    """An instance and what it is when the script begins."""

    line: int
    name: str
    #: None: the scheduler chooses.
    host: str | None
    state: str
    vcpus: int = 1
    #: MiB and GiB.
    memory: int = 512
    disk: int = 1
    project: str = "p"
    tags: tuple[str, ...] = ()
    metadata: dict[str, str] = {}
    image: dict[str, str] = {}
    flavor: dict[str, str] = {}
    #: How its guest behaves, as words of its kernel's command line.
    guest: dict[str, str] = {}


class EventLine(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happens; ``at`` in seconds, None for what comes before the beginning."""

    line: int
    at: float | None
    text: str


class Script(msgspec.Struct, frozen=True, kw_only=True):
    """A script as it was read."""

    hosts: tuple[HostLine, ...]
    instances: tuple[InstanceLine, ...]
    events: tuple[EventLine, ...]
    #: Seconds after the beginning.
    until: float
    settings: Settings
    #: None: it does not say.
    expected: tuple[str, ...] | None

    def named(self, pattern: str) -> list[str]:
        """Return the instances that a pattern with ``*`` and ``?`` names, in the order of the script."""
        return [each.name for each in self.instances if fnmatch.fnmatchcase(each.name, pattern)]


#: What an instance can be when the script begins.
STATES: Final = (
    *("active", "stopped", "paused", "suspended", "rescued", "resized", "resized-stopped", "shelved"),
    *("offloaded", "soft-deleted", "error"),
)
_PREFIXES: Final = ("metadata", "image", "flavor", "guest")
_NUMBERS: Final = ("vcpus", "memory", "disk")


def seconds_of(text: str) -> float | None:
    """Return what ``1h30m``, ``10s`` or ``1.5s`` or ``200ms`` means; None for what means nothing."""
    found = _TIME.fullmatch(text)
    if not text or found is None:
        return None
    part = {name: float(value or 0) for name, value in found.groupdict().items()}
    return part["h"] * 3600 + part["m"] * 60 + part["s"] + part["ms"] / 1000


def parse(text: str, base: dict[str, Any] | None = None) -> Script:
    """Read a script.

    Args:
        text: the file's.
        base: tables of settings that the script's own are laid over.

    Raises:
        BadScript: something in it means nothing; nothing is guessed.
    """
    reader = _Reader(base or {})
    lines = text.splitlines()
    number = 0
    while number < len(lines):
        line = lines[number].strip()
        number += 1
        if not line or line.startswith("#"):
            continue
        if lines[number - 1][:1] in {" ", "\t"}:
            raise BadScript(
                number, f"{line!r} is indented, which only the lines under 'settings:' and 'expect:' are."
            )
        if line in {"settings:", "expect:"}:
            block = _block(lines, number)
            reader.take_block(line, block, number)
            number += len(block)
            continue
        reader.take(line, number)
    return reader.script()


def with_expected(text: str, log: Sequence[str]) -> str:
    """Return a script's text with this log as what it expects, in the place of what it expected before."""
    lines = text.splitlines()
    block = [f"  {line}" for line in log]
    for number, line in enumerate(lines, start=1):
        if line.rstrip() == "expect:":
            lines[number : number + len(_block(lines, number))] = block
            break
    else:
        lines += ["", "expect:", *block]
    return "\n".join(lines) + "\n"


def _block(lines: Sequence[str], begin: int) -> list[str]:
    end = begin
    while end < len(lines) and (not lines[end].strip() or lines[end][:1] in {" ", "\t"}):
        end += 1
    # Empty lines between it and what follows belong to neither.
    while end > begin and not lines[end - 1].strip():
        end -= 1
    return list(lines[begin:end])


class _Reader:
    """Reads line after line."""

    def __init__(self, base: dict[str, Any]) -> None:
        self._tables = base
        self._hosts: dict[str, HostLine] = {}
        self._instances: dict[str, InstanceLine] = {}
        self._events: list[EventLine] = []
        self._until: EventLine | None = None
        self._expected: tuple[str, ...] | None = None
        self._settings_at = 0
        #: What the script says of hosts; what a server's settings say is of its own hosts.
        self._meant: Any = []

    def script(self) -> Script:
        """Return what was read."""
        if not self._hosts:
            raise BadScript(0, "There is no host: begin with a line like 'host h1'.")
        for each in self._instances.values():
            if each.host is not None and each.host not in self._hosts:
                raise BadScript(each.line, f"There is no host {each.host}: declare it by 'host {each.host}'.")
        hosts = tuple(self._hosts.values())
        until = self._end(len(hosts))
        return Script(
            hosts=hosts,
            instances=tuple(self._instances.values()),
            # Those of one time stay in the order of the lines.
            events=tuple(sorted(self._events, key=lambda event: -1.0 if event.at is None else event.at)),
            until=until,
            settings=self._settings(hosts),
            expected=self._expected,
        )

    def _end(self, hosts: int) -> float:
        """Return when it ends, in seconds."""
        for event in self._events:
            self._refuse(too_long(hosts, event.at or 0.0), event.line)
        if self._until is None or self._until.at is None:
            return max((event.at or 0.0 for event in self._events), default=0.0) + _REST
        end, line = self._until.at, self._until.line
        self._refuse(too_long(hosts, end), line)
        for event in self._events:
            if (event.at or 0.0) > end:
                raise BadScript(event.line, f"It happens after the end, which line {line} says.")
        return end

    def _settings(self, hosts: Sequence[HostLine]) -> Settings:
        try:
            if not _are_named(self._tables.get("host", [])):
                # Which says what is wrong with it.
                return of_tables(self._tables)
            named = {str(each["name"]): each for each in self._tables.get("host", [])}
            tables = [
                {**named.get(each.name, {}), "name": each.name, "driver": "simulated"} for each in hosts
            ]
            settings = of_tables({**self._tables, "host": tables})
        except BadSettings as error:
            raise BadScript(self._settings_at, str(error)) from None
        for name in (str(each["name"]) for each in self._meant):
            if name not in self._hosts:
                raise BadScript(self._settings_at, f"There is no host {name}: declare it by 'host {name}'.")
        return settings

    def take_block(self, head: str, block: Sequence[str], line: int) -> None:
        """Take an indented block; ``line`` is its head's."""
        if head == "expect:":
            if self._expected is not None:
                raise BadScript(line, "There is a second 'expect:'; one block says all.")
            self._expected = tuple(each.strip() for each in block if each.strip())
            return
        self._settings_at = line
        try:
            tables = tomllib.loads("\n".join(block))
        except tomllib.TOMLDecodeError as error:
            raise BadScript(line, f"The settings are not TOML: {error}.") from None
        self._meant = tables.get("host", self._meant)
        self._tables = _over(self._tables, tables)

    def take(self, text: str, line: int) -> None:
        """Take a line that stands for itself."""
        word, _, rest = text.partition(" ")
        rest = " ".join(rest.split())
        match word:
            case "host":
                self._host(rest, line)
            case "instance":
                self._instance(rest, line)
            case "first":
                self._event(None, rest, line)
            case "at":
                when, _, what = rest.partition(" ")
                self._event(self._seconds(when, line), what, line)
            case "until":
                if self._until is not None:
                    raise BadScript(line, f"Line {self._until.line} says already when it ends.")
                self._until = EventLine(line=line, at=self._seconds(rest, line), text="")
            case _:
                raise BadScript(
                    line,
                    f"{word!r} begins no line; a line begins with host, instance, first, at or until, or is "
                    "'settings:' or 'expect:'.",
                )

    def _event(self, at: float | None, text: str, line: int) -> None:
        if not text:
            raise BadScript(line, "It says when, and not what: for example 'at 10s guest web1 crashes'.")
        self._events.append(EventLine(line=line, at=at, text=text))

    @staticmethod
    def _seconds(text: str, line: int) -> float:
        seconds = seconds_of(text)
        if seconds is None:
            raise BadScript(line, f"{text!r} is no time; write 10s, 1m30s or 500ms.")
        return seconds

    def _host(self, text: str, line: int) -> None:
        first, *options = text.split()
        values = dict[str, Any]()
        for option in options:
            key, value = self._option(option, line)
            if key not in HostLine.__struct_fields__[1:]:
                raise BadScript(line, f"A host has no {key}; it has vcpus, memory, disk, zone and shared.")
            values[key] = self._number(key, value, line) if key in _NUMBERS else value
            if key == "shared":
                values[key] = self._yes(value, line)
        for name in self._names(first, "host", line):
            if name in self._hosts:
                raise BadScript(line, f"There are two hosts {name}.")
            self._hosts[name] = HostLine(name=name, **values)
        self._refuse(too_many("host", len(self._hosts)), line)

    @staticmethod
    def _yes(value: str, line: int) -> bool:
        if value not in {"yes", "no"}:
            raise BadScript(line, f"It is shared=yes or shared=no, not {value!r}.")
        return value == "yes"

    def _instance(self, text: str, line: int) -> None:
        found = _PLACE.fullmatch(text)
        if found is None:
            raise BadScript(
                line,
                "An instance is declared like 'instance web1 on h1 stopped memory=1024 metadata.owner=jo'.",
            )
        state = found["state"] or "active"
        if state not in STATES:
            raise BadScript(line, f"No instance is {state!r}; it is one of {', '.join(STATES)}.")
        values = dict[str, Any]()
        for option in found["options"].split():
            self._set(values, *self._option(option, line), line)
        for name in self._names(found["name"], "instance", line):
            if name in self._instances:
                raise BadScript(line, f"There are two instances {name}.")
            self._instances[name] = InstanceLine(
                line=line, name=name, host=found["host"], state=state, **values
            )
        self._refuse(too_many("instance", len(self._instances)), line)

    def _set(self, values: dict[str, Any], key: str, value: str, line: int) -> None:
        prefix, dot, rest = key.partition(".")
        if dot and prefix in _PREFIXES:
            self._refuse(not_told(rest, value) if prefix == "guest" else None, line)
            values.setdefault(prefix, {})[rest] = value
        elif key in _NUMBERS:
            values[key] = self._number(key, value, line)
        elif key == "project":
            values[key] = value
        elif key == "tags":
            values[key] = tuple(value.split(","))
        else:
            raise BadScript(
                line,
                f"An instance has no {key}; it has vcpus, memory, disk, project, tags, and what begins with "
                f"{', '.join(f'{each}.' for each in _PREFIXES)}.",
            )

    @staticmethod
    def _option(text: str, line: int) -> tuple[str, str]:
        found = _OPTION.fullmatch(text)
        if found is None:
            raise BadScript(line, f"{text!r} is not KEY=VALUE.")
        return found["key"], found["value"]

    @staticmethod
    def _number(key: str, value: str, line: int) -> int:
        if not (value.isascii() and value.isdecimal()):
            raise BadScript(line, f"{key} is a whole number, not {value!r}.")
        if len(value) > len(str(MOST)) or int(value) > MOST:
            raise BadScript(line, f"{key} is {MOST} at most.")
        return int(value)

    @staticmethod
    def _refuse(why: str | None, line: int) -> None:
        if why is not None:
            raise BadScript(line, why)

    def _names(self, text: str, what: str, line: int) -> list[str]:
        """Return the one name, or those of ``w1..w20``."""
        series = _SERIES.fullmatch(text)
        if series is not None:
            stem, first, last = series["stem"], int(series["first"]), int(series["last"])
            if last < first:
                raise BadScript(line, f"{text!r} names nothing: it ends before it begins.")
            # Before they are made.
            self._refuse(too_many(what, last - first + 1), line)
            return [f"{stem}{number}" for number in range(first, last + 1)]
        if _NAME.fullmatch(text) is None:
            raise BadScript(line, f"{text!r} is no name; write web1, or w1..w20 for twenty.")
        return [text]


def _are_named(found: object) -> bool:
    """Say whether it is a list of tables with names, as ``[[host]]`` makes one."""
    return isinstance(found, list) and all(
        isinstance(each, dict) and "name" in each for each in cast("list[object]", found)
    )


def _over(base: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """Lay tables over others."""
    merged = dict(base)
    for key, value in more.items():
        below = merged.get(key)
        both = isinstance(value, dict) and isinstance(below, dict)
        merged[key] = _over(cast("dict[str, Any]", below), cast("dict[str, Any]", value)) if both else value
    return merged
