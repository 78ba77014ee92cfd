"""A driver in the hands of one operation, which nothing is done with any more once a newer one has come (B1, B3)."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine
from typing import Any, cast

from stateward.agent.driver import Driver


def while_newest(driver: Driver, check: Callable[[], None]) -> Driver:
    """Return the driver with a check before each of its calls.

    Between a worker's own looks lies a step of several calls. One that was held up there (its process was stopped,
    its machine had no memory) would go on with the next call, however much later that is.

    Args:
        driver: the driver.
        check: raises when the operation may not act any more.
    """
    return cast("Driver", _Checked(driver, check))


class _Checked:
    def __init__(self, driver: Driver, check: Callable[[], None]) -> None:
        self._driver = driver
        self._check = check

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._driver, name)
        if not inspect.iscoroutinefunction(found):
            return found
        method: Callable[..., Coroutine[Any, Any, Any]] = found

        async def call(*arguments: Any, **named: Any) -> Any:
            self._check()
            return await method(*arguments, **named)

        return call
