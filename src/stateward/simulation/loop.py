"""An event loop whose time is counted, not measured: whoever waits an hour waits for nothing at all."""

from __future__ import annotations

import asyncio
import contextlib
import random
import selectors
import uuid
from collections.abc import Coroutine, Generator
from typing import Any, Final, TypeVar

T = TypeVar("T")

#: Time that passes with each look at the clock, in seconds, as it does on a real one. Who waits for the last 1e-13 s
#: of a sum of floats would otherwise wait, and look, for ever.
_LOOK: Final = 1e-9
#: The whole seconds of a wait begin anew with each jump, so that looks never add up to what can be seen.
_DIGITS: Final = 6


class NothingLeft(Exception):
    """Everybody waits, and nobody for a time: nothing will ever happen again."""


class VirtualLoop(asyncio.SelectorEventLoop):
    """Jumps to the next time that somebody waits for. Files and sockets are looked at and never waited for."""

    def __init__(self) -> None:
        """Begin at zero."""
        self._now = 0.0
        self._looks = 0
        super().__init__(_Jumps(self))
        # Whoever is due within it is due: a jump to a round number may end a little before.
        self._clock_resolution = 10.0**-_DIGITS

    def time(self) -> float:
        """Return the virtual seconds since the loop began."""
        self._looks += 1
        return self._now + self._looks * _LOOK

    def jump(self, seconds: float) -> None:
        """Let time pass."""
        was = self._now + self._looks * _LOOK
        # To the round number that was meant, unless looks have gone past it.
        self._now = max(round(was + seconds, _DIGITS), was)
        self._looks = 0


class _Jumps(selectors.SelectSelector):
    """In the place of a wait for files: a jump in time."""

    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise NothingLeft
        if timeout > 0:
            self._loop.jump(timeout)
        return super().select(0)


def run(main: Coroutine[Any, Any, T], *, seed: int) -> T:
    """Run on a virtual loop, from time zero on, with the same ids each time.

    Raises:
        NothingLeft: ``main`` waits for what cannot happen.
    """
    with _ids(seed), asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)


@contextlib.contextmanager
def _ids(seed: int) -> Generator[None]:
    """Make ids from a seed: they decide what comes first where nothing else does."""
    dice = random.Random(seed)  # noqa: S311 (repeatable on purpose)
    real = uuid.uuid4
    setattr(uuid, "uuid4", lambda: uuid.UUID(int=dice.getrandbits(128), version=4))  # noqa: B010 (to the checkers, a function is no variable)
    try:
        yield
    finally:
        setattr(uuid, "uuid4", real)  # noqa: B010 (as above)
