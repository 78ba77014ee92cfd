"""Clients that do to a fleet of servers whatever can be done, until the server under them is killed.

What was answered is remembered, so that it can be asked for after.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from tests.harness import Answer, Connection, Login, NoAnswer, ServerProcess

#: What is asked of a server in each vm state, and how often. A delete is made good by a create.
_ASKED: Final[dict[str, list[tuple[int, object]]]] = {
    "active": [
        (6, {"os-stop": None}),
        (1, {"os-stop": {"force": True}}),
        (4, {"suspend": None}),
        (4, {"pause": None}),
        (2, {"reboot": {"type": "SOFT"}}),
        (1, {"reboot": {"type": "HARD"}}),
        (2, "delete"),
    ],
    "stopped": [(8, {"os-start": None}), (1, {"reboot": {"type": "HARD"}}), (1, "delete")],
    "paused": [(8, {"unpause": None}), (1, {"reboot": {"type": "HARD"}}), (1, "delete")],
    "suspended": [(8, {"resume": None}), (1, {"reboot": {"type": "HARD"}}), (1, "delete")],
    "building": [(1, "delete"), (4, "nothing")],
    "error": [(1, "delete")],
}


class Accepted(msgspec.Struct, frozen=True):
    """A request that was answered 202 or 204."""

    server_id: str
    request_id: str
    asked: str


class Kind(msgspec.Struct, frozen=True):
    """What servers are made as, and how many there are."""

    zone: str
    image: str
    flavor: str
    count: int


class Fleet:
    """The servers of demo's, the clients that ask of them, and what they were answered."""

    def __init__(
        self, server: ServerProcess, *, kinds: Sequence[Kind], member: Login, admin: Login, seed: int
    ) -> None:
        self.accepted: list[Accepted] = []
        #: The lock that must be there: whose it is, or None; servers that are not named may have any.
        self.locks: dict[str, str | None] = {}
        self._server = server
        self._kinds = kinds
        self._member = member
        self._admin = admin
        self._dice = random.Random(seed)
        self._answers = 0
        self._wanted = 0
        self._reached = asyncio.Event()

    async def fill(self) -> None:
        """Make what is missing of each kind, one request each."""
        async with self._server.connection(self._member.token) as connection:
            there = await self._list(connection)
            for kind in self._kinds:
                having = sum(
                    each["OS-EXT-AZ:availability_zone"] == kind.zone and each["image"]["id"] == kind.image
                    for each in there
                )
                for _ in range(kind.count - having):
                    await self._create(connection, kind)

    async def work(self, *, clients: int, answers: int) -> None:
        """Have clients ask until so many requests more were answered, and kill the server under them."""
        self._reached.clear()
        self._wanted = self._answers + answers
        async with asyncio.TaskGroup() as group:
            group.create_task(self._locker(random.Random(self._dice.random())))
            for number in range(clients):
                group.create_task(self._client(random.Random(self._dice.random()), fills=number == 0))
            await self._reached.wait()
            # Not with the answer itself, which would always be the same moment.
            await asyncio.sleep(self._dice.uniform(0.0, 0.05))
            await self._server.kill()

    async def _client(self, dice: random.Random, *, fills: bool) -> None:
        async with self._server.connection(self._member.token) as connection:
            try:
                while True:
                    # Each host has its share, however few its servers are.
                    zone = dice.choice(sorted({kind.zone for kind in self._kinds}))
                    servers = [
                        each
                        for each in await self._list(connection)
                        if each["OS-EXT-AZ:availability_zone"] == zone
                    ]
                    for server in dice.sample(servers, min(3, len(servers))):
                        await self._one(connection, server, dice)
                    if fills:
                        await self.fill()
            except NoAnswer:
                return

    async def _one(self, connection: Connection, server: dict[str, Any], dice: random.Random) -> None:
        choices = _ASKED[server["OS-EXT-STS:vm_state"]]
        (what,) = dice.choices([each for _, each in choices], [weight for weight, _ in choices])
        path = f"/compute/v2.1/servers/{server['id']}"
        if what == "delete":
            answer = await connection.ask("DELETE", path)
        elif what == "nothing":
            return
        else:
            answer = await connection.ask("POST", f"{path}/action", what)
        self._note(server["id"], str(what), answer)

    async def _locker(self, dice: random.Random) -> None:
        """Lock and unlock a few servers, one request at a time, so that it is known what must hold."""
        async with (
            self._server.connection(self._member.token) as member,
            self._server.connection(self._admin.token) as admin,
        ):
            try:
                while True:
                    servers = sorted(each["id"] for each in await self._list(member))
                    for server_id in dice.sample(servers, min(4, len(servers))):
                        await self._lock(member, admin, server_id, dice)
            except NoAnswer:
                return

    async def _lock(self, member: Connection, admin: Connection, server_id: str, dice: random.Random) -> None:
        path = f"/compute/v2.1/servers/{server_id}/action"
        # What is under way is not known until it is answered.
        self.locks.pop(server_id, None)
        # All locks away first, so that the one placed is the one shown; half of the servers are left free.
        steps = [(admin, "unlock"), (admin, "unlock")]
        held = dice.choice(["owner", "admin", None, None])
        if held is not None:
            steps.append((member if held == "owner" else admin, "lock"))
        for connection, verb in steps:
            answer = await connection.ask("POST", path, {verb: None})
            if answer.status == 404:
                return
            assert answer.status == 202, answer
            self._note(server_id, verb, answer)
        self.locks[server_id] = held

    async def _create(self, connection: Connection, kind: Kind) -> None:
        body = {
            "server": {
                "name": "a",
                "imageRef": kind.image,
                "flavorRef": kind.flavor,
                "availability_zone": kind.zone,
                "networks": "none",
            }
        }
        answer = await connection.ask("POST", "/compute/v2.1/servers", body)
        assert answer.status == 202, answer
        self._note(answer.body["server"]["id"], "create", answer)

    async def _list(self, connection: Connection) -> list[dict[str, Any]]:
        answer = await connection.ask("GET", "/compute/v2.1/servers/detail")
        assert answer.status == 200, answer
        servers: list[dict[str, Any]] = answer.body["servers"]
        return servers

    def _note(self, server_id: str, asked: str, answer: Answer) -> None:
        # Whether it is refused is chance by design: the clients race. 409: another one came first, or a lock holds;
        # 404: it was deleted meanwhile.
        if answer.status not in {404, 409}:
            assert answer.status == (204 if asked == "delete" else 202), answer
        self._answers += 1
        if self._answers >= self._wanted:
            self._reached.set()
        # A delete of what is being deleted is answered 204 and is no operation of its own.
        if answer.status == 202 or (answer.status == 204 and "x-stateward-operation" in answer.headers):
            self.accepted.append(Accepted(server_id, answer.headers["x-openstack-request-id"], asked))
