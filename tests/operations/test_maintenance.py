"""Maintenance of hosts: it begins over whatever a host was not judged for, and ends by itself."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from stateward.domain.hosts import Frozen
from stateward.domain.locks import ActorKind
from stateward.operations.creation import create
from stateward.operations.hosts import Hosts
from stateward.operations.maintenance import Maintenance
from stateward.operations.placing import Place
from stateward.store import hosts
from stateward.store.engine import StoreUnavailable
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


async def test_one_that_cannot_be_ended_keeps_no_other(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is tried again in a second; where the database is away nothing is tried."""
    acts = Hosts(desk.admission)
    for number, name in enumerate("gh"):
        await desk.add_host(name)
        await acts.maintain(
            name, ADMIN, "New disks.", NOW + 60 + number, then=of_h if name == "h" else _nothing
        )
    maintenance = Maintenance(desk.database, desk.clock)
    desk.clock.at = NOW + 70
    end = hosts.end_maintenance
    faults: dict[str, Exception] = {"g": StoreUnavailable("It is away.")}

    def faulty(connection: sa.Connection, name: str, *, until: float | None = None) -> bool:
        if name in faults:
            raise faults[name]
        return end(connection, name, until=until)

    async def left() -> list[str]:
        return [name for name, _until in await desk.database.read(hosts.maintained)]

    monkeypatch.setattr(hosts, "end_maintenance", faulty)
    with pytest.raises(StoreUnavailable):
        await maintenance.look()
    assert await left() == ["g", "h"]
    faults["g"] = RuntimeError("a fault of ours")
    assert await maintenance.look() == 1.0
    assert await left() == ["g"]
    faults.clear()
    assert await maintenance.look() == 10.0
    assert await left() == []


def _nothing(_connection: sa.Connection) -> None:
    pass
