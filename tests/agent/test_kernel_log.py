"""The kernel's log says whose guest was ended for want of memory; nobody else's word counts."""

from __future__ import annotations

from pathlib import Path

import pytest

from stateward.agent.libvirt.kernel_log import KernelLog
from stateward.domain.states import Cause, Observed

#: As Linux 6.1 writes it, with systemd, and with libvirt's own groups.
SYSTEMD = (
    r"6,1234,98765,-;oom-kill:constraint=CONSTRAINT_NONE,nodemask=(null),cpuset=emulator,mems_allowed=0,global_oom,"
    r"task_memcg=/machine.slice/machine-qemu\x5cx2d3\x5cx2dinstance\x5cx2d0000000a.scope/libvirt/emulator,"
    r"task=qemu-system-x86,pid=3053,uid=64055"
)
PLAIN = (
    "6,1235,98766,-;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,mems_allowed=0,"
    "oom_memcg=/machine,task_memcg=/machine/qemu-12-instance-0000000b.libvirt-qemu,task=qemu-system-x86,pid=9,uid=0"
)
OFF = (Observed.SHUTOFF, Cause.CRASHED)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Give a log with an old record in it."""
    path = tmp_path / "kmsg"
    path.write_text(PLAIN.replace("0000000b", "00000001") + "\n")
    return path


def write(path: Path, *records: str) -> None:
    with path.open("a") as log:
        log.writelines(f"{record}\n" for record in records)


def test_whose_guest_was_ended(path: Path) -> None:
    """As long as it is off; what was written before is of another run, perhaps."""
    log = KernelLog(path)
    log.open()
    assert log.cause("instance-0000000a", *OFF) is Cause.CRASHED
    assert not log.matters(Cause.OTHER)
    write(path, "6,1,2,-;some device", SYSTEMD, " SUBSYSTEM=mm", PLAIN)
    for name in ("instance-0000000a", "instance-0000000b"):
        assert log.cause(name, *OFF) is Cause.OUT_OF_MEMORY
        assert log.cause(name, *OFF) is Cause.OUT_OF_MEMORY
    assert log.matters(Cause.OTHER)
    assert log.cause("instance-00000001", *OFF) is Cause.CRASHED
    assert log.cause("instance-0000000a", Observed.RUNNING, Cause.OTHER) is Cause.OTHER
    assert log.cause("instance-0000000a", *OFF) is Cause.CRASHED
    assert log.cause("instance-0000000b", *OFF) is Cause.OUT_OF_MEMORY
    log.close()
    assert log.cause("instance-0000000b", *OFF) is Cause.OUT_OF_MEMORY


def test_what_is_no_crash_stays_what_it_is(path: Path) -> None:
    """Somebody else may have ended it first."""
    log = KernelLog(path)
    log.open()
    write(path, SYSTEMD)
    assert log.cause("instance-0000000a", Observed.SHUTOFF, Cause.DESTROYED) is Cause.DESTROYED
    assert log.cause("instance-0000000a", Observed.PAUSED, Cause.CRASHED) is Cause.CRASHED
    log.close()


@pytest.mark.parametrize(
    "record",
    [
        # A program's own, through the same file.
        "12" + SYSTEMD[1:],
        SYSTEMD.replace("oom-kill:", "somebody says oom-kill:"),
        # A process of the guest's name in no domain's group.
        PLAIN.replace("/machine/qemu-12-instance-0000000b.libvirt-qemu", "/user/instance-0000000b"),
        PLAIN.replace("task_memcg", "memcg"),
    ],
)
def test_nobody_else_s_word_counts(path: Path, record: str) -> None:
    log = KernelLog(path)
    log.open()
    write(path, record)
    for name in ("instance-0000000a", "instance-0000000b"):
        assert log.cause(name, *OFF) is Cause.CRASHED
    log.close()


def test_without_a_log_a_crash_is_a_crash(tmp_path: Path) -> None:
    """As for who may not read it."""
    log = KernelLog(tmp_path / "none")
    log.open()
    assert log.cause("instance-0000000a", *OFF) is Cause.CRASHED
    log.close()


def test_the_machine_s_own_log_can_be_read() -> None:
    """To its end, without waiting there."""
    log = KernelLog()
    log.open()
    assert log.cause("nobody", *OFF) is Cause.CRASHED
    log.close()
