"""The database's promises: durable when answered, whole or not at all, and nobody pays for a neighbour."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import sys
import threading
from asyncio.subprocess import PIPE
from collections.abc import Iterator
from typing import Any, Final

import pytest
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import IntegrityError
from sqlalchemy.pool import NullPool

from stateward.store import hosts
from stateward.store.engine import (
    Database,
    PostgresDatabase,
    SqliteDatabase,
    StoreUnavailable,
    Work,
    open_database,
)
from stateward.store.tables import HOSTS, OUTBOX

#: Larger than a page, so that a few of them fill a small database.
LARGE: Final = b"x" * 20_000


def named(name: str) -> Work[None]:
    return lambda connection: hosts.register(connection, name, "z")


async def names(database: Database) -> list[str]:
    return [host.name for host in await database.read(hosts.every)]


class Unwanted(Exception):
    """What a piece of work raises on purpose."""


def named_then_raises(name: str) -> Work[None]:
    def work(connection: sa.Connection) -> None:
        hosts.register(connection, name, "z")
        raise Unwanted(name)

    return work


async def test_what_is_written_is_read(database: Database) -> None:
    """By whoever reads after the write's answer."""
    await database.write(named("a"))
    assert await names(database) == ["a"]


async def test_writing_gives_the_work_s_result(database: Database) -> None:
    """The same object that the function returned."""
    result = object()
    assert await database.write(lambda _connection: result) is result
    assert await database.read(lambda _connection: result) is result


async def test_an_exception_undoes_the_work_and_reaches_the_caller(database: Database) -> None:
    """As itself, not wrapped; a refusal is an answer."""
    with pytest.raises(Unwanted, match=r"^a$"):
        await database.write(named_then_raises("a"))
    assert await names(database) == []


async def test_a_neighbour_s_failure_leaves_no_trace(database: Database) -> None:
    """Writes asked for together succeed and fail each for itself, in one commit or in many."""
    works = [named_then_raises(f"{n:03}") if n % 3 == 0 else named(f"{n:03}") for n in range(150)]
    answers = await asyncio.gather(*(database.write(work) for work in works), return_exceptions=True)
    failed = [n for n, answer in enumerate(answers) if isinstance(answer, Unwanted)]
    assert failed == list(range(0, 150, 3))
    assert [answer for answer in answers if not isinstance(answer, Unwanted)] == [None] * 100
    assert await names(database) == [f"{n:03}" for n in range(150) if n % 3]


async def test_a_broken_constraint_is_the_work_s_own_failure(database: Database) -> None:
    """It says what was broken, and is no trouble of the database's."""

    def twice(connection: sa.Connection) -> None:
        for _ in range(2):
            connection.execute(sa.insert(HOSTS).values(id="1", name="a", zone="z"))

    answers = await asyncio.gather(
        database.write(named("b")), database.write(twice), database.write(named("c")), return_exceptions=True
    )
    assert [type(answer) for answer in answers] == [type(None), IntegrityError, type(None)]
    assert await names(database) == ["b", "c"]


async def test_work_sees_what_was_written_before_it_in_the_same_batch(database: Database) -> None:
    """A guarded UPDATE must see the one before it, though both share a commit."""

    def count(connection: sa.Connection) -> int:
        found = len(hosts.every(connection))
        hosts.register(connection, f"{found}", "z")
        return found

    if isinstance(database, SqliteDatabase):
        counts = await asyncio.gather(*(database.write(count) for _ in range(10)))
    else:
        counts = [await database.write(count) for _ in range(10)]
    assert counts == list(range(10))


async def test_reading_keeps_nothing(database: Database) -> None:
    """On PostgreSQL a read is rolled back; on SQLite it may not write, but nothing reads with a write."""
    await database.write(named("a"))
    assert await database.read(lambda connection: connection.execute(sa.select(HOSTS.c.name)).all()) == [
        ("a",)
    ]


async def test_a_cancelled_writer_harms_nobody(database: Database) -> None:
    """A client that hangs up takes neither its neighbours' answers nor the database with it."""
    writes = [asyncio.ensure_future(database.write(named(name))) for name in "abc"]
    await asyncio.sleep(0)
    writes[1].cancel()
    answers = await asyncio.gather(*writes, return_exceptions=True)
    assert [type(answer) for answer in answers] == [type(None), asyncio.CancelledError, type(None)]
    await database.write(named("d"))
    assert {"a", "c", "d"} <= set(await names(database))


