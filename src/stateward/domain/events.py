"""What is told to the outside (R15): a closed table of event types, made of the audit trail's records.

The trail is the one source: every record is one event or none, and one that moved an instance from one state to another
is a second event besides. So what is told is what was committed, in the order of the trail, and can be told again from
any place in it. Events are CloudEvents 1.0; ``docs/events.md`` is generated from the table.
"""

from __future__ import annotations

import contextlib
import datetime as dt
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, cast

import msgspec

from stateward.domain.audit import Entry
from stateward.domain.errors import Invalid
from stateward.domain.locks import ActorKind, OperationClass, words_of

#: What all types begin with.
PREFIX: Final = "org.stateward."
#: The word of the audit record, before which the state went: ``from`` and ``to`` in a record's detail.
FROM: Final = "from"
TO: Final = "to"


class EventType(msgspec.Struct, frozen=True, kw_only=True):
    """A row of the table: what is told, and of it what customers are told of their own instances."""

    #: After ``PREFIX``.
    name: str
    #: The audit records that are told so.
    records: frozenset[str]
    says: str
    #: Members of the record's detail that a customer sees, a dot leads into an object; None: no customer is told.
    shown: tuple[str, ...] | None = None
    #: Customers are told only of what people of their own project did.
    own: bool = False

    @property
    def type(self) -> str:
        """The CloudEvents type."""
        return PREFIX + self.name


_LOCK_SHOWN: Final = (
    "lock.kind",
    "lock.name",
    "lock.blocks",
    "lock.reason",
    "lock.expires_at",
    "lock.sealed",
)


def _of(*words: str) -> frozenset[str]:
    return frozenset(words)


def _lock_rows(what: str, kind: str) -> tuple[EventType, ...]:
    """Return the rows of locks, or of holds, which are locks that also keep an instance off."""
    return (
        EventType(
            name=f"{what}.placed",
            records=_of("lock_placed"),
            says=f"{kind} was placed; from now on it blocks what it says.",
            shown=_LOCK_SHOWN,
        ),
        EventType(
            name=f"{what}.released",
            records=_of("lock_released"),
            says=f"{kind} was released by somebody.",
            shown=_LOCK_SHOWN,
        ),
        EventType(
            name=f"{what}.expires-soon",
            records=_of("lock_expires_soon"),
            says=f"{kind} will expire within the time that the setting `locks.warning` says.",
            shown=_LOCK_SHOWN,
        ),
        EventType(
            name=f"{what}.expired",
            records=_of("lock_expired"),
            says=f"{kind} came to its end by itself.",
            shown=_LOCK_SHOWN,
        ),
    )


STATE_CHANGED: Final = EventType(
    name="instance.state-changed",
    #: Any record may be one: it has ``from`` and ``to``.
    records=frozenset(),
    says="An instance's recorded state changed; `from` is null for a new one.",
    shown=(FROM, TO),
)
VERDICT: Final = EventType(
    name="instance.verdict",
    records=_of("verdict"),
    says="A guest was not as recorded, and the arbiter decided what follows: `expected`, `observed`, `cause`, `says`.",
    shown=("expected", "observed", "cause", "verdict", "says"),
)
ALERT: Final = EventType(
    name="alert",
    records=_of("alert"),
    says="Something needs a person: a guest that nothing is done about, a host whose instances are not judged.",
    shown=("expected", "observed", "cause", "verdict", "says"),
)
OTHER: Final = EventType(
    name="other",
    records=frozenset(),
    says="A record of the audit trail that has no type of its own, `record` in its data.",
)

EVENT_TYPES: Final[tuple[EventType, ...]] = (
    STATE_CHANGED,
    VERDICT,
    EventType(
        name="operation.accepted",
        records=_of("admitted"),
        says="An operation was accepted: it will be finished, whatever is killed meanwhile.",
        shown=("name", "shutdown", "overtakes", "changes"),
    ),
    EventType(
        name="operation.refused",
        records=_of("refused"),
        says="An operation was refused by a lock.",
        shown=("why",),
        own=True,
    ),
    EventType(
        name="operation.ordered",
        records=_of("ordered"),
        says="An operation that waits for its guest was told to wait longer, to give up, or to take the power.",
        shown=("command", "seconds"),
    ),
    EventType(
        name="operation.finished",
        records=_of("finished"),
        says="An operation ended: `outcome` is succeeded, failed, cancelled or superseded.",
        shown=("outcome", "message", "shutdown"),
    ),
    *_lock_rows("lock", "A lock"),
    *_lock_rows("hold", "A hold"),
    EventType(
        name="override.asked",
        records=_of("override_asked"),
        says="An administrator asked for leave to pass a lock that binds administrators.",
    ),
    EventType(
        name="override.approved",
        records=_of("override_approved"),
        says="A second administrator agreed to it.",
    ),
    EventType(
        name="override.used",
        records=_of("override_used"),
        says="A lock was passed by leave.",
    ),
    EventType(
        name="host.changed",
        records=_of("host"),
        says="A host was changed by an operator, or the control plane learned something of it: `action` says what.",
    ),
    EventType(
        name="host.booted",
        records=_of("host.booted"),
        says="A host has booted and its whole inventory was judged: how many are started again, in which order.",
    ),
    EventType(
        name="host.restarted",
        records=_of("host.restarted"),
        says="Everything that was to be started again after a host's boot was started, or was given up: `outcomes`.",
    ),
    EventType(
        name="host.sweep-confirmed",
        records=_of("sweep_confirmed"),
        says="What the mass-change breaker held back on a host is true, as a second signal or an operator says.",
    ),
    EventType(
        name="host.sweep-passed",
        records=_of("sweep_passed"),
        says="What the mass-change breaker held back on a host was a mistake, and has passed: nothing was changed.",
    ),
    EventType(
        name="webhook.changed",
        records=_of("webhook"),
        says="An administrator made, changed or deleted a webhook: `action` says what.",
    ),
    EventType(name="identity.login", records=_of("login"), says="An administrator logged in."),
    ALERT,
    OTHER,
)

