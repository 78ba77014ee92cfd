"""How long the calls of a driver may take, and what is done with one that takes longer.

A hypervisor that answers nothing must not keep an instance in a task state for ever. A call that hangs past its
limit is cancelled and left behind: nobody waits until it has noticed. What it still does when it wakes up is what
anybody else could do to a guest behind our back: it is seen, and the arbiter's table says what follows.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Coroutine
from typing import Any, Final, cast

from stateward.agent.driver import Driver, DriverError

_HOUR: Final = 3600.0

#: Seconds that any call may take which is not named below: libvirt itself waits 30 s for a guest that something else
#: is being done to.
CALL_SECONDS: Final = 120.0

#: Seconds that the calls of a driver may take, by their names.
LIMITS: Final[dict[str, float]] = {
    # They look, and answer from what the hypervisor knows.
    "get": 30.0,
    "list": 30.0,
    "facts": 30.0,
    "strangers": 30.0,
    "addresses": 30.0,
    "console": 30.0,
    # The guest's own time runs beside it.
    "request_shutdown": 30.0,
    # They copy, or fetch, a disk.
    "check_image": 2 * _HOUR,
    "check_rescue_image": 2 * _HOUR,
    "prepare_disk": 2 * _HOUR,
    "prepare_rescue_disk": 2 * _HOUR,
    "keep_disk": 2 * _HOUR,
    "snapshot": 2 * _HOUR,
    "publish_snapshot": 2 * _HOUR,
    # They write, or read, a memory.
    "save_memory": _HOUR,
    "restore_memory": _HOUR,
    # They delete files, which takes a while with large ones.
    "remove": _HOUR / 4,
    "discard_disk": _HOUR / 4,
    "discard_stale_disk": _HOUR / 4,
    "return_disk": _HOUR / 4,
}

#: Methods that are begun and ended with the agent, and take the time they take.
_UNLIMITED: Final = frozenset({"open", "close"})


class CallHung(DriverError):
    """A call did not come back within its limit; nothing is known of what it has done, or will do yet."""

    def __init__(self, method: str, seconds: float, *, times: int = 1) -> None:
        """Say which call it was.

        Args:
            method: the driver's method.
            seconds: its limit.
            times: how often it was tried.
        """
        self.method = method
        self.seconds = seconds
        tried = "" if times == 1 else f", tried {times} times"
        super().__init__(
            f"The hypervisor's call '{method}' did not come back within {seconds:g} s{tried}, and was given up. "
            "It may still take effect later. Look at the hypervisor of this host and at the guest there, "
            "then repeat the action."
        )


class Limits:
    """The limits of one agent: the table, times a factor that the operator sets."""

    def __init__(self, scale: float = 1.0) -> None:
        """Multiply every limit by ``scale``."""
        self._scale = scale

    def seconds(self, method: str) -> float:
        """Return how long a driver's method may take, in seconds."""
        return LIMITS.get(method, CALL_SECONDS) * self._scale

    def on(self, driver: Driver) -> Driver:
        """Return the driver with its limits; a method that hangs raises ``CallHung``."""
        return cast("Driver", _Limited(driver, self.seconds))


class _Limited:
    """A driver whose coroutines have limits, those of methods that nobody has thought of yet among them."""

    def __init__(self, driver: Driver, seconds: Callable[[str], float]) -> None:
        self._driver = driver
        self._seconds = seconds

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._driver, name)
        if name in _UNLIMITED or not inspect.iscoroutinefunction(found):
            return found
        method: Callable[..., Coroutine[Any, Any, Any]] = found

        async def call(*arguments: Any, **named: Any) -> Any:
            return await _within(self._seconds(name), name, method(*arguments, **named))

        return call


async def _within(seconds: float, method: str, coroutine: Coroutine[Any, Any, Any]) -> Any:
    # A task of its own, and not ``asyncio.timeout``: that waits until what it cancelled has ended, which a call
    # that hangs in its own cleaning up never does. ``asyncio.wait`` loses no cancellation, on Python 3.11 either.
    task = asyncio.create_task(coroutine, name=f"driver {method}")
    try:
        await asyncio.wait({task}, timeout=seconds)
    finally:
        if not task.done():
            task.cancel()
            _leave(task)
    if task.done():
        return task.result()
    raise CallHung(method, seconds)


#: The event loop itself keeps tasks by weak references only.
_left: Final[set[asyncio.Task[Any]]] = set()


def _leave(task: asyncio.Task[Any]) -> None:
    _left.add(task)
    task.add_done_callback(_forget)


def _forget(task: asyncio.Task[Any]) -> None:
    _left.discard(task)
    if not task.cancelled():
        # Its late failure is nobody's news.
        task.exception()
