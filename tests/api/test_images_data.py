"""Images' data: whole or not there, whatever interrupts the upload, and not in anybody's way."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import shutil
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import pytest
import pytest_asyncio
import sqlalchemy as sa

from stateward.api.images import files
from stateward.domain.errors import NotFound
from stateward.store.engine import Database, StoreUnavailable, T, Work
from stateward.store.image_tables import IMAGES
from tests.api.embedded import Embedded, embedded
from tests.api.images import DATA, FORMATS, V2, make, patch

CONTENT = os.urandom(5 * 1024 * 1024 + 17)


@pytest_asyncio.fixture
async def world(database: Database, tmp_path: Path) -> AsyncIterator[Embedded]:
    async with embedded(database, tmp_path / "images") as world:
        yield world


async def upload(world: Embedded, image_id: str, content: Any = CONTENT) -> Any:
    headers = await world.demo() | DATA
    return await world.client.put(f"{V2}/images/{image_id}/file", content=content, headers=headers)


async def show(world: Embedded, image_id: str) -> dict[str, Any]:
    response = await world.client.get(f"{V2}/images/{image_id}", headers=await world.admin())
    shown: dict[str, Any] = response.json()
    return shown


def left(world: Embedded) -> list[str]:
    return sorted(path.name for path in world.folder.iterdir()) if world.folder.exists() else []


async def pieces(*sizes: int) -> AsyncIterator[bytes]:
    begin = 0
    for size in sizes:
        yield CONTENT[begin : begin + size]
        begin += size


@pytest.mark.parametrize("content", [CONTENT, b"", b"x"])
async def test_what_was_uploaded_is_downloaded(world: Embedded, content: bytes) -> None:
    demo = await world.demo()
    made = await make(world, demo, name="one")
    path = f"{V2}/images/{made['id']}/file"
    before = await world.client.get(path, headers=demo)
    world.clock.time += 60.0

    answer = await upload(world, made["id"], content)

    shown = await show(world, made["id"])
    after = await world.client.get(path, headers=demo)
    assert (before.status_code, before.content) == (204, b"")
    assert answer.status_code == 204
    assert shown == made | {
        "status": "active",
        "size": len(content),
        "checksum": hashlib.md5(content).hexdigest(),
        "os_hash_algo": "sha512",
        "os_hash_value": hashlib.sha512(content).hexdigest(),
        "updated_at": "2027-01-15T08:01:00Z",
    }
    assert (after.status_code, after.content) == (200, content)
    assert after.headers["content-length"] == str(len(content))
    assert after.headers["content-type"] == "application/octet-stream"
    assert after.headers["content-md5"] == shown["checksum"]
    local = await world.images.path(made["id"])
    assert local == world.folder / made["id"]
    assert local.read_bytes() == content
    assert local.stat().st_mode & 0o777 == 0o644
    assert left(world) == [made["id"]]


async def test_data_of_unknown_length_come_in_pieces(world: Embedded) -> None:
    made = await make(world, await world.demo())

    answer = await upload(world, made["id"], pieces(1, 3_000_000, 7, 100_000))

    assert answer.status_code == 204
    assert (await world.images.path(made["id"])).read_bytes() == CONTENT[:3_100_008]


async def test_data_are_given_once(world: Embedded) -> None:
    made = await make(world, await world.demo())

    answers = await asyncio.gather(*(upload(world, made["id"]) for _ in range(4)))
    again = await upload(world, made["id"], b"other")

    assert sorted(answer.status_code for answer in answers) == [204, 409, 409, 409]
    assert again.status_code == 409
    assert (await world.images.path(made["id"])).read_bytes() == CONTENT
    assert left(world) == [made["id"]]


async def test_formats_are_said_before_the_data_and_stay(world: Embedded) -> None:
    demo = await world.demo()
    made = await make(world, demo, disk_format=None)

    early = await upload(world, made["id"])
    await patch(world, demo, made["id"], {"op": "replace", "path": "/disk_format", "value": "qcow2"})
    uploaded = await upload(world, made["id"])
    late = await patch(world, demo, made["id"], {"op": "replace", "path": "/disk_format", "value": "raw"})
    same = await patch(world, demo, made["id"], {"op": "replace", "path": "/disk_format", "value": "qcow2"})

    assert [one.status_code for one in (early, uploaded, late, same)] == [400, 204, 403, 200]


async def test_data_have_their_media_type(world: Embedded) -> None:
    demo = await world.demo()
    made = await make(world, demo)

    response = await world.client.put(f"{V2}/images/{made['id']}/file", content=b"x", headers=demo)

    assert response.status_code == 415


class Cut(Exception):
    """The client is gone."""


async def test_an_upload_that_is_cut_off_leaves_nothing_and_can_be_repeated(world: Embedded) -> None:
    made = await make(world, await world.demo())
    seen: list[Any] = []

    async def half() -> AsyncIterator[bytes]:
        yield CONTENT[:3_000_000]
        seen.append((await show(world, made["id"]))["status"])
        seen.append(len(left(world)))
        raise Cut

    with pytest.raises(Cut):
        await world.images.upload(made["id"], half(), announced=None)

    # While it ran there was an unfinished file, under another name.
    assert seen == ["saving", 1]
    assert (await show(world, made["id"]))["status"] == "queued"
    assert left(world) == []
    with pytest.raises(NotFound):
        await world.images.path(made["id"])
    assert (await upload(world, made["id"])).status_code == 204


@pytest.mark.parametrize("turns", [0, 1, 2, 3, 5, 8, 13, 30, 60])
async def test_an_upload_that_is_cancelled_leaves_all_or_nothing(world: Embedded, turns: int) -> None:
    made = await make(world, await world.demo())
    task = asyncio.create_task(world.images.upload(made["id"], pieces(3_000_000, 2_000_000), announced=None))
    for _ in range(turns):
        await asyncio.sleep(0.001 if turns > 8 else 0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

    # A server that stops also waits for what is being written to the database.
    await world.database.write(lambda connection: None)
    status = (await show(world, made["id"]))["status"]
    assert (status, left(world)) in [("queued", []), ("active", [made["id"]])]


async def test_a_deletion_in_the_middle_of_an_upload_wins(world: Embedded) -> None:
    demo = await world.demo()
    made = await make(world, demo)

    async def deleting() -> AsyncIterator[bytes]:
        yield CONTENT[:3_000_000]
        await world.client.delete(f"{V2}/images/{made['id']}", headers=demo)
        yield CONTENT[3_000_000:]

    answer = await upload(world, made["id"], deleting())

    assert answer.status_code == 404
    assert left(world) == []


async def test_an_upload_that_outlives_its_image_writes_into_no_other(world: Embedded) -> None:
    """Its file would get the name of the next image's of that id."""
    demo = await world.demo()
    made = await make(world, demo)
    remade: list[int] = []

    async def outliving() -> AsyncIterator[bytes]:
        yield CONTENT[:3_000_000]
        await world.client.delete(f"{V2}/images/{made['id']}", headers=demo)
        body = FORMATS | {"id": made["id"]}
        remade.append((await world.client.post(f"{V2}/images", json=body, headers=demo)).status_code)
        remade.append((await upload(world, made["id"], b"another's")).status_code)
        yield CONTENT[3_000_000:]

    answer = await upload(world, made["id"], outliving())

    assert (remade, answer.status_code) == ([409, 404], 404)
    assert left(world) == []


