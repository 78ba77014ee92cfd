"""Stacked locks, holds, expiry and break-glass are linearizable (B1, B2, R6): recorded over HTTP, and checked.

The proof at full length, 100,000 requests of 32 clients on 8 instances, on both databases, takes minutes:
``STATEWARD_STACK_REQUESTS=100000 .venv/bin/pytest -s tests/linear/test_stack.py``
"""

from __future__ import annotations

import collections
import contextlib
import os
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Final

import pytest
import pytest_asyncio

from tests import postgres
from tests.harness import STATEWARD, Admin, ServerProcess
from tests.linear.history import Outcome
from tests.linear.search import Search, Violation
from tests.linear.stack_clients import run
from tests.linear.stack_history import Asked, Deed
from tests.linear.stack_model import Stack, StackModel

#: What the environment says of the length; the default is for every run of the tests.
REQUESTS: Final = int(os.environ.get("STATEWARD_STACK_REQUESTS", "2500"))
CLIENTS: Final = int(os.environ.get("STATEWARD_STACK_CLIENTS", "32"))
INSTANCES: Final = int(os.environ.get("STATEWARD_STACK_INSTANCES", "8"))
SEED: Final = int(os.environ.get("STATEWARD_STACK_SEED", "1"))

pytestmark = [pytest.mark.asyncio, pytest.mark.slow, pytest.mark.timeout(400 + REQUESTS // 10)]

#: A guest that an overtaken operation left as it is not recorded is brought back each time, however often.
SETTINGS: Final = "[arbiter]\nrestores = 1000000\n"


async def active_servers(server: ServerProcess, admin: Admin, count: int) -> list[str]:
    """Make servers of demo's whose guests boot and shut down at once, so that states change often."""
    image = await admin.make_image("quick", {"os_command_line": "stateward.shutdown=0"})
    flavor = await admin.make_flavor("quick", ram=64)
    demo = await server.log_in("demo")
    await admin.hosts_up()
    async with server.connection(demo.token) as connection:
        for number in range(count):
            wanted = {"name": f"a{number}", "imageRef": image, "flavorRef": flavor, "networks": "none"}
            made = await connection.ask("POST", "/compute/v2.1/servers", {"server": wanted})
            assert made.status == 202, made
    found = await admin.settled(seconds=60)
    assert [each["status"] for each in found.values()] == ["ACTIVE"] * count
    return list(found)


async def record(
    server: ServerProcess, *, requests: int, seed: int, clients: int, instances: int
) -> dict[str, list[Asked]]:
    """Have the clients ask new servers and return their histories."""
    admin = Admin(server, await server.log_in("admin"))
    those = await active_servers(server, admin, instances)
    began = time.monotonic()
    histories = await run(server, admin, those, clients=clients, requests=requests, seed=seed)
    took = time.monotonic() - began
    print(f"\n{requests} requests of {clients} clients in {took:.1f} s, {requests / took:.0f}/s")  # noqa: T201
    counts = collections.Counter(
        f"{each.deed} {each.outcome} {each.end}" for history in histories.values() for each in history
    )
    print(*(f"  {count:6} {name}" for name, count in sorted(counts.items())), sep="\n")  # noqa: T201
    asked = [each for history in histories.values() for each in history]
    released = {each.lock for each in asked if each.deed is Deed.RELEASE and each.outcome is Outcome.ADMITTED}
    placed = {each.lock for each in asked if each.deed is Deed.PLACE and each.expires and each.lock}
    print(f"{len(placed)} locks that expire, {len(placed - released)} expired")  # noqa: T201
    assert sum(counts.values()) >= requests
    return histories


def convict(histories: dict[str, list[Asked]]) -> list[Violation[Asked]]:
    """Check histories, each instance's by itself, and return what is wrong with them."""
    began, found = time.monotonic(), list[Violation[Asked]]()
    visited = widest = 0
    for history in histories.values():
        search = Search(StackModel(history), Stack())
        violation = search.check(history)
        if violation is not None:
            found.append(violation)
        visited, widest = visited + search.visited, max(widest, search.widest)
    took = time.monotonic() - began
    print(  # noqa: T201
        f"{len(found)} violations, found in {took:.1f} s; {visited} configurations, at most {widest} at a time"
    )
    return found


def simulated(folder: Path, *, database: str = "", program: Sequence[str] = STATEWARD) -> ServerProcess:
    """Prepare a server with simulated guests."""
    path = folder / "settings.toml"
    path.write_text(f'database = "{database}"\n{SETTINGS}' if database else SETTINGS)
    return ServerProcess(folder, ["--driver", "simulated", "--config", str(path)], program=program)


@pytest_asyncio.fixture(params=["sqlite", "postgresql"])
async def server(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[ServerProcess]:
    """Run a server process on either database."""
    with contextlib.ExitStack() as stack:
        database = ""
        if request.param == "postgresql":
            cluster: postgres.Postgres = request.getfixturevalue("postgres_server")
            # Its tables are the server's own to make.
            database = stack.enter_context(cluster.bare()).render_as_string(hide_password=False)
        async with simulated(tmp_path, database=database) as server:
            yield server
            await server.stop()
            assert server.faults() == []


async def test_an_order_explains_every_answer(server: ServerProcess) -> None:
    """Members and admins, stacks of locks, holds, expiry and overrides, on both databases."""
    histories = await record(server, requests=REQUESTS, seed=SEED, clients=CLIENTS, instances=INSTANCES)
    assert convict(histories) == []
