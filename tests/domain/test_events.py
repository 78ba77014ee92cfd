"""What is told of an audit record, and to whom."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, strategies as st

from stateward.domain.audit import Entry, pack
from stateward.domain.errors import Invalid
from stateward.domain.events import (
    ALERT,
    BY_TYPE,
    EVENT_TYPES,
    OTHER,
    WHOLE,
    Filter,
    Place,
    Reader,
    Source,
    cloud_event,
    events_of,
    place_of,
    types_of,
)
from tests.harness import ROOT

LOCK = {
    "id": "l",
    "kind": "admin",
    "name": "n",
    "holder": "somebody",
    "ticket": "T-1",
    "reason": "why",
    "blocks": 15,
    "expires_at": None,
    "sealed": False,
}


def source(
    event: str, action: str | None = None, *, kind: str = "member", project: str = "p", **detail: Any
) -> Source:
    entry = Entry(
        at=1_900_000_000.25,
        event=event,
        instance_id="i",
        operation_id="o",
        action=action,
        actor_kind=kind,
        user_id="u",
        project_id=project,
        request_id="req-1",
        detail=pack(detail),
    )
    return Source(number=7, entry=entry, project_id="p", instance_name="web", host="alpha")


def names(told: Source) -> list[tuple[str, str]]:
    return [(str(event.place), event.row.name) for event in events_of(told)]


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (source("admitted", "stop"), [("7.0", "operation.accepted")]),
        (
            source("finished", "stop", outcome="succeeded", **{"from": "active", "to": "stopped"}),
            [("7.0", "operation.finished"), ("7.1", "instance.state-changed")],
        ),
        (
            source("admitted", "create", name="web", to="building"),
            [("7.0", "operation.accepted"), ("7.1", "instance.state-changed")],
        ),
        (source("finished", "stop", **{"from": "active", "to": "active"}), [("7.0", "operation.finished")]),
        (
            source("admitted", "place_lock", lock=LOCK),
            [("7.0", "operation.accepted"), ("7.2", "lock.placed")],
        ),
        (
            source("admitted", "release_lock", lock=LOCK),
            [("7.0", "operation.accepted"), ("7.2", "lock.released")],
        ),
        (
            source("admitted", "hold", lock=LOCK | {"kind": "hold"}),
            [("7.0", "operation.accepted"), ("7.2", "hold.placed")],
        ),
        (source("lock_expired", lock=LOCK), [("7.0", "lock.expired")]),
        (source("lock_expired", lock=LOCK | {"kind": "hold"}), [("7.0", "hold.expired")]),
        (source("verdict", "restore"), [("7.0", "instance.verdict")]),
        (source("verdict", "alert"), [("7.0", "alert")]),
        (source("alert"), [("7.0", "alert")]),
        (source("what nobody knows"), [("7.0", "other")]),
    ],
)
def test_what_is_told_of_a_record(told: Source, expected: list[tuple[str, str]]) -> None:
    """First what happened, then what it led to."""
    assert names(told) == expected


WORDS = sorted({word for row in EVENT_TYPES for word in row.records} | {"nobody's"})
NAMES = ("lock", "kind", "name", "reason", "blocks", "expires_at", "from", "to", "outcome", "message", "says")
SMALL = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3)
#: Whatever JSON has, under the names that are looked for.
INNER = SMALL | st.lists(SMALL, max_size=2)
ANYTHING = INNER | st.dictionaries(st.sampled_from(NAMES), INNER, max_size=5)


@given(
    st.sampled_from(WORDS),
    st.sampled_from([None, "stop", "lock", "unlock", "release_lock", "hold", "alert"]),
    st.dictionaries(st.sampled_from(NAMES), ANYTHING, max_size=6),
)
@example("alert", None, {"lock": {"blocks": -1, "expires_at": 9e17}})
@example("override_asked", None, {"lock": "the id of one"})
def test_a_record_of_whatever_form_is_told(event: str, action: str | None, detail: dict[str, Any]) -> None:
    """One that could not be told would stand in the way of all that come after it, in every stream and webhook."""
    told = source("", "")
    entry = msgspec.structs.replace(told.entry, event=event, action=action, detail=pack(detail))
    found = list(events_of(msgspec.structs.replace(told, entry=entry)))
    assert [each.place.number for each in found] == [7] * len(found)
    for reader in (Reader(), Reader(project_id="p")):
        for each in found:
            made = cloud_event(each, reader, "here")
            assert (made["id"], made["type"]) == (str(each.place), each.row.type)
            assert msgspec.json.decode(msgspec.json.encode(made))["id"] == str(each.place)


def test_nova_lock_is_a_lock() -> None:
    """Its record has no lock, only its kind."""
    said = msgspec.structs.replace(
        source("admitted", "unlock"),
        entry=msgspec.structs.replace(source("admitted", "unlock").entry, detail=pack({"kind": "owner"})),
    )
    assert names(said) == [("7.0", "operation.accepted"), ("7.2", "lock.released")]
    *_first, event = events_of(said)
    assert event.detail() == {"lock": {"kind": "owner", "name": "", "reason": None}}


def test_the_whole_form() -> None:
    """As the operator is told it."""
    (event,) = events_of(source("admitted", "stop", kind="admin", project="operations", why="x"))
    assert cloud_event(event, Reader(), "/here") == {
        "specversion": "1.0",
        "id": "7.0",
        "source": "/here",
        "type": "org.stateward.operation.accepted",
        "time": "2030-03-17T17:46:40.250000Z",
        "datacontenttype": "application/json",
        "subject": "i",
        "data": {
            "number": 7,
            "record": "admitted",
            "action": "stop",
            "operation_id": "o",
            "actor": {"kind": "admin", "user_id": "u", "project_id": "operations"},
            "request_id": "req-1",
            "detail": {"why": "x"},
            "instance": {"id": "i", "name": "web", "project_id": "p", "host": "alpha"},
        },
    }


def test_a_customer_is_not_told_what_is_the_provider_s() -> None:
    """No names, no ticket, no host, and of the detail only what the table names."""
    lock = LOCK | {"expires_at": 1_896_112_800.5}
    *_first, event = events_of(
        source("admitted", "place_lock", kind="admin", project="operations", lock=lock)
    )
    reader = Reader(project_id="p")
    assert reader.sees(event)
    data = cloud_event(event, reader, "/here")["data"]
    assert data["actor"] == {"kind": "admin", "user_id": None, "project_id": None}
    assert data["request_id"] is None
    assert data["instance"] == {"id": "i", "name": "web", "project_id": "p"}
    assert data["detail"] == {
        "lock": {
            "kind": "admin",
            "name": "n",
            "blocks": ["all"],
            "reason": "why",
            "expires_at": "2030-01-31T18:00:00.500000Z",
            "sealed": False,
        }
    }
    for secret in ("somebody", "T-1", "operations", "alpha"):
        assert secret not in str(cloud_event(event, reader, "/here")), secret


def test_a_lock_is_told_in_words() -> None:
    """What it blocks and until when, as the API says it, wherever it is in what is told; the rest as it was."""
    blocked = LOCK | {"blocks": 5, "expires_at": 1_896_112_800}
    told = LOCK | {"blocks": ["delete", "start"], "expires_at": "2030-01-31T18:00:00.000000Z"}
    *_events, placed = events_of(source("admitted", "place_lock", lock=blocked))
    assert placed.detail() == {"lock": told}
    (expired,) = events_of(source("lock_expired", lock=blocked, more=1))
    assert expired.detail() == {"lock": told, "more": 1}
    (asked,) = events_of(source("override_asked", lock="l", reason="why"))
    assert asked.detail() == {"lock": "l", "reason": "why"}


@pytest.mark.parametrize(
    ("told", "project", "seen"),
    [
        (source("admitted", "stop"), "p", True),
        (source("admitted", "stop"), "q", False),
        (source("login"), "p", False),
        (source("override_used"), "p", False),
        (source("refused", "stop"), "p", True),
        (source("refused", "stop", kind="admin"), "p", False),
        (source("refused", "stop", project="q"), "p", False),
    ],
)
def test_who_is_told(told: Source, project: str, *, seen: bool) -> None:
    """A project what concerns its instances; everybody's refusals are their own; the operator everything."""
    (event,) = events_of(told)
    assert Reader(project_id=project).sees(event) is seen
    assert Reader().sees(event)


