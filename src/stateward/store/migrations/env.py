"""What Alembic runs: the migrations, on the connection it is handed."""

from __future__ import annotations

from typing import cast

import sqlalchemy as sa
from alembic import context

from stateward.store.schema import METADATA

connection = cast("sa.Connection", context.config.attributes["connection"])
context.configure(connection=connection, target_metadata=METADATA, render_as_batch=True, compare_type=True)
with context.begin_transaction():
    context.run_migrations()
