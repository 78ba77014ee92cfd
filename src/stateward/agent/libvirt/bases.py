"""The images that disks are made over.

``base/IMAGE`` is a hard link to the image store's file, or a copy where that is on another file system; the
instance's folder has a hard link to that, so that neither deleting the image nor tidying ``base`` can take the
ground from under a disk. A base that neither the image store nor an instance has a link to is deleted with the
last instance.
"""

from __future__ import annotations

import asyncio
import errno
import shutil
import struct
from pathlib import Path
from typing import Final

import msgspec

from stateward.agent.driver import DriverError, ImageFiles
from stateward.agent.libvirt.threads import on_thread
from stateward.agent.libvirt.tools import failure, part_of, qemu_img

#: Folders that QEMU, run as another user, must get through.
FOLDER_MODE: Final = 0o711

#: magic, version, backing file offset, backing file size, cluster bits, virtual size, encryption, and how many
#: entries of 8 bytes the first table has, and where.
_QCOW2_HEADER: Final = struct.Struct(">4sIQIIQIIQ")
_QCOW2_FEATURES: Final = struct.Struct(">Q")
_QCOW2_FEATURES_AT: Final = 72
#: The first version that has them.
_QCOW2_WITH_FEATURES: Final = 3
_QCOW2_EXTERNAL_DATA: Final = 1 << 2

#: What ``qemu-img check`` ends with when all is well, or some space is wasted.
_SOUND: Final = frozenset({0, 3})


class DiskImage(msgspec.Struct, frozen=True, kw_only=True):
    """What an image's own header says."""

    #: Bytes.
    virtual_size: int
    #: Bytes that the file must have to hold its first table; without that a disk of zeros would be read.
    least: int
    #: Whether it names another file of the host's, which QEMU would open and show to the guest.
    refers: bool


def read_image(path: Path, disk_format: str) -> DiskImage:
    """Read an image's header; not with ``qemu-img info``, which opens the files that a hostile image names.

    Raises:
        DriverError: it is of a format that instances are not made from, or not of the one it is said to be.
        OSError: it cannot be read.
    """
    if disk_format == "raw":
        return DiskImage(virtual_size=path.stat().st_size, least=0, refers=False)
    if disk_format != "qcow2":
        raise DriverError(
            f"Instances are made from qcow2 and raw images, not {disk_format}. Convert the image first."
        )
    with path.open("rb") as file:
        head = file.read(_QCOW2_FEATURES_AT + _QCOW2_FEATURES.size)
    if len(head) < _QCOW2_HEADER.size or not head.startswith(b"QFI\xfb"):
        raise DriverError("The image is said to be qcow2 and is not. Upload it again with its right format.")
    _, version, backing, _, _, size, _, entries, table = _QCOW2_HEADER.unpack_from(head)
    features = 0
    if version >= _QCOW2_WITH_FEATURES and len(head) >= _QCOW2_FEATURES_AT + _QCOW2_FEATURES.size:
        (features,) = _QCOW2_FEATURES.unpack_from(head, _QCOW2_FEATURES_AT)
    return DiskImage(
        virtual_size=size,
        least=table + 8 * entries,
        refers=backing != 0 or bool(features & _QCOW2_EXTERNAL_DATA),
    )


def usable_image(path: Path, disk_format: str) -> DiskImage:
    """Read the header of an image from outside, which a disk is to be made over.

    Raises:
        DriverError: as ``read_image``, and when it refers to another file.
        OSError: it cannot be read.
    """
    image = read_image(path, disk_format)
    if image.refers:
        raise DriverError(
            "The image refers to another file, which would be read from this host. "
            "Flatten it (qemu-img convert) and upload it again."
        )
    return image


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
        #: Between linking a base and linking to it, nobody may find it unused.
        self._alone = asyncio.Lock()

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
        async with self._alone:
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
        async with self._alone:
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
