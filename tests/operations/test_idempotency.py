"""Keys in the database: claimed and answered in one transaction, and forgotten after a day."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from stateward.domain.actions import BY_KEY
from stateward.domain.errors import Refused
from stateward.operations.admission import Admitted
from stateward.operations.idempotency import Keyed, OldKeys, Replayed
from stateward.store import idempotency
from stateward.store.idempotency import LIFETIME, Kept, KeyReused, Ticket
from tests.operations.desk import Desk
from tests.rows import actor

TICKET = Ticket(user_id="u", key="k", fingerprint="f")


def answer(admitted: Any) -> Kept:
    assert isinstance(admitted, Admitted)
    return Kept(status=202, headers={"operation": admitted.operation.id}, body=b"\x00\xff")


async def stop(desk: Desk, instance_id: str, ticket: Ticket = TICKET) -> Kept:
    """Stop under a key, and return the answer."""
    database = Keyed(desk.database, desk.clock, ticket, answer)
    try:
        admitted = await desk.admission.on(database).admit(BY_KEY["stop"], instance_id, actor())
    except Replayed as replayed:
        return replayed.kept
    return answer(admitted)


async def find(desk: Desk, ticket: Ticket = TICKET) -> Kept | None:
    return await desk.database.read(lambda connection: idempotency.find(connection, ticket, desk.clock.now()))


async def test_the_answer_is_kept_with_the_operation(desk: Desk) -> None:
    """Byte for byte, and nothing is admitted for the second request."""
    instance_id = await desk.add()
    first = await stop(desk, instance_id)
    assert await find(desk) == first
    assert await stop(desk, instance_id) == first
    assert [each.id for each in await desk.operations(instance_id)] == [first.headers["operation"]]
    assert desk.wakes == 1


async def test_what_is_refused_leaves_no_key(desk: Desk) -> None:
    """The claim is undone with the work."""
    instance_id = await desk.add(vm_state="stopped")
    with pytest.raises(Refused):
        await stop(desk, instance_id)
    assert await find(desk) is None


async def test_an_answer_that_cannot_be_made_undoes_the_operation(desk: Desk) -> None:
    """Neither half of the transaction is ever there without the other."""
    instance_id = await desk.add()

    def broken(_admitted: Any) -> Kept:
        raise ZeroDivisionError

    database = Keyed(desk.database, desk.clock, TICKET, broken)
    with pytest.raises(ZeroDivisionError):
        await desk.admission.on(database).admit(BY_KEY["stop"], instance_id, actor())
    assert await find(desk) is None
    assert await desk.operations(instance_id) == []
    assert (await desk.row(instance_id)).task_state is None


async def test_another_request_with_the_key(desk: Desk) -> None:
    """It is told so, before and inside its transaction."""
    instance_id = await desk.add()
    await stop(desk, instance_id)
    other = Ticket(user_id="u", key="k", fingerprint="g")
    with pytest.raises(KeyReused):
        await find(desk, other)
    with pytest.raises(KeyReused):
        await stop(desk, instance_id, other)


async def test_a_key_speaks_for_one_write(desk: Desk) -> None:
    """Two transactions cannot be kept together by it."""
    instance_id = await desk.add()
    database = Keyed(desk.database, desk.clock, TICKET, answer)
    await desk.admission.on(database).admit(BY_KEY["stop"], instance_id, actor())
    with pytest.raises(RuntimeError, match="writes once"):
        await desk.admission.on(database).admit(BY_KEY["delete"], instance_id, actor())


async def test_a_key_is_kept_for_a_day(desk: Desk) -> None:
    """Then it is free again, whether it was purged or not."""
    instance_id = await desk.add()
    began = desk.clock.at
    first = await stop(desk, instance_id)
    desk.clock.at = began + LIFETIME - 1
    assert await find(desk) == first
    assert await desk.database.write(lambda connection: idempotency.purge(connection, desk.clock.at)) == 0
    desk.clock.at = began + LIFETIME
    assert await find(desk) is None
    with pytest.raises(Refused):
        # It is not replayed but tried: the instance is being stopped.
        await stop(desk, instance_id)
    assert await desk.database.write(lambda connection: idempotency.purge(connection, desk.clock.at)) == 1


async def test_old_keys_are_forgotten_by_a_server(desk: Desk) -> None:
    """What ended while it was down goes at its start."""
    await stop(desk, await desk.add())
    desk.clock.at += LIFETIME
    keys = OldKeys(desk.database, desk.clock)
    await keys.start()
    async with asyncio.timeout(10):
        while True:
            left = await desk.database.read(
                lambda connection: connection.execute(idempotency.IDEMPOTENCY_KEYS.select()).all()
            )
            if not left:
                break
            await asyncio.sleep(0.005)
    await keys.stop()
