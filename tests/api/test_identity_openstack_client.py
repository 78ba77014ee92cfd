"""The real ``openstack`` command against a real server: what people type, and what they see."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import socket
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
import pytest_asyncio
import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount

from stateward.api.identity import Identity, identity_routes
from stateward.api.images import Images, image_routes
from stateward.clock import SystemClock
from stateward.store.engine import open_database
from tests.api.embedded import ADMIN_PASSWORD, DEMO_PASSWORD, SECRET

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.slow]

OPENSTACK = Path(sys.executable).with_name("openstack")


class Server:
    """A server on a port of its own, and the command that asks it."""

    def __init__(self, port: int, folder: Path) -> None:
        self.port = port
        self.folder = folder

    async def openstack(
        self, *words: str, user: str = "admin", password: str = ADMIN_PASSWORD
    ) -> tuple[int, str, str]:
        """Run the command as a user on the project of the same name; return its status, output and complaints."""
        environment = {
            "HOME": str(self.folder),
            "PATH": os.environ["PATH"],
            "OS_AUTH_URL": f"http://127.0.0.1:{self.port}/identity/v3",
            "OS_USERNAME": user,
            "OS_PASSWORD": password,
            "OS_PROJECT_NAME": user,
            "OS_USER_DOMAIN_NAME": "Default",
            "OS_PROJECT_DOMAIN_NAME": "Default",
        }
        process = await asyncio.create_subprocess_exec(
            str(OPENSTACK),
            *words,
            env=environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        output, complaints = await process.communicate()
        return process.returncode or 0, output.decode(), complaints.decode()

    async def ask(self, *words: str, **as_whom: str) -> Any:
        """Run the command, which must succeed, and return what it says."""
        status, output, complaints = await self.openstack(*words, "-f", "json", **as_whom)
        assert status == 0, (words, complaints)
        return json.loads(output)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    folder = tmp_path_factory.mktemp("openstack")
    database = open_database(f"sqlite:///{shutil.copyfile(sqlite_template, folder / 'stateward.db')}")
    identity = Identity(database, SystemClock(), SECRET)
    images = Images(database, folder / "images", SystemClock())
    await identity.bootstrap(admin_password=ADMIN_PASSWORD, demo_password=DEMO_PASSWORD)
    await images.start()
    app = Starlette(
        routes=[
            Mount("/identity", routes=identity_routes(identity)),
            Mount("/image", routes=image_routes(images, identity)),
        ]
    )
    bound = socket.create_server(("127.0.0.1", 0))
    running = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off"))
    task = asyncio.create_task(running.serve(sockets=[bound]))
    yield Server(bound.getsockname()[1], folder)
    running.should_exit = True
    await task
    identity.close()
    await database.close()


def unfinished(server: Server) -> list[int]:
    """Return how much of each upload under way is in the folder."""
    return [path.stat().st_size for path in (server.folder / "images").iterdir() if path.suffix == ".part"]


async def until(condition: Callable[[], bool]) -> None:
    """Look at what no event tells until it is so."""
    while not condition():  # noqa: ASYNC110 (another program's work is waited for)
        await asyncio.sleep(0.01)


async def test_an_administrator_makes_a_project_and_a_user_who_can_use_it(server: Server) -> None:
    project = await server.ask("project", "create", "team", "--description", "of eve", "--tag", "x")
    user = await server.ask("user", "create", "team", "--password", "first", "--email", "eve@example.org")
    status, _output, complaints = await server.openstack(
        "role", "add", "--user", "team", "--project", "team", "member"
    )
    assert (status, complaints) == (0, "")
    assigned = await server.ask("role", "assignment", "list", "--names", "--project", "team")
    token = await server.ask("token", "issue", user="team", password="first")

    assert (project["name"], project["description"], project["tags"]) == ("team", "of eve", ["x"])
    assert user["email"] == "eve@example.org"
    assert assigned == [
        {
            "Role": "member",
            "User": "team@Default",
            "Group": "",
            "Project": "team@Default",
            "Domain": "",
            "System": "",
            "Inherited": False,
        }
    ]
    assert token["project_id"] == project["id"]
    assert token["user_id"] == user["id"]

    status, _output, complaints = await server.openstack(
        "user", "password", "set", "--original-password", "first", "--password", "second",
        user="team", password="first",
    )  # fmt: skip
    assert (status, complaints) == (0, "")
    status, _output, complaints = await server.openstack("token", "issue", user="team", password="first")
    assert status == 1
    assert "The request you have made requires authentication. (HTTP 401)" in complaints


async def test_a_member_uploads_finds_and_downloads_an_image(server: Server) -> None:
    content = os.urandom(3_000_000)
    file, copy = server.folder / "disk.raw", server.folder / "copy.raw"
    file.write_bytes(content)
    demo = {"user": "demo", "password": DEMO_PASSWORD}

    made = await server.ask(
        "image", "create", "debian", "--file", str(file), "--property", "os_shutdown_timeout=30",
        "--tag", "t", "--private", **demo,
    )  # fmt: skip
    listed = await server.ask("image", "list", "--private", **demo)
    status, _output, complaints = await server.openstack(
        "image", "set", "debian", "--property", "os_distro=debian", "--min-ram", "64", **demo
    )
    assert (status, complaints) == (0, "")
    status, _output, complaints = await server.openstack(
        "image", "save", "debian", "--file", str(copy), **demo
    )
    assert (status, complaints) == (0, "")
    shown = await server.ask("image", "show", "debian", **demo)

    assert listed == [{"ID": made["id"], "Name": "debian", "Status": "active"}]
    assert copy.read_bytes() == content
    assert (shown["size"], shown["min_ram"], shown["tags"]) == (3_000_000, 64, ["t"])
    assert shown["properties"]["os_distro"] == "debian"
    assert str(shown["properties"]["os_shutdown_timeout"]) == "30"


async def test_a_client_that_goes_away_in_the_middle_leaves_nothing(server: Server) -> None:
    demo = {"user": "demo", "password": DEMO_PASSWORD}
    token = (await server.ask("token", "issue", **demo))["id"]
    async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{server.port}/image/v2") as client:
        made = await client.post(
            "/images",
            json={"name": "cut", "disk_format": "raw", "container_format": "bare"},
            headers={"x-auth-token": token},
        )
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(
        f"PUT /image/v2/images/{made.json()['id']}/file HTTP/1.1\r\nHost: x\r\nX-Auth-Token: {token}\r\n"
        "Content-Type: application/octet-stream\r\nContent-Length: 6000000\r\n\r\n".encode()
    )
    writer.write(bytes(5_000_000))
    await writer.drain()
    await until(lambda: [size for size in unfinished(server) if size > 4_000_000] != [])

    writer.transport.abort()
    with contextlib.suppress(ConnectionError):
        assert await reader.read() == b""

    await until(lambda: unfinished(server) == [])
    shown = await server.ask("image", "show", "cut", **demo)
    assert (shown["status"], "size" in shown) == ("queued", False)
