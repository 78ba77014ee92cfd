"""An instance's files on this host, and the bases under its disk.

``base/IMAGE`` is a hard link to the image store's file, or a copy where that is on another file system; the
instance's folder has a hard link to that, so that neither deleting the image nor tidying ``base`` can take the
ground from under a disk. A base that neither the image store nor an instance has a link to is deleted with the
last instance.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shutil
import struct
from pathlib import Path
from typing import Final

import msgspec

from stateward.agent.driver import DriverError, ImageFiles
from stateward.agent.libvirt.xml import Files
from stateward.domain.records import GuestSpec

_GIB: Final = 1024**3

#: As much of a console log as is given out, bytes.
_CONSOLE_BYTES: Final = 1024 * 1024

#: Folders that QEMU, run as another user, must get through.
_FOLDER_MODE: Final = 0o711

#: magic, version, backing file offset, backing file size, cluster bits, virtual size.
_QCOW2_HEADER: Final = struct.Struct(">4sIQIIQ")
_QCOW2_FEATURES: Final = struct.Struct(">Q")
_QCOW2_FEATURES_AT: Final = 72
#: The first version that has them.
_QCOW2_WITH_FEATURES: Final = 3
_QCOW2_EXTERNAL_DATA: Final = 1 << 2


class DiskImage(msgspec.Struct, frozen=True, kw_only=True):
    """What an image's own header says."""

    #: Bytes.
    virtual_size: int
    #: Whether it names another file of the host's, which QEMU would open and show to the guest.
    refers: bool


def read_image(path: Path, disk_format: str) -> DiskImage:
    """Read an image's header; not with ``qemu-img info``, which opens the files that a hostile image names.

    Raises:
        DriverError: it is of a format that instances are not made from, or not of the one it is said to be.
    """
    if disk_format == "raw":
        return DiskImage(virtual_size=path.stat().st_size, refers=False)
    if disk_format != "qcow2":
        raise DriverError(
            f"Instances are made from qcow2 and raw images, not {disk_format}. Convert the image first."
        )
    with path.open("rb") as file:
        head = file.read(_QCOW2_FEATURES_AT + _QCOW2_FEATURES.size)
    if len(head) < _QCOW2_HEADER.size or not head.startswith(b"QFI\xfb"):
        raise DriverError("The image is said to be qcow2 and is not. Upload it again with its right format.")
    _, version, backing, _, _, size = _QCOW2_HEADER.unpack_from(head)
    features = 0
    if version >= _QCOW2_WITH_FEATURES and len(head) >= _QCOW2_FEATURES_AT + _QCOW2_FEATURES.size:
        (features,) = _QCOW2_FEATURES.unpack_from(head, _QCOW2_FEATURES_AT)
    return DiskImage(virtual_size=size, refers=backing != 0 or bool(features & _QCOW2_EXTERNAL_DATA))


