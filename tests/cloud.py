"""A whole server in this process, with a simulated host, and people of every kind who speak to it over ASGI."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partialmethod
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest

from stateward.agent.driver import Driver, ImageFiles
from stateward.agent.simulated import SimulatedDriver, SimulatedHypervisor
from stateward.api.identity.passwords import Passwords
from stateward.api.identity.tokens import Claims, Seal
from stateward.server import Server
from stateward.settings import (
    AgentSettings,
    HostSettings,
    NetworkSettings,
    ReclaimSettings,
    Settings,
    ShelveSettings,
)

#: Who there is: the role, and the project it is in. ``admin`` and ``admin-in-demo`` are one user.
PEOPLE = {
    "member": ("member", "gold"),
    "member2": ("member", "gold"),
    "reader": ("reader", "gold"),
    "othertenant": ("member", "other"),
    "admin": ("admin", "admin"),
    "admin-in-demo": ("admin", "gold"),
}
_PASSWORD = "a password"


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What came back."""

    status: int
    headers: dict[str, str]
    raw: bytes

    @property
    def body(self) -> Any:
        """The decoded body; None when there is none."""
        return msgspec.json.decode(self.raw) if self.raw else None

    @property
    def fault(self) -> tuple[int, str, str]:
        """The status, and the name and the sentence of the Compute API's fault, which must be in its format."""
        body: dict[str, dict[str, Any]] = self.body
        assert isinstance(body, dict), self.raw
        ((name, content),) = body.items()
        assert sorted(content) == ["code", "message"], body
        assert content["code"] == self.status, body
        assert "Traceback" not in content["message"], body
        return self.status, name, content["message"]


class _OneSimulatedHost(Server):
    """The server as it is served, but for its one hypervisor, which a test holds in its hands."""

    hypervisor: SimulatedHypervisor

    async def _driver(self, host: HostSettings, folder: Path, images: ImageFiles) -> Driver:
        self.hypervisor = SimulatedHypervisor()
        self._undo.callback(self.hypervisor.close)
        return SimulatedDriver(self.hypervisor, images=images)


