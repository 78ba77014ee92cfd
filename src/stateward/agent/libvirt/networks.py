"""The networks of libvirt's that guests are connected to: found, started, and asked for the addresses they gave.

Blocking calls, for the threads of ``connection``. A network that is not there is not made, but for libvirt's
``default``, which a libvirt without its packaged configuration lacks.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Final
from xml.etree import ElementTree as ET

import libvirt
import structlog

from stateward.agent.driver import DriverError
from stateward.domain.networks import NetworkKind, Port

log = structlog.get_logger()

#: libvirt's own NAT network, by the name that every packaged libvirt has one under.
DEFAULT: Final = "default"

#: What is tried for it, the packaged one first: a host that is a guest itself may be in that one.
_SUBNETS: Final = tuple(ipaddress.ip_network(f"192.168.{number}.0/24") for number in (122, 123, 124, 125))


def connect(connection: libvirt.virConnect, ports: Iterable[Port]) -> tuple[str, ...]:
    """Start the networks that ports are on, and say which those are: libvirt's name, '' for another kind.

    Raises:
        DriverError: a network is not there or cannot be started.
    """
    return tuple(_connect(connection, port) for port in ports)


def _connect(connection: libvirt.virConnect, port: Port) -> str:
    if port.kind is NetworkKind.NAT:
        start(connection, port.source)
        return port.source
    if port.kind is NetworkKind.AUTO:
        try:
            start(connection, port.source)
        except (DriverError, libvirt.libvirtError) as error:
            log.warning(
                "libvirt's network cannot run here; the guest gets QEMU's own, which lets nobody in",
                network=port.source,
                error=str(error),
            )
            return ""
        return port.source
    return ""


def start(connection: libvirt.virConnect, name: str) -> None:
    """Start a network, unless it runs.

    Raises:
        DriverError: there is none of this name.
        libvirtError: it cannot be started; its message says why.
    """
    try:
        network = connection.networkLookupByName(name)
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_NO_NETWORK:
            raise
        if name != DEFAULT:
            raise DriverError(
                f"libvirt has no network {name}. Define it (virsh net-define), or change the setting [[network]]."
            ) from None
        _make_default(connection)
        return
    _start(network)


def _start(network: libvirt.virNetwork) -> None:
    if network.isActive():
        return
    try:
        network.create()
    except libvirt.libvirtError:
        # Started by somebody else meanwhile.
        if not network.isActive():
            raise


def _make_default(connection: libvirt.virConnect) -> None:
    """Define libvirt's default network and start it, on the first subnet that this host is not on itself."""
    for subnet in _SUBNETS:
        network = connection.networkDefineXML(_default_xml(subnet))
        try:
            _start(network)
        except libvirt.libvirtError:
            network.undefine()
            if subnet == _SUBNETS[-1]:
                raise
            continue
        network.setAutostart(1)
        return


def _default_xml(subnet: ipaddress.IPv4Network | ipaddress.IPv6Network) -> str:
    root = ET.Element("network")
    ET.SubElement(root, "name").text = DEFAULT
    ET.SubElement(root, "forward", mode="nat")
    ET.SubElement(root, "bridge", stp="on", delay="0")
    address = ET.SubElement(root, "ip", address=str(subnet[1]), netmask=str(subnet.netmask))
    given = ET.SubElement(address, "dhcp")
    ET.SubElement(given, "range", start=str(subnet[2]), end=str(subnet[-2]))
    return ET.tostring(root, encoding="unicode")


def start_those_of(connection: libvirt.virConnect, names: Iterable[str]) -> None:
    """Start the networks a guest is defined on: they can have been stopped since, and it cannot start without."""
    for name in set(names) - {""}:
        start(connection, name)


def leases(connection: libvirt.virConnect, name: str) -> dict[str, list[str]]:
    """Return the addresses that a network has given out, by MAC address; none of one that cannot tell."""
    try:
        given = connection.networkLookupByName(name).DHCPLeases()
    except libvirt.libvirtError as error:
        if error.get_error_code() in (libvirt.VIR_ERR_NO_SUPPORT, libvirt.VIR_ERR_NO_NETWORK):
            return {}
        raise
    found: dict[str, list[str]] = {}
    for lease in given:
        if lease["mac"] and lease["ipaddr"]:
            found.setdefault(lease["mac"].lower(), []).append(lease["ipaddr"])
    return {mac: sorted(addresses) for mac, addresses in found.items()}
