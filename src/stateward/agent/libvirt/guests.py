"""The blocking calls on one guest; each runs on a thread of ``connection`` and says "make it so".

Errors of libvirt's are let through: ``Connection.run`` turns them into the contract's. Only where two calls
can meet (a guest goes off between the look and the act) is an error looked at here, by looking at the guest again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import libvirt
import msgspec

from stateward.agent.driver import DriverError, Guest, GuestMissing
from stateward.agent.libvirt import networks, xml
from stateward.agent.libvirt.states import observed
from stateward.agent.libvirt.tools import FULL, failure
from stateward.domain.states import Cause, Observed

_ON: Final = frozenset({Observed.RUNNING, Observed.PAUSED, Observed.CRASHED})

#: State and reason of a guest that went off because its memory was saved; the memory may be gone since.
OFF_BY_A_SAVE: Final = (libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_SHUTOFF_SAVED)

_SAVED_FILES: Final = (
    libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
)
#: Refused by the test driver, which has neither.
_MORE_FILES: Final = libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM


def identity(domain: libvirt.virDomain) -> xml.Identity | None:
    """Return what we keep with a domain; None when it is not ours."""
    try:
        text = domain.metadata(
            libvirt.VIR_DOMAIN_METADATA_ELEMENT, xml.NAMESPACE, libvirt.VIR_DOMAIN_AFFECT_CURRENT
        )
    except libvirt.libvirtError as error:
        # A domain undefined since it was listed is not ours any more.
        if error.get_error_code() in (libvirt.VIR_ERR_NO_DOMAIN_METADATA, libvirt.VIR_ERR_NO_DOMAIN):
            return None
        raise
    found = xml.parse_identity(text)
    # A copy of our domain made by other tools carries the metadata of the one it was copied from.
    return found if found is not None and found.instance_id == domain.UUIDString() else None


def lookup(connection: libvirt.virConnect, instance_id: str) -> libvirt.virDomain | None:
    """Return the domain with an instance's uuid, ours or not."""
    try:
        return connection.lookupByUUIDString(instance_id)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return None
        raise


def _find(connection: libvirt.virConnect, instance_id: str) -> libvirt.virDomain | None:
    """Return an instance's domain; None when there is none, or one that does not carry our metadata."""
    domain = lookup(connection, instance_id)
    return domain if domain is not None and identity(domain) is not None else None


def require(connection: libvirt.virConnect, instance_id: str) -> libvirt.virDomain:
    """Return an instance's domain, or raise ``GuestMissing``."""
    domain = _find(connection, instance_id)
    if domain is None:
        raise missing(instance_id)
    return domain


def missing(instance_id: str) -> GuestMissing:
    """Say that an instance has no domain."""
    return GuestMissing(f"libvirt has no guest {instance_id} of Stateward's.")


def look(domain: libvirt.virDomain) -> tuple[Observed, Cause]:
    """Say how a domain is."""
    state, reason = domain.state()
    off = state == libvirt.VIR_DOMAIN_SHUTOFF
    return observed(state, reason, saved=off and bool(domain.hasManagedSaveImage()))


def on(connection: libvirt.virConnect, instance_id: str) -> bool:
    """Say whether a domain with an instance's uuid, ours or not, has its disk in use."""
    domain = lookup(connection, instance_id)
    return domain is not None and bool(domain.isActive())


def get(connection: libvirt.virConnect, instance_id: str) -> Guest:
    """Look at one guest."""
    domain = lookup(connection, instance_id)
    found = identity(domain) if domain is not None else None
    if domain is None or found is None:
        return Guest(instance_id=instance_id, observed=Observed.MISSING, cause=Cause.OTHER)
    now, cause = look(domain)
    return Guest(instance_id=instance_id, observed=now, cause=cause, fence=found.fence)


def mark_fence(connection: libvirt.virConnect, instance_id: str, fence: int) -> xml.Identity | None:
    """Store a fence, unless the guest is missing or has that or a higher one; return what is stored then."""
    domain = lookup(connection, instance_id)
    found = identity(domain) if domain is not None else None
    if domain is None or found is None or found.fence >= fence:
        return found
    marked = msgspec.structs.replace(found, fence=fence)
    store_identity(domain, marked)
    return marked


