"""Debian's packages, fetched and unpacked without installing any."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable
from pathlib import Path

#: Told what is being done, a line at a time.
Progress = Callable[[str], None]


class GuestBuildError(Exception):
    """The tiny guest could not be made; the message says what is missing."""


class Apt:
    """Debian's packages, without installing any.

    Args:
        options: what makes apt use lists of our own; none when the system's lists know the kernel.
    """

    def __init__(self, options: tuple[str, ...]) -> None:
        self._options = options

    @classmethod
    async def find(cls, folder: Path, wanted: str, progress: Progress) -> Apt:
        """Use the system's package lists, or fetch lists of our own into ``folder`` where those lack the wanted one.

        Raises:
            GuestBuildError: no lists know it.
        """
        # Run by root, apt would download as a user that cannot write where we do.
        plain = ("-o", f"APT::Sandbox::User={'root' if os.geteuid() == 0 else ''}")
        apt = cls(plain)
        if await apt._knows(wanted):
            return apt
        for name in ("lists/partial", "cache/archives/partial"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        apt = cls(
            (*plain, "-o", f"Dir::State::lists={folder / 'lists'}", "-o", f"Dir::Cache={folder / 'cache'}")
        )
        if not await apt._knows(wanted):
            progress("Fetching Debian's package lists.")
            await run("apt-get", *apt._options, "-qq", "update")
        if not await apt._knows(wanted):
            raise GuestBuildError(
                f"No package {wanted} is to be had: the tiny guest is made from Debian's, on x86-64. "
                "Use an image of your own instead."
            )
        return apt

    async def _knows(self, package: str) -> bool:
        return bool(await run("apt-cache", *self._options, "search", "--names-only", f"^{package}$"))

    async def kernel_package(self, newest: str) -> str:
        """Return the package that holds a kernel, from the one that depends on the newest."""
        found = re.search(r"linux-image-[0-9]\S*", await self._depends(newest))
        if found is None:
            raise GuestBuildError(f"The package {newest} names no kernel.")
        return found.group()

    async def with_libraries(self, package: str) -> list[str]:
        """Return a package and those of the libraries that it needs, directly or by one another."""
        names, unread = [package], [package]
        while unread:
            for name in re.findall(r"(?:^|, )(lib[a-z0-9.+-]+)", await self._depends(unread.pop())):
                if name not in names:
                    names.append(name)
                    unread.append(name)
        return names

    async def _depends(self, package: str) -> str:
        shown = await run("apt-cache", *self._options, "show", "--no-all-versions", package)
        found = re.search(r"^Depends: (.*)$", shown, re.MULTILINE)
        return found.group(1) if found is not None else ""

    async def unpack(self, package: str, folder: Path) -> None:
        """Download a package and unpack it into a folder, in which others may be already."""
        folder.mkdir(exist_ok=True)
        await run("apt-get", *self._options, "-qq", "download", package, cwd=folder)
        for deb in await asyncio.to_thread(lambda: list(folder.glob("*.deb"))):
            await run("dpkg-deb", "--extract", str(deb), str(folder))
            deb.unlink()


async def run(program: str, *arguments: str, cwd: Path | None = None) -> str:
    """Run a program and return what it wrote.

    Raises:
        GuestBuildError: it is not installed, or failed.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            program,
            *arguments,
            cwd=cwd,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
    except FileNotFoundError:
        raise GuestBuildError(
            f"{program} is not installed. The tiny guest is made on Debian, with apt, dpkg and qemu-utils."
        ) from None
    output, errors = await process.communicate()
    if process.returncode:
        said = errors.decode(errors="replace").strip() or output.decode(errors="replace").strip()
        raise GuestBuildError(f"{program} {' '.join(arguments)} failed: {said}")
    return output.decode(errors="replace")
