"""``explain``, ``dry-run`` and ``preflight``: what would come of an action, to one instance and to several (B6)."""

from __future__ import annotations

from typing import Any, Final

import pytest

from stateward.domain.locks import ActorKind
from tests.api.native.bench import Answer, Api

NOWHERE: Final = "11111111-1111-1111-1111-111111111111"
AT: Final = "2023-11-14T22:13:20.000000Z"
UNPAID: Final = "It was locked by the provider at 2023-11-14T22:13:20Z: Unpaid."


async def lock(api: Api, instance_id: str, *, by: str = "admin", **body: Any) -> dict[str, Any]:
    """Lock an instance and return the lock as a customer sees it."""
    answer = await api(
        "POST", f"/v1/instances/{instance_id}/locks", {"name": "a", "reason": "Unpaid."} | body, by=by
    )
    assert answer.status == 201, answer.body
    (shown,) = (await api("GET", f"/v1/instances/{instance_id}/locks")).body["locks"]
    found: dict[str, Any] = shown
    return found


async def dry(api: Api, instance_id: str, action: str, *, by: str = "member") -> Answer:
    """Ask what would come of an action."""
    return await api("POST", f"/v1/instances/{instance_id}/dry-run", {"action": action}, by=by)


async def preflight(
    api: Api, action: str, ids: list[str], mode: str = "check", *, by: str = "member"
) -> Answer:
    """Ask for an action on several."""
    body = {"action": action, "instances": ids, "mode": mode}
    return await api("POST", "/v1/preflight", body, by=by)


async def test_a_dry_run(api: Api) -> None:
    """Says what would be, blocked by what, and changes nothing."""
    instance_id = await api.desk.add()
    before = await api.desk.row(instance_id)
    allowed: dict[str, Any] = {
        "instance_id": instance_id,
        "action": "stop",
        "foreseen": "allowed",
        "becomes": "stopped",
        "why": "",
        "blocked_by": [],
        "by_override": False,
    }
    answer = await dry(api, instance_id, "stop")
    assert (answer.status, answer.body) == (200, allowed)
    no_change = f"Cannot 'start' instance {instance_id} while it is in vm_state active"
    nothing = allowed | {"action": "start", "foreseen": "no change", "becomes": None, "why": no_change}
    assert (await dry(api, instance_id, "start")).body == nothing
    wrong = f"Cannot 'unpause' instance {instance_id} while it is in vm_state stopped"
    off = await api.desk.add(vm_state="stopped")
    assert (await dry(api, off, "unpause")).body["why"] == wrong.replace(instance_id, off)
    assert await api.desk.row(instance_id) == before
    assert (await api.desk.operations(instance_id), await api.desk.audit()) == ([], [])
    placed = await lock(api, instance_id)
    blocked = await dry(api, instance_id, "stop")
    assert blocked.body == allowed | {
        "foreseen": "blocked",
        "becomes": None,
        "why": f"Instance {instance_id} is locked. {UNPAID}",
        "blocked_by": [placed],
    }
    assert placed["holder"] is None
    assert (await dry(api, instance_id, "stop", by="admin")).body == allowed


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ({}, 400, "The request's body cannot be used: it needs `action`."),
        (
            {"action": "stop", "x": 1},
            400,
            "The request's body cannot be used: it has no `x`.",
        ),
        ({"action": "reclaim"}, 400, "There is no action 'reclaim'; there are: "),
        ({"action": "delete_soft"}, 400, "There is no action 'delete_soft'; there are: "),
        ({"action": ""}, 400, "There is no action ''; there are: "),
        (
            {"action": "migrate"},
            403,
            "Policy doesn't allow os_compute_api:os-migrate-server:migrate to be performed.",
        ),
    ],
)
async def test_a_dry_run_that_cannot_be(api: Api, body: dict[str, Any], status: int, says: str) -> None:
    """Is refused with what is wrong; what is Stateward's own to do is nothing that can be asked for."""
    instance_id = await api.desk.add()
    answer = await api("POST", f"/v1/instances/{instance_id}/dry-run", body)
    assert (answer.status, answer.detail[: len(says)]) == (status, says)


