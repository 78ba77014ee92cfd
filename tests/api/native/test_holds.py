"""``/v1/instances/{id}/holds`` and ``overrides``: exact answers, who may, who sees what, and bad input (R6)."""

from __future__ import annotations

from typing import Any, Final

import pytest

from stateward.domain.locks import ALL_CLASSES
from stateward.domain.records import ImageFacts
from stateward.store.engine import Database
from tests.api.native.bench import Api

NOWHERE: Final = "11111111-1111-1111-1111-111111111111"
AT: Final = "2023-11-14T22:13:20.000000Z"


@pytest.fixture
def careful(database: Database) -> Api:
    """Give an API that wants a second administrator's word."""
    return Api(database, second_admin=True)


async def hold(api: Api, instance_id: str, **body: Any) -> dict[str, Any]:
    """Place a hold and return it as it is shown to who placed it."""
    answer = await api("POST", f"/v1/instances/{instance_id}/holds", {"reason": "Case 7."} | body, by="admin")
    assert answer.status == 202, answer.body
    placed: dict[str, Any] = answer.body["hold"]
    return placed


async def test_a_hold(api: Api) -> None:
    """All that is said of it, to the provider and to the customer; released, the guest stays as it is."""
    instance_id = await api.desk.add()
    stop = await api.stop(instance_id)
    body = {"reason": "Case 7.", "ticket": "T-1", "name": "case 7", "shutdown": "forced"}
    answer = await api("POST", f"/v1/instances/{instance_id}/holds", body, by="admin")
    assert answer.status == 202
    held = answer.body["hold"]
    assert held == {
        "id": held["id"],
        "kind": "hold",
        "name": "case 7",
        "holder": "id-of-admin",
        "reason": "Case 7.",
        "ticket": "T-1",
        "blocks": ["all"],
        "placed_at": AT,
        "expires_at": None,
        "sealed": False,
        "off": True,
        "inherited": False,
        "project_id": None,
        "tag": None,
    }
    assert (answer.body["operation"]["action"], answer.body["confirmed"]) == ("hold_forced", False)
    assert (await api("GET", f"/v1/operations/{stop.id}")).body["state"] == "superseded"
    shown = await api("GET", f"/v1/instances/{instance_id}/locks")
    assert shown.body == {"locks": [{**held, "holder": None, "ticket": None}]}
    operation = await api("GET", f"/v1/operations/{answer.body['operation']['id']}")
    assert operation.body["actor"] == {"kind": "admin", "user_id": None, "project_id": None}
    path = f"/v1/instances/{instance_id}/holds/{held['id']}"
    refused = await api("DELETE", path)
    assert (refused.status, refused.detail) == (
        403,
        "Policy doesn't allow stateward:holds:release to be performed.",
    )
    assert (await api("DELETE", f"{path}?reason=Closed.", by="second")).status == 204
    assert (await api("GET", f"/v1/instances/{instance_id}/locks")).body == {"locks": []}


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({}, "it needs `reason`."),
        ({"reason": ""}, "`reason` must not be empty."),
        ({"reason": None}, "`reason` must be a text, not null."),
        ({"reason": "x" * 10_000}, "`reason` must have at most 255 characters."),
        (
            {"reason": "r", "shutdown": "soft"},
            "`shutdown` is 'soft', which is none of: clean, forced, none, suspend.",
        ),
        ({"reason": "r", "timeout": -1}, "`timeout` must be at least 0."),
        ({"reason": "r", "at_deadline": "fail"}, "`at_deadline` is 'fail', which is none of: force."),
        ({"reason": "r", "expires_at": AT}, "it has no `expires_at`."),
        ({"reason": "r", "blocks": ["stop"]}, "it has no `blocks`."),
    ],
)
async def test_a_hold_that_cannot_be(api: Api, body: dict[str, Any], says: str) -> None:
    """Is refused with what is wrong, and nothing is kept."""
    instance_id = await api.desk.add()
    answer = await api("POST", f"/v1/instances/{instance_id}/holds", body, by="admin")
    assert (answer.status, answer.detail) == (400, f"The request's body cannot be used: {says}")
    assert not (await api.desk.row(instance_id)).held
    assert await api.desk.operations(instance_id) == []


