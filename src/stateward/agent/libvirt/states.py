"""From libvirt's pair of numbers, state and reason, to what the control plane calls it.

Both numbers count: whether a guest shut itself down or was destroyed decides what the arbiter does, and
libvirt tells the two apart by the reason only.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Final

import libvirt

from stateward.domain.states import Cause, Observed

_STATES: Final[Mapping[int, Observed]] = {
    libvirt.VIR_DOMAIN_NOSTATE: Observed.UNKNOWN,
    libvirt.VIR_DOMAIN_RUNNING: Observed.RUNNING,
    libvirt.VIR_DOMAIN_BLOCKED: Observed.RUNNING,
    libvirt.VIR_DOMAIN_PAUSED: Observed.PAUSED,
    # Being shut down: it is on until it is off.
    libvirt.VIR_DOMAIN_SHUTDOWN: Observed.RUNNING,
    libvirt.VIR_DOMAIN_SHUTOFF: Observed.SHUTOFF,
    libvirt.VIR_DOMAIN_CRASHED: Observed.CRASHED,
    libvirt.VIR_DOMAIN_PMSUSPENDED: Observed.PAUSED,
}

_WHY_OFF: Final[Mapping[int, Cause]] = {
    libvirt.VIR_DOMAIN_SHUTOFF_SHUTDOWN: Cause.GUEST,
    libvirt.VIR_DOMAIN_SHUTOFF_DESTROYED: Cause.DESTROYED,
    libvirt.VIR_DOMAIN_SHUTOFF_CRASHED: Cause.CRASHED,
    libvirt.VIR_DOMAIN_SHUTOFF_MIGRATED: Cause.MIGRATION,
    # To a file of somebody's (virsh save): a managed save has an image, which counts before the reason.
    libvirt.VIR_DOMAIN_SHUTOFF_SAVED: Cause.SAVED,
    # QEMU died, by a signal or an error of its own.
    libvirt.VIR_DOMAIN_SHUTOFF_FAILED: Cause.CRASHED,
    # It was gone when libvirtd came back.
    libvirt.VIR_DOMAIN_SHUTOFF_DAEMON: Cause.HOST,
}

_WHY_PAUSED: Final[Mapping[int, tuple[Observed, Cause]]] = {
    libvirt.VIR_DOMAIN_PAUSED_USER: (Observed.PAUSED, Cause.OPERATOR),
    libvirt.VIR_DOMAIN_PAUSED_MIGRATION: (Observed.PAUSED, Cause.MIGRATION),
    libvirt.VIR_DOMAIN_PAUSED_POSTCOPY: (Observed.PAUSED, Cause.MIGRATION),
    libvirt.VIR_DOMAIN_PAUSED_POSTCOPY_FAILED: (Observed.PAUSED, Cause.HALF_MIGRATED),
    libvirt.VIR_DOMAIN_PAUSED_SAVE: (Observed.PAUSED, Cause.SAVED),
    libvirt.VIR_DOMAIN_PAUSED_DUMP: (Observed.PAUSED, Cause.SAVED),
    libvirt.VIR_DOMAIN_PAUSED_SNAPSHOT: (Observed.PAUSED, Cause.SAVED),
    libvirt.VIR_DOMAIN_PAUSED_IOERROR: (Observed.PAUSED, Cause.IO_ERROR),
    libvirt.VIR_DOMAIN_PAUSED_CRASHED: (Observed.CRASHED, Cause.CRASHED),
    # Every guest is held for a moment while it starts and while it goes off; calling that paused would make a
    # poll at the wrong moment report a change that nobody made.
    libvirt.VIR_DOMAIN_PAUSED_STARTING_UP: (Observed.RUNNING, Cause.OTHER),
    libvirt.VIR_DOMAIN_PAUSED_SHUTTING_DOWN: (Observed.RUNNING, Cause.OTHER),
}


@functools.cache
def observed(state: int, reason: int, *, saved: bool) -> tuple[Observed, Cause]:
    """Say what a state and its reason mean; remembered, because a list asks it for each of its guests.

    Args:
        state: ``VIR_DOMAIN_*``; a number this table does not know is ``Observed.UNKNOWN``.
        reason: ``VIR_DOMAIN_<state>_*``.
        saved: whether libvirt holds a managed save image of the guest. That counts, not the reason: after a
            restart of libvirtd the reason is lost, and the image is what the guest would start from.
    """
    meaning = _STATES.get(state, Observed.UNKNOWN)
    if state == libvirt.VIR_DOMAIN_SHUTOFF:
        if saved:
            return Observed.SUSPENDED, Cause.SAVED
        return meaning, _WHY_OFF.get(reason, Cause.OTHER)
    if state == libvirt.VIR_DOMAIN_PAUSED:
        return _WHY_PAUSED.get(reason, (meaning, Cause.OTHER))
    if state == libvirt.VIR_DOMAIN_CRASHED:
        return meaning, Cause.CRASHED
    if state == libvirt.VIR_DOMAIN_PMSUSPENDED:
        return meaning, Cause.GUEST
    return meaning, Cause.OTHER
