"""Connections to one libvirtd, kept up, and the threads that its blocking calls run on.

Lanes, because a call must not wait for another guest's: looking takes milliseconds, acting takes up to a second,
writing memory to disk takes as long as the disk does. Each lane has threads and connections of its own;
a libvirtd reads no more than five unanswered requests from one connection (``max_client_requests``), so that
four saves and a list on one connection would make the list wait for the saves.

Away is noticed at once by the connection's close callback, after at most 20 s by keepalive where libvirtd hangs
without closing. From then on every call is refused with ``HypervisorUnavailable`` until a connection stands again.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any, Final, TypeVar

import libvirt

from stateward.agent.driver import DriverError, GuestMissing, HypervisorUnavailable
from stateward.agent.libvirt.loop import EVENTS

T = TypeVar("T")

#: Seconds between two attempts to connect: the first, doubled up to the last.
_FIRST_RETRY: Final = 0.05
_LAST_RETRY: Final = 1.0

#: Keepalive: seconds between two questions, and how many may go unanswered.
_KEEPALIVE_SECONDS: Final = 5
_KEEPALIVE_COUNT: Final = 3

_THREADS_EACH: Final = 4


class Lane(enum.Enum):
    """What kind of call it is; the value is the number of connections the lane has."""

    LOOK = ("look", 1)
    ACT = ("act", 2)
    SAVE = ("save", 1)
    #: Waiting for agents inside guests, which may never answer.
    ASK = ("ask", 1)

    @property
    def label(self) -> str:
        """The lane's name, for its threads."""
        return self.value[0]

    @property
    def connections(self) -> int:
        """How many connections its threads share, four threads each."""
        return self.value[1]


class Change(enum.Enum):
    """What an event says happened to a domain; more is not needed, because the agent looks for itself."""

    DEFINITION = "definition"
    STATE = "state"


#: Called on the event loop with a domain's uuid, or with None when everything must be looked at again.
OnChange = Callable[[str | None, Change], None]


class _Links:
    """The connections of one time that libvirtd was there."""

    def __init__(self) -> None:
        self.lanes: dict[Lane, tuple[libvirt.virConnect, ...]] = {}
        #: The callbacks registered on the first connection.
        self.callbacks: list[int] = []

    @property
    def first(self) -> libvirt.virConnect:
        """The one that events come by."""
        return self.lanes[Lane.LOOK][0]

    def all(self) -> list[libvirt.virConnect]:
        """Return each connection once."""
        return list({id(each): each for lane in self.lanes.values() for each in lane}.values())

    def close(self) -> None:
        """Close what can be closed; one whose other end is gone says so, and is closed all the same.

        Callbacks are taken back first, because libvirt keeps a connection that an object of it is still held of,
        as by the traceback of an error.
        """
        for callback in self.callbacks:
            with contextlib.suppress(libvirt.libvirtError):
                self.first.domainEventDeregisterAny(callback)
        for connection in self.all():
            with contextlib.suppress(libvirt.libvirtError):
                connection.unregisterCloseCallback()
            with contextlib.suppress(libvirt.libvirtError):
                connection.close()


