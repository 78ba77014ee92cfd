"""Files of this machine that become images' data: taken over where they are, and lost by nobody's death."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from stateward.agent.driver import DriverError
from stateward.server import LocalImages
from stateward.store import images as store
from stateward.store.engine import Database
from tests.api.embedded import Embedded, embedded
from tests.api.images import make
from tests.api.test_images_data import CONTENT, left, show, upload


@pytest_asyncio.fixture
async def world(database: Database, tmp_path: Path) -> AsyncIterator[Embedded]:
    async with embedded(database, tmp_path / "images") as world:
        yield world


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Give a snapshot's file, private as an agent leaves it."""
    path = tmp_path / "snapshot"
    path.write_bytes(CONTENT)
    path.chmod(0o600)
    return path


def active(content: bytes = CONTENT) -> dict[str, object]:
    return {
        "status": "active",
        "size": len(content),
        "checksum": hashlib.md5(content).hexdigest(),
        "os_hash_value": hashlib.sha512(content).hexdigest(),
    }


async def shown(world: Embedded, image_id: str) -> dict[str, object]:
    image = await show(world, image_id)
    return {name: image[name] for name in active()}


async def test_a_file_becomes_an_images_data_without_a_copy(world: Embedded, file: Path) -> None:
    image_id = (await make(world, await world.demo()))["id"]
    images = LocalImages(world.images)

    for _ in range(2):
        await images.store(image_id, file)

    assert await shown(world, image_id) == active()
    data = await images.path(image_id)
    assert data.samefile(file)
    assert data.stat().st_mode & 0o777 == 0o644
    assert left(world) == [image_id]
    # Repeated by an agent that was killed after it had deleted its own.
    file.unlink()
    await images.store(image_id, file)
    assert await shown(world, image_id) == active()
    assert data.read_bytes() == CONTENT


async def test_a_file_on_another_file_system_is_copied(
    world: Embedded, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_self: Path, _target: Path) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    image_id = (await make(world, await world.demo()))["id"]

    await LocalImages(world.images).store(image_id, file)

    assert await shown(world, image_id) == active()
    data = await world.images.path(image_id)
    assert not data.samefile(file)
    assert data.read_bytes() == CONTENT


async def test_being_killed_before_the_image_is_active_loses_nothing(world: Embedded, file: Path) -> None:
    image_id = (await make(world, await world.demo()))["id"]
    await world.images.database.write(
        lambda connection: store.begin_upload(connection, image_id, "of a former life", 0.0)
    )
    world.folder.mkdir(exist_ok=True)
    (world.folder / image_id).hardlink_to(file)

    await world.images.start()
    assert left(world) == []
    await LocalImages(world.images).store(image_id, file)

    assert await shown(world, image_id) == active()
    assert left(world) == [image_id]


async def test_what_an_image_has_is_kept(world: Embedded, file: Path) -> None:
    image_id = (await make(world, await world.demo()))["id"]
    await upload(world, image_id, b"uploaded")
    await LocalImages(world.images).store(image_id, file)
    assert await shown(world, image_id) == active(b"uploaded")


async def test_what_cannot_be_stored_is_said_and_kept(
    world: Embedded, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = LocalImages(world.images)
    with pytest.raises(DriverError, match="No image found"):
        await images.store("6c7f1d1e-9f5c-4a0c-8f4e-2f3a54a0b001", file)
    image_id = (await make(world, await world.demo()))["id"]
    with pytest.raises(DriverError, match="does not exist"):
        await images.store(image_id, file.with_name("missing"))

    def full(_self: Path, _target: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "hardlink_to", full)
    with pytest.raises(DriverError, match="not enough storage space"):
        await images.store(image_id, file)
    assert (await show(world, image_id))["status"] == "queued"
    assert left(world) == []
    assert file.read_bytes() == CONTENT
