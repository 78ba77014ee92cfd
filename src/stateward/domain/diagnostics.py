"""What a hypervisor measures of a guest that runs: Nova's normalised server diagnostics (2.48), as types."""

from __future__ import annotations

import msgspec

from stateward.domain.states import Observed


class DiskFigures(msgspec.Struct, frozen=True, kw_only=True):
    """What a guest has read and written by one disk since it was switched on."""

    #: The hypervisor's name for the disk, ``vda``.
    name: str
    read_bytes: int = 0
    read_requests: int = 0
    write_bytes: int = 0
    write_requests: int = 0
    #: None where the hypervisor does not count them.
    errors: int | None = None


class NicFigures(msgspec.Struct, frozen=True, kw_only=True):
    """What went through one network card since the guest was switched on; ``rx`` is what the guest received."""

    #: The host's name for its end, ``vnet0``.
    name: str
    mac: str
    rx_bytes: int = 0
    rx_packets: int = 0
    rx_errors: int = 0
    rx_drop: int = 0
    tx_bytes: int = 0
    tx_packets: int = 0
    tx_errors: int = 0
    tx_drop: int = 0


class Diagnostics(msgspec.Struct, frozen=True, kw_only=True):
    """One look at a guest; one that is off has figures of nothing."""

    state: Observed
    #: The driver, and what it drives: ``libvirt`` and ``kvm``.
    driver: str
    hypervisor: str
    #: Whether a disk with its first configuration is in its drive.
    config_drive: bool = False
    #: Nanoseconds that each of its processors has worked.
    cpu_times: tuple[int, ...] = ()
    #: MiB it may have, and MiB it has in use as far as the hypervisor is told.
    memory: int = 0
    memory_used: int | None = None
    disks: tuple[DiskFigures, ...] = ()
    nics: tuple[NicFigures, ...] = ()
