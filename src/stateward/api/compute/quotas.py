"""``/os-quota-sets``: to be read only, and honest: there are no quotas (-1), and 0 of what does not exist."""

from __future__ import annotations

from typing import Final

from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from stateward.api.compute.call import Call, Endpoint, Handler, reply
from stateward.api.compute.services import Services
from stateward.domain.actions import Policy, Role
from stateward.domain.errors import Forbidden
from stateward.store import usage

_UNLIMITED: Final = -1
_NO_NETWORKS, _NO_FILES = 36, 57
_NETWORKS: Final = {
    "fixed_ips": _UNLIMITED,
    "floating_ips": _UNLIMITED,
    "security_groups": _UNLIMITED,
    "security_group_rules": _UNLIMITED,
}
_FILES: Final = {"injected_files": 0, "injected_file_content_bytes": 0, "injected_file_path_bytes": 0}


def _limits(call: Call) -> dict[str, int]:
    return {
        "instances": _UNLIMITED,
        "cores": _UNLIMITED,
        "ram": _UNLIMITED,
        "key_pairs": _UNLIMITED,
        "metadata_items": _UNLIMITED,
        "server_groups": _UNLIMITED,
        "server_group_members": _UNLIMITED,
        **(_FILES if call.minor < _NO_FILES else {}),
        **(_NETWORKS if call.minor < _NO_NETWORKS else {}),
    }


def _policy(rule: str) -> Policy:
    return Policy(f"os_compute_api:os-quota-sets:{rule}", Role.READER)


async def show(call: Call) -> Response:
    """Show a project's quotas."""
    _own(call, "show")
    return reply({"quota_set": {"id": call.path["id"], **_limits(call)}})


async def defaults(call: Call) -> Response:
    """Show what a project without quotas of its own has."""
    return reply({"quota_set": {"id": call.path["id"], **_limits(call)}})


async def detail(call: Call) -> Response:
    """Show a project's quotas with their use; key pairs are a user's and not counted, as in Nova."""
    _own(call, "detail")
    used = await call.services.database.read(lambda connection: usage.of_project(connection, call.path["id"]))
    in_use = {
        "instances": used.instances,
        "cores": used.cores,
        "ram": used.ram,
        "server_groups": used.server_groups,
    }
    quotas = {
        name: {"limit": limit, "in_use": in_use.get(name, 0), "reserved": 0}
        for name, limit in _limits(call).items()
    }
    return reply({"quota_set": {"id": call.path["id"], **quotas}})


def _own(call: Call, rule: str) -> None:
    call.allow(_policy(rule))
    if call.visible_project not in {None, call.path["id"]}:
        raise Forbidden(f"os_compute_api:os-quota-sets:{rule}")


def routes(services: Services, *, legacy: bool = False) -> list[BaseRoute]:
    """Return the routes; which project is asked about decides who may, so each handler looks."""

    def at(path: str, handler: Handler) -> Route:
        return Route(path, Endpoint(services, handler, policy=None, legacy=legacy), methods=["GET"])

    return [
        at("/os-quota-sets/{id}", show),
        at("/os-quota-sets/{id}/defaults", defaults),
        at("/os-quota-sets/{id}/detail", detail),
    ]
