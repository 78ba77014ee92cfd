"""The libvirt driver's pure parts: the XML it writes and reads, and what libvirt's numbers mean."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import libvirt
import msgspec
import pytest

from stateward.agent.libvirt import xml
from stateward.agent.libvirt.states import observed
from stateward.domain.networks import Network, NetworkKind, mac_of, ports_of
from stateward.domain.records import GuestSpec, ImageFacts
from stateward.domain.states import Cause, Observed

ID = "5a7d1f0e-3b7c-4d53-9a52-0d9b1f6f0001"

FILES = xml.Files(disk=Path("/data/disk.qcow2"), console=Path("/data/console.log"))
DIRECT = xml.Files(
    disk=FILES.disk, console=FILES.console, kernel=Path("/data/kernel"), ramdisk=Path("/data/ramdisk")
)
TCG = xml.Host(domain_type="qemu", cpu_mode="maximum", panic=True, run_as=None)


SPEC = GuestSpec(
    instance_id=ID,
    domain_name="instance-00000001",
    display_name='<b>"web" & co</b>\n',
    project_id="p&1",
    vcpus=2,
    memory=96,
    disk=1,
    image=ImageFacts(id="i", disk_format="qcow2"),
)


def define(files: xml.Files = FILES, host: xml.Host = TCG, **properties: str) -> ET.Element:
    image = ImageFacts(id="i", disk_format="qcow2", properties=properties)
    spec = msgspec.structs.replace(SPEC, image=image)
    return ET.fromstring(xml.domain_xml(spec, files, host, name="instance-00000001", fence=7))


def test_a_definition_holds_what_was_asked_for() -> None:
    domain = define()
    assert domain.get("type") == "qemu"
    assert [domain.findtext(tag) for tag in ("name", "uuid", "memory", "vcpu")] == [
        "instance-00000001",
        ID,
        "96",
        "2",
    ]
    assert domain.findtext("title") == '<b>"web" & co</b> '
    ours = domain.find(f"metadata/{{{xml.NAMESPACE}}}instance")
    assert ours is not None
    assert ours.attrib == {"id": ID, "project": "p&1", "fence": "7"}


def connected(*kinds: NetworkKind, networks: tuple[str, ...]) -> ET.Element:
    """Define a guest with a port of each kind, and everything else that it can have."""
    wanted = [Network(name=kind, kind=kind, source="" if kind == "user" else f"a-{kind}") for kind in kinds]
    spec = msgspec.structs.replace(SPEC, ports=ports_of(ID, wanted))
    files = xml.Files(
        disk=FILES.disk,
        console=FILES.console,
        further=(("vdb", Path("/data/e"), "raw"), ("vdc", Path("/data/s"), "raw")),
        seed=Path("/data/seed.iso"),
    )
    text = xml.domain_xml(spec, files, TCG, name="n", fence=7, networks=networks)
    return ET.fromstring(text)


def attributes(element: ET.Element, tag: str) -> dict[str, str]:
    """Return the attributes of a child, none when there is no such child."""
    child = element.find(tag)
    return {} if child is None else child.attrib


def test_a_guest_has_its_disks_by_name_and_the_seed_last_and_read_only() -> None:
    disks = connected(networks=()).findall("devices/disk")
    found = [
        (
            attributes(disk, "target")["dev"],
            attributes(disk, "source")["file"],
            disk.find("readonly") is not None,
        )
        for disk in disks
    ]
    assert found == [
        ("vda", "/data/disk.qcow2", False),
        ("vdb", "/data/e", False),
        ("vdc", "/data/s", False),
        ("vdz", "/data/seed.iso", True),
    ]


def test_a_port_is_connected_by_its_kind_with_its_own_address() -> None:
    domain = connected(
        *(NetworkKind.NAT, NetworkKind.AUTO, NetworkKind.AUTO, NetworkKind.BRIDGE, NetworkKind.USER),
        networks=("a-nat", "a-auto", "", "", ""),
    )
    cards = domain.findall("devices/interface")
    sources = [attributes(card, "source") for card in cards]
    assert [(card.get("type"), source) for card, source in zip(cards, sources, strict=True)] == [
        ("network", {"network": "a-nat"}),
        ("network", {"network": "a-auto"}),
        ("user", {}),
        ("bridge", {"bridge": "a-bridge"}),
        ("user", {}),
    ]
    macs = [attributes(card, "mac")["address"] for card in cards]
    assert macs == [mac_of(ID, index) for index in range(5)]
    assert len(set(macs)) == 5
    ours = domain.find(f"metadata/{{{xml.NAMESPACE}}}instance")
    assert ours is not None
    read = xml.parse_identity(ET.tostring(ours, encoding="unicode"))
    assert read is not None
    assert read.networks == ("a-nat", "a-auto", "", "", "")


def test_the_hypervisor_restarts_nothing_by_itself() -> None:
    domain = define()
    endings = {tag: domain.findtext(tag) for tag in ("on_poweroff", "on_reboot", "on_crash")}
    assert endings == {"on_poweroff": "destroy", "on_reboot": "restart", "on_crash": "destroy"}


def test_a_guest_cannot_put_itself_to_sleep() -> None:
    states = [child.get("enabled") for child in define().iterfind("pm/*")]
    assert states == ["no", "no"]


def test_a_guest_has_a_button_a_console_and_a_channel_and_no_network() -> None:
    domain = define()
    assert domain.find("features/acpi") is not None
    console = domain.find("devices/serial[@type='pty']/log")
    assert console is not None
    assert console.attrib == {"file": "/data/console.log", "append": "on"}
    channel = domain.find("devices/channel/target")
    assert channel is not None
    assert channel.get("name") == "org.qemu.guest_agent.0"
    assert domain.find("devices/interface") is None


def test_an_image_with_a_kernel_boots_it_directly() -> None:
    boot = define(DIRECT, os_command_line="console=ttyS0 quiet").find("os")
    assert boot is not None
    assert [boot.findtext(tag) for tag in ("kernel", "initrd", "cmdline")] == [
        "/data/kernel",
        "/data/ramdisk",
        "console=ttyS0 quiet",
    ]
    assert boot.find("boot") is None


def test_a_kernel_without_arguments_gets_a_console() -> None:
    assert define(DIRECT).findtext("os/cmdline") == "console=ttyS0"


def test_an_image_without_a_kernel_boots_its_disk() -> None:
    boot = define().find("os/boot")
    assert boot is not None
    assert boot.get("dev") == "hd"


def test_qemu_runs_as_whom_it_is_told() -> None:
    host = xml.Host(domain_type="kvm", cpu_mode=None, panic=False, run_as="+1000:+1000")
    domain = define(host=host)
    assert domain.findtext("seclabel/label") == "+1000:+1000"
    assert domain.find("cpu") is None
    assert domain.find("devices/panic") is None


def test_the_metadata_element_is_read_back() -> None:
    for networks in ((), ("",), ("default", "")):
        identity = xml.Identity(instance_id=ID, project_id="<p>", fence=3, networks=networks)
        assert xml.parse_identity(xml.identity_element(identity)) == identity


@pytest.mark.parametrize("text", ["", "<instance/>", '<instance id="a" project="b" fence="x"/>'])
def test_a_damaged_metadata_element_is_nobodys(text: str) -> None:
    assert xml.parse_identity(text) is None


@pytest.mark.parametrize(
    ("target", "connected"),
    [
        ('<target type="virtio" name="org.qemu.guest_agent.0" state="connected"/>', True),
        ('<target type="virtio" name="org.qemu.guest_agent.0" state="disconnected"/>', False),
        ('<target type="virtio" name="org.qemu.guest_agent.0"/>', False),
        ('<target type="virtio" name="com.example.other" state="connected"/>', False),
    ],
)
def test_an_agent_counts_when_it_holds_its_channel(target: str, connected: bool) -> None:  # noqa: FBT001
    domain = f"<domain><devices><channel>{target}</channel></devices></domain>"
    assert xml.agent_connected(domain) is connected


def test_the_user_of_qemu_is_the_dac_models_label() -> None:
    models = (
        "<secmodel><model>apparmor</model></secmodel>"
        "<secmodel><model>dac</model><baselabel type='kvm'>+64055:+107</baselabel></secmodel>"
    )
    assert xml.own_user(f"<capabilities><host>{models}</host></capabilities>") == "+64055:+107"
    assert xml.own_user("<capabilities><host/></capabilities>") is None


def name(prefix: str, value: str) -> Any:
    return getattr(libvirt, f"VIR_DOMAIN_{prefix}{value}")


@pytest.mark.parametrize(
    ("reason", "cause"),
    [
        ("UNKNOWN", Cause.OTHER),
        ("SHUTDOWN", Cause.GUEST),
        ("DESTROYED", Cause.DESTROYED),
        ("CRASHED", Cause.CRASHED),
        ("MIGRATED", Cause.MIGRATION),
        # A managed save has an image; this is a memory in a file of somebody's.
        ("SAVED", Cause.SAVED),
        ("FAILED", Cause.CRASHED),
        ("FROM_SNAPSHOT", Cause.OTHER),
        ("DAEMON", Cause.HOST),
    ],
)
def test_why_a_guest_is_off(reason: str, cause: Cause) -> None:
    state, number = name("", "SHUTOFF"), name("SHUTOFF_", reason)
    assert observed(state, number, saved=False) == (Observed.SHUTOFF, cause)
    assert observed(state, number, saved=True) == (Observed.SUSPENDED, Cause.SAVED)


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("UNKNOWN", (Observed.PAUSED, Cause.OTHER)),
        ("USER", (Observed.PAUSED, Cause.OPERATOR)),
        ("MIGRATION", (Observed.PAUSED, Cause.MIGRATION)),
        ("POSTCOPY", (Observed.PAUSED, Cause.MIGRATION)),
        ("POSTCOPY_FAILED", (Observed.PAUSED, Cause.HALF_MIGRATED)),
        ("SAVE", (Observed.PAUSED, Cause.SAVED)),
        ("DUMP", (Observed.PAUSED, Cause.SAVED)),
        ("SNAPSHOT", (Observed.PAUSED, Cause.SAVED)),
        ("IOERROR", (Observed.PAUSED, Cause.IO_ERROR)),
        ("CRASHED", (Observed.CRASHED, Cause.CRASHED)),
        ("STARTING_UP", (Observed.RUNNING, Cause.OTHER)),
        ("SHUTTING_DOWN", (Observed.RUNNING, Cause.OTHER)),
        ("WATCHDOG", (Observed.PAUSED, Cause.OTHER)),
    ],
)
def test_why_a_guest_is_paused(reason: str, expected: tuple[Observed, Cause]) -> None:
    assert observed(name("", "PAUSED"), name("PAUSED_", reason), saved=False) == expected


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("RUNNING", (Observed.RUNNING, Cause.OTHER)),
        ("BLOCKED", (Observed.RUNNING, Cause.OTHER)),
        ("SHUTDOWN", (Observed.RUNNING, Cause.OTHER)),
        ("CRASHED", (Observed.CRASHED, Cause.CRASHED)),
        ("PMSUSPENDED", (Observed.PAUSED, Cause.GUEST)),
        ("NOSTATE", (Observed.UNKNOWN, Cause.OTHER)),
    ],
)
def test_the_other_states(state: str, expected: tuple[Observed, Cause]) -> None:
    assert observed(name("", state), 0, saved=False) == expected


def test_a_state_that_libvirt_adds_is_unknown() -> None:
    assert observed(99, 0, saved=False) == (Observed.UNKNOWN, Cause.OTHER)


def test_a_rescued_guest_boots_the_rescue_disk_and_has_its_own_as_the_second() -> None:
    rescue = xml.Files(
        disk=Path("/data/disk.rescue"), console=FILES.console, further=(("vdb", FILES.disk, "qcow2"),)
    )
    text = ET.tostring(define(rescue), encoding="unicode")
    assert xml.device_of(text, rescue.disk) == "vda"
    assert xml.device_of(text, FILES.disk) == "vdb"
    assert xml.device_of(text, Path("/elsewhere")) is None


def test_a_backup_is_of_one_disk_into_one_file() -> None:
    text = xml.backup_xml("vdb", Path("/data/<a> & b"))
    backup = ET.fromstring(text)
    assert backup.attrib == {"mode": "push"}
    assert [disk.attrib for disk in backup.iterfind("disks/disk")] == [
        {"name": "vdb", "backup": "yes", "type": "file"}
    ]
    assert xml.backup_targets(text) == {Path("/data/<a> & b")}
