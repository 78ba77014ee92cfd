"""The blocking calls by which domains that others made are found, adopted and given back.

Neither adopting nor giving back touches a guest that runs: both change what libvirt keeps of it beside the guest. What
a domain was before is stored with its mark in one call, before anything of it is changed, so that being killed between
any two lines loses nothing, and both may be repeated.
"""

from __future__ import annotations

from collections.abc import Iterator, Set as AbstractSet
from typing import Final

import libvirt

from stateward.agent.driver import DriverError
from stateward.agent.libvirt import foreign_xml, guests, xml
from stateward.agent.libvirt.foreign_xml import Definition
from stateward.domain.records import GuestSpec
from stateward.domain.strangers import Mark, Stranger, StrangerDisk

_ACTIONS: Final = {
    "destroy": libvirt.VIR_DOMAIN_LIFECYCLE_ACTION_DESTROY,
    "restart": libvirt.VIR_DOMAIN_LIFECYCLE_ACTION_RESTART,
    "rename-restart": libvirt.VIR_DOMAIN_LIFECYCLE_ACTION_RESTART_RENAME,
    "preserve": libvirt.VIR_DOMAIN_LIFECYCLE_ACTION_PRESERVE,
    "coredump-destroy": libvirt.VIR_DOMAIN_LIFECYCLE_ACTION_COREDUMP_DESTROY,
    "coredump-restart": libvirt.VIR_DOMAIN_LIFECYCLE_ACTION_COREDUMP_RESTART,
}

#: A definition with everything in it, also passwords, as it is to be defined with.
_WHOLE: Final = libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE

#: How libvirt refuses what a guest that runs was not started for.
_NOT_SO: Final = frozenset(
    {
        libvirt.VIR_ERR_NO_SUPPORT,
        libvirt.VIR_ERR_OPERATION_UNSUPPORTED,
        libvirt.VIR_ERR_OPERATION_INVALID,
        libvirt.VIR_ERR_CONFIG_UNSUPPORTED,
    }
)


def strangers(connection: libvirt.virConnect, known: AbstractSet[str]) -> list[Stranger]:
    """Describe the domains that are none of the known ones, by name; of those only, each is asked by itself."""
    return sorted(_strangers(connection, known), key=lambda found: found.name)


def _strangers(connection: libvirt.virConnect, known: AbstractSet[str]) -> Iterator[Stranger]:
    for domain in connection.listAllDomains():
        if domain.UUIDString() in known:
            continue
        try:
            yield _describe(domain)
        except libvirt.libvirtError as error:
            # Undefined since it was listed.
            if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
                raise


