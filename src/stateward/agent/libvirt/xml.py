"""The XML that libvirt is given and gives back: pure functions over ``xml.etree``, which escapes users' text."""

from __future__ import annotations

from pathlib import Path
from typing import Final
from xml.etree import ElementTree as ET

import msgspec

from stateward.domain.records import GuestSpec

#: The namespace of our element in a domain's metadata. A domain without that element is not ours.
NAMESPACE: Final = "https://stateward.dev/ns/1"

#: The prefix libvirt writes our element with.
PREFIX: Final = "stateward"

#: The channel an agent inside the guest answers on.
AGENT_CHANNEL: Final = "org.qemu.guest_agent.0"

_DEFAULT_CMDLINE: Final = "console=ttyS0"


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """What we keep with a domain: whose it is, and the highest fence it was changed under."""

    instance_id: str
    project_id: str
    fence: int


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


def _parse(text: str) -> ET.Element:
    return ET.fromstring(text)  # noqa: S314 - libvirt's own output, not a user's


def identity_element(identity: Identity) -> str:
    """Return our metadata element; libvirt adds the namespace when it stores it."""
    element = ET.Element(
        "instance", id=identity.instance_id, project=identity.project_id, fence=str(identity.fence)
    )
    return ET.tostring(element, encoding="unicode")


def parse_identity(text: str) -> Identity | None:
    """Read our metadata element; None when it is not one, as after somebody edited it by hand."""
    try:
        element = _parse(text)
        return Identity(
            instance_id=element.attrib["id"],
            project_id=element.attrib["project"],
            fence=int(element.attrib["fence"]),
        )
    except (ET.ParseError, KeyError, ValueError):
        return None


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


def _add_devices(domain: ET.Element, files: Files, *, real: bool, panic: bool) -> None:
    devices = _add(domain, "devices")
    _add_disk(devices, files.disk, "qcow2", "vda")
    for device, path, kind in files.further:
        _add_disk(devices, path, kind, device)
    serial = _add(devices, "serial", type="file")
    # Without append each boot, and each restored memory, would begin a new log.
    _add(serial, "source", path=str(files.console), append="on")
    if real:
        channel = _add(devices, "channel", type="unix")
        _add(channel, "target", type="virtio", name=AGENT_CHANNEL)
        _add(devices, "memballoon", model="virtio")
        rng = _add(devices, "rng", model="virtio")
        _add(rng, "backend", "/dev/urandom", model="random")
        if panic:
            # How a guest's kernel tells that it crashed; without it a crash looks like a guest that runs.
            _add(devices, "panic", model="isa")


def domain_xml(spec: GuestSpec, files: Files, host: Host, *, name: str, fence: int) -> str:
    """Return the definition of an instance's guest.

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
    ours.attrib.update(id=spec.instance_id, project=spec.project_id, fence=str(fence))
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
    _add_devices(domain, files, real=real, panic=host.panic)
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
