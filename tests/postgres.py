"""A PostgreSQL of the tests' own: started from Debian's package, gone when the tests are.

It keeps nothing safe (``fsync=off``), listens on a socket in its own folder only, and dies with the process that
started it, however that ends.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Generator
from pathlib import Path
from typing import IO, Any, Final

import psycopg
import sqlalchemy as sa

#: PostgreSQL refuses to run as root; Debian's package makes this user.
_UNPRIVILEGED: Final = "postgres"
#: The superuser inside the database, whoever runs it.
_USER: Final = "stateward"
_TEMPLATE: Final = "stateward_template"


def waiting(connection: sa.Connection) -> bool:
    """Whether somebody waits for a lock of this database."""
    statement = sa.text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    return int(connection.execute(statement).scalar_one()) > 0


class Postgres:
    """A running server; each test gets a database of its own, fresh or emptied."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._number = 0
        #: Emptied ones: that takes a tenth of the time that copying the template takes.
        self._clean: list[str] = []
        self._tables: frozenset[str] = frozenset()

    def url(self, name: str) -> sa.URL:
        """Return where SQLAlchemy finds a database."""
        return sa.URL.create(
            "postgresql+psycopg", username=_USER, database=name, query={"host": str(self._folder)}
        )

    @contextlib.contextmanager
    def template(self) -> Generator[sa.URL]:
        """Give the database, still empty, that all others are copies of, to make the schema in."""
        self._run("postgres", f"CREATE DATABASE {_TEMPLATE}")
        yield self.url(_TEMPLATE)
        self._tables = self._found(_TEMPLATE)

    @contextlib.contextmanager
    def bare(self) -> Generator[sa.URL]:
        """Give a database without anything; every connection to it must be closed at the end."""
        name = self._make("template0")
        try:
            yield self.url(name)
        finally:
            self._run("postgres", f"DROP DATABASE {name}")

    @contextlib.contextmanager
    def database(self) -> Generator[sa.URL]:
        """Give an empty database with the whole schema; every connection to it must be closed at the end."""
        name = self._clean.pop() if self._clean else self._make(_TEMPLATE)
        try:
            yield self.url(name)
        except BaseException:
            self._run("postgres", f"DROP DATABASE {name} WITH (FORCE)")
            raise
        if self._found(name) == self._tables:
            self._empty(name)
            self._clean.append(name)
        else:
            self._run("postgres", f"DROP DATABASE {name}")

    def _make(self, template: str) -> str:
        self._number += 1
        name = f"test_{self._number}"
        self._run("postgres", f"CREATE DATABASE {name} TEMPLATE {template}")
        return name

    def _empty(self, name: str) -> None:
        """Delete every row but the schema's version, and count from one again."""
        tables = sorted(self._tables - {"alembic_version", "audit_head"})
        full = " UNION ALL ".join(f"SELECT '{table}' WHERE EXISTS (TABLE {table})" for table in tables)
        filled = [str(row[0]) for row in self._run(name, full)]
        if filled:
            # The triggers that keep the audit trail are for everybody else.
            self._run(
                name,
                f"SET session_replication_role = replica; TRUNCATE {', '.join(filled)} CASCADE;"
                "UPDATE audit_head SET number = 0, hash = repeat('0', 64)",
            )
        self._run(name, "SELECT setval(oid, 1, false) FROM pg_class WHERE relkind = 'S'")

    def _found(self, name: str) -> frozenset[str]:
        rows = self._run(name, "SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        return frozenset(str(row[0]) for row in rows)

    def _run(self, name: str, statement: str) -> list[tuple[Any, ...]]:
        address = f"host={self._folder} user={_USER} dbname={name}"
        with psycopg.connect(address, autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []


@contextlib.contextmanager
def running(*, durable: bool = False) -> Generator[Postgres]:
    """Start a server and stop it at the end.

    Args:
        durable: with PostgreSQL's own settings instead, by which a commit is on the disk: to be measured.
    """
    programs = _programs()
    # Not under pytest's own temporary folder, which other users cannot enter; and a socket's path must be short.
    folder = Path(tempfile.mkdtemp(prefix="stateward-pg-"))
    try:
        become = ["setpriv", "--pdeathsig", "KILL"]
        if os.geteuid() == 0:
            user = pwd.getpwnam(_UNPRIVILEGED)
            os.chown(folder, user.pw_uid, user.pw_gid)
            become += ["--reuid", str(user.pw_uid), "--regid", str(user.pw_gid), "--clear-groups"]
        data = folder / "data"
        subprocess.run(
            [
                *[*become, str(programs / "initdb"), f"--pgdata={data}", f"--username={_USER}"],
                *["--auth=trust", "--no-sync", "--encoding=UTF8", "--locale=C.UTF-8"],
            ],
            check=True,
            stdout=subprocess.DEVNULL,
            cwd="/",
        )
        settings = [f"unix_socket_directories={folder}", "listen_addresses=", "log_min_messages=log"]
        if not durable:
            settings += ["fsync=off", "full_page_writes=off", "synchronous_commit=off", "shared_buffers=32MB"]
            settings += ["autovacuum=off", "max_connections=60", "wal_level=minimal", "max_wal_senders=0"]
        with subprocess.Popen(
            [
                *[*become, str(programs / "postgres"), "-D", str(data)],
                *[word for setting in settings for word in ("-c", setting)],
            ],
            stderr=subprocess.PIPE,
            text=True,
            cwd="/",
        ) as server:
            try:
                _await_ready(server)
                yield Postgres(folder)
            finally:
                server.send_signal(signal.SIGQUIT)  # a test that failed may have left a connection
                server.wait()
    finally:
        shutil.rmtree(folder)


def _programs() -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    if not found:
        raise RuntimeError("PostgreSQL is not installed: `make dev` installs what the tests need.")
    return found[-1]


def _await_ready(server: subprocess.Popen[str]) -> None:
    """Read its log until it serves, and then on, or a full pipe would one day halt it."""
    assert server.stderr is not None
    said: list[str] = []
    for line in server.stderr:
        said.append(line)
        if "ready to accept connections" in line:
            threading.Thread(target=_drain, args=(server.stderr,), daemon=True).start()
            return
    raise RuntimeError(f"PostgreSQL did not start: {''.join(said)}")


def _drain(log: IO[str]) -> None:
    with contextlib.suppress(ValueError):  # closed under us at the end
        for _line in log:
            pass
