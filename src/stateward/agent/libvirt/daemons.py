"""Makes a libvirt available on a machine, also where no systemd starts one, without changing its configuration.

What is started here keeps running when Stateward ends, as its guests do: virtlogd holds their consoles. It is known
by pid files in the data folder, so that whoever comes next on the same folder, also after a crash, can stop it.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final

import libvirt
import msgspec
import structlog

from stateward.agent.libvirt.access import KVM, User, runs_unmodified
from stateward.agent.libvirt.pidfile import Daemon, DaemonError, end, ended
from stateward.agent.libvirt.xml import own_user

log = structlog.get_logger()

_SYSTEM: Final = "qemu:///system"
_SESSION: Final = "qemu:///session"

#: Seconds a libvirtd that was just started has to answer.
_ANSWER_SECONDS: Final = 20.0
_ASK_AGAIN: Final = 0.02
#: Seconds between two starts of a daemon that ends soon after each, at most; and how long one runs that does not.
_LONGEST_PAUSE: Final = 60.0
_LONG: Final = 60.0

#: Where the system's virtlogd listens.
_LOG_SOCKET: Final = "/run/libvirt/virtlogd-sock"

#: A user that has no rights of its own.
_NOBODY: Final = "+65534:+65534"

#: The most bytes of a UNIX socket's path.
_SOCKET_PATH: Final = 107

#: What ``own`` shows its libvirtd in place of the system's folders, by the name it has under its folder.
_OWN_FOLDERS: Final = {
    "etc": "/etc/libvirt",
    "run": "/run/libvirt",
    "lib": "/var/lib/libvirt",
    "cache": "/var/cache/libvirt",
    "log": "/var/log/libvirt",
}

#: QEMU of a libvirtd of one's own runs as root, without what would touch the rest of the machine.
_OWN_QEMU_CONF: Final = """\
user = "root"
group = "root"
security_driver = "none"
cgroup_controllers = []
namespaces = []
"""

#: Binds each pair of arguments, up to ``--``, over one another, then becomes the command after it. What stands for
#: the KVM is made read-only: nothing else keeps root, and so a QEMU run by root, from opening it.
_BIND_AND_RUN: Final = f"""\
while [ "$1" != -- ]; do
	mount --bind "$1" "$2"
	[ "$2" != {KVM} ] || mount -o remount,bind,ro "$2"
	shift 2
done
shift
exec "$@"
"""

#: Runs a libvirtd, and buries its guests.
_KEEPER: Final = (sys.executable, "-I", "-S", str(Path(__file__).with_name("keeper.py")))

#: Told what is being done, a line at a time.
Progress = Callable[[str], None]


class LibvirtPlace(msgspec.Struct, frozen=True, kw_only=True):
    """Where a libvirt is to be had."""

    uri: str
    #: ``+UID:+GID`` QEMU must run as to reach the data folder, None when libvirt's own user can.
    run_as: str | None
    #: The daemons that were started here or by an earlier run on the same folder, and run.
    started: tuple[int, ...]


async def ensure(uri: str | None, data: Path, progress: Progress) -> LibvirtPlace:
    """Find a libvirt, starting the system's own daemons when root finds none.

    Args:
        uri: the one that is configured, None to look for one.
        data: the data folder; QEMU must be able to reach it.
        progress: told what is done that somebody may want to know.

    Raises:
        DaemonError: libvirt is not installed or does not start.
    """
    daemons = _daemons(data)
    if uri is None and os.geteuid() != 0:
        # libvirt's client starts this user's daemon by itself, and it ends by itself.
        uri = _SESSION
    if uri is None:
        uri = _SYSTEM
        if not await _answers(uri):
            progress("Starting libvirt, which does not run.")
            await _start(daemons)
    started = tuple(pid for pid in (each.pid() for each in daemons) if pid is not None)
    run_as = await asyncio.to_thread(_label, uri, data)
    if run_as is not None:
        progress(f"QEMU runs as {User(run_as)}: libvirt's own user cannot reach {data}.")
    return LibvirtPlace(uri=uri, run_as=run_as, started=started)


async def own(folder: Path) -> LibvirtPlace:
    """Start a libvirtd that nobody else sees, with QEMU run as root, in a mount namespace of its own.

    Several run side by side, as hosts of one machine do. On a folder whose libvirtd has ended it starts a new
    one beside the guests that still run.

    Raises:
        DaemonError: not root, libvirt is not installed or does not start, or the folder's path is too long.
    """
    if os.geteuid() != 0:
        raise DaemonError("A libvirtd of one's own needs root: it gets a mount namespace.")
    folder = folder.absolute()
    listens_at = folder / "run" / "libvirt-sock"
    if len(os.fsencode(listens_at)) > _SOCKET_PATH:
        raise DaemonError(f"The path {folder} is too long for libvirt's socket; choose a shorter one.")
    configuration = await asyncio.to_thread(_configure_own, folder)
    log, server = _daemons(folder)
    held = log.pid()
    if held is None:
        pairs = [part for name, path in _OWN_FOLDERS.items() for part in (str(folder / name), path)]
        held = await log.start(within=_unshared("private", *pairs, *_hidden(log.folder)))
    uri = f"qemu+unix:///system?socket={listens_at}"
    if server.pid() is None:
        inside = (*_KEEPER, "nsenter", f"--mount=/proc/{held}/ns/mnt")
        await server.start("--config", str(configuration), within=inside)
        await _wait(uri, server)
    pids = tuple(pid for pid in (log.pid(), server.pid()) if pid is not None)
    return LibvirtPlace(uri=uri, run_as=None, started=pids)


def _configure_own(folder: Path) -> Path:
    """Make the folders and the configuration of a libvirtd of one's own; return the configuration."""
    configuration = folder / "etc" / "libvirtd.conf"
    for name, path in _OWN_FOLDERS.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        # A mount needs something to be mounted on.
        Path(path).mkdir(parents=True, exist_ok=True)
    (folder / "etc" / "qemu.conf").write_text(_OWN_QEMU_CONF, encoding="utf-8")
    configuration.write_text(
        f'unix_sock_dir = "{folder / "run"}"\nauth_unix_rw = "none"\nauth_unix_ro = "none"\n',
        encoding="utf-8",
    )
    return configuration