#: By the type's whole name.
BY_TYPE: Final[Mapping[str, EventType]] = {row.type: row for row in EVENT_TYPES}

_HOLD_PREFIX: Final = "hold."
_BY_RECORD: Final[Mapping[tuple[str, bool], EventType]] = {
    (word, row.name.startswith(_HOLD_PREFIX)): row for row in EVENT_TYPES for word in row.records
}
#: Actions by which locks go; by all others whose records have a lock in them, one comes.
_RELEASING: Final = frozenset({"unlock", "release_lock"})


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """A record of the trail with what is known of what it is about."""

    number: int
    entry: Entry
    #: Of the instance, as it is now; None when the record is about none.
    project_id: str | None = None
    instance_name: str | None = None
    #: The host of the operation, else of the instance.
    host: str | None = None


class Place(msgspec.Struct, frozen=True, order=True):
    """A place in what is told: after a record's event ``part``. ``str()`` is the event's id."""

    number: int
    part: int = 0

    def __str__(self) -> str:
        """Write it as ids are."""
        return f"{self.number}.{self.part}"


#: The parts of a record's events: what happened is 0, then the state and the lock that it led to.
_STATE_PART: Final = 1
_LOCK_PART: Final = 2
#: Larger than any part: after all of a record's events.
WHOLE: Final = 9


def place_of(text: str) -> Place:
    """Read an id.

    Raises:
        Invalid: it is none.
    """
    number, dot, part = text.strip().partition(".")
    # Not int() alone: it takes signs, spaces and other alphabets' digits.
    if not (_digits(number, 18) and (_digits(part, 1) if dot else True)):
        raise Invalid(f"{text[:64]!r} is no event's id: ids are like 17.0.")
    return Place(int(number), int(part) if dot else WHOLE)


def _digits(text: str, most: int) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= most


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """Something that is told: one row of the table, of one record."""

    place: Place
    row: EventType
    source: Source

    def detail(self) -> dict[str, Any]:
        """Return what the record says besides, as far as it belongs to this event."""
        entry = self.source.entry
        detail = _detail_of(entry)
        if self.row is STATE_CHANGED:
            return {FROM: detail.get(FROM), TO: detail[TO]}
        lock = _lock_in(entry, detail)
        if self.place.part == _LOCK_PART:
            return {"lock": _in_words(lock)}
        return detail | {"lock": _in_words(lock)} if isinstance(detail.get("lock"), dict) else detail


def events_of(source: Source) -> Iterator[Event]:
    """Return what is told of a record: first what happened, then the state and the locks that it led to."""
    entry, detail = source.entry, _detail_of(source.entry)
    yield Event(place=Place(source.number), row=_row_of(entry, detail), source=source)
    if entry.instance_id is not None and TO in detail and detail.get(FROM) != detail[TO]:
        yield Event(place=Place(source.number, _STATE_PART), row=STATE_CHANGED, source=source)
    lock = _lock_in(entry, detail)
    if entry.event == "admitted" and lock is not None:
        word = "lock_released" if entry.action in _RELEASING else "lock_placed"
        yield Event(
            place=Place(source.number, _LOCK_PART), row=_BY_RECORD[word, _is_hold(lock)], source=source
        )


def _detail_of(entry: Entry) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.json.decode(entry.detail)
    return found


def _row_of(entry: Entry, detail: Mapping[str, Any]) -> EventType:
    if entry.event == "verdict" and entry.action == "alert":
        return ALERT
    held = _is_hold(_lock_in(entry, detail))
    return _BY_RECORD.get((entry.event, held)) or _BY_RECORD.get((entry.event, False)) or OTHER


