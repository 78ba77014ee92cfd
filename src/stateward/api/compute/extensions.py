"""``/extensions``: by which older clients find out what there is.

Nova keeps the list for compatibility only. This one names what is really served, and nothing else.
"""

from __future__ import annotations

from typing import Final

import msgspec
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from stateward.api.compute.call import Call, Endpoint, Handler, reply
from stateward.api.compute.services import Services
from stateward.api.faults import ApiFault

#: Nova's own placeholders: neither has a meaning any more.
_NAMESPACE: Final = "http://docs.openstack.org/compute/ext/fake_xml"
_UPDATED: Final = "2014-12-03T00:00:00Z"


class Extension(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of the list."""

    alias: str
    name: str
    description: str = ""
    namespace: str = _NAMESPACE
    updated: str = _UPDATED
    links: list[str] = []


_SERVED: Final = {
    "OS-DCF": "DiskConfig",
    "OS-EXT-AZ": "ExtendedAvailabilityZone",
    "OS-EXT-SRV-ATTR": "ExtendedServerAttributes",
    "OS-EXT-STS": "ExtendedStatus",
    "OS-FLV-DISABLED": "FlavorDisabled",
    "OS-FLV-EXT-DATA": "FlavorExtraData",
    "OS-SRV-USG": "ServerUsage",
    "os-admin-actions": "AdminActions",
    "os-availability-zone": "AvailabilityZone",
    "os-console-output": "ConsoleOutput",
    "os-extended-services": "ExtendedServices",
    "os-flavor-access": "FlavorAccess",
    "os-flavor-extra-specs": "FlavorExtraSpecs",
    "os-flavor-manage": "FlavorManage",
    "os-flavor-rxtx": "FlavorRxtx",
    "os-flavor-swap": "FlavorSwap",
    "os-hypervisor-status": "HypervisorStatus",
    "os-hypervisors": "Hypervisors",
    "os-instance-actions": "InstanceActions",
    "os-keypairs": "Keypairs",
    "os-lock-server": "LockServer",
    "os-multiple-create": "MultipleCreate",
    "os-pause-server": "PauseServer",
    "os-quota-sets": "Quotas",
    "os-scheduler-hints": "SchedulerHints",
    "os-server-groups": "ServerGroups",
    "os-server-list-multi-status": "ServerListMultiStatus",
    "os-server-sort-keys": "ServerSortKeys",
    "os-server-start-stop": "ServerStartStop",
    "os-services": "Services",
    "os-suspend-server": "SuspendServer",
    "os-used-limits": "UsedLimits",
    "os-used-limits-for-admin": "UsedLimitsForAdmin",
    "os-user-data": "UserData",
}
_EXTENSIONS: Final = {alias: Extension(alias=alias, name=name) for alias, name in _SERVED.items()}
#: ``/v2`` shows whether a server is locked, and by whom, and says so here.
_LEGACY: Final = dict(
    sorted(
        {
            **_EXTENSIONS,
            "os-server-locked-status": Extension(
                alias="os-server-locked-status",
                name="ServerLockStatus",
                description="Show whether a server is locked, and by whom.",
                namespace="http://docs.openstack.org/compute/ext/server_locked_status/api/v2",
            ),
        }.items()
    )
)


def _of(call: Call) -> dict[str, Extension]:
    return _LEGACY if call.legacy else _EXTENSIONS


async def index(call: Call) -> Response:
    """List the extensions."""
    return reply({"extensions": list(_of(call).values())})


async def show(call: Call) -> Response:
    """Show one extension."""
    found = _of(call).get(call.path["alias"])
    if found is None:
        raise ApiFault(404, "The resource could not be found.")
    return reply({"extension": found})


def routes(services: Services, *, legacy: bool = False) -> list[BaseRoute]:
    """Return the routes; anybody may look."""

    def at(path: str, handler: Handler) -> Route:
        return Route(path, Endpoint(services, handler, policy=None, legacy=legacy), methods=["GET"])

    return [at("/extensions", index), at("/extensions/{alias}", show)]
