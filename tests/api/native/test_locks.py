"""``/v1/instances/{id}/locks`` and ``/v1/projects/{id}/locks``: exact answers, who sees what, and bad input."""

from __future__ import annotations

from typing import Any, Final

import pytest
import sqlalchemy as sa

from stateward.domain.locks import ALL_CLASSES
from stateward.store.identity_tables import DOMAINS, PROJECTS
from tests.api.native.bench import Answer, Api
from tests.rows import NOW

NOWHERE: Final = "11111111-1111-1111-1111-111111111111"
AT: Final = "2023-11-14T22:13:20.000000Z"
SOON: Final = "2023-11-14T23:13:20Z"
NO_TIME: Final = (
    "Invalid input for field/attribute expires_at. Value: {}. It must be a time of ISO 8601, as "
    "2030-01-31T18:00:00Z."
)
WORDS: Final = "delete, stop, start, power, change, all"


async def place(api: Api, instance_id: str, body: dict[str, Any], *, by: str = "member") -> dict[str, Any]:
    """Place a lock on an instance and return it as it is shown."""
    answer = await api("POST", f"/v1/instances/{instance_id}/locks", body, by=by)
    assert answer.status == 201, answer.body
    lock: dict[str, Any] = answer.body["lock"]
    return lock


async def listed(api: Api, instance_id: str, *, by: str = "member") -> list[dict[str, Any]]:
    """Return an instance's locks as they are shown."""
    answer = await api("GET", f"/v1/instances/{instance_id}/locks", by=by)
    assert answer.status == 200, answer.body
    locks: list[dict[str, Any]] = answer.body["locks"]
    return locks


async def make_project(api: Api, project_id: str) -> None:
    """Have the identity service know a project."""
    plain = {"name": project_id, "description": "", "enabled": True}
    more: dict[str, Any] = {
        "id": project_id,
        "domain_id": "d",
        "parent_id": None,
        "immutable": False,
        "tags": (),
        "extra": {},
    }

    def work(connection: sa.Connection) -> None:
        connection.execute(sa.insert(DOMAINS).values(id="d", **plain))
        connection.execute(sa.insert(PROJECTS).values(**plain, **more))

    await api.desk.database.write(work)


async def test_a_lock_is_placed_listed_and_released(api: Api) -> None:
    """All that is said of it, by each of the three; what is in flight is named (B1)."""
    instance_id = await api.desk.add()
    stop = await api.stop(instance_id)
    body = {"name": "nightly", "reason": "Backups.", "blocks": ["stop", "delete"], "expires_at": SOON}
    answer = await api("POST", f"/v1/instances/{instance_id}/locks", body)
    assert answer.status == 201
    lock = answer.body["lock"]
    assert lock == {
        "id": lock["id"],
        "kind": "owner",
        "name": "nightly",
        "holder": "id-of-member",
        "reason": "Backups.",
        "ticket": None,
        "blocks": ["delete", "stop"],
        "placed_at": AT,
        "expires_at": "2023-11-14T23:13:20.000000Z",
        "sealed": False,
        "off": False,
        "inherited": False,
        "project_id": None,
        "tag": None,
    }
    shown = await api("GET", f"/v1/operations/{stop.id}")
    assert (answer.body["in_flight"], answer.body["confirmed"]) == (shown.body, None)
    assert await listed(api, instance_id) == [lock]
    assert await listed(api, instance_id, by="reader") == [lock]
    path = f"/v1/instances/{instance_id}/locks/{lock['id']}"
    released = await api("DELETE", f"{path}?reason=Done.")
    assert (released.status, released.body) == (204, None)
    assert await listed(api, instance_id) == []
    again = await api("DELETE", path)
    assert (again.status, again.detail) == (
        404,
        f"Instance {instance_id} has no lock {lock['id']} of its own.",
    )
    assert (await api.desk.audit())[-1][2]["reason"] == "Done."


async def test_a_lock_that_overtakes(api: Api) -> None:
    """Ends what is in flight; where no host answers, the answer says that nobody confirmed it (B1)."""
    instance_id = await api.desk.add()
    stop = await api.stop(instance_id)
    answer = await api("POST", f"/v1/instances/{instance_id}/locks", {"name": "a", "overtake": True})
    assert (answer.status, answer.body["in_flight"], answer.body["confirmed"]) == (201, None, False)
    assert (await api("GET", f"/v1/operations/{stop.id}")).body["state"] == "superseded"
    assert [lock["name"] for lock in await listed(api, instance_id)] == ["a"]


