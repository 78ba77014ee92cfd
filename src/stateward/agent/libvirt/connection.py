"""Connections to one libvirtd, kept up, and the threads that its blocking calls run on.

Lanes, because a call must not wait for another guest's: looking takes milliseconds, acting takes up to a second,
writing memory to disk takes as long as the disk does. Each lane has connections of its own; a libvirtd reads no
more than five unanswered requests from one connection (``max_client_requests``), so that four saves and a list on
one connection would make the list wait for the saves.

A call can hang for ever, as on a guest whose QEMU is stopped. Whoever called it gives it up; its thread and its
connection are given up with it, and the lane gets a new connection in the place of that one, so that however many
guests hang, the others are served. Libvirtd itself is what they can use up: it works on twenty calls at a time.

Away is noticed at once by the connection's close callback, after at most 20 s by keepalive where libvirtd hangs
without closing. From then on every call is refused with ``HypervisorUnavailable`` until a connection stands again.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import functools
from collections.abc import Callable
from typing import Any, Final, TypeVar

import libvirt
import structlog

from stateward.agent.driver import DriverError, GuestMissing, HypervisorUnavailable
from stateward.agent.libvirt.loop import EVENTS
from stateward.threads import apart, tell

log = structlog.get_logger()

T = TypeVar("T")

#: Seconds between two attempts to connect: the first, doubled up to the last.
_FIRST_RETRY: Final = 0.05
_LAST_RETRY: Final = 1.0

#: Keepalive: seconds between two questions, and how many may go unanswered.
_KEEPALIVE_SECONDS: Final = 5
_KEEPALIVE_COUNT: Final = 3

#: Calls at a time on one connection.
_CALLS_EACH: Final = 4

#: Calls that may hang at a time; then libvirtd's own threads are used up (``max_workers``), and it counts as away.
_HANGING: Final = 20

#: Seconds that connecting may take, and that closing waits for calls in progress.
_CONNECT_SECONDS: Final = 30.0
_CLOSE_SECONDS: Final = 5.0


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
        """How many connections its calls share, four calls at a time on each."""
        return self.value[1]


class Change(enum.Enum):
    """What an event says happened to a domain; more is not needed, because the agent looks for itself."""

    DEFINITION = "definition"
    STATE = "state"


#: Called on the event loop with a domain's uuid, or with None when everything must be looked at again.
OnChange = Callable[[str | None, Change], None]


class _Line:
    """One connection of a lane, and the calls on it."""

    def __init__(self, connection: libvirt.virConnect) -> None:
        self.connection = connection
        #: Calls on it that have not come back, hanging ones too.
        self.calls = 0


class _Links:
    """The connections of one time that libvirtd was there."""

    def __init__(self, first: libvirt.virConnect) -> None:
        #: The one that events come by.
        self.first = first
        self.lanes: dict[Lane, list[_Line]] = {}
        #: The callbacks registered on the first connection.
        self.callbacks: list[int] = []

    def all(self) -> list[libvirt.virConnect]:
        """Return each connection once, the first one first."""
        lines = [line.connection for lane in self.lanes.values() for line in lane]
        return list({id(each): each for each in (self.first, *lines)}.values())

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
        self.uri = uri
        self._on_change = on_change
        self._in_memory = uri.startswith("test:")
        self._links: _Links | None = None
        self._why = "it was not asked yet"
        self._lost = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        self._free = {lane: asyncio.Semaphore(_CALLS_EACH * lane.connections) for lane in Lane}
        #: Calls that have not come back.
        self._calls = 0
        #: Those of them that nobody waits for any more.
        self._hanging = 0
        self._quiet = asyncio.Event()
        #: Connections being made in the place of those with a hanging call.
        self._renewals: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Try to connect once, then keep trying in the background; never raises for a libvirtd that is away."""
        libvirt.registerErrorHandler(_quiet, None)
        EVENTS.acquire()
        tried = asyncio.Event()
        self._keeper = asyncio.create_task(self._keep(tried), name="libvirt-connection")
        await tried.wait()

    async def close(self) -> None:
        """Disconnect; calls in progress are waited for, but not for long. Guests run on."""
        if self._keeper is None:
            return
        tasks = [self._keeper, *self._renewals]
        for task in tasks:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*tasks, return_exceptions=True)
        self._keeper = None
        self._why = "the driver was closed"
        await self._drop()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_SECONDS):
                while self._calls:
                    self._quiet.clear()
                    await self._quiet.wait()
        await asyncio.to_thread(EVENTS.release)

    @property
    def renewing(self) -> bool:
        """Whether a connection is being made in the place of one that a call hangs on."""
        return bool(self._renewals)

    async def run(self, lane: Lane, call: Callable[[libvirt.virConnect], T]) -> T:
        """Run a blocking call on one of the lane's threads.

        Raises:
            HypervisorUnavailable: libvirtd is away, or went away while it was asked.
            GuestMissing: libvirt says that there is no such domain.
            DriverError: libvirt refused; the message is libvirt's own.
        """
        async with self._free[lane]:
            links = self._links
            if links is None:
                raise HypervisorUnavailable(self._unavailable())
            if self._hanging >= _HANGING:
                why = f"{self._hanging} calls hang; restart libvirtd"
                raise HypervisorUnavailable(self._unavailable(why))
            line = min(links.lanes[lane], key=lambda line: line.calls)
            return await self._on(line, links, lane, call)

    async def once(self, call: Callable[[libvirt.virConnect], T]) -> T:
        """Run a blocking call on a connection made for it alone, which shares nothing with those there are.

        Raises:
            HypervisorUnavailable: no such connection can be made, or it does not answer.
        """

        def work() -> T:
            connection = self._open()
            try:
                return call(connection)
            finally:
                _close(connection)

        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                return await apart("libvirt-once", work)
        except (TimeoutError, libvirt.libvirtError) as error:
            raise HypervisorUnavailable(self._unavailable(_sentence(error))) from error

    async def _on(self, line: _Line, links: _Links, lane: Lane, call: Callable[[libvirt.virConnect], T]) -> T:
        loop = asyncio.get_running_loop()
        given_up = False

        def ended() -> None:
            line.calls -= 1
            self._calls -= 1
            self._hanging -= given_up
            self._quiet.set()

        line.calls += 1
        self._calls += 1
        try:
            return await apart(
                f"libvirt-{lane.label}",
                functools.partial(self._call, line.connection, links, call, loop),
                ended=ended,
            )
        except asyncio.CancelledError:
            given_up = True
            self._hanging += 1
            if self._keeper is not None and not self._in_memory:
                task = asyncio.create_task(self._renew(line, links, lane), name="libvirt-renewal")
                self._renewals.add(task)
                task.add_done_callback(self._renewals.discard)
            raise

    async def _renew(self, line: _Line, links: _Links, lane: Lane) -> None:
        """Put a new connection in the place of one that a call hangs on; the old one ends with its calls."""
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                connection = await apart("libvirt-connect", self._open, late=_close)
        except (TimeoutError, libvirt.libvirtError):
            # As long as libvirtd takes no connection, the old one is what there is.
            return
        lines = links.lanes[lane]
        if links is not self._links or line not in lines:
            await apart("libvirt-close", functools.partial(_close, connection))
            return
        lines[lines.index(line)] = _Line(connection)

    def _call(
        self,
        connection: libvirt.virConnect,
        links: _Links,
        call: Callable[[libvirt.virConnect], T],
        loop: asyncio.AbstractEventLoop,
    ) -> T:
        try:
            return call(connection)
        except libvirt.libvirtError as error:
            if not _alive(connection):
                tell(loop, self._lose, links, error.get_error_message())
                raise HypervisorUnavailable(self._unavailable(error.get_error_message())) from error
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                raise GuestMissing(f"libvirt: {error.get_error_message()}") from error
            raise DriverError(f"libvirt: {error.get_error_message()}") from error

    def _unavailable(self, why: str | None = None) -> str:
        return f"libvirt at {self.uri} cannot be asked: {why or self._why}. It is tried again by itself."

    async def _keep(self, tried: asyncio.Event) -> None:
        """Connect, wait until the connection is lost, begin again."""
        loop = asyncio.get_running_loop()
        retry = _FIRST_RETRY
        while True:
            self._lost = asyncio.Event()
            try:
                async with asyncio.timeout(_CONNECT_SECONDS):
                    connect = functools.partial(self._connect, loop)
                    links = await apart("libvirt-connect", connect, late=_Links.close)
            except Exception as error:
                if not isinstance(error, TimeoutError | libvirt.libvirtError):
                    # No thread for it, say: nobody else would ever connect again.
                    log.exception("libvirt could not be connected to; it is tried again", uri=self.uri)
                self._why = _sentence(error)
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
            # A libvirtd that hangs can hold up the closing too; it is done beside whatever comes next.
            try:
                async with asyncio.timeout(_CLOSE_SECONDS):
                    await apart("libvirt-close", links.close)
            except TimeoutError:
                pass
            except Exception:
                # What comes next matters more than what is left of these.
                log.exception("connections to libvirt could not be closed", uri=self.uri)

    def _lose(self, links: _Links, why: str) -> None:
        # A late word about connections that were replaced already says nothing of the present ones.
        if links is self._links:
            self._why = why
            self._lost.set()

    def _open(self) -> libvirt.virConnect:
        connection = libvirt.open(self.uri)
        if not self._in_memory:
            connection.setKeepAlive(_KEEPALIVE_SECONDS, _KEEPALIVE_COUNT)
        return connection

    def _connect(self, loop: asyncio.AbstractEventLoop) -> _Links:
        links = _Links(self._open())
        try:
            for lane in Lane:
                links.lanes[lane] = [
                    _Line(
                        links.first
                        if self._in_memory or (lane is Lane.LOOK and number == 0)
                        else self._open()
                    )
                    for number in range(lane.connections)
                ]
            if not self._in_memory:

                def closed(*_: object) -> None:
                    tell(loop, self._lose, links, "it closed the connection")

                links.first.registerCloseCallback(closed, None)
            self._listen(links, loop)
        except libvirt.libvirtError:
            links.close()
            raise
        return links

    def _listen(self, links: _Links, loop: asyncio.AbstractEventLoop) -> None:
        definitions = (libvirt.VIR_DOMAIN_EVENT_DEFINED, libvirt.VIR_DOMAIN_EVENT_UNDEFINED)

        def lifecycle(_: object, domain: libvirt.virDomain, event: int, *__: object) -> None:
            change = Change.DEFINITION if event in definitions else Change.STATE
            tell(loop, self._on_change, domain.UUIDString(), change)

        def io_error(_: object, domain: libvirt.virDomain, *__: object) -> None:
            tell(loop, self._on_change, domain.UUIDString(), Change.STATE)

        for event, callback in (
            (libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, lifecycle),
            (libvirt.VIR_DOMAIN_EVENT_ID_IO_ERROR_REASON, io_error),
        ):
            links.callbacks.append(links.first.domainEventRegisterAny(None, event, callback, None))


def _close(connection: libvirt.virConnect) -> None:
    with contextlib.suppress(libvirt.libvirtError):
        connection.close()


def _sentence(error: Exception) -> str:
    match error:
        case libvirt.libvirtError():
            return error.get_error_message()
        case TimeoutError():
            return "it takes no connection"
        case _:
            return str(error)


def _alive(connection: libvirt.virConnect) -> bool:
    try:
        return bool(connection.isAlive())
    except libvirt.libvirtError:
        return False


def _quiet(_context: object, _error: Any) -> None:
    """Keep libvirt from writing errors on stderr; they are raised."""
