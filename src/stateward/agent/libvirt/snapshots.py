"""Copies of instances' disks that are to become images: files that are whole in themselves, named by the image."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from stateward.agent.driver import ImageFiles
from stateward.agent.libvirt.bases import FOLDER_MODE
from stateward.agent.libvirt.tools import failure, parts_of, qemu_img, sync, whole
from stateward.threads import on_thread

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

    def begun(self, image_id: str) -> list[Path]:
        """Return what was begun of a copy and is not whole."""
        return parts_of(self.file(image_id))

    def file(self, image_id: str) -> Path:
        """Return where the copy for an image is, or is to be."""
        return self._folder / image_id

    async def make(self, image_id: str, write: Callable[[Path], Awaitable[None]]) -> None:
        """Have a copy written, unless it is there.

        Raises:
            DriverError: it cannot be; nothing is left then.
        """
        file = self.file(image_id)
        if not file.exists():
            self._prepare()
            async with whole(file, DOING) as part:
                await write(part)

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

    def _prepare(self) -> None:
        """Make the folder; QEMU, run as another user, must get through it. Raises ``DriverError``."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._folder.chmod(FOLDER_MODE)
        except OSError as error:
            raise failure(DOING, error.strerror or str(error)) from error


async def convert(disk: Path, target: Path) -> None:
    """Copy the disk of a guest that is off. Raises ``DriverError``."""
    await qemu_img(DOING, "convert", "-q", "-f", "qcow2", "-O", "qcow2", str(disk), str(target))
