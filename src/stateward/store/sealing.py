"""Sealing on PostgreSQL: records that were committed are chained to the trail in batches, a moment later (B7).

A record that is chained in its own transaction holds the chain's head until that is on the disk, and every other
writer waits. So an admission only inserts its record, into a table whose content the database refuses to change, and
one sealer takes what is there, in the order of arrival, gives it its numbers and hashes and moves it into the trail,
many in one commit. Only sealers wait for the head: those of several servers on one database take turns.

Whatever happens to a sealer, an unsealed record is still there, and the next one takes it. A transaction that inserted
earlier and committed later than another is sealed after it: the order of the chain is that of sealing. Of two
transactions one after the other, the first one's records always come first.
"""

from __future__ import annotations

import threading
from typing import Any, Final

import msgspec
import sqlalchemy as sa
import structlog
from sqlalchemy.exc import DBAPIError, IntegrityError

from stateward.domain.audit import Entry, Head
from stateward.store.audit import SAID, TrailBroken, ahead, chained

log = structlog.get_logger()

#: Seconds between two rounds of a sealer at least, so that many records share one: for about so long at most somebody
#: who may drop triggers could change a record without a trace.
_PAUSE: Final = 0.2
#: Seconds until it looks again without being woken: for what another server left, and a database that was away.
_PERIOD: Final = 5.0
#: Records in one commit at most.
_BATCH: Final = 1000

_SAID: Final = ", ".join(SAID)
_ANY: Final = "SELECT EXISTS (SELECT FROM audit_unsealed)"
_HEAD: Final = "SELECT number, hash FROM audit_head FOR UPDATE"
_OLDEST: Final = f"SELECT arrival, {_SAID} FROM audit_unsealed ORDER BY arrival LIMIT %(limit)s"  # noqa: S608 (constants)
#: What is said stays in the database; only numbers and hashes go there.
_MOVE: Final = (
    "WITH taken AS (DELETE FROM audit_unsealed WHERE arrival = ANY (%(arrivals)s::bigint[]) RETURNING *), "  # noqa: S608 (constants)
    "moved AS (UPDATE audit_head SET number = %(number)s, hash = %(hash)s) "
    f"INSERT INTO audit (number, {_SAID}, hash) SELECT seal.number, {_SAID}, seal.hash FROM taken JOIN "
    "unnest(%(arrivals)s::bigint[], %(numbers)s::bigint[], %(hashes)s::text[]) "
    "AS seal (arrival, number, hash) USING (arrival)"
)


def seal(connection: sa.Connection) -> None:
    """Seal every record that was committed before, in transactions of its own.

    Raises:
        TrailBroken: the trail's end is not what its head says.
    """
    # A look first: to take the head is to write.
    if connection.exec_driver_sql(_ANY).scalar_one():
        while _seal_batch(connection) == _BATCH:
            pass


def _seal_batch(connection: sa.Connection) -> int:
    # Whoever holds the head seals too; what is read after it was taken has nothing of theirs.
    row = connection.exec_driver_sql(_HEAD).one_or_none()
    unsealed = connection.exec_driver_sql(_OLDEST, {"limit": _BATCH}).all()
    if unsealed:
        heads = chained(
            None if row is None else Head(row.number, row.hash), [_entry(each) for each in unsealed]
        )
        last = heads[-1]
        given = {
            "arrivals": [each.arrival for each in unsealed],
            "numbers": [head.number for head in heads],
            "hashes": [head.hash for head in heads],
            "number": last.number,
            "hash": last.hash,
        }
        try:
            connection.exec_driver_sql(_MOVE, given)
        except IntegrityError as error:
            raise ahead(error.orig) from error
    connection.commit()
    return len(unsealed)


def _entry(row: sa.Row[Any]) -> Entry:
    _arrival, *facts, detail = tuple(row)
    fields: dict[str, Any] = dict(zip(SAID, (*facts, msgspec.Raw(detail.encode())), strict=True))
    return Entry(**fields)


class Sealer:
    """Seals what one server records, and what others left, on a thread of its own."""

    def __init__(self, engine: sa.Engine) -> None:
        """Take an engine; it is used from the first write on."""
        self._engine = engine
        self._wakes = threading.Event()
        self._closes = threading.Event()
        #: Why nothing can be sealed, and so nothing be recorded.
        self._trouble: TrailBroken | None = None
        self._woken = False
        self._thread = threading.Thread(target=self._run, name="audit sealer", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Do nothing while records can be sealed.

        Raises:
            TrailBroken: they cannot.
        """
        if self._trouble is not None:
            # A new one each time: an exception keeps where it was raised.
            raise TrailBroken(str(self._trouble))

    def wake(self, *, recorded: bool) -> None:
        """Seal, now that something was committed; at the first time also what a killed process left."""
        if recorded or not self._woken:
            self._woken = True
            self._wakes.set()

    def seal(self) -> None:
        """Seal every record that was committed before.

        Raises:
            TrailBroken: the trail's end is not what its head says.
            DBAPIError: the database cannot be reached.
        """
        with self._engine.connect() as connection:
            try:
                seal(connection)
            except TrailBroken as error:
                self._trouble = error
                raise
        self._trouble = None

    def close(self) -> None:
        """Seal what is there, if that can be done, and stop."""
        self._closes.set()
        self._wakes.set()
        self._thread.join()

    def _run(self) -> None:
        closes = False
        while not closes:
            self._wakes.wait(_PERIOD if self._woken else None)
            self._wakes.clear()
            # Looked at after the flag was cleared: who closes sets it before.
            closes = self._closes.is_set()
            if self._woken:
                try:
                    self.seal()
                except DBAPIError as error:
                    log.warning("audit records cannot be sealed now; it is tried again", error=str(error))
                except TrailBroken as error:
                    log.error("audit records cannot be sealed: see stateward audit verify", error=str(error))  # noqa: TRY400 (its traceback says no more)
                except Exception:
                    # Nobody else would ever seal what this server records.
                    log.exception("audit records could not be sealed; it is tried again")
            self._closes.wait(_PAUSE)
