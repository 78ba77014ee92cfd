"""Sealing on PostgreSQL: every committed record comes into the chain once, whoever seals and whatever is killed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, OperationalError

from stateward.domain.audit import Entry, Flaw, pack
from stateward.store import audit, sealing
from stateward.store.engine import PostgresDatabase
from tests import postgres
from tests.rows import NOW
from tests.store.test_audit import SAYS, flaws

ENTRY = Entry(
    at=NOW + 0.1,
    event="admitted",
    instance_id="i",
    operation_id=None,
    action="it's a 100 % \\ é",
    actor_kind="admin",
    user_id="u",
    project_id="p",
    request_id="r",
    detail=pack({"b": "\0'\\", "a": [None, 0.1]}),
)


@pytest.fixture
def engine(postgres_server: postgres.Postgres) -> Iterator[sa.Engine]:
    """Give an engine on an empty database that nobody seals."""
    with postgres_server.database() as url:
        engine = sa.create_engine(url)
        yield engine
        engine.dispose()


def entry(event: str) -> Entry:
    return msgspec.structs.replace(ENTRY, event=event)


def leave(engine: sa.Engine, *events: str) -> None:
    """Commit records unsealed, as a process does that is killed then."""
    with engine.connect() as connection:
        audit.commit_unsealed(connection, [entry(each) for each in events])


def sealed(engine: sa.Engine) -> list[str]:
    """Return what is in the trail, which must be whole, in its order."""
    assert flaws(engine.url) == []
    with engine.connect() as connection:
        return list(connection.execute(sa.text("SELECT event FROM audit ORDER BY number")).scalars())


def unsealed(engine: sa.Engine) -> list[str]:
    with engine.connect() as connection:
        return list(
            connection.execute(sa.text("SELECT event FROM audit_unsealed ORDER BY arrival")).scalars()
        )


def seal(engine: sa.Engine) -> None:
    with engine.connect() as connection:
        sealing.seal(connection)


def test_records_are_sealed_word_for_word(engine: sa.Engine) -> None:
    """In the order of their arrival; then there is nothing to do."""
    leave(engine, "a", "b")
    leave(engine, "c")
    assert (sealed(engine), unsealed(engine)) == ([], ["a", "b", "c"])
    seal(engine)
    assert (sealed(engine), unsealed(engine)) == (["a", "b", "c"], [])
    seal(engine)
    with engine.connect() as connection:
        row = connection.execute(sa.text(f"SELECT {', '.join(audit.SAID)} FROM audit WHERE number = 1")).one()
    assert tuple(row) == (
        *msgspec.structs.astuple(entry("a"))[:-1],
        '{"a":[null,0.1],"b":"\\u0000\'\\\\"}',
    )


def test_a_batch_does_not_end_it(engine: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that there is, in as many commits as that takes, also when the last one is full."""
    for count in (4, 5):
        leave(engine, *(str(number) for number in range(count)))
    monkeypatch.setattr(sealing, "_BATCH", 3)
    seal(engine)
    assert sealed(engine) == [*"0123", *"01234"]


def test_a_later_commit_of_an_earlier_arrival(engine: sa.Engine) -> None:
    """Is sealed after what was there before it, and leaves no gap; one that is undone leaves none either."""
    with engine.connect() as slow, engine.connect() as undone:
        for connection, event in ((undone, "undone"), (slow, "slow")):
            connection.exec_driver_sql(
                "INSERT INTO audit_unsealed (at, event, actor_kind, user_id, project_id, request_id, detail) "
                "VALUES (1, %s, 'admin', 'u', 'p', 'r', '{}')",
                (event,),
            )
        leave(engine, "fast")
        seal(engine)
        assert (sealed(engine), unsealed(engine)) == (["fast"], [])
        undone.rollback()
        slow.commit()
    leave(engine, "last")
    seal(engine)
    assert sealed(engine) == ["fast", "slow", "last"]


