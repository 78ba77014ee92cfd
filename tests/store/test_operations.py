"""Operations, the audit trail and the outbox, on both databases."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from stateward.domain.locks import ActorKind
from stateward.domain.records import Operation, OperationState
from stateward.store import operations
from tests.rows import NOW, insert


def operation(instance_id: str, **changes: object) -> Operation:
    facts: dict[str, object] = {
        "id": "o",
        "action": "stop",
        "actor_kind": ActorKind.MEMBER,
        "user_id": "u",
        "project_id": "p",
        "request_id": "req-1",
        "fence": 2,
        "host": "h",
        "state": OperationState.ACCEPTED,
        "started_at": NOW,
        "finished_at": None,
        "message": None,
        "params": dict[str, object](),
    }
    return Operation(instance_id=instance_id, **(facts | changes))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


@pytest.fixture
def instance_id(connection: sa.Connection) -> str:
    """Give an instance's id."""
    return insert(connection).id


def add(connection: sa.Connection, instance_id: str, **changes: object) -> Operation:
    made = operation(instance_id, **changes)
    operations.insert(connection, made)
    return made


def test_an_operation_is_read_as_it_was_written(connection: sa.Connection, instance_id: str) -> None:
    """Parameters, nulls and all."""
    made = add(
        connection,
        instance_id,
        params={"shutdown": {"seconds": 5, "origin": "image"}},
        message="Because.",
        actor_kind=ActorKind.SYSTEM,
        fence=2**40,
    )
    assert operations.get(connection, "o") == made
    assert operations.get(connection, "p") is None


def test_an_operation_ends_once(connection: sa.Connection, instance_id: str) -> None:
    """The first final state stays, whatever comes after (B3)."""
    add(connection, instance_id)
    assert operations.finish(connection, "o", OperationState.FAILED, NOW + 1, "Why.")
    assert not operations.finish(connection, "o", OperationState.SUCCEEDED, NOW + 2, None)
    ended = operations.get(connection, "o")
    assert ended is not None
    assert (ended.state, ended.finished_at, ended.message) == (OperationState.FAILED, NOW + 1, "Why.")


def test_nobody_s_operation_does_not_end(connection: sa.Connection) -> None:
    """A result for an operation that never was changes nothing."""
    assert not operations.finish(connection, "nobody", OperationState.FAILED, NOW, None)


def test_superseding_ends_what_is_unfinished(connection: sa.Connection, instance_id: str) -> None:
    """Of this instance, and of no other; what is finished stays as it ended."""
    other = insert(connection).id
    add(connection, instance_id, id="a")
    add(connection, instance_id, id="b", state=OperationState.SUCCEEDED, finished_at=NOW)
    add(connection, instance_id, id="c")
    add(connection, other, id="d")
    assert sorted(operations.supersede(connection, instance_id, NOW + 1, "Overtaken.")) == ["a", "c"]
    states = {each.id: each.state for each in operations.of_instance(connection, instance_id)}
    assert states == {
        "a": OperationState.SUPERSEDED,
        "b": OperationState.SUCCEEDED,
        "c": OperationState.SUPERSEDED,
    }
    assert [each.id for each in operations.unfinished(connection)] == ["d"]
    assert operations.supersede(connection, instance_id, NOW + 2, "Again.") == []


def test_what_is_unfinished_is_found(connection: sa.Connection, instance_id: str) -> None:
    """Oldest first, of one instance or of all."""
    other = insert(connection).id
    add(connection, instance_id, id="late", started_at=NOW + 1)
    add(connection, other, id="early")
    add(connection, other, id="done", state=OperationState.FAILED, finished_at=NOW)
    assert [each.id for each in operations.unfinished(connection)] == ["early", "late"]
    assert [each.id for each in operations.unfinished(connection, other)] == ["early"]


def test_an_instance_s_operations_come_newest_first(connection: sa.Connection, instance_id: str) -> None:
    """And in pages after a request, without missing those of the same moment."""
    other = insert(connection).id
    for number, at in enumerate((0, 1, 1, 1, 2)):
        add(connection, instance_id, id=f"{number}", started_at=NOW + at, request_id=f"req-{number}")
    add(connection, other, id="x", request_id="req-3")
    every = [each.id for each in operations.of_instance(connection, instance_id)]
    assert every == ["4", "3", "2", "1", "0"]
    for number in range(5):
        after = operations.of_instance(connection, instance_id, marker=f"req-{number}")
        assert [each.id for each in after] == every[every.index(f"{number}") + 1 :]
    two = operations.of_instance(connection, instance_id, limit=2, marker="req-4")
    assert [each.id for each in two] == ["3", "2"]
    with pytest.raises(LookupError, match="req-9"):
        operations.of_instance(connection, instance_id, marker="req-9")


