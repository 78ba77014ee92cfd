"""Runs a command and buries what its descendants leave behind: ``python -m tools.reaper COMMAND …``.

QEMU and libvirtd detach from whoever starts them, so their end is process 1's to notice. In a container or a sandbox
that may be a program which looks every second or two, or never; libvirt waits for it before it says that a guest is
off. Below this one, it is noticed at once.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

#: prctl(2): orphans below this process become its children.
_SET_CHILD_SUBREAPER = 36


def main(command: list[str]) -> int:
    """Run a command and return its exit status, as a shell gives it."""
    ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    # The terminal sends it to the command too, which decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    mine = os.posix_spawnp(command[0], command, os.environ, setsigdef=[signal.SIGINT])
    while True:
        ended, status = os.wait()
        if ended == mine:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
