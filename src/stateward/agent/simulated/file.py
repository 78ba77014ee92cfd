"""Where a simulated hypervisor's guests are kept, so that they outlive every process.

An SQLite database in a folder, because several processes act on the same guests: the server, the one that
takes its place after ``kill -9``, and whoever acts behind their back. What was committed is there after the
death of any process. Nothing is flushed for a death of the machine, which ends a simulation anyway.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Generator
from pathlib import Path
from typing import Final

import msgspec

from stateward.agent.simulated.guests import SimulatedGuest

NAME: Final = "guests.sqlite"

#: Seconds to wait for another process, which holds the file for well under a millisecond.
_PATIENCE: Final = 10.0

#: A guest that is gone keeps its row, without a body, so that other processes learn that it is gone.
_SCHEMA: Final = """
PRAGMA journal_mode = WAL;
PRAGMA synchronous = OFF;
CREATE TABLE IF NOT EXISTS guests (id TEXT PRIMARY KEY, seq INTEGER NOT NULL, body BLOB) WITHOUT ROWID;
CREATE UNIQUE INDEX IF NOT EXISTS guests_by_seq ON guests (seq);
CREATE TABLE IF NOT EXISTS host (one INTEGER PRIMARY KEY CHECK (one = 1), away INTEGER NOT NULL);
INSERT OR IGNORE INTO host VALUES (1, 0);
CREATE TABLE IF NOT EXISTS boot (one INTEGER PRIMARY KEY CHECK (one = 1), id TEXT NOT NULL);
INSERT OR IGNORE INTO boot VALUES (1, lower(hex(randomblob(16))));
"""


class GuestFile:
    """The guests of one folder.

    ``away`` says whether the hypervisor is switched away, and ``boot_id`` names the boot of the machine.
    """

    def __init__(self, folder: Path) -> None:
        """Open the folder's database, making both where they are not there."""
        folder.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(
            folder / NAME, timeout=_PATIENCE, isolation_level=None, check_same_thread=False
        )
        self._db.executescript(_SCHEMA)
        self._decoder = msgspec.json.Decoder(SimulatedGuest)
        self._version: int | None = None
        self._seen = 0
        self.away = False
        self.boot_id = ""

    def close(self) -> None:
        """Let the file go."""
        self._db.close()

    @contextlib.contextmanager
    def alone(self) -> Generator[None]:
        """Keep every other process from writing; what is written meanwhile counts only without an error."""
        self._db.execute("BEGIN IMMEDIATE")
        seen = self._seen
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            self._seen = seen
            raise
        self._db.execute("COMMIT")

    def news(self) -> list[SimulatedGuest]:
        """Return the guests that other processes wrote since this was last asked, all of them at first.

        One that is gone comes as a blank guest. ``away`` and ``boot_id`` are up to date after.
        """
        version = self._db.execute("PRAGMA data_version").fetchone()[0]
        if version == self._version:
            return []
        self._version = version
        self.away = bool(self._db.execute("SELECT away FROM host").fetchone()[0])
        self.boot_id = self._db.execute("SELECT id FROM boot").fetchone()[0]
        rows = self._db.execute(
            "SELECT id, seq, body FROM guests WHERE seq > ? ORDER BY seq", (self._seen,)
        ).fetchall()
        if rows:
            self._seen = rows[-1][1]
        return [
            SimulatedGuest(id=id_) if body is None else self._decoder.decode(body) for id_, _, body in rows
        ]

    def write(self, guest: SimulatedGuest) -> None:
        """Keep a guest as it is now; to be called ``alone`` and with no news unread."""
        self._seen += 1
        self._db.execute(
            "INSERT INTO guests VALUES (?, ?, ?)"
            " ON CONFLICT (id) DO UPDATE SET seq = excluded.seq, body = excluded.body",
            (guest.id, self._seen, None if guest.blank else msgspec.json.encode(guest)),
        )

    def write_away(self, *, away: bool) -> None:
        """Keep whether the hypervisor is switched away."""
        self._db.execute("UPDATE host SET away = ?", (away,))
        self.away = away

    def write_boot(self, boot_id: str) -> None:
        """Keep the boot that the machine is in."""
        self._db.execute("UPDATE boot SET id = ?", (boot_id,))
        self.boot_id = boot_id
