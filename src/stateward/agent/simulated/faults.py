"""What a test does to the calls of a driver: slow them, hang them, fail them, and read what was called."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict, deque
from collections.abc import Callable
from typing import Final, TypeVar

import msgspec

from stateward.agent.driver import DriverError

T = TypeVar("T")

#: Calls remembered; a server that runs a simulation for days must not grow.
REMEMBERED: Final = 100_000


class Call(msgspec.Struct, kw_only=True):
    """One call of a driver's method; times are the event loop's, in seconds."""

    name: str
    #: None for calls about the whole host.
    instance_id: str | None
    began: float
    #: None while it runs, and for good when it was cancelled.
    ended: float | None = None
    #: What it raised.
    error: BaseException | None = None


class Hang:
    """The next call of one method does not go on before ``release``; nothing has come of it until then."""

    def __init__(self, *, outlives: bool) -> None:
        """Begin unreached and unreleased; see ``Faults.hang_next``."""
        self.outlives = outlives
        self.reached = asyncio.Event()
        self._released = asyncio.Event()

    def release(self) -> None:
        """Let the call go on."""
        self._released.set()

    async def hold(self) -> None:
        """Say that the call has come this far, and wait for the release."""
        self.reached.set()
        await self._released.wait()


class Faults:
    """Every call of every driver on one hypervisor goes through here."""

    def __init__(self, latency: float) -> None:
        """Make each call take ``latency`` seconds before anything comes of it."""
        self.calls: deque[Call] = deque(maxlen=REMEMBERED)
        self._latency = latency
        self._latencies: dict[str, float] = {}
        self._hangs: defaultdict[str, deque[Hang]] = defaultdict(deque)
        #: The error, and whether it comes after the effect.
        self._failures: defaultdict[str, deque[tuple[Exception, bool]]] = defaultdict(deque)
        #: Calls that nobody waits for any more; the event loop itself keeps tasks by weak references only.
        self._late: list[asyncio.Task[None]] = []

    def set_latency(self, seconds: float, method: str | None = None) -> None:
        """Make calls of one method, or of every one that was not named by itself, take so many seconds."""
        if method is None:
            self._latency = seconds
        else:
            self._latencies[method] = seconds

    def fail_next(self, method: str, error: Exception, *, after: bool = False) -> None:
        """Make the next call of a method raise; ``after`` lets it do its work first: only the answer is lost.

        Several failures of one method come one after the other.
        """
        self._failures[method].append((error, after))

    def hang_next(self, method: str, *, outlives: bool = False) -> Hang:
        """Make the next call of a method wait until what this returns is released.

        Args:
            method: of the driver.
            outlives: it takes effect then though it was cancelled before, as a call does that is under way in a
                real hypervisor; otherwise a cancelled one has no effect.
        """
        hang = Hang(outlives=outlives)
        self._hangs[method].append(hang)
        return hang

    async def call(self, name: str, instance_id: str | None, act: Callable[[], T]) -> T:
        """Do what a driver's method does, once its delays are over and unless it is to fail."""
        loop = asyncio.get_running_loop()
        call = Call(name=name, instance_id=instance_id, began=loop.time())
        self.calls.append(call)
        try:
            answer = await self._disturbed(name, act)
        except Exception as error:
            call.error = error
            call.ended = loop.time()
            raise
        call.ended = loop.time()
        return answer

    async def _disturbed(self, name: str, act: Callable[[], T]) -> T:
        # Taken when the call begins, so that it does not depend on how long other calls take.
        error, after = self._failures[name].popleft() if self._failures[name] else (None, False)
        hang = self._hangs[name].popleft() if self._hangs[name] else None
        # Even without latency another task gets a turn, as it does with every real hypervisor.
        await asyncio.sleep(self._latencies.get(name, self._latency))
        if hang is not None:
            try:
                await hang.hold()
            except asyncio.CancelledError:
                if hang.outlives:
                    self._late.append(asyncio.create_task(_late(hang, act)))
                raise
        if error is not None and not after:
            raise error
        answer = act()
        if error is not None:
            raise error
        return answer


async def _late(hang: Hang, act: Callable[[], object]) -> None:
    await hang.hold()
    # Whoever would hear of its failure has gone.
    with contextlib.suppress(DriverError):
        act()
