"""What guests are reached by: told once it is known, soon after a start, and at little cost after that."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import looptime
import msgspec
import pytest
import pytest_asyncio

from stateward.agent.driver import HypervisorUnavailable
from stateward.bus.port import ADDRESSES
from stateward.domain.networks import Network, NetworkKind, PortAddress, ports_of
from stateward.domain.records import AddressReport, GuestSpec
from tests.agent.simulated_bench import spec_of
from tests.agent.workbench import Workbench

pytestmark = [pytest.mark.asyncio, pytest.mark.looptime]

NETWORK = Network(name="default", kind=NetworkKind.NAT, source="default")


class Bench(Workbench):
    """A workbench whose guests get their addresses when the test says so."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, disorder=None)
        self.heard: list[AddressReport] = []
        self.given: dict[str, tuple[PortAddress, ...]] = {}
        self.looks: list[float] = []
        self.away = False
        self.agent.driver.addresses = self._addresses  # type: ignore[method-assign]

    async def start(self) -> None:
        """Start the agent and listen to it."""
        await self.bus.subscribe(ADDRESSES, self._take)
        await super().start()

    async def boot(self, name: str) -> GuestSpec:
        """Make a running guest with a port."""
        spec = msgspec.structs.replace(spec_of(name), ports=ports_of(name, [NETWORK]))
        for call in (self.agent.driver.prepare_disk, self.agent.driver.define):
            await call(spec)
        self.given[name] = ()
        await self.agent.driver.power_on(name)
        return spec

    async def _addresses(self) -> dict[str, tuple[PortAddress, ...]]:
        self.looks.append(asyncio.get_running_loop().time())
        if self.away:
            raise HypervisorUnavailable("away")
        return dict(self.given)

    async def _take(self, payload: bytes) -> None:
        self.heard.append(msgspec.json.decode(payload, type=AddressReport))


@pytest_asyncio.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    """Give an agent that is not started yet."""
    bench = Bench(tmp_path)
    yield bench
    with looptime.enabled(strict=True):
        await bench.stop()


def one(spec: GuestSpec, address: str) -> tuple[PortAddress, ...]:
    """Return an address of the guest's only port."""
    return (PortAddress(mac=spec.ports[0].mac, address=address),)


async def test_an_address_is_told_within_two_seconds_of_being_known(bench: Bench) -> None:
    await bench.start()
    spec = await bench.boot("a")
    await asyncio.sleep(7)
    assert [report.addresses for report in bench.heard] == [{"a": ()}]
    bench.given["a"] = one(spec, "10.0.0.7")
    await asyncio.sleep(2)
    assert [(report.host, report.addresses) for report in bench.heard[1:]] == [("h", {"a": bench.given["a"]})]
    assert bench.heard[1].seq > bench.heard[0].seq


async def test_what_is_known_is_not_told_again_and_looked_at_like_everything_else(bench: Bench) -> None:
    await bench.start()
    bench.given["a"] = one(await bench.boot("a"), "10.0.0.7")
    await asyncio.sleep(5)
    looks = len(bench.looks)
    await asyncio.sleep(100)
    assert [report.addresses for report in bench.heard] == [{"a": bench.given["a"]}]
    assert len(bench.looks) - looks <= 10


async def test_only_news_is_told(bench: Bench) -> None:
    await bench.start()
    bench.given["a"] = one(await bench.boot("a"), "10.0.0.7")
    await asyncio.sleep(5)
    bench.given["b"] = one(await bench.boot("b"), "10.0.0.8")
    await asyncio.sleep(5)
    assert [set(report.addresses) for report in bench.heard] == [{"a"}, {"b"}]
    bench.given["a"] = one(spec_with_port("a"), "10.0.0.9")
    await asyncio.sleep(12)
    assert bench.heard[2].addresses == {"a": bench.given["a"]}


def spec_with_port(name: str) -> GuestSpec:
    """Return the spec that ``boot`` made."""
    return msgspec.structs.replace(spec_of(name), ports=ports_of(name, [NETWORK]))


async def test_a_guest_that_never_asks_is_waited_for_a_minute(bench: Bench) -> None:
    await bench.start()
    await bench.boot("a")
    await asyncio.sleep(65)
    eager = len(bench.looks)
    await asyncio.sleep(100)
    assert eager > 50
    assert len(bench.looks) - eager <= 10


async def test_a_hypervisor_that_is_away_takes_nothing_back(bench: Bench) -> None:
    await bench.start()
    bench.given["a"] = one(await bench.boot("a"), "10.0.0.7")
    await asyncio.sleep(5)
    bench.away = True
    await asyncio.sleep(30)
    bench.away = False
    await asyncio.sleep(30)
    assert [report.addresses for report in bench.heard] == [{"a": bench.given["a"]}]


async def test_an_agent_that_was_started_anew_tells_everything(bench: Bench) -> None:
    await bench.start()
    bench.given["a"] = one(await bench.boot("a"), "10.0.0.7")
    await asyncio.sleep(5)
    given = bench.agent.driver.addresses
    await bench.kill()
    bench.agent = bench.make_agent()
    bench.agent.driver.addresses = given  # type: ignore[method-assign]
    await bench.agent.start()
    await asyncio.sleep(5)
    assert [report.addresses for report in bench.heard] == [{"a": bench.given["a"]}] * 2
    assert bench.heard[1].seq > bench.heard[0].seq
