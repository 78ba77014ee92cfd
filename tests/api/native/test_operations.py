"""``/v1/operations``: what is shown to whom, how lists are narrowed, and what an order's answer says."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import pytest

from stateward.api.native.routes import RESOURCES
from stateward.domain.actions import BY_KEY
from stateward.domain.locks import ActorKind
from stateward.domain.records import OperationState
from stateward.domain.steps import STEP_SAYS, Step
from tests.api.native.bench import Api
from tests.rows import NOW

NOWHERE = "11111111-1111-1111-1111-111111111111"


async def test_an_operation_that_waits(api: Api) -> None:
    """All that a person wants to know of it."""
    instance_id = await api.desk.add(metadata={"os_shutdown_timeout": "30"})
    operation = await api.stop(instance_id)
    api.desk.clock.at = NOW + 12.5
    await api.waits(operation, left=17.5, asked=12.5)
    shown = await api("GET", f"/v1/operations/{operation.id}")
    here = f"http://cloud/v1/operations/{operation.id}"
    assert (shown.status, shown.body) == (
        200,
        {
            "id": operation.id,
            "action": "stop",
            "state": "running",
            "final": False,
            "instance_id": instance_id,
            "instance_name": "web",
            "project_id": "p",
            "actor": {"kind": "member", "user_id": "a member", "project_id": "p"},
            "request_id": "req-1",
            "host": None,
            "started_at": "2023-11-14T22:13:20.000000Z",
            "finished_at": None,
            "message": None,
            "shutdown": {
                "seconds": 30,
                "seconds_from": "metadata",
                "at_deadline": "force",
                "at_deadline_from": "default",
            },
            "progress": {
                "step": "shut_down",
                "says": STEP_SAYS[Step.SHUT_DOWN],
                "number": 1,
                "of": 2,
                "waits_for": "guest",
                "deadline": "2023-11-14T22:13:50.000000Z",
                "seconds_left": 17.5,
                "signalled": True,
                "signalled_at": "2023-11-14T22:13:20.000000Z",
                "signalled_by": "power-button",
                "reported_at": "2023-11-14T22:13:32.500000Z",
            },
            "order": None,
            "notice": None,
            "links": {
                "self": here,
                "events": f"{here}/events",
                "server": f"http://cloud/compute/v2.1/servers/{instance_id}",
            },
        },
    )


async def test_the_seconds_left_are_as_of_the_answer(api: Api) -> None:
    """They go on when the agent says nothing new, end at 0, and are gone with the operation's end."""
    operation = await api.stop()
    await api.waits(operation, left=10)
    path, left = f"/v1/operations/{operation.id}", list[Any]()
    for seconds in (4.04, 100):
        api.desk.clock.at = NOW + seconds
        left.append((await api("GET", path)).body["progress"]["seconds_left"])
    await api.ends(operation)
    ended = (await api("GET", path)).body
    assert (left, ended["progress"]["seconds_left"], ended["progress"]["waits_for"]) == (
        [6.0, 0.0],
        None,
        None,
    )
    assert (ended["state"], ended["final"], ended["finished_at"]) == (
        "succeeded",
        True,
        "2023-11-14T22:15:00.000000Z",
    )


async def test_the_host_is_the_providers_to_know(api: Api) -> None:
    """Administrators see it."""
    operation = await api.stop()
    shown = await api("GET", f"/v1/operations/{operation.id}", by="admin")
    assert shown.body["host"] == "h"


@pytest.mark.parametrize(
    ("method", "rest"),
    [("GET", ""), ("GET", "/events"), ("POST", "/cancel"), ("POST", "/escalate"), ("POST", "/extend")],
)
async def test_another_projects_operation_does_not_exist(api: Api, method: str, rest: str) -> None:
    """Nor does one that nobody has."""
    operation = await api.stop()
    body = {"seconds": 50} if rest == "/extend" else None
    for by, operation_id in (("stranger", operation.id), ("member", NOWHERE)):
        answer = await api(method, f"/v1/operations/{operation_id}{rest}", body, by=by)
        assert (answer.status, answer.detail) == (404, f"Operation {operation_id} could not be found.")


