"""Waiting for a change of one guest: the drivers' events, handed to whoever waits for that guest.

A subscription is made before the guest is looked at, so an event between the look and the wait is not lost.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Generator


class Watch:
    """Wakes those who wait for a guest when something happened to it."""

    def __init__(self) -> None:
        """Nobody waits yet."""
        self._events: dict[str, set[asyncio.Event]] = {}

    def changed(self, instance_id: str | None) -> None:
        """Wake who waits for this guest; None: for any."""
        groups = self._events.values() if instance_id is None else [self._events.get(instance_id, set())]
        for events in groups:
            for event in events:
                event.set()

    @contextlib.contextmanager
    def subscribe(self, instance_id: str) -> Generator[asyncio.Event]:
        """Give an event that is set at every change of the guest; whoever waits clears it."""
        event = asyncio.Event()
        events = self._events.setdefault(instance_id, set())
        events.add(event)
        try:
            yield event
        finally:
            events.discard(event)
            if not events:
                self._events.pop(instance_id, None)