async def keep(data: Path) -> None:
    """Start the daemons that run on this folder again whenever one ends, until it is cancelled.

    Nobody else would: they were started here because nothing on this machine does.
    """
    daemons = _daemons(data)
    await kept(daemons, functools.partial(_start, daemons))


async def kept(
    daemons: Sequence[Daemon],
    start: Callable[[], Awaitable[object]],
    *,
    first_pause: float = 1.0,
) -> None:
    """Start again those of some daemons that run now, whenever one ends; over when others have taken their place.

    Args:
        daemons: which.
        start: starts what of them does not run.
        first_pause: seconds before one that ran for long is started; twice as long for each time that it did not.
    """
    loop, pause = asyncio.get_running_loop(), first_pause
    while mine := {each: pid for each in daemons if (pid := each.pid()) is not None}:
        since = loop.time()
        waiting = [asyncio.create_task(ended(pid)) for pid in mine.values()]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()
        pause = first_pause if loop.time() - since > _LONG else min(2 * pause, _LONGEST_PAUSE)
        while any(each.pid() is None for each in mine):
            names = " and ".join(each.program for each in mine if each.pid() is None)
            log.warning("a daemon that was started here has ended; it is started again", program=names)
            await asyncio.sleep(pause)
            try:
                await start()
            except DaemonError as error:
                log.warning("it cannot be started", program=names, error=str(error))
            except Exception:
                # A full disk, or no process to be had: nobody else would ever start it.
                log.exception("it could not be started; it is tried again", program=names)
            else:
                break
            pause = min(2 * pause, _LONGEST_PAUSE)


async def stop(data: Path, progress: Progress) -> bool:
    """Stop the daemons that ``ensure`` or an earlier run on this folder started; say whether none is left.

    While any guest runs they are left: stopping libvirtd would leave the guest without anybody to ask for it,
    and stopping virtlogd would block it at its next word on its console.
    """
    daemons = _daemons(data)
    if not any(daemon.pid() for daemon in daemons):
        return True
    running = await asyncio.to_thread(_running, _SYSTEM)
    if running != 0:
        how_many = "it cannot be told how many guests" if running is None else f"{running} guests"
        progress(f"libvirt is left running: {how_many} still run under it.")
        return False
    for daemon in reversed(daemons):
        await daemon.stop()
    return True


async def stop_own(folder: Path) -> None:
    """Stop a libvirtd started by ``own``, and kill its guests."""
    log, server = _daemons(folder)
    await server.stop()
    for file in await asyncio.to_thread(lambda: list((folder / "run" / "qemu").glob("*.pid"))):
        with contextlib.suppress(ValueError):
            await end(int(file.read_text(encoding="ascii")), signal.SIGKILL)
        file.unlink()
    await log.stop()


