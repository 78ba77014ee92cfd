"""What is read from the definitions of guests that others made, and what is changed in those they were saved with."""

from __future__ import annotations

from typing import Final
from xml.etree import ElementTree as ET

import msgspec

from stateward.agent.libvirt import xml
from stateward.domain.strangers import NovaFacts, StrangerCard

#: Nova's own element; the numbers after it are its versions.
_NOVA: Final = "http://openstack.org/xmlns/libvirt/nova/"

_KIB_PER_MIB: Final = 1024

#: KiB in libvirt's units of memory.
_UNITS: Final = {
    "b": 1 / 1024,
    "bytes": 1 / 1024,
    "KB": 1000 / 1024,
    "k": 1.0,
    "KiB": 1.0,
    "MB": 1000**2 / 1024,
    "M": 1024.0,
    "MiB": 1024.0,
    "GB": 1000**3 / 1024,
    "G": 1024.0**2,
    "GiB": 1024.0**2,
    "TB": 1000**4 / 1024,
    "T": 1024.0**3,
    "TiB": 1024.0**3,
}

ET.register_namespace(xml.PREFIX, xml.NAMESPACE)


class Definition(msgspec.Struct, frozen=True, kw_only=True):
    """What a guest's definition says that adopting it needs."""

    vcpus: int
    #: MiB.
    memory: int
    #: Device and source of each disk; discs and floppies are none.
    disks: tuple[tuple[str, str], ...]
    cards: tuple[StrangerCard, ...]
    #: What becomes of it when it goes off, in libvirt's words.
    on_poweroff: str
    on_crash: str
    nova: NovaFacts | None


def parse(text: str) -> Definition:
    """Read libvirt's XML of a domain."""
    root = ET.fromstring(text)  # noqa: S314 - libvirt's own output, not a user's
    memory = root.find("memory")
    disks = [
        disk for disk in root.iterfind("./devices/disk") if disk.get("device", "disk") in {"disk", "lun"}
    ]
    return Definition(
        vcpus=int(root.findtext("vcpu", "1")),
        memory=0 if memory is None else _mib(memory),
        disks=tuple((_attribute(disk, "target", "dev"), _source(disk)) for disk in disks),
        cards=tuple(
            StrangerCard(
                mac=_attribute(card, "mac", "address"), kind=card.get("type", ""), source=_source(card)
            )
            for card in root.iterfind("./devices/interface")
        ),
        on_poweroff=root.findtext("on_poweroff", "destroy"),
        on_crash=root.findtext("on_crash", "destroy"),
        nova=_nova(root),
    )


def with_mark(text: str, identity: xml.Identity | None, *, on_poweroff: str, on_crash: str) -> str:
    """Return the definition that a guest's memory was saved with, with our mark, or with None without one."""
    root = ET.fromstring(text)  # noqa: S314 - libvirt's own output, not a user's
    metadata = root.find("metadata")
    if metadata is None:
        metadata = ET.SubElement(root, "metadata")
    tag = f"{{{xml.NAMESPACE}}}instance"
    for old in metadata.findall(tag):
        metadata.remove(old)
    if identity is not None:
        ET.SubElement(metadata, tag, xml.attributes(identity))
    for name, action in (("on_poweroff", on_poweroff), ("on_crash", on_crash)):
        element = root.find(name)
        if element is None:
            element = ET.SubElement(root, name)
        element.text = action
    return ET.tostring(root, encoding="unicode")


def _mib(memory: ET.Element) -> int:
    kib = float(memory.text or 0) * _UNITS.get(memory.get("unit", "KiB"), 1.0)
    return -int(-kib // _KIB_PER_MIB)


def _attribute(device: ET.Element, tag: str, name: str) -> str:
    element = device.find(tag)
    return "" if element is None else element.get(name, "")


def _source(device: ET.Element) -> str:
    """Say what a disk or a card is made of, by whichever attribute its kind has."""
    source = device.find("source")
    if source is None:
        return ""
    names = ("file", "dev", "volume", "name", "dir", "network", "bridge", "portgroup")
    return next((source.attrib[name] for name in names if name in source.attrib), "")


def _nova(root: ET.Element) -> NovaFacts | None:
    metadata = root.find("metadata")
    ours = [] if metadata is None else [each for each in metadata if each.tag.startswith(f"{{{_NOVA}")]
    if not ours:
        return None
    (instance, *_) = ours
    space = instance.tag.partition("}")[0] + "}"
    owner = instance.find(f"{space}owner")
    flavor = instance.find(f"{space}flavor")

    def uuid_of(who: str) -> str | None:
        found = None if owner is None else owner.find(f"{space}{who}")
        return None if found is None else found.get("uuid") or None

    return NovaFacts(
        name=instance.findtext(f"{space}name") or None,
        project_id=uuid_of("project"),
        user_id=uuid_of("user"),
        flavor=None if flavor is None else flavor.get("name") or None,
    )
