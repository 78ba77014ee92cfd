"""What Alembic runs: the migrations, on the connection it is handed."""

from __future__ import annotations

from typing import Any, Literal, cast

import sqlalchemy as sa
from alembic import context

from stateward.store.schema import METADATA
from stateward.store.tables import Packed


def render(kind: str, item: Any, _autogenerate: object) -> str | Literal[False]:
    """Write our own column type as what the database sees: a migration outlives the code of its day."""
    return "sa.Text()" if kind == "type" and isinstance(item, Packed) else False


connection = cast("sa.Connection", context.config.attributes["connection"])
context.configure(
    connection=connection,
    target_metadata=METADATA,
    render_as_batch=True,
    compare_type=True,
    render_item=render,
)
with context.begin_transaction():
    context.run_migrations()
