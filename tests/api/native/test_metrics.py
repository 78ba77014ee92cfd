"""/metrics: what there is, what happened in all, and who may read it."""

from __future__ import annotations

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.requests import Request
from starlette.responses import Response

from stateward.api.faults import status_of
from stateward.api.metrics import Metrics
from stateward.domain.locks import ActorKind
from stateward.operations.webhooks import Wanted
from tests.api.native.bench import Api
from tests.rows import actor


async def scrape(
    api: Api, headers: dict[str, str], *, client: str = "10.0.0.1", local: bool = False
) -> Response:
    services = msgspec.structs.replace(api.services, metrics_local=local)
    scope = {
        "type": "http",
        "method": "GET",
        "path": "/metrics",
        "query_string": b"",
        "client": (client, 1),
        "headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()],
    }
    return await Metrics(services).answer(Request(scope))


async def samples(api: Api) -> dict[str, float]:
    """Return every sample, by its name and labels as they are written."""
    answer = await scrape(api, {"x_auth_token": "admin"})
    assert answer.status_code == 200, answer.body
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(bytes(answer.body).decode()):
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


async def test_what_there_is(api: Api) -> None:
    """Instances, unfinished operations, hosts and webhooks, as they are now."""
    await api.desk.add_host("h")
    await api.stop()
    await api.desk.add()
    await api.webhooks.add(Wanted(name="pager", url="https://example.org/"), actor(ActorKind.ADMIN))
    await api.stop()
    api.desk.clock.at += 7
    found = await samples(api)
    assert found["stateward_instances{state=active}"] == 3
    assert found["stateward_instances{state=stopped}"] == 0
    assert found["stateward_operations_unfinished{action=stop}"] == 2
    assert found["stateward_oldest_unfinished_operation_seconds"] == 7
    assert found["stateward_host_heartbeat_age_seconds{host=h}"] == 7
    assert found["stateward_hosts{condition=up}"] == 1
    assert found["stateward_hosts_frozen{reason=sweep}"] == 0
    # Its own making, and the stop after it.
    assert found["stateward_webhook_backlog_records{webhook=pager}"] == 2
    assert found["stateward_webhook_dead_letters{webhook=pager}"] == 0


async def test_totals_go_over_restarts(api: Api) -> None:
    """Each scrape counts on from where the last one was, whoever answered it."""
    await api.stop()
    assert (await samples(api))["stateward_operations_total{action=stop,outcome=accepted}"] == 1
    await api.stop()
    await api.stop()
    for _life in range(2):
        found = await samples(api)
        assert found["stateward_operations_total{action=stop,outcome=accepted}"] == 3
        assert found["stateward_trail_uncounted_records"] == 0


async def test_refusals_are_counted_by_reason(api: Api) -> None:
    """As they are answered."""
    before = (await samples(api)).get("stateward_refusals_total{reason=invalid}", 0)
    await api("GET", "/v1/usage?from=x")
    assert (await samples(api))["stateward_refusals_total{reason=invalid}"] == before + 1


async def test_a_fault_of_its_own_is_no_refusal(api: Api) -> None:
    """It is not answered as one either."""
    assert status_of(OverflowError()) is None
    assert "stateward_refusals_total{reason=overflow_error}" not in await samples(api)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"x_auth_token": "admin"}, 200),
        ({"authorization": "Bearer admin"}, 200),
        ({"x_auth_token": "member"}, 403),
        ({"x_auth_token": "nobody"}, 401),
        ({"authorization": "Basic admin"}, 401),
        ({}, 401),
    ],
)
async def test_who_may_scrape(api: Api, headers: dict[str, str], status: int) -> None:
    """Administrators; a refusal is a fault as the Compute API's."""
    answer = await scrape(api, headers, client="127.0.0.1")
    assert answer.status_code == status
    if status != 200:
        assert msgspec.json.decode(answer.body)


@pytest.mark.parametrize(
    ("client", "headers", "status"),
    [
        ("127.0.0.1", {}, 200),
        ("::1", {}, 200),
        ("10.0.0.1", {}, 401),
        ("a name", {}, 401),
        ("127.0.0.1", {"x_forwarded_for": "10.0.0.1"}, 401),
    ],
)
async def test_this_machine(api: Api, client: str, headers: dict[str, str], status: int) -> None:
    """If the setting says so, and not through a proxy."""
    assert (await scrape(api, headers, client=client, local=True)).status_code == status
