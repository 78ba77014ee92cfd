"""One server for a database: who comes second is refused, and who lost it to another one ends."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import psycopg
import pytest
import pytest_asyncio
import sqlalchemy as sa

from stateward.store.sole import DatabaseTaken, Sole, SoleFile, sole

#: Real seconds after which a test has waited in vain.
WAIT = 20


def never() -> None:
    pytest.fail("it was not lost")


def one(url: sa.URL) -> Sole:
    """Return one that looks often."""
    return Sole(url, patience=0.0, period=0.01, gone=WAIT)


@pytest_asyncio.fixture
async def breaks(postgres_url: sa.URL) -> AsyncIterator[psycopg.AsyncConnection]:
    """Give a connection by which others are ended."""
    address = postgres_url.set(drivername="postgresql").render_as_string(hide_password=False)
    async with await psycopg.AsyncConnection.connect(address, autocommit=True) as connection:
        yield connection


async def end(connection: psycopg.AsyncConnection) -> int:
    """Break the connections of whoever has the database, and return how many that were."""
    found = await connection.execute(
        "SELECT pg_terminate_backend(pid, 10000) FROM pg_locks WHERE locktype = 'advisory'"
        " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    )
    return len(await found.fetchall())


async def test_the_second_one_is_refused(bare_url: sa.URL) -> None:
    """Until the first lets go."""
    url = bare_url.render_as_string(hide_password=False)
    first, second = sole(url), sole(url)
    await first.take(never)
    with pytest.raises(DatabaseTaken):
        await second.take(never)
    await first.release()
    await second.take(never)
    await second.release()


async def test_what_is_no_file(tmp_path: Path) -> None:
    """One in memory is nobody else's, and of one that cannot be opened others say why."""
    for path in ("", ":memory:", "file:x?mode=memory", str(tmp_path / "nosuch" / "x.db")):
        for each in (SoleFile(path), SoleFile(path)):
            await each.take(never)
            await each.release()


async def test_a_broken_connection(postgres_url: sa.URL, breaks: psycopg.AsyncConnection) -> None:
    """The database restarts, say: it is taken again."""
    first = one(postgres_url)
    await first.take(never)
    assert await end(breaks) == 1
    async with asyncio.timeout(WAIT):
        while not await end(breaks):
            pass
    await first.release()


class Slower(Sole):
    """One that takes it again only after another one has had its chance."""

    def __init__(self, url: sa.URL) -> None:
        super().__init__(url, patience=0.0, period=0.01, gone=0.05)
        self.may_try = threading.Event()
        self.may_try.set()

    def _try(self) -> bool:
        assert self.may_try.wait(WAIT)
        return super()._try()


async def test_another_one_takes_it_meanwhile(postgres_url: sa.URL, breaks: psycopg.AsyncConnection) -> None:
    """The first one is told, once it has tried for as long as PostgreSQL may believe in its old connection."""
    lost = asyncio.Event()
    first, second = Slower(postgres_url), one(postgres_url)
    await first.take(lost.set)
    first.may_try.clear()
    assert await end(breaks) == 1
    await second.take(never)
    first.may_try.set()
    async with asyncio.timeout(WAIT):
        await lost.wait()
    await first.release()
    await second.release()


class Failing(Sole):
    """One that cannot look for once, and then sees that another one has it."""

    def __init__(self) -> None:
        super().__init__(sa.make_url("postgresql+psycopg://nobody@/none"), period=0.01, gone=0.0)
        self.fails: list[Exception] = [RuntimeError("can't start new thread")]

    def _try(self) -> bool:
        return True

    def _hold(self) -> bool:
        if self.fails:
            raise self.fails.pop()
        return False


async def test_a_look_that_fails_is_not_the_last() -> None:
    """Or nobody would ever say that another one has it."""
    lost = asyncio.Event()
    first = Failing()
    await first.take(lost.set)
    async with asyncio.timeout(WAIT):
        await lost.wait()
    assert first.fails == []
    await first.release()
