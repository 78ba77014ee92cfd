"""Progress: what agents say of the operations they work on is kept, only forwards (B4)."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from stateward.bus.port import PROGRESS, Bus
from stateward.domain.records import ProgressReport
from stateward.store import operations
from stateward.store.engine import Database

_decoder = msgspec.json.Decoder(ProgressReport)


async def keep_progress(bus: Bus, database: Database, moved: Callable[[str], None]) -> None:
    """Keep every report that is news from now on; ``moved`` is called with the operation's id after each."""

    async def handle(payload: bytes) -> None:
        report = _decoder.decode(payload)
        if await database.write(lambda connection: operations.note_progress(connection, report)):
            moved(report.operation_id)

    await bus.subscribe(PROGRESS, handle)
