"""Fixtures of every test: an empty database of either kind, with the whole schema."""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import pytest
import pytest_asyncio
import sqlalchemy as sa
from hypothesis import settings
from looptime import LoopTimeEventLoop
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

from stateward.store import engine
from stateward.store.engine import Database, PostgresDatabase, SqliteDatabase, open_database
from stateward.store.schema import migrate
from tests import postgres

# No example has a deadline: it would be counted in real time, and fail on a busy machine. Examples are the same in each
# run: one that is found by chance would refuse a change that has nothing to do with it. Who wants to look for more asks
# for --hypothesis-profile=search.
settings.register_profile("search", deadline=None)
settings.register_profile("tests", deadline=None, derandomize=True)
settings.load_profile("tests")

#: A folder in memory, where there is one: what is killed here is no machine, so nothing need reach a disk.
_MEMORY: Final = Path("/dev/shm")


def pytest_sessionstart() -> None:
    """Say that there is no event loop outside of tests.

    Otherwise pytest-asyncio's first look for one makes one, which nobody closes: a warning, and so a failure.
    """
    asyncio.set_event_loop(None)


class Named:
    """Names each test that fails when it does: the whole takes long, and pytest names them at its end only."""

    def __init__(self, terminal: pytest.TerminalReporter) -> None:
        self._terminal = terminal

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Name it."""
        if report.failed:
            self._terminal.ensure_newline()
            self._terminal.write_line(f"{report.when} failed: {report.nodeid}", red=True)


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Have failures named; the processes that share the tests have no terminal."""
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    if terminal is not None and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Named(terminal))


class Shares(LoadFileScheduling):
    """Shares the tests out among processes: a file's stay together, because of what they share.

    All real guests stay together too: two processes with guests would have half of the machine each.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "guests" if _has_guests(file) else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Shares:
    """Have the tests shared out in this way."""
    return Shares(config, log)


def _has_guests(file: str) -> bool:
    return file.startswith("tests/guests/") or file.partition("::")[0].endswith("_real.py")


def pytest_collection_finish() -> None:
    """Keep the collector of garbage from looking at thousands of tests again and again."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Have real guests first, because they take longest; give them time; and skip them where not root, here alone.

    What is tried on both databases is tried on SQLite alone by ``make check``.
    The first test of a session with guests also makes their files, of packages that it downloads.
    Their libvirtd must be nobody else's, so it gets a mount namespace; and its networks need bridges and NAT. A user's
    own libvirtd has neither: with it half of these tests would test something else.
    """
    reason = "a libvirtd of the tests' own needs root: it gets a mount namespace, bridges and NAT"
    for item in items:
        parameters = getattr(item, "callspec", None)
        if parameters is not None and "postgresql" in parameters.params.values():
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: item.get_closest_marker("guests") is None)
    for item in items:
        if item.get_closest_marker("guests") is None:
            continue
        if not _has_guests(item.nodeid):
            raise pytest.UsageError(
                f"{item.nodeid} has a real guest: it belongs into a file below tests/guests."
            )
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(600))
        if os.geteuid() != 0:
            item.add_marker(pytest.mark.skip(reason))


@pytest.fixture(autouse=True, scope="session")
def virtual_time_passes() -> Iterator[None]:
    """Let a nanosecond of virtual time pass with every look at it, as real time does.

    Otherwise who waits for the last 1e-13 s of a sum of floats waits, and looks, for ever. Each loop counts its own
    looks: a test's time begins at zero, whatever ran before it.
    """
    look = LoopTimeEventLoop.time

    def time(loop: LoopTimeEventLoop) -> float:
        if not loop.looptime_on:
            return look(loop)
        # Asked for hundreds of thousands of times.
        of_the_loop = vars(loop)
        looks: int = of_the_loop.get("looks", 0)
        of_the_loop["looks"] = looks + 1
        return look(loop) + looks * 1e-9

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LoopTimeEventLoop, "time", time)
        yield


@pytest.fixture(autouse=True, scope="session")
def statements_are_compiled_once() -> Iterator[None]:
    """Have all the databases of a process share what SQLAlchemy made of a statement.

    A server has one database and compiles each statement once; nearly every test has a database of its own, and most
    of its time went into compiling. What is compiled is kept by dialect, so they share that too, once it has learned
    from a first connection what its server can do.
    """
    dialects: dict[str, sa.Dialect] = {}
    compiled: dict[Any, Any] = {}

    def share(made: sa.Engine) -> sa.Engine:
        made.update_execution_options(compiled_cache=compiled)
        first = dialects.get(made.name)
        if first is None or first.server_version_info is None:
            dialects[made.name] = made.dialect
        else:
            made.dialect = first
        return made

    def sqlite(url: sa.URL) -> sa.Engine:
        return share(make_sqlite(url))

    def postgres(url: sa.URL, *, connections: int) -> sa.Engine:
        return share(make_postgres(url, connections=connections))

    make_sqlite, make_postgres = engine.sqlite_engine, engine.postgres_engine
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "sqlite_engine", sqlite)
        patch.setattr(engine, "postgres_engine", postgres)
        yield


def _make_schema(url: sa.URL) -> None:
    """Make the schema the way a server does.

    On a thread of its own: the first test that needs it may be an asynchronous one, whose loop is running.
    """

    async def make() -> None:
        database = open_database(url.render_as_string(hide_password=False))
        assert await migrate(database)
        await database.close()

    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, make()).result()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[postgres.Postgres]:
    """Start PostgreSQL for the first test that needs it."""
    with postgres.running() as server:
        with server.template() as url:
            _make_schema(url)
        yield server


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make an SQLite file with the schema, to be copied."""
    path = tmp_path_factory.mktemp("template") / "template.db"
    _make_schema(sa.URL.create("sqlite", database=str(path)))
    return path


