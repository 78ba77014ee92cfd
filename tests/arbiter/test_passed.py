"""A verdict is written only where what it was found by is still so, also where nothing was admitted since (B1, R6)."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, Final

import pytest
import sqlalchemy as sa

from stateward.domain.locks import ALL_CLASSES
from stateward.domain.records import OperationState
from stateward.store import operations
from stateward.store.engine import Database
from stateward.store.tables import INSTANCES
from tests.arbiter.test_reports import Overtaking, add, make_arbiter, row_of
from tests.arbiter.test_strays import made

ALL: Final = int(ALL_CLASSES)
HELD: Final = {"hold_blocks": ALL, "locked_by": "admin"}
HELD_OFF: Final = {"observed": "running", "kept_off": True, **HELD}
WENT_OFF: Final = {"observed": "shutoff", "cause": "guest"}
DESTROYED: Final = {"observed": "shutoff", "cause": "destroyed"}

#: How an instance is recorded and seen, and what is written of it between the look and the write.
PASSED: Final[Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]]] = {
    "a hold was released, by which it would be recorded as suspended": (
        {"observed": "suspended", **HELD},
        {"hold_blocks": 0, "locked_by": None},
    ),
    "a hold was released, by which its power would be taken": (
        HELD_OFF,
        {"hold_blocks": 0, "kept_off": False, "locked_by": None},
    ),
    "the glass was broken to let it run": (HELD_OFF, {"kept_off": False}),
    "it is held, and would be started": (DESTROYED, HELD),
    "its owner locked it": (WENT_OFF, {"owner_blocks": ALL, "locked_by": "owner"}),
    "the provider locked it": (WENT_OFF, {"admin_blocks": ALL, "locked_by": "admin"}),
    "it is in error": (WENT_OFF, {"vm_state": "error"}),
    "it is seen otherwise, and would be adopted": (WENT_OFF, {"observed_seq": 7}),
    "it is seen otherwise, and would be brought back": (DESTROYED, {"observed_seq": 7}),
    "it is seen otherwise, and would be told": (
        {"observed": "paused", "cause": "io-error"},
        {"observed_seq": 7},
    ),
}


async def trace(database: Database) -> list[tuple[object, int]]:
    """Return what is recorded of each instance, and how many operations it has."""
    every = await database.read(
        lambda connection: connection.execute(sa.select(INSTANCES.c.id)).scalars().all()
    )
    return [
        (
            await row_of(database, each),
            len(await database.read(functools.partial(operations.of_instance, instance_id=each))),
        )
        for each in every
    ]


class Changing(Overtaking):
    """A database in which every row is changed between a read and what follows it, with the fence that it has."""

    def __init__(self, database: Database, then: Mapping[str, Any]) -> None:
        super().__init__(database)
        self._changes = then
        #: What that has left.
        self.left: list[tuple[object, int]] = []

    async def overtake(self) -> None:
        """Change them."""
        await self._database.write(
            lambda connection: connection.execute(sa.update(INSTANCES).values(**self._changes))
        )
        self.left = await trace(self._database)


@pytest.mark.parametrize(("recorded", "then"), PASSED.values(), ids=PASSED.keys())
async def test_a_verdict_about_what_has_passed_is_not_written(
    database: Database, recorded: Mapping[str, Any], then: Mapping[str, Any]
) -> None:
    """Nothing is done by it; by the next, which is about what is so now, it may be."""
    instance_id, changing = await add(database, **recorded), Changing(database, then)
    await make_arbiter(changing).reconcile(instance_id)
    assert await trace(database) == changing.left


@pytest.mark.parametrize("recorded", [recorded for recorded, _ in PASSED.values()], ids=PASSED.keys())
async def test_it_is_written_where_nothing_came_between(
    database: Database, recorded: Mapping[str, Any]
) -> None:
    """Or the test above would say nothing."""
    instance_id = await add(database, **recorded)
    before = await trace(database)
    await make_arbiter(database).reconcile(instance_id)
    assert await trace(database) != before


@pytest.mark.parametrize(
    ("unfinished", "done"),
    [("changePassword", ["changePassword", "reap"]), ("reap", ["reap"])],
    ids=["asked", "worked-on"],
)
async def test_only_what_an_agent_works_on_is_waited_for(
    database: Database, unfinished: str, done: list[str]
) -> None:
    """A deleted instance whose guest is found is not reaped twice at a time; a question keeps it from nothing."""
    instance_id = await add(database, vm_state="deleted", observed="shutoff")
    operation = made(instance_id, "h", 1, OperationState.RUNNING, action=unfinished)
    await database.write(lambda connection: operations.insert(connection, operation))
    await make_arbiter(database).reconcile(instance_id)
    found = await database.read(functools.partial(operations.of_instance, instance_id=instance_id))
    assert sorted(each.action for each in found) == done
