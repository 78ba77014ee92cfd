"""``GET /servers/{id}/diagnostics``: what the hypervisor measures of a running guest."""

from __future__ import annotations

from typing import Any, Final

from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from stateward.api.compute.call import Call, Endpoint, reply
from stateward.api.compute.questions import ask
from stateward.api.compute.servers_seen import find
from stateward.api.compute.services import Services
from stateward.domain.actions import Policy, Role
from stateward.domain.diagnostics import Diagnostics
from stateward.domain.errors import Conflict, Refusal, Refused
from stateward.domain.questions import Measure
from stateward.domain.records import Instance
from stateward.domain.states import Observed

_POLICY: Final = Policy("os_compute_api:os-server-diagnostics", Role.ADMIN)
#: The first minor version with one form for all drivers; before, each had its own.
_NORMALISED: Final = 48
_KIB_PER_MIB: Final = 1024


async def show(call: Call) -> Response:
    """Measure a guest that runs; of any other Nova refuses it too."""
    instance = await find(call, call.path["id"])
    if not instance.host:
        raise Refused(Refusal.NO_HOST, instance_id=instance.id)
    found = (await ask(call, instance, Measure(instance_id=instance.id))).diagnostics
    if found is None or found.state is not Observed.RUNNING:
        state = Observed.UNKNOWN if found is None else found.state
        raise Conflict(
            f"Cannot 'get_diagnostics' instance {instance.id} while it is in power state {_word(state)}"
        )
    if call.minor < _NORMALISED:
        return reply(_of_driver(found))
    return reply(_normalised(found, instance, call.services.clock.now()))


def _word(observed: Observed) -> str:
    """Return Nova's word for a power state."""
    return {Observed.SHUTOFF: "shutdown", Observed.SUSPENDED: "shutdown"}.get(observed, observed.value)


def _of_driver(found: Diagnostics) -> dict[str, Any]:
    """Write it as Nova's libvirt driver did: flat, memory in KiB, disks and cards by their devices' names."""
    flat: dict[str, Any] = {f"cpu{number}_time": time for number, time in enumerate(found.cpu_times)}
    flat["memory"] = found.memory * _KIB_PER_MIB
    if found.memory_used is not None:
        flat["memory-used"] = found.memory_used * _KIB_PER_MIB
    for disk in found.disks:
        flat |= {
            f"{disk.name}_read": disk.read_bytes,
            f"{disk.name}_read_req": disk.read_requests,
            f"{disk.name}_write": disk.write_bytes,
            f"{disk.name}_write_req": disk.write_requests,
            f"{disk.name}_errors": -1 if disk.errors is None else disk.errors,
        }
    for nic in found.nics:
        flat |= {
            f"{nic.name}_rx": nic.rx_bytes,
            f"{nic.name}_rx_packets": nic.rx_packets,
            f"{nic.name}_rx_errors": nic.rx_errors,
            f"{nic.name}_rx_drop": nic.rx_drop,
            f"{nic.name}_tx": nic.tx_bytes,
            f"{nic.name}_tx_packets": nic.tx_packets,
            f"{nic.name}_tx_errors": nic.tx_errors,
            f"{nic.name}_tx_drop": nic.tx_drop,
        }
    return flat


def _normalised(found: Diagnostics, instance: Instance, now: float) -> dict[str, Any]:
    """Write it in the one form that all drivers have since 2.48; what is not measured is null."""
    return {
        "state": found.state.value,
        "driver": found.driver,
        "hypervisor": found.hypervisor,
        "hypervisor_os": None,
        # Nova's: since the instance was first launched, not since its last boot.
        "uptime": None if instance.launched_at is None else int(now - instance.launched_at),
        "config_drive": found.config_drive,
        "num_cpus": len(found.cpu_times),
        "num_disks": len(found.disks),
        "num_nics": len(found.nics),
        "memory_details": {"maximum": found.memory, "used": found.memory_used},
        "cpu_details": [
            {"id": number, "time": time, "utilisation": None} for number, time in enumerate(found.cpu_times)
        ],
        "disk_details": [
            {
                "read_bytes": disk.read_bytes,
                "read_requests": disk.read_requests,
                "write_bytes": disk.write_bytes,
                "write_requests": disk.write_requests,
                "errors_count": disk.errors,
            }
            for disk in found.disks
        ],
        "nic_details": [
            {
                "mac_address": nic.mac,
                "rx_octets": nic.rx_bytes,
                "rx_packets": nic.rx_packets,
                "rx_errors": nic.rx_errors,
                "rx_drop": nic.rx_drop,
                "rx_rate": None,
                "tx_octets": nic.tx_bytes,
                "tx_packets": nic.tx_packets,
                "tx_errors": nic.tx_errors,
                "tx_drop": nic.tx_drop,
                "tx_rate": None,
            }
            for nic in found.nics
        ],
    }


def routes(services: Services, *, legacy: bool = False) -> list[BaseRoute]:
    """Return the one route."""
    return [
        Route(
            "/servers/{id}/diagnostics",
            Endpoint(services, show, policy=_POLICY, legacy=legacy),
            methods=["GET"],
        )
    ]
