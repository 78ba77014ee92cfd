"""Runs a command that leaves a daemon behind, and buries what the daemon's guests leave: a program of its own.

QEMU detaches from libvirtd, so that its end is process 1's to notice; libvirt waits for that before it says that a
guest is off. In a container or a sandbox process 1 may be a program that looks every second or two, or never. A
keeper is nearer: it gets every orphan below it, and ends when there is none left. Killed, it is missed by nobody but
the clock: the orphans are process 1's then.

It imports nothing of Stateward's, so that it begins in milliseconds (``python -I -S keeper.py COMMAND …``).
"""

from __future__ import annotations

import ctypes
import os
import sys

#: prctl(2): orphans below this process become its children.
_SET_CHILD_SUBREAPER = 36
#: What a shell gives when there is no such command.
_NOT_FOUND = 127


def main(command: list[str]) -> int:
    """Return the command's exit status as soon as it has ended; a process in the background goes on."""
    told, tell = os.pipe()
    if os.fork():
        os.close(tell)
        status = os.read(told, 1)
        return status[0] if status else 1
    os.close(told)
    os.setsid()
    ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    _bury(command, tell)
    return 0


def _bury(command: list[str], tell: int) -> None:
    """Run the command, tell its exit status, and wait for all that is left below, one after the other."""
    try:
        mine = os.posix_spawnp(command[0], command, os.environ)
    except FileNotFoundError:
        _part(tell, _NOT_FOUND)
        return
    while True:
        try:
            ended, status = os.wait()
        except ChildProcessError:
            return
        if ended == mine:
            code = os.waitstatus_to_exitcode(status)
            _part(tell, code if code >= 0 else 128 - code)


def _part(tell: int, status: int) -> None:
    """Tell the exit status, and let go of what whoever waits for it would wait for too."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    os.write(tell, bytes([status]))
    os.close(tell)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
