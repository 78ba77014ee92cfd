"""The serial console: who gets its address, who may use that, and what goes over it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import looptime
import pytest
import pytest_asyncio

from stateward.domain.bodies import ShutdownOptions
from stateward.domain.states import VmState
from stateward.store.engine import Database
from tests.api.cloud_in_process import Cloud, Socket
from tests.rows import actor
from tests.stack import Stack

pytestmark = [pytest.mark.asyncio, pytest.mark.looptime]

SERIAL = {"remote_console": {"protocol": "serial", "type": "serial"}}


@pytest_asyncio.fixture
async def cloud(inline_database: Database, swift_folder: Path) -> AsyncIterator[Cloud]:
    """Give a running cloud of one simulated host."""
    stack = Stack(inline_database, swift_folder, None)
    with looptime.enabled(strict=True):
        await stack.start()
    yield Cloud(stack)
    with looptime.enabled(strict=True):
        await stack.stop()


async def address(cloud: Cloud, instance_id: str) -> str:
    """Ask for a console's address."""
    answer = await cloud("POST", f"/servers/{instance_id}/remote-consoles", SERIAL, v=6)
    assert answer.status == 200
    found = answer.body["remote_console"]
    assert (found["protocol"], found["type"]) == ("serial", "serial")
    return str(found["url"])


async def test_an_address_is_given_before_and_since_2_6(cloud: Cloud) -> None:
    """By an action at first, then as a resource; each address is another one."""
    instance_id = await cloud.stack.create()
    url = await address(cloud, instance_id)
    assert url.startswith("ws://cloud/console?token=")
    assert await address(cloud, instance_id) != url
    old = await cloud.act(instance_id, "os-getSerialConsole", {"type": "serial"}, v=5)
    assert (old.status, old.body["console"]["type"]) == (200, "serial")
    assert old.body["console"]["url"].startswith("ws://cloud/console?token=")
    assert (await cloud.act(instance_id, "os-getSerialConsole", {"type": "serial"}, v=6)).status == 404
    assert (await cloud("POST", f"/servers/{instance_id}/remote-consoles", SERIAL, v=5)).status == 404


@pytest.mark.parametrize(
    ("protocol", "kind", "minor"),
    [("vnc", "novnc", 6), ("spice", "spice-html5", 6), ("mks", "webmks", 8), ("spice", "spice-direct", 99)],
)
async def test_there_are_no_screens(cloud: Cloud, protocol: str, kind: str, minor: int) -> None:
    """Refused as Nova refuses what is not switched on; before its microversion there is no such kind at all."""
    instance_id = await cloud.stack.create()
    path = f"/servers/{instance_id}/remote-consoles"
    body = {"remote_console": {"protocol": protocol, "type": kind}}
    answer = await cloud("POST", path, body, v=minor)
    assert (answer.status, answer.message) == (400, f"Unavailable console type {kind}.")
    if minor > 6:
        answer = await cloud("POST", path, body, v=minor - 1)
        assert answer.status == 400
        assert "is not one of" in answer.message


async def test_screens_were_refused_before_2_6_too(cloud: Cloud) -> None:
    """The same sentence, by the actions of that time."""
    instance_id = await cloud.stack.create()
    for wire, kind in (("os-getVNCConsole", "novnc"), ("os-getSPICEConsole", "spice-html5")):
        answer = await cloud.act(instance_id, wire, {"type": kind})
        assert (answer.status, answer.message) == (400, f"Unavailable console type {kind}.")


async def test_who_gets_an_address(cloud: Cloud) -> None:
    """Members of the project, also of a locked server (R8); not while it is being deleted."""
    instance_id = await cloud.stack.create("stateward.acpi=ignore")
    path = f"/servers/{instance_id}/remote-consoles"
    await cloud.stack.immediate.lock(instance_id, actor(), reason=None, project_id=None)
    assert (await cloud("POST", path, SERIAL, v=6)).status == 200
    await cloud.stack.immediate.unlock(instance_id, actor(), project_id=None)
    assert (await cloud("POST", path, SERIAL, v=6, by="reader")).status == 403
    assert (await cloud("POST", path, SERIAL, v=6, by="stranger")).status == 404
    await cloud.stack.act("delete", instance_id)
    answer = await cloud("POST", path, SERIAL, v=6)
    assert (answer.status, answer.message) == (
        409,
        f"Cannot 'get_serial_console' instance {instance_id} while it is in task_state deleting",
    )


