"""Listing instances: every filter, every sort and paging, against a model in Python, on both databases."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

import msgspec
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings, strategies as st

from stateward.domain.networks import PortAddress
from stateward.domain.records import FlavorFacts, ImageFacts, Instance
from stateward.domain.states import ENDED, TaskState, VmState
from stateward.store.instances import Query, page
from tests.rows import FLAVOR, NOW, insert


def names(connection: sa.Connection, query: Query) -> list[str]:
    return [instance.name for instance in page(connection, query)]


def pair(connection: sa.Connection, yes: dict[str, Any], no: dict[str, Any]) -> None:
    """Insert one row that a filter must find and one that it must not, and some that are ordinary."""
    insert(connection, **({"name": "yes"} | yes))
    insert(connection, **({"name": "no"} | no))


IMAGE_A = ImageFacts(id="a", disk_format="raw")


GIVEN = (PortAddress(mac="52:00:00:00:00:01", address="10.0.0.17"),)


@pytest.mark.parametrize(
    ("query", "yes", "no"),
    [
        (Query(project_id="p"), {}, {"project_id": "q"}),
        (Query(user_id="u"), {}, {"user_id": "v"}),
        (Query(host="h"), {}, {"host": "g"}),
        (Query(zone="nova"), {}, {"zone": "north"}),
        (Query(key_name="k"), {"key_name": "k"}, {}),
        (Query(reservation_id="r"), {}, {"reservation_id": "s"}),
        (Query(hostname="web"), {}, {"hostname": "Web"}),
        (Query(created_at=NOW), {}, {"created_at": NOW + 1}),
        (Query(vm_states=frozenset({VmState.ACTIVE})), {}, {"vm_state": "stopped"}),
        (Query(task_states=frozenset({TaskState.PAUSING})), {"task_state": "pausing"}, {}),
        (Query(deleted=False), {}, {"vm_state": "deleted"}),
        (Query(deleted=True), {"vm_state": "deleted"}, {}),
        (Query(deleted=False), {}, {"vm_state": "soft-delete"}),
        (Query(deleted=True), {"vm_state": "soft-delete"}, {}),
        (Query(), {}, {"vm_state": "deleted"}),
        (Query(locked=True), {"locked_by": "owner"}, {}),
        (Query(locked=False), {}, {"locked_by": "owner"}),
        (Query(locked_by="admin"), {"locked_by": "admin"}, {"locked_by": "owner"}),
        (Query(ids=frozenset({"1", "2"})), {"id": "1"}, {"id": "3"}),
        (Query(changed_since=NOW), {}, {"updated_at": NOW - 1}),
        (Query(changed_before=NOW), {}, {"updated_at": NOW + 1}),
        (Query(image_id="image"), {}, {"image": IMAGE_A}),
        (Query(image_id="a"), {"image": IMAGE_A}, {"image": ImageFacts(id="A", disk_format="raw")}),
        (
            Query(image_id="x"),
            {"image": ImageFacts(id="x", disk_format="raw")},
            {"image": ImageFacts(id="y", disk_format="raw", properties={"id": "x"})},
        ),
        (
            Query(image_id='a"b%_\\é'),
            {"image": ImageFacts(id='a"b%_\\é', disk_format="raw")},
            {"image": ImageFacts(id='a"bXX\\é', disk_format="raw")},
        ),
        (Query(flavor_id="1"), {}, {"flavor": msgspec.structs.replace(FLAVOR, id="10")}),
        (
            Query(flavor_id="x"),
            {"flavor": msgspec.structs.replace(FLAVOR, id="x")},
            {"flavor": msgspec.structs.replace(FLAVOR, id="y", extra_specs={"id": "x"})},
        ),
        (Query(name="^ye"), {}, {}),
        (Query(name="e"), {}, {}),
        (Query(name="yes|never"), {}, {}),
        (Query(tags_all=frozenset({"a", "b"})), {"tags": ("b", "c", "a")}, {"tags": ("a", "c")}),
        (Query(tags_any=frozenset({"a", "b"})), {"tags": ("b",)}, {"tags": ("c",)}),
        (Query(not_tags_all=frozenset({"a", "b"})), {"tags": ("a",)}, {"tags": ("a", "b")}),
        (Query(not_tags_any=frozenset({"a", "b"})), {"tags": ("c",)}, {"tags": ("a",)}),
        (Query(address="10.0.0.1"), {"addresses": GIVEN}, {"addresses": ()}),
        (Query(address="10.0.0.17"), {"addresses": GIVEN}, {"addresses": ()}),
        # A tag is a whole word, in its own letters.
        (Query(tags_all=frozenset({"a"})), {"tags": ("a",)}, {"tags": ("aa", "ab")}),
        (Query(tags_all=frozenset({"Prod"})), {"tags": ("Prod",)}, {"tags": ("prod", "PROD")}),
        (Query(tags_all=frozenset({"a_b"})), {"tags": ("a_b",)}, {"tags": ("axb",)}),
        (Query(tags_all=frozenset({"50%"})), {"tags": ("50%",)}, {"tags": ("500",)}),
        (Query(tags_all=frozenset({"é\\"})), {"tags": ("é\\",)}, {"tags": ("e\\", "é")}),
        (Query(tags_all=frozenset({'"'})), {"tags": ('"',)}, {"tags": ("a",)}),
    ],
)
def test_a_filter(connection: sa.Connection, query: Query, yes: dict[str, Any], no: dict[str, Any]) -> None:
    """It finds the one and not the other."""
    pair(connection, yes, no)
    assert names(connection, query) == ["yes"]


def test_no_filter_for_deleted_finds_both(connection: sa.Connection) -> None:
    """An admin who asks for everything gets it."""
    pair(connection, {}, {"vm_state": "deleted", "created_at": NOW - 1})
    assert names(connection, Query(deleted=None)) == ["yes", "no"]


def test_filters_narrow_together(connection: sa.Connection) -> None:
    """Each given field takes away."""
    for name, host, locked_by in (("a", "h", None), ("b", "h", "owner"), ("c", "g", "owner")):
        insert(connection, name=name, host=host, locked_by=locked_by)
    assert names(connection, Query(host="h", locked=True)) == ["b"]


def test_an_empty_set_finds_nothing(connection: sa.Connection) -> None:
    """ "In none of these states" is not "in any"."""
    insert(connection)
    assert names(connection, Query(vm_states=frozenset())) == []
    assert names(connection, Query(ids=frozenset())) == []


def test_the_newest_comes_first(connection: sa.Connection) -> None:
    """By default, and of one moment the one made last."""
    for name, at in (("a", NOW), ("b", NOW + 1), ("c", NOW)):
        insert(connection, name=name, created_at=at)
    assert names(connection, Query()) == ["b", "c", "a"]


def test_an_unknown_marker_is_said(connection: sa.Connection) -> None:
    """The page after a marker that is not there cannot be known."""
    with pytest.raises(LookupError, match="nobody"):
        page(connection, Query(marker="nobody"))


def test_a_marker_may_be_deleted_meanwhile(connection: sa.Connection) -> None:
    """A client that pages through a list must not stumble over what went away under it."""
    first = insert(connection, name="a", vm_state="deleted")
    insert(connection, name="b", created_at=NOW - 1)
    assert names(connection, Query(marker=first.id)) == ["b"]


def test_a_limit_of_none_and_of_nothing(connection: sa.Connection) -> None:
    """No limit is all of them, a limit of 0 none."""
    for n in range(3):
        insert(connection, name=f"{n}", created_at=NOW - n)
    assert names(connection, Query()) == ["0", "1", "2"]
    assert names(connection, Query(limit=2)) == ["0", "1"]
    assert names(connection, Query(limit=0)) == []


#: The columns that the API sorts by, and their value in the model: null sorts before everything.
SORTS: Final[dict[str, Callable[[Instance], Any]]] = {
    "created_at": lambda i: i.created_at,
    "updated_at": lambda i: i.updated_at,
    "launched_at": lambda i: -1 if i.launched_at is None else i.launched_at,
    "name": lambda i: i.name,
    "description": lambda i: i.description or "",
    "host": lambda i: i.host,
    "vm_state": lambda i: i.vm_state.value,
    "task_state": lambda i: i.task_state.value if i.task_state else "",
    "key_name": lambda i: i.key_name or "",
    "locked_by": lambda i: i.locked_by or "",
    "id": lambda i: i.id,
}

WORDS = st.sampled_from(["", "a", "b", "B", "aa", "é"])
TIMES = st.sampled_from([NOW, NOW + 0.5, NOW + 1])
ROW = st.fixed_dictionaries(
    {
        "name": WORDS,
        "host": WORDS,
        "description": st.none() | WORDS,
        "key_name": st.none() | WORDS,
        "created_at": TIMES,
        "updated_at": TIMES,
        "launched_at": st.none() | TIMES,
        "vm_state": st.sampled_from([state.value for state in VmState]),
        "task_state": st.none() | st.just("pausing"),
        "locked_by": st.none() | st.sampled_from(["owner", "admin"]),
        "tags": st.lists(st.sampled_from(["a", "b", "A", "ab"]), unique=True, max_size=3).map(tuple),
        "flavor": st.sampled_from(["1", "2"]).map(
            lambda id_: FlavorFacts(id=id_, name="n", vcpus=1, ram=1, disk=1)
        ),
    }
)
TAGS = st.frozensets(st.sampled_from(["a", "b", "A", "ab", "c"]), max_size=2)
QUERY = st.builds(
    Query,
    vm_states=st.none() | st.frozensets(st.sampled_from(VmState), min_size=1),
    deleted=st.none() | st.booleans(),
    locked=st.none() | st.booleans(),
    host=st.none() | WORDS,
    name=st.none() | st.sampled_from(["a", "^a$", "b|B", "[aé]", ""]),
    flavor_id=st.none() | st.sampled_from(["1", "2"]),
    changed_since=st.none() | TIMES,
    changed_before=st.none() | TIMES,
    tags_all=TAGS,
    tags_any=TAGS,
    not_tags_all=TAGS,
    not_tags_any=TAGS,
    sort=st.lists(st.tuples(st.sampled_from(sorted(SORTS)), st.booleans()), max_size=3).map(tuple),
)


def selected(query: Query, row: Instance) -> bool:
    """Say what the filters mean, in Python."""
    tags = set(row.tags)
    return all(
        (
            query.vm_states is None or row.vm_state in query.vm_states,
            query.deleted is None or query.deleted == (row.vm_state in ENDED),
            query.locked is None or query.locked == row.locked,
            query.host is None or row.host == query.host,
            query.name is None or re.search(query.name, row.name),
            query.flavor_id is None or row.flavor.id == query.flavor_id,
            query.changed_since is None or row.updated_at >= query.changed_since,
            query.changed_before is None or row.updated_at <= query.changed_before,
            query.tags_all <= tags,
            not query.tags_any or query.tags_any & tags,
            not query.not_tags_all or not query.not_tags_all <= tags,
            not query.not_tags_any & tags,
        )
    )


def ordered(query: Query, rows: list[Instance]) -> list[Instance]:
    """Sort in Python, by the last key first."""
    found = sorted(rows, key=lambda i: i.number, reverse=query.sort[-1][1] if query.sort else True)
    for name, descending in reversed(query.sort):
        found.sort(key=SORTS[name], reverse=descending)
    return found


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(ROW, max_size=8), query=QUERY, limit=st.integers(1, 4))
def test_pages_are_the_model_s_list_cut_up(
    connection: sa.Connection, rows: list[dict[str, Any]], query: Query, limit: int
) -> None:
    """Whatever the filters, the sort and the page's size: no instance is missed, doubled or out of place."""
    with connection.begin_nested() as savepoint:
        made = [insert(connection, **row) for row in rows]
        expected = ordered(query, [row for row in made if selected(query, row)])
        assert page(connection, query) == expected
        found: list[Instance] = []
        marker = None
        for _page in range(len(made) + 1):
            some = page(connection, msgspec.structs.replace(query, limit=limit, marker=marker))
            found += some
            if len(some) < limit:
                break
            marker = some[-1].id
        assert found == expected
        savepoint.rollback()
