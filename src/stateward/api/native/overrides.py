"""``/v1/instances/{id}/overrides`` and ``/v1/overrides``: leave to pass a lock that binds administrators (R6)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Final

import msgspec
from starlette.responses import Response

from stateward.api.http import iso_time
from stateward.api.native.call import Call, Resource, reply
from stateward.api.native.locks import LONGEST_REASON, find_instance
from stateward.api.native.views import Nothing
from stateward.domain.actions import Policy, Role
from stateward.operations.overriding import Overriding
from stateward.store import overrides
from stateward.store.overrides import Override

_OVERRIDE: Final = Policy("stateward:overrides:ask", Role.ADMIN)
_Reason = Annotated[str, msgspec.Meta(min_length=1, max_length=LONGEST_REASON)]


class NewOverride(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Leave to pass a lock that binds administrators: for so many operations, or for so many seconds."""

    #: The lock's id: the glass is broken for this one alone.
    lock: str
    reason: _Reason
    #: 1 when neither is given.
    operations: Annotated[int, msgspec.Meta(ge=1, le=100)] | None = None
    seconds: Annotated[float, msgspec.Meta(gt=0, le=86_400)] | None = None


class OverrideView(msgspec.Struct, frozen=True, kw_only=True):
    """An administrator's leave to pass a lock."""

    id: str
    instance_id: str
    lock: str
    #: Whose it is.
    user_id: str
    reason: str
    asked_at: str
    expires_at: str | None
    #: Null: as many as come before it expires.
    operations_left: int | None
    needs_approval: bool
    approved_by: str | None
    approved_at: str | None
    #: It lets its administrator pass now.
    good: bool


class OverridesView(msgspec.Struct, frozen=True, kw_only=True):
    """Overrides of an instance's locks, oldest first."""

    overrides: list[OverrideView]


async def _override(call: Call) -> Response:
    wanted = await call.body(NewOverride)

    def answer(override: Override) -> Response:
        return reply(_override_view(call, override), 201)

    return answer(
        await _overriding(call, answer).ask(
            call.request.path_params["id"],
            wanted.lock,
            call.actor,
            reason=wanted.reason,
            uses=wanted.operations,
            seconds=wanted.seconds,
        )
    )


def _overriding(call: Call, answer: Callable[[Override], Response]) -> Overriding:
    """Return what gives leave, once for a request's key."""
    overriding = call.services.overriding
    return overriding if call.once is None else overriding.on(call.once.database(answer))


async def _overrides(call: Call) -> Response:
    instance = await find_instance(call, call.request.path_params["id"])
    found = await call.services.database.read(
        lambda connection: overrides.of_instance(connection, instance.id)
    )
    return reply(OverridesView(overrides=[_override_view(call, each) for each in found]))


async def _approve(call: Call) -> Response:
    await call.body(Nothing)

    def answer(override: Override) -> Response:
        return reply(_override_view(call, override))

    return answer(await _overriding(call, answer).approve(call.request.path_params["override"], call.actor))


def _override_view(call: Call, override: Override) -> OverrideView:
    return OverrideView(
        id=override.id,
        instance_id=override.instance_id,
        lock=override.lock_id,
        user_id=override.user_id,
        reason=override.reason,
        asked_at=iso_time(override.asked_at),
        expires_at=None if override.expires_at is None else iso_time(override.expires_at),
        operations_left=override.left,
        needs_approval=override.needs_approval,
        approved_by=override.approved_by,
        approved_at=None if override.approved_at is None else iso_time(override.approved_at),
        good=override.good(call.services.clock.now()),
    )


#: By path, below ``/v1``.
RESOURCES: Final[dict[str, dict[str, Resource]]] = {
    "/instances/{id}/overrides": {
        "GET": Resource(
            handler=_overrides,
            summary="List who was given leave to pass an instance's locks.",
            policy=_OVERRIDE,
            answer=OverridesView,
        ),
        "POST": Resource(
            handler=_override,
            summary="Break the glass: pass one lock that binds administrators too.",
            policy=_OVERRIDE,
            body=NewOverride,
            answer=OverrideView,
            status=201,
        ),
    },
    "/overrides/{override}/approve": {
        "POST": Resource(
            handler=_approve,
            summary="Agree, as the second administrator, to an override.",
            policy=Policy("stateward:overrides:approve", Role.ADMIN),
            body=Nothing,
            answer=OverrideView,
        )
    },
}
