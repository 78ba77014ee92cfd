"""A connection to a simulated guest's console: what it says from now on, and lines typed at it."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable

from stateward.agent.simulated.guests import SimulatedGuest, powered, typed
from stateward.bus.console import ConsoleEnded

#: Makes a change to the guest.
Change = Callable[[Callable[[SimulatedGuest, float], SimulatedGuest]], None]


class SimulatedConsole:
    """Told of every change of its guest by the hypervisor."""

    def __init__(self, guest: SimulatedGuest, change: Change, closed: Callable[[], None]) -> None:
        """Begin after what the guest has said already; ``closed`` is called once, when it is over."""
        self._said = guest.console
        self._change = change
        self._closed = closed
        self._lines: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._typed = b""
        self._why: str | None = None

    def saw(self, guest: SimulatedGuest) -> None:
        """Take over what the guest has said since; the end, when it is off."""
        before, self._said = self._said, guest.console
        for line in _new(before, guest.console):
            self._lines.put_nowait(f"{line}\r\n".encode())
        if not powered(guest):
            self.end("The guest is off.")

    def end(self, why: str) -> None:
        """End it, once."""
        if self._why is None:
            self._why = why
            self._lines.put_nowait(None)
            self._closed()

    async def read(self) -> bytes:
        """Return the next line."""
        line = await self._lines.get()
        if line is None:
            # For whoever reads again.
            self._lines.put_nowait(None)
            raise ConsoleEnded(self._why)
        return line

    async def write(self, data: bytes) -> None:
        """Type; the guest hears whole lines."""
        if self._why is not None:
            raise ConsoleEnded(self._why)
        *lines, self._typed = (self._typed + data.replace(b"\r", b"\n")).split(b"\n")
        for line in lines:
            text = line.decode(errors="replace")
            self._change(functools.partial(_hear, text))

    async def close(self) -> None:
        """Disconnect."""
        self.end("It was closed.")


def _hear(line: str, guest: SimulatedGuest, _now: float) -> SimulatedGuest:
    return typed(guest, line)


def _new(before: tuple[str, ...], after: tuple[str, ...]) -> tuple[str, ...]:
    """Return the lines at the end of ``after`` that are not those of ``before``; its oldest may be gone."""
    for count in range(len(after) + 1):
        kept = len(after) - count
        if kept == 0 or before[-kept:] == after[:kept]:
            return after[kept:]
    return ()
