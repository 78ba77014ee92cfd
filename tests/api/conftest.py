"""A whole server for the tests of what the API refuses: refusing changes nothing, so they share it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import psycopg
import pytest
import pytest_asyncio

from tests import postgres
from tests.cloud import Cloud, running_cloud


@pytest_asyncio.fixture(scope="session", loop_scope="session", params=["sqlite", "postgresql"])
async def shared_cloud(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Cloud]:
    """Run a server on either database, with one active server ``web``."""
    folder = tmp_path_factory.mktemp("cloud")
    if request.param == "sqlite":
        async with running_cloud(folder / "data") as cloud:
            cloud.server = await cloud.ready_server("web")
            yield cloud
        return
    server: postgres.Postgres = request.getfixturevalue("postgres_server")
    with server.database() as url:
        address = url.render_as_string(hide_password=False)
        with psycopg.connect(address.replace("+psycopg", ""), autocommit=True) as connection:
            connection.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
        async with running_cloud(folder / "data", database=address) as cloud:
            cloud.server = await cloud.ready_server("web")
            yield cloud
