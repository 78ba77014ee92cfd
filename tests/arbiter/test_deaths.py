"""Hosts that die, come back, or only seem to, on several simulated hosts and virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import sqlalchemy as sa

from stateward.agent.driver import DriverError
from stateward.domain.actions import BY_KEY
from stateward.domain.bodies import Hold
from stateward.domain.errors import Conflict
from stateward.domain.evacuation import PlanKind
from stateward.domain.hosts import Condition, Frozen
from stateward.domain.locks import ActorKind
from stateward.domain.records import FlavorFacts, ImageFacts, Instance
from stateward.domain.states import VmState
from stateward.operations.creation import NewInstance, create
from stateward.operations.placing import Place
from stateward.settings import DeathSettings, Settings
from stateward.simulation import loop
from stateward.simulation.log import Log
from stateward.simulation.operators import SimulatedPower
from stateward.simulation.script import HostLine
from stateward.simulation.world import World, empty_database
from stateward.store import host_plans, hosts, operations, strays
from stateward.store.host_plans import KeptPlan
from stateward.store.hosts import Host
from stateward.store.tables import AUDIT

#: More than the time until a silent host is suspect, and a look after it.
SILENT = 40.0


class Cluster:
    """Hosts ``a``, ``b`` and ``c`` and some instances on ``a``."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.admin = world.actor(ActorKind.ADMIN)

    async def make(self, name: str, host: str = "a", **metadata: str) -> None:
        """Make an instance that runs."""
        new = NewInstance(
            project_id="p",
            user_id="u",
            name=name,
            hostname=name,
            flavor=FlavorFacts(id="f", name="f", vcpus=1, ram=512, disk=1),
            image=ImageFacts(id="i", disk_format="qcow2", properties={}),
            metadata=metadata,
            place=Place(host=host),
        )
        await create(self.world.plane.admission, new, self.admin, reservation_id="r")
        await self.world.quiet()

    async def host(self, name: str = "a") -> Host:
        found = await self.world.database.look(lambda connection: hosts.named(connection, name))
        assert found is not None
        return found

    async def condition(self, name: str = "a") -> Condition:
        return (await self.host(name)).condition

    async def instance(self, name: str = "web") -> Instance:
        return await self.world.instance(name)

    def running(self, name: str = "web") -> list[str]:
        """Say on which hosts the guest of an instance runs."""
        instance_id = self.world.id_of(name)
        return [each.name for each in self.world.hosts.values() if each.states(instance_id) == "running"]

    def there(self, name: str = "web") -> list[str]:
        """Say on which hosts there is a guest of an instance."""
        instance_id = self.world.id_of(name)
        return [each.name for each in self.world.hosts.values() if each.states(instance_id) is not None]

    async def history(self, name: str) -> list[str]:
        """Return the actions that were admitted for an instance."""
        instance_id = self.world.id_of(name)
        found = await self.world.database.look(lambda c: operations.of_instance(c, instance_id))
        return [each.action for each in found]

    async def verdicts(self, name: str, action: str) -> list[dict[str, Any]]:
        """Return what the arbiter has recorded of an instance."""
        query = sa.select(AUDIT.c.detail).where(
            AUDIT.c.instance_id == self.world.id_of(name),
            AUDIT.c.event == "verdict",
            AUDIT.c.action == action,
        )
        rows = await self.world.database.look(
            lambda c: c.execute(query.order_by(AUDIT.c.number)).scalars().all()
        )
        return list(rows)

    async def plan(self, kind: PlanKind = PlanKind.EVACUATE, host: str = "a") -> KeptPlan | None:
        return await self.world.database.look(lambda c: host_plans.of_host(c, host, kind))

    async def lines(self, plan: KeptPlan) -> list[tuple[str, str | None, str | None, str]]:
        found = await self.world.database.look(lambda c: host_plans.moves(c, plan.id))
        return [(each.name, each.action, each.to_host, each.state.value) for each in found]

    async def alerts(self) -> list[str]:
        rows = await self.world.database.look(
            lambda c: (
                c.execute(sa.select(AUDIT.c.detail).where(AUDIT.c.event == "alert").order_by(AUDIT.c.number))
                .scalars()
                .all()
            )
        )
        return [row["says"] for row in rows]

    async def dies(self, host: str = "a") -> None:
        """Have a host lose its power, and an operator say so after it has been silent."""
        await self.world.lose_power(host)
        await asyncio.sleep(SILENT)
        assert await self.condition(host) is Condition.SUSPECT
        await self.world.plane.hosts.confirm_dead(host, self.admin, "I saw it.", then=nothing)

    async def fence(self, host: str = "a") -> KeptPlan:
        """Have the operator say that it has no power, and return the plan that is made then."""
        await self.world.plane.hosts.fenced(host, self.admin, "I pulled the plug.", then=nothing)
        await asyncio.sleep(5.0)
        plan = await self.plan(host=host)
        assert plan is not None
        return plan

    async def approve(self, plan: KeptPlan) -> None:
        """Approve a plan and wait for its end."""
        await self.world.plane.hosts.approve(plan.host, plan.id, self.admin, then=lambda _c, _plan: None)
        await asyncio.sleep(60.0)


