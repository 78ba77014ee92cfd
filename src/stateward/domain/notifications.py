"""Nova's versioned notifications (Nova 34), for receivers that know no CloudEvents: the start and end of operations.

Which notification an action has follows from its task state in the table of actions. The states in one are those of its
own moment, whenever it is delivered; names, addresses and the like are those of the delivery.
"""

from __future__ import annotations

import datetime as dt
from typing import Any, Final

from stateward.domain.actions import BY_KEY
from stateward.domain.actions.row import Action
from stateward.domain.events import Event
from stateward.domain.locks import ActorKind
from stateward.domain.records import FlavorFacts, Instance
from stateward.domain.states import POWER_OF_OBSERVED, Observed, PowerState, TaskState

BY_TASK: Final[dict[TaskState, str]] = {
    TaskState.SPAWNING: "create",
    TaskState.POWERING_OFF: "power_off",
    TaskState.POWERING_ON: "power_on",
    TaskState.REBOOTING: "reboot",
    TaskState.REBOOTING_HARD: "reboot",
    TaskState.PAUSING: "pause",
    TaskState.UNPAUSING: "unpause",
    TaskState.SUSPENDING: "suspend",
    TaskState.RESUMING: "resume",
    TaskState.DELETING: "delete",
    TaskState.SOFT_DELETING: "soft_delete",
    TaskState.RESTORING: "restore",
    TaskState.RESCUING: "rescue",
    TaskState.UNRESCUING: "unrescue",
    TaskState.REBUILDING: "rebuild",
    TaskState.RESIZE_PREP: "resize",
    TaskState.RESIZE_MIGRATING: "resize",
    TaskState.RESIZE_FINISH: "resize_finish",
    TaskState.RESIZE_CONFIRMING: "resize_confirm",
    TaskState.RESIZE_REVERTING: "resize_revert",
    TaskState.SHELVING: "shelve",
    TaskState.SHELVING_OFFLOADING: "shelve_offload",
    TaskState.UNSHELVING: "unshelve",
    TaskState.IMAGE_SNAPSHOT: "snapshot",
    TaskState.IMAGE_BACKUP: "snapshot",
}
#: Those without a task state.
_BY_NAME: Final = {"trigger_crash_dump": "trigger_crash_dump"}
#: Those that have no beginning and no end.
_AT_ONCE: Final = {"lock": "lock", "unlock": "unlock", "place_lock": "lock", "release_lock": "unlock"}
#: The records that Nova has notifications of, as their actions have.
RECORDS: Final = frozenset({"admitted", "finished"})
#: Notifications with a payload of their own: its name and its version.
_PAYLOADS: Final = {
    "create": ("InstanceCreatePayload", "1.13"),
    "rescue": ("InstanceActionRescuePayload", "1.4"),
    "rebuild": ("InstanceActionRebuildPayload", "1.10"),
    "snapshot": ("InstanceActionSnapshotPayload", "1.10"),
}
_PLAIN: Final = ("InstanceActionPayload", "1.9")
_POWER: Final = {
    PowerState.NOSTATE: "pending",
    PowerState.RUNNING: "running",
    PowerState.PAUSED: "paused",
    PowerState.SHUTDOWN: "shutdown",
    PowerState.CRASHED: "crashed",
    PowerState.SUSPENDED: "suspended",
}


def notification(
    event: Event, instance: Instance, *, state: str | None, observed: str | None
) -> dict[str, Any] | None:
    """Return an event in Nova's form; None where Nova has no word for it.

    Args:
        event: which.
        instance: the row of the instance, as it is now.
        state: its vm state when it happened; None: as it is now.
        observed: what its host saw then.
    """
    entry = event.source.entry
    action = BY_KEY.get(entry.action or "")
    if action is None or event.place.part or entry.event not in RECORDS:
        return None
    detail = event.detail()
    begins = entry.event == "admitted"
    if begins and entry.action in _AT_ONCE:
        name, phase = _AT_ONCE[entry.action or ""], ""
    else:
        found = _name_of(action)
        if found is None:
            return None
        name = found
        failed = not begins and detail.get("outcome") != "succeeded"
        phase = ".start" if begins else ".error" if failed else ".end"
    data = _instance(event, instance, state=state, observed=observed)
    data["task_state"] = action.pending.value if begins and action.pending is not None else None
    data["fault"] = _fault(str(detail.get("message") or "")) if phase == ".error" else None
    data |= _more(name, instance)
    kind, version = _PAYLOADS.get(name, _PLAIN)
    service = "nova-compute" if phase else "nova-api"
    return {
        "event_type": f"instance.{name}{phase}",
        "message_id": str(event.place),
        "payload": _object(kind, version, data),
        "priority": "ERROR" if phase == ".error" else "INFO",
        "publisher_id": f"{service}:{event.source.host or ''}",
        "timestamp": dt.datetime.fromtimestamp(entry.at, dt.UTC).strftime("%Y-%m-%d %H:%M:%S.%f"),
    }