def test_sealers_take_turns(engine: sa.Engine) -> None:
    """Four at once, while records come: each record once, none left."""
    threads = 4

    def work(thread: int) -> None:
        for turn in range(10):
            leave(engine, f"{thread}-{turn}")
            seal(engine)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, range(threads)))
    found = sealed(engine)
    assert sorted(found) == sorted(f"{thread}-{turn}" for thread in range(threads) for turn in range(10))
    for thread in range(threads):
        assert [each for each in found if each.startswith(f"{thread}-")] == [
            f"{thread}-{turn}" for turn in range(10)
        ]
    assert unsealed(engine) == []


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit_unsealed SET event = 'x' WHERE event = 'b'",
        "UPDATE audit_unsealed SET arrival = 99 WHERE event = 'b'",
        "DELETE FROM audit_unsealed WHERE event = 'b'",
        "DELETE FROM audit_unsealed",
        "TRUNCATE audit_unsealed",
        # As if it were sealed: not in this trail, or not as it was.
        "CREATE TEMP TABLE audit AS TABLE audit_unsealed; DELETE FROM audit_unsealed",
        (
            "INSERT INTO audit SELECT arrival + 1, at, event, instance_id, operation_id, action, actor_kind, 'x', "
            "project_id, request_id, detail, 'hash' FROM audit_unsealed; DELETE FROM audit_unsealed"
        ),
        # What is sealed once does not cover two.
        (
            "INSERT INTO audit_unsealed SELECT arrival + 9, at, event, instance_id, operation_id, action, actor_kind, "
            "user_id, project_id, request_id, detail FROM audit_unsealed WHERE event = 'b'; "
            "INSERT INTO audit SELECT 2, at, event, instance_id, operation_id, action, actor_kind, user_id, "
            "project_id, request_id, detail, 'hash' FROM audit_unsealed WHERE arrival = 2; "
            "DELETE FROM audit_unsealed WHERE event = 'b'"
        ),
    ],
)
def test_nothing_unsealed_is_changed(engine: sa.Engine, statement: str) -> None:
    """The database refuses it, whoever asks, and what is there is sealed as it was."""
    leave(engine, "a")
    seal(engine)
    leave(engine, "b", "c")
    with pytest.raises(DBAPIError, match=SAYS), engine.begin() as connection:
        connection.execute(sa.text(statement))
    engine.dispose()
    seal(engine)
    assert sealed(engine) == ["a", "b", "c"]


def test_a_failed_commit_keeps_nothing(engine: sa.Engine) -> None:
    """Neither of the work nor of its record, and the connection can be used again."""
    with engine.connect() as connection:
        connection.exec_driver_sql(
            "INSERT INTO audit_unsealed VALUES (7, 1, 'work', '', '', '', '', '', '', '', '')"
        )
        with pytest.raises(DBAPIError, match="too long"):
            audit.commit_unsealed(connection, [entry("x" * 33)])
        connection.rollback()
        audit.commit_unsealed(connection, [entry("kept")])
    assert unsealed(engine) == ["kept"]


class Watched(sealing.Sealer):
    """Says when it is through with a round."""

    def __init__(self, engine: sa.Engine) -> None:
        self.rounds = threading.Semaphore(0)
        self.fails: list[Exception] = []
        super().__init__(engine)

    def seal(self) -> None:
        try:
            if self.fails:
                raise self.fails.pop()
            super().seal()
        finally:
            self.rounds.release()


def test_what_a_killed_process_left_is_sealed_at_the_first_commit(engine: sa.Engine) -> None:
    """Whether that one records anything or not."""
    leave(engine, "left")
    sealer = Watched(engine)
    sealer.wake(recorded=False)
    assert sealer.rounds.acquire(timeout=60)
    assert sealed(engine) == ["left"]
    sealer.close()


@pytest.mark.parametrize(
    "fails", [OperationalError("it", None, Exception("is away")), RuntimeError("a fault of ours")]
)
def test_it_tries_again(engine: sa.Engine, monkeypatch: pytest.MonkeyPatch, fails: Exception) -> None:
    """A database that was away is not given up, and needs no new commit to be tried again."""
    monkeypatch.setattr(sealing, "_PERIOD", 0.01)
    leave(engine, "left")
    sealer = Watched(engine)
    sealer.fails = [fails]
    sealer.wake(recorded=True)
    for _round in range(2):
        assert sealer.rounds.acquire(timeout=60)
    assert sealed(engine) == ["left"]
    sealer.close()


def test_nothing_is_left_by_who_closes(engine: sa.Engine) -> None:
    """What was committed until then is sealed; who has written nothing does not look."""
    sealer = Watched(engine)
    sealer.close()
    assert not sealer.rounds.acquire(blocking=False)
    for event in "abc":
        sealer = Watched(engine)
        leave(engine, event)
        sealer.wake(recorded=True)
        sealer.close()
        assert sealed(engine)[-1] == event


async def test_a_repaired_trail_is_written_again(engine: sa.Engine) -> None:
    """What could not be sealed was kept, and is sealed then."""
    database = PostgresDatabase(engine.url, connections=2)
    leave(engine, "a")
    with engine.begin() as connection:
        connection.execute(sa.text("INSERT INTO audit SELECT *, 'hash' FROM audit_unsealed"))
    with pytest.raises(Exception, match="records past its head"):
        await database.seal()
    assert flaws(engine.url) == [
        Flaw(1, "Record 1 was changed: it is not what was written."),
        Flaw(1, "Record 1 is there that nobody recorded."),
    ]
    with engine.begin() as connection:
        connection.execute(sa.text("SET LOCAL session_replication_role = replica"))
        connection.execute(sa.text("DELETE FROM audit"))
    await database.seal()
    assert sealed(engine) == ["a"]
    await database.close()
