"""``stateward operation`` against a served Stateward with a guest that never shuts down by itself."""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import re
import struct
import termios
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from tests.harness import STATEWARD, Admin, ServerProcess

pytestmark = pytest.mark.asyncio(loop_scope="module")

NOWHERE = "11111111-1111-1111-1111-111111111111"
#: What the guest gets when nobody says otherwise.
SECONDS = 300


class Ran(msgspec.Struct, frozen=True):
    """What a command did."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """What it wrote, which must be JSON."""
        return msgspec.json.decode(self.out)


class Guest:
    """A server with a stubborn guest, and the command line of its owner."""

    def __init__(self, served: ServerProcess, admin: Admin, member: Admin, server: str) -> None:
        self.served = served
        self.admin = admin
        self._member = member
        self.server = server
        kept = {name: value for name, value in os.environ.items() if not name.startswith("OS_")}
        self.environment = kept | {
            "OS_CLIENT_CONFIG_FILE": str(served.data / "clouds.yaml"),
            "OS_CLOUD": "stateward",
            "TERM": "xterm-256color",
        }

    async def run(self, *words: str, **environment: str) -> Ran:
        """Run a command to its end."""
        process = await self.spawn(*words, environment=environment)
        out, err = await process.communicate()
        assert process.returncode is not None
        return Ran(process.returncode, out.decode(), err.decode())

    async def spawn(
        self, *words: str, environment: dict[str, str], stdout: int = asyncio.subprocess.PIPE
    ) -> asyncio.subprocess.Process:
        """Begin a command."""
        return await asyncio.create_subprocess_exec(
            *STATEWARD,
            "operation",
            *words,
            stdout=stdout,
            stderr=asyncio.subprocess.PIPE,
            env=self.environment | environment,
        )

    async def act(self, body: Any) -> str:
        """Admit an action, and return its operation's id."""
        answer = await self._member.ask("POST", f"/compute/v2.1/servers/{self.server}/action", body)
        assert answer.status == 202, answer
        return answer.headers["x-stateward-operation"]

    async def stopping(self) -> str:
        """Begin a stop, and return its operation's id when the guest was asked."""
        operation = await self.act({"os-stop": None})
        async with asyncio.timeout(20):
            while True:
                shown = (await self._member.ask("GET", f"/v1/operations/{operation}")).body
                if shown["progress"] and shown["progress"]["signalled"]:
                    return operation
                await asyncio.sleep(0.02)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Guest]:
    """Serve, with one server ``web``."""
    folder = tmp_path_factory.mktemp("served")
    environment = {"STATEWARD_SHUTDOWN__DEFAULT": str(SECONDS)}
    async with ServerProcess(folder, environment=environment) as server:
        await server.hasten_logins()
        admin = Admin(server, await server.log_in("admin"))
        member = Admin(server, await server.log_in("demo"))
        await admin.hosts_up()
        image = await admin.make_image("stubborn", {"os_command_line": "stateward.acpi=ignore"})
        flavor = await admin.make_flavor("one", ram=64)
        body = {"name": "web", "imageRef": image, "flavorRef": flavor, "networks": "none"}
        made = await member.ask("POST", "/compute/v2.1/servers", {"server": body})
        assert made.status == 202, made
        await admin.settled(seconds=30)
        yield Guest(server, admin, member, made.body["server"]["id"])
        await server.stop()
        assert server.faults() == []


@pytest_asyncio.fixture(loop_scope="module")
async def guest(served: Guest) -> AsyncIterator[Guest]:
    """Give the guest, running and left alone."""
    if (await served.admin.settled(seconds=30))[served.server]["status"] == "SHUTOFF":
        await served.act({"os-start": None})
        await served.admin.settled(seconds=30)
    yield served
    # Whatever a test left waiting.
    await served.admin.ask(
        "POST", f"/compute/v2.1/servers/{served.server}/action", {"os-stop": {"force": True}}
    )
    await served.admin.settled(seconds=30)


