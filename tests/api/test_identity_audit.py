"""Administrators' logins are in the audit trail."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa

from stateward.api.identity import Identity
from stateward.store.engine import Database, StoreUnavailable
from stateward.store.tables import AUDIT
from tests.api.embedded import ADMIN_PASSWORD, DEMO_PASSWORD, embedded, login

TOKENS = "/identity/v3/auth/tokens"


async def test_who_logged_in_and_how(database: Database, tmp_path: Path) -> None:
    """An admin, with the request's id and the token's; not a member, and not who failed."""
    async with embedded(database, tmp_path / "images") as world:
        await world.client.post(TOKENS, json={"auth": login("demo", DEMO_PASSWORD, "demo")})
        refused = await world.client.post(TOKENS, json={"auth": login("admin", "wrong", "admin")})
        assert refused.status_code == 401
        entered = await world.client.post(TOKENS, json={"auth": login("admin", ADMIN_PASSWORD, "admin")})
        await database.seal()
        rows = await database.read(lambda connection: connection.execute(sa.select(AUDIT)).all())
        (row,) = rows
        assert (row.event, row.actor_kind, row.instance_id) == ("login", "admin", None)
        assert row.user_id == await world.id_of("user", "admin")
        assert row.project_id == await world.id_of("project", "admin")
        assert row.request_id == entered.headers["x-openstack-request-id"]
        (token,) = entered.json()["token"]["audit_ids"]
        assert row.detail == {"methods": ["password"], "token": token}


async def test_no_login_without_a_record(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An administrator's token that nobody would know of is not handed out."""

    async def away(*_arguments: object) -> None:
        raise StoreUnavailable("The database cannot be used now: it is away")

    async with embedded(database, tmp_path / "images") as world:
        monkeypatch.setattr(Identity, "record_login", away)
        answer = await world.client.post(TOKENS, json={"auth": login("admin", ADMIN_PASSWORD, "admin")})
        assert answer.status_code == 503
        assert "x-subject-token" not in answer.headers