@pytest.mark.parametrize("pieces_before", [0, 1])
async def test_a_full_disk_is_said_and_nothing_is_left_behind(
    world: Embedded, monkeypatch: pytest.MonkeyPatch, pieces_before: int
) -> None:
    made = await make(world, await world.demo())
    opened = files.open_new
    written = 0

    class Full:
        """A file on a disk that fills up: what the kernel says of /dev/full, after so many good writes."""

        def __init__(self, path: Path) -> None:
            self._file = opened(path)
            self._full = Path("/dev/full").open("wb", buffering=0)  # noqa: SIM115

        def write(self, data: bytes) -> int:
            nonlocal written
            written += 1
            return (self._file if written <= pieces_before else self._full).write(data)

        def close(self) -> None:
            self._file.close()
            self._full.close()

    monkeypatch.setattr(files, "open_new", Full)

    answer = await upload(world, made["id"], pieces(3_000_000, 2_000_000))

    assert answer.status_code == 413
    assert answer.json()["error"]["message"] == (
        f"There is not enough storage space left for the data of {made['id']}."
    )
    assert written == pieces_before + 1
    assert (await show(world, made["id"]))["status"] == "queued"
    assert left(world) == []
    monkeypatch.undo()
    assert (await upload(world, made["id"])).status_code == 204


