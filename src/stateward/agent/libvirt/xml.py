"""The XML that libvirt is given and gives back: pure functions over ``xml.etree``, which escapes users' text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final
from xml.etree import ElementTree as ET

import msgspec

from stateward.domain.networks import NetworkKind, Port
from stateward.domain.records import GuestSpec

#: The namespace of our element in a domain's metadata. A domain without that element is not ours.
NAMESPACE: Final = "https://stateward.dev/ns/1"

#: The prefix libvirt writes our element with.
PREFIX: Final = "stateward"

#: The channel an agent inside the guest answers on.
AGENT_CHANNEL: Final = "org.qemu.guest_agent.0"

_DEFAULT_CMDLINE: Final = "console=ttyS0"

#: No name of libvirt's has it.
_NETWORKS_APART: Final = "/"

#: The last of the names a disk can have, so that no disk added later moves it; guests find it by its label.
_SEED_DEVICE: Final = "vdz"


class Before(msgspec.Struct, frozen=True, kw_only=True):
    """What an adopted domain was before; ``on_...`` in libvirt's words."""

    autostart: bool
    on_poweroff: str
    on_crash: str


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """What we keep with a domain: whose it is, and the highest fence it was changed under."""

    instance_id: str
    project_id: str
    fence: int
    #: For each of its ports, in order, the network of libvirt's that it was last defined on; '' for any other.
    networks: tuple[str, ...] = ()
    #: None: it was made here.
    before: Before | None = None


class Host(msgspec.Struct, frozen=True, kw_only=True):
    """What the definition of a guest depends on besides its spec."""

    #: libvirt's ``type`` of domain: ``kvm``, ``qemu`` or ``test``.
    domain_type: str
    #: The processor QEMU is to show, libvirt's ``mode``; None leaves it to QEMU.
    cpu_mode: str | None
    #: Whether its machines have the ISA device that a guest tells of a crash by; the ones of x86 do.
    panic: bool
    #: ``+UID:+GID`` QEMU is to run as where it may not be libvirt's own user, else None.
    run_as: str | None


class Files(msgspec.Struct, frozen=True, kw_only=True):
    """An instance's files."""

    disk: Path
    console: Path
    #: Given when the instance boots a kernel of its image's directly.
    kernel: Path | None = None
    ramdisk: Path | None = None
    #: The further disks by what the guest finds them as, with their formats, in order.
    further: tuple[tuple[str, Path, str], ...] = ()
    #: What the guest is told of itself, read-only.
    seed: Path | None = None


def _parse(text: str) -> ET.Element:
    return ET.fromstring(text)  # noqa: S314 - libvirt's own output, not a user's


def identity_element(identity: Identity) -> str:
    """Return our metadata element; libvirt adds the namespace when it stores it."""
    return ET.tostring(ET.Element("instance", attributes(identity)), encoding="unicode")


def attributes(identity: Identity) -> dict[str, str]:
    """Return the attributes of our metadata element."""
    found = {
        "id": identity.instance_id,
        "project": identity.project_id,
        "fence": str(identity.fence),
    }
    if identity.networks:
        found["networks"] = _NETWORKS_APART.join(identity.networks)
    if identity.before is not None:
        found["autostart"] = "yes" if identity.before.autostart else "no"
        found["on_poweroff"] = identity.before.on_poweroff
        found["on_crash"] = identity.before.on_crash
    return found


def parse_identity(text: str) -> Identity | None:
    """Read our metadata element; None when it is not one, as after somebody edited it by hand."""
    try:
        element = _parse(text)
        return Identity(
            instance_id=element.attrib["id"],
            project_id=element.attrib["project"],
            fence=int(element.attrib["fence"]),
            networks=_networks(element.get("networks")),
            before=_before(element),
        )
    except (ET.ParseError, KeyError, ValueError):
        return None


def _networks(text: str | None) -> tuple[str, ...]:
    return () if text is None else tuple(text.split(_NETWORKS_APART))