def nothing(_connection: sa.Connection) -> None:
    """Answer nothing."""


def play(
    body: Callable[[Cluster], Awaitable[None]], *, names: str = "abc", shared: bool = True, **death: Any
) -> None:
    """Run a test on a cluster."""

    async def run() -> None:
        lines = [HostLine(name=name, shared=shared) for name in names]
        settings = Settings(death=DeathSettings(**death))
        log = Log(asyncio.get_running_loop().time)
        async with World(lines, settings, log, SimulatedPower, seed=1) as world:
            await body(Cluster(world))

    # Made on a loop of its own.
    empty_database()
    loop.run(run(), seed=1)


def test_from_silence_to_another_host_and_back() -> None:
    """Nothing is done until each step was said; the stray is gone before its host is used again."""

    async def body(cluster: Cluster) -> None:
        await cluster.make("web")
        await cluster.make("stopped")
        await cluster.world.plane.admission.admit(
            BY_KEY["stop_force"], cluster.world.id_of("stopped"), cluster.admin
        )
        await cluster.world.quiet()
        await cluster.world.lose_power("a")
        await asyncio.sleep(SILENT)
        host = await cluster.host()
        assert (host.condition, host.frozen) == (Condition.SUSPECT, Frozen.SILENT)
        assert [
            each.startswith("Host a is silent. There is no second signal.") for each in await cluster.alerts()
        ] == [True]
        with pytest.raises(Conflict, match="Host a is suspect; that can be said only of one that is dead"):
            await cluster.world.plane.hosts.fenced("a", cluster.admin, "No.", then=nothing)
        await cluster.world.plane.hosts.confirm_dead("a", cluster.admin, "I saw it.", then=nothing)
        plan = await cluster.fence()
        assert await cluster.lines(plan) == [
            ("web", "evacuate", "b", "waiting"),
            ("stopped", "evacuate_stopped", "c", "waiting"),
        ]
        assert (await cluster.instance()).host == "a"
        await cluster.approve(plan)
        assert await cluster.lines(plan) == [
            ("web", "evacuate", "b", "done"),
            ("stopped", "evacuate_stopped", "c", "done"),
        ]
        assert cluster.running() == ["b"]
        web, stopped = await cluster.instance(), await cluster.instance("stopped")
        assert (web.vm_state, web.host) == (VmState.ACTIVE, "b")
        assert (stopped.vm_state, stopped.host) == (VmState.STOPPED, "c")
        assert cluster.there() == ["a", "b"]
        await cluster.world.boot("a")
        await asyncio.sleep(60.0)
        host = await cluster.host()
        assert (host.condition, host.frozen) == (Condition.UP, None)
        assert (cluster.there(), cluster.there("stopped")) == (["b"], ["c"])
        assert cluster.running() == ["b"]

    play(body)


