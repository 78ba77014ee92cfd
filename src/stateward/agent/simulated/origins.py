"""Simulated guests that somebody else made: found, adopted and given back.

As in ``guests``, every function takes a guest and returns the guest afterwards.
"""

from __future__ import annotations

from typing import Final

from msgspec.structs import replace

from stateward.agent.driver import DriverError, GuestMissing
from stateward.agent.simulated.guests import Origin, SimulatedGuest, power_on
from stateward.domain.records import GuestSpec
from stateward.domain.strangers import Mark, NovaFacts, Stranger, StrangerCard, StrangerDisk

_GIB: Final = 1024**3


def made_by_hand(
    guest: SimulatedGuest,
    spec: GuestSpec,
    now: float,
    *,
    autostart: bool,
    transient: bool,
    nova: NovaFacts | None,
) -> SimulatedGuest:
    """Make it as an operator by hand, and start it; its name is the spec's domain name."""
    origin = Origin(autostart=autostart, transient=transient, nova=nova)
    return power_on(replace(guest, spec=spec, disk=spec.disk, disk_image=spec.image.id, origin=origin), now)


def foreign(guest: SimulatedGuest) -> bool:
    """Say whether it is somebody else's."""
    return guest.origin is not None and not guest.origin.adopted


def stranger(guest: SimulatedGuest) -> Stranger | None:
    """Describe it; None when there is no guest."""
    spec, origin = guest.spec, guest.origin
    if spec is None:
        return None
    return Stranger(
        id=guest.id,
        name=spec.domain_name,
        vcpus=spec.vcpus,
        memory=spec.memory,
        disks=(
            StrangerDisk(device="vda", source="", size=None if guest.disk is None else guest.disk * _GIB),
        ),
        cards=tuple(StrangerCard(mac=port.mac, kind=port.kind, source=port.source) for port in spec.ports),
        observed=guest.observed,
        cause=guest.cause,
        autostart=origin is not None and origin.autostart and not origin.adopted,
        transient=origin is not None and origin.transient,
        fence=guest.fence,
        mark=None if foreign(guest) else Mark(project_id=spec.project_id, fence=guest.fence),
        nova=None if origin is None else origin.nova,
    )


def adopt(guest: SimulatedGuest) -> SimulatedGuest:
    """Mark it as adopted; it stays known from now on. Raises ``GuestMissing``."""
    if guest.spec is None:
        msg = f"The simulated hypervisor has no guest {guest.id}."
        raise GuestMissing(msg)
    return replace(guest, origin=replace(guest.origin or Origin(), adopted=True, transient=False))


def release(guest: SimulatedGuest) -> SimulatedGuest:
    """Take the mark off it, if it is there. Raises ``DriverError`` when it was made here."""
    if guest.spec is None or foreign(guest):
        return guest
    if guest.origin is None:
        msg = "The guest was made by Stateward, not adopted: it can be deleted, not given back."
        raise DriverError(msg)
    return replace(guest, fence=0, origin=replace(guest.origin, adopted=False))
