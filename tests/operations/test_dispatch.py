"""Dispatch: what was admitted reaches the bus, through kills and a database that is away."""

from __future__ import annotations

import asyncio

import pytest

from stateward.bus.memory import MemoryBus
from stateward.domain.bodies import ShutdownOptions
from stateward.domain.records import OperationState
from stateward.operations.dispatch import Dispatcher, repost
from stateward.store import operations
from stateward.store.engine import Database, StoreUnavailable
from tests.operations.desk import Away, Desk
from tests.rows import NOW


class Taken:
    """A bus that notes what it was given."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, str, bytes]] = []
        self.taken = asyncio.Event()
        self._bus = MemoryBus()
        self.ask = self._bus.ask
        self.answer = self._bus.answer
        self.subscribe = self._bus.subscribe
        self.close = self._bus.close

    async def publish(self, subject: str, payload: bytes, *, message_id: str) -> None:
        """Note it."""
        self.messages.append((subject, message_id, payload))
        self.taken.set()


async def test_the_outbox_is_emptied_in_order(desk: Desk) -> None:
    """In batches, oldest first; what has been sent is gone."""
    admitted = [(await desk.admit("stop", await desk.add())).operation.id for _ in range(5)]
    waiting = await desk.database.read(operations.posted)
    bus = Taken()
    dispatcher = Dispatcher(desk.database, bus)
    assert await dispatcher.drain() == 5
    assert [message_id for _, message_id, _ in bus.messages] == admitted
    assert bus.messages == [(subject, message_id, payload) for _, subject, message_id, payload in waiting]
    assert await dispatcher.drain() == 0
    assert await desk.outbox() == []


async def test_killed_between_sending_and_forgetting_it_sends_again(desk: Desk) -> None:
    """Twice rather than never; agents take that."""
    operation = (await desk.admit("stop", await desk.add())).operation
    bus, database = Taken(), Away(desk.database)
    dispatcher = Dispatcher(database, bus)
    database.away = True
    with pytest.raises(StoreUnavailable):
        await dispatcher.drain()
    database.away = False
    assert await dispatcher.drain() == 1
    assert [message_id for _, message_id, _ in bus.messages] == [operation.id] * 2
    assert bus.messages[0] == bus.messages[1]


async def test_what_a_dead_bus_had_taken_is_posted_again(desk: Desk) -> None:
    """The very same message, for each operation that is unfinished and not waiting anyway."""
    lost = await desk.admit("stop", await desk.add(), body=ShutdownOptions(timeout=7))
    bus = Taken()
    await Dispatcher(desk.database, bus).drain()
    waiting = await desk.admit("pause", await desk.add())
    ended = await desk.admit("pause", await desk.add())
    await desk.database.write(
        lambda connection: operations.finish(
            connection, ended.operation.id, OperationState.SUCCEEDED, NOW, None
        )
    )
    overtaken_id = await desk.add()
    overtaken = await desk.admit("stop", overtaken_id)
    newest = await desk.admit("delete", overtaken_id)
    await desk.database.write(
        lambda connection: operations.sent(
            connection,
            [
                number
                for number, _, message_id, _ in operations.posted(connection)
                if message_id != waiting.operation.id
            ],
        )
    )
    assert await desk.database.write(repost) == 2
    assert await desk.database.write(repost) == 0
    posted = {message_id for _, message_id, _ in await desk.outbox()}
    assert posted == {lost.operation.id, waiting.operation.id, newest.operation.id}
    assert overtaken.operation.id not in posted
    again = Taken()
    await Dispatcher(desk.database, again).drain()
    assert bus.messages[0] in again.messages


async def test_starting_posts_and_sends(desk: Desk) -> None:
    """What the last process left unfinished goes out without anybody asking."""
    operation = (await desk.admit("stop", await desk.add())).operation
    await Dispatcher(desk.database, Taken()).drain()
    bus = Taken()
    dispatcher = Dispatcher(desk.database, bus)
    await dispatcher.start()
    await bus.taken.wait()
    await dispatcher.stop()
    assert [message_id for _, message_id, _ in bus.messages] == [operation.id]


@pytest.mark.looptime
async def test_a_database_that_was_away_is_tried_again(inline_database: Database) -> None:
    """Every five seconds, though nobody wakes it."""
    desk = Desk(inline_database)
    bus, database = Taken(), Away(inline_database)
    dispatcher = Dispatcher(database, bus)
    await dispatcher.start()
    await asyncio.sleep(1)
    database.away = True
    await desk.admit("stop", await desk.add())
    dispatcher.wake()
    await asyncio.sleep(12)
    assert len(bus.messages) == 3
    assert len(await desk.outbox()) == 1
    database.away = False
    await asyncio.sleep(5)
    assert await desk.outbox() == []
    await dispatcher.stop()


@pytest.mark.looptime
async def test_a_signal_is_enough(inline_database: Database) -> None:
    """Nobody waits for the period."""
    desk = Desk(inline_database)
    bus = Taken()
    dispatcher = Dispatcher(inline_database, bus)
    await dispatcher.start()
    await asyncio.sleep(1)
    await desk.admit("stop", await desk.add())
    dispatcher.wake()
    await asyncio.sleep(0.01)
    assert len(bus.messages) == 1
    await dispatcher.stop()


async def test_a_fault_of_ours_does_not_end_it(desk: Desk) -> None:
    """What is admitted afterwards goes out too, and what could not."""
    operation = (await desk.admit("stop", await desk.add())).operation

    class Faulty(Taken):
        """Fails at first."""

        failed = False

        async def publish(self, subject: str, payload: bytes, *, message_id: str) -> None:
            if not self.failed:
                self.failed = True
                dispatcher.wake()
                raise RuntimeError
            await super().publish(subject, payload, message_id=message_id)

    bus = Faulty()
    dispatcher = Dispatcher(desk.database, bus)
    await dispatcher.start()
    async with asyncio.timeout(10):
        await bus.taken.wait()
    await dispatcher.stop()
    assert [message_id for _, message_id, _ in bus.messages] == [operation.id]
