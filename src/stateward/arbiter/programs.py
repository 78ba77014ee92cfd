"""Programs that are asked about a host, or to do something to it; none keeps anybody waiting longer than its time."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

_LONGEST_WORD: Final = 200


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
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL if given is None else asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT if errors else asyncio.subprocess.DEVNULL,
            env={**os.environ, **environment},
            start_new_session=True,
        )
    except OSError as error:
        return Ended(status=None, output=str(error).encode())
    try:
        async with asyncio.timeout(seconds):
            output, _ = await process.communicate(given)
    except TimeoutError:
        return Ended(status=None, output=f"It was ended after {seconds:g} s.".encode())
    finally:
        if process.returncode is None:
            # With all that it has started itself: it leads a session of its own.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    return Ended(status=process.returncode, output=output)