async def test_a_delete_is_foreseen_as_it_would_be(api: Api) -> None:
    """Where nothing is reclaimed nothing is kept for that."""
    instance_id = await api.desk.add()
    assert (await dry(api, instance_id, "delete")).body["becomes"] == "deleted"
    answer = await preflight(api, "delete", [instance_id], "all")
    assert (answer.status, answer.body["outcomes"][0]["becomes"]) == (202, "deleted")
    assert [each.action for each in await api.desk.operations(instance_id)] == ["delete"]


async def test_what_is_checked_beforehand(api: Api) -> None:
    """Each in the order of the request, also what is not there; nothing is changed."""
    fine, off = await api.desk.add(), await api.desk.add(vm_state="stopped")
    locked, foreign = await api.desk.add(), await api.desk.add(project_id="q")
    placed = await lock(api, locked)
    trail = await api.desk.audit()
    answer = await preflight(api, "stop", [locked, fine, NOWHERE, off, foreign])
    assert answer.status == 200
    assert (answer.body["mode"], answer.body["counts"]) == (
        "check",
        {"allowed": 1, "blocked": 3, "no change": 1},
    )
    outcomes = answer.body["outcomes"]
    assert [(each["instance_id"], each["foreseen"]) for each in outcomes] == [
        (locked, "blocked"),
        (fine, "allowed"),
        (NOWHERE, "blocked"),
        (off, "no change"),
        (foreign, "blocked"),
    ]
    assert outcomes[0]["blocked_by"] == [placed]
    assert [each["why"] for each in outcomes if each["instance_id"] in {NOWHERE, foreign}] == [
        f"Instance {NOWHERE} could not be found.",
        f"Instance {foreign} could not be found.",
    ]
    assert {each["operation_id"] for each in outcomes} == {None}
    assert await api.desk.audit() == trail


async def test_all_or_none(api: Api) -> None:
    """One refuses, and none is changed; what is so already keeps nobody."""
    one, two = await api.desk.add(), await api.desk.add()
    locked, off = await api.desk.add(), await api.desk.add(vm_state="stopped")
    placed = await lock(api, locked)
    refused = await preflight(api, "stop", [one, locked, two], "all")
    assert (refused.status, refused.detail) == (409, f"Instance {locked} is locked. {UNPAID}")
    for instance_id in (one, two):
        row = await api.desk.row(instance_id)
        assert (row.task_state, row.fence) == (None, 1)
        assert await api.desk.operations(instance_id) == []
    assert await api.desk.outbox() == []
    missing = await preflight(api, "stop", [one, NOWHERE], "all")
    assert (missing.status, missing.detail) == (404, f"Instance {NOWHERE} could not be found.")
    path = f"/v1/instances/{locked}/locks/{placed['id']}"
    assert (await api("DELETE", path, by="admin")).status == 204
    done = await preflight(api, "stop", [one, off, locked, two], "all")
    assert (done.status, done.body["counts"]) == (202, {"allowed": 3, "blocked": 0, "no change": 1})
    for each in done.body["outcomes"]:
        admitted = (await api.desk.row(each["instance_id"])).operation_id
        assert each["operation_id"] == admitted
        assert (admitted is None) is (each["instance_id"] == off)