def _before(element: ET.Element) -> Before | None:
    autostart = element.get("autostart")
    if autostart is None:
        return None
    return Before(
        autostart=autostart == "yes",
        on_poweroff=element.get("on_poweroff", "destroy"),
        on_crash=element.get("on_crash", "destroy"),
    )


def _add(parent: ET.Element, tag: str, text: str | None = None, **attributes: str) -> ET.Element:
    element = ET.SubElement(parent, tag, attributes)
    element.text = text
    return element


def _add_boot(domain: ET.Element, spec: GuestSpec, files: Files) -> None:
    boot = _add(domain, "os")
    _add(boot, "type", "hvm")
    if files.kernel is None:
        _add(boot, "boot", dev="hd")
        return
    _add(boot, "kernel", str(files.kernel))
    if files.ramdisk is not None:
        _add(boot, "initrd", str(files.ramdisk))
    image = spec.rescue or spec.image
    _add(boot, "cmdline", image.properties.get("os_command_line", _DEFAULT_CMDLINE))


def _add_disk(devices: ET.Element, path: Path, kind: str, device: str) -> ET.Element:
    disk = _add(devices, "disk", type="file", device="disk")
    _add(disk, "driver", name="qemu", type=kind, discard="unmap")
    _add(disk, "source", file=str(path))
    _add(disk, "target", dev=device, bus="virtio")
    return disk


def _add_port(devices: ET.Element, port: Port, network: str) -> None:
    """Connect a guest; without a boot ROM, which would look for a system to boot from the network first."""
    if network:
        card = _add(devices, "interface", type="network")
        _add(card, "source", network=network)
    elif port.kind is NetworkKind.BRIDGE:
        card = _add(devices, "interface", type="bridge")
        _add(card, "source", bridge=port.source)
    else:
        card = _add(devices, "interface", type="user")
    _add(card, "mac", address=port.mac)
    _add(card, "model", type="virtio")
    _add(card, "rom", enabled="no")


def _add_devices(
    domain: ET.Element, spec: GuestSpec, files: Files, networks: Sequence[str], *, real: bool, panic: bool
) -> None:
    devices = _add(domain, "devices")
    _add_disk(devices, files.disk, "qcow2", "vda")
    for device, path, kind in files.further:
        _add_disk(devices, path, kind, device)
    if files.seed is not None:
        _add(_add_disk(devices, files.seed, "raw", _SEED_DEVICE), "readonly")
    for port, network in zip(spec.ports, networks, strict=True):
        _add_port(devices, port, network)
    # A terminal that can be connected to (``console.py``), whose output is logged whether anybody is or not.
    serial = _add(devices, "serial", type="pty")
    # Without append each boot, and each restored memory, would begin a new log.
    _add(serial, "log", file=str(files.console), append="on")
    if real:
        channel = _add(devices, "channel", type="unix")
        _add(channel, "target", type="virtio", name=AGENT_CHANNEL)
        _add(devices, "memballoon", model="virtio")
        rng = _add(devices, "rng", model="virtio")
        _add(rng, "backend", "/dev/urandom", model="random")
        if panic:
            # How a guest's kernel tells that it crashed; without it a crash looks like a guest that runs.
            _add(devices, "panic", model="isa")