def store_identity(domain: libvirt.virDomain, identity: xml.Identity | None) -> None:
    """Keep with a domain, as it runs and as it is defined, what makes it ours; None: it is not ours any more."""
    text = None if identity is None else xml.identity_element(identity)
    prefix = None if identity is None else xml.PREFIX

    def store() -> None:
        flags = flags_of(domain)
        domain.setMetadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, text, prefix, xml.NAMESPACE, flags)

    on = domain.isActive()
    try:
        store()
    except libvirt.libvirtError as error:
        if identity is None and error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN_METADATA:
            return
        # It went off since the look, and the call changed nothing.
        if not on or domain.isActive():
            raise
        store()


def flags_of(domain: libvirt.virDomain) -> int:
    """Return where a domain is to be changed: as it is defined, and as it runs when it does."""
    config = libvirt.VIR_DOMAIN_AFFECT_CONFIG if domain.isPersistent() else 0
    return int(config | (libvirt.VIR_DOMAIN_AFFECT_LIVE if domain.isActive() else 0))


def stored_fence(connection: libvirt.virConnect, instance_id: str) -> int:
    """Return the fence stored with a guest, 0 when there is none."""
    domain = lookup(connection, instance_id)
    found = identity(domain) if domain is not None else None
    return found.fence if found is not None else 0


def name_for(connection: libvirt.virConnect, instance_id: str, wanted: str) -> str:
    """Return the name to define a guest under: the one it has, the one wanted, or that with a part of its id.

    libvirt's names are unique on a host, and another installation on the same host counts its instances too.
    """
    domain = lookup(connection, instance_id)
    if domain is not None:
        return domain.name()
    try:
        connection.lookupByName(wanted)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return wanted
        raise
    return f"{wanted}-{instance_id[:8]}"


def define(connection: libvirt.virConnect, definition: str) -> None:
    """Define a persistent domain, or bring one up to date; it does not start with the host."""
    domain = connection.defineXML(definition)
    if domain.autostart():
        domain.setAutostart(0)


def power_on(connection: libvirt.virConnect, instance_id: str) -> None:
    """Boot.

    libvirt would start a guest that has a saved memory from that memory. Booting it instead would throw the
    memory away, which is a step of its own, so this is refused.
    """
    domain = require(connection, instance_id)
    now, _ = look(domain)
    if now is Observed.RUNNING:
        return
    if now is Observed.SUSPENDED:
        raise DriverError(
            "The guest has a saved memory, which a boot would throw away. Reboot it hard if that is what you want."
        )
    if now is not Observed.SHUTOFF:
        raise DriverError(f"The guest is {now.value}: take its power, or let it run on, before it boots.")
    _start(connection, domain)


def restore_memory(connection: libvirt.virConnect, instance_id: str) -> None:
    """Start from the saved memory. One that is on already, running or paused, has been started."""
    domain = require(connection, instance_id)
    now, _ = look(domain)
    if now in _ON:
        return
    if now is not Observed.SUSPENDED:
        raise DriverError("The guest is off and has no saved memory to start from.")
    _start(connection, domain)


def _start(connection: libvirt.virConnect, domain: libvirt.virDomain) -> None:
    ours = identity(domain)
    # They can have been stopped since it was defined, by a restart of the host for one.
    networks.start_those_of(connection, ours.networks if ours is not None else ())
    try:
        domain.create()
    except libvirt.libvirtError as error:
        # Started by somebody else meanwhile.
        if error.get_error_code() != libvirt.VIR_ERR_OPERATION_INVALID or not domain.isActive():
            raise


def button(connection: libvirt.virConnect, instance_id: str) -> bool:
    """Press the power button of a running guest; any other is left alone, and False returned."""
    domain = _find(connection, instance_id)
    if domain is None or look(domain)[0] is not Observed.RUNNING:
        return False
    if connection.getType() == "TEST":
        # Its guests obey at once, and it knows no buttons.
        _unless_off(domain, domain.shutdown)
    else:
        flags = libvirt.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN
        _unless_off(domain, lambda: domain.shutdownFlags(flags))
    return True


def agent_answers(connection: libvirt.virConnect, instance_id: str) -> bool:
    """Say whether a running guest has an agent that holds its channel open."""
    domain = _find(connection, instance_id)
    if domain is None or look(domain)[0] is not Observed.RUNNING:
        return False
    return xml.agent_connected(domain.XMLDesc())