async def test_what_the_provider_does_to_a_server_is_seen_by_its_project(api: Api) -> None:
    """It is about their server; it is theirs to see and not to control."""
    operation = await api.stop(kind=ActorKind.ADMIN)
    shown = await api("GET", f"/v1/operations/{operation.id}")
    assert (shown.status, shown.body["actor"]["kind"]) == (200, "admin")
    refused = await api("POST", f"/v1/operations/{operation.id}/cancel")
    assert refused.status == 403


async def test_who_may_only_read(api: Api) -> None:
    """A reader reads."""
    operation = await api.stop()
    assert (await api("GET", f"/v1/operations/{operation.id}", by="reader")).status == 200
    refused = await api("POST", f"/v1/operations/{operation.id}/cancel", by="reader")
    message = "Policy doesn't allow stateward:operations:control to be performed."
    assert (refused.status, refused.detail) == (403, message)


@pytest.mark.parametrize("by", [None, "nobody"])
async def test_without_a_good_token(api: Api, by: str | None) -> None:
    """It is asked for one."""
    answer = await api("GET", "/v1/operations", by=by)
    assert (answer.status, answer.headers["www-authenticate"]) == (401, "Keystone")
    assert answer.detail == "The request you have made requires authentication."


async def test_lists(api: Api) -> None:
    """Each filter narrows; the newest comes first."""
    ours, theirs = await api.desk.add(), await api.desk.add(project_id="q")
    made = list[str]()
    for at, instance_id, action in (
        (0, ours, "stop"),
        (10, theirs, "stop"),
        (20, ours, "delete"),
    ):
        api.desk.clock.at = NOW + at
        made.append((await api.desk.admit(action, instance_id, ActorKind.ADMIN)).operation.id)
    # The delete overtook the stop, which so ended at its time.
    mine, other, deletion = made
    for query, by, expected in (
        ("", "member", [deletion, mine]),
        ("", "stranger", [other]),
        ("", "admin", [deletion, other, mine]),
        ("?project=q", "admin", [other]),
        (f"?instance={theirs}", "admin", [other]),
        (f"?instance={theirs}", "member", []),
        ("?state=superseded", "member", [mine]),
        ("?state=superseded&state=accepted", "admin", [deletion, other, mine]),
        ("?action=delete", "member", [deletion]),
        ("?since=2023-11-14T22:13:31", "admin", [deletion, mine]),
        ("?since=2023-11-14T22:13:40.5Z", "admin", []),
        (f"?marker={other}", "admin", [mine]),
    ):
        answer = await api("GET", f"/v1/operations{query}", by=by)
        assert ([each["id"] for each in answer.body["operations"]], answer.body["links"]) == (
            expected,
            {"next": None},
        ), (query, by)


async def test_pages(api: Api) -> None:
    """Each leads to the next; those of one moment are told apart by their ids."""
    made = [(await api.stop()).id for _ in range(5)]
    path: str | None = "/v1/operations?state=accepted&limit=2"
    seen = list[str]()
    while path is not None:
        answer = await api("GET", path)
        seen += [each["id"] for each in answer.body["operations"]]
        path = answer.body["links"]["next"]
        path = None if path is None else path.removeprefix("http://cloud")
    assert seen == sorted(made, reverse=True)