class Connection:
    """One libvirtd, as asynchronous calls.

    Args:
        uri: libvirt's name for it. All of ``test:`` is in this process's memory and ends with its last connection,
            and ``test:///FILE`` is another world for each connection; so its lanes share one.
        on_change: told of every change, on the event loop.
    """

    def __init__(self, uri: str, on_change: OnChange) -> None:
        self._uri = uri
        self._on_change = on_change
        self._in_memory = uri.startswith("test:")
        self._links: _Links | None = None
        self._why = "it was not asked yet"
        self._lost = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        self._threads: dict[Lane, ThreadPoolExecutor] = {}
        #: Connecting has a thread of its own: it can hang, and then it must hold nobody up but itself.
        self._connecting: ThreadPoolExecutor | None = None
        self._slot = threading.local()

    async def open(self) -> None:
        """Try to connect once, then keep trying in the background; never raises for a libvirtd that is away."""
        libvirt.registerErrorHandler(_quiet, None)
        EVENTS.acquire()
        for lane in Lane:
            numbers = count()
            self._threads[lane] = ThreadPoolExecutor(
                max_workers=_THREADS_EACH * lane.connections,
                thread_name_prefix=f"libvirt-{lane.label}",
                initializer=self._take_slot,
                initargs=(numbers,),
            )
        self._connecting = ThreadPoolExecutor(max_workers=1, thread_name_prefix="libvirt-connect")
        tried = asyncio.Event()
        self._keeper = asyncio.create_task(self._keep(tried), name="libvirt-connection")
        await tried.wait()

    async def close(self) -> None:
        """Disconnect and end the threads; calls in progress are waited for. Guests run on."""
        if self._keeper is None or self._connecting is None:
            return
        self._keeper.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._keeper
        self._keeper = None
        self._why = "the driver was closed"
        await self._drop()
        pools = [*self._threads.values(), self._connecting]
        for pool in pools:
            await asyncio.to_thread(pool.shutdown)
        await asyncio.to_thread(EVENTS.release)

    async def run(self, lane: Lane, call: Callable[[libvirt.virConnect], T]) -> T:
        """Run a blocking call on one of the lane's threads.

        Raises:
            HypervisorUnavailable: libvirtd is away, or went away while it was asked.
            GuestMissing: libvirt says that there is no such domain.
            DriverError: libvirt refused; the message is libvirt's own.
        """
        links = self._links
        if links is None:
            raise HypervisorUnavailable(self._unavailable())
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads[lane], self._call, links, lane, call, loop)

    def _call(
        self,
        links: _Links,
        lane: Lane,
        call: Callable[[libvirt.virConnect], T],
        loop: asyncio.AbstractEventLoop,
    ) -> T:
        connections = links.lanes[lane]
        slot: int = self._slot.number
        connection = connections[slot % len(connections)]
        try:
            return call(connection)
        except libvirt.libvirtError as error:
            if not _alive(connection):
                _tell(loop, self._lose, links, error.get_error_message())
                raise HypervisorUnavailable(self._unavailable(error.get_error_message())) from error
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                raise GuestMissing(f"libvirt: {error.get_error_message()}") from error
            raise DriverError(f"libvirt: {error.get_error_message()}") from error

    def _take_slot(self, numbers: count[int]) -> None:
        self._slot.number = next(numbers)

    def _unavailable(self, why: str | None = None) -> str:
        return f"libvirt at {self._uri} cannot be asked: {why or self._why}. It is tried again by itself."

    async def _keep(self, tried: asyncio.Event) -> None:
        """Connect, wait until the connection is lost, begin again."""
        loop = asyncio.get_running_loop()
        retry = _FIRST_RETRY
        while True:
            self._lost = asyncio.Event()
            try:
                links = await loop.run_in_executor(self._connecting, self._connect, loop)
            except libvirt.libvirtError as error:
                self._why = error.get_error_message()
                tried.set()
                await asyncio.sleep(retry)
                retry = min(2 * retry, _LAST_RETRY)
                continue
            self._links = links
            retry = _FIRST_RETRY
            if tried.is_set():
                # Events of the time in between are lost.
                self._on_change(None, Change.DEFINITION)
            tried.set()
            if not _alive(links.first):
                # Closed before ``_lose`` could know these connections.
                self._lost.set()
            await self._lost.wait()
            await self._drop()

    async def _drop(self) -> None:
        links, self._links = self._links, None
        if links is not None:
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._connecting, links.close)

    def _lose(self, links: _Links, why: str) -> None:
        # A late word about connections that were replaced already says nothing of the present ones.
        if links is self._links:
            self._why = why
            self._lost.set()

    def _connect(self, loop: asyncio.AbstractEventLoop) -> _Links:
        links = _Links()
        try:
            first = libvirt.open(self._uri)
            for lane in Lane:
                links.lanes[lane] = tuple(
                    first
                    if self._in_memory or (lane is Lane.LOOK and number == 0)
                    else libvirt.open(self._uri)
                    for number in range(lane.connections)
                )
            if not self._in_memory:
                for connection in links.all():
                    connection.setKeepAlive(_KEEPALIVE_SECONDS, _KEEPALIVE_COUNT)

                def closed(*_: object) -> None:
                    _tell(loop, self._lose, links, "it closed the connection")

                first.registerCloseCallback(closed, None)
            self._listen(links, loop)
        except libvirt.libvirtError:
            links.close()
            raise
        return links

    def _listen(self, links: _Links, loop: asyncio.AbstractEventLoop) -> None:
        definitions = (libvirt.VIR_DOMAIN_EVENT_DEFINED, libvirt.VIR_DOMAIN_EVENT_UNDEFINED)

        def lifecycle(_: object, domain: libvirt.virDomain, event: int, *__: object) -> None:
            change = Change.DEFINITION if event in definitions else Change.STATE
            _tell(loop, self._on_change, domain.UUIDString(), change)

        def io_error(_: object, domain: libvirt.virDomain, *__: object) -> None:
            _tell(loop, self._on_change, domain.UUIDString(), Change.STATE)

        for event, callback in (
            (libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, lifecycle),
            (libvirt.VIR_DOMAIN_EVENT_ID_IO_ERROR_REASON, io_error),
        ):
            links.callbacks.append(links.first.domainEventRegisterAny(None, event, callback, None))


def _tell(loop: asyncio.AbstractEventLoop, what: Callable[..., None], *args: object) -> None:
    # The event loop can be gone when libvirt's thread delivers the last event of a closed driver.
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(what, *args)


def _alive(connection: libvirt.virConnect) -> bool:
    try:
        return bool(connection.isAlive())
    except libvirt.libvirtError:
        return False


def _quiet(_context: object, _error: Any) -> None:
    """Keep libvirt from writing errors on stderr; they are raised."""