def test_every_record_that_is_written_has_a_row() -> None:
    """Whoever records something new says here how it is told."""
    words = re.compile(r'(?:event=|\b_record\(\s*connection, now, |\b_over\(connection, host, )"([\w.]+)"')
    found = {word for path in (ROOT / "src").rglob("*.py") for word in words.findall(path.read_text())}
    assert {"admitted", "lock_expired", "sweep_passed"} <= found
    known = {word for row in EVENT_TYPES for word in row.records}
    assert found <= known


def test_the_table_is_closed() -> None:
    """One name a row, and each record of one kind in one row."""
    assert len(BY_TYPE) == len(EVENT_TYPES)
    assert {ALERT.type, OTHER.type} <= set(BY_TYPE)
    assert all(row.says.endswith(".") for row in EVENT_TYPES)


def test_filters() -> None:
    """By type, by kind of types, and by what it is about."""
    (event,) = events_of(source("admitted", "stop"))
    assert Filter(types=types_of(["operation.*"])).wants(event.row)
    assert Filter(types=types_of(["org.stateward.operation.accepted"])).wants(event.row)
    assert not Filter(types=types_of(["lock.*", "alert"])).wants(event.row)
    assert Filter(instance_id="i", project_id="p", host="alpha").about(event.source)
    for other in (Filter(instance_id="j"), Filter(project_id="q"), Filter(host="beta")):
        assert not other.about(event.source)
    with pytest.raises(Invalid, match=r"There are no events of type 'operation\.gone'"):
        types_of(["operation.gone"])


def test_places() -> None:
    """An id is a place; a record's number alone means after all of it."""
    assert place_of("7.1") == Place(7, 1)
    assert place_of("7") == Place(7, WHOLE)
    assert str(Place(7, 1)) == "7.1"
    assert Place(7, 2) < Place(8)
    for bad in ("", "x", "7.", ".1", "-7", "7.1.1", "\u0667", "7.10", "1" * 19):
        with pytest.raises(Invalid):
            place_of(bad)
