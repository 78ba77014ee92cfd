"""The agent's journal: what it has begun and finished, and what it was told, kept where a killed agent finds it again.

One row per instance, of the operation with the highest fence seen: older ones may never act again, so nothing of
them is needed. SQLite in WAL mode with ``synchronous=NORMAL``: that survives the death of the process. After a
power loss what was written in the last half minute can be missing; then steps are repeated, which steps allow while
nobody was told that they are done, and the fence is still in the guest's own metadata. So a result, and all before it,
is on the disk before it is sent.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

import msgspec

from stateward.domain.records import Dispatch, Order, Result
from stateward.domain.shutdown import Ending, Rung
from stateward.domain.steps import Step

_SCHEMA = """
CREATE TABLE IF NOT EXISTS work (
    instance_id TEXT PRIMARY KEY,
    fence INTEGER NOT NULL,
    operation_id TEXT NOT NULL,
    dispatch TEXT NOT NULL,
    done TEXT NOT NULL,
    signalled_at REAL,
    rung TEXT,
    ending TEXT,
    note TEXT,
    result TEXT,
    at REAL NOT NULL,
    sent INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE IF NOT EXISTS orders (
    operation_id TEXT PRIMARY KEY,
    number INTEGER NOT NULL,
    command TEXT NOT NULL,
    at REAL NOT NULL
);
CREATE TABLE IF NOT EXISTS leftovers (image_id TEXT PRIMARY KEY, instance_id TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS epochs (epoch INTEGER NOT NULL);
"""

#: Bits of a number that count within one life of the agent.
_COUNTER_BITS = 28

#: A commit is on the disk, with all before it; or in the system's memory, where it outlives the process.
_ON_DISK, _IN_MEMORY = "FULL", "NORMAL"

#: Seconds a result is kept: as long as a control plane that was restored from a backup may ask for it again.
_KEEP_SECONDS = 7 * 24 * 3600


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """What the journal knows of an instance."""

    dispatch: Dispatch
    done: frozenset[Step]
    #: When the guest was first asked to shut down in this operation: seconds since the epoch.
    signalled_at: float | None
    #: How it was asked last.
    rung: Rung | None
    #: How its shutdown ended, and that for people.
    ending: Ending | None
    note: str | None
    result: Result | None


_ENTRY = "SELECT dispatch, done, signalled_at, rung, ending, note, result FROM work"


class Journal:
    """The journal in a file, or in memory when ``path`` is None (tests)."""

    def __init__(self, path: Path | None, now: float) -> None:
        """Open it, and begin a new epoch of observation sequence numbers."""
        self._database = sqlite3.connect(":memory:" if path is None else path, isolation_level=None)
        self._database.execute("PRAGMA journal_mode=WAL")
        self._database.execute(f"PRAGMA synchronous={_IN_MEMORY}")
        self._database.executescript(_SCHEMA)
        self._database.execute("DELETE FROM work WHERE result IS NOT NULL AND at < ?", (now - _KEEP_SECONDS,))
        self._database.execute("DELETE FROM orders WHERE at < ?", (now - _KEEP_SECONDS,))
        last = self._database.execute("SELECT max(epoch) FROM epochs").fetchone()[0]
        # A lost journal must not begin at zero, or its observations would all seem old.
        self._epoch = max(int(now), (last or 0) + 1)
        self._database.execute("DELETE FROM epochs")
        self._database.execute("INSERT INTO epochs VALUES (?)", (self._epoch,))
        self._counter = 0

    def next_seq(self) -> int:
        """Return a number larger than all before it, those of earlier lives of this agent included."""
        self._counter += 1
        return (self._epoch << _COUNTER_BITS) + self._counter

    def pass_seq(self, above: int) -> None:
        """Have the next number be larger than one that the control plane knows.

        It is, unless the journal was lost and the machine's clock set back.
        """
        if above < (self._epoch << _COUNTER_BITS) + self._counter + 1:
            return
        epoch = (above >> _COUNTER_BITS) + 1
        # First, or what fails here would not be written by the next attempt either.
        self._database.execute("UPDATE epochs SET epoch = ?", (epoch,))
        self._epoch, self._counter = epoch, 0

    def accept(self, dispatch: Dispatch, now: float) -> bool:
        """Take an operation on, in the stead of any with a lower fence; False when it is not newer.

        A copy of the disk that the older one was making has nobody any more who would hand it over.
        """
        self._database.execute(
            "INSERT OR IGNORE INTO leftovers (image_id, instance_id)"
            " SELECT dispatch ->> '$.snapshot', instance_id FROM work WHERE instance_id = ? AND fence < ?"
            " AND result IS NULL AND dispatch ->> '$.snapshot' IS NOT NULL",
            (dispatch.instance_id, dispatch.fence),
        )
        cursor = self._database.execute(
            "INSERT INTO work (instance_id, fence, operation_id, dispatch, done, signalled_at, result, at)"
            " VALUES (?, ?, ?, ?, '[]', NULL, NULL, ?) ON CONFLICT (instance_id) DO UPDATE SET"
            " fence = excluded.fence, operation_id = excluded.operation_id, dispatch = excluded.dispatch,"
            " done = '[]', signalled_at = NULL, rung = NULL, ending = NULL, note = NULL,"
            " result = NULL, at = excluded.at, sent = 0"
            " WHERE work.fence < excluded.fence",
            (
                dispatch.instance_id,
                dispatch.fence,
                dispatch.operation_id,
                msgspec.json.encode(dispatch).decode(),
                now,
            ),
        )
        return cursor.rowcount == 1

    def leftovers(self, dispatch: Dispatch) -> list[str]:
        """Return the copies, by their images, that operations before this one may have left of its instance."""
        rows = self._database.execute(
            "SELECT image_id FROM leftovers WHERE instance_id = ? AND image_id IS NOT ?",
            (dispatch.instance_id, dispatch.snapshot),
        )
        return [row[0] for row in rows]

    def discarded(self, image_id: str) -> None:
        """Note that a copy is gone."""
        self._database.execute("DELETE FROM leftovers WHERE image_id = ?", (image_id,))

    def entry(self, instance_id: str) -> Entry | None:
        """Return what is known of an instance."""
        row = self._database.execute(f"{_ENTRY} WHERE instance_id = ?", (instance_id,)).fetchone()
        return None if row is None else _entry(row)

    def fence(self, instance_id: str) -> int:
        """Return the highest fence that came for an instance, 0 when none did."""
        row = self._database.execute(
            "SELECT fence FROM work WHERE instance_id = ?", (instance_id,)
        ).fetchone()
        return 0 if row is None else int(row[0])

    def unfinished(self) -> list[Entry]:
        """Return the operations without a result."""
        rows = self._database.execute(f"{_ENTRY} WHERE result IS NULL ORDER BY at")
        return [_entry(row) for row in rows]

    def finished_step(self, operation_id: str, step: Step, done: frozenset[Step]) -> None:
        """Note that a step is done; ``done`` are those before it."""
        self._database.execute(
            "UPDATE work SET done = ? WHERE operation_id = ?",
            (msgspec.json.encode(sorted(done | {step})).decode(), operation_id),
        )

    def undone(self, operation_id: str, done: frozenset[Step]) -> None:
        """Note that only these steps are done, because what came after them is being taken back."""
        self._database.execute(
            "UPDATE work SET done = ? WHERE operation_id = ?",
            (msgspec.json.encode(sorted(done)).decode(), operation_id),
        )

    def signalled(self, operation_id: str, at: float) -> None:
        """Note that the guest is about to be asked to shut down; written before it is asked."""
        self._database.execute(
            "UPDATE work SET signalled_at = ? WHERE operation_id = ? AND signalled_at IS NULL",
            (at, operation_id),
        )

    def asked(self, operation_id: str, rung: Rung) -> None:
        """Note how the guest was asked."""
        self._database.execute("UPDATE work SET rung = ? WHERE operation_id = ?", (rung.value, operation_id))

    def ended(self, operation_id: str, ending: Ending, note: str) -> None:
        """Note how the guest's shutdown ended; written before the step counts as done."""
        self._database.execute(
            "UPDATE work SET ending = ?, note = ? WHERE operation_id = ?", (ending.value, note, operation_id)
        )

    def ordered(self, order: Order, now: float) -> bool:
        """Keep an order, whether its operation is here yet or not; False when a later one is kept already."""
        cursor = self._database.execute(
            "INSERT INTO orders (operation_id, number, command, at) VALUES (?, ?, ?, ?)"
            " ON CONFLICT (operation_id) DO UPDATE SET number = excluded.number, command = excluded.command,"
            " at = excluded.at WHERE orders.number < excluded.number",
            (order.operation_id, order.number, msgspec.json.encode(order).decode(), now),
        )
        return cursor.rowcount == 1

    def order(self, operation_id: str) -> Order | None:
        """Return the order that stands for an operation."""
        row = self._database.execute(
            "SELECT command FROM orders WHERE operation_id = ?", (operation_id,)
        ).fetchone()
        return None if row is None else msgspec.json.decode(row[0], type=Order)

    def finished(self, result: Result) -> None:
        """Keep the result, to be sent again if it is asked for again; it is on the disk when this returns.

        Or a power loss could have what was sent done again: a rebuild would remove what the guest has written since.
        """
        self._database.execute(f"PRAGMA synchronous={_ON_DISK}")
        try:
            self._database.execute(
                "UPDATE work SET result = ? WHERE operation_id = ?",
                (msgspec.json.encode(result).decode(), result.operation_id),
            )
        finally:
            self._database.execute(f"PRAGMA synchronous={_IN_MEMORY}")

    def sent(self, operation_id: str) -> None:
        """Note that the bus has taken the result."""
        self._database.execute("UPDATE work SET sent = 1 WHERE operation_id = ?", (operation_id,))

    def unsent(self) -> list[Result]:
        """Return the results that the bus may not have taken: nobody would ask for them again."""
        rows = self._database.execute("SELECT result FROM work WHERE result IS NOT NULL AND NOT sent")
        return [msgspec.json.decode(row[0], type=Result) for row in rows]

    def close(self) -> None:
        """Close the file."""
        self._database.close()


def _entry(
    row: tuple[str, str, float | None, str | None, str | None, str | None, str | None],
) -> Entry:
    dispatch, done, signalled_at, rung, ending, note, result = row
    return Entry(
        dispatch=msgspec.json.decode(dispatch, type=Dispatch),
        done=msgspec.json.decode(done, type=frozenset[Step]),
        signalled_at=signalled_at,
        rung=None if rung is None else Rung(rung),
        ending=None if ending is None else Ending(ending),
        note=note,
        result=None if result is None else msgspec.json.decode(result, type=Result),
    )