@pytest.fixture
def strict_url(database_url: sa.URL) -> Iterator[sa.URL]:
    """Name a database with a constraint that is looked at by the commit alone."""
    engine = sa.create_engine(database_url, poolclass=NullPool)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE parents (id INTEGER PRIMARY KEY)")
        connection.exec_driver_sql(
            "CREATE TABLE children (parent INTEGER REFERENCES parents (id) DEFERRABLE INITIALLY DEFERRED)"
        )
    yield database_url
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE children")
        connection.exec_driver_sql("DROP TABLE parents")


def orphan(connection: sa.Connection) -> None:
    connection.exec_driver_sql("INSERT INTO children (parent) VALUES (1)")


async def test_a_commit_that_fails_ends_no_later_write(strict_url: sa.URL) -> None:
    """What waits behind it is written, and what comes after it; of what failed nothing is kept."""
    if strict_url.get_backend_name() == "sqlite":
        database: Database = SqliteDatabase(strict_url)
        failure: type[Exception] = StoreUnavailable
    else:
        # The next write has the same connection.
        database = PostgresDatabase(strict_url, connections=1)
        failure = IntegrityError
    for n in range(3):
        failing = asyncio.ensure_future(database.write(orphan))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        # Asked for while the commit is under way.
        behind = asyncio.ensure_future(database.write(named(f"{n} behind")))
        with pytest.raises(failure):
            await failing
        await behind
        await database.write(named(f"{n} later"))
    assert await names(database) == [f"{n} {when}" for n in range(3) for when in ("behind", "later")]
    left = await database.read(
        lambda connection: connection.exec_driver_sql("SELECT count(*) FROM children").scalar_one()
    )
    assert left == 0
    await database.close()


async def test_closing_finishes_what_was_begun(database_url: sa.URL) -> None:
    """What was asked for before is durable after, and no thread or connection is left."""
    database = open_database(database_url.render_as_string(hide_password=False))
    writes = [asyncio.ensure_future(database.write(named(f"{n:03}"))) for n in range(100)]
    await asyncio.sleep(0)
    await database.close()
    assert await asyncio.gather(*writes) == [None] * 100
    again = open_database(database_url.render_as_string(hide_password=False))
    assert len(await names(again)) == 100
    await again.close()


async def test_open_database_chooses_by_the_url(sqlite_url: sa.URL) -> None:
    """SQLite for its URLs; PostgreSQL for the rest, which connects only when it is used."""
    first = open_database(f"sqlite:///{sqlite_url.database}")
    assert isinstance(first, SqliteDatabase)
    await first.close()
    second = open_database("postgresql+psycopg://nobody@/nothing?host=/nowhere")
    assert isinstance(second, PostgresDatabase)
    with pytest.raises(StoreUnavailable, match="The database cannot be used now"):
        await second.read(hosts.every)
    with pytest.raises(StoreUnavailable, match="The database cannot be used now"):
        await second.write(named("a"))
    await second.close()


# ---- SQLite alone


def pragma(name: str) -> Work[Any]:
    return lambda connection: connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()


async def test_a_commit_is_on_the_disk(sqlite_url: sa.URL) -> None:
    """WAL with ``synchronous=FULL``: the log is synced before the answer; ``NORMAL`` would lose power badly."""
    database = SqliteDatabase(sqlite_url)
    assert await database.read(pragma("journal_mode")) == "wal"
    assert await database.write(pragma("journal_mode")) == "wal"
    assert await database.write(pragma("synchronous")) == 2
    assert await database.write(pragma("foreign_keys")) == 1
    await database.close()


@pytest.fixture
def commits() -> Iterator[list[str]]:
    """Collect the commits of every engine."""
    seen: list[str] = []

    def note(connection: sa.Connection) -> None:
        seen.append(connection.dialect.name)

    event.listen(sa.Engine, "commit", note)
    yield seen
    event.remove(sa.Engine, "commit", note)


