"""Networks that instances can be put on, and the ports by which they are.

A port is part of its instance's record: made with it, never changed, gone with it. Its MAC address follows from the
instance's id and the port's place, so it is the same on every host and after every new definition.
"""

from __future__ import annotations

import enum
import hashlib
import uuid
from collections.abc import Iterable
from typing import Final

import msgspec

_NAMESPACE: Final = uuid.UUID("5f1de6a3-8a2c-4f0e-9d0f-0b1f4c2e7a90")

#: The id of the network that is none: a port there is no port.
NO_NETWORK: Final = "00000000-0000-0000-0000-000000000000"

#: Ports that one instance may have: as many as leave its machine room for its other devices.
MOST_PORTS: Final = 8

#: The first byte says "made up here, for one card only"; five bytes of a hash follow, which makes two of a million
#: instances meet with a probability of one half; three bytes, as in OpenStack's own, would meet at five thousand.
_MAC_FIRST: Final = "52"


class NetworkKind(enum.StrEnum):
    """How a network is made on a host."""

    #: libvirt's NAT network where it can run, else QEMU's own.
    AUTO = "auto"
    #: A network of libvirt's, by its name.
    NAT = "nat"
    #: A bridge of the host's, by its name; whoever runs that network gives out its addresses.
    BRIDGE = "bridge"
    #: QEMU's own: it needs no rights, lets the guest out, and lets nobody in.
    USER = "user"


class Network(msgspec.Struct, frozen=True, kw_only=True):
    """A network as the operator set it up."""

    name: str
    kind: NetworkKind
    #: libvirt's name of the network, or the host's of the bridge; '' for QEMU's own.
    source: str

    @property
    def id(self) -> str:
        """The id that clients name it by; it follows from the name."""
        return str(uuid.uuid5(_NAMESPACE, self.name))


def subnet_id(network_id: str) -> str:
    """Return the id of a network's one subnet."""
    return str(uuid.uuid5(_NAMESPACE, f"{network_id}/subnet"))


class Port(msgspec.Struct, frozen=True, kw_only=True):
    """An instance's connection to a network, with what an agent must know of that."""

    id: str
    mac: str
    network_id: str
    #: The network's name when the instance was made; Nova's views call it label.
    network: str
    kind: NetworkKind
    source: str


class PortAddress(msgspec.Struct, frozen=True, kw_only=True):
    """An address that a guest was seen to have."""

    mac: str
    address: str

    @property
    def version(self) -> int:
        """IP's version."""
        return 6 if ":" in self.address else 4


def mac_of(instance_id: str, index: int) -> str:
    """Return the MAC address of an instance's port, by its place among the instance's ports from 0."""
    digest = hashlib.sha256(f"{instance_id}/{index}".encode()).hexdigest()
    return ":".join((_MAC_FIRST, *(digest[at : at + 2] for at in range(0, 10, 2))))


def ports_of(instance_id: str, networks: Iterable[Network]) -> tuple[Port, ...]:
    """Make an instance's ports, one for each network, in this order."""
    return tuple(
        Port(
            id=str(uuid.uuid5(_NAMESPACE, f"{instance_id}/{index}")),
            mac=mac_of(instance_id, index),
            network_id=network.id,
            network=network.name,
            kind=network.kind,
            source=network.source,
        )
        for index, network in enumerate(networks)
    )