async def test_whose_a_lock_is(api: Api) -> None:
    """An admin of another project places the provider's, unless they say otherwise; a member cannot."""
    instance_id = await api.desk.add()
    kinds = [
        (await place(api, instance_id, {"name": "a"}))["kind"],
        (await place(api, instance_id, {"name": "b"}, by="admin"))["kind"],
        (await place(api, instance_id, {"name": "c", "kind": "owner"}, by="admin"))["kind"],
    ]
    assert kinds == ["owner", "admin", "owner"]
    refused = await api("POST", f"/v1/instances/{instance_id}/locks", {"kind": "admin"})
    assert (refused.status, refused.detail) == (
        403,
        "Policy doesn't allow stateward:locks:place:admin to be performed.",
    )
    assert len(await listed(api, instance_id)) == 3


async def test_what_a_customer_may_know(api: Api) -> None:
    """That the provider locked it, why and since when; neither who nor the ticket (R6)."""
    instance_id = await api.desk.add()
    body = {"name": "unpaid", "reason": "Unpaid.", "ticket": "T-9"}
    seen = await place(api, instance_id, body, by="admin")
    assert (seen["holder"], seen["ticket"]) == ("id-of-admin", "T-9")
    (shown,) = await listed(api, instance_id)
    assert shown == {**seen, "holder": None, "ticket": None}
    assert shown["reason"] == "Unpaid."
    operations = await api("GET", f"/v1/operations?instance={instance_id}")
    assert [each["actor"] for each in operations.body["operations"]] == [
        {"kind": "admin", "user_id": None, "project_id": None}
    ]
    to_admin = await api("GET", f"/v1/operations?instance={instance_id}", by="admin")
    assert [each["actor"] for each in to_admin.body["operations"]] == [
        {"kind": "admin", "user_id": "id-of-admin", "project_id": "operations"}
    ]


async def test_who_may_release(api: Api) -> None:
    """A named lock is its holder's; a sealed one and the provider's are the provider's to release (R4, B2)."""
    instance_id = await api.desk.add()
    mine = await place(api, instance_id, {"name": "mine"})
    sealed = await place(api, instance_id, {"name": "sealed", "sealed": True})
    theirs = await place(api, instance_id, {"name": "theirs"}, by="admin")
    assert sealed["sealed"] is True
    path = f"/v1/instances/{instance_id}/locks"
    forbidden = (403, "Policy doesn't allow stateward:locks:release to be performed.")
    for who, lock in (("colleague", mine), ("member", sealed), ("member", theirs)):
        answer = await api("DELETE", f"{path}/{lock['id']}", by=who)
        assert (answer.status, answer.detail) == forbidden
    reader = await api("DELETE", f"{path}/{mine['id']}", by="reader")
    assert reader.status == 403
    assert (await api("DELETE", f"{path}/{mine['id']}", by="member")).status == 204
    assert (await api("DELETE", f"{path}/{sealed['id']}", by="admin")).status == 204
    assert (await api("DELETE", f"{path}/{theirs['id']}", by="second")).status == 204
    assert await listed(api, instance_id) == []


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"blocks": ["reboot"]}, f"There are no operations called 'reboot'; a lock blocks {WORDS}."),
        ({"blocks": []}, f"A lock has to block something: {WORDS}."),
        (
            {"blocks": "delete"},
            "The request's body cannot be used: `blocks` must be a list, not a text.",
        ),
        ({"expires_at": AT}, "The lock would expire in the past; give a later time, or none."),
        ({"expires_at": "1970-01-01"}, "The lock would expire in the past; give a later time, or none."),
        (
            {"expires_at": "tomorrow"},
            NO_TIME.format("tomorrow"),
        ),
        (
            {"expires_at": "9999-12-31T23:59:59-12:00"},
            NO_TIME.format("9999-12-31T23:59:59-12:00"),
        ),
        (
            {"expires_at": "0001-01-01T00:00:00+14:00"},
            NO_TIME.format("0001-01-01T00:00:00+14:00"),
        ),
        (
            {"expires_at": 5},
            "The request's body cannot be used: `expires_at` must be a text, or null, not a whole number.",
        ),
        (
            {"reason": "x" * 10_000},
            "The request's body cannot be used: `reason` must have at most 255 characters.",
        ),
        ({"reason": ""}, "The request's body cannot be used: `reason` must not be empty."),
        (
            {"ticket": "x" * 256},
            "The request's body cannot be used: `ticket` must have at most 255 characters.",
        ),
        (
            {"name": "x" * 65},
            "The request's body cannot be used: `name` must have at most 64 characters.",
        ),
        (
            {"until": SOON},
            "The request's body cannot be used: it has no `until`.",
        ),
        (
            {"kind": "hold"},
            "The request's body cannot be used: `kind` is 'hold', which is none of: admin, owner.",
        ),
        (b"[]", "The request's body cannot be used: it must be an object, not a list."),
        (b"{", "The request's body cannot be used: Input data was truncated"),
    ],
)
async def test_a_lock_that_cannot_be(api: Api, body: Any, says: str) -> None:
    """Is refused with what is wrong, and nothing is kept."""
    instance_id = await api.desk.add()
    answer = await api("POST", f"/v1/instances/{instance_id}/locks", body)
    assert (answer.status, answer.detail) == (400, says)
    assert await listed(api, instance_id) == []
    assert await api.desk.audit() == []


