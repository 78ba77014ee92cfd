"""The driver contract as tests: every driver passes them all.

A driver's test module subclasses ``DriverContract`` and gives it a fixture named ``rig``. What a hypervisor
cannot do is asked of ``driver.capabilities`` or of the rig, and then the test checks what is left; nothing is
skipped.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import msgspec
import pytest

from stateward.agent.driver import Driver, DriverError, Guest, GuestMissing, NoAgent
from stateward.bus.console import ConsoleEnded, ConsoleStream
from stateward.domain.networks import Network, NetworkKind, ports_of
from stateward.domain.records import GuestSpec
from stateward.domain.seeds import Seed
from stateward.domain.shutdown import Rung
from stateward.domain.states import Cause, Observed

#: Between two looks at a console, seconds; a console file tells nobody that it grew.
_LOOK_AGAIN = 0.02

#: What libvirt's test driver has, and simulated guests do without.
NETWORK = Network(name="net", kind=NetworkKind.NAT, source="default")

UP = "stateward-guest: up"
PRESSED = "stateward-guest: power button pressed"
NMI = b"Uhhuh. NMI received"
HEARD = "stateward-guest: console: hello there"


@dataclass
class Changes:
    """Collects what a driver says changed; pass it to ``Driver.open``."""

    seen: list[str | None] = field(default_factory=list[str | None])
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    def __call__(self, instance_id: str | None) -> None:
        """Note a change."""
        self.seen.append(instance_id)
        self._news.set()

    async def after(self, count: int) -> None:
        """Wait until more than ``count`` changes were seen; count before looking, and none is missed."""
        while len(self.seen) <= count:
            self._news.clear()
            await self._news.wait()


@dataclass
class Rig:
    """A driver under test, opened with ``changes``, and what the suite must know of its guests."""

    driver: Driver
    changes: Changes
    #: Makes a spec nobody used before, whose guest comes up and obeys its power button.
    spec: Callable[[], GuestSpec]
    #: Seconds a guest may take to come up, or to go off when it is asked; more than a machine that stalls takes.
    patience: float = 240.0
    #: Whether guests outlive the driver's connection; in-memory hypervisors end with it.
    outlives: bool = True
    #: Whether its hypervisor counts what guests do; libvirt's test driver tells their state only.
    measures: bool = True
    #: A network that guests can be put on.
    network: Network = field(default=NETWORK)

    def full_spec(self) -> GuestSpec:
        """Make a spec that asks for everything: further disks, a port, and to be told of itself."""
        spec = self.spec()
        return msgspec.structs.replace(
            spec,
            ephemeral=1,
            swap=8,
            ports=ports_of(spec.instance_id, [self.network]),
            seed=Seed(hostname="web", zone="nova", public_keys=("ssh-ed25519 AAAA me",), metadata={"a": "b"}),
        )

    async def defined(self) -> str:
        """Make a guest that is off."""
        spec = self.spec()
        await self.driver.prepare_disk(spec)
        await self.driver.define(spec)
        return spec.instance_id

    async def running(self) -> str:
        """Make a guest that is on; it may still be booting."""
        instance_id = await self.defined()
        await self.driver.power_on(instance_id)
        return instance_id

    async def ready(self) -> str:
        """Make a guest that is up, as its console says where there is one."""
        instance_id = await self.running()
        if self.driver.capabilities.console_log:
            await self.console_says(instance_id, UP)
        return instance_id

    async def state(self, instance_id: str) -> tuple[Observed, Cause]:
        """Look at a guest, by ``get`` and by ``list``, which must agree."""
        guest = await self.driver.get(instance_id)
        listed = [each for each in await self.driver.list() if each.instance_id == instance_id]
        assert listed == ([] if guest.observed is Observed.MISSING else [guest])
        return guest.observed, guest.cause

    async def until(self, instance_id: str, wanted: Observed, seconds: float | None = None) -> Guest:
        """Wait, by the driver's events alone, until a guest is in a state."""
        async with asyncio.timeout(self.patience if seconds is None else seconds):
            while True:
                count = len(self.changes.seen)
                guest = await self.driver.get(instance_id)
                if guest.observed is wanted:
                    return guest
                await self.changes.after(count)

    async def console_says(self, instance_id: str, line: str, times: int = 1) -> None:
        """Wait until a guest's console has said a line."""
        async with asyncio.timeout(self.patience):
            while await self.said(instance_id, line) < times:  # noqa: ASYNC110 - a file has no event
                await asyncio.sleep(_LOOK_AGAIN)

    async def said(self, instance_id: str, line: str) -> int:
        """Return how many times a guest's console has said a line."""
        lines = (await self.driver.console(instance_id)).decode(errors="replace").splitlines()
        return sum(each.strip() == line for each in lines)


