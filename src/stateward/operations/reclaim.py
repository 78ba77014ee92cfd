"""Reclaiming: what was deleted and could be restored is removed when its time has passed.

It goes the way of everybody's requests: the row ``reclaim`` is guarded like ``delete``, so a lock or a hold keeps
the instance, and one that was restored meanwhile is not touched (R1, R6).
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid

import sqlalchemy as sa
import structlog

from stateward.domain.actions import BY_KEY
from stateward.domain.errors import Refused
from stateward.domain.states import VmState
from stateward.operations.admission import Admission
from stateward.operations.immediate import system_actor
from stateward.store import instances
from stateward.store.engine import StoreUnavailable

log = structlog.get_logger()

#: Seconds between two looks at most; and a share of the interval where that is short.
_LONGEST_PAUSE = 60.0
_LOOKS_PER_INTERVAL = 10


class Reclaimer:
    """Removes instances that have been deleted for ``interval`` seconds; 0 keeps it from running."""

    def __init__(self, admission: Admission, interval: float) -> None:
        """Use an admission's database and clock."""
        self._admission = admission
        self._interval = interval
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Look from now on."""
        if self._interval > 0:
            self._task = asyncio.create_task(self._run(), name="reclaimer")

    async def stop(self) -> None:
        """Stop; what was admitted goes on."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def reclaim(self) -> list[str]:
        """Admit the removal of every instance whose time has passed, and return their ids.

        Raises:
            StoreUnavailable: the database cannot be used.
        """
        before = self._admission.clock.now() - self._interval

        def due(connection: sa.Connection) -> list[tuple[str, int]]:
            return instances.ended_before(connection, VmState.SOFT_DELETED, before)

        reclaimed: list[str] = []
        for instance_id, fence in await self._admission.database.read(due):
            actor = system_actor(f"req-{uuid.uuid4()}")
            try:
                await self._admission.admit(
                    BY_KEY["reclaim"],
                    instance_id,
                    actor,
                    fence=fence,
                    why="Its time to be restored has passed.",
                )
            except Refused as refused:
                log.info("a deleted instance is kept", instance=instance_id, why=str(refused))
            except StoreUnavailable:
                raise
            except Exception:
                # One instance's fault must not keep everything that was ever deleted.
                log.exception("a deleted instance could not be reclaimed", instance=instance_id)
            else:
                reclaimed.append(instance_id)
        return reclaimed

    async def _run(self) -> None:
        pause = min(self._interval / _LOOKS_PER_INTERVAL, _LONGEST_PAUSE)
        while True:
            try:
                await self.reclaim()
            except StoreUnavailable as error:
                log.warning("deleted instances cannot be reclaimed now", error=str(error))
            except Exception:
                log.exception("reclaiming failed; it is tried again")
            await asyncio.sleep(pause)
