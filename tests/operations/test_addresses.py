"""Addresses that hosts report: kept once, in order, and of one instance each."""

from __future__ import annotations

import msgspec
import pytest

from stateward.domain.networks import Network, NetworkKind, PortAddress, ports_of
from stateward.domain.records import AddressReport, Instance
from stateward.domain.states import VmState
from stateward.operations.addresses import take
from stateward.store import instances
from stateward.store.engine import Database
from tests import rows

pytestmark = pytest.mark.asyncio

NETWORKS = [Network(name=name, kind=NetworkKind.NAT, source=name) for name in ("one", "two")]


class Desk:
    """A database that listens to one host's reports."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def make(self, network: int = 0, **changes: object) -> Instance:
        made = await self._database.write(lambda connection: rows.insert(connection, **changes))
        ports = ports_of(made.id, [NETWORKS[network]])
        return await self._database.write(
            lambda connection: instances.change_held(connection, made, {"ports": ports})
        )

    async def report(self, seq: int, *found: tuple[Instance, str | None], host: str = "h") -> None:
        addresses: dict[str, tuple[PortAddress, ...]] = {
            instance.id: () if address is None else (PortAddress(mac=instance.ports[0].mac, address=address),)
            for instance, address in found
        }
        await take(
            self._database, msgspec.json.encode(AddressReport(host=host, addresses=addresses, seq=seq))
        )

    async def has(self, instance: Instance) -> list[str]:
        found = await self._database.read(lambda connection: instances.get(connection, instance.id))
        assert found is not None
        return [each.address for each in found.addresses]


@pytest.fixture
def desk(database: Database) -> Desk:
    return Desk(database)


async def test_the_latest_report_is_kept(desk: Desk) -> None:
    web = await desk.make()
    await desk.report(5, (web, "10.0.0.7"))
    assert await desk.has(web) == ["10.0.0.7"]
    await desk.report(7, (web, "10.0.0.8"))
    await desk.report(6, (web, "10.0.0.9"))
    assert await desk.has(web) == ["10.0.0.8"]
    await desk.report(8, (web, None))
    assert await desk.has(web) == []


async def test_what_is_not_said_of_an_instance_stays(desk: Desk) -> None:
    web, other = await desk.make(), await desk.make()
    await desk.report(1, (web, "10.0.0.7"), (other, "10.0.0.8"))
    await desk.report(2, (other, "10.0.0.9"))
    assert (await desk.has(web), await desk.has(other)) == (["10.0.0.7"], ["10.0.0.9"])


async def test_an_address_is_taken_from_whoever_had_it_on_the_same_network(desk: Desk) -> None:
    off, elsewhere, new = await desk.make(), await desk.make(network=1), await desk.make()
    await desk.report(1, (off, "10.0.0.7"), (elsewhere, "10.0.0.7"))
    await desk.report(2, (new, "10.0.0.7"))
    assert [await desk.has(each) for each in (off, elsewhere, new)] == [[], ["10.0.0.7"], ["10.0.0.7"]]


async def test_a_host_speaks_for_its_own_instances_only(desk: Desk) -> None:
    web, gone = await desk.make(), await desk.make(vm_state=VmState.DELETED.value)
    await desk.report(1, (web, "10.0.0.7"), host="other")
    await desk.report(2, (gone, "10.0.0.8"))
    assert (await desk.has(web), await desk.has(gone)) == ([], [])
