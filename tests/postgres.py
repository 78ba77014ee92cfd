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
from typing import IO, Final

import psycopg
import sqlalchemy as sa

#: PostgreSQL refuses to run as root; Debian's package makes this user.
_UNPRIVILEGED: Final = "postgres"
#: The superuser inside the database, whoever runs it.
_USER: Final = "stateward"
_TEMPLATE: Final = "stateward_template"


class Postgres:
    """A running server; each test gets a database of its own, copied from one template."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._number = 0

    def url(self, name: str) -> sa.URL:
        """Return where SQLAlchemy finds a database."""
        return sa.URL.create(
            "postgresql+psycopg", username=_USER, database=name, query={"host": str(self._folder)}
        )

    def make_template(self, metadata: sa.MetaData) -> None:
        """Make the schema once; a copy of it takes a tenth of the time."""
        self._maintain(f"CREATE DATABASE {_TEMPLATE}")
        engine = sa.create_engine(self.url(_TEMPLATE))
        metadata.create_all(engine)
        engine.dispose()

    @contextlib.contextmanager
    def database(self) -> Generator[sa.URL]:
        """Give a fresh database with the whole schema; every connection to it must be closed at the end."""
        self._number += 1
        name = f"test_{self._number}"
        self._maintain(f"CREATE DATABASE {name} TEMPLATE {_TEMPLATE}")
        try:
            yield self.url(name)
        finally:
            self._maintain(f"DROP DATABASE {name}")

    def _maintain(self, statement: str) -> None:
        address = f"host={self._folder} user={_USER} dbname=postgres"
        with psycopg.connect(address, autocommit=True) as connection:
            connection.execute(statement.encode())


@contextlib.contextmanager
def running() -> Generator[Postgres]:
    """Start a server and stop it at the end."""
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
        settings = ["fsync=off", "full_page_writes=off", "synchronous_commit=off", "listen_addresses="]
        settings += ["shared_buffers=32MB", "autovacuum=off", "max_connections=60", "log_min_messages=log"]
        settings += [f"unix_socket_directories={folder}", "wal_level=minimal", "max_wal_senders=0"]
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
