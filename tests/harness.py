"""A real server process on a data folder: started, asked over HTTP, stopped and killed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sqlite3
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self, TypeVar

import msgspec

from stateward.api.identity.passwords import Passwords

T = TypeVar("T")

ROOT: Final = Path(__file__).parent.parent
#: What the console script does, with warnings as errors as in every other test, and a traceback on SIGABRT.
STATEWARD: Final = (
    *(sys.executable, "-X", "faulthandler", "-W", "error"),
    *("-c", "from stateward.cli.main import main; main()"),
)
#: The microversion that everything is asked in.
MICROVERSION: Final = "2.96"
#: Seconds a server has to come up; a loaded machine's, not a user's.
_START_SECONDS: Final = 60.0
_READY: Final = re.compile(r"is ready on http://(?P<host>[^:]+):(?P<port>\d+)")
#: What a log has only when something went wrong that was not foreseen.
_FAULTS: Final = ("Traceback", "never retrieved", "never awaited", '"level": "error"', "Warning:", "ERROR ")
_CREDENTIALS: Final = re.compile(
    r"(?P<cloud>\S+):\n    auth:.*?username: (?P<user>\S+)\n\s+password: \"(?P<password>[^\"]*)\""
    r"\n\s+project_name: (?P<project>\S+)",
    re.DOTALL,
)


class NoAnswer(Exception):
    """The connection ended before the answer: what was asked may or may not have been done."""


class Answer(msgspec.Struct, frozen=True):
    """One answer; header names are in lower case."""

    status: int
    headers: dict[str, str]
    raw: bytes

    @property
    def body(self) -> Any:
        """The decoded body."""
        return msgspec.json.decode(self.raw)


class Connection:
    """One kept-alive connection, which connects when it must; one request at a time."""

    def __init__(self, host: str, port: int, token: str | None = None) -> None:
        self._address = (host, port)
        self._token = token
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, method: str, path: str, body: object = msgspec.UNSET, **headers: str) -> Answer:
        """Send a request and return its answer.

        Args:
            method: of HTTP.
            path: with the query.
            body: sent as it is when it is bytes, and as JSON otherwise.
            headers: more of them, with ``_`` for ``-``.

        Raises:
            NoAnswer: the server went away.
        """
        content = (
            b"" if body is msgspec.UNSET else body if isinstance(body, bytes) else msgspec.json.encode(body)
        )
        fields = {
            "host": f"{self._address[0]}:{self._address[1]}",
            "content-length": str(len(content)),
            "content-type": "application/octet-stream" if isinstance(body, bytes) else "application/json",
            "openstack-api-version": f"compute {MICROVERSION}",
        }
        if self._token is not None:
            fields["x-auth-token"] = self._token
        fields |= {name.replace("_", "-"): value for name, value in headers.items()}
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        try:
            if self._streams is None:
                self._streams = await asyncio.open_connection(*self._address)
            reader, writer = self._streams
            writer.write(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + content)
            return await _read_answer(reader)
        except (OSError, asyncio.IncompleteReadError) as error:
            await self.close()
            raise NoAnswer(f"{method} {path}: {error!r}") from error

    async def close(self) -> None:
        """Let the connection go."""
        if self._streams is not None:
            writer = self._streams[1]
            self._streams = None
            writer.close()
            try:
                await writer.wait_closed()
            except OSError:
                # It is closed; that the other end was killed before is no news.
                return

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


async def _read_answer(reader: asyncio.StreamReader) -> Answer:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    headers = dict[str, str]()
    for line in head[1:]:
        name, colon, value = line.partition(":")
        if colon:
            headers[name.lower()] = value.strip()
    raw = await reader.readexactly(int(headers.get("content-length", "0")))
    return Answer(int(head[0].split()[1]), headers, raw)


class ServerProcess:
    """A server in a process of its own, on a folder that outlives it."""

    def __init__(
        self,
        folder: Path,
        arguments: Sequence[str] = ("--driver", "simulated"),
        *,
        program: Sequence[str] = STATEWARD,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Prepare it.

        Args:
            folder: gets the data folder ``data`` and the log ``server.log``.
            arguments: of ``serve``, besides where its data are and where it listens.
            program: what takes these arguments.
            environment: more of it.
        """
        self.data = folder / "data"
        self.log = folder / "server.log"
        self.host, self.port = "127.0.0.1", 0
        #: Seconds from its start until it was ready.
        self.took = 0.0
        self._arguments = arguments
        self._program = program
        self._environment = dict(environment or {})
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start it and return when it is ready, on a port of its own choice."""
        began = time.monotonic()
        process = await self._spawn()
        assert process.stdout is not None
        try:
            async with asyncio.timeout(_START_SECONDS):
                line = (await process.stdout.readline()).decode()
        except TimeoutError:
            process.send_signal(signal.SIGABRT)
            await self._end()
            raise AssertionError(f"the server does not get ready\n{self.tail()}") from None
        found = _READY.search(line)
        assert found is not None, f"the server did not start: {line}\n{self.tail()}"
        self.port = int(found["port"])
        self.took = time.monotonic() - began

    async def start_in_vain(self, seconds: float) -> None:
        """Start it and kill it so many seconds later, ready or not."""
        await self._spawn()
        await asyncio.sleep(seconds)
        await self.kill()

    async def _spawn(self) -> asyncio.subprocess.Process:
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._program,
                "serve",
                *("--data", str(self.data), "--listen", f"{self.host}:0"),
                *self._arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                cwd=ROOT,
                env=os.environ | self._environment,
            )
        return self._process

    async def kill(self) -> None:
        """Kill it with signal 9 and return when it is certainly dead."""
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        await self.killed()

    async def killed(self) -> None:
        """Return when it has been killed with signal 9, by itself or by whoever else."""
        assert await self._end() == -signal.SIGKILL, self.tail()

    async def stop(self) -> None:
        """Stop it as an operator does; it must end well."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(30):
            assert await self._end() == 0, self.tail()

    async def _end(self) -> int:
        assert self._process is not None
        # Reads what is left of its output as well, so that nothing of it stays open.
        await self._process.communicate()
        code = self._process.returncode
        assert code is not None
        self._process = None
        return code

    def tail(self) -> str:
        """Return the end of its log."""
        return self.log.read_text(errors="replace")[-3000:]

    def faults(self) -> list[str]:
        """Return the lines of its log that tell of a fault of its own."""
        return [
            line
            for line in self.log.read_text(errors="replace").splitlines()
            if any(word in line for word in _FAULTS)
        ]

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            await self._end()

    def connection(self, token: str | None = None) -> Connection:
        """Return a new connection to it."""
        return Connection(self.host, self.port, token)

    async def log_in(self, user: str) -> Login:
        """Log in as ``admin`` or ``demo``, each in the project of the same name; good over restarts."""
        (found,) = [
            found
            for found in _CREDENTIALS.finditer((self.data / "clouds.yaml").read_text())
            if found["user"] == user
        ]
        domain = {"id": "default"}
        who = {"user": {"name": user, "domain": domain, "password": found["password"]}}
        scope = {"project": {"name": found["project"], "domain": domain}}
        body = {"auth": {"identity": {"methods": ["password"], "password": who}, "scope": scope}}
        async with self.connection() as connection:
            answer = await connection.ask("POST", "/identity/v3/auth/tokens", body)
        assert answer.status == 201, answer
        return Login(answer.headers["x-subject-token"], answer.body["token"]["project"]["id"])

    async def hasten_logins(self) -> None:
        """Keep both users' passwords in bcrypt's cheapest form: each command that is run logs in, for 50 ms of CPU."""
        passwords = Passwords(rounds=4)
        with contextlib.closing(sqlite3.connect(self.data / "stateward.db")) as database, database:
            for found in _CREDENTIALS.finditer((self.data / "clouds.yaml").read_text()):
                change = "UPDATE identity_users SET password = ? WHERE name = ?"
                hashed = await passwords.hash(found["password"])
                assert database.execute(change, (hashed, found["user"])).rowcount == 1
        passwords.close()