async def test_who_may_not_hold(api: Api) -> None:
    """Members and readers, of any project; and nobody an instance that is not there, or a name twice."""
    instance_id = await api.desk.add()
    path = f"/v1/instances/{instance_id}/holds"
    for by in ("reader", "member", "stranger"):
        answer = await api("POST", path, {"reason": "r"}, by=by)
        assert (answer.status, answer.detail) == (
            403,
            "Policy doesn't allow stateward:holds:place to be performed.",
        )
    missing = await api("POST", f"/v1/instances/{NOWHERE}/holds", {"reason": "r"}, by="admin")
    assert (missing.status, missing.detail) == (404, f"Instance {NOWHERE} could not be found.")
    await hold(api, instance_id, name="a")
    again = await api("POST", path, {"reason": "r", "name": "a"}, by="admin")
    assert (again.status, again.detail) == (
        409,
        f"You have a lock named 'a' on instance {instance_id} already: release it, or name this one otherwise.",
    )


async def override(api: Api, instance_id: str, lock: str, **more: Any) -> dict[str, Any]:
    """Have leave to pass a lock, and return it as it is shown."""
    body = {"lock": lock, "reason": "The court asked."} | more
    answer = await api("POST", f"/v1/instances/{instance_id}/overrides", body, by="admin")
    assert answer.status == 201, answer.body
    given: dict[str, Any] = answer.body
    return given


async def test_the_glass_is_broken(api: Api) -> None:
    """All that is said of a leave; it passes one operation, and is shown as used up then."""
    instance_id = await api.desk.add()
    lock = (await hold(api, instance_id, shutdown="none"))["id"]
    given = await override(api, instance_id, lock)
    assert given == {
        "id": given["id"],
        "instance_id": instance_id,
        "lock": lock,
        "user_id": "id-of-admin",
        "reason": "The court asked.",
        "asked_at": AT,
        "expires_at": None,
        "operations_left": 1,
        "needs_approval": False,
        "approved_by": None,
        "approved_at": None,
        "good": True,
    }
    path = f"/v1/instances/{instance_id}"
    thought = await api("POST", f"{path}/dry-run", {"action": "stop"}, by="admin")
    assert (thought.body["foreseen"], thought.body["by_override"]) == ("allowed", True)
    done = await api(
        "POST", "/v1/preflight", {"action": "stop", "instances": [instance_id], "mode": "all"}, by="admin"
    )
    assert (done.status, done.body["outcomes"][0]["by_override"]) == (202, True)
    listed = await api("GET", f"{path}/overrides", by="second")
    assert listed.body == {"overrides": [{**given, "operations_left": 0, "good": False}]}
    assert (await api("GET", f"{path}/overrides")).status == 403


async def test_a_leave_that_the_first_row_has_no_use_for(api: Api) -> None:
    """Is there for the row that fits: an action of several is one operation (R6)."""
    await api.desk.add_host("g")
    disk = ImageFacts(id="its disk", disk_format="qcow2")
    instance_id = await api.desk.add(vm_state="shelved_offloaded", host="", shelved_image=disk)
    lock = (await hold(api, instance_id, shutdown="none"))["id"]
    await override(api, instance_id, lock)
    body = {"action": "unshelve", "instances": [instance_id], "mode": "all"}
    assert (await api("POST", "/v1/preflight", body, by="admin")).status == 202
    newest = max(await api.desk.operations(instance_id), key=lambda each: each.fence)
    assert newest.action == "unshelve_offloaded"
    events = [event for event, _action, _detail in await api.desk.audit()]
    assert events.count("override_used") == 1


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ({"reason": "r"}, 400, "The request's body cannot be used: it needs `lock`."),
        (
            {"lock": "{lock}"},
            400,
            "The request's body cannot be used: it needs `reason`.",
        ),
        (
            {"lock": "{lock}", "reason": "x" * 10_000},
            400,
            "The request's body cannot be used: `reason` must have at most 255 characters.",
        ),
        (
            {"lock": NOWHERE, "reason": "r"},
            404,
            "Instance {instance} has no lock 11111111-1111-1111-1111-111111111111; it may have been released.",
        ),
        (
            {"lock": "{owner}", "reason": "r"},
            409,
            "Lock {owner} does not bind administrators; there is nothing to override.",
        ),
        (
            {"lock": "{lock}", "reason": "r", "operations": 1, "seconds": 5},
            400,
            "Say for how many operations, or for how many seconds; not both.",
        ),
        (
            {"lock": "{lock}", "reason": "r", "operations": 0},
            400,
            "The request's body cannot be used: `operations` must be at least 1.",
        ),
        (
            {"lock": "{lock}", "reason": "r", "seconds": 86_401},
            400,
            "The request's body cannot be used: `seconds` must be at most 86400.",
        ),
        (
            {"lock": "{lock}", "reason": "r", "until": "x"},
            400,
            "The request's body cannot be used: it has no `until`.",
        ),
    ],
)
async def test_a_leave_that_cannot_be(api: Api, body: dict[str, Any], status: int, says: str) -> None:
    """Is refused with what is wrong, and nothing is kept."""
    instance_id = await api.desk.add()
    lock = (await hold(api, instance_id, shutdown="none"))["id"]
    owner = (await api("POST", f"/v1/instances/{instance_id}/locks", {"name": "a"})).body["lock"]["id"]
    known = {"instance": instance_id, "lock": lock, "owner": owner}
    sent = {name: value.format(**known) if isinstance(value, str) else value for name, value in body.items()}
    answer = await api("POST", f"/v1/instances/{instance_id}/overrides", sent, by="admin")
    assert (answer.status, answer.detail) == (status, says.format(**known))
    listed = await api("GET", f"/v1/instances/{instance_id}/overrides", by="admin")
    assert listed.body == {"overrides": []}
    assert (await api.desk.row(instance_id)).hold_blocks == ALL_CLASSES


