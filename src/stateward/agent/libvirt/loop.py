"""libvirt's event loop: one thread for the whole process, because libvirt knows only one loop for a process.

It delivers events and answers keepalive for every connection, so it must run before the first is opened.
"""

from __future__ import annotations

import threading
from typing import Final

import libvirt


class EventThread:
    """Runs while somebody holds it; callbacks are called on its thread and must only pass the word on."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holders = 0
        self._thread: threading.Thread | None = None
        self._stop = False
        #: A libvirt timer that fires only to wake the loop; None until libvirt knows of the loop.
        self._waker: int | None = None

    def acquire(self) -> None:
        """Have the loop run until ``release``."""
        with self._lock:
            self._holders += 1
            if self._thread is not None:
                return
            if self._waker is None:
                libvirt.virEventRegisterDefaultImpl()
                self._waker = libvirt.virEventAddTimeout(-1, self._woken, None)
            self._stop = False
            self._thread = threading.Thread(target=self._run, name="libvirt-events", daemon=True)
            self._thread.start()

    def release(self) -> None:
        """Let go; the last one ends the thread, so that none is left in C code when Python ends."""
        with self._lock:
            self._holders -= 1
            if self._holders or self._thread is None or self._waker is None:
                return
            self._stop = True
            libvirt.virEventUpdateTimeout(self._waker, 0)
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        while not self._stop:
            libvirt.virEventRunDefaultImpl()

    def _woken(self, timer: int, _opaque: object) -> None:
        libvirt.virEventUpdateTimeout(timer, -1)


EVENTS: Final = EventThread()
