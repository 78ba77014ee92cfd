"""The driver contract: what an agent asks of a hypervisor (R10).

A driver changes guests only when it is told to, one call at a time per guest, and every call says "make it so":
on a guest that is already so it does nothing and returns. It never decides, waits for guests or retries; the
agent does. One contract suite (``tests/agent/contract.py``) passes on every driver.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable, Sequence, Set as AbstractSet
from pathlib import Path
from typing import Protocol

import msgspec

from stateward.bus.console import ConsoleStream
from stateward.domain.diagnostics import Diagnostics
from stateward.domain.networks import PortAddress
from stateward.domain.records import GuestSpec
from stateward.domain.shutdown import Rung
from stateward.domain.states import Cause, Observed
from stateward.domain.strangers import Stranger
from stateward.domain.sweeps import Trace


class DriverError(Exception):
    """The hypervisor refused or failed; ``str()`` is for people and says what to do where that is known."""


class HypervisorUnavailable(DriverError):
    """The hypervisor cannot be asked at all (its daemon is away). Nothing is known, and nothing was changed."""


class GuestMissing(DriverError):
    """The hypervisor has no such guest."""


class NoAgent(DriverError):
    """No agent holds its end of the channel inside the guest, so nothing in it can be asked."""

    def __init__(self) -> None:
        """Say so, and what to do."""
        super().__init__(
            "No agent answers inside the guest. Install qemu-guest-agent in it, start it, and ask again."
        )


class AgentSilent(DriverError):
    """The agent inside the guest holds its channel and does not answer."""

    def __init__(self, seconds: float) -> None:
        """Say how many seconds it was given."""
        super().__init__(
            f"The agent inside the guest did not answer within {seconds:g} s. "
            "Look at qemu-guest-agent in the guest, restart it, and ask again."
        )


class Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    """What a driver can do; an operation that needs more is refused with a reason."""

    #: Ask a guest by the power button, and by an agent inside it.
    acpi_shutdown: bool
    agent_shutdown: bool
    pause: bool
    suspend: bool
    console_log: bool
    #: Connect to a guest's serial console.
    console_stream: bool
    #: Have an agent inside a guest set a password; raise a non-maskable interrupt.
    set_password: bool
    inject_nmi: bool
    #: Copy the disk of a guest that is on; without it only one that is off can be copied.
    live_snapshot: bool
    #: Tells of changes at once; without it only polls see them.
    events: bool


class HostFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What a host has. Memory in MiB, disk in GiB."""

    hypervisor_type: str
    hypervisor_version: int
    vcpus: int
    memory: int
    disk: int
    disk_used: int
    cpu_info: str


class Guest(msgspec.Struct, frozen=True, kw_only=True):
    """What a hypervisor says of one guest."""

    instance_id: str
    observed: Observed
    cause: Cause
    #: The highest fence stored with the guest, where it survives the agent; 0 when none is.
    fence: int = 0


class ImageFiles(Protocol):
    """Where an agent gets the images it makes guests from, and brings those it makes of guests."""

    async def path(self, image_id: str) -> Path:
        """Return a local, readable file with the image's bytes.

        Raises:
            DriverError: there is no such image, or it could not be fetched.
        """
        ...

    async def store(self, image_id: str, path: Path) -> None:
        """Make a file the data of a queued image, which is active then; of one that is active, change nothing.

        The image's data may be the very same file afterwards: it must not be written to any more. It is left
        where it is, for the caller to delete, so that being killed in between loses nothing.

        Raises:
            DriverError: there is no such image, no such file, or no room.
        """
        ...


#: Called by a driver, on the event loop, when something changed; the id of the guest, or None for "relist".
Changed = Callable[[str | None], None]


