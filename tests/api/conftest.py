"""A whole server for the tests of what the API refuses: refusing changes nothing, so they share it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from tests import postgres
from tests.cloud import Cloud, running_cloud


@pytest.fixture(scope="session", params=["sqlite", "postgresql"])
def shared_database(request: pytest.FixtureRequest) -> Iterator[str | None]:
    """Name an empty database; None for the server's own."""
    if request.param == "sqlite":
        yield None
        return
    server: postgres.Postgres = request.getfixturevalue("postgres_server")
    with server.bare() as url:
        yield url.render_as_string(hide_password=False)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def shared_cloud(
    shared_database: str | None, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Cloud]:
    """Run a server on either database, with one active server ``web``."""
    async with running_cloud(tmp_path_factory.mktemp("cloud") / "data", database=shared_database) as cloud:
        cloud.server = await cloud.ready_server("web")
        yield cloud


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def lives(shared_cloud: Cloud) -> Cloud:
    """Add the flavors and images that no life of the shared server fits."""
    for flavor_id, more in (("none", {"disk": 0}), ("wide", {"disk": 3}), ("huge", {"ram": 2**30})):
        flavor = {"id": flavor_id, "name": flavor_id, "ram": 512, "vcpus": 1, "disk": 1}
        answer = await shared_cloud.ask("admin", "POST", "/flavors", {"flavor": flavor | more})
        assert answer.status == 200, answer.body
    things = {"{image}": shared_cloud.image}
    queued = await _image(shared_cloud, "queued")
    things["{queued}"] = queued
    for name, members in (
        ("large", {"min_ram": 513}),
        ("wide", {"min_disk": 2}),
        ("hidden", {"visibility": "private"}),
    ):
        things[f"{{{name}}}"] = image_id = await _image(shared_cloud, name, **members)
        headers = {"x-auth-token": shared_cloud.tokens["admin"], "content-type": "application/octet-stream"}
        path = f"/image/v2/images/{image_id}/file"
        assert (await shared_cloud.send("PUT", path, content=b"0", headers=headers)).status == 204
    shared_cloud.things = things
    return shared_cloud


async def _image(cloud: Cloud, name: str, **members: object) -> str:
    image = {"name": name, "disk_format": "raw", "container_format": "bare", "visibility": "public"}
    answer = await cloud.ask("admin", "POST", "/images", image | members, api="/image/v2")
    assert answer.status == 201, answer.body
    image_id: str = answer.body["id"]
    return image_id
