"""What a simulated guest's disks become: sizes and images, for there are no bytes.

As in ``guests``, every function takes a guest and returns the guest afterwards.
"""

from __future__ import annotations

from msgspec.structs import replace

from stateward.agent.driver import AgentSilent, DriverError, NoAgent
from stateward.agent.simulated.behaviour import AGENT_SECONDS, behaviour
from stateward.agent.simulated.guests import Kept, SimulatedGuest, powered, says
from stateward.domain.records import GuestSpec, ImageFacts
from stateward.domain.states import Observed


def prepare_disk(guest: SimulatedGuest, spec: GuestSpec) -> SimulatedGuest:
    """Make its disk, unless it is there."""
    return guest if guest.disk is not None else replace(guest, disk=spec.disk, disk_image=spec.image.id)


def keep_disk(guest: SimulatedGuest, fence: int) -> SimulatedGuest:
    """Copy its disk aside, unless the operation with this fence did.

    Raises:
        DriverError: there is no disk, or it has power.
    """
    if guest.kept is not None and guest.kept.fence == fence:
        return guest
    _refuse_powered(guest)
    return replace(guest, kept=Kept(disk=_disk(guest), fence=fence))


def return_disk(guest: SimulatedGuest) -> SimulatedGuest:
    """Put the kept disk in the disk's place, if one is kept. Raises ``DriverError`` when it has power."""
    if guest.kept is None:
        return guest
    _refuse_powered(guest)
    return replace(guest, disk=guest.kept.disk, kept=None)


def drop_kept_disk(guest: SimulatedGuest, fence: int) -> SimulatedGuest:
    """Delete the disk that an operation before the one with this fence kept, if one is kept."""
    return guest if guest.kept is None or guest.kept.fence >= fence else replace(guest, kept=None)


def grow_disk(guest: SimulatedGuest, spec: GuestSpec) -> SimulatedGuest:
    """Make its disk as large as the spec says, never smaller.

    Raises:
        DriverError: there is no disk, or it has power and a disk that is too small.
    """
    if _disk(guest) >= spec.disk:
        return guest
    _refuse_powered(guest)
    return replace(guest, disk=spec.disk)


def discard_disk(guest: SimulatedGuest) -> SimulatedGuest:
    """Delete its disk, if it is there. Raises ``DriverError`` when it has power."""
    _refuse_powered(guest)
    return replace(guest, disk=None, disk_image=None)


def discard_stale_disk(guest: SimulatedGuest, spec: GuestSpec) -> SimulatedGuest:
    """Delete its disk, unless it was made over the spec's image. Raises ``DriverError`` when it has power."""
    return guest if guest.disk_image == spec.image.id else discard_disk(guest)


def rescue_image(spec: GuestSpec) -> ImageFacts:
    """Return the image that a spec rescues with. Raises ``DriverError`` when it names none."""
    if spec.rescue is None:
        msg = "The instance is not being rescued: no image to rescue it with is named."
        raise DriverError(msg)
    return spec.rescue


def prepare_rescue_disk(guest: SimulatedGuest, spec: GuestSpec) -> SimulatedGuest:
    """Make its rescue disk, unless it is there. Raises ``DriverError`` when the spec names no image for it."""
    image = rescue_image(spec)
    return guest if guest.rescue_image is not None else replace(guest, rescue_image=image.id)


def discard_rescue_disk(guest: SimulatedGuest) -> SimulatedGuest:
    """Delete its rescue disk, if it is there. Raises ``DriverError`` when it has power."""
    _refuse_powered(guest)
    return replace(guest, rescue_image=None)


def snapshot(guest: SimulatedGuest, image_id: str, *, quiesce: bool) -> SimulatedGuest:
    """Copy its disk for an image, unless it was copied.

    Raises:
        DriverError: there is no disk, or nobody in it that could freeze its file systems.
    """
    if image_id in guest.snapshots:
        return guest
    _disk(guest)
    if quiesce and powered(guest):
        guest = _quiesced(guest)
    return replace(guest, snapshots=(*guest.snapshots, image_id))


def discard_snapshot(guest: SimulatedGuest, image_id: str) -> SimulatedGuest:
    """Delete the copy of its disk that was made for an image, if there is one."""
    return replace(guest, snapshots=tuple(each for each in guest.snapshots if each != image_id))


def _disk(guest: SimulatedGuest) -> int:
    if guest.disk is None:
        msg = f"The disk of guest {guest.id} is not there: prepare it first."
        raise DriverError(msg)
    return guest.disk


def _refuse_powered(guest: SimulatedGuest) -> None:
    if powered(guest):
        msg = f"The guest is {guest.observed}: its disk is in use until its power is taken."
        raise DriverError(msg)


def _quiesced(guest: SimulatedGuest) -> SimulatedGuest:
    if guest.observed is not Observed.RUNNING or guest.spec is None:
        msg = f"The guest is {guest.observed}: only the agent of a running one can freeze its file systems."
        raise DriverError(msg)
    agent = behaviour(guest.spec).agent
    if agent is None:
        raise NoAgent
    if agent == "mute":
        raise AgentSilent(AGENT_SECONDS)
    return says(says(guest, "file systems frozen"), "file systems thawed")
