"""What is read from definitions that others wrote, and what is changed in one that a memory was saved with."""

from __future__ import annotations

import pytest

from stateward.agent.libvirt import xml
from stateward.agent.libvirt.foreign_xml import parse, with_mark
from stateward.domain.strangers import NovaFacts, StrangerCard

BARE = "<domain type='kvm'><name>a</name><memory>1</memory></domain>"
FULL = """
<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>a</name>
  <metadata><other:thing xmlns:other='https://other.example/1' kept='yes'/></metadata>
  <memory unit='KiB'>1048577</memory><vcpu placement='static' current='1'>4</vcpu>
  <on_poweroff>preserve</on_poweroff><on_crash>restart</on_crash>
  <devices>
    <disk type='file' device='disk'><source file='/a.img'/><target dev='vda'/></disk>
    <disk type='block' device='lun'><source dev='/dev/sdb'/><target dev='sda'/></disk>
    <disk type='network' device='disk'><source protocol='rbd' name='pool/b'/><target dev='vdb'/></disk>
    <disk type='file' device='cdrom'><target dev='hda'/></disk>
    <disk type='file' device='floppy'><target dev='fda'/></disk>
    <interface type='network'><mac address='aa:bb:cc:00:00:01'/><source network='default' portgroup='x'/></interface>
    <interface type='bridge'><mac address='aa:bb:cc:00:00:02'/><source bridge='br0'/></interface>
    <interface type='user'/>
  </devices>
  <qemu:commandline><qemu:arg value='-x'/></qemu:commandline>
</domain>"""
MARK = xml.Identity(
    instance_id="i",
    project_id="p",
    fence=3,
    before=xml.Before(autostart=True, on_poweroff="preserve", on_crash="restart"),
)


def test_everything_that_counts() -> None:
    """Processors, whole MiB, disks that are disks, and every card; what libvirt has a default for can be missing."""
    found = parse(FULL)
    assert (found.vcpus, found.memory, found.nova) == (4, 1025, None)
    assert found.disks == (("vda", "/a.img"), ("sda", "/dev/sdb"), ("vdb", "pool/b"))
    assert found.cards == (
        StrangerCard(mac="aa:bb:cc:00:00:01", kind="network", source="default"),
        StrangerCard(mac="aa:bb:cc:00:00:02", kind="bridge", source="br0"),
        StrangerCard(mac="", kind="user", source=""),
    )
    assert (found.on_poweroff, found.on_crash) == ("preserve", "restart")
    bare = parse(BARE)
    assert (bare.vcpus, bare.memory, bare.disks, bare.on_crash) == (1, 1, (), "destroy")


@pytest.mark.parametrize(
    ("memory", "mib"),
    [
        ("<memory unit='GiB'>2</memory>", 2048),
        ("<memory unit='MB'>1</memory>", 1),
        ("<memory unit='b'>1048577</memory>", 2),
        ("<memory>1024</memory>", 1),
    ],
)
def test_units_of_memory(memory: str, mib: int) -> None:
    """Libvirt's, rounded up."""
    assert parse(f"<domain>{memory}</domain>").memory == mib


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_what_nova_wrote(version: str) -> None:
    """Whichever its version; what is not there is None."""
    inner = "<nova:name>web</nova:name><nova:flavor name='m1'/>"
    owner = (
        "<nova:owner><nova:user uuid='u'>x</nova:user><nova:project uuid='p'>y</nova:project></nova:owner>"
    )

    def definition(content: str) -> str:
        space = f"http://openstack.org/xmlns/libvirt/nova/{version}"
        return f"<domain><metadata><nova:instance xmlns:nova='{space}'>{content}</nova:instance></metadata></domain>"

    assert parse(definition(inner + owner)).nova == NovaFacts(
        name="web", project_id="p", user_id="u", flavor="m1"
    )
    assert parse(definition("")).nova == NovaFacts()


def test_a_mark_in_a_saved_definition() -> None:
    """It is put there once, and taken away; all that others wrote stays."""
    marked = with_mark(
        with_mark(FULL, MARK, on_poweroff="destroy", on_crash="destroy"),
        MARK,
        on_poweroff="destroy",
        on_crash="destroy",
    )
    assert marked.count("stateward:instance") == 1
    assert parse(marked).on_crash == "destroy"
    assert "other.example" in marked
    assert 'value="-x"' in marked
    back = with_mark(marked, None, on_poweroff="preserve", on_crash="restart")
    assert "stateward:instance" not in back
    assert parse(back) == parse(FULL)
    assert parse(with_mark(BARE, MARK, on_poweroff="destroy", on_crash="destroy")).on_poweroff == "destroy"


def test_a_mark_says_what_was_before() -> None:
    """And is read as it was written; one of a guest that was made here says nothing of it."""
    assert xml.parse_identity(xml.identity_element(MARK)) == MARK
    made_here = xml.Identity(instance_id="i", project_id="p", fence=3)
    assert xml.parse_identity(xml.identity_element(made_here)) == made_here
