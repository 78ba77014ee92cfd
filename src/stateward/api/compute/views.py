"""How a server looks in each microversion, for each kind of caller.

Recorded from Nova 34; ``tests/compat`` compares. What is not there yet (volumes, networks) is shown
as Nova shows a server that has none.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Final

from stateward.api.compute.call import Call
from stateward.api.compute.server_networks import addresses
from stateward.api.compute.services import host_id
from stateward.domain.records import Instance
from stateward.domain.states import POWER_OF_OBSERVED, PowerState, VmState, status
from stateward.store import hosts

_PROGRESS_IN: Final = frozenset({"ACTIVE", "BUILD", "REBOOT", "HARD_REBOOT"})
_EXTENDED_ATTRIBUTES, _HOST_STATUS, _EMBEDDED_FLAVOR, _IMAGE_PROPERTIES = 3, 16, 47, 98

#: What the view of any caller grew by, from which minor number.
_GROWN: Final[tuple[tuple[int, str, Callable[[Instance], Any]], ...]] = (
    (9, "locked", lambda instance: instance.locked),
    (19, "description", lambda instance: instance.description),
    (26, "tags", lambda instance: instance.tags),
    (63, "trusted_image_certificates", lambda _instance: None),
    (71, "server_groups", lambda instance: [instance.group_id] if instance.group_id else []),
    (73, "locked_reason", lambda instance: instance.locked_reason),
    (90, "OS-EXT-SRV-ATTR:hostname", lambda instance: instance.hostname),
    (96, "pinned_availability_zone", lambda _instance: None),
    (100, "scheduler_hints", lambda instance: instance.hints or {}),
)


@lru_cache(4096)
def when(seconds: float) -> str:
    """Write a time as Nova's views do, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


@lru_cache(4096)
def when_precisely(seconds: float) -> str:
    """Write a time as Nova's usage and action views do."""
    return time.strftime("%Y-%m-%dT%H:%M:%S.000000", time.gmtime(seconds))


def links(call: Call, kind: str, identifier: str) -> list[dict[str, str]]:
    """Give a resource's self and bookmark links."""
    return [
        {"rel": "self", "href": f"{call.root}/{kind}/{identifier}"},
        {"rel": "bookmark", "href": f"{call.bookmark}/{kind}/{identifier}"},
    ]


def bookmark(call: Call, kind: str, identifier: str) -> list[dict[str, str]]:
    """Give a resource's bookmark link alone."""
    return [{"rel": "bookmark", "href": f"{call.bookmark}/{kind}/{identifier}"}]


def brief(call: Call, instance: Instance) -> dict[str, Any]:
    """Show a server in a list without details."""
    return {"id": instance.id, "name": instance.name, "links": links(call, "servers", instance.id)}


def power_state(instance: Instance) -> PowerState:
    """Give Nova's number for the guest as it was last seen."""
    return POWER_OF_OBSERVED[instance.observed]


