"""The journal: what an agent knows after it was killed."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stateward.agent.journal import Journal
from stateward.domain.actions import BY_KEY
from stateward.domain.records import Dispatch, Outcome, Result
from stateward.domain.steps import Step
from tests.agent.simulated_bench import spec_of
from tests.rows import NOW

WEEK = 7 * 24 * 3600


def dispatch(fence: int, instance_id: str = "a", action: str = "stop") -> Dispatch:
    return Dispatch(
        operation_id=f"{instance_id}-{fence}",
        instance_id=instance_id,
        action=action,
        fence=fence,
        steps=BY_KEY[action].steps,
        guest=spec_of(instance_id),
        shutdown=None,
    )


def result(fence: int, instance_id: str = "a") -> Result:
    return Result(
        operation_id=f"{instance_id}-{fence}",
        instance_id=instance_id,
        fence=fence,
        outcome=Outcome.SUCCEEDED,
        message="m",
        observation=None,
    )


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    """Give an empty journal in a file."""
    journal = Journal(tmp_path / "journal.db", NOW)
    yield journal
    journal.close()


def test_only_newer_fences_are_accepted(journal: Journal) -> None:
    """Equal ones are duplicates, lower ones are late; each instance counts for itself."""
    assert journal.entry("a") is None
    accepted = [journal.accept(dispatch(fence), NOW) for fence in (2, 2, 1, 3)]
    assert accepted == [True, False, False, True]
    newest = journal.entry("a")
    assert newest is not None
    assert newest.dispatch == dispatch(3)
    assert journal.accept(dispatch(1, "b"), NOW)


def test_a_new_operation_begins_with_nothing_done(journal: Journal) -> None:
    """Whatever the one before it had done."""
    journal.accept(dispatch(1), NOW)
    journal.finished_step("a-1", Step.SHUT_DOWN, frozenset())
    journal.signalled("a-1", NOW)
    journal.finished(result(1))
    journal.accept(dispatch(2), NOW)
    entry = journal.entry("a")
    assert entry is not None
    assert entry.dispatch == dispatch(2)
    assert (entry.done, entry.signalled_at, entry.result) == (frozenset(), None, None)


def test_an_overtaken_operation_writes_nothing_more(journal: Journal) -> None:
    """Its last step or its result may come after the newer one was accepted."""
    journal.accept(dispatch(1), NOW)
    journal.accept(dispatch(2), NOW)
    journal.finished_step("a-1", Step.SHUT_DOWN, frozenset())
    journal.signalled("a-1", NOW)
    journal.finished(result(1))
    entry = journal.entry("a")
    assert entry is not None
    assert (entry.done, entry.signalled_at, entry.result) == (frozenset(), None, None)


def test_everything_survives_the_agent(tmp_path: Path) -> None:
    """Steps, the time of the first request, results and fences."""
    path = tmp_path / "journal.db"
    before = Journal(path, NOW)
    before.accept(dispatch(1), NOW)
    before.finished_step("a-1", Step.SHUT_DOWN, frozenset())
    before.finished_step("a-1", Step.POWER_OFF, frozenset({Step.SHUT_DOWN}))
    before.signalled("a-1", NOW + 1)
    before.accept(dispatch(5, "b"), NOW)
    before.finished(result(5, "b"))
    before.close()
    after = Journal(path, NOW + 10)
    (unfinished,) = after.unfinished()
    assert unfinished.dispatch == dispatch(1)
    assert unfinished.done == {Step.SHUT_DOWN, Step.POWER_OFF}
    assert unfinished.signalled_at == NOW + 1
    finished = after.entry("b")
    assert finished is not None
    assert finished.result == result(5, "b")
    assert not after.accept(dispatch(5, "b"), NOW)
    after.close()


def test_a_result_is_on_the_disk_before_it_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And with it all before it: after a power loss nothing is done again that somebody was told of."""
    executed: list[str] = []
    connect = sqlite3.connect

    def traced(path: Path, **options: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = connect(path, **options)
        connection.set_trace_callback(executed.append)
        return connection

    monkeypatch.setattr(sqlite3, "connect", traced)
    journal = Journal(tmp_path / "journal.db", NOW)
    journal.accept(dispatch(1), NOW)
    executed.clear()
    journal.finished(result(1))
    journal.sent("a-1")
    journal.close()
    assert [statement.split(" = ")[0] for statement in executed] == [
        "PRAGMA synchronous=FULL",
        "UPDATE work SET result",
        "PRAGMA synchronous=NORMAL",
        "UPDATE work SET sent",
    ]


def test_the_first_request_is_what_counts(journal: Journal) -> None:
    """A guest that is asked again has no more time than before."""
    journal.accept(dispatch(1), NOW)
    journal.signalled("a-1", NOW + 1)
    journal.signalled("a-1", NOW + 6)
    entry = journal.entry("a")
    assert entry is not None
    assert entry.signalled_at == NOW + 1


def test_unfinished_operations_come_in_their_order(journal: Journal) -> None:
    """Those accepted first are gone on with first."""
    for number, name in enumerate(("c", "a", "b")):
        journal.accept(dispatch(1, name), NOW + number)
    assert [entry.dispatch.instance_id for entry in journal.unfinished()] == ["c", "a", "b"]


def test_numbers_rise_within_a_life_and_from_life_to_life(tmp_path: Path) -> None:
    """Also when the clock was set back in between, and when the agent died within a second."""
    path = tmp_path / "journal.db"
    numbers: list[int] = []
    for at in (NOW, NOW + 0.5, NOW - 3600, NOW + 100):
        journal = Journal(path, at)
        numbers += [journal.next_seq() for _ in range(3)]
        journal.close()
    assert numbers == sorted(set(numbers))
    assert max(numbers) < 2**63


def test_a_lost_journal_does_not_begin_at_zero() -> None:
    """Its observations would all seem old."""
    first = Journal(None, NOW)
    highest = [first.next_seq() for _ in range(1000)][-1]
    first.close()
    second = Journal(None, NOW + 1)
    assert second.next_seq() > highest
    second.close()


def test_old_results_go_and_unfinished_operations_stay(tmp_path: Path) -> None:
    """The journal of a host that has run for years is not large."""
    path = tmp_path / "journal.db"
    first = Journal(path, NOW)
    first.accept(dispatch(1, "done"), NOW)
    first.finished(result(1, "done"))
    first.accept(dispatch(1, "open"), NOW)
    first.accept(dispatch(1, "late"), NOW + 1)
    first.finished(result(1, "late"))
    first.close()
    second = Journal(path, NOW + WEEK + 0.5)
    assert [second.entry(name) is None for name in ("done", "open", "late")] == [True, False, False]
    second.close()
