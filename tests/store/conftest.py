"""A plain connection, for the functions that are given one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import sqlalchemy as sa


@pytest.fixture
def connection(database_url: sa.URL) -> Iterator[sa.Connection]:
    """Give a connection to an empty database of either kind, in a transaction that is undone at the end."""
    engine = sa.create_engine(database_url, poolclass=sa.NullPool)
    with engine.connect() as connection:
        yield connection
    engine.dispose()