def test_a_host_that_comes_back_is_only_late() -> None:
    """A suspect that is heard of again is up, and its instances are judged: what went off meanwhile is started."""

    async def body(cluster: Cluster) -> None:
        await cluster.make("web")
        cluster.world.wires["a"].cut()
        await asyncio.sleep(SILENT)
        assert await cluster.condition() is Condition.SUSPECT
        cluster.world.hosts["a"].hypervisor.destroy(cluster.world.id_of("web"))
        await asyncio.sleep(20.0)
        assert cluster.running() == []
        cluster.world.wires["a"].mend()
        await asyncio.sleep(30.0)
        host = await cluster.host()
        assert (host.condition, host.frozen) == (Condition.UP, None)
        assert cluster.running() == ["a"]

    play(body)


def test_a_clock_that_jumps() -> None:
    """Neither a host's nor the control plane's makes anybody silent."""

    async def body(cluster: Cluster) -> None:
        await cluster.make("web")
        for wrong in (86_400.0, -172_800.0, 86_400.0):
            cluster.world.hosts["a"].clock.wrong += wrong
            cluster.world.clock.wrong -= wrong
            await asyncio.sleep(SILENT)
            assert await cluster.condition() is Condition.UP
        assert await cluster.alerts() == []

    play(body)


def test_an_agent_that_has_lost_count() -> None:
    """Its journal is gone, its clock was set back, and its hypervisor cannot be asked: it lives all the same."""

    async def body(cluster: Cluster) -> None:
        await cluster.make("web")
        host = cluster.world.hosts["a"]
        await cluster.world.kill_agent("a")
        host.hypervisor.unavailable()
        host.clock.wrong -= 365 * 86_400.0
        for file in host.journal.parent.glob(f"{host.journal.name}*"):
            file.unlink()
        await cluster.world.start_agent("a")
        await asyncio.sleep(2 * SILENT)
        assert await cluster.condition() is Condition.UP
        host.hypervisor.available()
        await asyncio.sleep(SILENT)
        assert (await cluster.condition(), await cluster.alerts()) == (Condition.UP, [])

    play(body)


def test_many_at_once() -> None:
    """No host is declared dead, and one alert tells it; afterwards each is what it was."""

    async def body(cluster: Cluster) -> None:
        await cluster.make("web")
        for name in "abcd":
            cluster.world.wires[name].cut()
        await asyncio.sleep(3 * SILENT)
        assert [await cluster.condition(name) for name in "abcd"] == [Condition.SUSPECT] * 4
        assert await cluster.alerts() == [
            (
                "4 of 8 hosts are silent at once: the control plane's own network is the suspect. "
                "No host is declared dead."
            )
        ]
        for name in "abcd":
            cluster.world.wires[name].mend()
        await asyncio.sleep(30.0)
        assert [await cluster.condition(name) for name in "abcd"] == [Condition.UP] * 4
        assert cluster.running() == ["a"]
        assert len(await cluster.alerts()) == 1

    play(body, names="abcdefgh")


def test_disks_that_are_on_the_dead_host() -> None:
    """Who did not say that it may be lost stays, is listed, and is there when the host returns."""

    async def body(cluster: Cluster) -> None:
        await cluster.make("web")
        await cluster.make("cache", **{"stateward:evacuate": "rebuild"})
        await cluster.dies()
        plan = await cluster.fence()
        assert [line[:2] for line in await cluster.lines(plan)] == [("web", None), ("cache", "evacuate_anew")]
        await cluster.approve(plan)
        assert cluster.running("cache") == ["b"]
        await cluster.world.boot("a")
        await asyncio.sleep(90.0)
        assert await cluster.condition() is Condition.UP
        # What stayed runs again, by the table of boots.
        assert (cluster.running(), cluster.there("cache")) == (["a"], ["b"])

    play(body, shared=False)


def test_what_is_held_is_kept_where_it_was() -> None:
    """Its disk made anew is an empty one. The host is used again, and rid of it once the hold is released (R6)."""

    async def body(cluster: Cluster) -> None:
        await cluster.make("web", **{"stateward:evacuate": "rebuild"})
        await cluster.dies()
        await cluster.approve(await cluster.fence())
        instance_id, locking = cluster.world.id_of("web"), cluster.world.plane.locking
        held = await locking.hold(instance_id, cluster.admin, Hold(reason="Case 7", shutdown="clean"))
        await cluster.world.quiet()
        await cluster.world.boot("a")
        await asyncio.sleep(120.0)
        assert await cluster.condition() is Condition.UP
        assert (cluster.there(), cluster.running()) == (["a", "b"], [])
        told = await cluster.verdicts("web", "alert")
        assert [(each["observed"], each["host"], each["seen"]) for each in told] == [
            ("duplicate", "a", "shutoff")
        ]
        assert (await cluster.instance()).vm_state is VmState.STOPPED
        await locking.release(instance_id, held.placed.id, cluster.admin, reason="Closed.", project_id=None)
        await asyncio.sleep(60.0)
        assert cluster.there() == ["b"]
        assert (await cluster.history("web"))[0] == "remove_stray"

    play(body, shared=False)


