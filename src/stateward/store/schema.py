"""The whole schema, and how a database is brought to it."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import sqlalchemy as sa

from stateward.store import (
    compute_tables,
    host_tables,
    idempotency,
    identity_tables,
    image_tables,
    placement_tables,
    webhook_tables,
)
from stateward.store.engine import Database
from stateward.store.tables import METADATA

__all__ = ["HEAD", "METADATA", "migrate"]

#: The newest revision. Known without Alembic, so that a start with nothing to migrate need not load it.
HEAD: Final = "0006"

#: The modules whose tables make up ``METADATA``: importing them is what puts them there.
_MODULES: Final = (
    compute_tables,
    host_tables,
    idempotency,
    identity_tables,
    image_tables,
    placement_tables,
    webhook_tables,
)


class NewerSchema(Exception):
    """The database was migrated by a newer Stateward; ``str()`` says so."""


async def migrate(database: Database) -> bool:
    """Bring a database to the schema of this version; False when it was there already.

    Raises:
        NewerSchema: it is of a version that this one does not know.
        StoreUnavailable: it cannot be reached.
    """
    if await database.read(_revision) == HEAD:
        return False
    await database.write(_upgrade)
    return True


def _revision(connection: sa.Connection) -> str | None:
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar_one_or_none()


def _upgrade(connection: sa.Connection) -> None:
    from alembic import command  # noqa: PLC0415 (costs 0.2 s, needed once)
    from alembic.config import Config  # noqa: PLC0415
    from alembic.util import CommandError  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        msg = f"The database is of a version that this Stateward does not know: {error}"
        raise NewerSchema(msg) from error
