"""Whose guest the kernel ended for want of memory: libvirt has no reason of its own for that, and calls it a crash.

The kernel's log names the control group of what it ended, and libvirt names the group after the domain. Where the log
cannot be read, or guests have no group of their own, nothing is known and a crash stays a crash.
"""

from __future__ import annotations

import os
import re
import threading
from pathlib import Path
from typing import Final

from stateward.domain.states import Cause, Observed

KERNEL_LOG: Final = Path("/dev/kmsg")

#: A record's head begins with its facility times eight and its level: below eight it is the kernel's own word, and not
#: what a program wrote there.
_ENDED: Final = re.compile(rb"^[0-7],[^;\n]*;oom-kill:[^\n]*[,:]task_memcg=([^,\n]+)", re.MULTILINE)
_ESCAPE: Final = re.compile(rb"\\x([0-9a-f]{2})")
#: As systemd's scopes and libvirt's own groups are called: ``qemu``, libvirt's number of this start, the name.
_GROUP: Final = re.compile(r"qemu-\d+-(.+?)\.(?:scope|libvirt-qemu)(?:/|$)")
#: A record of the log is never longer.
_RECORD: Final = 8192


class KernelLog:
    """The log from now on; calls may come from any thread."""

    def __init__(self, path: Path = KERNEL_LOG) -> None:
        """Know nothing yet."""
        self._path = path
        self._file: int | None = None
        self._lock = threading.Lock()
        #: Names of domains whose guest was ended and has not run since.
        self._ended: set[str] = set()

    def open(self) -> None:
        """Begin at its end: what was before is of guests that may have been started since."""
        try:
            self._file = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            os.lseek(self._file, 0, os.SEEK_END)
        except OSError:
            self.close()

    def close(self) -> None:
        """Let it go."""
        with self._lock:
            if self._file is not None:
                os.close(self._file)
                self._file = None

    def matters(self, cause: Cause) -> bool:
        """Say whether there is anything to be asked of a guest; of a thousand that run there is not."""
        return cause is Cause.CRASHED or bool(self._ended)

    def cause(self, name: str, now: Observed, cause: Cause) -> Cause:
        """Return why a domain is as it is, known better than by libvirt's word alone."""
        with self._lock:
            if now is Observed.RUNNING:
                self._ended.discard(name)
            if cause is not Cause.CRASHED or now is not Observed.SHUTOFF:
                return cause
            self._read()
            return Cause.OUT_OF_MEMORY if name in self._ended else cause

    def _read(self) -> None:
        while self._file is not None:
            try:
                read = os.read(self._file, _RECORD)
            except BrokenPipeError:
                # Some were written over before they were read.
                continue
            except OSError:
                return
            if not read:
                return
            self._ended.update(_names(read))


def _names(log: bytes) -> list[str]:
    """Return the domains whose guests were ended, as a piece of the log says."""
    found: list[str] = []
    for group in _ENDED.findall(log):
        # The log escapes the backslash with which systemd has escaped the dash.
        plain = _unescaped(_unescaped(group)).decode(errors="replace")
        named = _GROUP.search(plain)
        if named is not None:
            found.append(named[1])
    return found


def _unescaped(text: bytes) -> bytes:
    return _ESCAPE.sub(lambda match: bytes.fromhex(match[1].decode()), text)
