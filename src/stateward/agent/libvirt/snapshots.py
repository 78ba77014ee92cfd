"""Copies of instances' disks that are to become images: files that are whole in themselves, named by the image."""

from __future__ import annotations

from pathlib import Path

from stateward.agent.driver import ImageFiles
from stateward.agent.libvirt.bases import FOLDER_MODE
from stateward.agent.libvirt.threads import on_thread
from stateward.agent.libvirt.tools import failure, parts_of, qemu_img, sync, whole

DOING = "The instance's disk cannot be copied"


class Snapshots:
    """The copies of one host.

    Args:
        folder: where they are; made when it is needed.
        images: what they are handed to.
    """

    def __init__(self, folder: Path, images: ImageFiles) -> None:
        self._folder = folder
        self._images = images

    def file(self, image_id: str) -> Path:
        """Return where the copy for an image is, or is to be."""
        return self._folder / image_id

    def prepare(self) -> None:
        """Make the folder; QEMU, run as another user, must get through it. Raises ``DriverError``."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._folder.chmod(FOLDER_MODE)
        except OSError as error:
            raise failure(DOING, error.strerror or str(error)) from error

    async def convert(self, disk: Path, image_id: str) -> None:
        """Copy the disk of a guest that is off, unless it was copied.

        Raises:
            DriverError: it cannot be read, or there is no room.
        """
        async with whole(self.file(image_id), DOING) as part:
            await qemu_img(DOING, "convert", "-q", "-f", "qcow2", "-O", "qcow2", str(disk), str(part))

    async def publish(self, image_id: str) -> None:
        """Hand a copy to the image store, then delete it. Raises ``DriverError``, and then it is kept."""
        await self._images.store(image_id, self.file(image_id))
        await self.discard(image_id)

    async def discard(self, image_id: str) -> None:
        """Delete a copy, or what was begun of it, if it is there."""
        file = self.file(image_id)

        def unlink() -> None:
            for path in (*parts_of(file), file):
                if path.exists():
                    path.unlink()
                    sync(self._folder)

        try:
            await on_thread(unlink)
        except OSError as error:
            raise failure(f"{file} cannot be deleted", error.strerror or str(error)) from error