async def test_looking(guest: Guest) -> None:
    """By the operation's id, the server's name and its id; as tables and as JSON; narrowed."""
    operation = await guest.stopping()
    shown = [await guest.run("show", name, "-f", "json") for name in (operation, "web", guest.server)]
    assert [(each.status, each.json["id"], each.err) for each in shown] == [(0, operation, "")] * 3
    listed = await guest.run("list", "--server", "web", "--state", "running", "--state", "accepted")
    head, line = listed.out.splitlines()
    assert head.split() == ["ID", "Server", "Action", "State", "By", "Started", "Says"]
    assert line.split()[:5] == [operation, "web", "stop", "running", "member"]
    assert re.search(
        r"step 1 of \d+ \(shut_down\), waits for the guest, \d+ s left, the guest was asked$", line
    )
    whole = (await guest.run("list", "--action", "stop", "--limit", "1", "-f", "json")).json
    assert [each["id"] for each in whole] == [operation]
    table = (await guest.run("show", "web")).out
    assert f"shutdown     {SECONDS} s (default), then force (default)" in table
    assert "\x1b" not in table + listed.out


async def test_extending_and_cancelling(guest: Guest) -> None:
    """Who watches sees both; cancelling says that the guest was asked already, and the server is left on."""
    operation = await guest.stopping()
    watching = await guest.spawn("watch", "web", environment={})
    assert watching.stdout is not None
    assert b"waits for the guest" in await watching.stdout.readline()
    extended = await guest.run("extend", "web", "400")
    assert (extended.status, extended.out) == (0, "stop of web was told to extend to 400 s.\n")
    again = await guest.run("extend", "web", "400")
    assert again.out == "stop of web was told to extend to 400 s.\n"
    less = await guest.run("extend", "web", "350")
    message = f"stateward: The guest of operation {operation} gets 400 seconds already; it can be given more"
    assert (less.status, less.out, less.err) == (1, "", f"{message}, not less.\n")
    cancelled = await guest.run("cancel", "web", "--wait")
    assert cancelled.status == 0
    told = r"stop of web was told to cancel\. The guest was already asked to shut down, at \S+, and cannot be unasked"
    assert re.match(told, cancelled.out)
    seen, _err = await watching.communicate()
    assert b"told to extend to 400 s" in seen
    assert b"stop of web cancelled after " in seen.splitlines()[-1]
    # What was watched did not do what it was for.
    assert watching.returncode == 1
    assert (await guest.admin.settled(seconds=30))[guest.server]["status"] == "ACTIVE"
    late = await guest.run("cancel", operation)
    message = (
        f"stateward: Operation {operation} is finished (cancelled); it cannot be told to cancel any more.\n"
    )
    assert (late.status, late.out, late.err) == (1, "", message)


async def test_escalating(guest: Guest) -> None:
    """The power is gone at once, and the operation did what it was for."""
    operation = await guest.stopping()
    done = await guest.run("escalate", operation, "--wait", "-f", "json")
    events = [msgspec.json.decode(line) for line in done.out.splitlines()]
    assert (done.status, events[-1]["state"]) == (0, "succeeded")
    assert "(escalated)" in events[-1]["message"]
    assert (await guest.admin.settled(seconds=30))[guest.server]["status"] == "SHUTOFF"
    assert (await guest.run("watch", operation)).status == 0


@pytest.mark.parametrize("plain", [False, True])
async def test_a_bar_on_a_terminal(guest: Guest, *, plain: bool) -> None:
    """It counts by itself, without news from the server; NO_COLOR takes its colours."""
    await guest.stopping()
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    environment = {"NO_COLOR": "1"} if plain else {}
    watching = await guest.spawn("watch", "web", environment=environment, stdout=theirs)
    os.close(theirs)
    drawn = await asyncio.to_thread(_read_until, ours, rb"\b(\d+) s left", 3)
    assert b"stop of web" in drawn
    assert b"stateward operation extend|cancel|escalate" in drawn
    assert (b"\x1b[1m" in drawn) is True
    assert (re.search(rb"\x1b\[[0-9;]*3[0-9]", drawn) is None) is plain
    await guest.run("escalate", "web")
    drawn = await asyncio.to_thread(_read_until, ours, rb"(succeeded after)", 1)
    assert b"(escalated)" in drawn
    await watching.communicate()
    os.close(ours)
    assert watching.returncode == 0


