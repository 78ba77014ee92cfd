"""Locks are linearizable (B1): recorded from a real server over HTTP, and checked."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import psycopg
import pytest
import pytest_asyncio

from tests import postgres
from tests.harness import Admin, ServerProcess, until
from tests.linear.checker import every_violation
from tests.linear.clients import run
from tests.linear.history import History, Outcome

# A busy machine needs minutes for what takes a quiet one seconds.
pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(400)]

CLIENTS = 16


async def one_active_server(server: ServerProcess, admin: Admin) -> str:
    """Make a server of demo's whose guest boots and shuts down at once, so that states change often."""
    image = await admin.make_image("quick", {"os_command_line": "stateward.shutdown=0"})
    flavor = await admin.make_flavor("quick", ram=64)
    demo = await server.log_in("demo")
    await admin.hosts_up()
    body = {"server": {"name": "a", "imageRef": image, "flavorRef": flavor, "networks": "none"}}
    async with server.connection(demo.token) as connection:
        made = await connection.ask("POST", "/compute/v2.1/servers", body)
    assert made.status == 202, made
    (found,) = (await admin.settled(seconds=30)).values()
    assert found["status"] == "ACTIVE"
    instance_id: str = found["id"]
    return instance_id


async def record(server: ServerProcess, *, requests: int, seed: int, clients: int = CLIENTS) -> History:
    """Have the clients ask a new server and return the history."""
    admin = Admin(server, await server.log_in("admin"))
    instance_id = await one_active_server(server, admin)
    began = time.monotonic()
    history = await run(
        server,
        instance_id,
        member=await server.log_in("demo"),
        admin=admin.login,
        clients=clients,
        requests=requests,
        seed=seed,
    )
    took = time.monotonic() - began
    print(f"\n{requests} requests of {clients} clients in {took:.1f} s, {requests / took:.0f}/s")  # noqa: T201
    print(*(f"  {count:6} {name}" for name, count in history.count().items()), sep="\n")  # noqa: T201
    assert len(history.requests) == requests
    return history


def convict(history: History) -> list[str]:
    """Check a history and return what is wrong with it."""
    began = time.monotonic()
    found = every_violation(history.requests)
    print(f"{len(found)} violations, found in {time.monotonic() - began:.1f} s")  # noqa: T201
    return [str(each) for each in found]


@pytest_asyncio.fixture(params=["sqlite", "postgresql"])
async def server(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[ServerProcess]:
    """Run a server process on either database."""
    if request.param == "sqlite":
        async with ServerProcess(tmp_path) as server:
            yield server
            await server.stop()
            assert server.faults() == []
        return
    cluster: postgres.Postgres = request.getfixturevalue("postgres_server")
    with cluster.database() as url:
        address = url.render_as_string(hide_password=False)
        # Its tables are the server's own to make.
        with psycopg.connect(address.replace("+psycopg", ""), autocommit=True) as connection:
            connection.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
        (tmp_path / "settings.toml").write_text(f'database = "{address}"\n')
        arguments = ["--driver", "simulated", "--config", str(tmp_path / "settings.toml")]
        async with ServerProcess(tmp_path, arguments) as server:
            yield server
            await server.stop()
            assert server.faults() == []


@pytest.mark.slow
@pytest.mark.parametrize("server", ["sqlite"], indirect=True)
async def test_twenty_thousand_requests(server: ServerProcess) -> None:
    """Sixteen clients, twenty thousand requests, and an order that explains every answer."""
    assert convict(await record(server, requests=20_000, seed=1)) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("server", "clients"),
    [
        ("sqlite", 4),
        ("sqlite", CLIENTS),
        ("postgresql", 4),
        ("postgresql", CLIENTS),
    ],
    indirect=["server"],
)
async def test_three_thousand_requests(server: ServerProcess, clients: int) -> None:
    """The same, shorter, on both databases; few clients leave fewer orders that would explain a wrong answer."""
    assert convict(await record(server, requests=3000, seed=2, clients=clients)) == []


@pytest.mark.slow
@pytest.mark.parametrize("server", ["sqlite"], indirect=True)
async def test_across_kills(server: ServerProcess) -> None:
    """One order explains the answers of six lives of a server: what was answered before a kill holds after it."""
    dice = random.Random(5)
    admin = Admin(server, await server.log_in("admin"))
    member = await server.log_in("demo")
    instance_id = await one_active_server(server, admin)
    history = History()
    for life in range(6):
        lived, answers = History(), dice.randint(40, 250)

        async def reached(lived: History = lived, answers: int = answers) -> bool | None:
            return True if len(lived.requests) >= answers else None

        asking = asyncio.create_task(
            run(
                server,
                instance_id,
                member=member,
                admin=admin.login,
                clients=CLIENTS,
                requests=100_000,
                seed=life,
                history=lived,
            )
        )
        await until(reached, seconds=60, says=server.tail)
        await server.kill()
        dead = time.monotonic_ns()
        for request in (await asking).requests:
            lost = request.outcome is Outcome.UNKNOWN
            history.add(msgspec.structs.replace(request, answered=dead) if lost else request)
        await server.start()
    counts = history.count()
    print(f"\n{len(history.requests)} requests: {counts}")  # noqa: T201
    assert sum(count for name, count in counts.items() if name.endswith("unknown")) == 6 * CLIENTS
    assert counts["stop admitted"] > 0
    assert convict(history) == []
