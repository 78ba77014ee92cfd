"""What this host can do: which accelerator its guests get, and the facts it reports."""

from __future__ import annotations

import enum
import os
import platform
from typing import Final

import libvirt

from stateward.agent.driver import DriverError
from stateward.agent.libvirt.access import KVM, X86, User, runs_unmodified
from stateward.agent.libvirt.xml import Host, cpu_modes, own_user

#: The error codes by which libvirt says that QEMU lacks an accelerator; any other is a failure to tell.
_UNSUPPORTED: Final = frozenset({libvirt.VIR_ERR_INVALID_ARG, libvirt.VIR_ERR_CONFIG_UNSUPPORTED})


class Accelerator(enum.StrEnum):
    """How guests' processors are run: by the host's own, or in software."""

    AUTO = "auto"
    KVM = "kvm"
    TCG = "tcg"


def _capabilities(connection: libvirt.virConnect, domain_type: str) -> str | None:
    try:
        return connection.getDomainCapabilities(None, None, None, domain_type)
    except libvirt.libvirtError as error:
        if error.get_error_code() in _UNSUPPORTED:
            return None
        raise


def describe(connection: libvirt.virConnect, accelerator: Accelerator, run_as: str | None) -> Host:
    """Find out how guests are to be defined here; blocking.

    KVM is used only where libvirt says that QEMU has it, the user that QEMU runs as may open the device too
    (libvirt 9 says yes when only root may), and it runs ordinary guests.

    Raises:
        DriverError: KVM was asked for and there is none, or there is no QEMU at all.
    """
    if connection.getType() == "TEST":
        return Host(domain_type="test", cpu_mode=None, panic=False, run_as=None)
    panic = platform.machine() in X86
    if accelerator is Accelerator.KVM or (accelerator is Accelerator.AUTO and runs_unmodified()):
        capabilities = _capabilities(connection, "kvm")
        user = User(run_as or own_user(connection.getCapabilities()) or f"+{os.getuid()}:+{os.getgid()}")
        if capabilities is not None and user.may_use(KVM):
            # The host's own model, named by libvirt: a saved memory can still be restored after an update.
            mode = "host-model" if "host-model" in cpu_modes(capabilities) else None
            return Host(domain_type="kvm", cpu_mode=mode, panic=panic, run_as=run_as)
        if accelerator is Accelerator.KVM:
            raise DriverError(
                f"KVM was asked for, but QEMU, run as {user}, cannot use {KVM}. Check that it exists and that "
                "this user may read and write it."
            )
    capabilities = _capabilities(connection, "qemu")
    if capabilities is None:
        raise DriverError("libvirt has no QEMU for this machine. Install it (Debian: qemu-system-x86).")
    mode = "maximum" if "maximum" in cpu_modes(capabilities) else None
    return Host(domain_type="qemu", cpu_mode=mode, panic=panic, run_as=run_as)