def _describe(domain: libvirt.virDomain) -> Stranger:
    # As it is to be started next: of what runs that is what counts, and it has no devices that come and go.
    definition = foreign_xml.parse(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
    now, cause = guests.look(domain)
    ours = guests.identity(domain)
    transient = not domain.isPersistent()
    return Stranger(
        id=domain.UUIDString(),
        name=domain.name(),
        vcpus=definition.vcpus,
        memory=definition.memory,
        disks=tuple(
            StrangerDisk(device=device, source=source, size=_size(domain, device))
            for device, source in definition.disks
        ),
        cards=definition.cards,
        observed=now,
        cause=cause,
        autostart=not transient and bool(domain.autostart()),
        transient=transient,
        fence=0 if ours is None else ours.fence,
        mark=None if ours is None else Mark(project_id=ours.project_id, fence=ours.fence),
        nova=definition.nova,
    )


def _size(domain: libvirt.virDomain, device: str) -> int | None:
    try:
        return int(domain.blockInfo(device)[0])
    except libvirt.libvirtError:
        # Its file is gone, or is nowhere that this host can look into.
        return None


def adopt(connection: libvirt.virConnect, spec: GuestSpec) -> xml.Identity:
    """Mark a domain as adopted, and have it stay off when it goes off; return what is stored with it then.

    One that bears our mark already is as it was when it got it: that is not read anew.
    """
    domain = guests.lookup(connection, spec.instance_id)
    if domain is None:
        raise guests.missing(spec.instance_id)
    if not domain.isPersistent():
        connection.defineXML(domain.XMLDesc(_WHOLE))
    definition = foreign_xml.parse(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
    # Before the mark: who adopts at the same moment marks first and changes then, so without a mark it is unchanged.
    autostart = bool(domain.autostart())
    stored = guests.identity(domain)
    before = None if stored is None else stored.before
    if before is None:
        before = xml.Before(
            autostart=autostart,
            on_poweroff=definition.on_poweroff,
            on_crash=definition.on_crash,
        )
    marked = xml.Identity(
        instance_id=spec.instance_id,
        project_id=spec.project_id,
        fence=0 if stored is None else stored.fence,
        before=before,
    )
    _mark_saved(connection, domain, marked)
    if marked != stored:
        guests.store_identity(domain, marked)
    if domain.autostart():
        domain.setAutostart(0)
    _stay_off(domain, definition)
    return marked


def release(connection: libvirt.virConnect, instance_id: str) -> None:
    """Put back what an adopted domain was, then take the mark off it."""
    domain = guests.lookup(connection, instance_id)
    stored = None if domain is None else guests.identity(domain)
    if domain is None or stored is None:
        return
    before = stored.before
    if before is None:
        raise DriverError("The guest was made by Stateward, not adopted: it can be deleted, not given back.")
    _set_action(domain, libvirt.VIR_DOMAIN_LIFECYCLE_POWEROFF, before.on_poweroff)
    _set_action(domain, libvirt.VIR_DOMAIN_LIFECYCLE_CRASH, before.on_crash)
    if before.autostart and domain.isPersistent():
        domain.setAutostart(1)
    _mark_saved(connection, domain, None, before)
    guests.store_identity(domain, None)


def _mark_saved(
    connection: libvirt.virConnect,
    domain: libvirt.virDomain,
    identity: xml.Identity | None,
    before: xml.Before | None = None,
) -> None:
    """Write the mark into the definition that a saved memory is restored with, which takes the stored one's place."""
    # The test driver has no files of memories.
    if connection.getType() == "TEST" or domain.isActive() or not domain.hasManagedSaveImage():
        return
    on_poweroff, on_crash = (
        ("destroy", "destroy") if before is None else (before.on_poweroff, before.on_crash)
    )
    saved = domain.managedSaveGetXMLDesc(libvirt.VIR_DOMAIN_SAVE_IMAGE_XML_SECURE)
    domain.managedSaveDefineXML(
        foreign_xml.with_mark(saved, identity, on_poweroff=on_poweroff, on_crash=on_crash)
    )


def _stay_off(domain: libvirt.virDomain, definition: Definition) -> None:
    for event, action in (
        (libvirt.VIR_DOMAIN_LIFECYCLE_POWEROFF, definition.on_poweroff),
        (libvirt.VIR_DOMAIN_LIFECYCLE_CRASH, definition.on_crash),
    ):
        if action != "destroy":
            _set_action(domain, event, "destroy")


def _set_action(domain: libvirt.virDomain, event: int, action: str) -> None:
    """Say what becomes of a domain, as it runs too where that can be said; else from its next start on."""
    number = _ACTIONS.get(action, libvirt.VIR_DOMAIN_LIFECYCLE_ACTION_DESTROY)
    if domain.isActive():
        try:
            domain.setLifecycleAction(event, number, guests.flags_of(domain))
        except libvirt.libvirtError as error:
            if error.get_error_code() not in _NOT_SO:
                raise
        else:
            return
    if not domain.isPersistent():
        return
    try:
        domain.setLifecycleAction(event, number, libvirt.VIR_DOMAIN_AFFECT_CONFIG)
    except libvirt.libvirtError as error:
        if error.get_error_code() not in _NOT_SO:
            raise
