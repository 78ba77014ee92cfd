"""An API on an empty database."""

from __future__ import annotations

import pytest

from stateward.store.engine import Database
from tests.api.native.bench import Api


@pytest.fixture
def api(database: Database) -> Api:
    """Give an API on an empty database of either kind."""
    return Api(database)


@pytest.fixture
def virtual_api(inline_database: Database) -> Api:
    """Give an API whose waits take no time."""
    return Api(inline_database)
