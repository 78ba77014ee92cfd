"""The audit trail in the database: chained, never changed, and whole whatever happens to who writes it."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from sqlalchemy.exc import DBAPIError

from stateward.domain.audit import GENESIS, Check, Flaw
from stateward.domain.locks import ActorKind
from stateward.store import migrations, operations
from stateward.store.audit_trail import reading
from stateward.store.engine import Database, PostgresDatabase, StoreUnavailable, open_database
from stateward.store.schema import migrate
from stateward.store.tables import AUDIT, AUDIT_HEAD
from tests.rows import NOW, actor

SAYS = "The audit trail is append-only"


def note(connection: sa.Connection, event: str, *, lasting: bool = False) -> None:
    operations.record(
        connection,
        at=NOW,
        event=event,
        actor=actor(ActorKind.ADMIN, project="q", request="req-7"),
        instance_id="i",
        operation_id="o",
        action="stop",
        detail={"b": 1, "a": [None, "é"]},
        lasting=lasting,
    )


def flaws(url: sa.URL) -> list[Flaw]:
    """Verify the trail of a database, as the command does."""
    with reading(url.render_as_string(hide_password=False)) as trail:
        check = Check()
        for record in trail.records():
            check.follow(record)
        return check.end(trail.head())


async def events(database: Database) -> list[tuple[int, str]]:
    """Return what was recorded, by number."""
    await database.seal()
    query = sa.select(AUDIT.c.number, AUDIT.c.event).order_by(AUDIT.c.number)
    return [(row.number, row.event) for row in await database.read(lambda each: each.execute(query).all())]


async def test_it_keeps_who_did_what(database: Database, database_url: sa.URL) -> None:
    """In the order in which it happened, with a hash (B7)."""
    await database.write(lambda connection: note(connection, "admitted"))
    await database.write(
        lambda connection: operations.record(
            connection, at=NOW, event="verdict", actor=actor(ActorKind.SYSTEM), instance_id=None
        )
    )
    await database.seal()
    query = sa.select(AUDIT).order_by(AUDIT.c.number)
    first, second = await database.read(lambda connection: connection.execute(query).all())
    assert (first.number, first.at, first.event, first.instance_id) == (1, NOW, "admitted", "i")
    assert (first.operation_id, first.action) == ("o", "stop")
    assert (first.actor_kind, first.user_id) == ("admin", "a admin")
    assert (first.project_id, first.request_id) == ("q", "req-7")
    assert first.detail == {"b": 1, "a": [None, "é"]}
    assert (second.number, second.event, second.instance_id, second.detail) == (2, "verdict", None, {})
    head = await database.read(lambda connection: connection.execute(sa.select(AUDIT_HEAD)).one())
    assert (head.number, head.hash) == (2, second.hash)
    assert len({GENESIS, first.hash, second.hash}) == 3
    assert flaws(database_url) == []


async def test_what_is_undone_leaves_what_lasts(database: Database, database_url: sa.URL) -> None:
    """Of a piece of work that ends in an exception only that is kept, and neighbours lose nothing."""

    def refused(connection: sa.Connection) -> None:
        note(connection, "undone")
        note(connection, "refused", lasting=True)
        raise LookupError

    await database.write(lambda connection: note(connection, "before"))
    with pytest.raises(LookupError):
        await database.write(refused)
    answers = await asyncio.gather(
        *(
            database.write(refused if turn % 2 else lambda connection: note(connection, "kept"))
            for turn in range(6)
        ),
        return_exceptions=True,
    )
    assert [type(answer) for answer in answers] == [type(None), LookupError] * 3
    kept = await events(database)
    assert kept[:2] == [(1, "before"), (2, "refused")]
    assert [number for number, _event in kept] == list(range(1, 9))
    assert sorted(event for _number, event in kept[2:]) == ["kept"] * 3 + ["refused"] * 3
    assert flaws(database_url) == []


async def test_a_reader_cannot_record(database: Database) -> None:
    """A record that nobody would write is a mistake of the program, and is told so at once."""
    with pytest.raises(RuntimeError, match="only in a transaction"):
        await database.read(lambda connection: note(connection, "lost"))
    await database.write(lambda connection: note(connection, "kept"))
    with pytest.raises(RuntimeError, match="only in a transaction"):
        await database.read(lambda connection: note(connection, "lost"))


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit SET event = 'x' WHERE number = 2",
        "DELETE FROM audit WHERE number = 2",
        "DELETE FROM audit",
        "DELETE FROM audit_head",
        "UPDATE audit_head SET number = 1",
        "UPDATE audit_head SET hash = 'x'",
    ],
)
async def test_the_database_refuses(database: Database, database_url: sa.URL, statement: str) -> None:
    """No UPDATE and no DELETE gets through, whoever asks; nothing has changed after."""
    for _turn in range(3):
        await database.write(lambda connection: note(connection, "admitted"))
    await database.seal()
    engine = sa.create_engine(database_url, poolclass=sa.NullPool)
    with pytest.raises(DBAPIError, match=SAYS), engine.begin() as connection:
        connection.execute(sa.text(statement))
    assert [number for number, _event in await events(database)] == [1, 2, 3]
    assert flaws(database_url) == []


async def test_each_database_s_own_ways_round(database: Database, database_url: sa.URL) -> None:
    """SQLite's REPLACE deletes without its DELETE trigger; PostgreSQL's TRUNCATE and upserts are their own."""
    await database.write(lambda connection: note(connection, "admitted"))
    await database.seal()
    columns = ", ".join(column.name for column in AUDIT.c)
    if database.dialect == "sqlite":
        ways = [
            f"INSERT OR REPLACE INTO audit ({columns}) SELECT {columns} FROM audit",
            f"REPLACE INTO audit ({columns}) SELECT {columns} FROM audit",
            "REPLACE INTO audit_head (id, number, hash) VALUES (1, 9, 'x')",
        ]
    else:
        ways = [
            "TRUNCATE audit",
            "TRUNCATE audit_head",
            (
                f"INSERT INTO audit ({columns}) SELECT {columns} FROM audit "
                "ON CONFLICT (number) DO UPDATE SET event = 'x'"
            ),
        ]
    engine = sa.create_engine(database_url, poolclass=sa.NullPool)
    for way in ways:
        with pytest.raises(DBAPIError, match=SAYS), engine.begin() as connection:
            connection.execute(sa.text(way))
    assert flaws(database_url) == []


async def test_writers_at_once_make_one_chain(database_url: sa.URL) -> None:
    """Two servers' worth of writers on PostgreSQL, or two on one file: no fork, no gap, nothing twice."""
    url = database_url.render_as_string(hide_password=False)
    both = [
        PostgresDatabase(database_url, connections=6)
        if database_url.get_backend_name() == "postgresql"
        else open_database(url)
        for _each in range(2)
    ]

    async def two(turn: int) -> None:
        def work(connection: sa.Connection) -> None:
            note(connection, f"a{turn}")
            note(connection, f"b{turn}")

        await both[turn % 2].write(work)

    await asyncio.gather(*map(two, range(80)))
    kept = await events(both[0])
    for each in both:
        await each.close()
    assert [number for number, _event in kept] == list(range(1, 161))
    # What one piece of work records stays in its order.
    place = {event: number for number, event in kept}
    assert len(place) == 160
    assert all(place[f"a{turn}"] < place[f"b{turn}"] for turn in range(80))
    assert flaws(database_url) == []


