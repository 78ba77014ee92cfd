"""``/v1/hosts/{name}/evacuation`` and ``drain``: what is planned for a host's instances, approved and carried out."""

from __future__ import annotations

from typing import Final, Literal

import msgspec
import sqlalchemy as sa
from starlette.responses import Response

from stateward.api.http import iso_time
from stateward.api.native.call import Call, Resource, reply
from stateward.api.native.hosts import HostView, acting, seen
from stateward.api.native.views import Nothing
from stateward.domain.actions import Policy, Role
from stateward.domain.errors import NotFound
from stateward.domain.evacuation import OFF, MoveState, PlanKind, PlanState
from stateward.domain.states import VmState
from stateward.operations.hosts import known
from stateward.store import host_plans
from stateward.store.host_plans import KeptMove, KeptPlan

_READ: Final = Policy("stateward:hosts:read", Role.ADMIN)
_CHANGE: Final = Policy("stateward:hosts:change", Role.ADMIN)


class Drain(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Empty a host of guests that are on; nothing new is placed there."""

    #: ``stop``: shut them down; ``migrate``: carry all that can leave to other hosts, and shut the rest down.
    how: Literal["stop", "migrate"] = "stop"
    #: Only plan it.
    plan: bool = False


class MoveView(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a plan."""

    number: int
    instance_id: str
    name: str
    project_id: str
    #: As it was when the plan was made.
    vm_state: VmState
    #: By that state it was not off.
    on: bool
    #: The row of the table of actions; null: it is left.
    action: str | None
    #: Where it would go, or went.
    to: str | None
    #: Why it is left, or what is done to it.
    says: str
    state: MoveState
    operation_id: str | None
    #: Why it was refused or failed.
    message: str | None


class PlanView(msgspec.Struct, frozen=True, kw_only=True):
    """A plan."""

    id: str
    host: str
    kind: PlanKind
    state: PlanState
    made_at: str
    #: Empty: the control plane itself.
    made_by: str
    approved_at: str | None
    approved_by: str | None
    ended_at: str | None
    #: Of a drain: what can be carried elsewhere is.
    migrate: bool
    moves: list[MoveView]


def _time(at: float | None) -> str | None:
    return None if at is None else iso_time(at)


def _move(move: KeptMove) -> MoveView:
    return MoveView(
        number=move.number,
        instance_id=move.instance_id,
        name=move.name,
        project_id=move.project_id,
        vm_state=move.vm_state,
        on=move.vm_state not in OFF,
        action=move.action,
        to=move.to_host,
        says=move.says,
        state=move.state,
        operation_id=move.operation_id,
        message=move.message,
    )


def plan_view(connection: sa.Connection, plan: KeptPlan) -> PlanView:
    """Show a plan with its lines."""
    return PlanView(
        id=plan.id,
        host=plan.host,
        kind=plan.kind,
        state=plan.state,
        made_at=iso_time(plan.made_at),
        made_by=plan.made_by,
        approved_at=_time(plan.approved_at),
        approved_by=plan.approved_by,
        ended_at=_time(plan.ended_at),
        migrate=bool(plan.detail.get("migrate", False)),
        moves=[_move(each) for each in host_plans.moves(connection, plan.id)],
    )


async def _last(call: Call, kind: PlanKind) -> Response:
    name = call.request.path_params["name"]

    def read(connection: sa.Connection) -> PlanView:
        known(connection, name)
        plan = host_plans.of_host(connection, name, kind)
        if plan is None:
            raise NotFound(f"There is no plan to {kind} host {name}.")
        return plan_view(connection, plan)

    return reply(await call.services.database.read(read))


async def _evacuation(call: Call) -> Response:
    return await _last(call, PlanKind.EVACUATE)


async def _draining(call: Call) -> Response:
    return await _last(call, PlanKind.DRAIN)


async def _plan(call: Call) -> Response:
    await call.body(Nothing)

    def answer(view: PlanView) -> Response:
        return reply(view, 201)

    name = call.request.path_params["name"]
    return answer(await acting(call, answer).plan(name, call.actor, PlanKind.EVACUATE, then=plan_view))


async def _drain(call: Call) -> Response:
    wanted = await call.body(Drain)

    def answer(view: PlanView) -> Response:
        return reply(view, 201)

    name = call.request.path_params["name"]
    view = await acting(call, answer).plan(
        name,
        call.actor,
        PlanKind.DRAIN,
        then=plan_view,
        migrate=wanted.how == "migrate",
        begin=not wanted.plan,
    )
    return answer(view)


async def _approve(call: Call) -> Response:
    await call.body(Nothing)
    name, plan = call.request.path_params["name"], call.request.path_params["plan"]
    return reply(await acting(call, reply).approve(name, plan, call.actor, then=plan_view))


async def _cancel_evacuation(call: Call) -> Response:
    return await _cancel(call, PlanKind.EVACUATE)


async def _cancel_drain(call: Call) -> Response:
    return await _cancel(call, PlanKind.DRAIN)


async def _cancel(call: Call, kind: PlanKind) -> Response:
    name = call.request.path_params["name"]
    return reply(await call.services.hosts.cancel(name, call.actor, kind, then=seen(call, name)))


#: By path, below ``/v1``.
RESOURCES: Final[dict[str, dict[str, Resource]]] = {
    "/hosts/{name}/evacuation": {
        "GET": Resource(
            handler=_evacuation,
            summary="Show the newest plan to evacuate a host.",
            policy=_READ,
            answer=PlanView,
        ),
        "POST": Resource(
            handler=_plan,
            summary="Plan what becomes of a host's instances, in the stead of plans that nobody approved.",
            policy=_CHANGE,
            body=Nothing,
            answer=PlanView,
            status=201,
        ),
        "DELETE": Resource(
            handler=_cancel_evacuation,
            summary="Give up the plans to evacuate a host; what was admitted goes on.",
            policy=_CHANGE,
            answer=HostView,
        ),
    },
    "/hosts/{name}/evacuation/{plan}/approve": {
        "POST": Resource(
            handler=_approve,
            summary="Have a plan carried out; only of a host that is fenced.",
            policy=_CHANGE,
            body=Nothing,
            answer=PlanView,
        )
    },
    "/hosts/{name}/drain": {
        "GET": Resource(
            handler=_draining, summary="Show how far a host's drain is.", policy=_READ, answer=PlanView
        ),
        "POST": Resource(
            handler=_drain,
            summary="Empty a host of guests that are on; it is disabled.",
            policy=_CHANGE,
            body=Drain,
            answer=PlanView,
            status=201,
        ),
        "DELETE": Resource(
            handler=_cancel_drain,
            summary="Give a drain up; what was admitted goes on, and the host stays disabled.",
            policy=_CHANGE,
            answer=HostView,
        ),
    },
}