class Driver(Protocol):
    """A hypervisor. Every method may raise ``HypervisorUnavailable``; then nothing was changed."""

    name: str
    capabilities: Capabilities

    async def open(self, changed: Changed) -> None:
        """Connect, and call ``changed`` from now on for every change of any guest, whoever made it.

        A driver whose hypervisor is away at first or goes away keeps trying by itself, and calls
        ``changed(None)`` when it is back: anything can have happened meanwhile.
        """
        ...

    async def close(self) -> None:
        """Disconnect; guests run on."""
        ...

    async def facts(self) -> HostFacts:
        """Describe the host."""
        ...

    def boot_id(self) -> str:
        """Name the boot that the machine is in: another word after each; empty where that cannot be told (R14).

        It asks no hypervisor and does not wait, so that it is of the very moment.
        """
        ...

    async def list(self) -> list[Guest]:
        """Return all guests of Stateward's on this host, in one bulk call."""
        ...

    async def get(self, instance_id: str) -> Guest:
        """Return one guest; ``Observed.MISSING`` when the hypervisor has none."""
        ...

    async def strangers(self, known: AbstractSet[str]) -> builtins.list[Stranger]:
        """Return the guests on this host that are none of the ``known``, with what adopting them needs; ids.

        Those that bear our mark, and are not known, are among them: a lost record does not make them gone.
        """
        ...

    async def adopt(self, spec: GuestSpec) -> None:
        """Make a guest that somebody else made one of Stateward's, without touching it while it runs.

        It keeps its name, id, definition and disks. It is marked as adopted; it does not start with its host any more
        and stays off when it goes off. What that was before is kept with the mark. A guest that the hypervisor would
        forget when it goes off is made to stay known.

        Raises:
            GuestMissing, DriverError: it cannot be marked.
        """
        ...

    async def release(self, instance_id: str) -> None:
        """Give an adopted guest back without touching it while it runs: nothing of ours is left with it.

        Whether it starts with its host, and after it went off, is as it was before. A guest that is missing, or none
        of ours, is no error.

        Raises:
            DriverError: it was not adopted but made here, or its mark cannot be taken off.
        """
        ...

    async def second_look(self, instance_ids: Sequence[str]) -> dict[str, Trace]:
        """Look for traces of guests past the way in which ``list`` asks for them: a second signal (B5).

        A guest that it says nothing of, or of which something cannot be told, is left open.
        """
        ...

    async def mark_fence(self, instance_id: str, fence: int) -> None:
        """Store a fence with the guest, where it survives the agent. A missing guest is no error."""
        ...

    async def check_image(self, spec: GuestSpec) -> None:
        """Fetch the image and see that the instance's disk can be made over it; neither guest nor disk is touched.

        What was found good is there when the disk is made, whatever becomes of the image meanwhile.

        Raises:
            DriverError: as for ``prepare_disk``.
        """
        ...

    async def check_rescue_image(self, spec: GuestSpec) -> None:
        """Do the same with the image that the spec rescues with.

        Raises:
            DriverError: as for ``prepare_rescue_disk``.
        """
        ...

    async def prepare_disk(self, spec: GuestSpec) -> None:
        """Make the instance's disks, the one over its image and its flavor's further ones, unless they are there.

        One that is there is never touched.

        Raises:
            DriverError: the image is not there, is broken or is larger than the flavor's disk, or the host's
                disk is full; nothing is left then.
        """
        ...

    async def keep_disk(self, instance_id: str, fence: int) -> None:
        """Copy the disk aside as the one that an operation keeps, unless that operation's is kept already.

        Args:
            instance_id: whose disk.
            fence: the operation's, which is stored with the copy: an agent that remembers nothing knows by it which
                copy is the operation's own, and leaves it. The copy of an older operation goes.

        Raises:
            DriverError: there is no disk, the guest is on, or the host's disk is full.
        """
        ...

    async def return_disk(self, instance_id: str) -> None:
        """Put the kept disk in the place of the disk, if one is kept. Raises ``DriverError`` when the guest is on."""
        ...

    async def drop_kept_disk(self, instance_id: str, fence: int) -> None:
        """Delete the disk that an operation before the one with this fence kept, if one is kept."""
        ...

    async def grow_disk(self, spec: GuestSpec) -> None:
        """Make the disk as large as the spec says; one that is as large or larger stays as it is.

        Raises:
            DriverError: there is no disk, the guest is on, or the host's disk is full.
        """
        ...

    async def discard_disk(self, instance_id: str) -> None:
        """Delete the disk, and those the flavor gives besides it, if they are there, so that they can be made anew.

        Raises:
            DriverError: the guest is on.
        """
        ...

    async def discard_stale_disk(self, spec: GuestSpec) -> None:
        """Discard the disks, unless the one that it boots from is there and was made over the spec's image.

        One that was is the one to have: it is never touched, so that this may be repeated when the guest has
        written to it.

        Raises:
            DriverError: it is another one and the guest is on, or it cannot be told.
        """
        ...

    async def prepare_rescue_disk(self, spec: GuestSpec) -> None:
        """Make a disk over the image that the spec rescues with, unless it is there.

        Raises:
            DriverError: the spec names none, or as for ``prepare_disk``.
        """
        ...

    async def discard_rescue_disk(self, instance_id: str) -> None:
        """Delete the rescue disk, if it is there. Raises ``DriverError`` when the guest is on."""
        ...

    async def snapshot(self, spec: GuestSpec, image_id: str, *, quiesce: bool) -> None:
        """Copy the disk, as it is at one moment, into a file of this host's that is whole in itself.

        A guest that is on runs on meanwhile. With the file there already, nothing is copied.

        Args:
            spec: whose disk.
            image_id: the image it is to become; names the file.
            quiesce: have the agent inside a guest that is on freeze its file systems for that moment. They are
                thawed on every way out, and first of all when this is repeated after a kill.

        Raises:
            NoAgent: quiesce was asked for and nobody is there to do it.
            DriverError: there is no disk, it cannot be copied while the guest is on, or the host's disk is full;
                nothing is left then.
        """
        ...

    async def publish_snapshot(self, image_id: str) -> None:
        """Hand a snapshot's file to the image store and delete it; one that was handed over is no error.

        Raises:
            DriverError: there is no such file, or the image store refused; the file is kept then.
        """
        ...

    async def discard_snapshot(self, image_id: str) -> None:
        """Delete a snapshot's file, or what was begun of it, if it is there."""
        ...

    async def define(self, spec: GuestSpec) -> None:
        """Make the guest known, off, or bring its definition up to date; autostart and restarts off.

        With ``spec.rescue`` it boots from the rescue disk, its own disk being the second one.
        What the guest is told of itself is written anew where it has changed, and its networks are started.

        Raises:
            DriverError: the instance's disk, or the rescue disk, is not there.
        """
        ...

    async def power_on(self, instance_id: str) -> None:
        """Boot the guest. A running one stays as it is; a paused or crashed one is an error.

        Raises:
            GuestMissing, DriverError
        """
        ...

    async def request_shutdown(self, instance_id: str, *, by_agent: bool = True) -> Rung | None:
        """Ask the guest to shut down and return at once, saying how it was asked.

        That is by the agent inside it where one answers and ``by_agent`` lets it be asked, else by the power button.
        None: a guest that is off or missing was left alone. A paused one is not asked either: the request would
        fire when it is let run.
        """
        ...

    async def power_off(self, instance_id: str) -> None:
        """Take the power now. A guest that is off or missing is no error; a saved memory is kept."""
        ...

    async def pause(self, instance_id: str) -> None:
        """Halt a running guest. Raises ``DriverError`` when it is off, ``GuestMissing``."""
        ...

    async def unpause(self, instance_id: str) -> None:
        """Let a paused guest run. Raises ``DriverError`` when it is off, ``GuestMissing``."""
        ...

    async def save_memory(self, instance_id: str) -> None:
        """Write memory to disk and switch off.

        Raises:
            GuestMissing, DriverError: it is off, or the host's disk is full; it is as it was then, and nothing is
                left of what was written.
        """
        ...

    async def restore_memory(self, instance_id: str) -> None:
        """Start from the saved memory. Raises ``DriverError`` when off without one, ``GuestMissing``."""
        ...

    async def discard_memory(self, instance_id: str) -> None:
        """Delete a saved memory, if there is one; a missing guest is no error."""
        ...

    async def remove(self, instance_id: str) -> None:
        """Forget the guest and delete its disks and files. Raises ``DriverError`` when it runs, or was adopted.

        Snapshots are images to be, not the instance's: their files stay.
        """
        ...

    async def forget(self, instance_id: str) -> None:
        """Make the hypervisor forget the guest, whose disks and files stay: another host has them too.

        A missing guest is no error. Raises ``DriverError`` when it runs.
        """
        ...

    async def addresses(self) -> dict[str, tuple[PortAddress, ...]]:
        """Return what the running guests are reached by, by id; an empty tuple where that is not known yet.

        Only of those that are on a network that can tell. It costs a few calls in all, whatever their number.
        """
        ...

    async def console(self, instance_id: str) -> bytes:
        """Return the guest's console log, as much as is kept (the last 1 MiB at most)."""
        ...

    async def set_password(self, instance_id: str, user: str, password: str) -> None:
        """Have the agent inside a running guest set a user's password; it is kept nowhere on the way.

        Returns within seconds, whatever the agent does: one that never answers is a failure.

        Raises:
            GuestMissing, DriverError: it is off or halted, has no agent, or its agent refused or was silent.
        """
        ...

    async def inject_nmi(self, instance_id: str) -> None:
        """Raise a non-maskable interrupt in a guest that is on; what comes of it is its kernel's to decide.

        Raises:
            GuestMissing, DriverError: it is off, or the hypervisor has no such interrupt.
        """
        ...

    async def diagnostics(self, instance_id: str) -> Diagnostics:
        """Measure a guest; what the hypervisor does not count is left out. Raises ``GuestMissing``."""
        ...

    async def open_console(self, instance_id: str) -> ConsoleStream:
        """Connect to the serial console of a guest that is on, in the stead of whoever is connected to it.

        The console log goes on as well.

        Raises:
            GuestMissing, DriverError: it is off, or the hypervisor has no such connection.
        """
        ...