@pytest.fixture
def swift_folder() -> Iterator[Path]:
    """Give a folder that is as fast as can be."""
    path = Path(tempfile.mkdtemp(prefix="stateward-", dir=_MEMORY if _MEMORY.is_dir() else None))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def sqlite_url(sqlite_template: Path, swift_folder: Path) -> sa.URL:
    """Name a fresh SQLite file."""
    path = swift_folder / "stateward.db"
    shutil.copyfile(sqlite_template, path)
    return sa.URL.create("sqlite", database=str(path))


@pytest.fixture(params=["sqlite", "postgresql"])
def bare_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[sa.URL]:
    """Name a database without a schema, on SQLite and on PostgreSQL."""
    if request.param == "sqlite":
        yield sa.URL.create("sqlite", database=str(tmp_path / "bare.db"))
        return
    server: postgres.Postgres = request.getfixturevalue("postgres_server")
    with server.bare() as url:
        yield url


@pytest.fixture
def postgres_url(postgres_server: postgres.Postgres) -> Iterator[sa.URL]:
    """Name a fresh database of the PostgreSQL server."""
    with postgres_server.database() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> sa.URL:
    """Name a fresh database, on SQLite and on PostgreSQL."""
    url: sa.URL = request.getfixturevalue("sqlite_url" if request.param == "sqlite" else "postgres_url")
    return url


@pytest_asyncio.fixture
async def database(database_url: sa.URL) -> AsyncIterator[Database]:
    """Give an empty database with the whole schema, on SQLite and on PostgreSQL."""
    opened = (
        SqliteDatabase(database_url)
        if database_url.get_backend_name() == "sqlite"
        else PostgresDatabase(database_url, connections=4)
    )
    yield opened
    await opened.close()


@pytest_asyncio.fixture
async def inline_database(sqlite_url: sa.URL) -> AsyncIterator[Database]:
    """Give an empty SQLite database that uses no thread: for tests on virtual time."""
    opened = open_database(sqlite_url.render_as_string(hide_password=False), inline_commit=True)
    yield opened
    await opened.close()