def _read_until(terminal: int, pattern: bytes, different: int) -> bytes:
    """Read until so many different things have matched."""
    read = b""
    while len(set(re.findall(pattern, read))) < different:
        read += os.read(terminal, 4096)
    return read


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["show", "nosuch"], 1, "stateward: There is no operation and no server that is named 'nosuch'."),
        (
            ["show", NOWHERE],
            1,
            f"stateward: There is no operation, and no server with one, that is named '{NOWHERE}'.",
        ),
        (
            ["list", "--state", "done"],
            1,
            (
                "stateward: There is no state 'done' of operations; there are: "
                "accepted, running, succeeded, failed, superseded, cancelled."
            ),
        ),
        (
            ["list", "--project", "x"],
            1,
            "stateward: Policy doesn't allow stateward:operations:read:all_projects",
        ),
        (["extend", "web", "0"], 2, "Error: Invalid value for 'SECONDS': 0 is not in the range x>=1."),
        (["extend", "web"], 2, "Error: Missing argument 'SECONDS'."),
        (["list", "--os-cloud", "nosuch"], 2, "Error: There is no cloud 'nosuch'; "),
    ],
)
async def test_what_is_refused(guest: Guest, words: list[str], status: int, message: str) -> None:
    """In one sentence on the error stream; 2 is for mistakes in the command line."""
    ran = await guest.run(*words)
    assert (ran.status, ran.out) == (status, "")
    assert ran.err.splitlines()[-1].startswith(message)
    assert "Traceback" not in ran.err


async def test_ways_in_that_are_none(guest: Guest) -> None:
    """A server that is not there, one that is none, and a password that is wrong."""
    address = f"http://{guest.served.host}:{guest.served.port}"
    person = {"OS_CLOUD": "", "OS_USERNAME": "demo", "OS_PASSWORD": "x", "OS_PROJECT_NAME": "demo"}
    for url, message in (
        ("http://127.0.0.1:1/v3", "The server cannot be reached at http://127.0.0.1:1/v3/auth/tokens: "),
        (f"{address}/healthz", "The resource could not be found."),
        (f"{address}/identity/v3", "The request you have made requires authentication."),
    ):
        ran = await guest.run("list", **person, OS_AUTH_URL=url)
        assert (ran.status, ran.out) == (1, "")
        assert ran.err.startswith(f"stateward: {message}"), ran.err


async def test_a_server_that_is_stopped_ends_its_streams(tmp_path: Path) -> None:
    """To their last byte, instead of cutting them off when its patience ends."""
    async with ServerProcess(tmp_path) as server:
        admin = Admin(server, await server.log_in("admin"))
        await admin.hosts_up()
        image = await admin.make_image("image", {})
        body = {"name": "web", "imageRef": image, "flavorRef": await admin.make_flavor("one", ram=64)}
        made = await admin.ask("POST", "/compute/v2.1/servers", {"server": body | {"networks": "none"}})
        path = f"/v1/operations/events?instance={made.body['server']['id']}"
        reader, writer = await asyncio.open_connection(server.host, server.port)
        head = f"GET {path} HTTP/1.1\r\nhost: x\r\nx-auth-token: {admin.login.token}\r\n\r\n"
        writer.write(head.encode())
        assert b"event: snapshot\n" in await reader.readuntil(b"event: snapshot\n")
        await server.stop()
        assert (await reader.read()).endswith(b"\r\n0\r\n\r\n")
        writer.close()
        assert server.faults() == []
