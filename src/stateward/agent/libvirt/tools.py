"""The programs that make and copy disks, and the files they write: whole under their name, or not there.

A program that outlived its agent would write into what the next agent makes anew, and keep a guest from its disk:
each dies with the process that started it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import glob
import os
import shutil
import uuid
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Final

from stateward.agent.driver import DriverError
from stateward.threads import on_thread

_PART: Final = ".part"

#: How programs, and the kernel, say that a disk is full.
FULL: Final = os.strerror(errno.ENOSPC)

#: Other users of the host can name the file; libvirt gives it to QEMU's user.
_MODE: Final = 0o600


def failure(doing: str, detail: str) -> DriverError:
    """Make the error of something that cannot be done, with what to do where that is known."""
    if FULL in detail:
        return DriverError(f"{doing}: the host's disk is full. Free some of it, and try again.")
    return DriverError(f"{doing}: {detail.rstrip('.')}.")


def part_of(target: Path) -> Path:
    """Return the name that a file has until it is whole.

    Each time another: a call that was given up can still be at work on the one before, and would rename this one.
    """
    return target.with_name(f"{target.name}.{uuid.uuid4().hex}{_PART}")


def parts_of(target: Path) -> list[Path]:
    """Return what was begun of a file and left by a killed agent."""
    return list(target.parent.glob(f"{glob.escape(target.name)}.*{_PART}"))


@contextlib.asynccontextmanager
async def whole(target: Path, doing: str) -> AsyncGenerator[Path]:
    """Give a name to write a file under, which gets its own once it is on the disk; else nothing is left of it.

    Args:
        target: its own name; its folder is there.
        doing: begins the sentence of the error, as "The disk cannot be made".

    Raises:
        DriverError: for any ``OSError``.
    """
    part = part_of(target)
    try:
        for left in parts_of(target):
            left.unlink(missing_ok=True)
        yield part
        await on_thread(_settle, part, target)
    except OSError as error:
        raise failure(doing, error.strerror or str(error)) from error
    finally:
        part.unlink(missing_ok=True)


def _settle(part: Path, target: Path) -> None:
    part.chmod(_MODE)
    sync(part)
    part.rename(target)
    sync(target.parent)


def sync(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


async def run(
    doing: str, package: str, program: str, *arguments: str, fine: frozenset[int] = frozenset({0})
) -> None:
    """Run a program to its end; cancelled, it is killed.

    Args:
        doing: begins the sentence of the error.
        package: Debian's, for people.
        program: found in ``PATH``.
        arguments: its own.
        fine: statuses that are no failure.

    Raises:
        DriverError: it is not installed, or failed; in its own words, or that the disk is full.
    """
    if shutil.which(program) is None:
        raise DriverError(f"{program} is not installed (Debian: {package}).")
    process = await asyncio.create_subprocess_exec(
        *("setpriv", "--pdeathsig", "KILL", "--", program, *arguments),
        env={**os.environ, "LC_ALL": "C"},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        _, errors = await process.communicate()
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        raise
    if process.returncode not in fine:
        said = errors.decode(errors="replace").strip() or f"{program} ended with status {process.returncode}"
        raise failure(doing, " ".join(said.split()))


async def qemu_img(doing: str, *arguments: str, fine: frozenset[int] = frozenset({0})) -> None:
    """Run ``qemu-img``; see ``run``."""
    await run(doing, "qemu-utils", "qemu-img", *arguments, fine=fine)
