"""No verdict is written about an instance whose host's are not judged now, whichever way it would be (B5, R14)."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from stateward.domain.actions import BY_KEY
from stateward.domain.hosts import Frozen
from stateward.domain.states import VmState
from stateward.domain.verdicts import VERDICTS
from stateward.store import hosts, operations
from stateward.store.engine import Database
from stateward.store.tables import AUDIT
from tests.arbiter.test_reports import Overtaking, add, make_arbiter, row_of

#: One instance for each way in which a verdict is written.
DEVIATIONS = {
    "adopt": {"observed": "shutoff", "cause": "guest"},
    "restore": {"observed": "shutoff", "cause": "destroyed"},
    "alert": {"observed": "paused", "cause": "io-error"},
    "reap": {"vm_state": "deleted", "observed": "shutoff"},
}


def test_every_row_that_a_verdict_names_is_one_that_freezing_stops() -> None:
    """A new restore cannot be written that slips through beside it."""
    named = {verdict.action for verdict in VERDICTS if verdict.action is not None} | {"adopt"}
    assert {name for name in named if not BY_KEY[name].by_verdict} == set()


async def traces(database: Database, instance_id: str) -> tuple[int, int]:
    """Count the operations and the audit records of an instance."""
    await database.seal()
    made = await database.read(lambda connection: operations.of_instance(connection, instance_id))
    query = sa.select(sa.func.count()).where(AUDIT.c.instance_id == instance_id)
    told = await database.read(lambda connection: connection.execute(query).scalar_one())
    return len(made), told


@pytest.mark.parametrize("why", list(Frozen))
@pytest.mark.parametrize("deviation", DEVIATIONS)
async def test_a_frozen_host_s_instances_are_left(database: Database, deviation: str, why: Frozen) -> None:
    """Whatever the reason; and judged again when it is over."""
    await database.write(lambda connection: hosts.register(connection, "h", "nova"))
    instance_id = await add(database, **DEVIATIONS[deviation])
    arbiter = make_arbiter(database)
    assert await database.write(lambda connection: hosts.freeze(connection, "h", why, "a test", 5.0))
    before = await row_of(database, instance_id)
    assert await arbiter.reconcile(instance_id) is None
    assert await row_of(database, instance_id) == before
    assert await traces(database, instance_id) == (0, 0)
    assert await database.write(lambda connection: hosts.thaw(connection, "h", why))
    assert await arbiter.reconcile(instance_id) is not None
    assert (await traces(database, instance_id))[1] > 0


class Freezing(Overtaking):
    """A database in which the host is frozen between a verdict's look and its write."""

    async def overtake(self) -> None:
        """Freeze it."""
        await self._database.write(lambda connection: hosts.freeze(connection, "h", Frozen.SWEEP, "", 5.0))


@pytest.mark.parametrize("deviation", DEVIATIONS)
async def test_what_is_frozen_meanwhile_is_left_too(database: Database, deviation: str) -> None:
    """The freeze is in the condition of the write, not only in the look before it."""
    await database.write(lambda connection: hosts.register(connection, "h", "nova"))
    instance_id = await add(database, **DEVIATIONS[deviation])
    before = await row_of(database, instance_id)
    await make_arbiter(Freezing(database)).reconcile(instance_id)
    assert await row_of(database, instance_id) == before
    assert (await traces(database, instance_id))[0] == 0


async def test_another_host_s_are_judged(database: Database) -> None:
    """A freeze is one host's."""
    await database.write(lambda connection: hosts.register(connection, "h", "nova"))
    await database.write(lambda connection: hosts.register(connection, "other", "nova"))
    await database.write(lambda connection: hosts.freeze(connection, "other", Frozen.SWEEP, "", 5.0))
    instance_id = await add(database, observed="shutoff", cause="guest")
    await make_arbiter(database).reconcile(instance_id)
    assert (await row_of(database, instance_id)).vm_state is VmState.STOPPED
