"""A daemon that outlives whoever started it, known by its pid file.

The file alone proves nothing after a crash or a reboot, when its number may be somebody else's: the process is
ours only when its command line names the file.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import subprocess
from pathlib import Path
from typing import Final

#: Seconds a daemon has to go into the background, which it does when it serves or has failed.
_START_SECONDS: Final = 20.0
#: Seconds a daemon has to end when it is told to.
_END_SECONDS: Final = 10.0


class DaemonError(Exception):
    """A daemon could not be started; the message says what to install or where to look."""


class Daemon:
    """One daemon of libvirt's.

    Args:
        program: its name, found in ``PATH`` or where system programs are.
        package: the package that has it, for people.
        folder: its pid file and its log are ``PROGRAM.pid`` and ``PROGRAM.log`` in it.
    """

    def __init__(self, program: str, package: str, folder: Path) -> None:
        self.program = program
        self.folder = folder
        self._package = package
        self._pid_file = folder / f"{program}.pid"
        #: Where it writes warnings and errors.
        self.log = folder / f"{program}.log"

    def pid(self) -> int | None:
        """Return its process, None when it does not run."""
        try:
            pid = int(self._pid_file.read_text(encoding="ascii"))
            arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except (OSError, ValueError):
            return None
        return pid if os.fsencode(self._pid_file) in arguments else None

    async def start(self, *arguments: str, within: tuple[str, ...] = ()) -> int:
        """Start it and return its process; ``within`` is a command that is given the daemon's as arguments.

        Raises:
            DaemonError: it is not installed, or ended at once.
        """
        command = (*within, self.program, "--daemon", "--pid-file", str(self._pid_file), *arguments)
        environment = {
            **os.environ,
            "PATH": f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin",
            # Warnings and errors, to a file of ours: without journald they go to the system's syslog, if any.
            "LIBVIRT_LOG_OUTPUTS": f"3:file:{self.log}",
        }
        self.log.parent.mkdir(parents=True, exist_ok=True)
        try:
            # In a thread and not by the event loop: uvloop's children inherit a second end of the pipe, which the
            # daemon then keeps open for ever.
            process = await asyncio.to_thread(
                subprocess.run,
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                start_new_session=True,
                timeout=_START_SECONDS,
                check=False,
            )
        except FileNotFoundError as error:
            raise DaemonError(f"{error.filename} is not installed (Debian: {self._package}).") from None
        except subprocess.TimeoutExpired:
            raise DaemonError(f"{self.program} does not start; its log is {self.log}.") from None
        pid = self.pid()
        if process.returncode or pid is None:
            detail = process.stderr.decode(errors="replace").strip() or f"status {process.returncode}"
            raise DaemonError(
                f"{self.program} cannot be started: {detail}. It is in Debian's package {self._package}; "
                f"its log is {self.log}."
            )
        return pid

    async def stop(self) -> None:
        """End it, if it runs: by asking, then by force."""
        pid = self.pid()
        if pid is not None:
            await end(pid, signal.SIGTERM)
        self._pid_file.unlink(missing_ok=True)


async def ended(pid: int) -> None:
    """Wait until a process has ended."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    loop, gone = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(handle, gone.set)
    try:
        await gone.wait()
    finally:
        loop.remove_reader(handle)
        os.close(handle)


async def end(pid: int, first: signal.Signals) -> None:
    """Signal a process and wait until it is gone; killed when it takes too long."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        for number in (first, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle, number)
            ready, _, _ = await asyncio.to_thread(select.select, [handle], [], [], _END_SECONDS)
            if ready:
                return
    finally:
        os.close(handle)
