"""What this host can do: which accelerator its guests get, and the facts it reports."""

from __future__ import annotations

import enum
import platform
import re
import stat
from pathlib import Path
from typing import Final

import libvirt

from stateward.agent.driver import DriverError
from stateward.agent.libvirt.xml import Host, cpu_modes, own_user

_KVM: Final = Path("/dev/kvm")
_CPUINFO: Final = Path("/proc/cpuinfo")
_X86: Final = frozenset({"x86_64", "i686"})

#: The error codes by which libvirt says that QEMU lacks an accelerator; any other is a failure to tell.
_UNSUPPORTED: Final = frozenset({libvirt.VIR_ERR_INVALID_ARG, libvirt.VIR_ERR_CONFIG_UNSUPPORTED})


class Accelerator(enum.StrEnum):
    """How guests' processors are run: by the host's own, or in software."""

    AUTO = "auto"
    KVM = "kvm"
    TCG = "tcg"


def may_use(device: Path, label: str) -> bool:
    """Say whether a ``+UID:+GID`` may read and write a device by its mode bits."""
    uid, gid = (int(part.lstrip("+")) for part in label.split(":"))
    try:
        facts = device.stat()
    except OSError:
        return False
    if uid == 0:
        return True
    if facts.st_uid == uid:
        wanted = stat.S_IRUSR | stat.S_IWUSR
    elif facts.st_gid == gid:
        wanted = stat.S_IRGRP | stat.S_IWGRP
    else:
        wanted = stat.S_IROTH | stat.S_IWOTH
    return facts.st_mode & wanted == wanted


def _capabilities(connection: libvirt.virConnect, domain_type: str) -> str | None:
    try:
        return connection.getDomainCapabilities(None, None, None, domain_type)
    except libvirt.libvirtError as error:
        if error.get_error_code() in _UNSUPPORTED:
            return None
        raise


def _runs_unmodified() -> bool:
    """Say whether this host's KVM runs guests as they are.

    On x86 that takes the processor's own virtualization. A KVM without it is a paravirtual one for guests made
    for it, and any other crawls there, if it boots at all.
    """
    if platform.machine() not in _X86:
        return True
    flags = re.search(r"^flags\s*:(.*)$", _CPUINFO.read_text(encoding="utf-8"), re.MULTILINE)
    return flags is not None and not {"vmx", "svm"}.isdisjoint(flags.group(1).split())


def describe(connection: libvirt.virConnect, accelerator: Accelerator, run_as: str | None) -> Host:
    """Find out how guests are to be defined here; blocking.

    KVM is used only where libvirt says that QEMU has it (it asked QEMU itself, run as libvirt's user for it),
    the user that our guests are to run as may open the device too, and it is of use to ordinary guests.

    Raises:
        DriverError: KVM was asked for and there is none, or there is no QEMU at all.
    """
    if connection.getType() == "TEST":
        return Host(domain_type="test", cpu_mode=None, panic=False, run_as=None)
    panic = platform.machine() in _X86
    wanted = accelerator is Accelerator.KVM or (accelerator is Accelerator.AUTO and _runs_unmodified())
    if wanted:
        capabilities = _capabilities(connection, "kvm")
        if capabilities is not None and (run_as is None or may_use(_KVM, run_as)):
            # The host's own model, named by libvirt: a saved memory can still be restored after an update.
            mode = "host-model" if "host-model" in cpu_modes(capabilities) else None
            return Host(domain_type="kvm", cpu_mode=mode, panic=panic, run_as=run_as)
    if accelerator is Accelerator.KVM:
        raise DriverError(
            f"KVM was asked for, but QEMU, run as user {run_as or own_user(connection.getCapabilities())}, "
            f"cannot use {_KVM}. Check that it exists and that this user may read and write it."
        )
    capabilities = _capabilities(connection, "qemu")
    if capabilities is None:
        raise DriverError("libvirt has no QEMU for this machine. Install it (Debian: qemu-system-x86).")
    mode = "maximum" if "maximum" in cpu_modes(capabilities) else None
    return Host(domain_type="qemu", cpu_mode=mode, panic=panic, run_as=run_as)
