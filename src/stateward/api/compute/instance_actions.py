"""``/servers/{id}/os-instance-actions``: Nova's view of the operations of a server, deleted ones' from 2.21."""

from __future__ import annotations

from typing import Any, Final

from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from stateward.api.compute.call import Call, Endpoint, reply
from stateward.api.compute.paging import size
from stateward.api.compute.server_queries import moment
from stateward.api.compute.services import Services, host_id
from stateward.api.compute.views import when_precisely
from stateward.domain.actions import BY_KEY, Action, Policy, Role, key
from stateward.domain.actions.row import COMPUTE
from stateward.domain.errors import Invalid, NotFound, Refusal, Refused
from stateward.domain.locks import ActorKind
from stateward.domain.records import Instance, Operation, OperationState
from stateward.domain.states import VmState
from stateward.store import instances, operations

_LIST: Final = Policy("os_compute_api:os-instance-actions:list", Role.READER)
_SHOW: Final = Policy("os_compute_api:os-instance-actions:show", Role.READER)
_DELETED, _EVENTS, _PAGES, _HOST, _BEFORE, _DETAILS = 21, 51, 58, 62, 66, 84
#: Where Nova's name does not follow from the action's: by the rows' keys or names.
_EVENT_NAMES: Final = {
    "create": "compute__do_build_and_run_instance",
    "delete": "compute_terminate_instance",
    "delete_soft": "compute_soft_delete_instance",
    "forceDelete": "compute_terminate_instance",
    "createImage": "compute_snapshot_instance",
    "createBackup": "compute_backup_instance",
    "resize": "compute_prep_resize",
    "confirmResize": "compute_confirm_resize",
    "revertResize": "compute_revert_resize",
    "shelveOffload": "compute_shelve_offload_instance",
    "changePassword": "compute_set_admin_password",
    "trigger_crash_dump": "compute_trigger_crash_dump",
}
_RESULT: Final = {
    OperationState.SUCCEEDED: "Success",
    OperationState.FAILED: "Error",
    OperationState.SUPERSEDED: "Superseded",
    OperationState.CANCELLED: "Cancelled",
}


async def index(call: Call) -> Response:
    """List a server's operations, newest first."""
    instance = await _find(call)
    params = call.request.query_params
    paged = call.minor >= _PAGES
    limit = size(params.get("limit", "0") if paged else "0", most=call.services.max_limit)
    since = moment("changes-since", params["changes-since"]) if paged and "changes-since" in params else None
    before = (
        moment("changes-before", params["changes-before"])
        if call.minor >= _BEFORE and "changes-before" in params
        else None
    )
    marker = params.get("marker") if paged else None
    try:
        found = await call.services.database.read(
            lambda connection: operations.of_instance(
                connection,
                instance.id,
                limit=limit,
                marker=marker,
                since=since,
                before=before,
                followers=False,
            )
        )
    except LookupError:
        raise Invalid(f"marker [{marker}] not found") from None
    return reply({"instanceActions": [_brief(call, operation) for operation in found]})


async def show(call: Call) -> Response:
    """Show the operation that a request asked for, with its event; that of what followed by itself comes first."""
    instance = await _find(call)
    request_id = call.path["request_id"]
    found = await call.services.database.read(
        lambda connection: operations.of_request(connection, instance.id, request_id)
    )
    if not found:
        raise NotFound(f"Action for request_id {request_id} on instance {instance.id} not found")
    shown = _brief(call, found[0])
    if call.token.is_admin or call.minor >= _EVENTS:
        shown["events"] = [_event(call, instance, operation) for operation in reversed(found)]
    return reply({"instanceAction": shown})


async def _find(call: Call) -> Instance:
    instance_id = call.path["id"]
    found = await call.services.database.read(lambda connection: instances.get(connection, instance_id))
    if (
        found is None
        or call.visible_project not in {None, found.project_id}
        or (found.vm_state is VmState.DELETED and call.minor < _DELETED)
    ):
        raise Refused(Refusal.NOT_FOUND, instance_id=instance_id)
    return found


def _brief(call: Call, operation: Operation) -> dict[str, Any]:
    # What the arbiter did is told whether it went well or not: it is the answer to "why did my server restart?".
    told = (
        operation.state in {OperationState.FAILED, OperationState.CANCELLED}
        or operation.actor_kind == "system"
    )
    row = BY_KEY[operation.action]
    # Who of the provider placed a lock or a hold is not the customer's to know; of Nova's own actions Nova tells it.
    novas = row.policy.rule.startswith(COMPUTE)
    known = call.token.is_admin or operation.actor_kind is not ActorKind.ADMIN or novas
    shown: dict[str, Any] = {
        "action": row.name,
        "instance_uuid": operation.instance_id,
        "request_id": operation.request_id,
        "user_id": operation.user_id if known else None,
        "project_id": operation.project_id if known else None,
        "start_time": when_precisely(operation.started_at),
        "message": operation.message if told else None,
    }
    if call.minor >= _PAGES:
        shown["updated_at"] = when_precisely(operation.finished_at or operation.started_at)
    return shown


def _event_name(action: Action) -> str:
    """Name the step of an action as Nova does: after the method of its compute manager, or of its API."""
    for name in (key(action), action.name):
        if name in _EVENT_NAMES:
            return _EVENT_NAMES[name]
    return f"compute_{action.name}_instance" if action.is_operation else f"api_{action.name}"


def _event(call: Call, instance: Instance, operation: Operation) -> dict[str, Any]:
    action = BY_KEY[operation.action]
    event: dict[str, Any] = {
        "event": _event_name(action),
        "start_time": when_precisely(operation.started_at),
        "finish_time": None if operation.finished_at is None else when_precisely(operation.finished_at),
        "result": _RESULT.get(operation.state),
    }
    if call.token.is_admin:
        event["traceback"] = None
    if call.minor >= _HOST:
        if call.token.is_admin:
            event["host"] = operation.host
        event["hostId"] = host_id(instance.project_id, operation.host)
    if call.minor >= _DETAILS and call.token.is_admin:
        event["details"] = operation.message
    return event


def routes(services: Services, *, legacy: bool = False) -> list[BaseRoute]:
    """Return the routes."""
    base = "/servers/{id}/os-instance-actions"
    return [
        Route(base, Endpoint(services, index, policy=_LIST, legacy=legacy), methods=["GET"]),
        Route(
            f"{base}/{{request_id}}", Endpoint(services, show, policy=_SHOW, legacy=legacy), methods=["GET"]
        ),
    ]
