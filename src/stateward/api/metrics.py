"""``/metrics``: figures in Prometheus' text format, for administrators, or for this machine if a setting says so.

What there is now is asked of the database when it is scraped; what happened in all is counted on from the trail and
kept, so totals go over restarts. Only refusals are counted in this process: most of them leave no record.
"""

from __future__ import annotations

import asyncio
import ipaddress
import uuid
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Final

import sqlalchemy as sa
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.metrics_core import Metric
from starlette.requests import Request
from starlette.responses import Response

from stateward.api.compute.services import Services
from stateward.api.faults import REFUSED, Unauthorized, fault, status_of
from stateward.api.policy import allow
from stateward.domain.actions import Policy, Role
from stateward.domain.hosts import Condition, Frozen
from stateward.domain.states import VmState
from stateward.domain.tallies import BOUNDS, Histogram, Tally
from stateward.store import figures
from stateward.store.figures import Figures

_READ: Final = Policy("stateward:metrics:read", Role.ADMIN)
#: Records that are counted at once, and in one scrape at most: the loop is busy with the first, a scraper waits for the
#: second.
_BATCH: Final = 500
_MOST: Final = 20_000


class Metrics:
    """Answers scrapes."""

    def __init__(self, services: Services) -> None:
        """Keep the services."""
        self._services = services
        self._one_at_a_time = asyncio.Lock()

    async def answer(self, request: Request) -> Response:
        """Answer one."""
        try:
            await self._may(request)
            async with self._one_at_a_time:
                tally = await self._counted()
                found = await self._services.database.read(figures.figures)
        except Exception as error:
            known = status_of(error)
            if known is None:
                raise
            response = fault(*known)
            response.headers["x-openstack-request-id"] = f"req-{uuid.uuid4()}"
            return response
        registry = CollectorRegistry()
        registry.register(_Collector(found, tally, self._services.clock.now()))
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_PLAIN_0_0_4)

    async def _may(self, request: Request) -> None:
        """Let administrators in, and this machine if the setting says so.

        Raises:
            Forbidden: it is somebody else.
            Unauthorized: nobody has said who it is.
        """
        if self._services.metrics_local and _is_local(request):
            return
        scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
        token = request.headers.get("x-auth-token") or (bearer if scheme.lower() == "bearer" else "")
        if not token:
            raise Unauthorized
        allow(await self._services.identity.verify(token), _READ)

    async def _counted(self) -> Tally:
        """Count what came to the trail since the last scrape, and keep that."""
        database = self._services.database
        await database.seal()
        counted = await database.read(figures.tally)
        since = counted.number
        for _batch in range(_MOST // _BATCH):
            after = counted.number
            more = await database.read(lambda connection: figures.lines(connection, after, _BATCH))  # noqa: B023 (read before the loop goes on)
            counted.count(more)
            if len(more) < _BATCH:
                break
            await asyncio.sleep(0)
        if counted.number > since:

            def work(connection: sa.Connection) -> bool:
                return figures.keep(connection, counted, since=since)

            # Who counted on meanwhile kept the same numbers, or more: these are right too.
            await database.write(work)
        return counted


def _is_local(request: Request) -> bool:
    """Say whether a request comes from this machine itself, and not through a proxy on it."""
    forwarded = {"forwarded", "x-forwarded-for", "x-real-ip", "via"} & set(request.headers)
    if request.client is None or forwarded:
        return False
    try:
        return ipaddress.ip_address(request.client.host).is_loopback
    except ValueError:
        return False


class _Collector:
    """Puts figures into Prometheus' families."""

    def __init__(self, found: Figures, tally: Tally, now: float) -> None:
        self._found = found
        self._tally = tally
        self._now = now

    def collect(self) -> Iterator[Metric]:
        """Return every family."""
        yield from self._now_families()
        yield from self._hosts()
        yield from self._webhooks()
        yield from self._totals()

    def _now_families(self) -> Iterator[Metric]:
        found = self._found
        yield _gauge(
            "stateward_instances",
            "Instances by recorded state.",
            ("state",),
            (
                ((state.value,), found.states.get(state.value, 0))
                for state in VmState
                if state is not VmState.DELETED
            ),
        )
        yield _gauge(
            "stateward_operations_unfinished",
            "Operations without an end, by action.",
            ("action",),
            (((action,), count) for action, (count, _began) in sorted(found.unfinished.items())),
        )
        began = [began for _count, began in found.unfinished.values()]
        yield _gauge(
            "stateward_oldest_unfinished_operation_seconds",
            "How long the oldest operation without an end has been under way; 0 when there is none.",
            (),
            [((), max(self._now - min(began), 0.0) if began else 0.0)],
        )

    def _hosts(self) -> Iterator[Metric]:
        hosts = self._found.hosts
        yield _gauge(
            "stateward_host_heartbeat_age_seconds",
            "Seconds since a host was heard of.",
            ("host",),
            (
                ((host.name,), max(self._now - host.seen_at, 0.0))
                for host in hosts
                if host.seen_at is not None
            ),
        )
        yield _gauge(
            "stateward_hosts",
            "Hosts by condition.",
            ("condition",),
            (((each.value,), sum(host.condition is each for host in hosts)) for each in Condition),
        )
        yield _gauge(
            "stateward_hosts_frozen",
            "Hosts whose instances are not judged now, by reason; 'sweep' is the open mass-change breaker.",
            ("reason",),
            (((each.value,), sum(host.frozen is each for host in hosts)) for each in Frozen),
        )

    def _webhooks(self) -> Iterator[Metric]:
        found = self._found
        for name, says, values in (
            (
                "stateward_webhook_backlog_records",
                "Records of the trail that a webhook has still to be told of, as far as they concern it.",
                [((each.name,), float(max(found.head - each.reached.number, 0))) for each in found.webhooks],
            ),
            (
                "stateward_webhook_dead_letters",
                "Events that could not be delivered to a webhook.",
                [((each.name,), float(found.dead_letters.get(each.id, 0))) for each in found.webhooks],
            ),
            (
                "stateward_webhook_failing_seconds",
                "For how long nothing could be delivered to a webhook.",
                [
                    ((each.name,), 0.0 if each.failing_since is None else self._now - each.failing_since)
                    for each in found.webhooks
                ],
            ),
            (
                "stateward_webhook_enabled",
                "Whether a webhook is told.",
                [((each.name,), float(each.enabled)) for each in found.webhooks],
            ),
        ):
            yield _gauge(name, says, ("webhook",), values)

    def _totals(self) -> Iterator[Metric]:
        tally = self._tally
        yield _counter(
            "stateward_operations",
            "Operations by action and what became of them, ever.",
            ("action", "outcome"),
            (
                ((action, outcome), count)
                for action, outcomes in sorted(tally.operations.items())
                for outcome, count in sorted(outcomes.items())
            ),
        )
        yield _counter(
            "stateward_conflicts",
            "Guests found otherwise than recorded, by verdict, ever.",
            ("verdict", "expected", "observed"),
            ((tuple(key.split("|")), count) for key, count in sorted(tally.verdicts.items())),
        )
        yield _counter(
            "stateward_lock_refusals",
            "Requests refused by a lock, by action, ever.",
            ("action",),
            (((action,), count) for action, count in sorted(tally.refused.items())),
        )
        yield _counter("stateward_alerts", "Alerts, ever.", (), [((), tally.alerts)])
        yield _counter(
            "stateward_refusals",
            "Requests refused, by reason, since this process began.",
            ("reason",),
            (((reason,), count) for reason, count in sorted(REFUSED.items())),
        )
        yield _histogram(
            "stateward_detect_seconds", "From when an agent saw a deviation to the verdict.", tally.detect
        )
        yield _histogram(
            "stateward_restore_seconds",
            "From when an agent saw a guest go to when it was back.",
            tally.restore,
        )
        yield _gauge(
            "stateward_trail_uncounted_records",
            "Records that totals do not have yet: of a trail that was long before the first scrape.",
            (),
            [((), max(self._found.head - tally.number, 0))],
        )


_Values = Iterable[tuple[Sequence[str], float]]


def _gauge(name: str, says: str, labels: Sequence[str], values: _Values) -> Metric:
    family = GaugeMetricFamily(name, says, labels=labels)
    for label, value in values:
        family.add_metric(label, value)
    return family


def _counter(name: str, says: str, labels: Sequence[str], values: _Values) -> Metric:
    family = CounterMetricFamily(name, says, labels=labels)
    for label, value in values:
        family.add_metric(label, value)
    return family


def _histogram(name: str, says: str, counted: Histogram) -> Metric:
    bounds = [*map(str, BOUNDS), "+Inf"]
    buckets = list(zip(bounds, map(float, accumulate(counted.buckets)), strict=True))
    return HistogramMetricFamily(name, says, buckets=buckets, sum_value=counted.sum)
