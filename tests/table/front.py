"""The servers' part of the Compute API on a bare database: what is admitted stays where it is, for no agent works."""

from __future__ import annotations

import uuid
from typing import Any, Final, cast

import httpx2
import msgspec
import sqlalchemy as sa
from starlette.routing import Mount, Router

from stateward.api.compute import instance_actions, server_actions, server_metadata, servers
from stateward.api.compute.services import Services
from stateward.api.identity.service import Identity
from stateward.bus.memory import MemoryBus
from stateward.domain.actions import Action
from stateward.domain.hosts import Event
from stateward.domain.records import FlavorFacts, ImageFacts
from stateward.domain.states import ON_NO_HOST, VmState
from stateward.operations.asking import Asking
from stateward.operations.changes import Changes
from stateward.operations.control import Control
from stateward.store import flavors, hosts, images
from stateward.store.engine import Database
from stateward.store.flavors import NewFlavor
from stateward.store.images import Image
from stateward.store.tables import HOSTS
from tests.api.resources.conftest import Answer, Tokens
from tests.operations.desk import Desk
from tests.rows import FLAVOR, NOW
from tests.wires import options, version

#: What every server is made of, and what it can be made of next.
IMAGE: Final = "11111111-aaaa-4aaa-8aaa-111111111111"
LARGER: Final = "larger"
#: The host that was fenced.
DEAD: Final = "dead"
#: A member and an admin of the servers' project would be ``p``'s; see ``Tokens``.
_MODULES: Final = (servers, server_actions, server_metadata, instance_actions)


class Front:
    """Asks as somebody, in some version, about servers that are put into any state."""

    def __init__(self, database: Database) -> None:
        self.desk = Desk(database)
        services = Services(
            database=database,
            identity=cast("Identity", Tokens()),
            admission=self.desk.admission,
            asking=Asking(self.desk.admission),
            immediate=self.desk.immediate,
            control=Control(database, self.desk.clock, self.desk.wake),
            changes=Changes(),
            bus=MemoryBus(),
            clock=self.desk.clock,
            host_patience=1e12,
        )
        routes = [route for module in _MODULES for route in module.routes(services)]
        self._app = Router([Mount("/compute/v2.1", app=Router(routes, redirect_slashes=False))])

    async def open(self) -> None:
        """Register a host, an image and a flavor."""
        await self.desk.add_host("h")
        # Somewhere to migrate to.
        await self.desk.add_host("g")
        # Somewhere to evacuate from.
        await self.desk.add_host(DEAD)

        def work(connection: sa.Connection) -> None:
            connection.execute(sa.update(HOSTS).values(shared=True))
            for event in (Event.SILENT, Event.CONFIRMED, Event.FENCED):
                hosts.become(connection, DEAD, event, "", NOW)
            images.insert(connection, image(IMAGE))
            new = NewFlavor(id=LARGER, name=LARGER, vcpus=1, ram=128, disk=FLAVOR.disk + 1)
            flavors.register(connection, new)

        await self.desk.database.write(work)

    async def add(self, vm_state: VmState, **changes: Any) -> str:
        """Add a server that has come into a state as servers do."""
        facts: dict[str, Any] = {"vm_state": vm_state.value, "launched_at": NOW}
        facts["image"] = ImageFacts(id=IMAGE, disk_format="qcow2")
        if vm_state is VmState.RESIZED:
            facts |= {"old_flavor": FlavorFacts(id="0", name="old", vcpus=1, ram=64, disk=1), "was": "active"}
        if vm_state in {VmState.SHELVED, VmState.SHELVED_OFFLOADED}:
            facts["shelved_image"] = ImageFacts(id="shelved", disk_format="qcow2")
        if vm_state in ON_NO_HOST:
            facts["host"] = ""
        return await self.desk.add(**(facts | changes))

    async def act(self, row: Action, server: str, *, by: str = "member", v: int | None = None) -> Answer:
        """Ask for what a row does, with a body that is as it must be."""
        wanted = {row.wire: options(row, image=IMAGE, flavor=LARGER)}
        return await self(
            "POST", f"/servers/{server}/action", wanted, by=by, v=version(row) if v is None else v
        )

    async def __call__(
        self, method: str, path: str, body: object = None, *, by: str = "member", v: int = 104
    ) -> Answer:
        """Ask once; ``v`` is a minor number."""
        headers = {"x-auth-token": by, "openstack-api-version": f"compute 2.{v}"}
        transport = httpx2.ASGITransport(app=self._app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://cloud") as client:
            content = None if body is None else msgspec.json.encode(body)
            response = await client.request(method, "/compute/v2.1" + path, content=content, headers=headers)
        decoded = msgspec.json.decode(response.content) if response.content else None
        return Answer(response.status_code, decoded, dict(response.headers))


def image(image_id: str | None = None, **changes: Any) -> Image:
    """Make a public image that has its data."""
    facts: dict[str, Any] = {
        "id": image_id or str(uuid.uuid4()),
        "name": "i",
        "owner": None,
        "visibility": "public",
        "status": "active",
        "disk_format": "qcow2",
        "container_format": "bare",
        "min_disk": 0,
        "min_ram": 0,
        "protected": False,
        "hidden": False,
        "size": 1,
        "checksum": None,
        "hash_value": None,
        "created_at": NOW,
        "updated_at": NOW,
        "properties": {},
        "tags": (),
    }
    return Image(**(facts | changes))
