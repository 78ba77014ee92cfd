"""``/v1/instances/{id}/explain`` and ``dry-run``, and ``/v1/preflight`` for several instances (B6)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final, Literal

import msgspec
import sqlalchemy as sa
from starlette.responses import Response

from stateward.api.http import iso_time
from stateward.api.locking import LockView, lock_view
from stateward.api.native.call import Call, Resource, reply
from stateward.api.native.locks import find_instance
from stateward.api.native.views import ActorView, actor_view
from stateward.api.policy import allow
from stateward.domain.actions import BY_KEY, Action, Policy, Role
from stateward.domain.errors import Invalid, Refused
from stateward.domain.hosts import FROZEN_SAYS
from stateward.domain.records import Instance, Operation, OperationState
from stateward.domain.states import Cause, Observed, TaskState, VmState
from stateward.operations import foresight, stacking
from stateward.operations.foresight import Forecast, Foreseen, Outcome
from stateward.store import boots, hosts, operations

_READ: Final = Policy("stateward:explain:read", Role.READER)
_PREFLIGHT: Final = Policy("stateward:preflight", Role.MEMBER)
#: Operations of the chain of causes at most.
_CHAIN: Final = 20
#: What people ask about first; what blocks these is said without being asked.
_ASKED: Final = ("start", "stop", "reboot", "suspend", "resume", "rebuild", "resize", "shelve", "delete")


class CauseView(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was done to an instance."""

    at: str
    operation_id: str
    action: str
    #: What the action is, in a sentence.
    says: str
    actor: ActorView
    state: OperationState
    finished_at: str | None
    #: Why it was done, or how it ended.
    message: str | None


class ForecastView(msgspec.Struct, frozen=True, kw_only=True):
    """What would come of an action, as of now."""

    instance_id: str
    action: str
    foreseen: Foreseen
    #: The vm state it would come to; null: it stays, or nothing would be done.
    becomes: VmState | None
    #: Why it would be refused.
    why: str
    #: The locks that block it, oldest first; without these it would go on to be judged by the instance's state.
    blocked_by: list[LockView]
    #: It would pass a lock by an override of the caller's.
    by_override: bool


class SeenView(msgspec.Struct, frozen=True, kw_only=True):
    """What the hypervisor said last, and what the arbiter makes of it."""

    observed: Observed
    cause: Cause
    #: Since when that is what is seen; null: nothing was seen yet.
    at: str | None
    verdict: str
    #: The table, or the rule of a policy; null: neither, it is not judged now.
    decided_by: str | None


class ExplainView(msgspec.Struct, frozen=True, kw_only=True):
    """Why an instance is as it is, and what can be done to it."""

    instance_id: str
    name: str
    vm_state: VmState
    task_state: TaskState | None
    fault: str | None
    seen: SeenView
    #: What made it so, newest first; the first that ended well is what it is.
    causes: list[CauseView]
    #: The locks that hold, oldest first.
    locks: list[LockView]
    #: What the usual actions would come to for the caller.
    actions: list[ForecastView]