class Disks:
    """The files under a host's data folder.

    Args:
        folder: the host's data folder; ``base`` and ``instances`` are made in it.
        images: where images come from.
    """

    def __init__(self, folder: Path, images: ImageFiles) -> None:
        self._base = folder / "base"
        self._instances = folder / "instances"
        self._images = images
        #: Between linking a base and linking to it, nobody may find it unused.
        self._bases = asyncio.Lock()

    def files(self, spec: GuestSpec) -> Files:
        """Return where an instance's files are.

        Raises:
            DriverError: its disk, or the kernel it boots, is not there.
        """
        home = self._home(spec.instance_id)
        direct = "kernel_id" in spec.image.properties
        files = Files(
            disk=home / "disk.qcow2",
            console=home / "console.log",
            kernel=home / "kernel" if direct else None,
            ramdisk=home / "ramdisk" if direct and "ramdisk_id" in spec.image.properties else None,
        )
        for path in (files.disk, files.kernel, files.ramdisk):
            if path is not None and not path.exists():
                raise DriverError(
                    f"The instance's file {path} is not there; its disk was not prepared, or was deleted."
                )
        return files

    async def prepare(self, spec: GuestSpec) -> None:
        """Make an instance's disk, unless it is there.

        The disk comes last and by renaming, so that one that is there is complete.

        Raises:
            DriverError: the image cannot be had or used, or the disk is full.
        """
        home = self._home(spec.instance_id)
        disk = home / "disk.qcow2"
        if disk.exists():
            return
        try:
            for folder in (self._instances, home):
                folder.mkdir(parents=True, exist_ok=True)
                folder.chmod(_FOLDER_MODE)
            properties = spec.image.properties
            wanted = {"base": spec.image.id}
            if "kernel_id" in properties:
                wanted["kernel"] = properties["kernel_id"]
                if "ramdisk_id" in properties:
                    wanted["ramdisk"] = properties["ramdisk_id"]
            for name, image_id in wanted.items():
                await self._link(image_id, home / name)
            image = await asyncio.to_thread(read_image, home / "base", spec.image.disk_format)
            if image.refers:
                raise DriverError(
                    "The image refers to another file, which would be read from this host. "
                    "Flatten it (qemu-img convert) and upload it again."
                )
            part = home / "disk.part"
            await _qemu_img(
                *("create", "-q", "-f", "qcow2", "-F", spec.image.disk_format, "-b", str(home / "base")),
                *(str(part), str(max(spec.disk * _GIB, image.virtual_size))),
            )
            # Other users of the host can name the file; libvirt gives it to QEMU's user.
            part.chmod(0o600)
            part.rename(disk)
        except OSError as error:
            raise DriverError(
                f"The instance's disk cannot be made in {home}: {error.strerror or error}."
            ) from error

    async def remove(self, instance_id: str) -> None:
        """Delete an instance's files, and the bases that nobody has any more.

        Raises:
            DriverError: they cannot be deleted.
        """
        home = self._home(instance_id)
        async with self._bases:
            try:
                await asyncio.to_thread(self._remove, home)
            except OSError as error:
                raise DriverError(f"{home} cannot be deleted: {error.strerror or error}.") from error

    def _remove(self, home: Path) -> None:
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(home)
        if self._base.is_dir():
            for base in self._base.iterdir():
                if base.stat().st_nlink == 1:
                    base.unlink()

    def console(self, instance_id: str) -> bytes:
        """Return the end of a console log; nothing when there is none yet. Blocking.

        Raises:
            DriverError: it cannot be read.
        """
        log = self._home(instance_id) / "console.log"
        try:
            end = _tail(log, _CONSOLE_BYTES)
            # virtlogd begins a new file every 2 MiB, and keeps the one before under this name.
            before = _tail(log.with_name("console.log.0"), _CONSOLE_BYTES - len(end))
        except OSError as error:
            raise DriverError(f"The console log {log} cannot be read: {error.strerror or error}.") from error
        return before + end

    def _home(self, instance_id: str) -> Path:
        return self._instances / instance_id

    async def _link(self, image_id: str, target: Path) -> None:
        """Give an instance a link to an image's bytes."""
        base = self._base / image_id
        async with self._bases:
            if await asyncio.to_thread(_link_existing, base, target):
                return
            source = await self._images.path(image_id)
            await asyncio.to_thread(_link_or_copy, source, base)
            await asyncio.to_thread(_link_existing, base, target)


def _link_existing(base: Path, target: Path) -> bool:
    """Link to a base that is there; say whether the target is there then."""
    if not target.exists():
        if not base.exists():
            return False
        target.hardlink_to(base)
    return True


def _link_or_copy(source: Path, base: Path) -> None:
    base.parent.mkdir(parents=True, exist_ok=True)
    base.parent.chmod(_FOLDER_MODE)
    part = base.with_name(f"{base.name}.part")
    part.unlink(missing_ok=True)
    try:
        part.hardlink_to(source.resolve())
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK):
            raise
        shutil.copyfile(source, part)
    part.rename(base)


def _tail(path: Path, limit: int) -> bytes:
    """Return at most the last ``limit`` bytes of a file, nothing when it does not exist."""
    if limit <= 0:
        return b""
    try:
        with path.open("rb") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - limit, 0))
            return file.read()
    except FileNotFoundError:
        return b""


async def _qemu_img(*arguments: str) -> None:
    try:
        process = await asyncio.create_subprocess_exec(
            "qemu-img",
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
    except FileNotFoundError:
        raise DriverError("qemu-img is not installed (Debian: qemu-utils).") from None
    _, errors = await process.communicate()
    if process.returncode:
        raise DriverError(f"qemu-img: {errors.decode(errors='replace').strip()}")
