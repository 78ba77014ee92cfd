"""A host's way to the control plane, and what can go wrong on it.

The port of the bus promises delivery at least once and in no order. A wire does what that allows: it delays, doubles
and reorders, and while it is cut it keeps everything, in both directions, and delivers it late.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Coroutine
from typing import Any, Final

import msgspec

from stateward.bus.port import Answerer, Bus, Handler

#: Seconds until a doubled message comes a second time.
_AGAIN: Final = 1.0


class Weather(msgspec.Struct, frozen=True, kw_only=True):
    """How messages travel; seconds."""

    delay: float = 0.0
    #: The longest that a message is delayed by besides, each by chance.
    spread: float = 0.0
    twice: bool = False
    #: Chances from 0 to 1 that a message comes twice, where not all do.
    duplicate: float = 0.0


FAIR: Final = Weather()


class Wire:
    """The bus as one host's agent has it. It outlives agents; what comes while there is none waits for the next."""

    def __init__(self, bus: Bus, dice: random.Random) -> None:
        """Begin in fair weather."""
        self.weather = FAIR
        self._bus = bus
        self._dice = dice
        self._whole = asyncio.Event()
        self._whole.set()
        self._handlers: dict[str, Handler] = {}
        self._answerers: dict[str, Answerer] = {}
        self._subscribed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    def inherit(self, before: Wire) -> None:
        """Be in the same weather as another one was: servers come and go, and a cable stays cut."""
        self.weather = before.weather
        if not before.whole:
            self.cut()

    @property
    def whole(self) -> bool:
        """Whether it is not cut."""
        return self._whole.is_set()

    def cut(self) -> None:
        """Keep what is sent from now on."""
        self._whole.clear()

    def mend(self) -> None:
        """Deliver what was kept, and what is sent from now on."""
        self._whole.set()

    def hang_up(self) -> None:
        """Forget the agent: it is dead, and what it had said is on its way or lost with it."""
        self._handlers.clear()
        self._answerers.clear()

    async def publish(self, subject: str, payload: bytes, *, message_id: str) -> None:
        """Take a message from the agent; one that is sent as everything ends is lost with it."""
        if self._closed:
            return
        for late in self._copies():
            self._do(self._send(subject, payload, message_id, late))

    async def subscribe(self, subject: str, handler: Handler) -> None:
        """Hand what comes for a subject to the agent that lives."""
        known = subject in self._handlers
        self._handlers[subject] = handler
        self._subscribed.set()
        if not known:
            await self._bus.subscribe(subject, lambda payload: self._arrive(subject, payload))

    async def ask(self, subject: str, payload: bytes, *, timeout: float) -> bytes:
        """Ask over the wire."""
        await self._whole.wait()
        return await self._bus.ask(subject, payload, timeout=timeout)

    async def answer(self, subject: str, answerer: Answerer) -> None:
        """Have the agent that lives answer."""
        self._answerers[subject] = answerer
        await self._bus.answer(subject, lambda payload: self._answer(subject, payload))

    async def close(self) -> None:
        """Lose what is under way: the bus ends, or is taken down."""
        self._closed = True
        for task in self._tasks:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _copies(self) -> list[float]:
        """Return how late each copy of a message comes."""
        weather = self.weather
        late = weather.delay + (self._dice.random() * weather.spread if weather.spread else 0.0)
        twice = weather.twice or (weather.duplicate > 0 and self._dice.random() < weather.duplicate)
        return [late, late + _AGAIN] if twice else [late]

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _send(self, subject: str, payload: bytes, message_id: str, late: float) -> None:
        await asyncio.sleep(late)
        await self._whole.wait()
        await self._bus.publish(subject, payload, message_id=message_id)

    async def _arrive(self, subject: str, payload: bytes) -> None:
        first, *more = self._copies()
        for late in more:
            self._do(self._again(subject, payload, late))
        await asyncio.sleep(first)
        await self._hand_over(subject, payload)

    async def _again(self, subject: str, payload: bytes, late: float) -> None:
        await asyncio.sleep(late)
        await self._hand_over(subject, payload)

    async def _hand_over(self, subject: str, payload: bytes) -> None:
        while True:
            await self._whole.wait()
            handler = self._handlers.get(subject)
            if handler is not None:
                await handler(payload)
                return
            self._subscribed.clear()
            await self._subscribed.wait()

    async def _answer(self, subject: str, payload: bytes) -> bytes:
        await self._whole.wait()
        answerer = self._answerers.get(subject)
        if answerer is None:
            # Nobody is there to answer: whoever asked gives up.
            await asyncio.Event().wait()
            raise AssertionError
        return await answerer(payload)