@pytest.mark.parametrize(
    ("query", "detail"),
    [
        ("limit=x", "Invalid input for query parameter limit: 'x' is not a whole number from 0."),
        ("limit=-1", "Invalid input for query parameter limit: '-1' is not a whole number from 0."),
        ("marker=x", "The marker 'x' names no operation."),
        (
            "state=done",
            (
                "There is no state 'done' of operations; there are: "
                "accepted, running, succeeded, failed, superseded, cancelled."
            ),
        ),
        ("action=x", f"There is no action 'x'; there are: {', '.join(sorted(BY_KEY))}."),
        (
            "since=0001-01-01T00:00:00%2B14:00",
            (
                "Invalid input for query parameter since: '0001-01-01T00:00:00+14:00' is no time; write one of "
                "ISO 8601, as 2030-01-31T18:00:00Z."
            ),
        ),
        (
            "since=x",
            "Invalid input for query parameter since: 'x' is no time; write one of ISO 8601, as 2030-01-31T18:00:00Z.",
        ),
        (
            "colour=red",
            (
                "The query parameter 'colour' is not known here; known are: "
                "instance, state, action, project, since, limit, marker."
            ),
        ),
    ],
)
async def test_a_list_that_cannot_be(api: Api, query: str, detail: str) -> None:
    """It is said which word is wrong."""
    answer = await api("GET", f"/v1/operations?{query}")
    assert (answer.status, answer.detail) == (400, detail)


async def test_anothers_operation_is_no_marker(api: Api) -> None:
    """Nor does the refusal tell that it exists."""
    operation = await api.stop()
    answer = await api("GET", f"/v1/operations?marker={operation.id}", by="stranger")
    assert (answer.status, answer.detail) == (400, f"The marker '{operation.id}' names no operation.")


async def test_only_administrators_ask_for_a_project(api: Api) -> None:
    """Members have one."""
    assert (await api("GET", "/v1/operations?project=p")).status == 403


async def test_extending(api: Api) -> None:
    """The order is shown at once, before the host has it; more than the cap is cut to it."""
    operation = await api.stop()
    path = f"/v1/operations/{operation.id}/extend"
    answer = await api("POST", path, {"seconds": 90})
    assert (answer.status, answer.body["order"]) == (202, {"command": "extend", "seconds": 90})
    assert answer.body["notice"] is None
    assert (await api("POST", path, {"seconds": 10_000})).body["order"]["seconds"] == 100
    less = await api("POST", path, {"seconds": 70})
    assert (less.status, less.detail) == (
        409,
        f"The guest of operation {operation.id} gets 100 seconds already; it can be given more, not less.",
    )


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        ({}, "The request's body cannot be used: it needs `seconds`."),
        (
            {"seconds": "5"},
            "The request's body cannot be used: `seconds` must be a whole number, not a text.",
        ),
        ({"seconds": 5, "x": 1}, "The request's body cannot be used: it has no `x`."),
        (b"[]", "The request's body cannot be used: it must be an object, not a list."),
        (b"{", "The request's body cannot be used: Input data was truncated"),
        (b"\xff", "The request's body cannot be used: JSON is malformed: invalid character (byte 0)"),
        (
            {"seconds": 0},
            "Invalid input for field/attribute seconds. Value: 0. It must be from 1 up",
        ),
    ],
)
async def test_an_extension_that_cannot_be(api: Api, body: Any, detail: str) -> None:
    """It is said which member is wrong."""
    operation = await api.stop()
    answer = await api("POST", f"/v1/operations/{operation.id}/extend", body)
    assert (answer.status, answer.detail) == (400, detail)


async def test_the_largest_number(api: Api) -> None:
    """It is cut like every other."""
    operation = await api.stop()
    answer = await api("POST", f"/v1/operations/{operation.id}/extend", {"seconds": 10**40})
    assert (answer.status, answer.body["order"]["seconds"]) == (202, 100)


@pytest.mark.parametrize("command", ["cancel", "escalate"])
async def test_orders_without_options(api: Api, command: str) -> None:
    """They take nothing, and say so."""
    operation = await api.stop()
    path = f"/v1/operations/{operation.id}/{command}"
    refused = await api("POST", path, {"now": True})
    message = "The request's body cannot be used: it has no `now`."
    assert (refused.status, refused.detail) == (400, message)
    for body in (None, b"{}"):
        answer = await api("POST", path, body)
        assert (answer.status, answer.body["order"]) == (202, {"command": command, "seconds": None})


