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