@pytest.mark.parametrize("member", ["name", "reason", "ticket", "expires_at", "blocks"])
@pytest.mark.parametrize("bad", ["\\u0000", "\\ud800", "a\\u0000b"])
async def test_text_that_no_database_takes(api: Api, member: str, bad: str) -> None:
    """Is refused too, never a fault of ours."""
    instance_id = await api.desk.add()
    value = f'["{bad}"]' if member == "blocks" else f'"{bad}"'
    answer = await api("POST", f"/v1/instances/{instance_id}/locks", f'{{"{member}": {value}}}'.encode())
    assert answer.status == 400, answer.body
    assert await listed(api, instance_id) == []


async def test_a_sealed_lock_of_the_provider_s(api: Api) -> None:
    """Makes no sense: it is never the owner's to release."""
    instance_id = await api.desk.add()
    answer = await api("POST", f"/v1/instances/{instance_id}/locks", {"sealed": True}, by="admin")
    assert (answer.status, answer.detail) == (
        400,
        "Only an owner's lock can be sealed; the provider's is never released by the owner.",
    )


async def test_a_name_that_its_holder_has(api: Api) -> None:
    """Is refused; another holder may use it; without one a lock is given one."""
    instance_id = await api.desk.add()
    await place(api, instance_id, {"name": "a"})
    answer = await api("POST", f"/v1/instances/{instance_id}/locks", {"name": "a", "blocks": ["stop"]})
    assert (answer.status, answer.detail) == (
        409,
        f"You have a lock named 'a' on instance {instance_id} already: release it, or name this one otherwise.",
    )
    await place(api, instance_id, {"name": "a"}, by="colleague")
    unnamed = [(await place(api, instance_id, {}))["name"] for _ in range(2)]
    assert all(name.startswith("lock-") for name in unnamed)
    assert len(set(unnamed)) == 2


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "locks", None),
        ("POST", "locks", {}),
        ("DELETE", f"locks/{NOWHERE}", None),
        ("GET", "explain", None),
        ("POST", "dry-run", {"action": "stop"}),
    ],
)
async def test_another_project_s_instance(api: Api, method: str, path: str, body: Any) -> None:
    """Is not there, as one that never was."""
    instance_id = await api.desk.add()
    for by, which in (("stranger", instance_id), ("member", NOWHERE)):
        answer = await api(method, f"/v1/instances/{which}/{path}", body, by=by)
        assert (answer.status, answer.detail) == (404, f"Instance {which} could not be found.")


