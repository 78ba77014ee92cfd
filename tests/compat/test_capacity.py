"""A running server with little room: many clients at once, on SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tests import postgres
from tests.harness import Admin, ServerProcess

pytestmark = pytest.mark.slow

CLIENTS, CREATES, ROOM = 16, 200, 100
FULL = "No valid host was found. There are not enough hosts available."


@pytest.fixture(params=["sqlite", "postgresql"])
def config(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """Write the settings of four hosts with room for 25 of the test's servers each."""
    lines = ["[placement]", "cpu_ratio = 1", "reserved_memory = 0"]
    for name in "abcd":
        lines += ["[[host]]", f'name = "{name}"', 'driver = "simulated"', "vcpus = 25", "memory = 100000"]
    path = tmp_path / "settings.toml"
    if request.param == "sqlite":
        path.write_text("\n".join(lines))
        yield path
        return
    server: postgres.Postgres = request.getfixturevalue("postgres_server")
    with server.bare() as url:
        assert isinstance(url, sa.URL)
        path.write_text("\n".join([f'database = "{url.render_as_string(hide_password=False)}"', *lines]))
        yield path


async def test_no_host_gets_more_than_it_has(config: Path, tmp_path: Path) -> None:
    """200 creates from 16 clients, room for 100: 100 are ACTIVE, 100 say why not; deleting makes room again."""
    async with ServerProcess(tmp_path, ("--config", str(config))) as server:
        admin = Admin(server, await server.log_in("admin"))
        await admin.hosts_up()
        image = await admin.make_image("guest", {})
        flavor = await admin.make_flavor("one", ram=64)
        body = {"server": {"name": "s", "flavorRef": flavor, "imageRef": image, "networks": "none"}}

        async def create(count: int) -> None:
            async with server.connection(admin.login.token) as connection:
                for _ in range(count):
                    answer = await connection.ask("POST", "/compute/v2.1/servers", body)
                    assert answer.status == 202, answer

        async def crowd(count: int) -> dict[str, dict[str, Any]]:
            async with asyncio.TaskGroup() as tasks:
                for number in range(CLIENTS):
                    tasks.create_task(create(count // CLIENTS + (number < count % CLIENTS)))
            return await admin.settled(seconds=60)

        found = await crowd(CREATES)
        assert Counter(each["status"] for each in found.values()) == {"ACTIVE": ROOM, "ERROR": CREATES - ROOM}
        assert {each["fault"]["message"] for each in found.values() if "fault" in each} == {FULL}
        hosts = Counter(each["OS-EXT-SRV-ATTR:host"] for each in found.values())
        assert hosts == {"a": 25, "b": 25, "c": 25, "d": 25, None: CREATES - ROOM}
        gone = [server_id for server_id, each in found.items() if each["status"] == "ACTIVE"][:7]
        for server_id in gone:
            assert (await admin.ask("DELETE", f"/compute/v2.1/servers/{server_id}")).status == 204
        left = await admin.settled(seconds=60)
        assert len(left) == CREATES - 7
        again = await crowd(10)
        assert Counter(each["status"] for each in again.values()) == {
            "ACTIVE": ROOM,
            "ERROR": CREATES - ROOM + 3,
        }
        shown = await admin.ask(
            "GET", "/compute/v2.1/os-hypervisors/detail", openstack_api_version="compute 2.53"
        )
        assert {each["vcpus_used"] for each in shown.body["hypervisors"]} == {25}
    assert server.faults() == []