async def test_a_lock_that_is_gone_is_not_overridden(api: Api) -> None:
    """It was there; who names it now is told that it may have been released."""
    instance_id = await api.desk.add()
    lock = (await hold(api, instance_id, shutdown="none"))["id"]
    assert (await api("DELETE", f"/v1/instances/{instance_id}/holds/{lock}", by="admin")).status == 204
    body = {"lock": lock, "reason": "r"}
    answer = await api("POST", f"/v1/instances/{instance_id}/overrides", body, by="admin")
    assert (answer.status, answer.detail) == (
        404,
        f"Instance {instance_id} has no lock {lock}; it may have been released.",
    )


async def test_a_second_administrator(careful: Api) -> None:
    """Agrees once; one person is not two; a member is nobody here."""
    instance_id = await careful.desk.add()
    lock = (await hold(careful, instance_id, shutdown="none"))["id"]
    given = await override(careful, instance_id, lock, seconds=60)
    assert (given["needs_approval"], given["good"]) == (True, False)
    assert (given["operations_left"], given["expires_at"]) == (None, "2023-11-14T22:14:20.000000Z")
    path = f"/v1/overrides/{given['id']}/approve"
    own = await careful("POST", path, by="admin")
    assert (own.status, own.detail) == (
        403,
        "Policy doesn't allow stateward:overrides:approve:own to be performed.",
    )
    member = await careful("POST", path)
    assert (member.status, member.detail) == (
        403,
        "Policy doesn't allow stateward:overrides:approve to be performed.",
    )
    assert (await careful("POST", path, {"by": "me"}, by="second")).status == 400
    agreed = await careful("POST", path, by="second")
    approval = {"approved_by": "id-of-second", "approved_at": AT, "good": True}
    assert (agreed.status, agreed.body) == (200, given | approval)
    again = await careful("POST", path, by="second")
    assert (again.status, again.detail) == (
        409,
        f"Override {given['id']} cannot be approved: a second administrator has agreed already.",
    )
    missing = await careful("POST", f"/v1/overrides/{NOWHERE}/approve", by="second")
    assert (missing.status, missing.detail) == (404, f"There is no override {NOWHERE}.")


async def test_breaking_the_glass_is_told(careful: Api) -> None:
    """Asking, agreeing and using are events like others: nothing of them ends the stream, for ever."""
    instance_id = await careful.desk.add()
    lock = (await hold(careful, instance_id, shutdown="none"))["id"]
    given = await override(careful, instance_id, lock)
    assert (await careful("POST", f"/v1/overrides/{given['id']}/approve", by="second")).status == 200
    body = {"action": "stop", "instances": [instance_id], "mode": "all"}
    assert (await careful("POST", "/v1/preflight", body, by="admin")).status == 202
    told = await careful("GET", "/v1/events?type=override.*", by="admin", accept="application/json")
    assert told.status == 200
    assert [
        (each["type"].removeprefix("org.stateward."), each["data"]["detail"].get("lock"))
        for each in told.body["events"]
    ] == [("override.asked", lock), ("override.approved", lock), ("override.used", None)]


async def test_agreeing_to_what_needs_nobody(api: Api) -> None:
    """Is a mistake that is told."""
    instance_id = await api.desk.add()
    lock = (await hold(api, instance_id, shutdown="none"))["id"]
    given = await override(api, instance_id, lock)
    answer = await api("POST", f"/v1/overrides/{given['id']}/approve", by="second")
    assert (answer.status, answer.detail) == (
        409,
        f"Override {given['id']} cannot be approved: it needs no second administrator.",
    )
