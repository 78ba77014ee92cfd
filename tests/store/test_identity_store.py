"""The identity tables: uniqueness, cascades, and what a token's holder is worth."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from stateward.domain.errors import Conflict, NotFound
from stateward.store import identity as directory, identity_standing as standing
from stateward.store.engine import Database
from stateward.store.identity_tables import DOMAINS, GRANTS, PROJECTS, REVOKED, ROLES, USERS

HASHES = {"admin": "hash a", "demo": "hash d"}

#: Begins an id that sorts before every one that is made up.
FIRST = "0" * 31


def project(name: str, **values: Any) -> dict[str, Any]:
    return {
        "id": f"id of {name}",
        "domain_id": "default",
        "name": name,
        "description": "",
        "enabled": True,
        "immutable": False,
        "tags": (),
        "extra": {},
        **values,
    }


async def ids(database: Database, user: str, project_name: str, role: str) -> tuple[str, str, str]:
    def look(connection: sa.Connection) -> tuple[str, str, str]:
        found = [
            directory.page(connection, table, {"name": name})[0]["id"]
            for table, name in ((USERS, user), (PROJECTS, project_name), (ROLES, role))
        ]
        return found[0], found[1], found[2]

    return await database.read(look)


async def test_first_start_data_are_written_once(database: Database) -> None:
    assert not await database.read(standing.is_bootstrapped)
    await database.write(lambda connection: standing.bootstrap(connection, HASHES))
    assert await database.read(standing.is_bootstrapped)

    with pytest.raises(IntegrityError):
        await database.write(lambda connection: standing.bootstrap(connection, HASHES))

    found = await database.read(directory.assignments)
    assert [(one.user_name, one.project_name, one.role_name) for one in found] == [
        ("admin", "admin", "admin"),
        ("demo", "demo", "member"),
    ]
    assert [row["name"] for row in await database.read(lambda c: directory.page(c, DOMAINS, {}))] == [
        "Default"
    ]


async def test_a_name_is_taken_once_in_a_domain_however_many_ask_at_once(database: Database) -> None:
    await database.write(lambda connection: standing.bootstrap(connection, HASHES))

    async def insert(number: int) -> str:
        try:
            row = await database.write(
                lambda c: directory.insert(c, PROJECTS, project("one", id=f"id {number}"))
            )
        except Conflict as error:
            return str(error)
        return str(row["id"])

    answers = await asyncio.gather(*(insert(number) for number in range(6)))

    refused = "Conflict occurred attempting to store project - Duplicate entry found with name one."
    assert sorted(answers)[:5] == [refused] * 5
    assert sorted(answers)[5].startswith("id ")


async def test_a_row_that_names_what_is_not_there_is_a_conflict(database: Database) -> None:
    with pytest.raises(Conflict, match="The project refers to something that does not exist any more"):
        await database.write(lambda c: directory.insert(c, PROJECTS, project("one", domain_id="nowhere")))


async def test_a_project_with_others_below_it_cannot_be_deleted(database: Database) -> None:
    await database.write(lambda connection: standing.bootstrap(connection, HASHES))
    await database.write(lambda c: directory.insert(c, PROJECTS, project("parent")))
    await database.write(lambda c: directory.insert(c, PROJECTS, project("child", parent_id="id of parent")))

    with pytest.raises(Conflict, match="still has others that belong to it"):
        await database.write(lambda c: directory.delete(c, PROJECTS, "id of parent"))
    await database.write(lambda c: directory.delete(c, PROJECTS, "id of child"))
    await database.write(lambda c: directory.delete(c, PROJECTS, "id of parent"))

    with pytest.raises(NotFound, match="Could not find project: id of parent"):
        await database.write(lambda c: directory.delete(c, PROJECTS, "id of parent"))


@pytest.mark.parametrize("table", [USERS, PROJECTS, ROLES])
async def test_grants_go_with_what_they_are_about(database: Database, table: sa.Table) -> None:
    await database.write(lambda connection: standing.bootstrap(connection, HASHES))
    found = dict(zip((USERS, PROJECTS, ROLES), await ids(database, "demo", "demo", "member"), strict=True))

    await database.write(lambda c: directory.delete(c, table, found[table]))

    left = await database.read(lambda c: c.execute(sa.select(sa.func.count()).select_from(GRANTS)).scalar())
    assert left == 1


async def test_a_role_is_granted_once_and_taken_away_once(database: Database) -> None:
    await database.write(lambda connection: standing.bootstrap(connection, HASHES))
    grant = await ids(database, "demo", "admin", "reader")

    assert not await database.read(lambda c: directory.has_grant(c, *grant))
    await asyncio.gather(*(database.write(lambda c: directory.grant(c, *grant)) for _ in range(4)))
    assert await database.read(lambda c: directory.has_grant(c, *grant))

    await database.write(lambda c: directory.ungrant(c, *grant))
    with pytest.raises(NotFound, match="Could not find role assignment"):
        await database.write(lambda c: directory.ungrant(c, *grant))


@pytest.mark.parametrize(("missing", "what"), [(0, "user"), (1, "project"), (2, "role")])
async def test_a_grant_needs_all_three(database: Database, missing: int, what: str) -> None:
    await database.write(lambda connection: standing.bootstrap(connection, HASHES))
    grant = list(await ids(database, "demo", "admin", "reader"))
    grant[missing] = "nothing"

    with pytest.raises(NotFound, match=f"Could not find {what}: nothing"):
        await database.write(lambda c: directory.grant(c, *grant))


async def test_standing_has_the_roles_that_others_imply(database: Database) -> None:
    await database.write(lambda connection: standing.bootstrap(connection, HASHES))
    user_id, project_id, _role = await ids(database, "admin", "admin", "admin")
    demo_id, demo_project, _role = await ids(database, "demo", "demo", "member")

    at_admin = await database.read(lambda c: standing.standing(c, user_id, project_id))
    at_demo = await database.read(lambda c: standing.standing(c, demo_id, demo_project))
    elsewhere = await database.read(lambda c: standing.standing(c, demo_id, project_id))
    nowhere = await database.read(lambda c: standing.standing(c, demo_id, None))

    assert at_admin is not None
    assert at_demo is not None
    assert elsewhere is not None
    assert nowhere is not None
    assert at_admin.roles == {"admin", "member", "reader"}
    assert at_demo.roles == {"member", "reader"}
    assert elsewhere.roles == frozenset()
    assert (nowhere.roles, nowhere.project_name) == (frozenset(), None)
    assert await database.read(lambda c: standing.standing(c, "nobody", project_id)) is None
    assert await database.read(lambda c: standing.standing(c, user_id, "nothing")) is None


async def test_a_disabled_domain_disables_its_users_and_projects(database: Database) -> None:
    await database.write(lambda connection: standing.bootstrap(connection, HASHES))
    user_id, project_id, _role = await ids(database, "demo", "demo", "member")

    await database.write(lambda c: directory.update(c, DOMAINS, "default", {"enabled": False}))

    now = await database.read(lambda c: standing.standing(c, user_id, project_id))
    assert now is not None
    assert (now.user_enabled, now.project_enabled) == (False, False)


async def test_revoked_tokens_are_forgotten_when_they_would_have_expired(database: Database) -> None:
    await database.write(lambda c: standing.revoke(c, "first", expires_at=100.0, now=10.0))
    await database.write(lambda c: standing.revoke(c, "first", expires_at=100.0, now=20.0))
    assert await database.read(lambda c: standing.is_revoked(c, "first"))
    assert not await database.read(lambda c: standing.is_revoked(c, "second"))

    await database.write(lambda c: standing.revoke(c, "second", expires_at=300.0, now=100.0))

    left = await database.read(lambda c: c.execute(sa.select(REVOKED.c.audit_id)).scalars().all())
    assert left == ["second"]


async def test_every_change_is_counted(database: Database) -> None:
    assert await database.read(directory.generation) == 0
    await database.write(lambda connection: standing.bootstrap(connection, HASHES))
    before = await database.read(directory.generation)

    await asyncio.gather(*(database.write(directory.count_change) for _ in range(5)))

    assert await database.read(directory.generation) == before + 5


async def test_a_list_is_paged_by_id(database: Database) -> None:
    await database.write(lambda connection: standing.bootstrap(connection, HASHES))

    def insert(connection: sa.Connection) -> None:
        for name in "abcd":
            directory.insert(connection, PROJECTS, project(name, id=f"{FIRST}{name}", enabled=name != "c"))

    await database.write(insert)
    first = await database.read(lambda c: directory.page(c, PROJECTS, {}, limit=2))
    second = await database.read(lambda c: directory.page(c, PROJECTS, {}, after=first[-1]["id"], limit=1))
    disabled = await database.read(lambda c: directory.page(c, PROJECTS, {"enabled": False}))
    top = await database.read(lambda c: directory.page(c, PROJECTS, {"parent_id": None, "name": "a"}))

    assert [row["id"] for row in first] == [f"{FIRST}a", f"{FIRST}b"]
    assert [row["id"] for row in second] == [f"{FIRST}c"]
    assert [row["id"] for row in disabled] == [f"{FIRST}c"]
    assert [row["id"] for row in top] == [f"{FIRST}a"]
