"""Usage over /v1: seconds in each state, exact intervals, whose they are, and what cannot be asked."""

from __future__ import annotations

from typing import Any

import pytest

from stateward.api.http import iso_time
from stateward.domain.states import Observed, VmState
from tests.api.native.bench import Api
from tests.rows import NOW


async def lives(api: Api, **more: Any) -> str:
    """Have an instance run for 10 s, be stopped for 20 s, and run since then."""
    one = await api.desk.add(**more)
    for seconds, state in ((10, VmState.STOPPED), (30, VmState.ACTIVE)):
        await api.desk.change(one, {"vm_state": state.value, "updated_at": NOW + seconds})
    api.desk.clock.at = NOW + 100
    return one


def span(begin: float, end: float) -> str:
    return f"from={iso_time(NOW + begin)}&to={iso_time(NOW + end)}"


async def test_seconds_in_each_state(api: Api) -> None:
    """What is open counts up to now; what was seen is told apart from what is recorded."""
    one = await lives(api)
    await api.desk.change(
        one, {"observed": Observed.SHUTOFF.value, "observed_at": NOW + 95, "updated_at": NOW + 96}
    )
    answer = await api("GET", f"/v1/usage?from={iso_time(NOW - 5)}")
    assert answer.body == {
        "from": iso_time(NOW - 5),
        "to": iso_time(NOW + 100),
        "instances": [
            {
                "instance_id": one,
                "instance_name": "web",
                "project_id": "p",
                "recorded": {"active": 80.0, "stopped": 20.0},
                "observed": {"running": 95.0, "shutoff": 5.0},
                "recorded_intervals": None,
                "observed_intervals": None,
            }
        ],
        "links": {"next": None},
    }


@pytest.mark.parametrize(
    ("begin", "end", "recorded"),
    [
        (0, 10, {"active": 10.0}),
        (5, 15, {"active": 5.0, "stopped": 5.0}),
        (12, 13.5, {"stopped": 1.5}),
        (90, 500, {"active": 10.0}),
        (-10, 0, None),
    ],
)
async def test_only_what_lies_within(
    api: Api, begin: float, end: float, recorded: dict[str, float] | None
) -> None:
    """Cut off at both ends, and at now; who was not there is left out."""
    await lives(api)
    found = (await api("GET", f"/v1/usage?{span(begin, end)}")).body["instances"]
    assert [each["recorded"] for each in found] == ([] if recorded is None else [recorded])


async def test_exact_intervals(api: Api) -> None:
    """As they were, not cut off."""
    await lives(api)
    (found,) = (await api("GET", f"/v1/usage?{span(12, 40)}&intervals=true")).body["instances"]
    assert found["recorded_intervals"] == [
        {"state": "stopped", "began": iso_time(NOW + 10), "ended": iso_time(NOW + 30)},
        {"state": "active", "began": iso_time(NOW + 30), "ended": None},
    ]
    assert found["observed_intervals"] == [{"state": "running", "began": iso_time(NOW), "ended": None}]


async def test_whose_they_are(api: Api) -> None:
    """A project's own; an operator's all of them, or those of a project, page by page."""
    ids = [await lives(api, project_id=project) for project in ("p", "q", "p")]
    first = f"from={iso_time(NOW)}"

    async def listed(path: str, by: str) -> list[str]:
        body = (await api("GET", path, by=by)).body
        return [each["instance_id"] for each in body["instances"]]

    assert await listed(f"/v1/usage?{first}", "member") == [ids[0], ids[2]]
    assert await listed(f"/v1/usage?{first}", "admin") == ids
    assert await listed(f"/v1/usage?{first}&project=q", "admin") == [ids[1]]
    assert await listed(f"/v1/usage?{first}&instance={ids[1]}", "member") == []
    page = (await api("GET", f"/v1/usage?{first}&limit=2", by="admin")).body
    following = page["links"]["next"].removeprefix("http://cloud")
    assert await listed(following, "admin") == ids[2:]


async def test_the_calendar_s_first_moment(api: Api) -> None:
    """It is a time like any other, also where the next page is asked for from it."""
    for _ in range(2):
        await api.desk.add()
    api.desk.clock.at = NOW + 100
    page = await api("GET", "/v1/usage?from=0001-01-01T00:00:00Z&limit=1")
    assert (page.status, page.body["from"]) == (200, "0001-01-01T00:00:00.000000Z")
    following = await api("GET", page.body["links"]["next"].removeprefix("http://cloud"))
    assert (following.status, len(following.body["instances"])) == (200, 1)


async def test_times_that_are_none(api: Api) -> None:
    """What is to come is not what ends before it begins."""
    turned = await api("GET", "/v1/usage?from=2020-01-02&to=2020-01-01")
    assert (turned.status, turned.detail) == (
        400,
        "The time ends before it begins: 'from' must be before 'to'.",
    )
    coming = await api("GET", "/v1/usage?from=2990-01-01&to=2990-02-01")
    assert (coming.status, coming.detail) == (
        400,
        "The time 'from' is still to come: nothing of it has happened yet.",
    )


@pytest.mark.parametrize(
    ("query", "by", "status"),
    [
        ("from=x", "member", 400),
        ("from=2030-01-02&to=2030-01-01", "member", 400),
        ("from=2990-01-01", "member", 400),
        ("from=0001-01-01T00:00:00%2B14:00", "member", 400),
        ("to=9999-12-31T23:59:59-14:00", "member", 400),
        ("marker=x", "member", 400),
        ("intervals=perhaps", "member", 400),
        ("limit=-1", "member", 400),
        ("project=q", "member", 403),
    ],
)
async def test_what_cannot_be_asked(api: Api, query: str, by: str, status: int) -> None:
    """With a sentence."""
    answer = await api("GET", f"/v1/usage?{query}", by=by)
    assert answer.status == status
    assert answer.detail.endswith((".", "'"))