def domain_xml(
    spec: GuestSpec, files: Files, host: Host, *, name: str, fence: int, networks: Sequence[str] = ()
) -> str:
    """Return the definition of an instance's guest.

    ``networks`` has for each of its ports the network of libvirt's to connect it to, '' where that is another kind.

    A guest that powers itself off or crashes stays off, because restarting it is the arbiter's to decide; its
    own reboot is its own business. It cannot put itself to sleep: nobody could tell that from a pause.
    """
    real = host.domain_type != "test"
    domain = ET.Element("domain", type=host.domain_type)
    _add(domain, "name", name)
    _add(domain, "uuid", spec.instance_id)
    _add(domain, "title", spec.display_name.replace("\n", " "))
    metadata = _add(domain, "metadata")
    # Bound here: ElementTree would bind the prefix on the root, and libvirt keeps the element only.
    ours = _add(metadata, f"{PREFIX}:instance", **{f"xmlns:{PREFIX}": NAMESPACE})
    identity = Identity(
        instance_id=spec.instance_id, project_id=spec.project_id, fence=fence, networks=tuple(networks)
    )
    ours.attrib.update(attributes(identity))
    _add(domain, "memory", str(spec.memory), unit="MiB")
    _add(domain, "vcpu", str(spec.vcpus))
    _add_boot(domain, spec, files)
    features = _add(domain, "features")
    _add(features, "acpi")
    _add(features, "apic")
    if host.cpu_mode is not None:
        _add(domain, "cpu", mode=host.cpu_mode)
    _add(domain, "clock", offset="utc")
    _add(domain, "on_poweroff", "destroy")
    _add(domain, "on_reboot", "restart")
    _add(domain, "on_crash", "destroy")
    if real:
        power = _add(domain, "pm")
        _add(power, "suspend-to-mem", enabled="no")
        _add(power, "suspend-to-disk", enabled="no")
    _add_devices(domain, spec, files, networks, real=real, panic=host.panic)
    if host.run_as is not None:
        label = _add(domain, "seclabel", type="static", model="dac", relabel="yes")
        _add(label, "label", host.run_as)
    return ET.tostring(domain, encoding="unicode")


def agent_connected(domain: str) -> bool:
    """Say whether an agent inside the guest holds its end of the channel, from the running domain's XML.

    A channel alone says nothing: with nobody at its other end a request would only wait in vain.
    """
    for target in _parse(domain).iterfind("./devices/channel/target"):
        if target.get("name") == AGENT_CHANNEL:
            return target.get("state") == "connected"
    return False


def own_user(capabilities: str) -> str | None:
    """Return the ``+UID:+GID`` libvirt gives QEMU unless told otherwise; None where it changes no user."""
    for model in _parse(capabilities).iterfind("./host/secmodel"):
        if model.findtext("model") == "dac":
            return model.findtext("baselabel")
    return None


def cpu_modes(domain_capabilities: str) -> frozenset[str]:
    """Return the ``mode`` values of ``<cpu>`` that QEMU supports on this host."""
    modes = _parse(domain_capabilities).iterfind("./cpu/mode")
    return frozenset(mode.get("name", "") for mode in modes if mode.get("supported") == "yes")


def parts(domain: str) -> tuple[str, dict[str, str], bool]:
    """Return of a domain its type, the MAC address of each host device, and whether a disc is in its drive."""
    root = _parse(domain)
    macs: dict[str, str] = {}
    for interface in root.iterfind("./devices/interface"):
        target, mac = interface.find("target"), interface.find("mac")
        if target is not None and mac is not None:
            macs[target.get("dev", "")] = mac.get("address", "")
    drives = root.iterfind("./devices/disk[@device='cdrom']/source")
    return root.get("type", ""), macs, next(drives, None) is not None


def device_of(domain: str, path: Path) -> str | None:
    """Return what a domain has a file attached as, from its XML; None when it has not."""
    for disk in _parse(domain).iterfind("./devices/disk"):
        source, target = disk.find("source"), disk.find("target")
        if source is not None and target is not None and source.get("file") == str(path):
            return target.get("dev")
    return None


def backup_xml(device: str, target: Path) -> str:
    """Return the description of a job that copies one disk, and no other, into a new file."""
    backup = ET.Element("domainbackup", mode="push")
    disk = _add(_add(backup, "disks"), "disk", name=device, backup="yes", type="file")
    _add(disk, "target", file=str(target))
    _add(disk, "driver", type="qcow2")
    return ET.tostring(backup, encoding="unicode")


def backup_targets(backup: str) -> frozenset[Path]:
    """Return the files that a job copies into, from its XML."""
    return frozenset(
        Path(target.get("file", "")) for target in _parse(backup).iterfind("./disks/disk/target")
    )