async def test_a_project_s_lock(api: Api) -> None:
    """Is inherited, shown with every instance and with the project, and released there alone."""
    one, two = await api.desk.add(tags=("db",)), await api.desk.add()
    answer = await api("POST", "/v1/projects/p/locks", {"name": "keep", "tag": "db", "blocks": ["delete"]})
    assert (answer.status, answer.body["instances"]) == (201, [one])
    lock = answer.body["lock"]
    assert (lock["inherited"], lock["project_id"], lock["tag"], lock["blocks"]) == (
        True,
        "p",
        "db",
        ["delete"],
    )
    assert await listed(api, one) == [lock]
    assert await listed(api, two) == []
    assert (await api("GET", "/v1/projects/p/locks")).body == {"locks": [lock]}
    elsewhere = await api("DELETE", f"/v1/instances/{one}/locks/{lock['id']}")
    assert (elsewhere.status, elsewhere.detail) == (
        404,
        f"Instance {one} has no lock {lock['id']} of its own.",
    )
    path = f"/v1/projects/p/locks/{lock['id']}"
    for by in ("stranger", "colleague"):
        assert (await api("DELETE", path, by=by)).status == (404 if by == "stranger" else 403)
    assert (await api("DELETE", path)).status == 204
    assert await listed(api, one) == []
    assert (await api("DELETE", path)).detail == f"There is no lock {lock['id']} on a project."


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"tag": ""}, "The request's body cannot be used: `tag` must not be empty."),
        ({"tag": "x" * 61}, "The request's body cannot be used: `tag` must have at most 60 characters."),
        (
            {"overtake": True},
            "The request's body cannot be used: it has no `overtake`.",
        ),
        ({"expires_at": AT}, "The lock would expire in the past; give a later time, or none."),
    ],
)
async def test_a_project_s_lock_that_cannot_be(api: Api, body: dict[str, Any], says: str) -> None:
    """Is refused with what is wrong."""
    answer = await api("POST", "/v1/projects/p/locks", body)
    assert (answer.status, answer.detail) == (400, says)
    assert (await api("GET", "/v1/projects/p/locks")).body == {"locks": []}


async def test_another_project_s_locks(api: Api) -> None:
    """Are not there; an admin's are the provider's everywhere."""
    for method, path in (("GET", "q/locks"), ("POST", "q/locks"), ("DELETE", f"q/locks/{NOWHERE}")):
        answer = await api(method, f"/v1/projects/{path}")
        assert (answer.status, answer.detail) == (404, "Project q could not be found.")
    missing = await api("POST", "/v1/projects/q/locks", {"name": "audit"}, by="admin")
    assert (missing.status, missing.detail) == (404, "Could not find project: q.")
    await make_project(api, "q")
    answer = await api("POST", "/v1/projects/q/locks", {"name": "audit", "ticket": "T"}, by="admin")
    assert (answer.status, answer.body["lock"]["kind"]) == (201, "admin")
    shown = (await api("GET", "/v1/projects/q/locks", by="stranger")).body["locks"]
    assert shown == [{**answer.body["lock"], "holder": None, "ticket": None}]


@pytest.mark.parametrize("reason", ["", "x" * 256, "x" * 10_000])
async def test_a_release_s_reason(api: Api, reason: str) -> None:
    """Is kept in the trail, so it has a length like every other; refused, the lock holds on."""
    instance_id = await api.desk.add()
    lock = await place(api, instance_id, {"name": "a"})
    project = (await api("POST", "/v1/projects/p/locks", {"name": "b"})).body["lock"]
    for path in (f"/v1/instances/{instance_id}/locks/{lock['id']}", f"/v1/projects/p/locks/{project['id']}"):
        answer = await api("DELETE", f"{path}?reason={reason}")
        assert (answer.status, answer.detail) == (400, "The reason must have 1 to 255 characters.")
    assert (await api.desk.row(instance_id)).owner_blocks == ALL_CLASSES
    assert len(await listed(api, instance_id)) == 2


async def test_what_else_is_wrong(api: Api) -> None:
    """Unknown parameters and methods, and who has no token."""
    instance_id = await api.desk.add()
    path = f"/v1/instances/{instance_id}/locks"

    async def said(method: str, path: str, **more: Any) -> tuple[int, str]:
        answer: Answer = await api(method, path, **more)
        return answer.status, answer.detail

    assert await said("GET", f"{path}?kind=owner") == (
        400,
        "The query parameter 'kind' is not known here; known are: none.",
    )
    assert (await said("PUT", path))[0] == 405
    assert (await said("GET", path, by=None))[0] == 401
    assert (await said("POST", path, by="reader"))[0] == 403


async def test_an_unexpired_lock_binds_to_the_end(api: Api) -> None:
    """Its time is shown; that it passed does not free anybody until it is taken away."""
    instance_id = await api.desk.add()
    await place(api, instance_id, {"name": "a", "expires_at": SOON})
    api.desk.clock.at = NOW + 7200
    assert [lock["name"] for lock in await listed(api, instance_id)] == ["a"]
    assert (await api.desk.row(instance_id)).owner_blocks == ALL_CLASSES
