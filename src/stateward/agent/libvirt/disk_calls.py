"""The part of the driver contract that is about disks, on libvirt."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path

import libvirt

from stateward.agent.driver import Capabilities, DriverError, ImageFiles
from stateward.agent.libvirt import guests, inside
from stateward.agent.libvirt.backups import Backups
from stateward.agent.libvirt.connection import Connection, Lane
from stateward.agent.libvirt.disks import Disks
from stateward.agent.libvirt.frozen import Freezer
from stateward.agent.libvirt.snapshots import DOING, Snapshots, convert
from stateward.domain.records import GuestSpec


class DiskCalls:
    """What a driver does with disks; part of ``LibvirtDriver``.

    Args:
        connection: to libvirtd.
        folder: the host's data folder.
        images: where images come from, and go.
        capabilities: the driver's.
        own: the folder of what is this host's alone.
    """

    def __init__(
        self,
        connection: Connection,
        folder: Path,
        images: ImageFiles,
        capabilities: Capabilities,
        *,
        own: Path,
    ) -> None:
        self.capabilities = capabilities
        self._connection = connection
        self._disks = Disks(folder, images)
        snapshots = folder / "snapshots"
        self._snapshots = Snapshots(snapshots, images)
        self._backups = Backups(connection, snapshots, DOING)
        self._freezer = Freezer(
            own / "frozen",
            reach=self._inside(inside.reachable),
            freeze=self._inside(inside.freeze),
            thaw=self._inside(inside.thaw),
        )

    async def check_image(self, spec: GuestSpec) -> None:
        """Fetch the image and look into it."""
        await self._disks.check(spec)

    async def check_rescue_image(self, spec: GuestSpec) -> None:
        """Fetch the image to rescue with and look into it."""
        await self._disks.check_rescue(spec)

    async def prepare_disk(self, spec: GuestSpec) -> None:
        """Make the instance's disk, an overlay over its image."""
        await self._disks.prepare(spec)

    async def keep_disk(self, instance_id: str, fence: int) -> None:
        """Copy the disk aside."""
        if fence not in self._disks.kept(instance_id):
            await self._refuse_on(instance_id)
            await self._disks.keep(instance_id, fence)

    async def return_disk(self, instance_id: str) -> None:
        """Put the kept disk back."""
        if self._disks.kept(instance_id):
            await self._refuse_on(instance_id)
            await self._disks.give_back(instance_id)

    async def drop_kept_disk(self, instance_id: str, fence: int) -> None:
        """Delete the disk that an operation before this one kept."""
        await self._disks.drop_kept(instance_id, fence)

    async def grow_disk(self, spec: GuestSpec) -> None:
        """Make the disk larger; the guest sees it at its next boot."""
        if self._disks.small(spec):
            await self._refuse_on(spec.instance_id)
            await self._disks.grow(spec)

    async def discard_disk(self, instance_id: str) -> None:
        """Delete the disk."""
        await self._refuse_on(instance_id)
        await self._disks.discard(instance_id)

    async def discard_stale_disk(self, spec: GuestSpec) -> None:
        """Delete a disk that is no overlay over its image."""
        if not await self._disks.is_over_image(spec):
            await self.discard_disk(spec.instance_id)

    async def prepare_rescue_disk(self, spec: GuestSpec) -> None:
        """Make the rescue disk, an overlay over its image."""
        await self._disks.prepare_rescue(spec)

    async def discard_rescue_disk(self, instance_id: str) -> None:
        """Delete the rescue disk."""
        await self._refuse_on(instance_id)
        await self._disks.discard_rescue(instance_id)

    async def snapshot(self, spec: GuestSpec, image_id: str, *, quiesce: bool) -> None:
        """Copy the disk: of a guest that is on by a job of QEMU's, of any other by ``qemu-img``."""
        instance_id = spec.instance_id
        disk = self._disks.disk(instance_id)

        async def write(target: Path) -> None:
            if await self._on(instance_id):
                if not self.capabilities.live_snapshot:
                    raise DriverError("The guest is on, and this hypervisor copies the disk of none that is.")
                still = self._freezer.frozen(instance_id) if quiesce else contextlib.nullcontext()
                if await self._backups.copy(instance_id, disk, target, still):
                    return
            await convert(disk, target)

        await self._snapshots.make(image_id, write)

    async def publish_snapshot(self, image_id: str) -> None:
        """Hand the copy over."""
        await self._snapshots.publish(image_id)

    async def discard_snapshot(self, image_id: str) -> None:
        """Delete the copy; a job that a killed agent began of it is ended first."""
        for begun in self._snapshots.begun(image_id):
            await self._backups.end_into(begun)
        await self._snapshots.discard(image_id)

    async def _refuse_on(self, instance_id: str) -> None:
        """Refuse to touch the disk of a guest that is on. Raises ``DriverError``."""
        if await self._on(instance_id):
            raise DriverError("The guest is on: its disk is in use until its power is taken.")

    async def _on(self, instance_id: str) -> bool:
        return await self._connection.run(Lane.LOOK, lambda connection: guests.on(connection, instance_id))

    def _inside(self, ask: Callable[[libvirt.virConnect, str], object]) -> Callable[[str], Awaitable[None]]:
        """Make a call of libvirt's that an agent inside a guest answers one that is waited for."""

        async def call(instance_id: str) -> None:
            await self._connection.run(Lane.ASK, lambda connection: ask(connection, instance_id))

        return call
