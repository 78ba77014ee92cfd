"""What libvirt counts of a guest, in one bulk call, as the contract's diagnostics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import libvirt

from stateward.agent.libvirt import guests, xml
from stateward.domain.diagnostics import Diagnostics, DiskFigures, NicFigures
from stateward.domain.states import Observed

_KIB_PER_MIB: Final = 1024

_WANTED: Final = (
    libvirt.VIR_DOMAIN_STATS_STATE
    | libvirt.VIR_DOMAIN_STATS_BALLOON
    | libvirt.VIR_DOMAIN_STATS_VCPU
    | libvirt.VIR_DOMAIN_STATS_INTERFACE
    | libvirt.VIR_DOMAIN_STATS_BLOCK
)


def measure(connection: libvirt.virConnect, instance_id: str) -> Diagnostics:
    """Measure one guest; what this libvirt does not count of it is left out."""
    domain = guests.require(connection, instance_id)
    state, _ = guests.look(domain)
    kind, macs, config_drive = xml.parts(domain.XMLDesc())
    if state not in (Observed.RUNNING, Observed.PAUSED):
        return Diagnostics(state=state, driver="libvirt", hypervisor=kind, config_drive=config_drive)
    ((_, stats),) = connection.domainListGetStats([domain], _WANTED)
    return Diagnostics(
        state=state,
        driver="libvirt",
        hypervisor=kind,
        config_drive=config_drive,
        cpu_times=tuple(
            int(stats.get(f"vcpu.{number}.time", 0)) for number in range(stats.get("vcpu.current", 0))
        ),
        memory=int(stats.get("balloon.maximum", 0)) // _KIB_PER_MIB,
        memory_used=_used(stats),
        disks=tuple(_disk(stats, f"block.{number}.") for number in range(stats.get("block.count", 0))),
        nics=tuple(_nic(stats, f"net.{number}.", macs) for number in range(stats.get("net.count", 0))),
    )


def _used(stats: Mapping[str, Any]) -> int | None:
    """Return the MiB in use; None from a guest that does not tell its host."""
    if "balloon.usable" not in stats or "balloon.current" not in stats:
        return None
    return int(stats["balloon.current"] - stats["balloon.usable"]) // _KIB_PER_MIB


def _disk(stats: Mapping[str, Any], prefix: str) -> DiskFigures:
    errors = stats.get(f"{prefix}errors")
    return DiskFigures(
        name=str(stats.get(f"{prefix}name", "")),
        read_bytes=int(stats.get(f"{prefix}rd.bytes", 0)),
        read_requests=int(stats.get(f"{prefix}rd.reqs", 0)),
        write_bytes=int(stats.get(f"{prefix}wr.bytes", 0)),
        write_requests=int(stats.get(f"{prefix}wr.reqs", 0)),
        errors=None if errors is None else int(errors),
    )


def _nic(stats: Mapping[str, Any], prefix: str, macs: Mapping[str, str]) -> NicFigures:
    name = str(stats.get(f"{prefix}name", ""))
    return NicFigures(
        name=name,
        mac=macs.get(name, ""),
        rx_bytes=int(stats.get(f"{prefix}rx.bytes", 0)),
        rx_packets=int(stats.get(f"{prefix}rx.pkts", 0)),
        rx_errors=int(stats.get(f"{prefix}rx.errs", 0)),
        rx_drop=int(stats.get(f"{prefix}rx.drop", 0)),
        tx_bytes=int(stats.get(f"{prefix}tx.bytes", 0)),
        tx_packets=int(stats.get(f"{prefix}tx.pkts", 0)),
        tx_errors=int(stats.get(f"{prefix}tx.errs", 0)),
        tx_drop=int(stats.get(f"{prefix}tx.drop", 0)),
    )
