"""The resources beside servers, in process: real endpoints on a real database; only the tokens are made up."""

from __future__ import annotations

from typing import Any, cast

import httpx2
import msgspec
import pytest
from starlette.routing import Mount, Router

from stateward.api.compute import (
    extensions,
    flavors,
    host_services,
    hypervisors,
    keypairs,
    limits,
    quotas,
    server_groups,
    versions,
    zones,
)
from stateward.api.compute.services import Services
from stateward.api.faults import Unauthorized
from stateward.api.identity.service import Identity
from stateward.api.identity.tokens import Token
from stateward.bus.memory import MemoryBus
from stateward.operations.admission import Admission, ShutdownDefaults
from stateward.operations.asking import Asking
from stateward.operations.changes import Changes
from stateward.operations.control import Control
from stateward.operations.immediate import Immediate
from stateward.store.engine import Database
from tests.rows import SetClock

_ROLES = {
    "reader": frozenset({"reader"}),
    "member": frozenset({"reader", "member"}),
    "colleague": frozenset({"reader", "member"}),
    "stranger": frozenset({"reader", "member"}),
    "admin": frozenset({"reader", "member", "admin"}),
    "second": frozenset({"reader", "member", "admin"}),
}
_MODULES = (flavors, keypairs, limits, zones, host_services, hypervisors, extensions, quotas, server_groups)


class Tokens:
    """A token is good when it is the name of somebody here; a stranger is of another project, a second an admin."""

    async def verify(self, token: str) -> Token:
        if token not in _ROLES:
            raise Unauthorized
        is_admin = "admin" in _ROLES[token]
        project = "operations" if is_admin else "q" if token == "stranger" else "p"
        return Token(
            user_id=f"id-of-{token}",
            user_name=token,
            project_id=project,
            project_name=project,
            roles=_ROLES[token],
            is_admin=is_admin,
            issued_at=0.0,
            expires_at=1e12,
            audit_id="audit",
        )


class Answer(msgspec.Struct, frozen=True):
    """A status with its body, to be compared at once."""

    status: int
    body: Any
    headers: dict[str, str]

    @property
    def message(self) -> str:
        """The sentence of a fault."""
        (fault,) = self.body.values()
        assert fault["code"] == self.status
        return str(fault["message"])


class Api:
    """Asks as somebody, in some version."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.clock = SetClock()
        admission = Admission(database, self.clock, ShutdownDefaults(), lambda: None)
        services = Services(
            database=database,
            identity=cast("Identity", Tokens()),
            admission=admission,
            asking=Asking(admission),
            immediate=Immediate(admission, lambda _instance_id: None),
            control=Control(database, self.clock, lambda: None),
            changes=Changes(),
            bus=MemoryBus(),
            clock=self.clock,
            max_limit=5,
        )
        self._app = Router(
            [
                Mount("/compute/v2.1", app=self._compute(services, legacy=False)),
                Mount("/compute/v2/{project_id}", app=self._compute(services, legacy=True)),
                Mount("/compute", routes=versions.routes(services)),
            ],
            redirect_slashes=False,
        )

    @staticmethod
    def _compute(services: Services, *, legacy: bool) -> Router:
        routes = [route for module in _MODULES for route in module.routes(services, legacy=legacy)]
        return Router([*routes, *versions.document_routes(services, legacy=legacy)], redirect_slashes=False)

    async def __call__(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        by: str | None = "member",
        v: str | None = None,
        root: str = "/compute/v2.1",
    ) -> Answer:
        """Ask once; ``v`` is a minor number, or anything the header can hold."""
        headers = {} if by is None else {"x-auth-token": by}
        if v is not None:
            headers["openstack-api-version"] = f"compute {v if '.' in v or not v.isdigit() else f'2.{v}'}"
        transport = httpx2.ASGITransport(app=self._app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://cloud") as client:
            content = None if body is None else msgspec.json.encode(body)
            response = await client.request(method, root + path, content=content, headers=headers)
        decoded = msgspec.json.decode(response.content) if response.content else None
        return Answer(response.status_code, decoded, dict(response.headers))


@pytest.fixture
def api(database: Database) -> Api:
    """Give an API on an empty database of either kind."""
    return Api(database)