async def _to_the_end(console: ConsoleStream) -> None:
    """Read until a console's connection is over, which raises."""
    while True:
        await console.read()


Call = Callable[[Driver, str], Awaitable[object]]

NEEDS_A_GUEST: dict[str, Call] = {
    "power_on": lambda driver, guest: driver.power_on(guest),
    "pause": lambda driver, guest: driver.pause(guest),
    "unpause": lambda driver, guest: driver.unpause(guest),
    "save_memory": lambda driver, guest: driver.save_memory(guest),
    "restore_memory": lambda driver, guest: driver.restore_memory(guest),
    "set_password": lambda driver, guest: driver.set_password(guest, "root", "secret"),
    "inject_nmi": lambda driver, guest: driver.inject_nmi(guest),
}
NEEDS_NONE: dict[str, Call] = {
    "mark_fence": lambda driver, guest: driver.mark_fence(guest, 7),
    "request_shutdown": lambda driver, guest: driver.request_shutdown(guest),
    "power_off": lambda driver, guest: driver.power_off(guest),
    "discard_memory": lambda driver, guest: driver.discard_memory(guest),
    "remove": lambda driver, guest: driver.remove(guest),
    "forget": lambda driver, guest: driver.forget(guest),
}
NEEDS_IT_ON: dict[str, Call] = {name: call for name, call in NEEDS_A_GUEST.items() if name != "power_on"}

RUNNING = (Observed.RUNNING, Cause.OTHER)
PAUSED = (Observed.PAUSED, Cause.OPERATOR)
SUSPENDED = (Observed.SUSPENDED, Cause.SAVED)
DESTROYED = (Observed.SHUTOFF, Cause.DESTROYED)
MISSING = (Observed.MISSING, Cause.OTHER)