def _daemons(data: Path) -> tuple[Daemon, Daemon]:
    folder = data.absolute() / "libvirt"
    return (
        Daemon("virtlogd", "libvirt-daemon-system", folder),
        Daemon("libvirtd", "libvirt-daemon-system", folder),
    )


async def _start(daemons: tuple[Daemon, Daemon]) -> None:
    """Start what does not run."""
    log, server = daemons
    if not _listens(_LOG_SOCKET):
        await log.start()
    if await _answers(_SYSTEM):
        return
    hidden = _hidden(server.folder)
    # A slave still sees what the system mounts later, as a folder of images.
    pairs = (*hidden, *_without_namespaces(server.folder)) if hidden else ()
    await server.start(within=(*_KEEPER, *(_unshared("slave", *pairs) if pairs else ())))
    await _wait(_SYSTEM, server)


def _hidden(folder: Path) -> tuple[str, ...]:
    """Return what to show libvirtd in place of a KVM that runs no ordinary guest, and that; else nothing.

    libvirt tries a KVM that it sees, which takes seconds with such a one; and where QEMU's user may not open it,
    libvirt 9 takes what it found for outdated at once and tries again at every call.
    """
    if not KVM.exists() or runs_unmodified():
        return ()
    folder.mkdir(parents=True, exist_ok=True)
    nothing = folder / "no-kvm"
    nothing.touch(mode=0)
    return str(nothing), str(KVM)


def _without_namespaces(folder: Path) -> tuple[str, str]:
    """Return what to show libvirtd in place of its configuration for QEMU, and that.

    libvirt cannot give a guest a ``/dev`` of its own while there is a mount below ours.
    """
    system = Path(_OWN_FOLDERS["etc"]) / "qemu.conf"
    lines = system.read_text(encoding="utf-8").splitlines() if system.exists() else []
    kept = [line for line in lines if not line.startswith("namespaces")]
    shown = folder / "qemu.conf"
    shown.write_text("\n".join((*kept, "namespaces = []", "")), encoding="utf-8")
    return str(shown), str(system)


def _unshared(propagation: str, *pairs: str) -> tuple[str, ...]:
    """Return the command that runs another in a mount namespace with the first of each pair over the second."""
    unshare = ("unshare", "--mount", "--propagation", propagation)
    return *unshare, "sh", "-ec", _BIND_AND_RUN, "sh", *pairs, "--"


def _listens(path: str) -> bool:
    """Say whether somebody serves a UNIX socket; a file left behind serves nobody."""
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(path)
        except OSError:
            return False
    return True


async def _wait(uri: str, server: Daemon) -> None:
    try:
        async with asyncio.timeout(_ANSWER_SECONDS):
            while not await _answers(uri):  # noqa: ASYNC110 - a socket tells nobody that it is there
                await asyncio.sleep(_ASK_AGAIN)
    except TimeoutError:
        raise DaemonError(f"libvirtd runs and does not answer at {uri}; its log is {server.log}.") from None


async def _answers(uri: str) -> bool:
    return await asyncio.to_thread(_running, uri) is not None


def _quiet(_context: object, _error: object) -> None:
    """Keep libvirt from writing errors on stderr; they are raised."""


def _open(uri: str) -> libvirt.virConnect | None:
    libvirt.registerErrorHandler(_quiet, None)
    try:
        return libvirt.open(uri)
    except libvirt.libvirtError:
        return None


def _running(uri: str) -> int | None:
    """Return how many guests run, anybody's; None when nobody answers."""
    connection = _open(uri)
    if connection is None:
        return None
    try:
        return connection.numOfDomains()
    except libvirt.libvirtError:
        return None
    finally:
        connection.close()


def _label(uri: str, data: Path) -> str | None:
    """Return whom QEMU must run as to reach a folder, None when libvirt's user can or is not known. Blocking."""
    data.mkdir(parents=True, exist_ok=True)
    if User(_NOBODY).can_reach(data):
        # So can libvirt's user, and it need not be asked for, which takes seconds the first time.
        return None
    user = _user(uri)
    if user is None or User(user).can_reach(data):
        return None
    facts = data.stat()
    return f"+{facts.st_uid}:+{facts.st_gid}"


def _user(uri: str) -> str | None:
    connection = _open(uri)
    if connection is None:
        return None
    try:
        return own_user(connection.getCapabilities())
    except libvirt.libvirtError:
        return None
    finally:
        connection.close()
