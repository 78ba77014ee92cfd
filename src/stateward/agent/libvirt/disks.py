"""An instance's files on this host: its disk, the one kept aside, the one it is rescued with, and its console.

Every file is whole under its name or not there (``tools.whole``), and every method says "make it so": whatever a
killed agent left is completed or made anew.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from stateward.agent import seeds
from stateward.agent.disk_image import backing_name, check_room, read_image, usable_image
from stateward.agent.driver import DriverError, ImageFiles
from stateward.agent.libvirt.bases import FOLDER_MODE, Bases, named
from stateward.agent.libvirt.extra_disks import EXTRA_DISKS, extra_disks, write
from stateward.agent.libvirt.tools import failure, qemu_img, run, sync, whole
from stateward.agent.libvirt.xml import Files
from stateward.domain.records import GuestSpec, ImageFacts
from stateward.threads import on_thread

_GIB: Final = 1024**3

#: As much of a console log as is given out, bytes.
_CONSOLE_BYTES: Final = 1024 * 1024


#: What the name of a kept disk begins with; the fence of the operation that kept it comes after.
_KEPT: Final = "disk.kept."


class _Home:
    """The names in an instance's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.disk = folder / "disk.qcow2"
        self.rescue = folder / "disk.rescue"
        #: Links to the images that the disk, and the rescue disk, need; each has a folder, and goes with it.
        self.images = folder / "images"
        self.rescue_images = folder / "images.rescue"
        #: Links to those that the next disk will need, from when they were found good until it is made.
        self.next_images = folder / "images.next"
        self.console = folder / "console.log"
        #: What the guest is told of itself.
        self.seed = folder / "seed.iso"

    def kept_by(self, fence: int) -> Path:
        """Return where the disk is that the operation with this fence keeps: a name comes and goes at once."""
        return self.folder / f"{_KEPT}{fence}"

    def kept(self) -> dict[int, Path]:
        """Return the disks that are kept, by the fence of the operation that kept each."""
        return {fence: path for fence, path in self._kept() if path.name == f"{_KEPT}{fence}"}

    def kept_before(self, fence: int) -> list[Path]:
        """Return what the operations before this one kept, or were killed while they kept it."""
        return [path for other, path in self._kept() if other < fence]

    def _kept(self) -> list[tuple[int, Path]]:
        found = [
            (path.name.removeprefix(_KEPT).partition(".")[0], path) for path in self.folder.glob(f"{_KEPT}*")
        ]
        return [(int(fence), path) for fence, path in found if fence.isdecimal()]


