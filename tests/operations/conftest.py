"""A desk, on both databases."""

from __future__ import annotations

import pytest

from stateward.store.engine import Database
from tests.operations.desk import Desk


@pytest.fixture
def desk(database: Database) -> Desk:
    """Give a desk on an empty database."""
    return Desk(database)
