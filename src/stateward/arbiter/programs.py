"""Programs that are asked about a host, or to do something to it; none keeps anybody waiting longer than its time."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Mapping, Sequence
from typing import IO, Final

import msgspec

_LONGEST_WORD: Final = 200
#: Bytes of what a program wrote that are read.
_MOST: Final = 1 << 20
#: Seconds for which a program that was killed is waited for.
_BURIAL_SECONDS: Final = 1.0


class Ended(msgspec.Struct, frozen=True, kw_only=True):
    """How a program ended."""

    #: None: it could not be run, or took too long; ``output`` says which.
    status: int | None
    output: bytes

    @property
    def how(self) -> str:
        """For people."""
        return "it cannot be run, or took too long" if self.status is None else f"status {self.status}"

    @property
    def said(self) -> str:
        """The end of what it wrote, in one line."""
        return " ".join(self.output.decode(errors="replace").split())[-_LONGEST_WORD:]


async def run(
    command: Sequence[str],
    seconds: float,
    *,
    given: bytes | None = None,
    environment: Mapping[str, str] = {},
    errors: bool = True,
) -> Ended:
    """Run a program to its end, or kill it when its time is over.

    Args:
        command: the program and its arguments.
        seconds: how long it may take.
        given: what it reads; None: nothing.
        environment: more than this process's.
        errors: what it writes as errors is read too.
    """
    with contextlib.ExitStack() as files:
        written = files.enter_context(_in_memory())
        read = None if given is None else files.enter_context(_in_memory(given))
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL if read is None else read,
                stdout=written,
                stderr=asyncio.subprocess.STDOUT if errors else asyncio.subprocess.DEVNULL,
                env={**os.environ, **environment},
                start_new_session=True,
            )
        except OSError as error:
            return Ended(status=None, output=str(error).encode())
        try:
            async with asyncio.timeout(seconds):
                status = await process.wait()
        except TimeoutError:
            return Ended(status=None, output=f"It was ended after {seconds:g} s.".encode())
        finally:
            if process.returncode is None:
                await _end(process)
        return Ended(status=status, output=os.pread(written.fileno(), _MOST, 0))


def _in_memory(content: bytes = b"") -> IO[bytes]:
    """Open a file that is on no disk. Not a pipe: what a program has left running would hold it open beyond its end."""
    file = os.fdopen(os.memfd_create("program"), "w+b", buffering=0)
    file.write(content)
    file.seek(0)
    return file


async def _end(process: asyncio.subprocess.Process) -> None:
    """Kill a program with all that it has started itself: it leads a session of its own."""
    # One that became another user cannot be killed, and ends by itself or not.
    with contextlib.suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_BURIAL_SECONDS):
            await process.wait()
