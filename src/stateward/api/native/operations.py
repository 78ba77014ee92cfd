"""``/v1/operations``: what is done to instances, to be looked at and, while it waits for a guest, to be controlled."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final
from urllib.parse import urlencode

from starlette.responses import Response

from stateward.api.http import time_asked_for, whole_number
from stateward.api.native.call import Call, Resource, reply
from stateward.api.native.views import (
    Extension,
    Nothing,
    OperationsView,
    OperationView,
    PageLinks,
    view,
)
from stateward.domain.actions import BY_KEY, Policy, Role
from stateward.domain.errors import Forbidden, Invalid, NotFound
from stateward.domain.records import Operation, OperationState
from stateward.operations.control import Control
from stateward.store import operation_queries
from stateward.store.operation_queries import Found, OperationQuery

READ: Final = Policy("stateward:operations:read", Role.READER)
_CONTROL: Final = Policy("stateward:operations:control", Role.MEMBER)
#: Operations of a page when nothing is said.
_PAGE: Final = 100


async def find(call: Call, operation_id: str) -> Found:
    """Return an operation the caller may see.

    Raises:
        NotFound: there is none.
    """
    found = await call.services.database.read(
        lambda connection: operation_queries.get(connection, operation_id, call.visible_project)
    )
    if found is None:
        raise NotFound(f"Operation {operation_id} could not be found.")
    return found


def shown(call: Call, found: Found) -> OperationView:
    """Show an operation to the caller."""
    return view(found, base=call.base, now=call.services.clock.now(), admin=call.token.is_admin)


async def _index(call: Call) -> Response:
    query = _query(call)
    try:
        found = await call.services.database.read(
            lambda connection: operation_queries.page(connection, query)
        )
    except LookupError as error:
        raise Invalid(f"The marker {error.args[0]!r} names no operation.") from None
    following = None
    if len(found) == query.limit:
        params = [each for each in call.request.query_params.multi_items() if each[0] != "marker"]
        marker = found[-1].operation.id
        following = f"{call.base}/v1/operations?{urlencode([*params, ('marker', marker)])}"
    return reply(
        OperationsView(operations=[shown(call, each) for each in found], links=PageLinks(next=following))
    )


async def _show(call: Call) -> Response:
    return reply(shown(call, await find(call, call.request.path_params["id"])))


async def _extend(call: Call) -> Response:
    wanted = await call.body(Extension)
    return await _order(
        call,
        lambda control, operation_id: control.extend(
            operation_id, call.actor, seconds=wanted.seconds, project_id=call.visible_project
        ),
    )


async def _cancel(call: Call) -> Response:
    await call.body(Nothing)
    return await _order(
        call,
        lambda control, operation_id: control.cancel(
            operation_id, call.actor, project_id=call.visible_project
        ),
    )


async def _escalate(call: Call) -> Response:
    await call.body(Nothing)
    return await _order(
        call,
        lambda control, operation_id: control.escalate(
            operation_id, call.actor, project_id=call.visible_project
        ),
    )


async def _order(call: Call, give: Callable[[Control, str], Awaitable[Operation]]) -> Response:
    """Give an order to the operation of the path, and show it as it is then."""
    found = await find(call, call.request.path_params["id"])

    def answer(told: Operation) -> Response:
        return reply(
            shown(
                call,
                Found(operation=told, project_id=found.project_id, instance_name=found.instance_name),
            ),
            202,
        )

    control = call.services.control
    if call.once is not None:
        control = control.on(call.once.database(answer))
    return answer(await give(control, found.operation.id))


def _query(call: Call) -> OperationQuery:
    params = call.request.query_params
    project = params.get("project")
    if project is not None and not call.token.is_admin:
        raise Forbidden("stateward:operations:read:all_projects")
    actions = tuple(params.getlist("action"))
    for action in actions:
        if action not in BY_KEY:
            raise Invalid(f"There is no action {action!r}; there are: {', '.join(sorted(BY_KEY))}.")
    most = call.services.max_limit
    limit = whole_number(params.get("limit", "0"), "limit", most=most)
    return OperationQuery(
        project_id=project if call.token.is_admin else call.visible_project,
        instance_id=params.get("instance"),
        states=tuple(_state(text) for text in params.getlist("state")),
        actions=actions,
        since=time_asked_for(params["since"], "since") if "since" in params else None,
        limit=limit or min(_PAGE, most),
        marker=params.get("marker"),
    )


def _state(text: str) -> OperationState:
    try:
        return OperationState(text)
    except ValueError:
        known = ", ".join(OperationState)
        raise Invalid(f"There is no state {text!r} of operations; there are: {known}.") from None


def _ordering(handler: Callable[[Call], Awaitable[Response]], summary: str, body: Any) -> dict[str, Resource]:
    resource = Resource(
        handler=handler, summary=summary, policy=_CONTROL, body=body, answer=OperationView, status=202
    )
    return {"POST": resource}


#: By path, below ``/v1``.
RESOURCES: Final[dict[str, dict[str, Resource]]] = {
    "/operations": {
        "GET": Resource(
            handler=_index,
            summary="List operations, newest first.",
            policy=READ,
            answer=OperationsView,
            query={
                "instance": "Only those on this instance (its id).",
                "state": "Only those in this state; may be given several times.",
                "action": "Only this action, as in docs/actions.md; may be given several times.",
                "project": "Only those on this project's instances; for administrators.",
                "since": "Only those begun or finished at or after this time (ISO 8601; UTC without a zone).",
                "limit": f"So many at most; {_PAGE} when it is not given.",
                "marker": "Those after the operation with this id.",
            },
        )
    },
    "/operations/{id}": {
        "GET": Resource(handler=_show, summary="Show an operation.", policy=READ, answer=OperationView)
    },
    "/operations/{id}/extend": _ordering(
        _extend, "Give the guest more time to shut down: so many seconds in all.", Extension
    ),
    "/operations/{id}/cancel": _ordering(
        _cancel, "Stop waiting for the guest and leave the instance as it is.", Nothing
    ),
    "/operations/{id}/escalate": _ordering(
        _escalate, "End the guest's time now and take its power.", Nothing
    ),
}
