"""The audit trail's chain: any single change, removal or swap is found, at the right record."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import msgspec
from hypothesis import given, strategies as st

from stateward.domain.audit import GENESIS, Check, Entry, Flaw, Head, Record, canonical, exported, link, pack

WORDS = st.text(max_size=5)
ENTRIES = st.builds(
    Entry,
    at=st.floats(allow_nan=False, allow_infinity=False),
    event=WORDS,
    instance_id=st.none() | WORDS,
    operation_id=st.none() | WORDS,
    action=st.none() | WORDS,
    actor_kind=WORDS,
    user_id=WORDS,
    project_id=WORDS,
    request_id=WORDS,
    detail=st.dictionaries(WORDS, st.none() | st.integers(-9, 9) | WORDS, max_size=2).map(pack),
)


def chain(entries: list[Entry]) -> list[Record]:
    """Chain entries as a database does."""
    records: list[Record] = []
    previous = GENESIS
    for number, entry in enumerate(entries, start=1):
        previous = link(previous, number, entry)
        records.append(Record(number, entry, previous))
    return records


def found(records: list[Record], kept: Head | None, *published: Head) -> list[Flaw]:
    """Check records."""
    check = Check(published)
    for record in records:
        check.follow(record)
    return check.end(kept)


def head_of(records: list[Record]) -> Head:
    """Return the head of a chain."""
    return Head(records[-1].number, records[-1].hash) if records else Head(0, GENESIS)


TRAILS = st.lists(ENTRIES, min_size=1, max_size=12).map(chain)


def plain(number: int) -> Entry:
    """Make an entry that differs from others."""
    return Entry(
        at=1700000000.5,
        event="admitted",
        instance_id="é",
        operation_id=None,
        action=f"a{number}",
        actor_kind="member",
        user_id="u",
        project_id="p",
        request_id="r",
        detail=pack({"b": {"d": 1, "c": 2.5}, "a": [None, '"']}),
    )


def test_the_form_is_what_is_documented() -> None:
    """To the byte: whoever has an export must be able to check it in ten years."""
    line = (
        '{"previous":"' + GENESIS + '","number":1,"at":1700000000.5,"event":"admitted","instance_id":"é",'
        '"operation_id":null,"action":"a1","actor_kind":"member","user_id":"u","project_id":"p","request_id":"r",'
        '"detail":{"a":[null,"\\""],"b":{"c":2.5,"d":1}}}'
    ).encode()
    assert canonical(GENESIS, 1, plain(1)) == line
    digest = hashlib.sha256(line).hexdigest()
    assert link(GENESIS, 1, plain(1)) == digest
    assert exported(GENESIS, Record(1, plain(1), digest)) == line[:-1] + f',"hash":"{digest}"}}\n'.encode()


@given(TRAILS)
def test_a_whole_trail_has_no_flaw(records: list[Record]) -> None:
    """Nor has one whose heads were published earlier."""
    assert found(records, head_of(records)) == []
    earlier = [Head(0, GENESIS), *(Head(record.number, record.hash) for record in records)]
    assert found(records, head_of(records), *earlier) == []


@given(TRAILS)
def test_an_exported_line_says_its_own_hash(records: list[Record]) -> None:
    """And is JSON with every fact in it, and the hash of the one before."""
    previous = GENESIS
    for record in records:
        line = exported(previous, record)
        decoded = json.loads(line)
        assert line.count(b"\n") == 1
        covered, _comma, _hash = line.rstrip(b"\n").rpartition(b',"hash":')
        assert hashlib.sha256(covered + b"}").hexdigest() == decoded["hash"] == record.hash
        assert decoded["previous"] == previous
        assert decoded["number"] == record.number
        assert decoded["event"] == record.entry.event
        previous = record.hash


@given(TRAILS, st.data())
def test_a_change_is_found(records: list[Record], data: st.DataObject) -> None:
    """Of any field of any record, and of its hash; at that record and no other."""
    at = data.draw(st.integers(0, len(records) - 1))
    record = records[at]
    field = data.draw(st.sampled_from([*Entry.__struct_fields__, "hash"]))
    if field == "hash":
        digits = data.draw(
            st.text("0123456789abcdef", min_size=64, max_size=64).filter(lambda new: new != record.hash)
        )
        changed = msgspec.structs.replace(record, hash=digits)
    else:
        other = getattr(data.draw(ENTRIES), field)
        entry = msgspec.structs.replace(record.entry, **{field: other})
        if canonical("", 1, entry) == canonical("", 1, record.entry):
            return
        changed = msgspec.structs.replace(record, entry=entry)
    spoilt = [*records[:at], changed, *records[at + 1 :]]
    flaws = found(spoilt, head_of(records))
    number = at + 1
    expected = [Flaw(number, f"Record {number} was changed: it is not what was written.")]
    if field == "hash" and number == len(records):
        expected.append(Flaw(number, f"The head that is kept beside the trail is not of record {number}."))
    assert flaws == expected


@given(TRAILS, st.data())
def test_a_removal_is_found(records: list[Record], data: st.DataObject) -> None:
    """Of any records in a row, at the beginning and at the end too."""
    first = data.draw(st.integers(1, len(records)))
    last = data.draw(st.integers(first, len(records)))
    which = f"Record {first} is" if first == last else f"Records {first} to {last} are"
    flaws = found([*records[: first - 1], *records[last:]], head_of(records))
    where = "at the end." if last == len(records) else None
    says = (
        f"{which} missing {where}"
        if where
        else f"{which} missing; record {last + 1} cannot be checked without."
    )
    assert flaws == [Flaw(first, says)]


@given(TRAILS.filter(lambda records: len(records) > 1), st.data())
def test_a_swap_is_found(records: list[Record], data: st.DataObject) -> None:
    """Of any two records, with their hashes; both are named, with the place they had."""
    low, high = sorted(data.draw(st.sets(st.integers(0, len(records) - 1), min_size=2, max_size=2)))
    spoilt = list(records)
    spoilt[low] = Record(low + 1, records[high].entry, records[high].hash)
    spoilt[high] = Record(high + 1, records[low].entry, records[low].hash)
    expected = [
        Flaw(low + 1, f"Record {low + 1} is out of order: it was record {high + 1}."),
        Flaw(high + 1, f"Record {high + 1} is out of order: it was record {low + 1}."),
    ]
    if high + 1 == len(records):
        says = f"The head that is kept beside the trail is not of record {high + 1}."
        expected.append(Flaw(high + 1, says))
    assert found(spoilt, head_of(records)) == expected


@given(TRAILS, st.data())
def test_a_removal_that_is_covered_up_is_found(records: list[Record], data: st.DataObject) -> None:
    """The rest numbered anew, and the head too: the first record that moved is named."""
    gone = data.draw(st.integers(0, len(records) - 1))
    rest = [
        Record(number, record.entry, record.hash)
        for number, record in enumerate([*records[:gone], *records[gone + 1 :]], start=1)
    ]
    flaws = found(rest, head_of(rest), head_of(records))
    assert flaws
    assert flaws[0].number == gone + 1


@given(TRAILS, st.data())
def test_a_trail_written_anew_is_found_by_a_published_head(
    records: list[Record], data: st.DataObject
) -> None:
    """Whoever can change everything in the database still cannot change a file elsewhere."""
    at = data.draw(st.integers(0, len(records) - 1))
    entries = [record.entry for record in records]
    entries[at] = msgspec.structs.replace(entries[at], event=entries[at].event + "!")
    forged = chain(entries)
    assert found(forged, head_of(forged)) == []
    (flaw,) = found(forged, head_of(forged), head_of(records))
    assert flaw.number == len(records)
    assert "is not the one that was published" in flaw.says
    shorter = records[:-1]
    assert found(shorter, head_of(shorter), head_of(records)) == [
        Flaw(len(records), f"Record {len(records)} was published as the trail's head, and is missing.")
    ]


def test_the_head_beside_the_trail_is_checked() -> None:
    """Gone, of another record, or with records past it."""
    records = chain([plain(number) for number in range(3)])
    cases: list[tuple[Head | None, Flaw]] = [
        (None, Flaw(3, "The head that is kept beside the trail is missing.")),
        (Head(3, "x"), Flaw(3, "The head that is kept beside the trail is not of record 3.")),
        (Head(1, records[0].hash), Flaw(2, "Records 2 to 3 are there that nobody recorded.")),
        (Head(5, "x"), Flaw(4, "Records 4 to 5 are missing at the end.")),
    ]
    for kept, flaw in cases:
        assert found(records, kept) == [flaw]


def test_a_trail_written_anew_without_care_is_summed_up() -> None:
    """Thousands of wrong records are not thousands of lines."""
    records = chain([plain(number) for number in range(200)])
    spoilt = [msgspec.structs.replace(record, entry=plain(record.number + 500)) for record in records]
    flaws = found(spoilt, head_of(records))
    assert len(flaws) == 51
    assert flaws[0] == Flaw(1, "Record 1 was changed: it is not what was written.")
    assert flaws[-1] == Flaw(200, "150 more records are not what was written.")


def test_what_json_cannot_say_is_refused_when_it_is_recorded() -> None:
    """Not when the transaction ends, where nobody could say whose it was."""
    thing: dict[str, Any] = {"a": object()}
    try:
        pack(thing)
    except TypeError:
        return
    raise AssertionError
