"""Tokens: who gets one, what it says, and that what takes it away takes it away at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import sqlalchemy as sa

from stateward.api.faults import Unauthorized
from stateward.api.identity import Identity
from stateward.api.identity.passwords import Passwords
from stateward.store import identity as directory
from stateward.store.engine import Database, T, Work
from stateward.store.identity_tables import GENERATION
from tests.api.embedded import (
    ADMIN_PASSWORD,
    DEMO_PASSWORD,
    SECRET,
    Embedded,
    SetClock,
    embedded,
    login,
    new_identity,
)

TOKENS = "/identity/v3/auth/tokens"
REFUSED = {
    "error": {
        "code": 401,
        "message": "The request you have made requires authentication.",
        "title": "Unauthorized",
    }
}


@pytest_asyncio.fixture
async def world(database: Database, tmp_path: Path) -> AsyncIterator[Embedded]:
    async with embedded(database, tmp_path / "images") as world:
        yield world


async def test_a_token_says_who_has_it_and_for_what(world: Embedded) -> None:
    response = await world.client.post(TOKENS, json={"auth": login("demo", DEMO_PASSWORD, "demo")})

    assert response.status_code == 201
    token = response.json()["token"]
    user_id, project_id = await world.id_of("user", "demo"), await world.id_of("project", "demo")
    assert token["methods"] == ["password"]
    assert token["user"] == {
        "id": user_id,
        "name": "demo",
        "domain": {"id": "default", "name": "Default"},
        "password_expires_at": None,
    }
    assert token["project"] == {
        "id": project_id,
        "name": "demo",
        "domain": {"id": "default", "name": "Default"},
    }
    assert [role["name"] for role in token["roles"]] == ["member", "reader"]
    assert token["issued_at"] == "2027-01-15T08:00:00.000000Z"
    assert token["expires_at"] == "2027-01-15T09:00:00.000000Z"
    assert [service["type"] for service in token["catalog"]] == [
        "compute",
        "compute_legacy",
        "image",
        "network",
        "stateward",
        "identity",
    ]
    assert [
        (endpoint["interface"], endpoint["region"], endpoint["url"])
        for endpoint in token["catalog"][1]["endpoints"]
    ] == [
        (interface, "RegionOne", f"http://cloud.test:8774/compute/v2/{project_id}")
        for interface in ("public", "internal", "admin")
    ]
    verified = await world.identity.verify(response.headers["x-subject-token"])
    assert verified.user_id == user_id
    assert verified.project_id == project_id
    assert verified.roles == {"member", "reader"}
    assert (verified.is_admin, verified.is_member, verified.is_reader) == (False, True, True)
    assert verified.audit_id == token["audit_ids"][0]
    assert (verified.issued_at, verified.expires_at) == (1_800_000_000.0, 1_800_003_600.0)


async def test_the_catalog_is_at_the_configured_address(database: Database, tmp_path: Path) -> None:
    async with embedded(database, tmp_path, public_url="https://cloud.example/") as world:
        response = await world.client.get("/identity/v3/auth/catalog", headers=await world.demo())

    catalog = {service["type"]: service["endpoints"][0]["url"] for service in response.json()["catalog"]}
    assert catalog["compute"] == "https://cloud.example/compute/v2.1"
    assert catalog["identity"] == "https://cloud.example/identity"


@pytest.mark.parametrize(
    ("user", "password", "project"),
    [("demo", "wrong", "demo"), ("nobody", DEMO_PASSWORD, "demo"), ("demo", "", "demo")],
)
async def test_a_wrong_proof_is_refused_without_saying_what_is_wrong(
    world: Embedded, user: str, password: str, project: str
) -> None:
    response = await world.client.post(TOKENS, json={"auth": login(user, password, project)})

    assert response.status_code == 401
    assert response.json() == REFUSED
    assert response.headers["www-authenticate"] == 'Keystone uri="/identity"'


async def test_a_user_is_found_by_id_and_by_the_domains_name(world: Embedded) -> None:
    user_id, project_id = await world.id_of("user", "demo"), await world.id_of("project", "demo")
    by_id = {
        "identity": {
            "methods": ["password"],
            "password": {"user": {"id": user_id, "password": DEMO_PASSWORD}},
        },
        "scope": {"project": {"id": project_id}},
    }
    by_name = login("demo", DEMO_PASSWORD, "demo")
    by_name["identity"]["password"]["user"]["domain"] = {"name": "Default"}
    by_name["scope"]["project"]["domain"] = {"name": "Default"}
    without_domain = login("demo", DEMO_PASSWORD, "demo")
    del without_domain["identity"]["password"]["user"]["domain"]
    elsewhere = login("demo", DEMO_PASSWORD, "demo")
    elsewhere["identity"]["password"]["user"]["domain"] = {"name": "Nowhere"}

    statuses = [
        (await world.client.post(TOKENS, json={"auth": auth})).status_code
        for auth in (by_id, by_name, without_domain, elsewhere)
    ]

    assert statuses == [201, 201, 201, 401]


@pytest.mark.parametrize("project", ["admin", "nothing"])
async def test_there_is_no_token_for_a_project_without_a_role(world: Embedded, project: str) -> None:
    response = await world.client.post(TOKENS, json={"auth": login("demo", DEMO_PASSWORD, project)})

    assert response.status_code == 401


@pytest.mark.parametrize(
    "scope",
    [{"system": {"all": True}}, {"domain": {"id": "default"}}, {"OS-TRUST:trust": {"id": "x"}}],
)
async def test_other_scopes_are_refused_in_plain_words(world: Embedded, scope: dict[str, Any]) -> None:
    response = await world.client.post(
        TOKENS, json={"auth": login("admin", ADMIN_PASSWORD, None) | {"scope": scope}}
    )

    assert response.status_code == 401
    assert response.json()["error"]["message"] == (
        "Tokens are for a project or unscoped: there are no system, domain or trust scopes."
    )


@pytest.mark.parametrize("scope", ["unscoped", {"unscoped": {}}])
async def test_an_unscoped_token_is_good_for_asking_for_another(world: Embedded, scope: Any) -> None:
    unscoped = await world.client.post(
        TOKENS, json={"auth": login("demo", DEMO_PASSWORD, None) | {"scope": scope}}
    )
    assert unscoped.status_code == 201
    assert unscoped.json()["token"].keys().isdisjoint({"project", "roles", "catalog"})
    headers = {"x-auth-token": unscoped.headers["x-subject-token"]}

    projects = await world.client.get("/identity/v3/auth/projects", headers=headers)
    catalog = await world.client.get("/identity/v3/auth/catalog", headers=headers)
    world.clock.time += 60.0
    rescoped = await world.client.post(
        TOKENS,
        json={
            "auth": {
                "identity": {"methods": ["token"], "token": {"id": headers["x-auth-token"]}},
                "scope": {"project": {"id": projects.json()["projects"][0]["id"]}},
            }
        },
    )

    assert [project["name"] for project in projects.json()["projects"]] == ["demo"]
    assert catalog.json()["catalog"] == []
    assert rescoped.status_code == 201
    assert rescoped.json()["token"]["methods"] == ["password", "token"]
    # A token can be made from a token for ever, but not make it live longer.
    assert rescoped.json()["token"]["expires_at"] == "2027-01-15T09:00:00.000000Z"
    assert rescoped.json()["token"]["issued_at"] == "2027-01-15T08:01:00.000000Z"


async def test_without_a_scope_the_default_project_counts_if_there_is_a_role_on_it(world: Embedded) -> None:
    admin = await world.admin()
    user_id, project_id = await world.id_of("user", "demo"), await world.id_of("project", "demo")
    scopes: list[str | None] = []
    for default in (None, project_id, await world.id_of("project", "admin"), "nothing"):
        await world.client.patch(
            f"/identity/v3/users/{user_id}", json={"user": {"default_project_id": default}}, headers=admin
        )
        response = await world.client.post(TOKENS, json={"auth": login("demo", DEMO_PASSWORD, None)})
        scopes.append(response.json()["token"].get("project", {}).get("name"))

    assert scopes == [None, "demo", None, None]


async def test_a_token_expires(world: Embedded) -> None:
    headers = await world.demo()
    token = headers["x-auth-token"]
    world.clock.time += 3599.0
    assert (await world.identity.verify(token)).user_name == "demo"

    world.clock.time += 1.0

    with pytest.raises(Unauthorized, match="The token has expired"):
        await world.identity.verify(token)


@pytest.mark.parametrize("token", ["", "x", "a.b", "é.ß", "." * 100, "a" * 10_000])
async def test_what_is_no_token_is_unauthorized(world: Embedded, token: str) -> None:
    with pytest.raises(Unauthorized, match="was not issued by this service"):
        await world.identity.verify(token)


async def test_a_token_of_another_secret_is_unauthorized(world: Embedded) -> None:
    other = Identity(world.database, world.clock, b"another secret", passwords=Passwords(rounds=4))
    user_id = await world.id_of("user", "demo")
    token, _verified = await other.issue(user_id=user_id, project_id=None, epoch=0, methods=("password",))
    other.close()

    with pytest.raises(Unauthorized, match="was not issued by this service"):
        await world.identity.verify(token)


Take = Callable[[Embedded, str, str, dict[str, str]], Awaitable[None]]


async def _patch(world: Embedded, path: str, body: dict[str, Any]) -> None:
    response = await world.client.patch(f"/identity/v3/{path}", json=body, headers=await world.admin())
    assert response.status_code == 200, response.text


async def disable_user(world: Embedded, user: str, _project: str, _headers: dict[str, str]) -> None:
    await _patch(world, f"users/{user}", {"user": {"enabled": False}})


async def disable_and_enable_user(
    world: Embedded, user: str, _project: str, _headers: dict[str, str]
) -> None:
    await _patch(world, f"users/{user}", {"user": {"enabled": False}})
    await _patch(world, f"users/{user}", {"user": {"enabled": True}})


async def set_password(world: Embedded, user: str, _project: str, _headers: dict[str, str]) -> None:
    await _patch(world, f"users/{user}", {"user": {"password": "another"}})


async def set_own_password(world: Embedded, user: str, _project: str, headers: dict[str, str]) -> None:
    response = await world.client.post(
        f"/identity/v3/users/{user}/password",
        json={"user": {"original_password": DEMO_PASSWORD, "password": "another"}},
        headers=headers,
    )
    assert response.status_code == 204, response.text


async def disable_project(world: Embedded, _user: str, project: str, _headers: dict[str, str]) -> None:
    await _patch(world, f"projects/{project}", {"project": {"enabled": False}})


async def delete_user(world: Embedded, user: str, _project: str, _headers: dict[str, str]) -> None:
    response = await world.client.delete(f"/identity/v3/users/{user}", headers=await world.admin())
    assert response.status_code == 204


async def delete_project(world: Embedded, _user: str, project: str, _headers: dict[str, str]) -> None:
    response = await world.client.delete(f"/identity/v3/projects/{project}", headers=await world.admin())
    assert response.status_code == 204


async def take_role(world: Embedded, user: str, project: str, _headers: dict[str, str]) -> None:
    role = await world.id_of("role", "member")
    response = await world.client.delete(
        f"/identity/v3/projects/{project}/users/{user}/roles/{role}", headers=await world.admin()
    )
    assert response.status_code == 204


async def revoke(world: Embedded, _user: str, _project: str, headers: dict[str, str]) -> None:
    response = await world.client.delete(
        TOKENS, headers=headers | {"x-subject-token": headers["x-auth-token"]}
    )
    assert response.status_code == 204


TAKES: list[tuple[Take, str]] = [
    (disable_user, "user is disabled"),
    (disable_and_enable_user, "password was changed"),
    (set_password, "password was changed"),
    (set_own_password, "password was changed"),
    (disable_project, "is disabled"),
    (delete_user, "does not exist"),
    (delete_project, "does not exist"),
    (take_role, "has no access to project"),
    (revoke, "was revoked"),
]


@pytest.mark.parametrize(("take", "says"), TAKES)
async def test_what_takes_a_token_away_takes_it_away_at_once(world: Embedded, take: Take, says: str) -> None:
    user, project = await world.id_of("user", "demo"), await world.id_of("project", "demo")
    headers = await world.demo()
    other = new_identity(world.database, world.clock)
    for service in (world.identity, other):
        assert (await service.verify(headers["x-auth-token"])).user_name == "demo"

    await take(world, user, project, headers)

    with pytest.raises(Unauthorized, match=says):
        await world.identity.verify(headers["x-auth-token"])
    assert (await world.client.get("/identity/v3/auth/projects", headers=headers)).status_code == 401
    # Another process remembers the token, for a second at most.
    world.clock.time += 1.0
    with pytest.raises(Unauthorized, match=says):
        await other.verify(headers["x-auth-token"])
    other.close()


async def test_a_role_given_counts_at_once(world: Embedded) -> None:
    headers = await world.demo()
    assert not (await world.identity.verify(headers["x-auth-token"])).is_admin

    await world.grant(await world.id_of("user", "demo"), await world.id_of("project", "demo"), "admin")

    assert (await world.identity.verify(headers["x-auth-token"])).is_admin


async def test_revoking_twice_at_once_is_revoking(world: Embedded) -> None:
    sealed = (await world.demo())["x-auth-token"]
    token = await world.identity.verify(sealed)

    await asyncio.gather(*(world.identity.revoke(token) for _ in range(4)))

    with pytest.raises(Unauthorized, match="was revoked"):
        await world.identity.verify(sealed)


class Counting:
    """Counts what is read of a database."""

    def __init__(self, database: Database) -> None:
        self.dialect = database.dialect
        self._database = database
        self.reads = 0
        self.after: Callable[[], Awaitable[object]] | None = None

    async def read(self, work: Work[T]) -> T:
        self.reads += 1
        found = await self._database.read(work)
        after, self.after = self.after, None
        if after is not None:
            await after()
        return found

    async def write(self, work: Work[T]) -> T:
        return await self._database.write(work)

    async def seal(self) -> None:
        await self._database.seal()

    async def close(self) -> None:
        await self._database.close()


async def test_a_remembered_token_costs_no_look_at_the_database(world: Embedded) -> None:
    counting = Counting(world.database)
    identity = Identity(counting, world.clock, SECRET, passwords=Passwords(rounds=4))
    token = (await world.demo())["x-auth-token"]
    first = await identity.verify(token)
    before = counting.reads

    for _ in range(100):
        assert await identity.verify(token) is first
    assert counting.reads == before

    # After a second it looks whether anything has changed, once; nothing has.
    world.clock.time += 1.0
    for _ in range(100):
        assert await identity.verify(token) is first
    assert counting.reads == before + 1

    # A clock that was set back is no reason to trust for longer.
    world.clock.time -= 100.0
    assert await identity.verify(token) is first
    assert counting.reads == before + 2
    identity.close()


async def test_what_was_read_before_a_change_is_not_remembered_after_it(world: Embedded) -> None:
    counting = Counting(world.database)
    identity = Identity(counting, world.clock, SECRET, passwords=Passwords(rounds=4))
    user, project = await world.id_of("user", "demo"), await world.id_of("project", "demo")
    headers = await world.demo()
    await identity.verify((await world.admin())["x-auth-token"])
    role = await world.id_of("role", "member")

    async def meanwhile() -> None:
        await identity.change(lambda connection: directory.ungrant(connection, user, project, role))

    counting.after = meanwhile
    # This look came before the change and may say so; nothing may keep what it saw.
    assert (await identity.verify(headers["x-auth-token"])).user_name == "demo"

    with pytest.raises(Unauthorized, match="has no access"):
        await identity.verify(headers["x-auth-token"])
    identity.close()


async def test_a_look_from_before_a_change_does_not_take_it_back(world: Embedded) -> None:
    """Two requests read before a revocation and go on after it: neither makes the token count again."""
    counting = Counting(world.database)
    identity = Identity(counting, world.clock, SECRET, passwords=Passwords(rounds=4))
    token, admin = (await world.demo())["x-auth-token"], (await world.admin())["x-auth-token"]
    await identity.verify(admin)
    revoked = await world.identity.verify(token)

    async def reads_and_waits(sealed: str) -> tuple[asyncio.Future[Any], asyncio.Event]:
        has_read, goes_on = asyncio.Event(), asyncio.Event()

        async def wait() -> None:
            has_read.set()
            await goes_on.wait()

        counting.after = wait
        request = asyncio.ensure_future(identity.verify(sealed))
        await has_read.wait()
        return request, goes_on

    # One has to examine the token; by the other's time it must be looked whether anything has changed.
    examines, examine = await reads_and_waits(token)
    world.clock.time += 1.0
    looks, look = await reads_and_waits(admin)
    await identity.revoke(revoked)
    look.set()
    await looks
    examine.set()
    # This one came before the revocation and may say so; nothing may keep what it saw.
    assert (await examines).user_name == "demo"

    with pytest.raises(Unauthorized, match="was revoked"):
        await identity.verify(token)
    identity.close()


async def test_after_the_database_went_back_no_change_of_others_goes_unnoticed(world: Embedded) -> None:
    """A standby that took over may lack the last changes; its generation comes to the old number a second time."""
    other = new_identity(world.database, world.clock)
    token = (await world.demo())["x-auth-token"]
    verified = await world.identity.verify(token)
    await world.identity.change(lambda _connection: None)
    assert (await world.identity.verify(token)).user_name == "demo"
    await world.database.write(
        lambda connection: connection.execute(sa.update(GENERATION).values(number=GENERATION.c.number - 1))
    )
    world.clock.time += 1.0
    assert (await world.identity.verify(token)).user_name == "demo"

    await other.revoke(verified)

    world.clock.time += 1.0
    with pytest.raises(Unauthorized, match="was revoked"):
        await world.identity.verify(token)
    other.close()


async def test_tokens_are_shown_to_their_holder_and_to_administrators(world: Embedded) -> None:
    admin, demo = await world.admin(), await world.demo()
    subject = {"x-subject-token": demo["x-auth-token"]}
    about_admin = {"x-subject-token": admin["x-auth-token"]}

    own = await world.client.get(TOKENS, headers=demo | subject)
    by_admin = await world.client.get(f"{TOKENS}?nocatalog", headers=admin | subject)
    by_other = await world.client.get(TOKENS, headers=demo | about_admin)
    nothing = await world.client.get(TOKENS, headers=admin | {"x-subject-token": "x"})
    unsaid = await world.client.get(TOKENS, headers=admin)
    anonymous = await world.client.get(TOKENS, headers=subject)
    head = await world.client.head(TOKENS, headers=admin | subject)

    assert own.status_code == 200
    assert own.headers["x-subject-token"] == demo["x-auth-token"]
    assert own.json()["token"]["user"]["name"] == "demo"
    assert "catalog" in own.json()["token"]
    assert "catalog" not in by_admin.json()["token"]
    statuses = [one.status_code for one in (by_other, nothing, unsaid, anonymous, head)]
    assert statuses == [403, 404, 400, 401, 200]


async def test_first_start_data_are_made_once(database: Database) -> None:
    one, two = new_identity(database, SetClock()), new_identity(database, SetClock())
    assert not await one.is_bootstrapped()

    made = await asyncio.gather(
        one.bootstrap(admin_password="a", demo_password="b"),
        two.bootstrap(admin_password="c", demo_password="d"),
    )

    assert sorted(made) == [False, True]
    assert await one.is_bootstrapped()

    class NoPasswords(Passwords):
        async def hash(self, password: str) -> str:
            raise AssertionError(password)

    later = Identity(database, SetClock(), SECRET, passwords=NoPasswords())
    assert not await later.bootstrap(admin_password="e", demo_password="f")
    for identity in (one, two, later):
        identity.close()


@pytest.mark.parametrize("password", ["short", "é" * 500, "p" * 80, "a b"])
async def test_passwords_of_any_length_are_told_apart(password: str) -> None:
    passwords = Passwords(rounds=4)
    hashed = await passwords.hash(password)

    assert await passwords.matches(password, hashed)
    assert not await passwords.matches(f"{password}x", hashed)
    assert not await passwords.matches(password, None)
    passwords.close()


async def test_discovery_names_the_version_and_where_it_is(world: Embedded) -> None:
    listing = await world.client.get("/identity/")
    version = await world.client.get("/identity/v3")
    slash = await world.client.get("/identity/v3/")

    v3 = {
        "id": "v3.14",
        "status": "stable",
        "updated": "2020-04-07T00:00:00Z",
        "links": [{"rel": "self", "href": "http://cloud.test:8774/identity/v3/"}],
        "media-types": [{"base": "application/json", "type": "application/vnd.openstack.identity-v3+json"}],
    }
    assert (listing.status_code, listing.json()) == (300, {"versions": {"values": [v3]}})
    assert (version.status_code, version.json()) == (200, {"version": v3})
    assert slash.json() == version.json()