class Usage(NamedTuple):
    total: int
    used: int
    free: int


async def test_what_cannot_fit_is_refused_before_it_is_written(
    world: Embedded, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await make(world, await world.demo())
    opened: list[Path] = []
    real = files.open_new

    def open_new(path: Path) -> IO[bytes]:
        opened.append(path)
        return real(path)

    def usage(_path: Path) -> Usage:
        return Usage(2**40, 2**40, files.RESERVE + len(CONTENT) - 1)

    monkeypatch.setattr(files, "open_new", open_new)
    monkeypatch.setattr(shutil, "disk_usage", usage)

    announced = await upload(world, made["id"])
    assert (announced.status_code, opened) == (413, [])
    # What was not announced is refused when it has come to that.
    unannounced = await upload(world, made["id"], pieces(len(CONTENT)))
    assert unannounced.status_code == 413
    assert (await show(world, made["id"]))["status"] == "queued"
    assert left(world) == []


async def test_a_broken_disk_is_a_fault_of_the_servers(
    world: Embedded, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await make(world, await world.demo())

    def broken(_path: Path) -> IO[bytes]:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(files, "open_new", broken)

    answer = await upload(world, made["id"])

    assert answer.status_code == 503
    assert (await show(world, made["id"]))["status"] == "queued"


async def test_a_database_that_fails_at_the_end_leaves_nothing(
    world: Embedded, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await make(world, await world.demo())
    write = world.database.write
    writes = 0

    async def failing(work: Work[T]) -> T:
        nonlocal writes
        writes += 1
        if writes == 2:
            assert left(world) == [made["id"]]
            raise StoreUnavailable("The database cannot be used now.")
        return await write(work)

    monkeypatch.setattr(world.images.database, "write", failing)

    answer = await upload(world, made["id"])

    assert (answer.status_code, writes) == (503, 3)
    assert (await show(world, made["id"]))["status"] == "queued"
    assert left(world) == []


async def test_a_crash_is_cleared_up_after(world: Embedded) -> None:
    demo = await world.demo()
    whole, partial, gone = [await make(world, demo, name=name) for name in ("whole", "partial", "gone")]
    await upload(world, whole["id"], b"whole")
    # Killed in an upload after the file had its name; killed in one before; killed after a deletion.
    await world.database.write(
        lambda c: c.execute(
            sa.update(IMAGES).where(IMAGES.c.id == partial["id"]).values(status="saving", upload="u")
        )
    )
    await world.client.delete(f"{V2}/images/{gone['id']}", headers=demo)
    ours = [partial["id"], "01234567-89ab-cdef-0123-456789abcdef.part", gone["id"]]
    for name in (*ours, "a note", "README.part"):
        (world.folder / name).write_bytes(b"left")

    await world.images.start()

    assert left(world) == sorted([whole["id"], "a note", "README.part"])
    assert (await show(world, partial["id"]))["status"] == "queued"
    assert (await show(world, whole["id"]))["status"] == "active"
    assert (await upload(world, partial["id"], b"again")).status_code == 204


async def test_the_first_start_finds_no_folder(world: Embedded) -> None:
    await world.images.start()

    assert left(world) == []


async def test_a_deleted_image_goes_and_what_links_to_its_data_stays(world: Embedded, tmp_path: Path) -> None:
    demo = await world.demo()
    made = await make(world, demo)
    await upload(world, made["id"])
    link = tmp_path / "disk of an instance"
    link.hardlink_to(await world.images.path(made["id"]))

    response = await world.client.delete(f"{V2}/images/{made['id']}", headers=demo)

    assert response.status_code == 204
    assert left(world) == []
    assert link.read_bytes() == CONTENT
    with pytest.raises(NotFound):
        await world.images.path(made["id"])


async def test_data_that_somebody_took_away_are_not_found(world: Embedded) -> None:
    demo = await world.demo()
    made = await make(world, demo)
    await upload(world, made["id"])
    (world.folder / made["id"]).unlink()

    response = await world.client.get(f"{V2}/images/{made['id']}/file", headers=demo)

    assert response.status_code == 404
    with pytest.raises(NotFound):
        await world.images.path(made["id"])


async def test_data_are_hashed_and_written_off_the_event_loop(
    world: Embedded, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await make(world, await world.demo())
    sizes: list[int] = []
    threads: set[int] = set()
    write, finish = files.Incoming.write, files.Incoming.finish

    def watched_write(self: files.Incoming, data: bytes) -> None:
        sizes.append(len(data))
        threads.add(threading.get_ident())
        write(self, data)

    def watched_finish(self: files.Incoming) -> files.Written:
        threads.add(threading.get_ident())
        return finish(self)

    monkeypatch.setattr(files.Incoming, "write", watched_write)
    monkeypatch.setattr(files.Incoming, "finish", watched_finish)

    await upload(world, made["id"], pieces(*[65_536] * 80))

    # Pieces large enough that a thread is worth it, and small enough to wait for.
    assert sizes == [2_097_152, 2_097_152, 1_048_576]
    assert threading.get_ident() not in threads
    assert threads


async def test_a_local_file_is_registered_once(world: Embedded, tmp_path: Path) -> None:
    demo = await world.demo()
    kernel = tmp_path / "vmlinuz"
    kernel.write_bytes(CONTENT)

    first = await world.images.register_local("kernel", kernel, disk_format="aki")
    second = await world.images.register_local("kernel", kernel, disk_format="aki", properties={"a": "b"})

    assert first == second
    shown = await show(world, first)
    expected = {
        "name": "kernel",
        "status": "active",
        "visibility": "public",
        "owner": None,
        "disk_format": "aki",
        "container_format": "aki",
        "size": len(CONTENT),
        "a": "b",
    }
    assert {name: shown[name] for name in expected} == expected
    assert (await world.client.get(f"{V2}/images/{first}", headers=demo)).status_code == 200
    assert (await world.images.path(first)).read_bytes() == CONTENT
    assert kernel.read_bytes() == CONTENT

    # Other data are another image, and the older one goes.
    kernel.write_bytes(b"newer")
    third = await world.images.register_local("kernel", kernel, disk_format="aki")
    assert third != first
    assert left(world) == [third]
    assert "a" not in await show(world, third)


async def test_a_registered_image_that_was_deleted_comes_back(world: Embedded, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(b"disk")
    first = await world.images.register_local("guest", disk, disk_format="raw", visibility="community")
    await world.client.delete(f"{V2}/images/{first}", headers=await world.admin())
    assert left(world) == []
    # Its id is made of its data, and means them to all who know it: nobody else gets it meanwhile.
    taken = await world.client.post(f"{V2}/images", json={"id": first}, headers=await world.demo())
    assert taken.status_code == 409

    assert await world.images.register_local("guest", disk, disk_format="raw") == first
    assert (await show(world, first))["visibility"] == "public"
    with pytest.raises(FileNotFoundError):
        await world.images.register_local("guest", tmp_path / "missing", disk_format="raw")