def test_operations_that_changed_between(connection: sa.Connection, instance_id: str) -> None:
    """What counts is the end, or the beginning while there is no end; both bounds are included."""
    add(connection, instance_id, id="a", started_at=NOW, state=OperationState.FAILED, finished_at=NOW + 10)
    add(connection, instance_id, id="b", started_at=NOW + 5)

    def found(since: float | None = None, before: float | None = None) -> list[str]:
        between = operations.of_instance(connection, instance_id, since=since, before=before)
        return [each.id for each in between]

    assert found(since=NOW + 6) == ["a"]
    assert found(since=NOW + 5) == ["b", "a"]
    assert found(before=NOW + 5) == ["b"]
    assert found(before=NOW + 4) == []
    assert found(since=NOW + 10, before=NOW + 10) == ["a"]


def test_what_a_request_asked_for_comes_before_what_followed(
    connection: sa.Connection, instance_id: str
) -> None:
    """And none of another instance's or of another request; what followed can be left out of a list."""
    other = insert(connection).id
    add(connection, instance_id, id="b", fence=2, started_at=NOW + 1)
    add(connection, instance_id, id="a", fence=1)
    add(connection, other, id="c", started_at=NOW + 2)
    assert [each.id for each in operations.of_request(connection, instance_id, "req-1")] == ["a", "b"]
    assert operations.of_request(connection, instance_id, "req-2") == []
    listed = operations.of_instance(connection, instance_id, followers=False)
    assert [each.id for each in listed] == ["a"]


def test_pages_of_what_was_asked_for(connection: sa.Connection, instance_id: str) -> None:
    """They end: what followed by itself is named by a request that names another operation."""
    add(connection, instance_id, id="stop", request_id="req-0", started_at=NOW - 1)
    add(connection, instance_id, id="shelve", fence=1)
    add(connection, instance_id, id="offload", fence=2, started_at=NOW + 1)

    def page(marker: str | None) -> list[str]:
        found = operations.of_instance(connection, instance_id, limit=1, marker=marker, followers=False)
        return [each.id for each in found]

    assert (page(None), page("req-1"), page("req-0")) == (["shelve"], ["stop"], [])


def test_counting_what_was_tried(connection: sa.Connection, instance_id: str) -> None:
    """Of the named actions, of the last seconds, of this instance; a clock that was set back wrote what lies ahead."""
    other = insert(connection).id
    add(connection, instance_id, id="a", action="restore_start", started_at=NOW - 1)
    add(connection, instance_id, id="b", action="restore_start")
    add(connection, instance_id, id="c", action="restore_pause", started_at=NOW + 1)
    add(connection, instance_id, id="d", action="stop", started_at=NOW + 1)
    add(connection, other, id="e", action="restore_start", started_at=NOW + 1)
    restores = {"restore_start", "restore_pause"}
    assert [
        "".join(each.id for each in operations.since(connection, instance_id, restores, seconds, NOW + now))
        for seconds, now in ((1, 1), (3, 2), (3, 0), (10, -2))
    ] == ["cb", "cba", "ba", ""]
    assert operations.since(connection, instance_id, set[str](), 10, NOW) == []


def test_the_outbox_keeps_order(connection: sa.Connection) -> None:
    """Oldest first, in batches, and what was sent is gone."""
    for number in range(5):
        operations.post(connection, f"s{number}", f"m{number}", bytes([number]))
    posted = operations.posted(connection)
    assert [(subject, message, payload) for _, subject, message, payload in posted] == [
        (f"s{number}", f"m{number}", bytes([number])) for number in range(5)
    ]
    assert operations.posted(connection, 2) == posted[:2]
    operations.sent(connection, [number for number, *_ in posted[1:3]])
    assert operations.posted(connection) == [posted[0], *posted[3:]]
    operations.sent(connection, [])
    assert len(operations.posted(connection)) == 3