class Login(msgspec.Struct, frozen=True):
    """A token and the project it is for."""

    token: str
    project: str


class Admin:
    """What a test sets up and looks at as the cloud's admin; connects anew after each restart."""

    def __init__(self, server: ServerProcess, login: Login) -> None:
        self.server = server
        self.login = login

    async def ask(self, method: str, path: str, body: object = msgspec.UNSET, **headers: str) -> Answer:
        """Ask once, on a connection of its own."""
        async with self.server.connection(self.login.token) as connection:
            return await connection.ask(method, path, body, **headers)

    async def make_image(
        self, name: str, properties: Mapping[str, str], *, kind: str = "raw", data: bytes = b"0"
    ) -> str:
        """Make an image that everybody can use, and return its id."""
        image = {"name": name, "disk_format": kind, "container_format": "bare", "visibility": "public"}
        made = await self.ask("POST", "/image/v2/images", image | dict(properties))
        assert made.status == 201, made
        image_id: str = made.body["id"]
        put = await self.ask("PUT", f"/image/v2/images/{image_id}/file", data)
        assert put.status == 204, put
        return image_id

    async def make_flavor(self, flavor_id: str, *, ram: int, disk: int = 0) -> str:
        """Make a flavor with one processor, and return its id."""
        flavor = {"id": flavor_id, "name": flavor_id, "ram": ram, "vcpus": 1, "disk": disk}
        made = await self.ask("POST", "/compute/v2.1/flavors", {"flavor": flavor})
        assert made.status == 200, made
        return flavor_id

    async def hosts_up(self) -> None:
        """Wait until every host has been heard of: before that, no server can be made there."""
        said = list[str]()

        async def look() -> bool | None:
            answer = await self.ask("GET", "/readyz")
            said[:] = [answer.raw.decode()]
            return True if set(answer.body["hosts"].values()) == {"up"} else None

        await until(look, seconds=_START_SECONDS, says=lambda: said[0])

    async def servers(self) -> dict[str, dict[str, Any]]:
        """Return every living server of every project, by id."""
        answer = await self.ask("GET", "/compute/v2.1/servers/detail?all_tenants=1")
        assert answer.status == 200, answer
        return {server["id"]: server for server in answer.body["servers"]}

    async def settled(self, *, seconds: float) -> dict[str, dict[str, Any]]:
        """Wait until no server is in a task state, and return them all."""
        last: list[tuple[str, str, str]] = []

        async def look() -> dict[str, dict[str, Any]] | None:
            servers = await self.servers()
            last[:] = [
                (server_id, server["OS-EXT-STS:vm_state"], server["OS-EXT-STS:task_state"])
                for server_id, server in servers.items()
                if server["OS-EXT-STS:task_state"] is not None
            ]
            return None if last else servers

        return await until(
            look, seconds=seconds, says=lambda: f"still in a task state: {last}\n{self.server.tail()}"
        )


async def until(look: Callable[[], Awaitable[T | None]], *, seconds: float, says: Callable[[], str]) -> T:
    """Look until there is something, and return it; the one place where these tests poll.

    Args:
        look: returns None as long as there is nothing.
        seconds: after which the test has failed.
        says: what is wrong then.
    """
    deadline = time.monotonic() + seconds
    while (found := await look()) is None:
        assert time.monotonic() < deadline, says()
        await asyncio.sleep(0.02)
    return found
