"""The disks of a flavor besides the root disk."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import msgspec
import pytest

from stateward.agent.libvirt.extra_disks import extra_disks, write
from stateward.domain.records import GuestSpec, ImageFacts

SPEC = GuestSpec(
    instance_id="i",
    domain_name="instance-1",
    display_name="web",
    project_id="p",
    vcpus=1,
    memory=64,
    disk=0,
    image=ImageFacts(id="i", disk_format="raw"),
)


@pytest.mark.parametrize(
    ("ephemeral", "swap", "names"),
    [
        (0, 0, {}),
        (2, 0, {"vdb": 2 << 30}),
        (0, 3, {"vdb": 3 << 20}),
        (2, 3, {"vdb": 2 << 30, "vdc": 3 << 20}),
    ],
)
def test_they_are_named_in_novas_order(
    tmp_path: Path, ephemeral: int, swap: int, names: dict[str, int]
) -> None:
    found = extra_disks(msgspec.structs.replace(SPEC, ephemeral=ephemeral, swap=swap), tmp_path)
    assert {disk.device: disk.size for disk in found} == names


def test_they_have_their_size_and_take_no_room(tmp_path: Path) -> None:
    for disk in extra_disks(msgspec.structs.replace(SPEC, ephemeral=2, swap=3), tmp_path):
        write(disk, disk.path)
        facts = disk.path.stat()
        assert facts.st_size == disk.size
        assert facts.st_blocks * 512 < 64 * 1024
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ephemeral0.raw", "swap.raw"]


def test_a_swap_disk_is_one_as_the_system_knows_it(tmp_path: Path) -> None:
    blkid = shutil.which("blkid", path="/usr/sbin:/sbin:/usr/bin")
    assert blkid is not None
    (disk,) = extra_disks(msgspec.structs.replace(SPEC, swap=3), tmp_path)
    write(disk, disk.path)
    said = subprocess.run(
        [blkid, "-p", "-o", "value", "-s", "TYPE", disk.path], capture_output=True, text=True, check=True
    )
    assert said.stdout == "swap\n"
