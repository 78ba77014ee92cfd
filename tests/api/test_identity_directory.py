"""The directory: projects, users, roles, grants and application credentials, to administrators and to others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from stateward.store.engine import Database
from tests.api.embedded import DEMO_PASSWORD, Embedded, embedded, login

V3 = "/identity/v3"
TOKENS = f"{V3}/auth/tokens"


@pytest_asyncio.fixture
async def world(database: Database, tmp_path: Path) -> AsyncIterator[Embedded]:
    async with embedded(database, tmp_path / "images") as world:
        yield world


def message(response: Any) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["message"]


async def test_a_project_is_made_shown_changed_listed_and_deleted(world: Embedded) -> None:
    admin = await world.admin()
    made = await world.make(
        "project", admin, name="one", description="d", tags=["b", "a", "b"], cost_center="7"
    )
    path = f"{V3}/projects/{made['id']}"

    shown = await world.client.get(path, headers=admin)
    changed = await world.client.patch(
        path, json={"project": {"name": "two", "enabled": False, "colour": "red"}}, headers=admin
    )
    listed = await world.client.get(f"{V3}/projects?name=two&enabled=false&domain_id=default", headers=admin)
    deleted = await world.client.delete(path, headers=admin)

    assert made == {
        "id": made["id"],
        "name": "one",
        "description": "d",
        "domain_id": "default",
        "parent_id": "default",
        "enabled": True,
        "is_domain": False,
        "tags": ["b", "a"],
        "options": {},
        "cost_center": "7",
        "links": {"self": f"http://cloud.test:8774{path}"},
    }
    assert shown.json() == {"project": made}
    assert changed.json()["project"] == made | {"name": "two", "enabled": False, "colour": "red"}
    assert listed.json()["projects"] == [changed.json()["project"]]
    assert deleted.status_code == 204
    assert message(await world.client.get(path, headers=admin)) == (
        404,
        f"Could not find project: {made['id']}.",
    )


async def test_a_user_is_made_shown_changed_and_deleted_and_the_password_is_never_told(
    world: Embedded,
) -> None:
    admin = await world.admin()
    project = await world.make("project", admin, name="one")
    made = await world.make(
        "user", admin, name="eve", password="first", default_project_id=project["id"], email="eve@example.org"
    )
    await world.grant(made["id"], project["id"], "reader")
    path = f"{V3}/users/{made['id']}"

    assert made == {
        "id": made["id"],
        "name": "eve",
        "domain_id": "default",
        "default_project_id": project["id"],
        "enabled": True,
        "email": "eve@example.org",
        "options": {},
        "password_expires_at": None,
        "links": {"self": f"http://cloud.test:8774{path}"},
    }
    await world.log_in("eve", "first", "one")
    changed = await world.client.patch(
        path, json={"user": {"password": "second", "email": None}}, headers=admin
    )
    assert changed.json()["user"] == made | {"email": None}
    await world.log_in("eve", "second", "one")
    assert (await world.client.post(TOKENS, json={"auth": login("eve", "first", "one")})).status_code == 401

    # Without a password nobody logs in.
    await world.make("user", admin, name="mallory")
    assert (await world.client.post(TOKENS, json={"auth": login("mallory", "", None)})).status_code == 401

    assert (await world.client.delete(path, headers=admin)).status_code == 204
    assert (await world.client.delete(path, headers=admin)).status_code == 404


@pytest.mark.parametrize("kind", ["project", "user", "role"])
async def test_a_name_is_given_once(world: Embedded, kind: str) -> None:
    admin = await world.admin()
    other = await world.make(kind, admin, name="other")

    answers = await asyncio.gather(
        *(world.client.post(f"{V3}/{kind}s", json={kind: {"name": "same"}}, headers=admin) for _ in range(5))
    )
    renamed = await world.client.patch(
        f"{V3}/{kind}s/{other['id']}", json={kind: {"name": "same"}}, headers=admin
    )

    assert sorted(answer.status_code for answer in answers) == [201, 409, 409, 409, 409]
    assert message(renamed) == (
        409,
        f"Conflict occurred attempting to store {kind} - Duplicate entry found with name same.",
    )


@pytest.mark.parametrize("kind", ["project", "user", "role"])
async def test_what_is_not_there_is_not_found(world: Embedded, kind: str) -> None:
    admin = await world.admin()
    path = f"{V3}/{kind}s/nothing"
    answers = [
        await world.client.get(path, headers=admin),
        await world.client.patch(path, json={kind: {"name": "x"}}, headers=admin),
        await world.client.delete(path, headers=admin),
    ]

    assert [message(answer) for answer in answers] == [(404, f"Could not find {kind}: nothing.")] * 3


async def test_what_is_fixed_may_be_repeated_and_not_changed(world: Embedded) -> None:
    admin = await world.admin()
    parent = await world.make("project", admin, name="parent")
    child = await world.make("project", admin, name="child", parent_id=parent["id"])
    path = f"{V3}/projects/{child['id']}"
    assert child["parent_id"] == parent["id"]

    repeated = await world.client.patch(path, json={"project": child}, headers=admin)
    moved = await world.client.patch(path, json={"project": {"parent_id": "default"}}, headers=admin)
    below = await world.client.get(f"{V3}/projects?parent_id={parent['id']}", headers=admin)
    top = await world.client.get(f"{V3}/projects?parent_id=default", headers=admin)

    assert (repeated.status_code, repeated.json()["project"]) == (200, child)
    assert message(moved) == (400, "Cannot change parent_id of a project.")
    assert [project["name"] for project in below.json()["projects"]] == ["child"]
    assert sorted(project["name"] for project in top.json()["projects"]) == ["admin", "demo", "parent"]


async def test_what_is_immutable_is_first_made_mutable(world: Embedded) -> None:
    admin = await world.admin()
    role_id = await world.id_of("role", "admin")
    project = await world.make("project", admin, name="one", options={"immutable": True})
    path = f"{V3}/projects/{project['id']}"
    assert project["options"] == {"immutable": True}

    refused = [
        await world.client.delete(f"{V3}/roles/{role_id}", headers=admin),
        await world.client.patch(f"{V3}/roles/{role_id}", json={"role": {"name": "x"}}, headers=admin),
        await world.client.delete(path, headers=admin),
        await world.client.patch(
            path, json={"project": {"name": "x", "options": {"immutable": False}}}, headers=admin
        ),
    ]
    lifted = await world.client.patch(
        path, json={"project": {"options": {"immutable": False}}}, headers=admin
    )
    deleted = await world.client.delete(path, headers=admin)

    assert [answer.status_code for answer in refused] == [403] * 4
    assert message(refused[2])[1] == (
        f"The project {project['id']} is immutable: set its option immutable to false first."
    )
    assert lifted.json()["project"]["options"] == {}
    assert deleted.status_code == 204


async def test_everybody_sees_themselves_their_projects_and_the_roles(world: Embedded) -> None:
    demo = await world.demo()
    user, project = await world.id_of("user", "demo"), await world.id_of("project", "demo")
    paths = [
        f"/users/{user}",
        f"/projects/{project}",
        "/domains/default",
        "/roles",
        f"/users/{user}/projects",
        f"/role_assignments?user.id={user}",
        "/regions",
        "/regions/RegionOne",
        "/groups",
        "/auth/domains",
    ]

    for path in paths:
        assert (await world.client.get(V3 + path, headers=demo)).status_code == 200, path
    by_name = await world.client.get(f"{V3}/projects?name=demo", headers=demo)
    others = await world.client.get(f"{V3}/projects?name=admin", headers=demo)
    assert [one["id"] for one in by_name.json()["projects"]] == [project]
    assert others.json()["projects"] == []


async def test_ones_own_password_is_changed_with_the_old_one(world: Embedded) -> None:
    demo, user = await world.demo(), await world.id_of("user", "demo")
    path = f"{V3}/users/{user}/password"

    wrong = await world.client.post(
        path, json={"user": {"original_password": "wrong", "password": "new"}}, headers=demo
    )
    unsaid = await world.client.post(path, json={"user": {"password": "new"}}, headers=demo)
    right = await world.client.post(
        path, json={"user": {"original_password": DEMO_PASSWORD, "password": "new"}}, headers=demo
    )

    assert message(wrong) == (401, "The original password is not right.")
    assert unsaid.status_code == 400
    assert right.status_code == 204
    await world.log_in("demo", "new", "demo")


async def test_of_two_password_changes_at_once_one_wins(world: Embedded) -> None:
    demo, user = await world.demo(), await world.id_of("user", "demo")

    answers = await asyncio.gather(
        *(
            world.client.post(
                f"{V3}/users/{user}/password",
                json={"user": {"original_password": DEMO_PASSWORD, "password": f"new {number}"}},
                headers=demo,
            )
            for number in range(3)
        )
    )

    statuses = [answer.status_code for answer in answers]
    assert sorted(statuses) == [204, 401, 401]
    await world.log_in("demo", f"new {statuses.index(204)}", "demo")


async def test_roles_are_given_checked_listed_and_taken(world: Embedded) -> None:
    admin = await world.admin()
    user, project = await world.id_of("user", "demo"), await world.id_of("project", "admin")
    role = await world.id_of("role", "reader")
    path = f"{V3}/projects/{project}/users/{user}/roles"

    statuses = [
        (await world.client.request(method, f"{path}/{role}", headers=admin)).status_code
        for method in ("HEAD", "PUT", "PUT", "HEAD")
    ]
    listed = await world.client.get(path, headers=admin)
    statuses += [
        (await world.client.request(method, f"{path}/{role}", headers=admin)).status_code
        for method in ("DELETE", "DELETE", "HEAD")
    ]

    assert statuses == [404, 204, 204, 204, 204, 404, 404]
    assert [one["name"] for one in listed.json()["roles"]] == ["reader"]
    for wrong in (
        f"/projects/nothing/users/{user}/roles/{role}",
        f"/projects/{project}/users/nothing/roles/{role}",
        f"/projects/{project}/users/{user}/roles/nothing",
    ):
        assert (await world.client.put(V3 + wrong, headers=admin)).status_code == 404
    system = await world.client.put(f"{V3}/system/users/{user}/roles/{role}", headers=admin)
    assert system.status_code == 501


async def test_assignments_are_listed_with_names_and_with_what_they_imply(world: Embedded) -> None:
    admin = await world.admin()
    user, project = await world.id_of("user", "demo"), await world.id_of("project", "demo")
    role, reader = await world.id_of("role", "member"), await world.id_of("role", "reader")
    path = f"{V3}/role_assignments"

    plain = await world.client.get(f"{path}?user.id={user}", headers=admin)
    named = await world.client.get(f"{path}?scope.project.id={project}&include_names=True", headers=admin)
    effective = await world.client.get(f"{path}?effective&user.id={user}&include_names", headers=admin)
    of_reader = await world.client.get(f"{path}?effective=1&role.id={reader}", headers=admin)
    directly = await world.client.get(f"{path}?role.id={reader}", headers=admin)
    system = await world.client.get(f"{path}?scope.system=all", headers=admin)

    domain = {"id": "default", "name": "Default"}
    assert plain.json()["role_assignments"] == [
        {
            "role": {"id": role},
            "user": {"id": user},
            "scope": {"project": {"id": project}},
            "links": {
                "assignment": f"http://cloud.test:8774{V3}/projects/{project}/users/{user}/roles/{role}"
            },
        }
    ]
    one = named.json()["role_assignments"][0]
    assert one["role"] == {"id": role, "name": "member"}
    assert one["user"] == {"id": user, "name": "demo", "domain": domain}
    assert one["scope"]["project"] == {"id": project, "name": "demo", "domain": domain}
    assert [one["role"]["name"] for one in effective.json()["role_assignments"]] == ["member", "reader"]
    assert len(of_reader.json()["role_assignments"]) == 2
    assert directly.json()["role_assignments"] == []
    assert system.json()["role_assignments"] == []


async def test_lists_are_paged(world: Embedded) -> None:
    admin = await world.admin()
    for number in range(5):
        await world.make("project", admin, name=f"p{number}")
    seen: list[str] = []
    marker = ""
    while True:
        response = await world.client.get(f"{V3}/projects?limit=3&marker={marker}", headers=admin)
        found = [one["id"] for one in response.json()["projects"]]
        if not found:
            break
        assert len(found) <= 3
        seen += found
        marker = found[-1]

    assert len(seen) == len(set(seen)) == 7


async def test_what_is_built_in_is_shown(world: Embedded) -> None:
    admin = await world.admin()
    services = (await world.client.get(f"{V3}/services", headers=admin)).json()["services"]
    image = next(one for one in services if one["type"] == "image")
    shown = await world.client.get(f"{V3}/services/{image['id']}", headers=admin)
    endpoints = await world.client.get(
        f"{V3}/endpoints?service_id={image['id']}&interface=public", headers=admin
    )
    endpoint = endpoints.json()["endpoints"][0]

    assert shown.json()["service"] == image
    assert [one["url"] for one in endpoints.json()["endpoints"]] == ["http://cloud.test:8774/image"]
    assert (await world.client.get(f"{V3}/endpoints/{endpoint['id']}", headers=admin)).json() == {
        "endpoint": endpoint
    }
    for path in ("services", "endpoints", "regions", "domains"):
        assert (await world.client.get(f"{V3}/{path}/nothing", headers=admin)).status_code == 404


async def credential(world: Embedded, headers: dict[str, str], **values: Any) -> Any:
    user = (await world.identity.verify(headers["x-auth-token"])).user_id
    return await world.client.post(
        f"{V3}/users/{user}/application_credentials",
        json={"application_credential": {"name": "robot", **values}},
        headers=headers,
    )


def exchange(**proof: Any) -> dict[str, Any]:
    return {"auth": {"identity": {"methods": ["application_credential"], "application_credential": proof}}}


async def test_a_program_logs_in_with_an_application_credential(world: Embedded) -> None:
    demo = await world.demo()
    made = (await credential(world, demo, roles=[{"name": "reader"}], description="d")).json()[
        "application_credential"
    ]
    by_id = await world.client.post(TOKENS, json=exchange(id=made["id"], secret=made["secret"]))
    by_name = await world.client.post(
        TOKENS,
        json=exchange(
            name="robot", user={"name": "demo", "domain": {"id": "default"}}, secret=made["secret"]
        ),
    )
    wrong = await world.client.post(TOKENS, json=exchange(id=made["id"], secret="wrong"))
    nobody = await world.client.post(TOKENS, json=exchange(name="robot", user={"name": "x"}, secret="wrong"))
    nameless = await world.client.post(TOKENS, json=exchange(secret="wrong"))
    other = await world.id_of("project", "admin")
    await world.grant(await world.id_of("user", "demo"), other, "reader")
    elsewhere = exchange(id=made["id"], secret=made["secret"])
    elsewhere["auth"]["scope"] = {"project": {"id": other}}

    assert by_id.status_code == by_name.status_code == 201
    token = by_id.json()["token"]
    assert [role["name"] for role in token["roles"]] == ["reader"]
    assert token["project"]["name"] == "demo"
    assert token["application_credential"] == {"id": made["id"], "name": "robot", "restricted": True}
    assert [one.status_code for one in (wrong, nobody, nameless)] == [401, 401, 400]
    assert (await world.client.post(TOKENS, json=elsewhere)).status_code == 401

    # A restricted one makes no others, its token leads to no other project, and ends with it.
    robot = {"x-auth-token": by_id.headers["x-subject-token"]}
    again = {"auth": {"identity": {"methods": ["token"], "token": {"id": robot["x-auth-token"]}}}}
    assert (await credential(world, robot, name="other")).status_code == 403
    renewed = await world.client.post(TOKENS, json=again)
    assert renewed.json()["token"]["project"]["name"] == "demo"
    assert [role["name"] for role in renewed.json()["token"]["roles"]] == ["reader"]
    path = f"{V3}/users/{token['user']['id']}/application_credentials/{made['id']}"
    assert (await world.client.delete(path, headers=robot)).status_code == 403
    shown = await world.client.get(path, headers=demo)
    assert shown.json()["application_credential"].keys() == made.keys() - {"secret"}
    assert (await world.client.delete(path, headers=demo)).status_code == 204
    assert (await world.client.get(f"{V3}/auth/projects", headers=robot)).status_code == 401
    assert (await world.client.get(path, headers=demo)).status_code == 404


async def test_an_application_credential_gives_no_more_than_its_maker_has(world: Embedded) -> None:
    demo = await world.demo()
    greedy = await credential(world, demo, roles=[{"name": "admin"}])
    made = (await credential(world, demo)).json()["application_credential"]
    again = await credential(world, demo)
    ruled = await credential(world, demo, name="ruled", access_rules=[{"path": "/x"}])
    user, project = await world.id_of("user", "demo"), await world.id_of("project", "demo")

    assert message(greedy) == (400, "The caller does not have the role admin.")
    assert again.status_code == 409
    assert message(ruled) == (400, "Access rules are not supported.")
    await world.grant(user, project, "reader")
    role = await world.id_of("role", "member")
    await world.client.delete(
        f"{V3}/projects/{project}/users/{user}/roles/{role}", headers=await world.admin()
    )
    token = await world.client.post(TOKENS, json=exchange(id=made["id"], secret=made["secret"]))
    assert [one["name"] for one in token.json()["token"]["roles"]] == ["reader"]


async def test_an_application_credential_expires_and_its_tokens_with_it(world: Embedded) -> None:
    demo = await world.demo()
    past = await credential(world, demo, expires_at="2027-01-15T07:59:59")
    nonsense = await credential(world, demo, expires_at="tomorrow")
    beyond = await credential(world, demo, expires_at="9999-12-31T23:59:59-14:00")
    made = (await credential(world, demo, expires_at="2027-01-15T08:10:00Z")).json()["application_credential"]
    proof = exchange(id=made["id"], secret=made["secret"])
    token = await world.client.post(TOKENS, json=proof)

    assert [past.status_code, nonsense.status_code, beyond.status_code] == [400, 400, 400]
    assert made["expires_at"] == "2027-01-15T08:10:00.000000Z"
    assert token.json()["token"]["expires_at"] == "2027-01-15T08:10:00.000000Z"
    world.clock.time += 600.0
    assert (await world.client.post(TOKENS, json=proof)).status_code == 401
