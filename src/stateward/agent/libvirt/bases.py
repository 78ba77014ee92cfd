"""The images that disks are made over.

``base/IMAGE`` is a hard link to the image store's file, or a copy where that is on another file system; the
instance's folder has a hard link to that, so that neither deleting the image nor tidying ``base`` can take the
ground from under a disk. One that is there has the image's bytes even if the image is deleted: the store gives no
id out twice. A base that neither the image store nor an instance has a link to is deleted with the last instance.
Hosts may share the folder: a lock beside it lets one of them at a time change what is in it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Final

from stateward.agent.disk_image import usable_image
from stateward.agent.driver import DriverError, ImageFiles
from stateward.agent.libvirt.tools import failure, part_of, qemu_img
from stateward.threads import apart, on_thread

#: Folders that QEMU, run as another user, must get through.
FOLDER_MODE: Final = 0o711

#: What a file system says that has no locks.
_NO_LOCKS: Final = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP})

#: What ``qemu-img check`` ends with when all is well, or some space is wasted.
_SOUND: Final = frozenset({0, 3})


def named(folder: Path, image_id: str) -> Path:
    """Return where an image's file is in a folder; what a property of an image names may be any text.

    Raises:
        DriverError: it would be elsewhere: a file of the host's, which QEMU would show to the guest.
    """
    path = folder / image_id
    if path.parent != folder or path.name in {"", ".."}:
        raise DriverError(f"{image_id!r} is not the id of an image.")
    return path


class Bases:
    """The bases of one host.

    Args:
        folder: where they are; made when it is needed.
        images: where images come from.
    """

    def __init__(self, folder: Path, images: ImageFiles) -> None:
        self._folder = folder
        self._images = images
        #: Held by who is alone with the bases: other hosts may share the folder.
        self._lock = folder.with_name(f"{folder.name}.lock")
        self._turns = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def _alone(self) -> AsyncGenerator[None]:
        """Let nobody find a base unused between its making and the link to it, on this host or on another.

        Raises:
            OSError: the folder cannot be used.
        """
        async with self._turns:
            taking = asyncio.create_task(apart("lock of bases", self._hold, late=os.close))
            try:
                held = await asyncio.shield(taking)
            except asyncio.CancelledError:
                # Had in the end, for nobody.
                taking.add_done_callback(_let_go)
                raise
            try:
                yield
            finally:
                os.close(held)

    def _hold(self) -> int:
        """Wait for the lock; the kernel gives it back when the file is closed, or the agent killed. Blocking."""
        self._lock.parent.mkdir(parents=True, exist_ok=True)
        held = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(held, fcntl.LOCK_EX)
        except OSError as error:
            # A file system without locks: alone among this host's own calls only.
            if error.errno not in _NO_LOCKS:
                os.close(held)
                raise
        return held

    async def link(self, image_id: str, target: Path, disk_format: str | None) -> None:
        """Give an instance a link to an image's bytes, unless it has it.

        Args:
            image_id: the image.
            target: the link.
            disk_format: of an image that a disk is made over, which is looked at once; None for a kernel.

        Raises:
            DriverError: the id is none, the image is not there, or no disk can be made over it.
            OSError: the disk is full or broken.
        """
        base = named(self._folder, image_id)
        async with self._alone():
            if await on_thread(_link_existing, base, target):
                return
            source = await self._images.path(image_id)
            part = part_of(base)
            try:
                await on_thread(_link_or_copy, source, part)
                if disk_format is not None:
                    await _inspect(part, disk_format)
                part.rename(base)
            finally:
                part.unlink(missing_ok=True)
            await on_thread(_link_existing, base, target)

    async def unlink(self, folder: Path) -> None:
        """Delete an instance's folder with links in it, and the bases that nobody has any more.

        Raises:
            OSError: they cannot be deleted.
        """
        async with self._alone():
            await on_thread(self._unlink, folder)

    def _unlink(self, folder: Path) -> None:
        if folder.is_dir():
            shutil.rmtree(folder)
        if self._folder.is_dir():
            for base in self._folder.iterdir():
                if base.stat().st_nlink == 1:
                    base.unlink()


async def _inspect(path: Path, disk_format: str) -> None:
    """Refuse what no disk can be made over: by its header first, because the program that tells the rest opens it."""
    image = await on_thread(usable_image, path, disk_format)
    if disk_format == "qcow2":
        doing = "The image is broken, upload it again"
        if path.stat().st_size < image.least:
            raise failure(doing, "the file ends too early")
        await qemu_img(doing, "check", "-q", "-f", "qcow2", str(path), fine=_SOUND)


def _let_go(taking: asyncio.Task[int]) -> None:
    if not taking.cancelled() and taking.exception() is None:
        os.close(taking.result())


def _link_existing(base: Path, target: Path) -> bool:
    """Link to a base that is there; say whether the target is there then."""
    if not target.exists():
        if not base.exists():
            return False
        target.hardlink_to(base)
    return True


def _link_or_copy(source: Path, part: Path) -> None:
    part.parent.mkdir(parents=True, exist_ok=True)
    part.parent.chmod(FOLDER_MODE)
    part.unlink(missing_ok=True)
    try:
        part.hardlink_to(source.resolve())
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK):
            raise
        shutil.copyfile(source, part)
