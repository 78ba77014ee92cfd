"""A front of the Compute API for what is derived from the table."""

from __future__ import annotations

import pytest_asyncio

from stateward.store.engine import Database
from tests.table.front import Front


@pytest_asyncio.fixture
async def front(inline_database: Database) -> Front:
    """Give a front with a host, an image and a flavor, and no server yet."""
    made = Front(inline_database)
    await made.open()
    return made
