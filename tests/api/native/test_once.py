"""``Idempotency-Key`` on the POSTs of locks: the same answer, and one lock (B10)."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import pytest

from stateward.domain.records import OperationState
from tests.api.native.bench import Answer, Api

REPLAYED: Final = "idempotency-replayed"
#: By what is posted: the path, the body, who posts it, and the event that is in the trail once.
POSTS: Final[dict[str, tuple[str, dict[str, Any], str, str]]] = {
    "a lock": ("/v1/instances/{id}/locks", {"blocks": ["stop"]}, "member", "admitted"),
    "a lock that overtakes": ("/v1/instances/{id}/locks", {"overtake": True}, "member", "admitted"),
    "a hold": ("/v1/instances/{id}/holds", {"reason": "Case 7."}, "admin", "admitted"),
    "a project's lock": ("/v1/projects/p/locks", {"blocks": ["delete"]}, "member", "lock_placed"),
}


async def send(api: Api, what: str, instance_id: str, key: str = "k") -> Answer:
    """Post it under a key."""
    path, body, by, _event = POSTS[what]
    return await api("POST", path.format(id=instance_id), body, by=by, idempotency_key=key)


def said(answer: Answer) -> tuple[int, Any]:
    """What must be the same each time."""
    return answer.status, answer.body


@pytest.mark.parametrize("what", POSTS)
async def test_sent_again(api: Api, what: str) -> None:
    """The same answer, also when the lock was released since; another key places another lock."""
    instance_id = await api.desk.add()
    first = await send(api, what, instance_id)
    assert REPLAYED not in first.headers
    again = await send(api, what, instance_id)
    assert said(again) == said(first)
    assert again.headers[REPLAYED] == "true"
    locks = (await api("GET", f"/v1/instances/{instance_id}/locks")).body["locks"]
    assert len(locks) == 1
    events = [event for event, _action, _detail in await api.desk.audit()]
    assert events.count(POSTS[what][3]) == 1
    assert (await send(api, what, instance_id, key="another")).body != first.body
    locks = (await api("GET", f"/v1/instances/{instance_id}/locks")).body["locks"]
    assert len(locks) == 2


@pytest.mark.parametrize("what", POSTS)
async def test_eight_at_once(api: Api, what: str) -> None:
    """One places it; what the others get is its answer."""
    instance_id = await api.desk.add()
    answers = await asyncio.gather(*(send(api, what, instance_id) for _ in range(8)))
    assert [each.status for each in answers] == [answers[0].status] * 8
    lock = "hold" if what == "a hold" else "lock"
    assert len({each.body[lock]["id"] for each in answers}) == 1
    assert sum(REPLAYED not in each.headers for each in answers) == 1
    locks = (await api("GET", f"/v1/instances/{instance_id}/locks")).body["locks"]
    assert [each["id"] for each in locks] == [answers[0].body[lock]["id"]]


async def test_what_is_refused_is_not_kept(api: Api) -> None:
    """With the same key it may be tried again; another request with it is refused."""
    instance_id = await api.desk.add()
    path = f"/v1/instances/{instance_id}/locks"
    wrong = {"blocks": ["reboot"]}
    assert (await api("POST", path, wrong, idempotency_key="k")).status == 400
    placed = await api("POST", path, {"name": "a"}, idempotency_key="k")
    assert placed.status == 201
    other = await api("POST", path, {"name": "b"}, idempotency_key="k")
    assert (other.status, other.detail) == (
        422,
        "The Idempotency-Key k was used for another request already; a new request needs a new key.",
    )
    again = await api("POST", path, {"name": "a"}, idempotency_key="another")
    assert again.status == 409


async def test_a_leave_and_its_approval(api: Api) -> None:
    """One leave, so one operation; and an approval that was given is not refused as given already."""
    api = Api(api.desk.database, second_admin=True)
    instance_id = await api.desk.add()
    body = {"reason": "Case 7.", "shutdown": "none"}
    held = await api("POST", f"/v1/instances/{instance_id}/holds", body, by="admin")
    wanted = {"lock": held.body["hold"]["id"], "reason": "The court asked."}
    path = f"/v1/instances/{instance_id}/overrides"
    given = [await api("POST", path, wanted, by="admin", idempotency_key="k") for _ in range(2)]
    assert said(given[0]) == said(given[1])
    listed = await api("GET", path, by="admin")
    assert listed.body == {"overrides": [given[0].body]}
    approve = f"/v1/overrides/{given[0].body['id']}/approve"
    agreed = [await api("POST", approve, by="second", idempotency_key="k") for _ in range(2)]
    assert (agreed[0].status, said(agreed[0])) == (200, said(agreed[1]))


@pytest.mark.parametrize("mode", ["all", "continue"])
async def test_several_instances(api: Api, mode: str) -> None:
    """Are stopped once, though it is asked twice."""
    ids = [await api.desk.add() for _ in range(3)]
    body = {"action": "stop", "instances": ids, "mode": mode}
    first = await api("POST", "/v1/preflight", body, idempotency_key="k")
    assert first.status == 202
    for each in first.body["outcomes"]:
        await api.ends(await api.desk.operation(each["operation_id"]), OperationState.FAILED)
    again = await api("POST", "/v1/preflight", body, idempotency_key="k")
    assert said(again) == said(first)
    assert [len(await api.desk.operations(each)) for each in ids] == [1, 1, 1]
