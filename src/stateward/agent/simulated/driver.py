"""The driver contract on a simulated hypervisor."""

from __future__ import annotations

import asyncio
import builtins
import tempfile
from collections.abc import Callable, Sequence, Set as AbstractSet
from pathlib import Path
from typing import Final, TypeVar

from stateward.agent.driver import (
    AgentSilent,
    Capabilities,
    Changed,
    DriverError,
    Guest,
    HostFacts,
    HypervisorUnavailable,
    ImageFiles,
    NoAgent,
)
from stateward.agent.simulated import disks, guests, origins
from stateward.agent.simulated.behaviour import AGENT_SECONDS
from stateward.agent.simulated.console import SimulatedConsole
from stateward.agent.simulated.guests import SimulatedGuest
from stateward.agent.simulated.hypervisor import Change, SimulatedHypervisor
from stateward.agent.simulated.images import check_image
from stateward.domain.diagnostics import Diagnostics
from stateward.domain.networks import PortAddress
from stateward.domain.records import GuestSpec
from stateward.domain.shutdown import Rung
from stateward.domain.states import Observed
from stateward.domain.strangers import Stranger
from stateward.domain.sweeps import Trace

T = TypeVar("T")

EVERYTHING: Final = Capabilities(
    acpi_shutdown=True,
    agent_shutdown=False,
    pause=True,
    suspend=True,
    console_log=True,
    console_stream=True,
    set_password=True,
    inject_nmi=True,
    live_snapshot=True,
    events=True,
)

#: In the form that Nova's clients parse.
_CPU_INFO: Final = (
    '{"arch": "x86_64", "vendor": "Stateward", "model": "simulated", "features": [],'
    ' "topology": {"sockets": 1, "cores": 1, "threads": 1}}'
)


def _address(mac: str) -> str:
    return ".".join(("10", *(str(int(part, 16)) for part in mac.split(":")[-3:])))


def _own(guest: SimulatedGuest) -> SimulatedGuest:
    """Return a guest; a blank one when it is somebody else's."""
    return SimulatedGuest(id=guest.id) if origins.foreign(guest) else guest


