"""``/os-hypervisors``: what each host last reported of itself; a host that never reported is not shown."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec
import sqlalchemy as sa
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from stateward.api.compute.call import MAX_MINOR, Call, Endpoint, Handler, reply
from stateward.api.compute.host_services import BY_UUID, check_uuid, identifier, state, status
from stateward.api.compute.paging import STRICT, Page, bad_marker, next_page, only, page_of
from stateward.api.compute.server_queries import boolean
from stateward.api.compute.services import Services
from stateward.api.faults import ApiFault
from stateward.domain.actions import Policy, Role
from stateward.domain.errors import Invalid, NotFound
from stateward.domain.placement import Room
from stateward.domain.records import HostReport, Instance
from stateward.store import hosts, instances
from stateward.store.hosts import Host
from stateward.store.instances import Query

_CPU_AS_OBJECT, _PAGES, _FEWER = 28, 33, 88
#: What statistics add up.
_COUNTED: Final = (
    "vcpus",
    "memory_mb",
    "local_gb",
    "vcpus_used",
    "memory_mb_used",
    "local_gb_used",
    "free_ram_mb",
    "free_disk_gb",
    "current_workload",
    "running_vms",
    "disk_available_least",
)


class _Node(msgspec.Struct, frozen=True, kw_only=True):
    """A host that has reported."""

    host: Host
    report: HostReport
    #: None: not asked for.
    servers: list[Instance] | None


def _numbers(report: HostReport, used: Room) -> dict[str, int]:
    """Return what can be added up over hosts; memory in MiB, disks in GiB."""
    return {
        "vcpus": report.vcpus,
        "memory_mb": report.memory,
        "local_gb": report.disk,
        "vcpus_used": used.vcpus,
        "memory_mb_used": used.memory,
        "local_gb_used": used.disk,
        "free_ram_mb": report.memory - used.memory,
        "free_disk_gb": report.disk - used.disk,
        "current_workload": 0,
        "running_vms": report.running,
        "disk_available_least": report.disk - report.disk_used,
    }


def _used(call: Call, host: Host) -> Room:
    """Return what instances have claimed and what is kept for the host itself, as Nova counts."""
    return host.claimed + call.services.admission.placement.reserved


def _cpu_info(call: Call, report: HostReport) -> Any:
    if call.minor < _CPU_AS_OBJECT:
        return report.cpu_info
    try:
        return msgspec.json.decode(report.cpu_info)
    except msgspec.DecodeError:
        return {}


def _view(call: Call, node: _Node, *, whole: bool) -> dict[str, Any]:
    host, report = node.host, node.report
    shown: dict[str, Any] = {
        "id": identifier(call, host),
        "hypervisor_hostname": host.name,
        "state": state(call, host),
        "status": status(host),
    }
    if whole:
        shown |= {
            "host_ip": None,
            "hypervisor_type": report.hypervisor_type,
            "hypervisor_version": report.hypervisor_version,
            "service": {
                "id": identifier(call, host),
                "host": host.name,
                "disabled_reason": host.disabled_reason,
            },
        }
        if call.minor < _FEWER:
            shown |= {**_numbers(report, _used(call, host)), "cpu_info": _cpu_info(call, report)}
        else:
            # Agents do not report it; Nova shows the same for a driver that cannot.
            shown["uptime"] = None
    if node.servers or (node.servers is not None and call.minor >= STRICT):
        shown["servers"] = [{"name": each.domain_name, "uuid": each.id} for each in node.servers]
    return shown


async def _nodes(call: Call, wanted: Callable[[Host], bool], *, servers: bool = False) -> list[_Node]:
    def read(connection: sa.Connection) -> list[_Node]:
        return [
            _Node(
                host=host,
                report=host.report,
                servers=instances.page(connection, Query(host=host.name)) if servers else None,
            )
            for host in hosts.every(connection)
            if host.report is not None and wanted(host)
        ]

    return await call.services.database.read(read)


def _everyone(_host: Host) -> bool:
    return True


async def _matching(call: Call, pattern: str, *, servers: bool) -> list[_Node]:
    """Return the hosts whose name contains a text.

    Raises:
        NotFound: there is none.
    """
    found = await _nodes(call, lambda host: pattern in host.name, servers=servers)
    if not found:
        raise NotFound(f"No hypervisor matching '{pattern}' could be found.")
    return found


def _with_servers(call: Call) -> bool:
    text = call.request.query_params.get("with_servers") if call.minor >= BY_UUID else None
    return text is not None and boolean(text)


async def _listed(call: Call, *, whole: bool) -> Response:
    only(call, "limit", "marker", "hypervisor_hostname_pattern", "with_servers")
    params = call.request.query_params
    pattern = params.get("hypervisor_hostname_pattern") if call.minor >= BY_UUID else None
    servers = _with_servers(call)
    more: dict[str, Any] = {}
    if pattern is not None:
        if "limit" in params or "marker" in params:
            raise Invalid(
                "Paging over hypervisors with the hypervisor_hostname_pattern query parameter is not supported."
            )
        found = await _matching(call, pattern, servers=servers)
    else:
        found = await _nodes(call, _everyone, servers=servers)
        if call.minor >= _PAGES:
            page = page_of(call)
            found = _cut(call, found, page)
            path = "os-hypervisors/detail" if whole else "os-hypervisors"
            last = identifier(call, found[-1].host) if found else None
            more = next_page(call, page, path, found, last)
    return reply({"hypervisors": [_view(call, node, whole=whole) for node in found], **more})


def _cut(call: Call, nodes: list[_Node], page: Page) -> list[_Node]:
    if page.marker is None:
        return nodes[: page.limit]
    for number, node in enumerate(nodes, start=1):
        if str(identifier(call, node.host)) == page.marker:
            return nodes[number : number + page.limit]
    raise bad_marker(LookupError(page.marker))


async def index(call: Call) -> Response:
    """List hypervisors, briefly."""
    return await _listed(call, whole=False)


async def detail(call: Call) -> Response:
    """List hypervisors whole."""
    return await _listed(call, whole=True)


async def show(call: Call) -> Response:
    """Show one hypervisor."""
    only(call, "with_servers")
    node = await _one(call, servers=_with_servers(call))
    return reply({"hypervisor": _view(call, node, whole=True)})


async def _one(call: Call, *, servers: bool) -> _Node:
    wanted = call.path["id"]
    if call.minor >= BY_UUID:
        check_uuid(wanted)
    found = await _nodes(call, lambda host: str(identifier(call, host)) == wanted, servers=servers)
    if not found:
        raise NotFound(f"Hypervisor with ID '{wanted}' could not be found.")
    return found[0]


async def uptime(call: Call) -> Response:
    """Say that agents do not report how long a host is up."""
    await _one(call, servers=False)
    raise ApiFault(501, "The requested functionality is not supported.")


async def search(call: Call) -> Response:
    """List the hypervisors whose name contains a text (to 2.52)."""
    found = await _matching(call, call.path["id"], servers=False)
    return reply({"hypervisors": [_view(call, node, whole=False) for node in found]})


async def servers_of(call: Call) -> Response:
    """List the servers of the hypervisors whose name contains a text (to 2.52)."""
    found = await _matching(call, call.path["id"], servers=True)
    return reply({"hypervisors": [_view(call, node, whole=False) for node in found]})


async def statistics(call: Call) -> Response:
    """Add up what the enabled hosts report (to 2.87)."""
    nodes = await _nodes(call, lambda host: host.enabled)
    numbers = [_numbers(node.report, _used(call, node.host)) for node in nodes]
    total = {name: sum(each[name] for each in numbers) for name in _COUNTED}
    return reply({"hypervisor_statistics": {"count": len(nodes), **total}})


def routes(services: Services, *, legacy: bool = False) -> list[BaseRoute]:
    """Return the routes; those that a later microversion folded into others end there."""

    def at(path: str, handler: Handler, rule: str, until: int = MAX_MINOR) -> Route:
        policy = Policy(f"os_compute_api:os-hypervisors:{rule}", Role.ADMIN)
        endpoint = Endpoint(services, handler, policy=policy, until=until, legacy=legacy)
        return Route(f"/os-hypervisors{path}", endpoint, methods=["GET"])

    return [
        at("", index, "list"),
        at("/detail", detail, "list-detail"),
        at("/statistics", statistics, "statistics", until=_FEWER - 1),
        at("/{id}", show, "show"),
        at("/{id}/uptime", uptime, "uptime", until=_FEWER - 1),
        at("/{id}/search", search, "search", until=BY_UUID - 1),
        at("/{id}/servers", servers_of, "servers", until=BY_UUID - 1),
    ]