async def test_as_many_as_can_be(api: Api) -> None:
    """Those that refuse are told, and the others go on."""
    one, locked, two = await api.desk.add(), await api.desk.add(), await api.desk.add()
    await lock(api, locked)
    answer = await preflight(api, "stop", [one, locked, NOWHERE, two], "continue")
    assert (answer.status, answer.body["counts"]) == (202, {"allowed": 2, "blocked": 2, "no change": 0})
    assert [each["operation_id"] is None for each in answer.body["outcomes"]] == [False, True, True, False]
    assert (await api.desk.row(locked)).task_state is None
    assert {each.action for _s, _i, each in await api.desk.outbox()} == {"stop"}
    again = await preflight(api, "stop", [locked, NOWHERE], "continue")
    assert (again.status, again.body["counts"]) == (200, {"allowed": 0, "blocked": 2, "no change": 0})


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (
            {"action": "stop", "instances": []},
            "The request's body cannot be used: `instances` must not be empty.",
        ),
        (
            {"action": "stop", "instances": ["a"] * 1001},
            "The request's body cannot be used: `instances` must have at most 1000 entries.",
        ),
        ({"action": "stop", "instances": ["a", "a"]}, "An instance is named twice."),
        ({"action": "stop", "instances": ["a\x00"]}, "The request's body has a NUL character in it"),
        (
            {"action": "stop", "instances": ["a"], "mode": "some"},
            "The request's body cannot be used: `mode` is 'some', which is none of: ",
        ),
        (
            {"action": "resize", "instances": ["a"], "mode": "all"},
            "'resize' needs more than a name: ask for it on",
        ),
        (
            {"action": "lock", "instances": ["a"], "mode": "continue"},
            "'lock' needs more than a name: ask for it on",
        ),
        ({"action": "dance", "instances": ["a"]}, "There is no action 'dance'; there are: "),
    ],
)
async def test_a_preflight_that_cannot_be(api: Api, body: dict[str, Any], says: str) -> None:
    """Is refused with what is wrong."""
    answer = await api("POST", "/v1/preflight", body)
    assert (answer.status, answer.detail[: len(says)]) == (400, says)


async def test_a_reader_asks_for_nothing(api: Api) -> None:
    """And may look at why."""
    instance_id = await api.desk.add()
    assert (await preflight(api, "stop", [instance_id], by="reader")).status == 403
    assert (await dry(api, instance_id, "stop", by="reader")).status == 403
    assert (await api("GET", f"/v1/instances/{instance_id}/explain", by="reader")).status == 200


async def test_why_an_instance_is_as_it_is(api: Api) -> None:
    """The chain of causes, what is seen, the locks, and what the usual actions would come to."""
    instance_id = await api.desk.add(vm_state="stopped", observed="shutoff")
    start = (await api.desk.admit("start", instance_id, ActorKind.MEMBER)).operation
    held = await api(
        "POST",
        f"/v1/instances/{instance_id}/holds",
        {"reason": "Case 7.", "ticket": "T", "shutdown": "none"},
        by="admin",
    )
    assert held.status == 202
    answer = await api("GET", f"/v1/instances/{instance_id}/explain")
    assert answer.status == 200
    said = answer.body
    assert (said["instance_id"], said["vm_state"], said["task_state"], said["fault"]) == (
        instance_id,
        "stopped",
        None,
        None,
    )
    assert said["seen"] == {
        "observed": "shutoff",
        "cause": "other",
        "at": None,
        "verdict": "The guest is as recorded.",
        "decided_by": "table",
    }
    causes = {each["action"]: each for each in said["causes"]}
    assert sorted(causes) == ["hold_none", "start"]
    assert causes["start"]["state"] == "superseded"
    assert causes["start"]["operation_id"] == start.id
    assert causes["hold_none"]["message"] == "Case 7."
    assert causes["hold_none"]["actor"] == {"kind": "admin", "user_id": None, "project_id": None}
    (shown,) = said["locks"]
    assert (shown["kind"], shown["holder"], shown["ticket"], shown["reason"]) == (
        "hold",
        None,
        None,
        "Case 7.",
    )
    foreseen = {each["action"]: each["foreseen"] for each in said["actions"]}
    assert foreseen == dict.fromkeys(
        ("start", "stop", "reboot", "suspend", "resume", "rebuild", "resize", "shelve", "delete"), "blocked"
    )
    assert {each["id"] for action in said["actions"] for each in action["blocked_by"]} == {shown["id"]}
    to_admin = (await api("GET", f"/v1/instances/{instance_id}/explain", by="admin")).body
    assert {each["actor"]["user_id"] for each in to_admin["causes"]} == {"a member", "id-of-admin"}
    assert (to_admin["locks"][0]["holder"], to_admin["locks"][0]["ticket"]) == ("id-of-admin", "T")