async def test_waiting_writes_share_a_commit(sqlite_url: sa.URL, commits: list[str]) -> None:
    """The first commits by itself, those that came meanwhile together: two syncs for twenty writes, not twenty."""
    database = SqliteDatabase(sqlite_url)
    first = asyncio.ensure_future(database.write(named("first")))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await asyncio.gather(first, *(database.write(named(f"{n:03}")) for n in range(20)))
    assert len(commits) == 2
    await database.close()


async def test_a_batch_is_bounded(sqlite_url: sa.URL, commits: list[str]) -> None:
    """Or a flood of writes would keep the loop from everything else."""
    database = SqliteDatabase(sqlite_url)
    await asyncio.gather(*(database.write(named(f"{n:03}")) for n in range(130)))
    assert len(commits) == 3
    await database.close()


async def test_nothing_is_answered_before_it_is_durable(sqlite_url: sa.URL) -> None:
    """Another connection, which sees only what was committed, sees it when the answer comes."""
    assert sqlite_url.database is not None
    database = SqliteDatabase(sqlite_url)
    other = sqlite3.connect(sqlite_url.database, isolation_level=None)
    for n in range(5):
        await database.write(named(f"{n}"))
        assert other.execute("SELECT count(*) FROM hosts").fetchone() == (n + 1,)
    other.close()
    await database.close()


async def fill_up(database: SqliteDatabase) -> None:
    """Let the database grow by two more pages only: what SQLite then says is what it says of a full disk."""
    pages: int = await database.write(pragma("page_count"))
    await database.write(pragma(f"max_page_count={pages + 2}"))


def large(connection: sa.Connection) -> None:
    connection.execute(sa.insert(OUTBOX).values(subject="s", message_id="m", payload=LARGE))


async def test_a_full_disk_is_told_to_everybody_and_keeps_nothing(sqlite_url: sa.URL) -> None:
    """Nobody of the batch is told that it was kept, because nothing was."""
    database = SqliteDatabase(sqlite_url)
    await database.write(named("before"))
    await fill_up(database)
    answers = await asyncio.gather(
        database.write(named("a")), database.write(large), database.write(named("b")), return_exceptions=True
    )
    assert [type(answer) for answer in answers] == [StoreUnavailable] * 3
    assert {str(answer) for answer in answers} == {
        "The database cannot be used now: database or disk is full"
    }
    assert await names(database) == ["before"]
    await database.close()


async def test_it_works_again_when_there_is_room(sqlite_url: sa.URL) -> None:
    """Nothing has to be restarted after the operator made room."""
    database = SqliteDatabase(sqlite_url)
    await fill_up(database)
    with pytest.raises(StoreUnavailable):
        await database.write(large)
    await database.write(pragma("max_page_count=1000000"))
    await database.write(large)
    await database.write(named("after"))
    assert await names(database) == ["after"]
    await database.close()


async def test_a_failure_that_nobody_foresaw_is_told_and_the_next_batch_is_written(
    sqlite_url: sa.URL,
) -> None:
    """No failure of a commit may be the last thing that the database does, and nobody waits for ever."""
    broken = [ValueError("unforeseen")]

    def fail_once(_connection: sa.Connection) -> None:
        if broken:
            raise broken.pop()

    event.listen(sa.Engine, "commit", fail_once)
    database = SqliteDatabase(sqlite_url)
    try:
        writes = [asyncio.ensure_future(database.write(named(f"{n:03}"))) for n in range(70)]
        _done, waiting = await asyncio.wait(writes, timeout=10)
    finally:
        event.remove(sa.Engine, "commit", fail_once)
    assert waiting == set()
    answers = await asyncio.gather(*writes, return_exceptions=True)
    assert [type(answer) for answer in answers] == [StoreUnavailable] * 64 + [type(None)] * 6
    assert str(answers[0]) == "The database cannot be used now: unforeseen"
    assert await names(database) == [f"{n:03}" for n in range(64, 70)]
    await database.close()


async def test_reading_goes_on_while_the_disk_is_full(sqlite_url: sa.URL) -> None:
    """What is known can still be asked, which is when people ask most."""
    database = SqliteDatabase(sqlite_url)
    await database.write(named("before"))
    await fill_up(database)
    with pytest.raises(StoreUnavailable):
        await database.write(large)
    assert await names(database) == ["before"]
    await database.close()


