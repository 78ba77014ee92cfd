"""The embedded identity and image services behind one address, in this process, on a clock that tests set."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import AsyncGenerator, Generator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import sqlalchemy as sa
from starlette.applications import Starlette
from starlette.routing import Mount

from stateward.api.identity import Identity, identity_routes
from stateward.api.identity.passwords import Passwords
from stateward.api.images import Images, image_routes
from stateward.store.engine import Database
from tests import postgres

ADMIN_PASSWORD = "a password for admin"
DEMO_PASSWORD = "a password for demo"
SECRET = b"signs the tokens of tests"


class SetClock:
    """Tells the time it was set to, in seconds since the epoch."""

    def __init__(self) -> None:
        """Begin at a moment that is easy to recognise: 2027-01-15T08:00:00Z."""
        self.time = 1_800_000_000.0

    def now(self) -> float:
        """Return it."""
        return self.time


class Embedded:
    """The services, and a client of them."""

    def __init__(
        self,
        *,
        database: Database,
        folder: Path,
        client: httpx2.AsyncClient,
        clock: SetClock,
        identity: Identity,
        images: Images,
    ) -> None:
        """Keep the parts."""
        self.database = database
        self.folder = folder
        self.client = client
        self.clock = clock
        self.identity = identity
        self.images = images

    async def log_in(self, user: str, password: str, project: str | None) -> dict[str, str]:
        """Return the headers of a user's requests, with a new token."""
        response = await self.client.post(
            "/identity/v3/auth/tokens", json={"auth": login(user, password, project)}
        )
        assert response.status_code == 201, response.text
        return {"x-auth-token": response.headers["x-subject-token"]}

    async def admin(self) -> dict[str, str]:
        """Return the headers of an administrator's requests."""
        return await self.log_in("admin", ADMIN_PASSWORD, "admin")

    async def demo(self) -> dict[str, str]:
        """Return the headers of a member's requests."""
        return await self.log_in("demo", DEMO_PASSWORD, "demo")

    async def make(self, kind: str, headers: dict[str, str], **values: Any) -> dict[str, Any]:
        """Make a project, user or role, and return what the answer says of it."""
        response = await self.client.post(f"/identity/v3/{kind}s", json={kind: values}, headers=headers)
        assert response.status_code == 201, response.text
        made: dict[str, Any] = response.json()[kind]
        return made

    async def id_of(self, kind: str, name: str) -> str:
        """Return the id of a project, user or role."""
        response = await self.client.get(
            f"/identity/v3/{kind}s", params={"name": name}, headers=await self.admin()
        )
        found: str = response.json()[f"{kind}s"][0]["id"]
        return found

    async def grant(self, user_id: str, project_id: str, role: str) -> None:
        """Give a user a role on a project."""
        role_id = await self.id_of("role", role)
        response = await self.client.put(
            f"/identity/v3/projects/{project_id}/users/{user_id}/roles/{role_id}", headers=await self.admin()
        )
        assert response.status_code == 204, response.text


def new_identity(database: Database, clock: SetClock) -> Identity:
    """Make an identity service whose password hashes cost little."""
    return Identity(database, clock, SECRET, passwords=Passwords(rounds=4))


def login(user: str, password: str, project: str | None) -> dict[str, Any]:
    """Return the ``auth`` of a login with a password."""
    domain = {"id": "default"}
    proof = {"user": {"name": user, "domain": domain, "password": password}}
    auth: dict[str, Any] = {"identity": {"methods": ["password"], "password": proof}}
    if project is not None:
        auth["scope"] = {"project": {"name": project, "domain": domain}}
    return auth


@contextlib.asynccontextmanager
async def embedded(
    database: Database, folder: Path, *, public_url: str | None = None
) -> AsyncGenerator[Embedded]:
    """Run the services on a database, with the first-start data."""
    clock = SetClock()
    identity, images = new_identity(database, clock), Images(database, folder, clock)
    app = Starlette(
        routes=[
            Mount("/identity", routes=identity_routes(identity, public_url=public_url)),
            Mount("/image", routes=image_routes(images, identity, public_url=public_url)),
        ]
    )
    transport = httpx2.ASGITransport(app=app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://cloud.test:8774") as client:
        world = Embedded(
            database=database, folder=folder, client=client, clock=clock, identity=identity, images=images
        )
        await world.identity.bootstrap(admin_password=ADMIN_PASSWORD, demo_password=DEMO_PASSWORD)
        yield world
        world.identity.close()


@contextlib.contextmanager
def database_of(request: pytest.FixtureRequest, folder: Path) -> Generator[sa.URL]:
    """Name a fresh database of the kind that a fixture's parameter says, for the tests of a whole module."""
    if request.param == "sqlite":
        template: Path = request.getfixturevalue("sqlite_template")
        yield sa.URL.create("sqlite", database=str(shutil.copyfile(template, folder / "stateward.db")))
        return
    server: postgres.Postgres = request.getfixturevalue("postgres_server")
    with server.database() as url:
        yield url
