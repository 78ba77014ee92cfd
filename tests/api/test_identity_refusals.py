"""What is refused: bad input, with what is wrong with it in Keystone's format and never with a 500; and the unentitled.

Refusing changes nothing, so the tests share one server.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import hypothesis
import pytest
import pytest_asyncio
import sqlalchemy as sa
from hypothesis import strategies as st

from stateward.store.engine import open_database
from tests.api.embedded import ADMIN_PASSWORD, Embedded, database_of, embedded, login

V3 = "/identity/v3"


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[sa.URL]:
    with database_of(request, tmp_path_factory.mktemp("identity")) as url:
        yield url


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(url: sa.URL, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Embedded]:
    opened = open_database(url.render_as_string(hide_password=False))
    async with embedded(opened, tmp_path_factory.mktemp("folder") / "images") as world:
        yield world
    await opened.close()


BODIES = [
    b"",
    b"{",
    b"[]",
    b"null",
    b'"text"',
    b"\xff\xfe",
    b"[" * 100_000,
    b'{"user": null}',
    b'{"user": []}',
    b'{"user": {"name": null}}',
    b'{"user": {"name": 1}}',
    b'{"user": {"name": ""}}',
    b'{"user": {"name": "  "}}',
    b'{"user": {"name": "nul \\u0000"}}',
    b'{"user": {"name": "half a pair \\ud800 of surrogates"}}',
    b'{"user": {"name": "ok", "enabled": "yes"}}',
    b'{"user": {"name": "ok", "password": 1}}',
    b'{"user": {"name": "ok", "password": ""}}',
    b'{"user": {"name": "ok", "options": []}}',
    b'{"user": {"name": "ok", "default_project_id": 7}}',
    json.dumps({"user": {"name": "n" * 256}}).encode(),
    json.dumps({"user": {"password": "x"}}).encode(),
]


@pytest.mark.parametrize("body", BODIES)
async def test_a_bad_user_is_a_bad_request(world: Embedded, body: bytes) -> None:
    response = await world.client.post(f"{V3}/users", content=body, headers=await world.admin())

    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error.keys() == {"code", "message", "title"}
    assert (error["code"], error["title"]) == (400, "Bad Request")
    assert len(error["message"]) > 20


@pytest.mark.parametrize(
    ("kind", "values", "status"),
    [
        ("user", {"domain_id": "nowhere"}, 404),
        ("project", {"domain_id": "nowhere"}, 404),
        ("project", {"parent_id": "nothing"}, 404),
        ("project", {"is_domain": True}, 400),
        ("project", {"tags": "x"}, 400),
        ("project", {"tags": ["a,b"]}, 400),
        ("project", {"tags": [""]}, 400),
        ("project", {"description": 1}, 400),
        ("project", {"name": "n" * 65}, 400),
        ("role", {"domain_id": "default"}, 400),
        ("role", {"options": {"immutable": "perhaps"}}, 400),
    ],
)
async def test_bad_values_are_refused(
    world: Embedded, kind: str, values: dict[str, Any], status: int
) -> None:
    response = await world.client.post(
        f"{V3}/{kind}s", json={kind: {"name": "one", **values}}, headers=await world.admin()
    )

    assert response.status_code == status, response.text


FOR_ADMINISTRATORS = [
    ("GET", "/projects"),
    ("POST", "/projects"),
    ("GET", "/projects/{other_project}"),
    ("PATCH", "/projects/{project}"),
    ("DELETE", "/projects/{project}"),
    ("GET", "/users"),
    ("POST", "/users"),
    ("GET", "/users/{other_user}"),
    ("PATCH", "/users/{user}"),
    ("DELETE", "/users/{user}"),
    ("GET", "/users/{other_user}/projects"),
    ("POST", "/users/{other_user}/password"),
    ("GET", "/users/{other_user}/application_credentials"),
    ("POST", "/users/{other_user}/application_credentials"),
    ("POST", "/roles"),
    ("PATCH", "/roles/x"),
    ("DELETE", "/roles/x"),
    ("GET", "/role_assignments"),
    ("GET", "/role_assignments?user.id={other_user}"),
    ("PUT", "/projects/{project}/users/{user}/roles/x"),
    ("HEAD", "/projects/{project}/users/{user}/roles/x"),
    ("DELETE", "/projects/{project}/users/{user}/roles/x"),
    ("GET", "/projects/{project}/users/{user}/roles"),
    ("PUT", "/system/users/{user}/roles/x"),
    ("GET", "/domains"),
    ("GET", "/services"),
    ("GET", "/services/x"),
    ("GET", "/endpoints"),
    ("GET", "/endpoints/x"),
]


@pytest.mark.parametrize(("method", "path"), FOR_ADMINISTRATORS)
async def test_who_is_no_administrator_is_refused_and_who_is_nobody_is_asked_who_they_are(
    world: Embedded, method: str, path: str
) -> None:
    demo = await world.demo()
    ids = {
        "project": await world.id_of("project", "demo"),
        "other_project": await world.id_of("project", "admin"),
        "user": await world.id_of("user", "demo"),
        "other_user": await world.id_of("user", "admin"),
    }
    address = V3 + path.format(**ids)

    refused = await world.client.request(method, address, headers=demo, content=b"{}")
    anonymous = await world.client.request(method, address, content=b"{}")
    wrong = await world.client.request(method, address, headers={"x-auth-token": "x"}, content=b"{}")

    assert [one.status_code for one in (refused, anonymous, wrong)] == [403, 401, 401]


AUTHS: list[Any] = [
    None,
    [],
    {},
    {"identity": None},
    {"identity": {}},
    {"identity": {"methods": "password"}},
    {"identity": {"methods": ["password"]}},
    {"identity": {"methods": ["password"], "password": {}}},
    {"identity": {"methods": ["password"], "password": {"user": {"password": "x"}}}},
    {"identity": {"methods": ["token"], "token": {}}},
    {"identity": {"methods": ["application_credential"], "application_credential": {"id": 1}}},
    login("admin", ADMIN_PASSWORD, None) | {"scope": "everything"},
    login("admin", ADMIN_PASSWORD, None) | {"scope": []},
    login("admin", ADMIN_PASSWORD, None) | {"scope": {"project": {}}},
    login("admin", ADMIN_PASSWORD, None) | {"scope": {"project": {"id": 1}}},
    login("admin", "p" * 5000, None),
]


@pytest.mark.parametrize("auth", AUTHS)
async def test_a_bad_login_is_a_bad_request(world: Embedded, auth: Any) -> None:
    response = await world.client.post(f"{V3}/auth/tokens", json={"auth": auth})

    assert response.status_code == 400, response.text


@pytest.mark.parametrize("methods", [[], ["totp"], ["password", "token"], ["x" * 1000]])
async def test_other_methods_of_proof_are_refused(world: Embedded, methods: list[str]) -> None:
    response = await world.client.post(f"{V3}/auth/tokens", json={"auth": {"identity": {"methods": methods}}})

    assert response.status_code == 401
    assert "unsupported method" in response.json()["error"]["message"]


@pytest.mark.parametrize("announce", [True, False])
async def test_a_body_that_is_too_large_is_refused(world: Embedded, announce: bool) -> None:  # noqa: FBT001
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(40):
            yield b" " * 32_768

    content = b" " * 40 * 32_768 if announce else chunks()
    response = await world.client.post(f"{V3}/auth/tokens", content=content)

    assert response.status_code == 413
    assert response.json()["error"] == {
        "code": 413,
        "message": "The request's body is larger than 1048576 bytes.",
        "title": "Request Entity Too Large",
    }


async def test_other_addresses_and_methods_are_told_so(world: Embedded) -> None:
    nothing = await world.client.get(f"{V3}/nothing")
    method = await world.client.delete(f"{V3}/users")

    assert nothing.json()["error"] == {
        "code": 404,
        "message": "The resource could not be found.",
        "title": "Not Found",
    }
    assert method.status_code == 405
    assert method.headers["allow"] == "GET, HEAD, POST"
    assert method.headers["x-openstack-request-id"].startswith("req-")


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/users/a%00b", 404),
        ("/users?name=a%00b", 404),
        ("/users/%ff", 404),
        ("/users?name=%ff%fe", 200),
        (f"/users/{'x' * 5000}", 404),
        ("/projects?limit=-1", 400),
        ("/projects?limit=x", 400),
        (f"/projects?limit={'9' * 5000}", 400),
        ("/projects?enabled=perhaps", 400),
        ("/projects?parent_id=%F0%9F%98%80", 200),
        ("/role_assignments?effective=perhaps", 400),
        ("/projects?marker=%00", 404),
    ],
)
async def test_an_odd_address_is_no_fault_of_ours(world: Embedded, path: str, status: int) -> None:
    response = await world.client.get(V3 + path, headers=await world.admin())

    assert response.status_code == status, response.text


_KEYS = st.sampled_from(
    [
        "auth", "identity", "methods", "password", "token", "user", "name", "id", "domain", "scope", "project",
        "role", "enabled", "options", "immutable", "tags", "domain_id", "parent_id", "x", "application_credential",
        "original_password", "expires_at", "secret", "roles",
    ]
)  # fmt: skip
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=4),
    max_leaves=12,
)


async def test_nothing_that_is_said_breaks_anything(world: Embedded) -> None:
    """Any JSON, to every address that reads some."""
    admin = await world.admin()
    user = await world.id_of("user", "admin")
    targets = [
        ("POST", f"{V3}/auth/tokens", "auth"),
        ("POST", f"{V3}/users", "user"),
        ("POST", f"{V3}/projects", "project"),
        ("POST", f"{V3}/roles", "role"),
        ("PATCH", f"{V3}/users/{await world.id_of('user', 'demo')}", "user"),
        ("PATCH", f"{V3}/projects/{await world.id_of('project', 'demo')}", "project"),
        ("POST", f"{V3}/users/{user}/password", "user"),
        ("POST", f"{V3}/users/{user}/application_credentials", "application_credential"),
    ]
    bodies: list[tuple[tuple[str, str, str], Any]] = []

    @hypothesis.settings(max_examples=250)
    @hypothesis.given(st.sampled_from(targets), st.dictionaries(_KEYS, _JSON, max_size=5))
    def collect(target: tuple[str, str, str], value: dict[str, Any]) -> None:
        bodies.append((target, value))

    collect()
    for (method, path, member), value in bodies:
        content = json.dumps({member: value}).encode()
        response = await world.client.request(method, path, content=content, headers=admin)
        assert response.status_code < 500, (method, path, content, response.text)
