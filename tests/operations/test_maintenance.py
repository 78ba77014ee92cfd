"""Maintenance of hosts: it begins over whatever a host was not judged for, and ends by itself."""

from __future__ import annotations

import sqlalchemy as sa

from stateward.domain.hosts import Frozen
from stateward.domain.locks import ActorKind
from stateward.operations.creation import create
from stateward.operations.hosts import Hosts
from stateward.operations.maintenance import Maintenance
from stateward.operations.placing import Place
from stateward.store import hosts
from stateward.store.hosts import Host
from tests.operations.desk import Desk
from tests.rows import NOW, actor
from tests.stack import new_instance

ADMIN = actor(ActorKind.ADMIN)


def of_h(connection: sa.Connection) -> Host:
    host = hosts.named(connection, "h")
    assert host is not None
    return host


async def test_from_its_beginning_to_its_end(desk: Desk) -> None:
    """Nothing is judged or placed there meanwhile; its end is one record, and a look after it changes nothing."""
    await desk.add_host("h")
    await desk.database.write(lambda c: hosts.freeze(c, "h", Frozen.SWEEP, "Half are gone.", NOW))
    acts = Hosts(desk.admission)
    host = await acts.maintain("h", ADMIN, "New disks.", NOW + 60, then=of_h)
    assert (host.frozen, host.frozen_detail, host.maintenance_until) == (
        Frozen.MAINTENANCE,
        "New disks.",
        NOW + 60,
    )
    made = await create(desk.admission, new_instance(place=Place(host="h")), actor(), reservation_id="r")
    assert made.instance.fault is not None
    maintenance = Maintenance(desk.database, desk.clock)
    assert await maintenance.look() == 10.0
    desk.clock.at = NOW + 55
    assert await maintenance.look() == 5.0
    # Somebody needs longer.
    await acts.maintain("h", ADMIN, "New disks.", NOW + 70, then=of_h)
    desk.clock.at = NOW + 60
    assert await maintenance.look() == 10.0
    assert (await desk.database.read(of_h)).frozen is Frozen.MAINTENANCE
    desk.clock.at = NOW + 70
    for _ in range(2):
        await maintenance.look()
    host = await desk.database.read(of_h)
    assert (host.frozen, host.maintenance_until) == (None, None)
    told = [action for event, action, _detail in await desk.audit() if event == "host"]
    assert told == ["maintain", "maintain", "maintenance_ended"]


async def test_ending_it_by_hand(desk: Desk) -> None:
    """Once; what is not maintained stays as it is."""
    await desk.add_host("h")
    acts = Hosts(desk.admission)
    await acts.maintain("h", ADMIN, "New disks.", NOW + 60, then=of_h)
    for _ in range(2):
        host = await acts.end_maintenance("h", ADMIN, then=of_h)
        assert (host.frozen, host.maintenance_until) == (None, None)
