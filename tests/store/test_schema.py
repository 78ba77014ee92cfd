"""The schema that migrations make is the one that the code means, on both databases."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext

from stateward.domain.errors import Conflict
from stateward.domain.hosts import Condition
from stateward.domain.records import ImageFacts
from stateward.domain.states import VmState
from stateward.operations import stacking
from stateward.store import hosts, images, instances, migrations
from stateward.store.engine import Database, open_database
from stateward.store.image_tables import IMAGES
from stateward.store.images import Image
from stateward.store.schema import HEAD, METADATA, NewerSchema, migrate
from stateward.store.tables import INSTANCES
from tests import rows
from tests.rows import NOW, values


def opened(url: sa.URL) -> Database:
    return open_database(url.render_as_string(hide_password=False))


def upgrade(connection: sa.Connection, revision: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    config.attributes["connection"] = connection
    command.upgrade(config, revision)


def image(image_id: str) -> Image:
    return Image(id=image_id, owner="p", visibility="private", created_at=NOW, updated_at=NOW, properties={})


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


async def test_what_is_there_is_kept(bare_url: sa.URL) -> None:
    """An instance with what refers to it, and its host, from the first schema on; its states are billed from then."""
    row = values()

    def before(connection: sa.Connection) -> None:
        upgrade(connection, "0001")
        connection.execute(sa.insert(INSTANCES).values(row))
        connection.execute(
            sa.text(
                "INSERT INTO locks (id, instance_id, kind, name, holder, reason, blocks, placed_at) "
                "VALUES ('l', :id, 'owner', '', 'u', 'why', 15, 1.0)"
            ),
            {"id": row["id"]},
        )
        connection.execute(
            sa.text(
                "INSERT INTO hosts (id, name, zone, enabled, forced_down) VALUES ('1', 'h', 'nova', true, false)"
            )
        )

    database = opened(bare_url)
    await database.write(before)
    assert await migrate(database) is True

    def after(connection: sa.Connection) -> None:
        instance = instances.hold(connection, row["id"])
        assert instance is not None
        assert (instance.vm_state, instance.kept_off, instance.adopted_as) == (VmState.ACTIVE, False, None)
        assert [lock.reason for lock in stacking.stack_of(connection, instance)] == ["why"]
        (host,) = hosts.every(connection)
        assert (host.name, host.condition, host.frozen) == ("h", Condition.UP, None)
        instances.change_held(connection, instance, {"vm_state": "stopped", "updated_at": NOW + 5})
        found = connection.execute(
            sa.text("SELECT state, began, ended FROM state_intervals WHERE kind = 'recorded' ORDER BY number")
        )
        assert [tuple(each) for each in found] == [("active", NOW, NOW + 5), ("stopped", NOW + 5, None)]

    await database.write(after)
    await database.close()


async def test_ids_that_images_had_before_are_given_out_no_more(bare_url: sa.URL) -> None:
    """Of those that are, and of deleted ones that instances were made from; what is no id is passed over."""
    there, disk, kernel, ramdisk, rescue, shelved, free = (
        str(uuid.UUID(int=0xA0 + number)) for number in range(7)
    )
    booted = ImageFacts(
        id=disk, disk_format="raw", properties={"kernel_id": kernel, "ramdisk_id": ramdisk, "a": free}
    )
    odd = ImageFacts(
        id="", disk_format="", properties={"kernel_id": "none " * 20, "ramdisk_id": free.upper()}
    )
    others = {"rescue": ImageFacts(id=rescue, disk_format="raw"), "shelved_image": odd}

    def before(connection: sa.Connection) -> None:
        upgrade(connection, "0005")
        kept = msgspec.structs.asdict(image(there))
        connection.execute(
            sa.insert(IMAGES).values({name: kept[name] for name in kept.keys() & IMAGES.c.keys()})
        )
        rows.insert(connection, image=booted, **others)
        rows.insert(connection, image=odd, shelved_image=ImageFacts(id=shelved, disk_format="raw"))

    def taken(image_id: str) -> Callable[[sa.Connection], bool]:
        def work(connection: sa.Connection) -> bool:
            try:
                images.insert(connection, image(image_id))
            except Conflict:
                return True
            return False

        return work

    database = opened(bare_url)
    await database.write(before)
    assert await migrate(database) is True
    for image_id in (there, disk, kernel, ramdisk, rescue, shelved):
        assert await database.write(taken(image_id)), image_id
    assert not await database.write(taken(free))
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
