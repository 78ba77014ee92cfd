"""The audit trail's chain (B7): what a record's hash covers, and how a chain of them is checked.

A record's canonical form is one line of JSON that begins with the hash of the record before it; its hash is the
SHA-256 of that line. So nothing can be changed, taken out or moved without every later hash being wrong. ADR 0015
has the form to the byte, for who checks an export without this program.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import msgspec

#: What the first record has in place of a hash before it.
GENESIS: Final = "0" * 64
#: Broken links that are kept to be explained; a trail with more has been written anew.
_EXPLAINED: Final = 50

_ENCODER: Final = msgspec.json.Encoder()
_DETAIL: Final = msgspec.json.Encoder(order="deterministic")


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """What a record says. The order of the fields is that of the canonical form."""

    #: Seconds since the epoch.
    at: float
    event: str
    instance_id: str | None
    operation_id: str | None
    action: str | None
    actor_kind: str
    user_id: str
    project_id: str
    request_id: str
    #: A JSON object, as it is kept.
    detail: msgspec.Raw


class Record(msgspec.Struct, frozen=True):
    """A record in the trail: its place, what it says and the hash it was given, 64 hexadecimal digits."""

    number: int
    entry: Entry
    hash: str


class Head(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The end of a chain: the number and the hash of its last record; number 0: it has none."""

    number: int
    hash: str


class Flaw(msgspec.Struct, frozen=True):
    """Something that is not as it was written: at which record, and a sentence."""

    number: int
    says: str


def pack(detail: Mapping[str, Any]) -> msgspec.Raw:
    """Encode a record's detail, with sorted names.

    Raises:
        TypeError: JSON cannot express it.
    """
    return msgspec.Raw(_DETAIL.encode(detail))


def canonical(previous: str, number: int, entry: Entry) -> bytes:
    """Return the line that a record's hash covers."""
    return b'{"previous":"%b","number":%d,%b' % (previous.encode(), number, _ENCODER.encode(entry)[1:])


def link(previous: str, number: int, entry: Entry) -> str:
    """Return the hash of a record that follows one with the hash ``previous``."""
    return hashlib.sha256(canonical(previous, number, entry)).hexdigest()


def exported(previous: str, record: Record) -> bytes:
    """Return a record's line in an export: the canonical form, with its hash added as the last member."""
    return b'%b,"hash":"%b"}\n' % (
        canonical(previous, record.number, record.entry)[:-1],
        record.hash.encode(),
    )


class Check:
    """Follows a trail from its first record and keeps what is wrong with it."""

    def __init__(self, published: Iterable[Head] = ()) -> None:
        """Expect heads that were published earlier to be in the trail."""
        self._published = {head.number: head for head in published}
        self._passed: set[int] = set()
        #: The last record seen.
        self.head = Head(number=0, hash=GENESIS)
        #: How many.
        self.seen = 0
        self._sure = True
        self._flaws: list[Flaw] = []
        self._broken: list[tuple[str, Record]] = []
        self._more = 0

    def follow(self, record: Record) -> None:
        """Look at the next record, by number."""
        self.seen += 1
        expected = self.head.number + 1
        if record.number > expected:
            self._missing(expected, record.number - 1)
            self._sure = False
        # The one before is gone, and its hash with it: nothing says what this one's should be.
        if self._sure and link(self.head.hash, record.number, record.entry) != record.hash:
            if len(self._broken) < _EXPLAINED:
                self._broken.append((self.head.hash, record))
            else:
                self._more += 1
        self._sure = True
        self.head = Head(number=record.number, hash=record.hash)
        if self._published:
            self._compare(self.head)

    def end(self, kept: Head | None) -> list[Flaw]:
        """Return all that is wrong, by number.

        Args:
            kept: the head that the database keeps beside the trail; None: it has lost it.
        """
        flaws = [*self._flaws, *_explained(self._broken)]
        last = self.head
        if self._more:
            flaws.append(Flaw(last.number, f"{self._more} more records are not what was written."))
        if kept is None:
            flaws.append(Flaw(last.number, "The head that is kept beside the trail is missing."))
        elif kept.number > last.number:
            flaws.append(
                Flaw(last.number + 1, f"{_records(last.number + 1, kept.number)} missing at the end.")
            )
        elif kept.number < last.number:
            flaws.append(
                Flaw(kept.number + 1, f"{_records(kept.number + 1, last.number)} there that nobody recorded.")
            )
        elif kept.hash != last.hash:
            flaws.append(
                Flaw(last.number, f"The head that is kept beside the trail is not of record {last.number}.")
            )
        flaws += [
            Flaw(number, f"Record {number} was published as the trail's head, and is missing.")
            for number in self._published.keys() - self._passed
            if number > 0
        ]
        return sorted(flaws, key=lambda flaw: flaw.number)

    def _missing(self, first: int, last: int) -> None:
        self._flaws.append(
            Flaw(first, f"{_records(first, last)} missing; record {last + 1} cannot be checked without.")
        )

    def _compare(self, head: Head) -> None:
        published = self._published.get(head.number)
        if published is None:
            return
        self._passed.add(head.number)
        if published.hash != head.hash:
            self._flaws.append(
                Flaw(
                    head.number,
                    f"Record {head.number} is not the one that was published as the trail's head: "
                    "the trail was written anew, here or before.",
                )
            )


def _records(first: int, last: int) -> str:
    return f"Record {first} is" if first == last else f"Records {first} to {last} are"


def _explained(broken: list[tuple[str, Record]]) -> Iterator[Flaw]:
    """Say of each record whose hash is wrong what that comes from; none of one that is only next to such a one."""
    hashes = {record.hash for _previous, record in broken}
    before: tuple[str, Record] | None = None
    for previous, record in broken:
        candidates = set(hashes)
        if before is not None:
            candidates.add(link(before[0], before[1].number, before[1].entry))
        before = (previous, record)
        if previous in hashes and any(
            link(candidate, record.number, record.entry) == record.hash
            for candidate in candidates - {previous}
        ):
            # It follows what should be before it; what is there instead has a line of its own.
            continue
        place = _place(record, broken)
        if place is not None:
            yield Flaw(record.number, f"Record {record.number} is out of order: it was record {place}.")
        else:
            yield Flaw(record.number, f"Record {record.number} was changed: it is not what was written.")


def _place(record: Record, broken: list[tuple[str, Record]]) -> int | None:
    """Return the number that a record had when it was hashed, if it is that of another broken one."""
    hashes = {other.hash for _previous, other in broken}
    for previous, other in broken:
        if other.number != record.number and any(
            link(candidate, other.number, record.entry) == record.hash for candidate in {previous, *hashes}
        ):
            return other.number
    return None
