"""The bus inside one process: queues of the event loop.

It keeps the port's promises and no better ones. ``Disorder`` makes it show the worst it may do, duplicates and
reordering, from a seed; the tests of everything above it run with that on.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import defaultdict

import msgspec
import structlog

from stateward.bus.port import Answerer, Handler, NobodyAnswered

log = structlog.get_logger()

#: Seconds until a message whose handler raised is delivered again.
_REDELIVERY_SECONDS = 0.2


class Disorder(msgspec.Struct, frozen=True, kw_only=True):
    """How badly to behave: chances between 0 and 1, and the longest delay in seconds."""

    seed: int
    duplicate: float = 0.3
    delay: float = 0.5
    longest: float = 0.05


class MemoryBus:
    """One process's bus; what it holds dies with the process."""

    def __init__(self, disorder: Disorder | None = None) -> None:
        """Behave well, or as ``disorder`` says."""
        self._disorder = disorder
        self._random = random.Random(disorder.seed if disorder else 0)  # noqa: S311 (repeatable on purpose)
        self._handlers: dict[str, Handler] = {}
        self._answerers: dict[str, Answerer] = {}
        #: Messages nobody has subscribed to yet.
        self._kept: defaultdict[str, list[bytes]] = defaultdict(list)
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    @property
    def busy(self) -> bool:
        """Whether a message is being delivered."""
        return bool(self._tasks)

    async def publish(self, subject: str, payload: bytes, *, message_id: str) -> None:
        """Deliver soon; kept until somebody subscribes."""
        if self._closed:
            msg = "the bus is closed"
            raise RuntimeError(msg)
        handler = self._handlers.get(subject)
        if handler is None:
            self._kept[subject].append(payload)
            return
        self._deliver(subject, handler, payload)
        if self._disorder is not None and self._random.random() < self._disorder.duplicate:
            self._deliver(subject, handler, payload)

    async def subscribe(self, subject: str, handler: Handler) -> None:
        """Handle the subject's messages from now on, the kept ones first."""
        self._handlers[subject] = handler
        for payload in self._kept.pop(subject, []):
            self._deliver(subject, handler, payload)

    async def ask(self, subject: str, payload: bytes, *, timeout: float) -> bytes:
        """Have the answerer answer, or give up after ``timeout`` seconds."""
        answerer = self._answerers.get(subject)
        if answerer is None:
            raise NobodyAnswered(subject)
        try:
            async with asyncio.timeout(timeout):
                return await answerer(payload)
        except TimeoutError:
            raise NobodyAnswered(subject) from None
        except Exception as error:
            # Over a network nobody would hear why either; whoever asked asks again.
            log.exception("a question could not be answered", subject=subject)
            raise NobodyAnswered(subject) from error

    async def answer(self, subject: str, answerer: Answerer) -> None:
        """Answer the subject's questions from now on."""
        self._answerers[subject] = answerer

    async def close(self) -> None:
        """Stop; handlers under way are cancelled, and their messages die with the process like the rest."""
        self._closed = True
        for task in self._tasks:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _deliver(self, subject: str, handler: Handler, payload: bytes) -> None:
        delay = 0.0
        if self._disorder is not None and self._random.random() < self._disorder.delay:
            delay = self._random.random() * self._disorder.longest
        task = asyncio.create_task(self._attempt(subject, handler, payload, delay), name=f"deliver {subject}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _attempt(self, subject: str, handler: Handler, payload: bytes, delay: float) -> None:
        while True:
            if delay:
                await asyncio.sleep(delay)
            try:
                await handler(payload)
            except Exception:
                log.exception("a message could not be handled; it is delivered again", subject=subject)
                delay = _REDELIVERY_SECONDS
            else:
                return