def _name_of(action: Action) -> str | None:
    if action.pending is None:
        return _BY_NAME.get(action.name)
    return BY_TASK[action.pending]


def _instance(event: Event, instance: Instance, *, state: str | None, observed: str | None) -> dict[str, Any]:
    entry = event.source.entry
    somebody = entry.actor_kind != ActorKind.SYSTEM.value
    seen = instance.observed if observed is None else Observed(observed)
    ended = instance.terminated_at
    return {
        "uuid": instance.id,
        "user_id": instance.user_id,
        "tenant_id": instance.project_id,
        "reservation_id": instance.reservation_id,
        "display_name": instance.name,
        "display_description": instance.description,
        "host_name": instance.hostname,
        "host": event.source.host or None,
        "node": event.source.host or None,
        "os_type": None,
        "architecture": None,
        "availability_zone": instance.zone or None,
        "flavor": _flavor(instance.flavor),
        "image_uuid": instance.image.id,
        "key_name": instance.key_name,
        "kernel_id": instance.image.kernel or "",
        "ramdisk_id": instance.image.ramdisk or "",
        "created_at": _time(instance.created_at),
        "launched_at": _time(instance.launched_at),
        "terminated_at": _time(ended if ended is not None and ended <= entry.at else None),
        "deleted_at": _time(ended if ended is not None and ended <= entry.at else None),
        "updated_at": _time(entry.at),
        "state": instance.vm_state.value if state is None else state,
        "power_state": _POWER[POWER_OF_OBSERVED[seen]],
        "progress": 0,
        "ip_addresses": _addresses(instance),
        # Null as with Nova's default settings, which leave both out.
        "block_devices": None,
        "metadata": instance.metadata,
        "locked": instance.locked,
        "locked_reason": instance.locked_reason,
        "auto_disk_config": "MANUAL",
        "shares": None,
        "request_id": entry.request_id if somebody else None,
        "action_initiator_user": entry.user_id if somebody else None,
        "action_initiator_project": entry.project_id if somebody else None,
    }


def _more(name: str, instance: Instance) -> dict[str, Any]:
    """Return the members that a payload of its own adds."""
    match name:
        case "create":
            return {
                "keypairs": [],
                "tags": list(instance.tags),
                "trusted_image_certificates": None,
                "instance_name": instance.domain_name,
            }
        case "rescue":
            return {"rescue_image_ref": None if instance.rescue is None else instance.rescue.id}
        case "rebuild":
            return {"trusted_image_certificates": None}
        case "snapshot":
            return {"snapshot_image_id": None}
        case _:
            return {}


def _flavor(flavor: FlavorFacts) -> dict[str, Any]:
    return _object(
        "FlavorPayload",
        "1.4",
        {
            "flavorid": flavor.id,
            "name": flavor.name,
            "memory_mb": flavor.ram,
            "vcpus": flavor.vcpus,
            "root_gb": flavor.disk,
            "ephemeral_gb": flavor.ephemeral,
            "swap": flavor.swap,
            "rxtx_factor": 1.0,
            "vcpu_weight": 0,
            "disabled": False,
            "is_public": True,
            "extra_specs": flavor.extra_specs,
            "projects": None,
            "description": None,
        },
    )


def _addresses(instance: Instance) -> list[dict[str, Any]]:
    ports = {port.mac: port for port in instance.ports}
    found: list[dict[str, Any]] = []
    for address in instance.addresses:
        port = ports.get(address.mac)
        found.append(
            _object(
                "IpPayload",
                "1.0",
                {
                    "label": "" if port is None else port.network,
                    "mac": address.mac,
                    "meta": {},
                    "port_uuid": None if port is None else port.id,
                    "version": address.version,
                    "address": address.address,
                    "device_name": None,
                },
            )
        )
    return found


def _fault(message: str) -> dict[str, Any]:
    data = {
        "module_name": "stateward",
        "function_name": "",
        "exception": "OperationFailed",
        "exception_message": message,
        "traceback": "",
    }
    return _object("ExceptionPayload", "1.1", data)


def _object(name: str, version: str, data: dict[str, Any]) -> dict[str, Any]:
    return {
        "nova_object.name": name,
        "nova_object.namespace": "nova",
        "nova_object.version": version,
        "nova_object.data": data,
    }


def _time(seconds: float | None) -> str | None:
    return (
        None if seconds is None else dt.datetime.fromtimestamp(seconds, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    )
