"""Makes the tiny guest: Debian's cloud kernel, a busybox and ``init.sh``.

Packages are downloaded with Debian's own signed package lists and unpacked; nothing is installed and nothing of
the system's is changed, so any user can do it. What was made is kept, and a second call only looks at it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import lzma
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Final

import msgspec

from stateward.guest import cpio
from stateward.guest.apt import Apt, GuestBuildError, Progress, run

#: Depends on the newest kernel made for virtual machines.
_KERNEL: Final = "linux-image-cloud-amd64"
_BUSYBOX: Final = "busybox-static"
_APPLETS: Final = frozenset(
    {
        *("acpid", "insmod", "ip", "mke2fs", "mount", "nproc", "passwd", "poweroff", "sh", "sha256sum"),
        *("udhcpc", "usleep"),
    }
)

#: What the kernel has as modules: disk, power button, its events, and the means to tell of a crash and of an agent.
_MODULES: Final = ("virtio_pci", "virtio_blk", "button", "evdev", "pvpanic_mmio", "virtio_console")
#: What is loaded only where there is something for it, by the folder it is in: a network card, a seed.
_MODULES_AT_NEED: Final = {"net": ("virtio_net",), "seed": ("isofs",)}

#: The guest's disk in MiB; it takes a fraction of a MiB on the host until the guest writes to it.
_DISK_MIB: Final = 64

#: Changed when the same parts are to be put together in another way.
_RECIPE: Final = "2"

#: MiB the guest needs to boot.
MEMORY: Final = 96

#: Properties of the guest's disk image besides ``kernel_id`` and ``ramdisk_id``, which name the other two files.
TINY_GUEST_PROPERTIES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "os_command_line": "console=ttyS0 quiet panic=-1 nokaslr mitigations=off no_timer_check "
        "cryptomgr.notests random.trust_cpu=on"
    }
)


class GuestFiles(msgspec.Struct, frozen=True, kw_only=True):
    """The guest's three images: a kernel and a ramdisk (both raw), and a qcow2 disk."""

    kernel: Path
    ramdisk: Path
    disk: Path


async def build(cache: Path, progress: Progress) -> GuestFiles:
    """Return the guest's files, making them in ``cache`` when they are not there.

    Raises:
        GuestBuildError: a program, a package or the network is missing.
    """
    home = cache / "tiny-guest"
    files = GuestFiles(kernel=home / "kernel", ramdisk=home / "ramdisk", disk=home / "disk.qcow2")
    init = resources.files("stateward.guest").joinpath("init.sh").read_bytes()
    made_of = hashlib.sha256(init + _RECIPE.encode()).hexdigest()
    stamp = home / "made-of"
    if stamp.is_file() and stamp.read_text(encoding="ascii") == made_of:
        return files
    home.mkdir(parents=True, exist_ok=True)
    stamp.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(dir=home) as work:
        parts = Path(work)
        kernel_tree = parts / "kernel"
        apt = await Apt.find(cache / "apt", _KERNEL, progress)
        package = await apt.kernel_package(_KERNEL)
        progress(f"Downloading {package}, the tiny guest's kernel (about 30 MB).")
        await apt.unpack(package, kernel_tree)
        busybox = await _busybox(apt, parts / "busybox", progress)
        progress("Putting the tiny guest together.")
        kernel = next(kernel_tree.glob("boot/vmlinuz-*"))
        modules = await asyncio.to_thread(_all_modules, kernel_tree)
        replace(files.kernel, kernel.read_bytes())
        replace(files.ramdisk, cpio.archive(_ramdisk(init, busybox, modules)))
        disk = parts / "disk.qcow2"
        await run("qemu-img", "create", "-q", "-f", "qcow2", str(disk), f"{_DISK_MIB}M")
        replace(files.disk, disk.read_bytes())
    stamp.write_text(made_of, encoding="ascii")
    return files


def replace(path: Path, content: bytes) -> None:
    """Write a new file in a file's place: guests may still be using the old one, by links of their own."""
    part = path.with_name(f"{path.name}.part")
    part.write_bytes(content)
    part.replace(path)


def _ramdisk(init: bytes, busybox: bytes, modules: Iterable[tuple[str, bytes]]) -> list[cpio.Entry]:
    folders = ("bin", "dev", "etc", "etc/acpi", "etc/acpi/PWRF", "modules")
    return [
        *(cpio.folder(name) for name in (*folders, *(f"modules/{name}" for name in _MODULES_AT_NEED))),
        cpio.character_device("dev/console", 5, 1),
        cpio.file("init", init, 0o755),
        cpio.file("bin/busybox", busybox, 0o755),
        # The number is the press of a power button, as busybox's acpid names its handlers.
        cpio.file("etc/acpi/PWRF/00000080", init, 0o755),
        cpio.file("etc/address", init, 0o755),
        *(cpio.file(f"modules/{path}", content) for path, content in modules),
    ]


def _all_modules(tree: Path) -> list[tuple[str, bytes]]:
    """Return all modules under paths that sort as they are loaded."""
    always = _modules(tree, _MODULES)
    names = {name for name, _content in always}
    found = [(f"{number:02}-{name}.ko", content) for number, (name, content) in enumerate(always)]
    for folder, wanted in _MODULES_AT_NEED.items():
        needed = [each for each in _modules(tree, wanted) if each[0] not in names]
        found += [
            (f"{folder}/{number:02}-{name}.ko", content) for number, (name, content) in enumerate(needed)
        ]
    return found


def _modules(tree: Path, wanted: Iterable[str]) -> list[tuple[str, bytes]]:
    """Return modules and what they depend on, in the order they load; those built into the kernel are left out."""
    paths = {path.name.partition(".")[0].replace("-", "_"): path for path in tree.rglob("*.ko*")}
    loaded: dict[str, bytes] = {}

    def load(name: str) -> None:
        path = paths.get(name)
        if path is None or name in loaded:
            return
        content = path.read_bytes()
        if path.suffix == ".xz":
            content = lzma.decompress(content)
        found = re.search(rb"\0depends=([^\0]*)\0", content)
        for needed in found.group(1).decode().split(",") if found else ():
            load(needed)
        loaded[name] = content

    for name in wanted:
        load(name)
    return list(loaded.items())


async def _busybox(apt: Apt, folder: Path, progress: Progress) -> bytes:
    """Return the host's own busybox when it can be used, else Debian's."""
    installed = shutil.which("busybox")
    if installed is not None:
        content = await asyncio.to_thread(Path(installed).read_bytes)
        applets = set((await run(installed, "--list")).split())
        if b"ld-linux" not in content[:4096] and applets >= _APPLETS:
            return content
    progress(f"Downloading {_BUSYBOX}, all of the tiny guest's programs (1 MB).")
    await apt.unpack(_BUSYBOX, folder)
    # Debian has moved it from /bin to /usr/bin.
    for name in ("bin/busybox", "usr/bin/busybox"):
        with contextlib.suppress(FileNotFoundError):
            return await asyncio.to_thread((folder / name).read_bytes)
    raise GuestBuildError(f"The package {_BUSYBOX} holds no busybox.")