#: Writes without end, and says after each answer how many were answered.
_WRITER = """
import asyncio, sys
from stateward.domain.locks import ActorKind
from stateward.domain.records import Actor
from stateward.store import migrations, operations
from stateward.store.engine import open_database
def work(connection):
    actor = Actor(kind=ActorKind.MEMBER, user_id="u", project_id="p", request_id="r")
    operations.record(connection, at=1.0, event="written", actor=actor, instance_id=None)
async def main():
    database, answered = open_database(sys.argv[1]), 0
    while True:
        await asyncio.gather(*(database.write(work) for _ in range(8)))
        answered += 8
        print(answered, flush=True)
asyncio.run(main())
"""


def test_a_killed_writer_leaves_a_whole_chain(database_url: sa.URL) -> None:
    """Killed anywhere, what was answered is there, and the next one goes on from it."""
    url = database_url.render_as_string(hide_password=False)
    answered = 0
    for turn in range(3):
        with subprocess.Popen(
            [sys.executable, "-c", _WRITER, url], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            said = [int(process.stdout.readline()) for _line in range(5 + turn)]
            process.send_signal(signal.SIGKILL)
            process.wait()
            rest = process.stdout.read()
        _outlive(database_url)
        answered += int(rest.split()[-1]) if rest.split() else said[-1]
        assert flaws(database_url) == []
        with reading(url) as trail:
            assert trail.count() + trail.unsealed() >= answered
            answered = trail.count() + trail.unsealed()
    asyncio.run(_seal(url))
    with reading(url) as trail:
        assert (trail.count(), trail.unsealed()) == (answered, 0)
    assert flaws(database_url) == []


def _outlive(url: sa.URL) -> None:
    """Wait until nothing acts any more for a client that was killed: PostgreSQL still does what it had received."""
    if url.get_backend_name() == "postgresql":
        engine = sa.create_engine(url, poolclass=sa.NullPool)
        with engine.connect() as connection:
            others = "datname = current_database() AND pid <> pg_backend_pid()"
            connection.execute(
                sa.text(f"SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity WHERE {others}")
            ).all()


async def _seal(url: str) -> None:
    database = open_database(url)
    await database.seal()
    await database.close()


async def test_what_was_recorded_before_the_chain_is_chained(bare_url: sa.URL) -> None:
    """By the migration, as it is found and in its order, and the next record follows it."""

    def before(connection: sa.Connection) -> None:
        config = Config()
        config.set_main_option("script_location", str(Path(migrations.__file__).parent))
        config.attributes["connection"] = connection
        command.upgrade(config, "0002")
        for event in ("first", "gone", "second"):
            connection.execute(
                sa.text(
                    "INSERT INTO audit (at, event, actor_kind, user_id, project_id, request_id, detail) "
                    """VALUES (1.1, :event, 'admin', 'u', 'p', 'r', '{"b": 1, "a": 2}')"""
                ),
                {"event": event},
            )
        connection.execute(sa.text("DELETE FROM audit WHERE event = 'gone'"))

    database = open_database(bare_url.render_as_string(hide_password=False))
    await database.write(before)
    assert await migrate(database) is True
    await database.write(lambda connection: note(connection, "third"))
    assert await events(database) == [(1, "first"), (2, "second"), (3, "third")]
    assert flaws(bare_url) == []
    await database.close()


async def test_nothing_is_done_that_cannot_be_recorded(database: Database, database_url: sa.URL) -> None:
    """Records that were smuggled past the head, or a head that is gone, stop every write that records."""
    await database.write(lambda connection: note(connection, "admitted"))
    await database.seal()
    engine = sa.create_engine(database_url, poolclass=sa.NullPool)
    columns = ", ".join(column.name for column in AUDIT.c if column.name != "number")
    with engine.begin() as connection:
        connection.execute(sa.text(f"INSERT INTO audit (number, {columns}) SELECT 2, {columns} FROM audit"))
    if database.dialect == "postgresql":
        # Found with the next record, which is left unsealed, and whoever is after it is refused.
        await database.write(lambda connection: note(connection, "waits"))
        with pytest.raises(StoreUnavailable, match="records past its head"):
            await database.seal()
    with pytest.raises(StoreUnavailable, match="records past its head"):
        await database.write(lambda connection: note(connection, "more"))
    query = sa.select(AUDIT.c.number)
    assert sorted(await database.read(lambda each: each.execute(query).scalars().all())) == [1, 2]
    assert flaws(database_url) == [
        Flaw(2, "Record 2 was changed: it is not what was written."),
        Flaw(2, "Record 2 is there that nobody recorded."),
    ]