def _lock_in(entry: Entry, detail: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the lock that a record is about, as far as it says."""
    told = detail.get("lock")
    # An override's record names its lock by the id alone.
    lock = cast("dict[str, Any]", told) if isinstance(told, dict) else None
    if lock is None and entry.action in {"lock", "unlock"} and detail.get("kind") is not None:
        # Nova's lock and unlock, of the one lock without a name.
        lock = {"kind": detail["kind"], "name": "", "reason": detail.get("reason")}
    return lock


def _in_words(lock: Mapping[str, Any] | None) -> dict[str, Any]:
    """Say of a lock what it blocks and until when as the API does; the trail has numbers."""
    told = dict(lock or {})
    if isinstance(blocks := told.get("blocks"), int):
        told["blocks"] = words_of(OperationClass(blocks))
    if isinstance(expires := told.get("expires_at"), int | float):
        # What is no time of any calendar is told as it stands.
        with contextlib.suppress(ValueError, OverflowError, OSError):
            told["expires_at"] = _time(expires)
    return told


def _is_hold(lock: Mapping[str, Any] | None) -> bool:
    return lock is not None and lock.get("kind") == "hold"


class Filter(msgspec.Struct, frozen=True, kw_only=True):
    """What somebody wants to be told; what is not given does not narrow."""

    #: Whole names; one that ends with ``.*`` means all that begin so.
    types: tuple[str, ...] = ()
    instance_id: str | None = None
    #: The instance's project.
    project_id: str | None = None
    host: str | None = None

    def wants(self, row: EventType) -> bool:
        """Say whether events of a row are wanted."""
        return not self.types or any(_matches(row, each) for each in self.types)

    def about(self, source: Source) -> bool:
        """Say whether a record is about what is asked for."""
        host = self.host is None or self.host in {source.host, _host_in(source.entry)}
        return (
            host
            and self.instance_id in {None, source.entry.instance_id}
            and self.project_id in {None, source.project_id}
        )


def _host_in(entry: Entry) -> object:
    return _detail_of(entry).get("host") if entry.instance_id is None else None


def _matches(row: EventType, wanted: str) -> bool:
    return row.type.startswith(wanted[:-1]) if wanted.endswith(".*") else row.type == wanted


def types_of(words: Iterable[str]) -> tuple[str, ...]:
    """Read the types that somebody wants; the prefix may be left out.

    Raises:
        Invalid: no type is called so.
    """
    found: list[str] = []
    for word in words:
        wanted = word if word.startswith(PREFIX) else PREFIX + word
        if not any(_matches(row, wanted) for row in EVENT_TYPES):
            known = ", ".join(row.name for row in EVENT_TYPES)
            raise Invalid(
                f"There are no events of type {word[:64]!r}; there are: {known}; and 'lock.*' means all of a kind."
            )
        found.append(wanted)
    return tuple(found)


class Reader(msgspec.Struct, frozen=True, kw_only=True):
    """Who is told: the operator everything; a customer of one project what concerns that project's instances."""

    #: None: the operator.
    project_id: str | None = None

    def sees(self, event: Event) -> bool:
        """Say whether this reader is told at all."""
        if self.project_id is None:
            return True
        row = event.row
        if row.shown is None or event.source.project_id != self.project_id:
            return False
        return not row.own or self.knows_actor(event.source.entry)

    def knows_actor(self, entry: Entry) -> bool:
        """Say whether this reader is told who did it: a colleague, never the provider's staff."""
        own = entry.actor_kind == ActorKind.MEMBER.value and entry.project_id == self.project_id
        return self.project_id is None or own


def cloud_event(event: Event, reader: Reader, origin: str) -> dict[str, Any]:
    """Return an event in CloudEvents' JSON form.

    Args:
        event: which.
        reader: for whom; must see it.
        origin: the ``source`` by which the installation is known.
    """
    source, entry, detail = event.source, event.source.entry, event.detail()
    known = reader.knows_actor(entry)
    if reader.project_id is not None:
        detail = _picked(detail, event.row.shown or ())
    data: dict[str, Any] = {
        "number": event.place.number,
        "record": entry.event,
        "action": entry.action,
        "operation_id": entry.operation_id,
        "actor": {
            "kind": entry.actor_kind,
            "user_id": entry.user_id if known else None,
            "project_id": entry.project_id if known else None,
        },
        "request_id": entry.request_id if known else None,
        "detail": detail,
    }
    if entry.instance_id is not None:
        instance: dict[str, Any] = {
            "id": entry.instance_id,
            "name": source.instance_name,
            "project_id": source.project_id,
        }
        if reader.project_id is None:
            instance["host"] = source.host
        data["instance"] = instance
    made: dict[str, Any] = {
        "specversion": "1.0",
        "id": str(event.place),
        "source": origin,
        "type": event.row.type,
        "time": _time(entry.at),
        "datacontenttype": "application/json",
    }
    if entry.instance_id is not None:
        made["subject"] = entry.instance_id
    made["data"] = data
    return made


def _picked(detail: Mapping[str, Any], shown: Iterable[str]) -> dict[str, Any]:
    """Return the members that are named; those of an object by ``object.member``."""
    picked: dict[str, Any] = {}
    for name in shown:
        outer, _, inner = name.partition(".")
        value = detail.get(outer)
        if not inner and outer in detail:
            picked[outer] = value
        elif inner and isinstance(value, dict) and inner in value:
            picked.setdefault(outer, {})[inner] = value[inner]
    return picked


def _time(seconds: float) -> str:
    """Write a time (seconds since the epoch) as RFC 3339 does, to the microsecond."""
    return dt.datetime.fromtimestamp(seconds, dt.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
