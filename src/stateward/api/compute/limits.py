"""``/limits``: what a project uses, and that nothing limits it.

There are no quotas: -1 is Nova's word for that. What does not exist at all is limited to 0.
"""

from __future__ import annotations

from typing import Any, Final

from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from stateward.api.compute.call import Call, Endpoint, reply
from stateward.api.compute.paging import only
from stateward.api.compute.services import Services
from stateward.domain.actions import Policy, Role
from stateward.store import usage

_OTHER_PROJECT: Final = Policy("os_compute_api:limits:other_project", Role.ADMIN)
_UNLIMITED: Final = -1
_NO_NETWORKS, _NO_IMAGE_META, _NO_FILES = 36, 39, 57


async def index(call: Call) -> Response:
    """Show limits and use of the caller's project; an admin may name another."""
    only(call, "tenant_id", "reserved")
    project = call.request.query_params.get("tenant_id")
    if project is None or project == call.project_id:
        project = call.project_id
    else:
        call.allow(_OTHER_PROJECT)
    used = await call.services.database.read(lambda connection: usage.of_project(connection, project))
    absolute: dict[str, Any] = {
        "maxTotalInstances": _UNLIMITED,
        "maxTotalCores": _UNLIMITED,
        "maxTotalRAMSize": _UNLIMITED,
        "maxTotalKeypairs": _UNLIMITED,
        "maxServerMeta": _UNLIMITED,
        "maxServerGroups": _UNLIMITED,
        "maxServerGroupMembers": _UNLIMITED,
        "totalInstancesUsed": used.instances,
        "totalCoresUsed": used.cores,
        "totalRAMUsed": used.ram,
        "totalServerGroupsUsed": used.server_groups,
    }
    if call.minor < _NO_FILES:
        absolute |= {"maxPersonality": 0, "maxPersonalitySize": 0}
    if call.minor < _NO_IMAGE_META:
        absolute["maxImageMeta"] = _UNLIMITED
    if call.minor < _NO_NETWORKS:
        absolute |= {
            "maxTotalFloatingIps": _UNLIMITED,
            "maxSecurityGroups": _UNLIMITED,
            "maxSecurityGroupRules": _UNLIMITED,
            "totalFloatingIpsUsed": 0,
            "totalSecurityGroupsUsed": 0,
        }
    return reply({"limits": {"rate": [], "absolute": absolute}})


def routes(services: Services, *, legacy: bool = False) -> list[BaseRoute]:
    """Return the route; anybody may see what is their own."""
    return [Route("/limits", Endpoint(services, index, policy=None, legacy=legacy), methods=["GET"])]