def detail(call: Call, instance: Instance, host_up: Mapping[str, str], *, single: bool) -> dict[str, Any]:
    """Show a server whole.

    Args:
        call: in whose version and for whose eyes.
        instance: the server.
        host_up: ``host_status`` by host; needed for admins only.
        single: alone, not in a list: some members are only shown there.
    """
    word = status(instance.vm_state, instance.task_state)
    deleted = instance.vm_state is VmState.DELETED
    server: dict[str, Any] = {
        "accessIPv4": "",
        "accessIPv6": "",
        "addresses": addresses(instance, whole=True),
        "created": when(instance.created_at),
        "flavor": _flavor(call, instance),
        "hostId": host_id(instance.project_id, instance.host),
        "id": instance.id,
        "image": _image(call, instance),
        "links": links(call, "servers", instance.id),
        "metadata": instance.metadata,
        "name": instance.name,
        "status": word,
        "tenant_id": instance.project_id,
        "user_id": instance.user_id,
        "updated": when(instance.updated_at),
        "OS-DCF:diskConfig": "MANUAL",
    }
    if word in _PROGRESS_IN:
        server["progress"] = 0
    if instance.fault is not None and word in {"ERROR", "DELETED"}:
        server["fault"] = {
            "code": instance.fault.code,
            "created": when(instance.fault.created),
            "message": instance.fault.message,
        }
    server |= {
        "OS-EXT-AZ:availability_zone": instance.zone,
        "config_drive": "True" if instance.seed.config_drive else "",
        "key_name": instance.key_name,
        "OS-SRV-USG:launched_at": _optional_time(instance.launched_at),
        "OS-SRV-USG:terminated_at": _optional_time(instance.terminated_at),
        "OS-EXT-STS:task_state": instance.task_state,
        "OS-EXT-STS:vm_state": instance.vm_state,
        "OS-EXT-STS:power_state": 0 if deleted else int(power_state(instance)),
        "os-extended-volumes:volumes_attached": [],
    }
    if call.token.is_admin:
        server |= _for_admins(call, instance, host_up)
    if call.legacy:
        # R8: the legacy view, by the extension os-server-locked-status.
        server |= {"locked": instance.locked, "locked_by": instance.locked_by}
    server |= {
        name: value(instance)
        for since, name, value in _GROWN
        if since <= call.minor and (single or name != "server_groups")
    }
    return server


def _optional_time(seconds: float | None) -> str | None:
    return None if seconds is None else when_precisely(seconds)


def _flavor(call: Call, instance: Instance) -> dict[str, Any]:
    flavor = instance.flavor
    if call.minor < _EMBEDDED_FLAVOR:
        return {"id": flavor.id, "links": bookmark(call, "flavors", flavor.id)}
    return {
        "vcpus": flavor.vcpus,
        "ram": flavor.ram,
        "disk": flavor.disk,
        "ephemeral": flavor.ephemeral,
        "swap": flavor.swap,
        "original_name": flavor.name,
        "extra_specs": flavor.extra_specs,
    }


def _image(call: Call, instance: Instance) -> dict[str, Any] | str:
    if not instance.image.id:
        # As Nova 34 writes it of a server that was made of no image.
        return ""
    image: dict[str, Any] = {
        "id": instance.image.id,
        "links": bookmark(call, "images", instance.image.id),
    }
    if call.minor >= _IMAGE_PROPERTIES:
        image["properties"] = instance.image.properties
    return image


def _for_admins(call: Call, instance: Instance, host_up: Mapping[str, str]) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "OS-EXT-SRV-ATTR:host": instance.host or None,
        "OS-EXT-SRV-ATTR:instance_name": instance.domain_name,
        "OS-EXT-SRV-ATTR:hypervisor_hostname": instance.host or None,
    }
    if call.minor >= _EXTENDED_ATTRIBUTES:
        shown |= {
            "OS-EXT-SRV-ATTR:hostname": instance.hostname,
            "OS-EXT-SRV-ATTR:kernel_id": instance.image.properties.get("kernel_id", ""),
            "OS-EXT-SRV-ATTR:launch_index": 0,
            "OS-EXT-SRV-ATTR:ramdisk_id": instance.image.properties.get("ramdisk_id", ""),
            "OS-EXT-SRV-ATTR:reservation_id": instance.reservation_id,
            "OS-EXT-SRV-ATTR:root_device_name": "/dev/vda",
            "OS-EXT-SRV-ATTR:user_data": instance.user_data,
        }
    if call.minor >= _HOST_STATUS:
        shown["host_status"] = host_up.get(instance.host, "")
    return shown


async def host_status(call: Call) -> dict[str, str]:
    """Give Nova's ``host_status`` by host, for admins; nothing for others, who are not shown it."""
    if not call.token.is_admin:
        return {}
    now = call.services.clock.now()
    words: dict[str, str] = {}
    for host in await call.services.database.read(hosts.every):
        if host.forced_down:
            words[host.name] = "DOWN"
        elif not host.enabled:
            words[host.name] = "MAINTENANCE"
        else:
            words[host.name] = "UP" if host.up(now, call.services.host_patience) else "UNKNOWN"
    return words
