"""The second look of the libvirt driver: what a machine shows of guests past the list, and what is left open."""

from __future__ import annotations

from pathlib import Path

import pytest

from stateward.agent.libvirt import traces
from stateward.domain.sweeps import Trace

ONE, TWO, THREE = (f"0000000{number}-1111-4222-8333-444444444444" for number in (1, 2, 3))


def process(processes: Path, pid: int, *words: str) -> Path:
    folder = processes / str(pid)
    folder.mkdir(parents=True)
    (folder / "cmdline").write_bytes("\0".join((*words, "")).encode())
    return folder


def define(folder: Path, instance_id: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{instance_id}.xml").write_text(f"<domain><name>x</name><uuid>{instance_id}</uuid></domain>")


@pytest.fixture
def processes(tmp_path: Path) -> Path:
    """Give a machine with a daemon that has two guests, one of them on."""
    processes = tmp_path / "proc"
    daemon = process(processes, 7, "/usr/sbin/libvirtd", "--listen")
    for each in (ONE, TWO):
        define(daemon / "root/etc/libvirt/qemu", each)
    process(processes, 8, "/usr/bin/qemu-system-x86_64", "-name", "guest=x", "-uuid", ONE, "-m", "64")
    process(processes, 9, "/bin/sh", "-uuid")
    (processes / "10").mkdir()
    return processes


def test_what_is_found(processes: Path) -> None:
    """By the uuids that QEMU was started with, and that are defined below the root which the daemon sees."""
    assert traces.find({ONE, TWO, THREE}, "qemu:///system", processes) == {
        ONE: Trace(process=True, defined=True),
        TWO: Trace(process=False, defined=True),
        THREE: Trace(process=False, defined=False),
    }


@pytest.mark.parametrize("uri", ["qemu+ssh://elsewhere/system", "qemu+tls://10.0.0.1/system"])
def test_another_machine_s_guests(processes: Path, uri: str) -> None:
    """Nothing is told of them from here."""
    assert traces.find({ONE}, uri, processes) == {ONE: Trace()}


def test_no_daemon_can_be_seen(tmp_path: Path) -> None:
    """Where processes are hidden from us, a guest that is not seen is not gone."""
    processes = tmp_path / "proc"
    process(processes, 1, "/sbin/init")
    assert traces.find({ONE}, "qemu:///system", processes) == {ONE: Trace()}


def test_definitions_that_cannot_be_read(processes: Path) -> None:
    """They are left open, and the processes are told all the same."""
    folder = processes / "7/root/etc/libvirt/qemu"
    (folder / "a folder.xml").mkdir()
    assert traces.find({ONE}, "qemu:///system", processes) == {ONE: Trace(process=True)}
