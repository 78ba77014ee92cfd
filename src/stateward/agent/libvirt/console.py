"""A connection to a guest's serial console by a libvirt stream.

libvirt calls back on its event thread when the guest has written something; from there it goes to the event loop,
and nothing waits on either for a slow reader: one that falls too far behind is disconnected.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from typing import Any, Final

import libvirt

from stateward.agent.driver import DriverError
from stateward.agent.libvirt import guests
from stateward.agent.libvirt.connection import Connection, Lane
from stateward.bus.console import ConsoleEnded
from stateward.domain.states import Observed

_CHUNK: Final = 64 * 1024
#: Bytes that may wait for a slow reader.
_BEHIND: Final = 1024 * 1024
#: Seconds until a guest that reads nothing is tried again.
_FULL_SECONDS: Final = 0.05
#: What ``recv`` and ``send`` return when they would have to wait.
_WOULD_BLOCK: Final = -2
#: How often, and how many seconds apart, a guest whose console has ended is looked at for being off.
_OFF_LOOKS: Final = 10
_OFF_SECONDS: Final = 0.2
_ON: Final = (Observed.RUNNING, Observed.PAUSED)

OFF: Final = "The guest is off."
TAKEN: Final = "Another connection has taken the console over."
LOST: Final = "The console was taken over on the host, or the hypervisor is away."
CLOSED: Final = "It was closed."
SLOW: Final = "The reader is too slow."


class LibvirtConsole:
    """One connection; a newer one to the same guest takes its place.

    Args:
        connection: whose threads the stream's blocking calls run on.
        instance_id: whose console.
    """

    def __init__(self, connection: Connection, instance_id: str) -> None:
        self._connection = connection
        self._instance_id = instance_id
        self._loop = asyncio.get_running_loop()
        self._stream: libvirt.virStream | None = None
        self._waiting: list[bytes] = []
        self._size = 0
        self._news = asyncio.Event()
        self._why: str | None = None
        self._over = False

    @property
    def closed(self) -> bool:
        """Whether it was connected and has let go since."""
        return self._why is not None and self._stream is None

    async def open(self) -> None:
        """Connect, in the stead of whoever is connected.

        Raises:
            DriverError: the guest is off.
        """
        await self._connection.run(Lane.ACT, self._open)

    async def read(self) -> bytes:
        """Return what the guest wrote."""
        while not self._waiting:
            if self._over or self._why is not None:
                raise ConsoleEnded(await self._reason())
            self._news.clear()
            await self._news.wait()
        data = b"".join(self._waiting)
        self._waiting.clear()
        self._size = 0
        return data

    async def write(self, data: bytes) -> None:
        """Type; waits while the guest has not read what was typed before."""
        while data:
            stream = self._stream
            if stream is None or self._over or self._why is not None:
                raise ConsoleEnded(await self._reason())
            try:
                sent = await self._connection.run(Lane.ACT, functools.partial(_send, stream, data[:_CHUNK]))
            except DriverError:
                self._over = True
                continue
            if sent == _WOULD_BLOCK:
                await asyncio.sleep(_FULL_SECONDS)
            else:
                data = data[sent:]

    async def close(self, why: str = CLOSED) -> None:
        """Disconnect; what waits in ``read`` is told why."""
        if self._why is None:
            self._why = why
        self._news.set()
        stream, self._stream = self._stream, None
        if stream is not None:
            # Without the connection there is no stream either.
            with contextlib.suppress(DriverError):
                await self._connection.run(Lane.ACT, lambda _: _end(stream))

    def _open(self, connection: libvirt.virConnect) -> None:
        domain = guests.require(connection, self._instance_id)
        now, _ = guests.look(domain)
        if now not in _ON:
            raise DriverError(f"The guest is {now.value}: it has a console while it is on.")
        stream = connection.newStream(libvirt.VIR_STREAM_NONBLOCK)
        domain.openConsole(None, stream, libvirt.VIR_DOMAIN_CONSOLE_FORCE)
        self._stream = stream
        wanted = (
            libvirt.VIR_STREAM_EVENT_READABLE
            | libvirt.VIR_STREAM_EVENT_HANGUP
            | libvirt.VIR_STREAM_EVENT_ERROR
        )
        stream.eventAddCallback(wanted, self._event, None)

    def _event(self, stream: libvirt.virStream, _events: int, _opaque: Any) -> None:
        """Take what there is; on libvirt's event thread."""
        try:
            while True:
                data = stream.recv(_CHUNK)
                if isinstance(data, int):
                    return
                if not data:
                    break
                self._tell(data)
        except libvirt.libvirtError:
            pass
        with contextlib.suppress(libvirt.libvirtError):
            stream.eventRemoveCallback()
        self._tell(None)

    def _tell(self, data: bytes | None) -> None:
        # The event loop can be gone when libvirt's thread delivers the last event of a closed driver.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._take, data)

    def _take(self, data: bytes | None) -> None:
        if data is None:
            self._over = True
        elif self._size + len(data) > _BEHIND:
            self._why = self._why or SLOW
        else:
            self._waiting.append(data)
            self._size += len(data)
        self._news.set()

    async def _reason(self) -> str:
        if self._why is None:
            self._why = OFF if await self._goes_off() else LOST
        return self._why

    async def _goes_off(self) -> bool:
        """Say whether the guest is off: its console ends a moment before libvirt says so."""
        for _ in range(_OFF_LOOKS):
            with contextlib.suppress(DriverError):
                guest = await self._connection.run(
                    Lane.LOOK, lambda connection: guests.get(connection, self._instance_id)
                )
                if guest.observed not in _ON:
                    return True
            await asyncio.sleep(_OFF_SECONDS)
        return False


class LibvirtConsoles:
    """The connections to the consoles of one hypervisor's guests, one for each guest."""

    def __init__(self, connection: Connection) -> None:
        """Begin with none."""
        self._connection = connection
        #: The newest of each guest; it may be over.
        self._newest: dict[str, LibvirtConsole] = {}

    async def open(self, instance_id: str) -> LibvirtConsole:
        """Connect, in the stead of whoever is connected.

        Raises:
            GuestMissing, DriverError: the guest is off.
        """
        console = LibvirtConsole(self._connection, instance_id)
        # Here rather than when each is closed: nobody else has an interest in the list.
        self._newest = {name: each for name, each in self._newest.items() if not each.closed}
        before = self._newest.pop(instance_id, None)
        if before is not None:
            await before.close(TAKEN)
        await console.open()
        self._newest[instance_id] = console
        return console

    async def close(self) -> None:
        """Disconnect all."""
        for console in self._newest.values():
            await console.close()
        self._newest.clear()


def _send(stream: libvirt.virStream, data: bytes, _connection: libvirt.virConnect) -> int:
    return stream.send(data)


def _end(stream: libvirt.virStream) -> None:
    """End a stream, also one that has ended."""
    with contextlib.suppress(libvirt.libvirtError):
        stream.eventRemoveCallback()
    with contextlib.suppress(libvirt.libvirtError):
        stream.abort()
