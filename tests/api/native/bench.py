"""``/v1`` in process: real endpoints on a real database; only the tokens are made up, and there is no agent."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Mapping, MutableMapping
from typing import Any, cast

import msgspec
import sqlalchemy as sa
from starlette.routing import Mount, Router

from stateward.api.compute.services import Services
from stateward.api.identity.service import Identity
from stateward.api.native import native_app
from stateward.bus.memory import MemoryBus
from stateward.domain.actions import BY_KEY
from stateward.domain.policies import NO_POLICIES, Policies
from stateward.domain.records import Operation, OperationState, Progress, ProgressReport, WaitsFor
from stateward.domain.shutdown import Rung
from stateward.domain.steps import Step
from stateward.operations.asking import Asking
from stateward.operations.changes import Changes
from stateward.operations.control import Control
from stateward.operations.webhooks import Webhooks
from stateward.store import operations
from stateward.store.engine import Database
from tests.api.resources.conftest import Tokens
from tests.operations.desk import Desk


class Answer(msgspec.Struct, frozen=True):
    """What came back."""

    status: int
    body: Any
    headers: dict[str, str]

    @property
    def detail(self) -> str:
        """The sentence of a refusal, which must be a problem document."""
        assert self.headers["content-type"] == "application/problem+json"
        assert sorted(self.body) == ["detail", "request_id", "status", "title", "type"]
        assert self.body["status"] == self.status
        assert self.body["request_id"] == self.headers["x-openstack-request-id"]
        return str(self.body["detail"])


class Event(msgspec.Struct, frozen=True):
    """One event of a stream: its name, and the operations in it."""

    name: str
    operations: list[dict[str, Any]]

    @property
    def states(self) -> list[str]:
        """The operations' states."""
        return [each["state"] for each in self.operations]


class Stream:
    """A stream of events that is being read."""

    def __init__(self, chunks: asyncio.Queue[bytes | None]) -> None:
        self._chunks = chunks

    async def raw(self) -> bytes | None:
        """Return the next piece; None at the end."""
        return await self._chunks.get()

    async def next(self) -> Event | None:
        """Return the next event; None at the end."""
        raw = await self.raw()
        if raw is None:
            return None
        lines = raw.decode().splitlines()
        assert [line.partition(": ")[0] for line in lines] == ["event", "data", ""], raw
        return Event(
            lines[0].partition(": ")[2], msgspec.json.decode(lines[1].partition(": ")[2])["operations"]
        )


class Api:
    """Asks as somebody; what is asked about is made at the desk."""

    def __init__(
        self, database: Database, *, second_admin: bool = False, policies: Policies = NO_POLICIES
    ) -> None:
        self.desk = Desk(database)
        self.tokens = Tokens()
        self.changes = Changes()

        async def takes(url: str, body: bytes, headers: Mapping[str, str]) -> None:
            """Take whatever is posted."""

        self.webhooks = Webhooks(database, self.desk.clock, takes, "/stateward")
        self.services = services = Services(
            database=database,
            identity=cast("Identity", self.tokens),
            admission=self.desk.admission,
            asking=Asking(self.desk.admission),
            immediate=self.desk.immediate,
            control=Control(database, self.desk.clock, self.changes.changed, cap=100),
            changes=self.changes,
            bus=MemoryBus(),
            clock=self.desk.clock,
            max_limit=5,
            webhooks=self.webhooks,
            second_admin=second_admin,
            policies=policies,
        )
        self._app = Router([Mount("/v1", app=native_app(services))])

    async def __call__(
        self,
        method: str,
        path: str,
        body: bytes | dict[str, Any] | None = None,
        *,
        by: str | None = "member",
        **headers: str,
    ) -> Answer:
        """Ask once."""
        content = b"" if body is None else body if isinstance(body, bytes) else msgspec.json.encode(body)
        sent, _chunks = await self._send(method, path, content, by, headers)
        await sent
        return sent.result()

    @contextlib.asynccontextmanager
    async def follow(self, path: str, *, by: str = "member") -> AsyncGenerator[Stream]:
        """Read a stream until the block ends."""
        sent, chunks = await self._send("GET", path, b"", by, {})
        try:
            yield Stream(chunks)
        finally:
            sent.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await sent

    async def _send(
        self, method: str, path: str, content: bytes, by: str | None, headers: dict[str, str]
    ) -> tuple[asyncio.Task[Answer], asyncio.Queue[bytes | None]]:
        path, _, query = path.partition("?")
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        if by is not None:
            named["x-auth-token"] = by
        scope: dict[str, Any] = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": query.encode(),
            "headers": [(b"host", b"cloud"), *((n.encode(), v.encode("latin-1")) for n, v in named.items())],
        }
        chunks: asyncio.Queue[bytes | None] = asyncio.Queue()
        received: list[MutableMapping[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": content, "more_body": False}

        async def send(message: MutableMapping[str, Any]) -> None:
            received.append(message)
            if message["type"] == "http.response.body":
                if message.get("body"):
                    chunks.put_nowait(message["body"])
                if not message.get("more_body"):
                    chunks.put_nowait(None)

        async def answer() -> Answer:
            await self._app(scope, receive, send)
            head = {name.decode(): value.decode() for name, value in received[0]["headers"]}
            raw = b"".join(message.get("body", b"") for message in received[1:])
            decoded = msgspec.json.decode(raw) if raw and "json" in head["content-type"] else None
            return Answer(received[0]["status"], decoded, head)

        return asyncio.create_task(answer()), chunks

    async def stop(self, instance_id: str | None = None, **options: Any) -> Operation:
        """Admit a stop of an instance, or of a new one."""
        admitted = await self.desk.admit("stop", instance_id or await self.desk.add(), **options)
        self.changes.changed(admitted.instance.id)
        return admitted.operation

    async def waits(
        self, operation: Operation, *, seq: int = 1, left: float = 30.0, asked: float | None = 0.0
    ) -> None:
        """Have its agent say that it waits for the guest: so many seconds left, asked so many seconds ago."""
        now = self.desk.clock.now()
        steps = BY_KEY[operation.action].steps
        progress = Progress(
            seq=seq,
            step=Step.SHUT_DOWN,
            number=steps.index(Step.SHUT_DOWN) + 1,
            of=len(steps),
            waits_for=WaitsFor.GUEST,
            deadline=now + left,
            signalled_at=None if asked is None else now - asked,
            rung=None if asked is None else Rung.POWER_BUTTON,
            at=now,
        )
        report = ProgressReport(operation_id=operation.id, progress=progress)

        def work(connection: sa.Connection) -> bool:
            return operations.note_progress(connection, report)

        await self._write(operation, work)

    async def ends(
        self,
        operation: Operation,
        state: OperationState = OperationState.SUCCEEDED,
        message: str | None = None,
    ) -> None:
        """Have it end."""
        now = self.desk.clock.now()

        def work(connection: sa.Connection) -> bool:
            return operations.finish(connection, operation.id, state, now, message)

        await self._write(operation, work)

    async def _write(self, operation: Operation, work: Callable[[sa.Connection], bool]) -> None:
        def checked(connection: sa.Connection) -> None:
            assert work(connection) is True

        await self.desk.database.write(checked)
        self.changes.changed(operation.instance_id)