class DryRun(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An action that is only thought of."""

    action: str


class Preflight(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An action on several instances."""

    action: str
    instances: Annotated[list[str], msgspec.Meta(min_length=1, max_length=foresight.MOST)]
    #: ``check``: only say; ``all``: do it to all or to none; ``continue``: do it to those that allow it.
    mode: Literal["check", "all", "continue"] = "check"


class OutcomeView(ForecastView, frozen=True, kw_only=True):
    """What came of it for one instance."""

    #: The operation that was admitted; null: none was.
    operation_id: str | None


class PreflightView(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it, or would, in the order of the request."""

    mode: str
    #: How many of each.
    counts: dict[Foreseen, int]
    outcomes: list[OutcomeView]


async def _explain(call: Call) -> Response:
    instance = await find_instance(call, call.request.path_params["id"])
    now = call.services.clock.now()

    def look(connection: sa.Connection) -> ExplainView:
        chain = operations.of_instance(connection, instance.id, limit=_CHAIN)
        forecasts = [(name, _foresee(connection, call, name, instance.id, now)) for name in _ASKED]
        stack = stacking.stack_of(connection, instance)
        return ExplainView(
            instance_id=instance.id,
            name=instance.name,
            vm_state=instance.vm_state,
            task_state=instance.task_state,
            fault=None if instance.fault is None else instance.fault.message,
            seen=_seen(connection, call, instance),
            causes=[_cause(operation, admin=call.token.is_admin) for operation in chain],
            locks=[lock_view(lock, admin=call.token.is_admin) for lock in stack],
            actions=[_forecast_view(call, name, each) for name, each in forecasts],
        )

    return reply(await call.services.database.read(look))


def _seen(connection: sa.Connection, call: Call, instance: Instance) -> SeenView:
    # What decides about it in the stead of the arbiter's table, first.
    if call.token.is_admin:
        frozen = hosts.why_frozen(connection, instance.host)
    else:
        why = hosts.frozen(connection, instance.host)
        frozen = None if why is None else FROZEN_SAYS[why]
    turn = boots.awaited(connection, instance)
    elsewhere = frozen or (None if turn is None else turn.says)
    verdict = call.services.policies.judge(instance)
    return SeenView(
        observed=instance.observed,
        cause=instance.cause,
        at=None if instance.observed_at is None else iso_time(instance.observed_at),
        verdict=elsewhere or verdict.says,
        decided_by=None if elsewhere else verdict.decided_by,
    )


def _cause(operation: Operation, *, admin: bool) -> CauseView:
    return CauseView(
        at=iso_time(operation.started_at),
        operation_id=operation.id,
        action=operation.action,
        says=BY_KEY[operation.action].says,
        actor=actor_view(operation, admin=admin),
        state=operation.state,
        finished_at=None if operation.finished_at is None else iso_time(operation.finished_at),
        message=operation.message,
    )


def _foresee(connection: sa.Connection, call: Call, name: str, instance_id: str, now: float) -> Forecast:
    return foresight.foresee(
        connection,
        foresight.rows_of(name, reclaims=call.services.reclaims),
        instance_id,
        call.actor,
        project_id=call.visible_project,
        now=now,
    )


def _forecast_view(call: Call, name: str, forecast: Forecast) -> ForecastView:
    return ForecastView(
        instance_id=forecast.instance_id,
        action=name,
        foreseen=forecast.foreseen,
        becomes=forecast.becomes,
        why=forecast.why,
        blocked_by=[lock_view(lock, admin=call.token.is_admin) for lock in forecast.locks],
        by_override=forecast.by_override,
    )


async def _dry_run(call: Call) -> Response:
    wanted = await call.body(DryRun)
    rows = foresight.rows_of(wanted.action, reclaims=call.services.reclaims)
    allow(call.token, rows[0].policy)
    now = call.services.clock.now()
    instance_id = call.request.path_params["id"]
    forecast = await call.services.database.read(
        lambda connection: _foresee(connection, call, wanted.action, instance_id, now)
    )
    return reply(_forecast_view(call, wanted.action, forecast))


async def _preflight(call: Call) -> Response:
    wanted = await call.body(Preflight)
    rows = foresight.rows_of(wanted.action, reclaims=call.services.reclaims)
    allow(call.token, rows[0].policy)
    if wanted.mode != "check" and not all(_plain(row) for row in rows):
        raise Invalid(f"{wanted.action!r} needs more than a name: ask for it on each instance by itself.")
    if len(set(wanted.instances)) != len(wanted.instances):
        raise Invalid("An instance is named twice.")
    if wanted.mode == "check":
        now = call.services.clock.now()
        forecasts = await call.services.database.read(
            lambda connection: [
                _foresee_any(connection, call, wanted.action, each, now) for each in wanted.instances
            ]
        )
        return _outcomes(call, wanted, {each.instance_id: Outcome(forecast=each) for each in forecasts})

    def answer(outcomes: Mapping[str, Outcome]) -> Response:
        return _outcomes(call, wanted, outcomes)

    admission = call.services.admission
    return answer(
        await foresight.admit_several(
            admission if call.once is None else admission.on(call.once.database(answer)),
            rows,
            wanted.instances,
            call.actor,
            project_id=call.visible_project,
            all_or_none=wanted.mode == "all",
        )
    )


def _foresee_any(connection: sa.Connection, call: Call, name: str, instance_id: str, now: float) -> Forecast:
    """Foresee it also of what is not there for the caller."""
    try:
        return _foresee(connection, call, name, instance_id, now)
    except Refused as refused:
        return foresight.refusal_of(instance_id, refused)


def _outcomes(call: Call, wanted: Preflight, outcomes: Mapping[str, Outcome]) -> Response:
    found = [(outcomes[each].forecast, outcomes[each].admitted) for each in wanted.instances]
    views = [
        OutcomeView(
            operation_id=None if admitted is None else admitted.operation.id,
            **msgspec.structs.asdict(_forecast_view(call, wanted.action, forecast)),
        )
        for forecast, admitted in found
    ]
    counts = {word: sum(each.foreseen is word for each in views) for word in Foreseen}
    return reply(
        PreflightView(mode=wanted.mode, counts=counts, outcomes=views),
        202 if any(each.operation_id is not None for each in views) else 200,
    )


def _plain(row: Action) -> bool:
    """Whether a row needs nothing of its request but its name."""
    return row.is_operation and row.name in _PLAIN


#: Actions whose requests say nothing but their name.
_PLAIN: Final = frozenset(
    {"start", "stop", "reboot", "pause", "unpause", "suspend", "resume", "delete", "shelve", "unshelve"}
)

#: By path, below ``/v1``.
RESOURCES: Final[dict[str, dict[str, Resource]]] = {
    "/instances/{id}/explain": {
        "GET": Resource(
            handler=_explain,
            summary="Say why an instance is as it is, what blocks what, and what would free it.",
            policy=_READ,
            answer=ExplainView,
        )
    },
    "/instances/{id}/dry-run": {
        "POST": Resource(
            handler=_dry_run,
            summary="Say what would come of an action, and change nothing.",
            policy=_READ,
            body=DryRun,
            answer=ForecastView,
        )
    },
    "/preflight": {
        "POST": Resource(
            handler=_preflight,
            summary="Say what would come of an action on several instances; and then do it to all or none, or to "
            "those that allow it.",
            policy=_PREFLIGHT,
            body=Preflight,
            answer=PreflightView,
        )
    },
}