class SimulatedDriver:
    """Drives a ``SimulatedHypervisor``; several drivers on one stand for an agent and the one after it."""

    def __init__(
        self,
        hypervisor: SimulatedHypervisor,
        *,
        images: ImageFiles | None = None,
        capabilities: Capabilities = EVERYTHING,
    ) -> None:
        """Drive a hypervisor.

        Args:
            hypervisor: it stays open when the driver closes.
            images: asked for the image when a disk is made, so that a missing one fails as it really would;
                None asks nobody.
            capabilities: what the driver says it can do; without ``events`` it tells of no change.
        """
        self.name = "simulated"
        self.capabilities = capabilities
        self.hypervisor = hypervisor
        self._images = images
        self._open = False

    async def open(self, changed: Changed) -> None:
        """Connect; see the contract."""
        self._open = True
        if self.capabilities.events:
            self.hypervisor.listen(self, changed)

    async def close(self) -> None:
        """Disconnect; guests run on."""
        self._open = False
        self.hypervisor.unlisten(self)

    async def facts(self) -> HostFacts:
        """Describe the host as it was set up; disk in use is the sum of the guests' disks, the kept ones among them."""
        return await self._call("facts", None, self._facts)

    def boot_id(self) -> str:
        """Name the simulated machine's boot."""
        return self.hypervisor.boot_id

    async def list(self) -> builtins.list[Guest]:
        """Return all guests."""
        return await self._call(
            "list",
            None,
            lambda: [
                guests.view(guest)
                for guest in self.hypervisor.guests()
                if guest.spec is not None
                and guest.id not in self.hypervisor.hidden
                and not origins.foreign(guest)
            ],
        )

    async def get(self, instance_id: str) -> Guest:
        """Return one guest."""
        return await self._call(
            "get", instance_id, lambda: guests.view(_own(self.hypervisor.mentioned(instance_id)))
        )

    async def strangers(self, known: AbstractSet[str]) -> builtins.list[Stranger]:
        """Describe the guests that are none of the known ones."""

        def look() -> builtins.list[Stranger]:
            found = (origins.stranger(each) for each in self.hypervisor.guests() if each.id not in known)
            return sorted((each for each in found if each is not None), key=lambda each: each.name)

        return await self._call("strangers", None, look)

    async def adopt(self, spec: GuestSpec) -> None:
        """Note that it is one of ours."""
        instance_id = spec.instance_id
        await self._call(
            "adopt",
            instance_id,
            lambda: self.hypervisor.change(instance_id, lambda guest, _: origins.adopt(guest)),
        )

    async def release(self, instance_id: str) -> None:
        """Note that it is none of ours."""
        await self._call(
            "release",
            instance_id,
            lambda: self.hypervisor.change(instance_id, lambda guest, _: origins.release(guest)),
        )

    async def second_look(self, instance_ids: Sequence[str]) -> dict[str, Trace]:
        """Look at the guests themselves, whether drivers are told of them or not."""
        return await self._call(
            "second_look", None, lambda: {each: self.hypervisor.second_look(each) for each in instance_ids}
        )

    async def mark_fence(self, instance_id: str, fence: int) -> None:
        """Store a fence; a lower one than is stored changes nothing."""
        await self._change("mark_fence", instance_id, lambda guest, _: guests.mark_fence(guest, fence))

    async def check_image(self, spec: GuestSpec) -> None:
        """Look into the image."""
        await self._call("check_image", spec.instance_id, lambda: None)
        if self._images is not None:
            await check_image(self._images, spec.image, spec.disk)

    async def check_rescue_image(self, spec: GuestSpec) -> None:
        """Look into the image to rescue with."""
        await self._call("check_rescue_image", spec.instance_id, lambda: disks.rescue_image(spec))
        if self._images is not None:
            await check_image(self._images, disks.rescue_image(spec), 0)

    async def prepare_disk(self, spec: GuestSpec) -> None:
        """Note that there is a disk, and of what size."""
        if self._images is not None and self.hypervisor.guest(spec.instance_id).disk is None:
            await check_image(self._images, spec.image, spec.disk)
        await self._change("prepare_disk", spec.instance_id, lambda guest, _: disks.prepare_disk(guest, spec))

    async def keep_disk(self, instance_id: str, fence: int) -> None:
        """Note what size the disk had."""
        await self._change("keep_disk", instance_id, lambda guest, _: disks.keep_disk(guest, fence))

    async def return_disk(self, instance_id: str) -> None:
        """Give the disk the size it had."""
        await self._change("return_disk", instance_id, lambda guest, _: disks.return_disk(guest))

    async def drop_kept_disk(self, instance_id: str, fence: int) -> None:
        """Forget what size the disk had."""
        await self._change("drop_kept_disk", instance_id, lambda guest, _: disks.drop_kept_disk(guest, fence))

    async def grow_disk(self, spec: GuestSpec) -> None:
        """Give the disk its new size."""
        await self._change("grow_disk", spec.instance_id, lambda guest, _: disks.grow_disk(guest, spec))

    async def discard_disk(self, instance_id: str) -> None:
        """Forget the disk."""
        await self._change("discard_disk", instance_id, lambda guest, _: disks.discard_disk(guest))

    async def discard_stale_disk(self, spec: GuestSpec) -> None:
        """Forget a disk of another image."""
        await self._change(
            "discard_stale_disk", spec.instance_id, lambda guest, _: disks.discard_stale_disk(guest, spec)
        )

    async def prepare_rescue_disk(self, spec: GuestSpec) -> None:
        """Note what image the rescue disk is made of."""
        if self._images is not None and self.hypervisor.guest(spec.instance_id).rescue_image is None:
            await check_image(self._images, disks.rescue_image(spec), 0)
        await self._change(
            "prepare_rescue_disk", spec.instance_id, lambda guest, _: disks.prepare_rescue_disk(guest, spec)
        )

    async def discard_rescue_disk(self, instance_id: str) -> None:
        """Forget the rescue disk."""
        await self._change(
            "discard_rescue_disk", instance_id, lambda guest, _: disks.discard_rescue_disk(guest)
        )

    async def snapshot(self, spec: GuestSpec, image_id: str, *, quiesce: bool) -> None:
        """Note that the disk was copied; a mute agent is waited for as long as with libvirt."""
        try:
            await self._change(
                "snapshot", spec.instance_id, lambda guest, _: self._copied(guest, image_id, quiesce=quiesce)
            )
        except AgentSilent:
            await asyncio.sleep(AGENT_SECONDS)
            raise

    async def publish_snapshot(self, image_id: str) -> None:
        """Hand a file to the image store that says whose disk it would be."""
        holder = self._holder(image_id)
        await self._call("publish_snapshot", holder, lambda: None)
        if self._images is not None:
            with tempfile.TemporaryDirectory(prefix="stateward-simulated-") as folder:
                path = Path(folder) / image_id
                if holder is not None:
                    path.write_text(f"The disk of the simulated guest {holder}.\n", encoding="utf-8")
                await self._images.store(image_id, path)
        self._forget_snapshot(image_id)

    async def discard_snapshot(self, image_id: str) -> None:
        """Forget that the disk was copied."""
        await self._call("discard_snapshot", self._holder(image_id), lambda: self._forget_snapshot(image_id))

    async def define(self, spec: GuestSpec) -> None:
        """Make the guest known, or bring its definition up to date; the fence stored with it is kept."""
        await self._change("define", spec.instance_id, lambda guest, _: guests.define(guest, spec))

    async def power_on(self, instance_id: str) -> None:
        """Boot; refused while there is a saved memory, which ``discard_memory`` deletes."""
        await self._change("power_on", instance_id, guests.power_on)

    async def request_shutdown(self, instance_id: str, *, by_agent: bool = True) -> Rung | None:
        """Press the power button; a simulated guest has no agent to ask."""

        def press() -> Rung | None:
            running = self._own(instance_id).observed is Observed.RUNNING
            self._change_own(instance_id, guests.request_shutdown)
            return Rung.POWER_BUTTON if running else None

        return await self._call("request_shutdown", instance_id, press)

    async def power_off(self, instance_id: str) -> None:
        """Take the power."""
        await self._change("power_off", instance_id, lambda guest, _: guests.power_off(guest))

    async def pause(self, instance_id: str) -> None:
        """Halt."""
        await self._change("pause", instance_id, guests.pause)

    async def unpause(self, instance_id: str) -> None:
        """Let run."""
        await self._change("unpause", instance_id, guests.unpause)

    async def save_memory(self, instance_id: str) -> None:
        """Save and switch off."""
        await self._change("save_memory", instance_id, guests.save_memory)

    async def restore_memory(self, instance_id: str) -> None:
        """Start from the saved memory."""
        await self._change("restore_memory", instance_id, guests.restore_memory)

    async def discard_memory(self, instance_id: str) -> None:
        """Delete a saved memory."""
        await self._change("discard_memory", instance_id, lambda guest, _: guests.discard_memory(guest))

    async def remove(self, instance_id: str) -> None:
        """Forget the guest and its disk."""
        await self._change("remove", instance_id, lambda guest, _: guests.remove(guest))

    async def forget(self, instance_id: str) -> None:
        """Forget the guest alone."""
        await self._change("forget", instance_id, lambda guest, _: guests.forget(guest))

    async def addresses(self) -> dict[str, tuple[PortAddress, ...]]:
        """Return addresses that follow from the ports, as if a network had given them out."""
        return await self._call("addresses", None, self._addresses)

    async def console(self, instance_id: str) -> bytes:
        """Return the console log; nothing when there is none."""
        return await self._call("console", instance_id, lambda: self._console(instance_id))

    async def open_console(self, instance_id: str) -> SimulatedConsole:
        """Connect to the console; lines typed at it are said to have been heard."""
        return await self._call("open_console", instance_id, lambda: self.hypervisor.attach(instance_id))

    async def set_password(self, instance_id: str, user: str, password: str) -> None:
        """Have the agent inside set a password; a mute one is waited for as long as with libvirt."""
        agent = await self._call("set_password", instance_id, lambda: guests.agent(self._own(instance_id)))
        if agent is None:
            raise NoAgent
        if agent == "mute":
            await asyncio.sleep(AGENT_SECONDS)
            raise AgentSilent(AGENT_SECONDS)
        self.hypervisor.change(instance_id, lambda guest, _: guests.set_password(guest, user, password))

    async def inject_nmi(self, instance_id: str) -> None:
        """Interrupt."""
        await self._change("inject_nmi", instance_id, lambda guest, _: guests.inject_nmi(guest))

    async def diagnostics(self, instance_id: str) -> Diagnostics:
        """Measure."""
        return await self._call(
            "diagnostics", instance_id, lambda: guests.diagnostics(self._own(instance_id))
        )

    def _copied(self, guest: SimulatedGuest, image_id: str, *, quiesce: bool) -> SimulatedGuest:
        if not self.capabilities.live_snapshot and guests.powered(guest):
            msg = "This hypervisor copies no disk of a guest that is on: shut it down first."
            raise DriverError(msg)
        return disks.snapshot(guest, image_id, quiesce=quiesce)

    def _holder(self, image_id: str) -> str | None:
        """Return the guest whose disk was copied for an image."""
        return next((guest.id for guest in self.hypervisor.guests() if image_id in guest.snapshots), None)

    def _forget_snapshot(self, image_id: str) -> None:
        holder = self._holder(image_id)
        if holder is not None:
            self.hypervisor.change(holder, lambda guest, _: disks.discard_snapshot(guest, image_id))

    def _addresses(self) -> dict[str, tuple[PortAddress, ...]]:
        return {
            guest.id: tuple(
                PortAddress(mac=port.mac, address=_address(port.mac)) for port in guest.spec.ports
            )
            for guest in self.hypervisor.guests()
            if guest.spec is not None and guest.spec.ports and guest.observed is Observed.RUNNING
        }

    def _console(self, instance_id: str) -> bytes:
        return "".join(f"{line}\n" for line in self.hypervisor.guest(instance_id).console).encode()

    def _facts(self) -> HostFacts:
        return HostFacts(
            hypervisor_type="simulated",
            hypervisor_version=1,
            vcpus=self.hypervisor.size.vcpus,
            memory=self.hypervisor.size.memory,
            disk=self.hypervisor.size.disk,
            disk_used=sum(
                (guest.disk or 0) + (0 if guest.kept is None else guest.kept.disk)
                for guest in self.hypervisor.guests()
            ),
            cpu_info=_CPU_INFO,
        )

    async def _change(self, name: str, instance_id: str, change: Change) -> None:
        await self._call(name, instance_id, lambda: self._change_own(instance_id, change))

    def _change_own(self, instance_id: str, change: Change) -> None:
        def on_own(guest: SimulatedGuest, now: float) -> SimulatedGuest:
            if not origins.foreign(guest):
                return change(guest, now)
            # Somebody else's is not there for us: what is said of one that is missing is said, and nothing changed.
            change(SimulatedGuest(id=guest.id), now)
            return guest

        self.hypervisor.change(instance_id, on_own)

    def _own(self, instance_id: str) -> SimulatedGuest:
        return _own(self.hypervisor.guest(instance_id))

    async def _call(self, name: str, instance_id: str | None, act: Callable[[], T]) -> T:
        return await self.hypervisor.call(name, instance_id, lambda: self._answer(act))

    def _answer(self, act: Callable[[], T]) -> T:
        if not self._open:
            msg = "The driver is not connected to the simulated hypervisor."
            raise HypervisorUnavailable(msg)
        if self.hypervisor.away:
            msg = "The simulated hypervisor does not answer."
            raise HypervisorUnavailable(msg)
        return act()
