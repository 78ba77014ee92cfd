"""The tiny guest with Debian's own qemu-guest-agent: a second ramdisk for the same kernel and disk.

The agent and the libraries it needs are taken out of Debian's packages, as the kernel is. Made only when asked for.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import tempfile
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Final

from stateward.guest import build, cpio
from stateward.guest.apt import Apt, GuestBuildError, Progress

_PACKAGE: Final = "qemu-guest-agent"
_PROGRAM: Final = "usr/sbin/qemu-ga"
#: Names of shared libraries as a program's or a library's own table of strings has them.
_NEEDED: Final = re.compile(rb"\0(?=((?:lib|ld-linux)[\w.+-]*\.so(?:\.\d+)*)\0)")

#: Changed when the same parts are to be put together in another way.
_RECIPE: Final = "1"

#: Properties of the guest's disk image, as ``build.TINY_GUEST_PROPERTIES``.
AGENT_GUEST_PROPERTIES: Final[Mapping[str, str]] = MappingProxyType(
    {"os_command_line": f"{build.TINY_GUEST_PROPERTIES['os_command_line']} stateward.agent=real"}
)


async def build_ramdisk(cache: Path, progress: Progress) -> Path:
    """Return the ramdisk, making it in ``cache`` when it is not there; the other files are the tiny guest's.

    Raises:
        GuestBuildError: a program, a package or the network is missing.
    """
    plain = (await build.build(cache, progress)).ramdisk
    home = cache / "tiny-guest-agent"
    ramdisk, stamp = home / "ramdisk", home / "made-of"
    parts_of_it = await asyncio.to_thread(plain.read_bytes)
    made_of = hashlib.sha256(parts_of_it + _RECIPE.encode()).hexdigest()
    if stamp.is_file() and stamp.read_text(encoding="ascii") == made_of:
        return ramdisk
    home.mkdir(parents=True, exist_ok=True)
    stamp.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(dir=home) as work:
        tree = Path(work) / "packages"
        apt = await Apt.find(cache / "apt", _PACKAGE, progress)
        packages = await apt.with_libraries(_PACKAGE)
        progress(f"Downloading {_PACKAGE} and the {len(packages) - 1} packages of its libraries (6 MB).")
        for package in packages:
            await apt.unpack(package, tree)
        added = await asyncio.to_thread(_entries, tree)
        # The kernel unpacks one archive after the other.
        build.replace(ramdisk, parts_of_it + cpio.archive(added))
    stamp.write_text(made_of, encoding="ascii")
    return ramdisk


def _entries(tree: Path) -> list[cpio.Entry]:
    init = resources.files("stateward.guest").joinpath("init.sh").read_bytes()
    program = tree / _PROGRAM
    if not program.is_file():
        raise GuestBuildError(f"The package {_PACKAGE} holds no {_PROGRAM}.")
    libraries = _libraries(tree, program.read_bytes())
    return [
        *(cpio.folder(name) for name in ("lib", "lib64", "sbin")),
        cpio.file("bin/qemu-ga", program.read_bytes(), 0o755),
        *(
            cpio.file(f"{'lib64' if name.startswith('ld-') else 'lib'}/{name}", content, 0o755)
            for name, content in sorted(libraries.items())
        ),
        *(cpio.file(f"sbin/{name}", init, 0o755) for name in ("chpasswd", "fsfreeze-hook", "shutdown")),
        cpio.file("etc/passwd", b"root:x:0:0:root:/:/bin/sh\n"),
        cpio.file("etc/group", b"root:x:0:\n"),
        cpio.file("etc/shadow", b"root:*:19000:0:99999:7:::\n", 0o600),
    ]


def _libraries(tree: Path, program: bytes) -> dict[str, bytes]:
    """Return the libraries that a program and these themselves name, as far as the packages have them."""
    found: dict[str, bytes] = {}
    unread = [program]
    while unread:
        for name in {match.decode() for match in _NEEDED.findall(unread.pop())} - found.keys():
            path = next((each for each in tree.rglob(name) if each.is_file()), None)
            if path is not None:
                found[name] = path.read_bytes()
                unread.append(found[name])
    return found