async def test_cancelling_is_honest(api: Api) -> None:
    """A guest that was asked cannot be unasked (B4)."""
    quiet, asked = await api.stop(), await api.stop()
    await api.waits(quiet, asked=None)
    await api.waits(asked, asked=3)
    notices = [
        (await api("POST", f"/v1/operations/{each.id}/cancel")).body["notice"] for each in (quiet, asked)
    ]
    assert notices == [
        "The guest has not been asked to shut down, as far as is known.",
        (
            "The guest was already asked to shut down, at 2023-11-14T22:13:17.000000Z, and cannot be unasked: "
            "it may still go off by itself."
        ),
    ]


async def test_what_is_finished_takes_no_orders(api: Api) -> None:
    """It is said how it ended."""
    operation = await api.stop()
    await api.ends(operation, OperationState.FAILED, "no")
    answer = await api("POST", f"/v1/operations/{operation.id}/cancel")
    detail = f"Operation {operation.id} is finished (failed); it cannot be told to cancel any more."
    assert (answer.status, answer.detail) == (409, detail)


async def test_an_order_is_given_once_for_a_key(api: Api) -> None:
    """The second answer is the first's, to the byte; another body with the key is refused."""
    operation = await api.stop()
    path = f"/v1/operations/{operation.id}/extend"
    first = await api("POST", path, {"seconds": 70}, idempotency_key="k")
    await api("POST", path, {"seconds": 80})
    again = await api("POST", path, {"seconds": 70}, idempotency_key="k")
    assert (again.status, again.body) == (first.status, first.body)
    assert again.headers["idempotency-replayed"] == "true"
    assert (await api("POST", path, {"seconds": 71}, idempotency_key="k")).status == 422
    assert (await api("POST", path, {"seconds": 90}, idempotency_key="k k")).status == 400
    assert (await api("GET", f"/v1/operations/{operation.id}")).body["order"]["seconds"] == 80


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/nothing", 404),
        ("GET", "/v1/operations/", 404),
        ("DELETE", "/v1/operations/x", 405),
        ("PUT", "/v1/operations", 405),
        ("GET", "/v1/operations/x/cancel", 405),
        ("GET", "/v1/operations/a%00b", 404),
        ("GET", "/v1/operations/x\x00y", 404),
        ("GET", "/v1/operations?instance=%00", 404),
    ],
)
async def test_other_addresses(api: Api, method: str, path: str, status: int) -> None:
    """They are refused in the format of all refusals."""
    answer = await api(method, path)
    assert answer.status == status
    assert answer.detail


async def test_a_body_that_is_too_large(api: Api) -> None:
    """It is refused before it is read whole."""
    operation = await api.stop()
    for operation_id in (NOWHERE, operation.id):
        answer = await api("POST", f"/v1/operations/{operation_id}/extend", b" " * (1024 * 1024 + 1))
        assert (answer.status, answer.detail) == (413, "The request's body is larger than 1048576 bytes.")


async def test_the_document(api: Api) -> None:
    """Anybody may read it; every reference in it leads somewhere, and every path of the API is in it."""
    described = (await api("GET", "/v1/openapi.json", by=None)).body
    assert {path: sorted(methods) for path, methods in described["paths"].items()} == {
        path: sorted(method.lower() for method in methods) for path, methods in RESOURCES.items()
    }
    schemas = described["components"]["schemas"]

    references = re.findall(r'"\$ref":"#/components/schemas/(\w+)"', msgspec.json.encode(described).decode())
    assert set(references) <= set(schemas)
    operation = await api.stop()
    await api.waits(operation)
    shown = (await api("GET", f"/v1/operations/{operation.id}")).body
    assert set(shown) == set(schemas["OperationView"]["properties"])
    root = (await api("GET", "/v1/", by=None)).body
    assert root == {
        "operations": "http://cloud/v1/operations",
        "openapi": "http://cloud/v1/openapi.json",
    }