def test_a_stray_is_all_there_is_while_the_other_copy_is_not_certain() -> None:
    """It loses its power, and is not removed: its host is not used until somebody has decided."""

    async def body(cluster: Cluster) -> None:
        await cluster.make("web")
        await cluster.dies()
        plan = await cluster.fence()
        cluster.world.hosts["b"].hypervisor.fail_next("power_on", DriverError("No."))
        await cluster.approve(plan)
        assert (await cluster.instance()).vm_state is VmState.ERROR
        await cluster.world.boot("a")
        await asyncio.sleep(60.0)
        assert await cluster.condition() is Condition.RETURNED
        assert "a" in cluster.there()
        assert cluster.running() == []

    play(body)


def test_an_agent_that_comes_back_does_not_go_on_with_what_it_had_begun() -> None:
    """Its journal knows of a reboot under way, and the record knows better."""

    async def body(cluster: Cluster) -> None:
        await cluster.make("web")
        hypervisor = cluster.world.hosts["a"].hypervisor
        hypervisor.set_latency(5.0)
        await cluster.world.plane.admission.admit(
            BY_KEY["reboot_hard"], cluster.world.id_of("web"), cluster.admin
        )
        await asyncio.sleep(8.0)
        await cluster.dies()
        hypervisor.set_latency(0.01)
        await cluster.approve(await cluster.fence())
        assert cluster.running() == ["b"]
        seen: set[tuple[str, ...]] = set()

        async def watch() -> None:
            while True:
                seen.add(tuple(cluster.running()))
                await asyncio.sleep(0.02)

        watching = asyncio.create_task(watch())
        await cluster.world.boot("a")
        await asyncio.sleep(60.0)
        watching.cancel()
        assert seen == {("b",)}
        assert await cluster.condition() is Condition.UP

    play(body)


def test_a_server_that_is_killed_goes_on() -> None:
    """Whenever it is killed: the plan is carried out once, and each instance is evacuated once."""

    async def body(cluster: Cluster) -> None:
        for number in range(4):
            await cluster.make(f"web{number}")
        await cluster.dies()
        plan = await cluster.fence()
        await cluster.world.plane.hosts.approve("a", plan.id, cluster.admin, then=lambda _c, _plan: None)
        for seconds in (0.013, 0.3, 1.1, 2.5):
            await asyncio.sleep(seconds)
            await cluster.world.kill_server()
            await cluster.world.start_server()
        await asyncio.sleep(60.0)
        assert {line[3] for line in await cluster.lines(plan)} == {"done"}
        for number in range(4):
            name = f"web{number}"
            assert len(cluster.running(name)) == 1
            assert (await cluster.history(name)).count("evacuate") == 1

    play(body)


def test_without_approval_where_the_operator_says_so() -> None:
    """The whole way by itself, by a fence of the operator's; one that fails is tried again and told once."""

    async def body(cluster: Cluster) -> None:
        await cluster.make("web")
        await cluster.dies()
        await cluster.fence()
        await asyncio.sleep(30.0)
        assert cluster.running() == ["b"]

    play(body, evacuate="auto")


def test_a_host_that_returns_before_it_was_fenced() -> None:
    """Nothing of it was started elsewhere; it is used again, and what ran runs again."""

    async def body(cluster: Cluster) -> None:
        await cluster.make("web")
        await cluster.dies()
        await cluster.world.boot("a")
        await asyncio.sleep(60.0)
        assert await cluster.condition() is Condition.UP
        assert cluster.running() == ["a"]
        assert await cluster.world.database.look(lambda c: strays.on(c, "a")) == []

    play(body)
