"""Dispatch: what committed transactions left in the outbox goes onto the bus, oldest first.

A message leaves the outbox after the bus has taken it, so a kill in between sends it twice; agents take that.
"""

from __future__ import annotations

import asyncio
import contextlib

import sqlalchemy as sa
import structlog

from stateward.bus.port import Bus
from stateward.domain.actions import BY_KEY
from stateward.operations.admission import post_dispatch
from stateward.operations.control import order_message_id, post_order
from stateward.store import instances, operations
from stateward.store.engine import Database, StoreUnavailable

log = structlog.get_logger()

_BATCH = 200
#: Seconds until the outbox is looked at again without a signal: for a database that was away.
_PERIOD = 5.0


class Dispatcher:
    """Empties the outbox, woken by a signal and by a period."""

    def __init__(self, database: Database, bus: Bus) -> None:
        """Keep the ports."""
        self._database = database
        self._bus = bus
        self._signal = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def wake(self) -> None:
        """Look into the outbox now."""
        self._signal.set()

    async def start(self) -> None:
        """Post what a killed process left unfinished, then keep the outbox empty from now on."""
        await self._database.write(repost)
        self._signal.set()
        self._task = asyncio.create_task(self._run(), name="dispatcher")

    async def stop(self) -> None:
        """Stop; what is in the outbox stays there."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _run(self) -> None:
        while True:
            # Not wait_for: on Python 3.11 it loses a cancellation that comes together with the event.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_PERIOD):
                    await self._signal.wait()
            self._signal.clear()
            try:
                while await self.drain():
                    pass
            except StoreUnavailable as error:
                log.warning("the outbox cannot be read now; it is tried again", error=str(error))
            except Exception:
                # A fault of ours must not keep everything that is admitted from now on.
                log.exception("the outbox could not be emptied; it is tried again")

    async def drain(self) -> int:
        """Publish one batch; return how many messages it held."""
        batch = await self._database.read(lambda connection: operations.posted(connection, _BATCH))
        for _number, subject, message_id, payload in batch:
            await self._bus.publish(subject, payload, message_id=message_id)
        if batch:
            numbers = [number for number, *_rest in batch]
            await self._database.write(lambda connection: operations.sent(connection, numbers))
        return len(batch)


def repost(connection: sa.Connection) -> int:
    """Post the dispatch of every unfinished operation that is not in the outbox; return how many.

    A bus inside the process dies with it, so what it had taken is sent again, standing orders too. Agents know what
    they have done.
    """
    waiting = {message_id for _number, _subject, message_id, _payload in operations.posted(connection)}
    count = 0
    for operation in operations.unfinished(connection):
        instance = instances.get(connection, operation.instance_id)
        row = BY_KEY[operation.action]
        # A question was never dispatched (``asking``).
        if not row.is_operation:
            continue
        if order_message_id(operation) not in waiting:
            post_order(connection, operation)
        if operation.id in waiting or instance is None:
            continue
        post_dispatch(connection, row, operation, instance)
        count += 1
    return count