@pytest.mark.asyncio
class DriverContract:
    """What every driver does; subclass it in a test module that has a fixture ``rig``."""

    async def test_a_guest_nobody_made_is_missing(self, rig: Rig) -> None:
        """An unknown id is an answer, not an error."""
        assert await rig.state(rig.spec().instance_id) == MISSING

    async def test_it_describes_its_host(self, rig: Rig) -> None:
        """A host has processors, memory and disk."""
        facts = await rig.driver.facts()
        assert facts.hypervisor_type
        assert min(facts.hypervisor_version, facts.vcpus, facts.memory, facts.disk) > 0
        assert 0 <= facts.disk_used <= facts.disk

    @pytest.mark.parametrize("name", NEEDS_A_GUEST)
    async def test_what_needs_a_guest_says_that_there_is_none(self, rig: Rig, name: str) -> None:
        """A call that cannot be made so names the reason by its type."""
        with pytest.raises(GuestMissing):
            await NEEDS_A_GUEST[name](rig.driver, rig.spec().instance_id)

    @pytest.mark.parametrize("name", NEEDS_NONE)
    async def test_what_is_so_without_a_guest_is_no_error(self, rig: Rig, name: str) -> None:
        """Off, forgotten and unmarked is what a missing guest already is."""
        instance_id = rig.spec().instance_id
        await NEEDS_NONE[name](rig.driver, instance_id)
        assert await rig.state(instance_id) == MISSING

    async def test_a_guest_without_a_disk_is_not_defined(self, rig: Rig) -> None:
        """A definition that could never boot is refused."""
        spec = rig.spec()
        with pytest.raises(DriverError):
            await rig.driver.define(spec)
        assert await rig.state(spec.instance_id) == MISSING

    async def test_a_defined_guest_is_off(self, rig: Rig) -> None:
        """Defining starts nothing, and may be repeated, as may preparing the disk."""
        spec = rig.spec()
        for _ in range(2):
            await rig.driver.prepare_disk(spec)
        for _ in range(2):
            await rig.driver.define(spec)
        assert (await rig.state(spec.instance_id))[0] is Observed.SHUTOFF

    async def test_power_on_and_off(self, rig: Rig) -> None:
        """Each does nothing to a guest that is so already."""
        instance_id = await rig.defined()
        for _ in range(2):
            await rig.driver.power_on(instance_id)
            assert await rig.state(instance_id) == RUNNING
        for _ in range(2):
            await rig.driver.power_off(instance_id)
            assert await rig.state(instance_id) == DESTROYED
        await rig.driver.power_on(instance_id)
        assert await rig.state(instance_id) == RUNNING

    @pytest.mark.parametrize("name", NEEDS_IT_ON)
    async def test_what_needs_a_running_guest_is_refused_when_it_is_off(self, rig: Rig, name: str) -> None:
        """Refused, with a sentence, and nothing is changed."""
        instance_id = await rig.defined()
        before = await rig.state(instance_id)
        with pytest.raises(DriverError) as refusal:
            await NEEDS_IT_ON[name](rig.driver, instance_id)
        assert not isinstance(refusal.value, GuestMissing)
        assert " " in str(refusal.value)
        assert await rig.state(instance_id) == before

    async def test_pause_and_unpause(self, rig: Rig) -> None:
        """Each does nothing to a guest that is so already."""
        instance_id = await rig.running()
        await rig.driver.unpause(instance_id)
        assert await rig.state(instance_id) == RUNNING
        for _ in range(2):
            await rig.driver.pause(instance_id)
            assert await rig.state(instance_id) == PAUSED
        for _ in range(2):
            await rig.driver.unpause(instance_id)
            assert await rig.state(instance_id) == RUNNING

    async def test_a_paused_guest_is_not_booted(self, rig: Rig) -> None:
        """Letting it run on is not what was asked for."""
        instance_id = await rig.running()
        await rig.driver.pause(instance_id)
        with pytest.raises(DriverError):
            await rig.driver.power_on(instance_id)
        assert await rig.state(instance_id) == PAUSED

    async def test_a_paused_guest_loses_its_power(self, rig: Rig) -> None:
        """Power off asks nobody."""
        instance_id = await rig.running()
        await rig.driver.pause(instance_id)
        await rig.driver.power_off(instance_id)
        assert await rig.state(instance_id) == DESTROYED

    async def test_save_and_restore(self, rig: Rig) -> None:
        """Each does nothing to a guest that is so already."""
        instance_id = await rig.running()
        for _ in range(2):
            await rig.driver.save_memory(instance_id)
            assert await rig.state(instance_id) == SUSPENDED
        for _ in range(2):
            await rig.driver.restore_memory(instance_id)
            assert await rig.state(instance_id) == RUNNING

    async def test_a_paused_guest_saved_runs_when_it_is_restored(self, rig: Rig) -> None:
        """Restored means running, whatever it was before."""
        instance_id = await rig.running()
        await rig.driver.pause(instance_id)
        await rig.driver.save_memory(instance_id)
        assert await rig.state(instance_id) == SUSPENDED
        await rig.driver.restore_memory(instance_id)
        assert await rig.state(instance_id) == RUNNING

    async def test_a_saved_memory_is_only_lost_by_discarding_it(self, rig: Rig) -> None:
        """No other call than the one that says so throws a memory away."""
        spec = rig.spec()
        await rig.driver.prepare_disk(spec)
        await rig.driver.define(spec)
        await rig.driver.power_on(spec.instance_id)
        await rig.driver.save_memory(spec.instance_id)
        await rig.driver.power_off(spec.instance_id)
        await rig.driver.request_shutdown(spec.instance_id)
        await rig.driver.prepare_disk(spec)
        await rig.driver.define(spec)
        for refused in (rig.driver.power_on, rig.driver.pause, rig.driver.unpause):
            with pytest.raises(DriverError):
                await refused(spec.instance_id)
        assert await rig.state(spec.instance_id) == SUSPENDED

    async def test_a_discarded_memory_leaves_a_guest_that_is_off(self, rig: Rig) -> None:
        """It boots next, and cannot be restored."""
        instance_id = await rig.running()
        await rig.driver.save_memory(instance_id)
        for _ in range(2):
            await rig.driver.discard_memory(instance_id)
            assert (await rig.state(instance_id))[0] is Observed.SHUTOFF
        with pytest.raises(DriverError):
            await rig.driver.restore_memory(instance_id)
        await rig.driver.power_on(instance_id)
        assert await rig.state(instance_id) == RUNNING

    async def test_a_running_guest_has_no_memory_to_discard(self, rig: Rig) -> None:
        """Discarding touches nothing but a saved memory."""
        instance_id = await rig.running()
        await rig.driver.discard_memory(instance_id)
        assert await rig.state(instance_id) == RUNNING

    async def test_a_guest_that_is_asked_shuts_itself_down(self, rig: Rig) -> None:
        """Its going off is the guest's own doing, told by an event."""
        instance_id = await rig.ready()
        assert await rig.driver.request_shutdown(instance_id) is Rung.POWER_BUTTON
        guest = await rig.until(instance_id, Observed.SHUTOFF)
        assert guest.cause is Cause.GUEST
        assert await rig.state(instance_id) == (Observed.SHUTOFF, Cause.GUEST)
        if rig.driver.capabilities.console_log:
            assert await rig.said(instance_id, PRESSED) == 1

    async def test_a_paused_guest_is_not_asked(self, rig: Rig) -> None:
        """A request kept for it would fire when it is let run."""
        instance_id = await rig.ready()
        await rig.driver.pause(instance_id)
        assert await rig.driver.request_shutdown(instance_id) is None
        assert await rig.state(instance_id) == PAUSED
        await rig.driver.unpause(instance_id)
        assert await rig.state(instance_id) == RUNNING
        await rig.driver.request_shutdown(instance_id)
        await rig.until(instance_id, Observed.SHUTOFF)
        if rig.driver.capabilities.console_log:
            assert await rig.said(instance_id, PRESSED) == 1

    async def test_a_guest_that_is_off_is_not_asked(self, rig: Rig) -> None:
        """Nothing to ask, and no error."""
        instance_id = await rig.defined()
        before = await rig.state(instance_id)
        assert await rig.driver.request_shutdown(instance_id) is None
        assert await rig.state(instance_id) == before

    async def test_a_fence_stays_with_its_guest(self, rig: Rig) -> None:
        """Over a new definition, off and on; and it never goes down."""
        spec = rig.spec()
        await rig.driver.prepare_disk(spec)
        await rig.driver.define(spec)
        assert (await rig.driver.get(spec.instance_id)).fence == 0
        await rig.driver.mark_fence(spec.instance_id, 3)
        await rig.driver.define(spec)
        await rig.driver.power_on(spec.instance_id)
        assert (await rig.driver.get(spec.instance_id)).fence == 3
        await rig.driver.mark_fence(spec.instance_id, 5)
        await rig.driver.mark_fence(spec.instance_id, 4)
        await rig.state(spec.instance_id)
        await rig.driver.power_off(spec.instance_id)
        assert (await rig.driver.get(spec.instance_id)).fence == 5
        await rig.state(spec.instance_id)

    async def test_a_guest_that_is_on_is_not_removed(self, rig: Rig) -> None:
        """Nor is anything of it."""
        instance_id = await rig.running()
        with pytest.raises(DriverError):
            await rig.driver.remove(instance_id)
        await rig.driver.pause(instance_id)
        with pytest.raises(DriverError):
            await rig.driver.remove(instance_id)
        assert await rig.state(instance_id) == PAUSED

    async def test_a_removed_guest_leaves_nothing(self, rig: Rig) -> None:
        """Neither disk nor memory nor fence; it can be made again from nothing."""
        spec = rig.spec()
        await rig.driver.prepare_disk(spec)
        await rig.driver.define(spec)
        await rig.driver.mark_fence(spec.instance_id, 9)
        await rig.driver.power_on(spec.instance_id)
        await rig.driver.save_memory(spec.instance_id)
        for _ in range(2):
            await rig.driver.remove(spec.instance_id)
            assert await rig.state(spec.instance_id) == MISSING
        with pytest.raises(DriverError):
            await rig.driver.define(spec)
        await rig.driver.prepare_disk(spec)
        await rig.driver.define(spec)
        guest = await rig.driver.get(spec.instance_id)
        assert (guest.observed, guest.fence) == (Observed.SHUTOFF, 0)

    async def test_a_forgotten_guest_leaves_its_disk(self, rig: Rig) -> None:
        """It can be made again without another one; what is on is not forgotten."""
        instance_id = await rig.running()
        with pytest.raises(DriverError):
            await rig.driver.forget(instance_id)
        spec = rig.spec()
        await rig.driver.prepare_disk(spec)
        await rig.driver.define(spec)
        for _ in range(2):
            await rig.driver.forget(spec.instance_id)
            assert await rig.state(spec.instance_id) == MISSING
        await rig.driver.define(spec)
        assert (await rig.state(spec.instance_id))[0] is Observed.SHUTOFF

    async def test_a_guest_with_everything_is_made_started_anew_and_removed(self, rig: Rig) -> None:
        """Each call twice; what the guest is told may have changed when it is defined anew."""
        spec = rig.full_spec()
        for _ in range(2):
            await rig.driver.prepare_disk(spec)
        for _ in range(2):
            await rig.driver.define(spec)
        await rig.driver.power_on(spec.instance_id)
        assert await rig.state(spec.instance_id) == RUNNING
        await rig.driver.power_off(spec.instance_id)
        assert spec.seed is not None
        told = msgspec.structs.replace(spec, seed=msgspec.structs.replace(spec.seed, hostname="web2"))
        await rig.driver.define(told)
        await rig.driver.power_on(spec.instance_id)
        assert await rig.state(spec.instance_id) == RUNNING
        await rig.driver.power_off(spec.instance_id)
        await rig.driver.remove(spec.instance_id)
        assert await rig.state(spec.instance_id) == MISSING
        with pytest.raises(DriverError):
            await rig.driver.define(spec)

    async def test_addresses_are_of_running_guests_that_have_ports(self, rig: Rig) -> None:
        """By their ports; a guest that is off, or without a port, has none."""
        without = await rig.running()
        spec = rig.full_spec()
        await rig.driver.prepare_disk(spec)
        await rig.driver.define(spec)
        assert await rig.driver.addresses() == {}
        await rig.driver.power_on(spec.instance_id)
        found = await rig.driver.addresses()
        assert (set(found), without in found) == ({spec.instance_id}, False)
        assert {each.mac for each in found[spec.instance_id]} <= {port.mac for port in spec.ports}
        await rig.driver.power_off(spec.instance_id)
        assert await rig.driver.addresses() == {}

    async def test_every_change_is_told(self, rig: Rig) -> None:
        """By an event, with the guest's id or as "look at all"."""
        if not rig.driver.capabilities.events:
            return
        spec = rig.spec()
        await rig.driver.prepare_disk(spec)
        changes: tuple[Callable[[], Awaitable[None]], ...] = (
            lambda: rig.driver.define(spec),
            lambda: rig.driver.power_on(spec.instance_id),
            lambda: rig.driver.pause(spec.instance_id),
            lambda: rig.driver.unpause(spec.instance_id),
            lambda: rig.driver.save_memory(spec.instance_id),
            lambda: rig.driver.restore_memory(spec.instance_id),
            lambda: rig.driver.power_off(spec.instance_id),
            lambda: rig.driver.remove(spec.instance_id),
        )
        for change in changes:
            count = len(rig.changes.seen)
            await change()
            async with asyncio.timeout(rig.patience):
                await rig.changes.after(count)
        assert set(rig.changes.seen) <= {spec.instance_id, None}

    async def test_guests_are_changed_side_by_side(self, rig: Rig) -> None:
        """Calls for different guests at the same time keep out of each other's way."""
        specs = [rig.spec() for _ in range(3)]
        await asyncio.gather(*(rig.driver.prepare_disk(spec) for spec in specs))
        await asyncio.gather(*(rig.driver.define(spec) for spec in specs))
        await asyncio.gather(*(rig.driver.power_on(spec.instance_id) for spec in specs))
        first, second, third = (spec.instance_id for spec in specs)
        await asyncio.gather(
            rig.driver.save_memory(first), rig.driver.pause(second), rig.driver.power_off(third)
        )
        listed = {guest.instance_id: (guest.observed, guest.cause) for guest in await rig.driver.list()}
        assert listed == {first: SUSPENDED, second: PAUSED, third: DESTROYED}

    async def test_a_console_tells_what_the_guest_said(self, rig: Rig) -> None:
        """Over several boots; a guest that never ran has said nothing."""
        instance_id = await rig.defined()
        assert await rig.driver.console(instance_id) == b""
        await rig.driver.power_on(instance_id)
        if not rig.driver.capabilities.console_log:
            assert await rig.driver.console(instance_id) == b""
            return
        await rig.console_says(instance_id, UP)
        await rig.driver.power_off(instance_id)
        await rig.driver.power_on(instance_id)
        await rig.console_says(instance_id, UP, times=2)

    async def test_a_console_is_connected_to(self, rig: Rig) -> None:
        """What is typed reaches the guest, and what it says comes back and is logged; off, it ends."""
        instance_id = await rig.ready()
        if not rig.driver.capabilities.console_stream:
            with pytest.raises(DriverError):
                await rig.driver.open_console(instance_id)
            return
        console = await rig.driver.open_console(instance_id)
        async with asyncio.timeout(rig.patience):
            await console.write(b"hello there\n")
            seen = b""
            while HEARD.encode() not in seen:
                seen += await console.read()
        await rig.console_says(instance_id, HEARD)
        await rig.driver.power_off(instance_id)
        async with asyncio.timeout(rig.patience):
            with pytest.raises(ConsoleEnded, match=r"^The guest is off\.$"):
                await _to_the_end(console)
        with pytest.raises(ConsoleEnded):
            await console.write(b"hello?\n")
        await console.close()

    async def test_the_newest_connection_has_the_console(self, rig: Rig) -> None:
        """A connection that hangs somewhere keeps nobody out, and is told."""
        if not rig.driver.capabilities.console_stream:
            return
        instance_id = await rig.ready()
        first = await rig.driver.open_console(instance_id)
        second = await rig.driver.open_console(instance_id)
        async with asyncio.timeout(rig.patience):
            with pytest.raises(ConsoleEnded, match=r"^Another connection has taken the console over\.$"):
                await _to_the_end(first)
            await first.close()
            await second.write(b"hello there\n")
            seen = b""
            while HEARD.encode() not in seen:
                seen += await second.read()
        await second.close()
        with pytest.raises(ConsoleEnded, match=r"^It was closed\.$"):
            await _to_the_end(second)
        assert await rig.state(instance_id) == RUNNING

    async def test_a_guest_that_is_off_has_no_console(self, rig: Rig) -> None:
        """Nor has one that nobody made."""
        with pytest.raises(DriverError):
            await rig.driver.open_console(await rig.defined())
        with pytest.raises(DriverError):
            await rig.driver.open_console(rig.spec().instance_id)

    async def test_no_password_is_set_where_no_agent_answers(self, rig: Rig) -> None:
        """Refused, with a sentence that does not tell the password, and nothing is changed."""
        instance_id = await rig.ready()
        async with asyncio.timeout(rig.patience):
            with pytest.raises(DriverError) as refusal:
                await rig.driver.set_password(instance_id, "root", "opensesame")
        assert isinstance(refusal.value, NoAgent) is rig.driver.capabilities.set_password
        assert "agent" in str(refusal.value)
        assert "opensesame" not in str(refusal.value)
        assert await rig.state(instance_id) == RUNNING

    async def test_a_halted_guest_has_no_agent_that_answers(self, rig: Rig) -> None:
        """It is refused at once, and not kept for when the guest runs on."""
        instance_id = await rig.running()
        await rig.driver.pause(instance_id)
        with pytest.raises(DriverError, match="paused"):
            await rig.driver.set_password(instance_id, "root", "secret")

    async def test_an_interrupt_reaches_the_guest(self, rig: Rig) -> None:
        """Its kernel says so, where there is a console."""
        assert rig.driver.capabilities.inject_nmi
        instance_id = await rig.ready()
        await rig.driver.inject_nmi(instance_id)
        async with asyncio.timeout(rig.patience):
            while rig.driver.capabilities.console_log:
                if NMI in await rig.driver.console(instance_id):
                    break
                await asyncio.sleep(_LOOK_AGAIN)
        assert await rig.state(instance_id) == RUNNING

    async def test_a_guest_is_measured(self, rig: Rig) -> None:
        """Off it has done nothing; on it has the processors and the memory that it was given."""
        spec = rig.spec()
        await rig.driver.prepare_disk(spec)
        await rig.driver.define(spec)
        off = await rig.driver.diagnostics(spec.instance_id)
        assert (off.state, off.cpu_times, off.disks) == (Observed.SHUTOFF, (), ())
        await rig.driver.power_on(spec.instance_id)
        found = await rig.driver.diagnostics(spec.instance_id)
        assert (found.state, found.driver) == (Observed.RUNNING, rig.driver.name)
        assert found.hypervisor
        assert found.config_drive is False
        if rig.measures:
            assert len(found.cpu_times) == spec.vcpus
            assert found.memory == spec.memory
            assert [disk.name for disk in found.disks] == ["vda"]
        with pytest.raises(GuestMissing):
            await rig.driver.diagnostics(rig.spec().instance_id)

    async def test_guests_outlive_the_connection(self, rig: Rig) -> None:
        """Closing changes nothing; whoever opens again finds them as they were."""
        instance_id = await rig.running()
        await rig.driver.close()
        await rig.driver.open(rig.changes)
        assert await rig.state(instance_id) == (RUNNING if rig.outlives else MISSING)