def ask_agent(connection: libvirt.virConnect, instance_id: str) -> None:
    """Have the agent inside a guest shut it down; returns when it answered, or fails after libvirt's 60 s."""
    domain = require(connection, instance_id)
    _unless_off(domain, lambda: domain.shutdownFlags(libvirt.VIR_DOMAIN_SHUTDOWN_GUEST_AGENT))


def power_off(connection: libvirt.virConnect, instance_id: str) -> None:
    """Take the power of a guest that is on."""
    domain = _find(connection, instance_id)
    if domain is not None and domain.isActive():
        _unless_off(domain, domain.destroy)


def _unless_off(domain: libvirt.virDomain, call: Callable[[], int]) -> None:
    """Make a call that a guest that is off has no need of; it can go off under it."""
    try:
        call()
    except libvirt.libvirtError:
        if domain.isActive():
            raise


def pause(connection: libvirt.virConnect, instance_id: str) -> None:
    """Halt a guest that is on."""
    domain = require(connection, instance_id)
    now, _ = look(domain)
    if now is Observed.PAUSED:
        return
    if now is not Observed.RUNNING:
        raise DriverError(f"The guest is {now.value}: only a running one can be paused.")
    domain.suspend()


def unpause(connection: libvirt.virConnect, instance_id: str) -> None:
    """Let a paused guest run."""
    domain = require(connection, instance_id)
    now, _ = look(domain)
    if now is Observed.RUNNING:
        return
    if now is not Observed.PAUSED:
        raise DriverError(f"The guest is {now.value}: only a paused one can be let run on.")
    domain.resume()


def save_memory(connection: libvirt.virConnect, instance_id: str) -> None:
    """Write memory to disk and switch off. Restored, it runs, also when it was paused before it was saved.

    When it cannot be written, libvirt deletes what it has of it and lets the guest run on. A save that is under way,
    as one that a killed agent began, counts as this one: it is waited for.
    """
    domain = require(connection, instance_id)
    while not _saved(domain):
        pass


def _saved(domain: libvirt.virDomain) -> bool:
    """Save a guest's memory; False when somebody else's save of it still goes on, and it is to be asked again."""
    now, _ = look(domain)
    if now is Observed.SUSPENDED:
        return True
    if now not in (Observed.RUNNING, Observed.PAUSED):
        raise DriverError(f"The guest is {now.value}: it has no memory to save.")
    try:
        domain.managedSave(libvirt.VIR_DOMAIN_SAVE_RUNNING)
    except libvirt.libvirtError as error:
        after, cause = look(domain)
        if after is Observed.SUSPENDED:
            return True
        if cause is Cause.SAVED and error.get_error_code() == libvirt.VIR_ERR_OPERATION_TIMEOUT:
            # It waited 30 s for its turn, and a large memory takes longer.
            return False
        # Asked for one that runs when it is restored, libvirt lets also one run on that was halted.
        if now is Observed.PAUSED and after is Observed.RUNNING:
            domain.suspend()
        if FULL in error.get_error_message():
            raise failure("The guest's memory cannot be saved", FULL) from error
        raise
    return True


def inject_nmi(connection: libvirt.virConnect, instance_id: str) -> None:
    """Interrupt a guest that is on."""
    domain = require(connection, instance_id)
    now, _ = look(domain)
    if now not in _ON:
        raise DriverError(f"The guest is {now.value}: only one that is on can be interrupted.")
    domain.injectNMI()


def discard_memory(connection: libvirt.virConnect, instance_id: str) -> None:
    """Delete a saved memory, if there is one."""
    domain = _find(connection, instance_id)
    if domain is not None and domain.hasManagedSaveImage():
        domain.managedSaveRemove()


def forget(connection: libvirt.virConnect, instance_id: str) -> None:
    """Undefine the domain and delete what libvirt keeps for it.

    Whether it carries our metadata does not count here: the files are deleted next, and a domain with this
    uuid uses them.
    """
    domain = lookup(connection, instance_id)
    if domain is None:
        return
    if domain.isActive():
        raise DriverError("The guest is on: take its power before it is removed.")
    ours = identity(domain)
    if ours is not None and ours.before is not None:
        raise DriverError("The guest was adopted: it can be given back, not removed.")
    more = 0 if connection.getType() == "TEST" else _MORE_FILES
    domain.undefineFlags(_SAVED_FILES | more)