class Cloud:
    """A running server and its people."""

    def __init__(self, data: Path, hypervisor: SimulatedHypervisor, client: httpx2.AsyncClient) -> None:
        self.data = data
        self._client = client
        self.hypervisor = hypervisor
        #: What is deleted or shelved is kept; see ``running_cloud``.
        self.keeps = False
        self.image = ""
        #: A server of the project ``gold``, where a test has made one for all of its kind.
        self.server = ""
        #: More that a test has made, by what it calls it.
        self.things: dict[str, str] = {}
        self.tokens: dict[str, str] = {}
        self.projects: dict[str, str] = {}
        self.users: dict[str, str] = {}

    async def send(
        self, method: str, path: str, *, content: bytes | None = None, headers: dict[str, str] | None = None
    ) -> Answer:
        """Send a request as it is; the path is below the server's own address."""
        response = await self._client.request(method, path, content=content, headers=headers)
        return Answer(status=response.status_code, headers=dict(response.headers), raw=await response.aread())

    async def ask(
        self,
        role: str,
        method: str,
        path: str,
        body: Any = msgspec.UNSET,
        *,
        microversion: str | None = None,
        api: str = "/compute/v2.1",
    ) -> Answer:
        """Ask an API in somebody's name."""
        headers = {"x-auth-token": self.tokens[role]}
        if microversion is not None:
            headers["openstack-api-version"] = f"compute {microversion}"
        content = None
        if body is not msgspec.UNSET:
            content = body if isinstance(body, bytes) else msgspec.json.encode(body)
            headers["content-type"] = "application/json"
        return await self.send(method, api + path, content=content, headers=headers)

    async def ready_server(self, name: str, **members: Any) -> str:
        """Create a server of the project ``gold`` and wait until it is active; return its id."""
        body = {"server": {"name": name, "imageRef": self.image, "flavorRef": "1", **members}}
        answer = await self.ask("member", "POST", "/servers", body)
        assert answer.status == 202, answer.body
        server_id: str = answer.body["server"]["id"]
        assert (await self.settled(server_id))["status"] == "ACTIVE"
        return server_id

    async def settled(self, server_id: str) -> dict[str, Any]:
        """Wait until nothing is in flight for a server, and return how admins see it then; nothing of a deleted one."""
        async with asyncio.timeout(30):
            while True:
                answer = await self.ask("admin", "GET", f"/servers/{server_id}", microversion="2.104")
                if answer.status == 404:
                    return {}
                server: dict[str, Any] = answer.body["server"]
                if server["OS-EXT-STS:task_state"] is None:
                    return server
                # The one place where an API is polled: it has no other way to wait.
                await asyncio.sleep(0.005)

    async def populate(self) -> None:
        """Make the people, their projects, a flavor and an image."""
        self.tokens["admin"] = await self.log_in("admin", "admin")
        for project in ("gold", "other"):
            self.projects[project] = await self._make("project", name=project)
        roles = await self.ask("admin", "GET", "/roles", api="/identity/v3")
        role_ids = {role["name"]: role["id"] for role in roles.body["roles"]}
        me = await self.ask("admin", "GET", "/users?name=admin", api="/identity/v3")
        self.users["admin"] = self.users["admin-in-demo"] = me.body["users"][0]["id"]
        for person, (role, project) in PEOPLE.items():
            if person == "admin":
                continue
            if person not in self.users:
                self.users[person] = await self._make("user", name=person, password=_PASSWORD)
            grant = f"/projects/{self.projects[project]}/users/{self.users[person]}/roles/{role_ids[role]}"
            assert (await self.ask("admin", "PUT", grant, api="/identity/v3")).status == 204
        for person, (_role, project) in PEOPLE.items():
            if person != "admin":
                self.tokens[person] = await self.log_in(person.removesuffix("-in-demo"), project)
        flavor = {"name": "m1.tiny", "id": "1", "ram": 512, "vcpus": 1, "disk": 1}
        assert (await self.ask("admin", "POST", "/flavors", {"flavor": flavor})).status == 200
        image = {"name": "cirros", "disk_format": "qcow2", "container_format": "bare", "visibility": "public"}
        made = await self.ask("admin", "POST", "/images", image, api="/image/v2")
        assert made.status == 201, made.body
        self.image = made.body["id"]
        headers = {"x-auth-token": self.tokens["admin"], "content-type": "application/octet-stream"}
        path = f"/image/v2/images/{self.image}/file"
        assert (await self.send("PUT", path, content=b"an image", headers=headers)).status == 204

    async def _make(self, kind: str, **members: str) -> str:
        answer = await self.ask("admin", "POST", f"/{kind}s", {kind: members}, api="/identity/v3")
        assert answer.status == 201, answer.body
        made: str = answer.body[kind]["id"]
        return made

    async def log_in(self, user: str, project: str | None) -> str:
        """Return a new token for a project, or for none."""
        domain = {"id": "default"}
        who = {"user": {"name": user, "domain": domain, "password": self._password(user)}}
        scope = "unscoped" if project is None else {"project": {"name": project, "domain": domain}}
        body = {"auth": {"identity": {"methods": ["password"], "password": who}, "scope": scope}}
        answer = await self.send("POST", "/identity/v3/auth/tokens", content=msgspec.json.encode(body))
        assert answer.status == 201, answer.body
        return answer.headers["x-subject-token"]

    def expired_token(self, user: str, project: str) -> str:
        """Return a token of the server's own that ended a second ago."""
        claims = Claims(
            user_id=self.users[user],
            project_id=self.projects[project],
            issued_at=time.time() - 2,
            expires_at=time.time() - 1,
            audit_id="expired",
            epoch=0,
            methods=("password",),
            application_credential_id=None,
        )
        return Seal((self.data / "secret").read_bytes().strip()).close(claims)

    def _password(self, user: str) -> str:
        if user != "admin":
            return _PASSWORD
        clouds = (self.data / "clouds.yaml").read_text()
        found = re.search(r'username: admin\n\s+password: "(.*)"', clouds)
        assert found is not None
        return found[1]


@asynccontextmanager
async def running_cloud(
    data: Path,
    *,
    database: str | None = None,
    networks: tuple[NetworkSettings, ...] | None = None,
    keeps: bool = False,
) -> AsyncGenerator[Cloud]:
    """Run a server on an empty folder, with its people, until the block ends.

    Args:
        data: the folder.
        database: its address; None for the server's own.
        networks: of the installation.
        keeps: what is deleted can be restored for an hour, and what is shelved stays on its host.
    """
    settings = Settings(
        database=database,
        agent=AgentSettings(relist=60.0, heartbeat=60.0, patience=600.0),
        host=(HostSettings(name="h", driver="simulated"),),
        network=Settings().network if networks is None else networks,
        reclaim=ReclaimSettings(interval=3600 if keeps else 0),
        shelve=ShelveSettings(offload=not keeps),
    )
    server = _OneSimulatedHost(
        data=data, listen=("127.0.0.1", 0), settings=settings, progress=lambda _text: None
    )
    with pytest.MonkeyPatch.context() as patch:
        # A dozen passwords are hashed and checked for the people; bcrypt's least will do.
        patch.setattr(Passwords, "__init__", partialmethod(Passwords.__init__, rounds=4))
        await server.start()
    try:
        transport = httpx2.ASGITransport(app=server.app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://cloud") as client:
            cloud = Cloud(data, server.hypervisor, client)
            cloud.keeps = keeps
            await cloud.populate()
            yield cloud
    finally:
        await server.stop()