_HOLDER = """
import sqlite3, sys, time
held = sqlite3.connect(sys.argv[1], isolation_level=None)
held.execute("BEGIN IMMEDIATE")
held.execute("INSERT INTO hosts (id, name, zone, enabled, forced_down) VALUES ('x', 'theirs', 'z', 1, 0)")
print("held", flush=True)
sys.stdin.read(1)
time.sleep(0.3)
held.execute("COMMIT")
"""


async def test_another_process_only_delays(sqlite_url: sa.URL) -> None:
    """A command-line tool that holds the write lock for 0.3 s costs that time and no error; reads do not wait."""
    assert sqlite_url.database is not None
    database = SqliteDatabase(sqlite_url)
    holder = await asyncio.create_subprocess_exec(
        *[sys.executable, "-c", _HOLDER, sqlite_url.database], stdin=PIPE, stdout=PIPE
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    assert await holder.stdout.readline() == b"held\n"
    ours = asyncio.ensure_future(database.write(named("ours")))
    holder.stdin.write(b"x")
    await holder.stdin.drain()
    assert await names(database) == []
    await ours
    assert await names(database) == ["ours", "theirs"]
    holder.stdin.close()
    assert await holder.wait() == 0
    await database.close()


async def test_a_lock_that_is_never_released_is_said(
    sqlite_url: sa.URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After its patience the database gives up with a sentence, and works again once the other has gone."""
    assert sqlite_url.database is not None
    monkeypatch.setattr("stateward.store.engine._PATIENCE_SECONDS", 0.05)
    database = SqliteDatabase(sqlite_url)
    other = sqlite3.connect(sqlite_url.database, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailable, match="database is locked"):
        await database.write(named("a"))
    other.execute("ROLLBACK")
    other.close()
    await database.write(named("b"))
    assert await names(database) == ["b"]
    await database.close()


@pytest.mark.looptime
async def test_inline_commits_take_no_virtual_time(inline_database: Database) -> None:
    """Tests on virtual time rely on it: no thread works where the clock does not see it."""
    loop = asyncio.get_running_loop()
    before = loop.time()
    await asyncio.gather(*(inline_database.write(named(f"{n}")) for n in range(10)))
    assert loop.time() - before < 0.01
    assert len(await names(inline_database)) == 10


async def test_a_write_that_gave_way_in_a_deadlock_is_done_again(postgres_url: sa.URL) -> None:
    """Two writes hold a row each and want the other's; both are answered as if they had come one after the other."""
    database = PostgresDatabase(postgres_url)
    await asyncio.gather(*(database.write(named(name)) for name in "ab"))
    both_hold_one = threading.Barrier(2)
    begun: list[str] = []

    def crosswise(first: str, second: str) -> Work[None]:
        def work(connection: sa.Connection) -> None:
            begun.append(first)
            for name in (first, second):
                connection.execute(
                    sa.update(HOSTS).where(HOSTS.c.name == name).values(zone=HOSTS.c.zone + first)
                )
                if len(begun) <= 2 and name == first:
                    both_hold_one.wait(10)

        return work

    await asyncio.gather(database.write(crosswise("a", "b")), database.write(crosswise("b", "a")))
    assert len(begun) == 3
    zones = {host.name: host.zone for host in await database.read(hosts.every)}
    assert zones["a"] == zones["b"]
    assert sorted(zones["a"]) == ["a", "b", "z"]
    await database.close()


async def test_a_database_that_only_reads(postgres_url: sa.URL) -> None:
    """As one that was the leader until a moment ago: it cannot be used now, and can again with new connections."""
    database = PostgresDatabase(postgres_url, connections=2)
    set_up = sa.create_engine(postgres_url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    name = f'"{postgres_url.database}"'
    await database.write(named("a"))
    try:
        with set_up.connect() as connection:
            connection.exec_driver_sql(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
            connection.exec_driver_sql(
                "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        with pytest.raises(StoreUnavailable, match="read-only transaction"):
            await database.write(named("b"))
        assert await names(database) == ["a"]
    finally:
        with set_up.connect() as connection:
            connection.exec_driver_sql("SET default_transaction_read_only = off")
            connection.exec_driver_sql(f"ALTER DATABASE {name} RESET default_transaction_read_only")
    with contextlib.suppress(StoreUnavailable):
        # One that was opened meanwhile may be left.
        await database.write(named("b"))
    await database.write(named("c"))
    assert (await names(database))[-1] == "c"
    await database.close()
