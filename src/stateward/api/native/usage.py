"""``/v1/usage``: how long each instance was in which state, for those who bill by it (R16).

What is recorded, by which people pay, and what the host saw of the guest are told apart.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Final
from urllib.parse import urlencode

import msgspec
import sqlalchemy as sa
from starlette.responses import Response

from stateward.api.http import iso_time, time_asked_for, whole_number, yes_or_no
from stateward.api.native.call import Call, Resource, reply
from stateward.api.native.views import PageLinks
from stateward.domain.actions import Policy, Role
from stateward.domain.errors import Forbidden, Invalid
from stateward.store import intervals
from stateward.store.intervals import OBSERVED, RECORDED, Interval, Used

_READ: Final = Policy("stateward:usage:read", Role.READER)
#: Instances of a page when nothing is said.
_PAGE: Final = 1000


class IntervalView(msgspec.Struct, frozen=True, kw_only=True):
    """A state from when to when, also outside of the time asked for; ``ended`` null: it is so now."""

    state: str
    began: str
    ended: str | None


class InstanceUsage(msgspec.Struct, frozen=True, kw_only=True):
    """An instance's seconds in each state within the time asked for."""

    instance_id: str
    instance_name: str
    project_id: str
    #: By vm state.
    recorded: dict[str, float]
    #: By what its host saw: running, shutoff, missing …; unknown where nobody looked.
    observed: dict[str, float]
    #: Only when they are asked for.
    recorded_intervals: list[IntervalView] | None
    observed_intervals: list[IntervalView] | None


class UsageView(msgspec.Struct, frozen=True, kw_only=True, rename={"begin": "from", "end": "to"}):
    """Instances that were there within a time, oldest first."""

    begin: str
    end: str
    instances: list[InstanceUsage]
    links: PageLinks


async def _usage(call: Call) -> Response:
    params = call.request.query_params
    project = params.get("project")
    if project is not None and not call.token.is_admin:
        raise Forbidden("stateward:usage:read:all_projects")
    now = call.services.clock.now()
    begin = time_asked_for(params["from"], "from") if "from" in params else _month(now)
    if begin >= now:
        raise Invalid("The time 'from' is still to come: nothing of it has happened yet.")
    # What has not happened is not counted.
    end = min(time_asked_for(params["to"], "to") if "to" in params else now, now)
    if begin >= end:
        raise Invalid("The time ends before it begins: 'from' must be before 'to'.")
    exact = yes_or_no(params.get("intervals", "false"), "intervals")
    most = call.services.max_limit
    limit = whole_number(params.get("limit", "0"), "limit", most=most) or min(_PAGE, most)

    def work(connection: sa.Connection) -> tuple[list[Used], dict[str, list[Interval]]]:
        found = intervals.page(
            connection,
            begin=begin,
            end=end,
            project_id=project if call.token.is_admin else call.visible_project,
            instance_id=params.get("instance"),
            marker=params.get("marker"),
            limit=limit + 1,
        )
        ids = [each.id for each in found[:limit]]
        return found, intervals.of_instances(connection, ids, begin=begin, end=end)

    try:
        found, were = await call.services.database.read(work)
    except LookupError as error:
        raise Invalid(f"The marker {error.args[0]!r} names no instance.") from None
    following = None
    if len(found) > limit:
        query = {**params, "from": iso_time(begin), "to": iso_time(end), "marker": found[limit - 1].id}
        following = f"{call.base}/v1/usage?{urlencode(query)}"
    return reply(
        UsageView(
            begin=iso_time(begin),
            end=iso_time(end),
            instances=[_view(each, were[each.id], begin, end, exact=exact) for each in found[:limit]],
            links=PageLinks(next=following),
        )
    )


def _view(used: Used, were: Sequence[Interval], begin: float, end: float, *, exact: bool) -> InstanceUsage:
    recorded = [each for each in were if each.kind == RECORDED]
    observed = [each for each in were if each.kind == OBSERVED]
    return InstanceUsage(
        instance_id=used.id,
        instance_name=used.name,
        project_id=used.project_id,
        recorded=_seconds(recorded, begin, end),
        observed=_seconds(observed, begin, end),
        recorded_intervals=_views(recorded) if exact else None,
        observed_intervals=_views(observed) if exact else None,
    )


def _seconds(were: Sequence[Interval], begin: float, end: float) -> dict[str, float]:
    found: dict[str, float] = {}
    for each in were:
        ended = end if each.ended is None else min(each.ended, end)
        found[each.state] = found.get(each.state, 0.0) + max(0.0, ended - max(each.began, begin))
    return {state: round(seconds, 6) for state, seconds in found.items()}


def _views(were: Sequence[Interval]) -> list[IntervalView]:
    return [
        IntervalView(
            state=each.state,
            began=iso_time(each.began),
            ended=None if each.ended is None else iso_time(each.ended),
        )
        for each in were
    ]


def _month(now: float) -> float:
    """Return when the month began, in UTC."""
    today = dt.datetime.fromtimestamp(now, dt.UTC)
    return today.replace(day=1, hour=0, minute=0, second=0, microsecond=0).timestamp()


RESOURCES: Final[dict[str, dict[str, Resource]]] = {
    "/usage": {
        "GET": Resource(
            handler=_usage,
            summary="How long each instance was in which state, recorded and observed, in seconds.",
            policy=_READ,
            answer=UsageView,
            query={
                "from": "From this time on (ISO 8601; UTC without a zone); the month's begin when it is not given.",
                "to": "Up to this time; now when it is not given.",
                "project": "Only this project's instances; for administrators.",
                "instance": "Only this one (its id).",
                "intervals": "true: also each state's exact begin and end.",
                "limit": f"So many instances at most; {_PAGE} when it is not given.",
                "marker": "Those after the instance with this id.",
            },
        )
    },
}