class Disks:
    """The files under a host's data folder.

    Args:
        folder: the host's data folder; ``base`` and ``instances`` are made in it.
        images: where images come from.
    """

    def __init__(self, folder: Path, images: ImageFiles) -> None:
        self._instances = folder / "instances"
        self._bases = Bases(folder / "base", images)

    def files(self, spec: GuestSpec) -> Files:
        """Return where an instance's files are.

        Raises:
            DriverError: its disk, the rescue disk, or the kernel it boots, is not there, or what its image names
                as a kernel is no image.
        """
        home = self._home(spec.instance_id)
        image, links = (spec.image, home.images) if spec.rescue is None else (spec.rescue, home.rescue_images)
        files = Files(
            disk=home.disk if spec.rescue is None else home.rescue,
            console=home.console,
            kernel=named(links, image.kernel) if image.kernel is not None else None,
            ramdisk=named(links, image.ramdisk) if image.ramdisk is not None else None,
            further=_extra(spec, home) if spec.rescue is None else (("vdb", home.disk, "qcow2"),),
            seed=home.seed if spec.seed is not None else None,
        )
        further = (path for _device, path, _kind in files.further)
        for path in (files.disk, files.kernel, files.ramdisk, *further, files.seed):
            if path is not None and not path.exists():
                raise DriverError(
                    f"The instance's file {path} is not there; its disk was not prepared, or was deleted."
                )
        return files

    def disk(self, instance_id: str) -> Path:
        """Return an instance's disk. Raises ``DriverError`` when it is not there."""
        disk = self._home(instance_id).disk
        if not disk.exists():
            raise DriverError(
                f"The instance's disk {disk} is not there; it was not prepared, or was deleted."
            )
        return disk

    async def check(self, spec: GuestSpec) -> None:
        """Fetch the image and see that the instance's disk can be made over it; it is held until the disk is.

        Raises:
            DriverError: the image cannot be had or used, or the disk is full; nothing is left of it then.
        """
        await self._check(spec, spec.image, spec.disk * _GIB)

    async def check_rescue(self, spec: GuestSpec) -> None:
        """Do the same with the image to rescue with. Raises ``DriverError``, also when the spec names none."""
        await self._check(spec, _rescue_image(spec), 0)

    async def prepare(self, spec: GuestSpec) -> None:
        """Make an instance's disks, unless they are there; the one that it boots from comes last.

        Raises:
            DriverError: the image cannot be had or used, or the disk is full.
        """
        home = self._home(spec.instance_id)
        for extra in extra_disks(spec, home.folder):
            if not extra.path.exists():
                doing = f"The instance's further disks cannot be made in {home.folder}"
                await _do(doing, functools.partial(self._make_folder, home))
                async with whole(extra.path, doing) as part:
                    await on_thread(write, extra, part)
        await self._make(home, home.disk, home.images, spec.image, spec.disk * _GIB)
        await self._let_go(home)

    async def write_seed(self, spec: GuestSpec) -> None:
        """Write what the guest is told of itself, unless it is there as it is to be.

        A guest that runs keeps the file it was started with.

        Raises:
            DriverError: it cannot be written.
        """
        home = self._home(spec.instance_id)
        # Without its folder there is no disk either, which is said where the files are looked for.
        if spec.seed is None or not home.folder.is_dir():
            return
        files = seeds.documents(spec.instance_id, spec.seed, spec.ports)
        doing = "What the guest is told of itself cannot be written"
        if not await on_thread(seeds.is_of, home.seed, files):
            async with whole(home.seed, doing) as part:
                content = await on_thread(seeds.image, files)
                await on_thread(part.write_bytes, content)

    async def prepare_rescue(self, spec: GuestSpec) -> None:
        """Make the rescue disk, unless it is there; it has its image's own size.

        Raises:
            DriverError: the spec names no image for it, the image cannot be had or used, or the disk is full.
        """
        image, home = _rescue_image(spec), self._home(spec.instance_id)
        await self._make(home, home.rescue, home.rescue_images, image, 0)
        await self._let_go(home)

    async def keep(self, instance_id: str, fence: int) -> None:
        """Copy the disk aside, unless this operation did; sharing the bytes where the file system can.

        Raises:
            DriverError: there is no disk, or no room.
        """
        kept = self._home(instance_id).kept_by(fence)
        if kept.exists():
            return
        disk = self.disk(instance_id)
        doing = "The instance's disk cannot be kept"
        async with whole(kept, doing) as part:
            await run(
                doing, "coreutils", "cp", "--reflink=auto", "--sparse=always", "--", str(disk), str(part)
            )
        await self.drop_kept(instance_id, fence)

    def kept(self, instance_id: str) -> frozenset[int]:
        """Return the fences of the operations that keep a disk."""
        return frozenset(self._home(instance_id).kept())

    async def give_back(self, instance_id: str) -> None:
        """Put the disk that was kept last in the place of the disk; to be called when one is kept."""
        home = self._home(instance_id)
        last, kept = max(home.kept().items())
        # First: repeated after a kill in between, this must find no older one to put back.
        await self.drop_kept(instance_id, last)

        def rename() -> None:
            kept.replace(home.disk)
            sync(home.folder)

        await _do("The kept disk cannot be put back", rename)

    async def drop_kept(self, instance_id: str, fence: int) -> None:
        """Delete what operations before this one kept, if anything is."""
        for path in self._home(instance_id).kept_before(fence):
            await self._delete(path)

    async def grow(self, spec: GuestSpec) -> None:
        """Make the disk as large as the spec says.

        Raises:
            DriverError: no room.
        """
        doing = "The instance's disk cannot be made larger"
        disk = self.disk(spec.instance_id)
        await qemu_img(doing, "resize", "-q", "-f", "qcow2", str(disk), str(spec.disk * _GIB))
        await _do(doing, lambda: sync(disk))

    def small(self, spec: GuestSpec) -> bool:
        """Say whether the disk is smaller than the spec says. Raises ``DriverError`` when it is not there."""
        return read_image(self.disk(spec.instance_id), "qcow2").virtual_size < spec.disk * _GIB

    async def discard(self, instance_id: str) -> None:
        """Delete the disk, those the flavor gives besides it, and the links that only it needs, if they are there."""
        home = self._home(instance_id)
        for name in EXTRA_DISKS:
            await self._delete(home.folder / name)
        await self._delete(home.disk)
        # A kept disk stands on the same image.
        if not home.kept():
            await self._unlink(home.images)

    async def is_over_image(self, spec: GuestSpec) -> bool:
        """Say whether the disk is there, with the link to the image that it is to be made over and was made over.

        Raises:
            DriverError: it cannot be read.
        """
        home = self._home(spec.instance_id)
        base = named(home.images, spec.image.id)
        try:
            # A removal that failed midway can have taken the link and left the disk, which then boots no more.
            return await on_thread(
                lambda: home.disk.exists() and base.exists() and backing_name(home.disk) == base.name
            )
        except OSError as error:
            raise failure(
                f"The instance's disk {home.disk} cannot be read", error.strerror or str(error)
            ) from error

    async def discard_rescue(self, instance_id: str) -> None:
        """Delete the rescue disk and its links, if they are there."""
        home = self._home(instance_id)
        await self._delete(home.rescue)
        await self._unlink(home.rescue_images)

    async def remove(self, instance_id: str) -> None:
        """Delete an instance's files, and the bases that nobody has any more.

        Raises:
            DriverError: they cannot be deleted.
        """
        await self._unlink(self._home(instance_id).folder)

    def console(self, instance_id: str) -> bytes:
        """Return the end of a console log; nothing when there is none yet. Blocking.

        Raises:
            DriverError: it cannot be read.
        """
        log = self._home(instance_id).console
        try:
            end = _tail(log, _CONSOLE_BYTES)
            # virtlogd begins a new file every 2 MiB, and keeps the one before under this name.
            before = _tail(log.with_name("console.log.0"), _CONSOLE_BYTES - len(end))
        except OSError as error:
            raise DriverError(f"The console log {log} cannot be read: {error.strerror or error}.") from error
        return before + end

    def _home(self, instance_id: str) -> _Home:
        return _Home(self._instances / instance_id)

    async def _make(self, home: _Home, disk: Path, links: Path, image: ImageFacts, size: int) -> None:
        """Make a disk over an image, unless it is there; ``size`` in bytes, 0 for the image's own."""
        if disk.exists():
            return
        doing = f"The instance's disk cannot be made in {home.folder}"
        virtual_size = await self._link(doing, home, links, image, size)
        async with whole(disk, doing) as part:
            await qemu_img(
                doing,
                *("create", "-q", "-f", "qcow2", "-F", image.disk_format, "-b", str(named(links, image.id))),
                *(str(part), str(max(size, virtual_size))),
            )

    async def _check(self, spec: GuestSpec, image: ImageFacts, size: int) -> None:
        home = self._home(spec.instance_id)
        try:
            await self._link("The image cannot be fetched", home, home.next_images, image, size)
        except DriverError:
            await self._let_go(home)
            raise

    async def _let_go(self, home: _Home) -> None:
        """Hold no image any longer for a disk that is made, or will not be."""
        if home.next_images.exists():
            await self._unlink(home.next_images)

    async def _link(self, doing: str, home: _Home, links: Path, image: ImageFacts, size: int) -> int:
        """Link to an image, and to what it boots, and return its virtual size in bytes.

        Raises:
            DriverError: it cannot be had or used, or it is larger than ``size`` bytes, where that is not 0.
        """
        try:
            self._make_folder(home)
            links.mkdir(exist_ok=True)
            links.chmod(FOLDER_MODE)
            base = named(links, image.id)
            await self._bases.link(image.id, base, image.disk_format)
            for other in (image.kernel, image.ramdisk):
                if other is not None:
                    await self._bases.link(other, named(links, other), None)
            virtual_size = (await on_thread(usable_image, base, image.disk_format)).virtual_size
        except OSError as error:
            raise failure(doing, error.strerror or str(error)) from error
        check_room(virtual_size, size)
        return virtual_size

    def _make_folder(self, home: _Home) -> None:
        for folder in (self._instances, home.folder):
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(FOLDER_MODE)

    async def _delete(self, path: Path) -> None:
        def unlink() -> None:
            if path.exists():
                path.unlink()
                sync(path.parent)

        await _do(f"{path} cannot be deleted", unlink)

    async def _unlink(self, folder: Path) -> None:
        try:
            await self._bases.unlink(folder)
        except OSError as error:
            raise failure(f"{folder} cannot be deleted", error.strerror or str(error)) from error


def _extra(spec: GuestSpec, home: _Home) -> tuple[tuple[str, Path, str], ...]:
    return tuple((disk.device, disk.path, "raw") for disk in extra_disks(spec, home.folder))


def _rescue_image(spec: GuestSpec) -> ImageFacts:
    if spec.rescue is None:
        raise DriverError("The instance is not being rescued: no image to rescue it with is named.")
    return spec.rescue


async def _do(doing: str, act: Callable[[], None]) -> None:
    """Do something that blocks, on a thread; an ``OSError`` becomes a ``DriverError``."""
    try:
        await on_thread(act)
    except OSError as error:
        raise failure(doing, error.strerror or str(error)) from error


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
