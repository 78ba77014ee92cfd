"""The schema that migrations make is the one that the code means, on both databases."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from stateward.store.engine import Database, open_database
from stateward.store.schema import HEAD, METADATA, NewerSchema, migrate


def opened(url: sa.URL) -> Database:
    return open_database(url.render_as_string(hide_password=False))


async def test_migrations_make_what_the_tables_say(database: Database) -> None:
    """No table, column, index or constraint more or less."""

    def differences(connection: sa.Connection) -> list[object]:
        return list(compare_metadata(MigrationContext.configure(connection), METADATA))

    assert await database.read(differences) == []


async def test_migrating_is_done_once(bare_url: sa.URL) -> None:
    """The second time there is nothing to do, and the newest revision is the one that is known."""
    database = opened(bare_url)
    assert await migrate(database) is True
    assert await migrate(database) is False
    revision = await database.read(
        lambda connection: connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar_one()
    )
    assert revision == HEAD
    await database.close()


async def test_a_newer_schema_is_not_touched(database: Database) -> None:
    """An old Stateward on a new database says so instead of guessing."""
    await database.write(
        lambda connection: connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    )
    with pytest.raises(NewerSchema, match="does not know"):
        await migrate(database)
    await database.write(
        lambda connection: connection.execute(
            sa.text("UPDATE alembic_version SET version_num = :head"), {"head": HEAD}
        )
    )