async def test_bytes_go_both_ways_until_the_guest_is_off(cloud: Cloud) -> None:
    """As binary messages; text is typed as well; the close says why it ended."""
    instance_id = await cloud.stack.create()
    socket = Socket(cloud, await address(cloud, instance_id), subprotocols=("base64", "binary"))
    assert await socket.connect() == {"type": "websocket.accept", "subprotocol": "binary", "headers": []}
    socket.type(b"hel")
    socket.type("lo\n")
    assert (await socket.next())["bytes"] == b"stateward-guest: console: hello\r\n"
    await cloud.stack.do("stop_force", instance_id, body=ShutdownOptions(force=True))
    assert await socket.next() == {"type": "websocket.close", "code": 1001, "reason": "The guest is off."}
    await socket.ended()
    assert b"console: hello" in "".join(cloud.stack.hypervisor.guest(instance_id).console).encode()


async def test_who_leaves_frees_the_console(cloud: Cloud) -> None:
    """And the next one gets it; who comes while it is in use takes it over."""
    instance_id = await cloud.stack.create()
    url = await address(cloud, instance_id)
    first = Socket(cloud, url)
    assert (await first.connect())["subprotocol"] is None
    await first.leave()
    second, third = Socket(cloud, url), Socket(cloud, url)
    assert (await second.connect())["type"] == "websocket.accept"
    assert (await third.connect())["type"] == "websocket.accept"
    assert (await second.next())["reason"] == "Another connection has taken the console over."
    await second.ended()
    third.type("x\n")
    assert (await third.next())["bytes"] == b"stateward-guest: console: x\r\n"
    await third.leave()


async def test_only_a_good_token_opens(cloud: Cloud) -> None:
    """Not none, not a changed one, not one that is too old; and not one of a server that is gone."""
    instance_id = await cloud.stack.create()
    url = await address(cloud, instance_id)
    foreign = (403, "The token is not one of a console of this cloud.")
    assert await Socket(cloud, "ws://cloud/console").refused() == foreign
    assert await Socket(cloud, "ws://cloud/console?token=%ff%00").refused() == foreign
    head, _, tail = url.rpartition("=")
    for place in (3, len(tail) // 2, len(tail) - 3):
        changed = tail[:place] + ("A" if tail[place] != "A" else "B") + tail[place + 1 :]
        assert await Socket(cloud, f"{head}={changed}").refused() == foreign
    await asyncio.sleep(598)
    good = Socket(cloud, url)
    assert (await good.connect())["type"] == "websocket.accept"
    await good.leave()
    await asyncio.sleep(3)
    expired = (403, "The token has expired. Ask for a new address of the console.")
    assert await Socket(cloud, url).refused() == expired
    url = await address(cloud, instance_id)
    await cloud.stack.do("stop_force", instance_id)
    assert await Socket(cloud, url).refused() == (
        409,
        "The guest is shutoff: it has a console while it is on.",
    )
    await cloud.stack.act("forceDelete", instance_id)
    await cloud.stack.until(instance_id, lambda row: row.vm_state is VmState.DELETED)
    assert await Socket(cloud, url).refused() == (404, f"Instance {instance_id} could not be found.")


@pytest.mark.parametrize(
    ("origin", "may"),
    [
        ("http://cloud", True),
        ("https://cloud:8443", True),
        ("https://dashboard.example.org", True),
        ("https://evil.example.org", False),
        ("https://cloud.evil.example.org", False),
        ("null", False),
        ("http://[", False),
    ],
)
async def test_pages_of_others_may_not_connect(cloud: Cloud, origin: str, *, may: bool) -> None:
    """A browser says whose page it is that uses its user's token."""
    instance_id = await cloud.stack.create()
    socket = Socket(cloud, await address(cloud, instance_id), origin=origin)
    if may:
        assert (await socket.connect())["type"] == "websocket.accept"
        await socket.leave()
    else:
        assert await socket.refused() == (
            403,
            "Pages of this origin may not connect to consoles ([console] allowed_origins).",
        )


@pytest.mark.parametrize(
    ("length", "output"),
    [
        (None, "stateward-guest: up\nstateward-guest: console: a\t[1mb\nstateward-guest: console: c\n"),
        (-1, "stateward-guest: up\nstateward-guest: console: a\t[1mb\nstateward-guest: console: c\n"),
        ("2", "stateward-guest: console: a\t[1mb\nstateward-guest: console: c\n"),
        (1, "stateward-guest: console: c\n"),
        (0, ""),
    ],
)
async def test_the_log_is_read_without_terminals_codes(
    cloud: Cloud, length: int | str | None, output: str
) -> None:
    """The last lines that are asked for; control characters are left out, as in Nova."""
    instance_id = await cloud.stack.create()
    socket = Socket(cloud, await address(cloud, instance_id))
    await socket.connect()
    socket.type(b"a\t\x1b[1mb\x00\nc\n")
    await socket.next()
    await socket.next()
    await socket.leave()
    answer = await cloud.act(instance_id, "os-getConsoleOutput", {"length": length})
    assert (answer.status, answer.body) == (200, {"output": output})
