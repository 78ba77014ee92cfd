"""Blocking calls on threads of their own.

No pool: a call that never comes back would keep one of its threads for good, then the next, until nobody is
served; and a process waits for a pool's threads before it ends. These are daemon threads, one for each call.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import threading
from collections.abc import Callable
from typing import Any, Final, ParamSpec, TypeVar

T = TypeVar("T")
Arguments = ParamSpec("Arguments")

_numbers: Final = itertools.count(1)


def _nothing(_answer: object) -> None:
    """Let a late answer go."""


async def apart(
    name: str,
    call: Callable[[], T],
    *,
    late: Callable[[T], None] = _nothing,
    ended: Callable[[], None] | None = None,
) -> T:
    """Run a blocking call on a thread, and return or raise what it does.

    Cancelled, nobody waits for the call any more: it goes on, and the process may end without it.

    Args:
        name: the thread's name begins with it.
        call: what blocks.
        late: given the answer, on that thread, when nobody waits for it any more.
        ended: called on the event loop when the call has come back, waited for or not.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(set_: Callable[[Any], None], answer: Any) -> None:
        if not future.done():
            set_(answer)
        if ended is not None:
            ended()

    def run() -> None:
        try:
            answer = call()
        except BaseException as error:  # noqa: BLE001 (raised again where it was called)
            tell(loop, settle, future.set_exception, error)
            return
        if future.cancelled():
            late(answer)
        tell(loop, settle, future.set_result, answer)

    threading.Thread(target=run, name=f"{name}-{next(_numbers)}", daemon=True).start()
    return await future


async def on_thread(call: Callable[Arguments, T], *arguments: Arguments.args, **named: Arguments.kwargs) -> T:
    """Run something that blocks, for a disk as a rule; as ``asyncio.to_thread``, but see ``apart``."""
    return await apart("blocking", functools.partial(call, *arguments, **named))


def tell(loop: asyncio.AbstractEventLoop, what: Callable[..., None], *args: object) -> None:
    """Call something on an event loop, from any thread; nothing happens when the loop is gone."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(what, *args)
