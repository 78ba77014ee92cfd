"""A driver whose calls are told as they begin, each with the operation that it is made for."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine
from typing import Any, cast

import structlog

from stateward.agent.driver import Driver

#: Told a driver's method and the operation that calls it; None: nobody's, as of the observer.
Told = Callable[[str, str | None], None]


def telling(driver: Driver, tell: Told) -> Driver:
    """Return the driver; ``tell`` is called at the last moment before each of its calls."""
    return cast("Driver", _Telling(driver, tell))


class _Telling:
    def __init__(self, driver: Driver, tell: Told) -> None:
        self._driver = driver
        self._tell = tell

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._driver, name)
        if not inspect.iscoroutinefunction(found):
            return found
        method: Callable[..., Coroutine[Any, Any, Any]] = found

        async def call(*arguments: Any, **named: Any) -> Any:
            # What the worker binds for its log.
            self._tell(name, structlog.contextvars.get_contextvars().get("operation"))
            return await method(*arguments, **named)

        return call
