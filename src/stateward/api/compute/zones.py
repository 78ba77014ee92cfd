"""``/os-availability-zone``: the zones that hosts are in; and ``/os-aggregates``, of which there are none."""

from __future__ import annotations

from typing import Any, Final

from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from stateward.api.compute.call import Call, Endpoint, reply
from stateward.api.compute.services import Services
from stateward.api.compute.views import when_precisely
from stateward.domain.actions import Policy, Role
from stateward.store import hosts
from stateward.store.hosts import Host

_DETAIL: Final = Policy("os_compute_api:os-availability-zone:detail", Role.ADMIN)
_AGGREGATES: Final = Policy("os_compute_api:os-aggregates:index", Role.ADMIN)


async def index(call: Call) -> Response:
    """List zones; one is available while it has a host that is not disabled."""
    zones = _by_zone(await call.services.database.read(hosts.every))
    return _reply([(zone, any(host.enabled for host in members), None) for zone, members in zones.items()])


async def index_detail(call: Call) -> Response:
    """List zones with their hosts."""
    now, patience = call.services.clock.now(), call.services.host_patience
    shown: list[tuple[str, bool, dict[str, Any] | None]] = []
    for zone, members in _by_zone(await call.services.database.read(hosts.every)).items():
        services = {
            host.name: {
                "nova-compute": {
                    "available": host.up(now, patience),
                    "active": True,
                    "updated_at": None if host.seen_at is None else when_precisely(host.seen_at),
                }
            }
            for host in members
            if host.enabled
        }
        shown.append((zone, bool(services), services or None))
    return _reply(shown)


async def aggregates(_call: Call) -> Response:
    """List no host aggregates; clients that show a host ask."""
    return reply({"aggregates": []})


def _by_zone(every: list[Host]) -> dict[str, list[Host]]:
    return {
        zone: [host for host in every if host.zone == zone] for zone in sorted({host.zone for host in every})
    }


def _reply(zones: list[tuple[str, bool, dict[str, Any] | None]]) -> Response:
    # Those that are available come first, as in Nova.
    ordered = sorted(zones, key=lambda zone: not zone[1])
    return reply(
        {
            "availabilityZoneInfo": [
                {"zoneName": name, "zoneState": {"available": available}, "hosts": services}
                for name, available, services in ordered
            ]
        }
    )


def routes(services: Services, *, legacy: bool = False) -> list[BaseRoute]:
    """Return the routes; anybody may list the zones."""
    return [
        Route(
            path,
            Endpoint(services, handler, policy=policy, legacy=legacy),
            methods=["GET"],
        )
        for path, handler, policy in (
            ("/os-availability-zone", index, None),
            ("/os-availability-zone/detail", index_detail, _DETAIL),
            ("/os-aggregates", aggregates, _AGGREGATES),
        )
    ]
