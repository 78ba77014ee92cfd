"""Server groups as Nova shows them, by version; whose they are; what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa

from stateward.store import server_groups
from tests import rows
from tests.api.resources.conftest import Api

NOBODY = "00000000-0000-4000-8000-000000000000"


async def make(api: Api, name: str = "g", by: str = "member", **members: Any) -> dict[str, Any]:
    answer = await api(
        "POST",
        "/os-server-groups",
        {"server_group": {"name": name, **({"policy": "affinity"} | members)}},
        by=by,
        v="64",
    )
    assert answer.status == 200, answer
    group: dict[str, Any] = answer.body["server_group"]
    return group


async def test_a_group_by_version(api: Api) -> None:
    """One policy with rules from 2.64 on, a list before; its owner from 2.13 on; living members only."""
    made = await make(api, policy="anti-affinity", rules={"max_server_per_host": "3"})
    group_id = made["id"]

    def join(connection: sa.Connection) -> None:
        rows.insert(connection, id="i", group_id=group_id)
        rows.insert(connection, id="gone", group_id=group_id, vm_state="deleted")

    await api.database.write(join)
    path = f"/os-server-groups/{group_id}"
    newest = {
        "id": group_id,
        "name": "g",
        "members": ["i"],
        "policy": "anti-affinity",
        "rules": {"max_server_per_host": 3},
        "project_id": "p",
        "user_id": "id-of-member",
    }
    assert made == newest | {"members": []}
    assert (await api("GET", path, by="reader", v="latest")).body == {"server_group": newest}
    older = {name: value for name, value in newest.items() if name not in {"policy", "rules"}}
    older |= {"policies": ["anti-affinity"], "metadata": {}}
    assert (await api("GET", path, v="63")).body == {"server_group": older}
    del older["project_id"], older["user_id"]
    assert (await api("GET", path, v="12")).body == {"server_group": older}
    assert (await api("GET", "/os-server-groups", v="12")).body == {"server_groups": [older]}


async def test_what_may_be_asked_for_by_version(api: Api) -> None:
    """Soft policies came with 2.15."""
    for version, policy, status in (
        ("14", "affinity", 200),
        ("14", "soft-affinity", 400),
        ("15", "soft-anti-affinity", 200),
    ):
        body = {"server_group": {"name": "g", "policies": [policy]}}
        assert (await api("POST", "/os-server-groups", body, v=version)).status == status


@pytest.mark.parametrize(
    "group",
    [
        {},
        {"name": "g"},
        {"name": "g", "policy": "legacy"},
        {"name": "", "policy": "affinity"},
        {"name": " g", "policy": "affinity"},
        {"name": "x" * 256, "policy": "affinity"},
        {"name": "g", "policies": ["affinity"]},
        {"name": "g", "policy": "affinity", "more": 1},
        {"name": "g", "policy": "affinity", "rules": {"max_server_per_host": 2}},
        {"name": "g", "policy": "anti-affinity", "rules": {"max_server_per_host": 0}},
        {"name": "g", "policy": "anti-affinity", "rules": {"max_server_per_host": "x"}},
        {"name": "g", "policy": "anti-affinity", "rules": {"max_server_per_host": 10**12}},
        {"name": "g", "policy": "anti-affinity", "rules": {"other": 1}},
        [],
        None,
    ],
)
async def test_what_is_refused(api: Api, group: object) -> None:
    """A group that is described wrongly: 400, and none is made."""
    answer = await api("POST", "/os-server-groups", {"server_group": group}, v="64")
    assert answer.status == 400, answer
    assert (await api("GET", "/os-server-groups")).body == {"server_groups": []}


async def test_rules_belong_to_one_policy(api: Api) -> None:
    """Nova's sentence."""
    group = {"name": "g", "policy": "soft-anti-affinity", "rules": {"max_server_per_host": 2}}
    answer = await api("POST", "/os-server-groups", {"server_group": group}, v="64")
    assert (answer.status, answer.message) == (400, "Only anti-affinity policy supports rules.")


async def test_whose_they_are(api: Api) -> None:
    """Another project's does not exist; an admin sees all, and lists all when asked to."""
    own, other = await make(api, "own"), await make(api, "other", by="stranger")
    missing = f"Instance group {other['id']} could not be found."
    for method in ("GET", "DELETE"):
        answer = await api(method, f"/os-server-groups/{other['id']}")
        assert (answer.status, answer.message) == (404, missing)
    assert (await api("GET", f"/os-server-groups/{NOBODY}", by="admin")).status == 404
    for by, query, names in (
        ("member", "", ["own"]),
        ("member", "?all_projects=1", ["own"]),
        ("admin", "", []),
        ("admin", "?all_projects=1", ["own", "other"]),
        ("admin", "?all_projects=1&limit=1&offset=1", ["other"]),
    ):
        found = (await api("GET", f"/os-server-groups{query}", by=by)).body["server_groups"]
        assert [each["name"] for each in found] == names
    assert (await api("GET", "/os-server-groups?limit=x")).status == 400
    assert (await api("GET", "/os-server-groups?colour=red", v="75")).status == 400
    assert (await api("DELETE", f"/os-server-groups/{own['id']}", by="reader")).status == 403
    assert (await api("POST", "/os-server-groups", {}, by="reader")).status == 403
    assert (await api("DELETE", f"/os-server-groups/{own['id']}")).status == 204
    assert (await api("DELETE", f"/os-server-groups/{other['id']}", by="admin")).status == 204
    assert await api.database.read(lambda connection: server_groups.count(connection, "p")) == 0
