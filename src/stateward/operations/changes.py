"""Tells those who follow operations that there may be news, so that they need not ask the database all the time.

A signal carries nothing but which instance it is about: who is woken reads what is true then. A signal that is lost
(it was in another process) costs time, not truth, because followers also look by a period.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Generator


class Follower:
    """One who waits for news."""

    def __init__(self, instance_id: str | None) -> None:
        """Wait for news of an instance; None: of whatever there is."""
        self.instance_id = instance_id
        self.event = asyncio.Event()

    async def wait(self, seconds: float) -> None:
        """Return when there may be news, and after so many seconds anyway."""
        # Not wait_for: on Python 3.11 it loses a cancellation that comes together with the event.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.event.wait()
        self.event.clear()


class Changes:
    """Where news is told and waited for."""

    def __init__(self) -> None:
        """Begin without followers."""
        self._followers: set[Follower] = set()
        #: Nobody is to follow any more: the server is going down.
        self.closed = False

    def changed(self, instance_id: str | None = None) -> None:
        """Wake those who follow an instance; all of them when it is not known which."""
        for follower in self._followers:
            if follower.instance_id is None or instance_id in {None, follower.instance_id}:
                follower.event.set()

    def close(self) -> None:
        """Have everybody who follows end."""
        self.closed = True
        self.changed()

    @contextlib.contextmanager
    def following(self, instance_id: str | None) -> Generator[Follower]:
        """Follow an instance, or everything; what happens from now on is not missed."""
        follower = Follower(instance_id)
        self._followers.add(follower)
        try:
            yield follower
        finally:
            self._followers.discard(follower)
