"""The console port: how whoever has a guest's console in front of them reaches it on its host (ADR 0010).

A console is a stream, whose bytes must come once and in order; the bus promises neither, so it is a port of its own.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol


class ConsoleUnavailable(Exception):
    """A console cannot be connected to now; ``str()`` says why."""


class ConsoleEnded(Exception):
    """A connection to a console is over; ``str()`` says why, in at most 100 characters of ASCII."""


class ConsoleStream(Protocol):
    """One connection to a guest's serial console. Reading and writing may be under way at the same time."""

    async def read(self) -> bytes:
        """Return what the guest writes next, at least one byte.

        Raises:
            ConsoleEnded: nothing more will come.
        """
        ...

    async def write(self, data: bytes) -> None:
        """Type something; on return it is on its way.

        Raises:
            ConsoleEnded: the connection is over.
        """
        ...

    async def close(self) -> None:
        """Disconnect; the guest does not notice. What waits in ``read`` ends."""
        ...


#: Connects to the console of one of a host's guests; raises ``ConsoleUnavailable``.
Opener = Callable[[str], Awaitable[ConsoleStream]]


class Consoles(Protocol):
    """The consoles of all hosts."""

    async def offer(self, host: str, opener: Opener) -> None:
        """Let the consoles of a host's guests be connected to from now on."""
        ...

    async def open(self, host: str, instance_id: str) -> ConsoleStream:
        """Connect to a guest's console.

        Raises:
            ConsoleUnavailable: its host offers none now, or the guest has none.
        """
        ...


class LocalConsoles:
    """The consoles of the hosts whose agents are in this process."""

    def __init__(self) -> None:
        """Begin with no host."""
        self._openers: dict[str, Opener] = {}

    async def offer(self, host: str, opener: Opener) -> None:
        """Let the consoles of a host's guests be connected to from now on."""
        self._openers[host] = opener

    async def open(self, host: str, instance_id: str) -> ConsoleStream:
        """Connect to a guest's console."""
        opener = self._openers.get(host)
        if opener is None:
            raise ConsoleUnavailable(f"The host of instance {instance_id} offers no consoles now.")
        return await opener(instance_id)
