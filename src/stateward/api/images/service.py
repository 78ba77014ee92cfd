"""The embedded image service: rows in the database, data in a folder, and the order in which the two are written.

The file comes before the row that says it is there, and goes after the row that said so: whatever is interrupted
leaves at most a file too many, which ``start`` removes. Agents on the same machine link to the files, so that
deleting an image takes nothing from an instance.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Final, NamedTuple

import msgspec
import sqlalchemy as sa
import structlog

from stateward.api.faults import ApiFault
from stateward.api.images.files import Incoming, Written, sweep
from stateward.clock import Clock
from stateward.domain.errors import Conflict, NotFound
from stateward.domain.records import Actor
from stateward.operations.immediate import system_actor
from stateward.operations.keeping import INSTANCE, require_image_free
from stateward.store import images as store
from stateward.store.engine import Database, StoreUnavailable
from stateward.store.images import Image

log = structlog.get_logger()

#: Bytes handed to a thread, or to a client, at once.
PIECE: Final = 2 * 1024 * 1024
#: Makes the ids of built-in images from their names and data.
_NAMESPACE: Final = uuid.UUID("1f8a2ad4-3b0e-4b0f-8e1c-5d0c8a1f7b52")
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class _Upload(NamedTuple):
    """An upload under way."""

    id: str
    image_id: str
    #: Whether the image was queued; a task of its own, because the database may carry it out even if who asked
    #: is cancelled, and then it must be undone.
    begun: asyncio.Future[bool]
    incoming: Incoming


def _anyone(_image: Image) -> None:
    """Let the control plane itself do it."""


class Images:
    """The images of one folder."""

    def __init__(self, database: Database, folder: Path, clock: Clock) -> None:
        """Keep images.

        Args:
            database: with the image tables in it.
            folder: where the data are; made when it is needed.
            clock: dates them.
        """
        self.database = database
        self.clock = clock
        self._folder = folder

    async def start(self) -> None:
        """Clear up after a crash; to be called before the first upload, by the only process that uses the folder.

        Raises:
            StoreUnavailable: the database cannot be used.
            OSError: the folder cannot be.
        """
        now = self.clock.now()
        with_data = await self.database.write(lambda connection: store.give_up_all_uploads(connection, now))
        await asyncio.to_thread(sweep, self._folder, with_data)

    async def path(self, image_id: str) -> Path:
        """Return the file with an image's data; it is complete and is never written again.

        Raises:
            NotFound: there is no such image, or it has no data.
        """
        image = await self.database.read(lambda connection: store.get(connection, image_id))
        path = self._folder / image_id
        if image is None or image.status != "active" or not path.exists():
            raise NotFound(f"Image {image_id} has no data here.")
        return path

    async def open(self, image: Image) -> IO[bytes]:
        """Open an active image's data; they can be read to the end even if the image is deleted meanwhile.

        Raises:
            NotFound: they are gone.
        """
        path = self._folder / image.id
        try:
            return await asyncio.to_thread(path.open, "rb")
        except FileNotFoundError:
            raise NotFound(f"The data of image {image.id} are not there.") from None

    async def upload(
        self,
        image_id: str,
        chunks: AsyncIterator[bytes],
        *,
        announced: int | None,
        check: Callable[[sa.Connection], None] = lambda _connection: None,
    ) -> None:
        """Give a queued image its data.

        Whatever ends it early, the image is queued again afterwards and nothing is left of the data.

        Args:
            image_id: the image.
            chunks: the data.
            announced: their bytes, as far as the client said.
            check: raises if whoever asks may not do this; called in the transaction that begins the upload.

        Raises:
            Conflict: the image is not queued.
            NotFound: it was deleted meanwhile.
            ApiFault: the disk is full (413) or broken (503).
        """
        await self._fill(image_id, lambda upload: self._receive(upload, chunks, announced), check)

    async def take(self, image_id: str, file: Path) -> None:
        """Give a queued image a file of this machine as its data; an image that has data keeps them.

        The file gets a second name where it can, and is copied else: it stays, and must not be written to any more.

        Raises:
            Conflict: data are being uploaded.
            NotFound: there is no such image, it was deleted meanwhile, or there is no such file.
            ApiFault: the disk is full (413) or broken (503).
        """
        image = await self.database.read(lambda connection: store.get(connection, image_id))
        if image is None:
            raise NotFound(f"No image found with ID {image_id}")
        if image.status == "active":
            return
        if not file.exists():
            raise NotFound(f"The data for image {image_id} are not there: {file} does not exist.")
        await self._fill(image_id, lambda upload: self._take(upload, file), lambda _connection: None)

    async def delete(
        self,
        image_id: str,
        check: Callable[[Image], None],
        *,
        by: Actor,
    ) -> None:
        """Delete an image and its data.

        Args:
            image_id: the image.
            check: raises if this image may not be deleted by who asks; called in the transaction.
            by: who asks.

        Raises:
            NotFound: there is none.
            ApiFault: it is protected (403).
            Conflict: a lock keeps it (R1, R6).
        """
        now = self.clock.now()

        def work(connection: sa.Connection) -> None:
            image = lock_unkept(connection, image_id, check, by=by, now=now)
            if image.protected:
                raise ApiFault(403, f"Image {image_id} is protected and cannot be deleted.")
            store.delete(connection, image_id)

        await self.database.write(work)
        await asyncio.to_thread((self._folder / image_id).unlink, missing_ok=True)

    def forget(self, image_ids: Sequence[str]) -> None:
        """Remove the data of images that the control plane has deleted; what is missed the next start removes."""
        loop = asyncio.get_running_loop()
        for image_id in image_ids:
            loop.run_in_executor(None, _unlink, self._folder / image_id)

    async def register_local(
        self,
        name: str,
        file: Path,
        *,
        disk_format: str,
        properties: Mapping[str, str] | None = None,
        visibility: str = "public",
    ) -> str:
        """Make an image of a file of this machine, which is copied; one that is there already is kept.

        The id is made of the name and the data. An older one of the same name, registered with other data, is
        replaced.

        Args:
            name: what people call it.
            file: the data.
            disk_format: Glance's name for the format.
            properties: they replace those of an image that is there.
            visibility: who sees it.

        Returns:
            The image's id.

        Raises:
            OSError: the file cannot be read.
            ApiFault: the disk is full.
        """
        digest = await asyncio.to_thread(_digest, file)
        image_id = str(uuid.uuid5(_NAMESPACE, f"{name}/{digest}"))
        now = self.clock.now()
        wanted = Image(
            id=image_id,
            name=name,
            owner=None,
            visibility=visibility,
            disk_format=disk_format,
            container_format=disk_format if disk_format in {"aki", "ari", "ami"} else "bare",
            created_at=now,
            updated_at=now,
            properties=dict(properties or {}),
        )
        older, image = await self.database.write(
            lambda connection: (
                [other for other in store.built_in(connection, name) if other != image_id],
                _settle(connection, wanted),
            )
        )
        for other in older:
            await self.delete(other, _anyone, by=system_actor(f"req-{uuid.uuid4()}"))
        if image.status == "queued":
            await self.upload(image_id, _pieces(file), announced=None)
        return image_id

    async def _fill(
        self,
        image_id: str,
        receive: Callable[[_Upload], Awaitable[None]],
        check: Callable[[sa.Connection], None],
    ) -> None:
        """Give a queued image its data, or leave nothing of them; ``receive`` writes them."""
        upload_id, now = str(uuid.uuid4()), self.clock.now()

        def begin(connection: sa.Connection) -> bool:
            check(connection)
            return store.begin_upload(connection, image_id, upload_id, now)

        upload = _Upload(
            id=upload_id,
            image_id=image_id,
            begun=asyncio.ensure_future(self.database.write(begin)),
            incoming=Incoming(self._folder, image_id),
        )
        try:
            await self._finish(upload, receive)
        except OSError as error:
            await asyncio.shield(self._give_up(upload))
            if error.errno in _FULL:
                raise ApiFault(
                    413, f"There is not enough storage space left for the data of {image_id}."
                ) from error
            log.warning("an image's data cannot be written", image=image_id, error=str(error))
            raise ApiFault(503, f"The data of {image_id} cannot be stored now: {error.strerror}.") from error
        except BaseException:
            # Shielded: a server that is being stopped cancels this very task.
            await asyncio.shield(self._give_up(upload))
            raise

    async def _finish(self, upload: _Upload, receive: Callable[[_Upload], Awaitable[None]]) -> None:
        if not await asyncio.shield(upload.begun):
            raise Conflict(f"Image {upload.image_id} has data, or they are being uploaded.")
        await receive(upload)
        written: Written = await asyncio.to_thread(upload.incoming.finish)
        now = self.clock.now()
        finished = await self.database.write(
            lambda connection: store.finish_upload(
                connection,
                upload.id,
                size=written.size,
                checksum=written.checksum,
                hash_value=written.hash_value,
                now=now,
            )
        )
        if not finished:
            raise NotFound(f"Image {upload.image_id} was deleted during the upload.")

    async def _receive(self, upload: _Upload, chunks: AsyncIterator[bytes], announced: int | None) -> None:
        incoming = upload.incoming
        if announced is not None:
            await asyncio.to_thread(incoming.expect, announced)
        waiting = bytearray()
        async for chunk in chunks:
            waiting += chunk
            if len(waiting) >= PIECE:
                await asyncio.to_thread(incoming.write, bytes(waiting))
                waiting.clear()
        if waiting:
            await asyncio.to_thread(incoming.write, bytes(waiting))

    async def _take(self, upload: _Upload, file: Path) -> None:
        await asyncio.to_thread(upload.incoming.link, file)
        async for piece in _pieces(file):
            await asyncio.to_thread(upload.incoming.write, piece)

    async def _give_up(self, upload: _Upload) -> None:
        """Undo an upload, however far it has come; one that has finished meanwhile stays."""
        await asyncio.wait([upload.begun])
        if upload.begun.exception() is not None or not upload.begun.result():
            return
        # The unfinished file first: it may be what fills the disk that the database needs.
        await asyncio.to_thread(upload.incoming.discard_part)
        now = self.clock.now()
        try:
            given_up = await self.database.write(
                lambda connection: store.give_up_upload(connection, upload.image_id, upload.id, now)
            )
        except StoreUnavailable as error:
            log.warning(
                "an upload could not be given up; the next start will",
                image=upload.image_id,
                error=str(error),
            )
            return
        if given_up:
            await asyncio.to_thread(upload.incoming.discard_target)


def lock_unkept(
    connection: sa.Connection, image_id: str, check: Callable[[Image], None], *, by: Actor, now: float
) -> Image:
    """Return an image that no lock of an instance keeps, locked until the transaction ends.

    The rows of the instances are held before the image's.

    Raises:
        Conflict: one keeps it, or it changed at this moment.
        NotFound: there is none.
        Exception: what ``check`` raises of the image.
    """
    seen = store.get(connection, image_id)
    if seen is None:
        raise NotFound(f"No image found with ID {image_id}")
    check(seen)
    require_image_free(connection, seen, by, now)
    image = store.lock(connection, image_id)
    if image is None:
        raise NotFound(f"No image found with ID {image_id}")
    check(image)
    if image.properties.get(INSTANCE) != seen.properties.get(INSTANCE):
        # It says of another instance now that it is its copy, and nobody holds that one's row.
        raise Conflict(f"Image {image_id} changed at the same moment; try again.")
    return image


def _settle(connection: sa.Connection, wanted: Image) -> Image:
    """Have a built-in image's row as it is wanted, whatever its data; return it as it is then."""
    image = store.lock(connection, wanted.id)
    if image is None:
        return store.insert(connection, wanted, again=True)
    settled = msgspec.structs.replace(image, properties=wanted.properties)
    store.replace(connection, image, settled)
    return settled


def _unlink(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha512").hexdigest()


async def _pieces(file: Path) -> AsyncIterator[bytes]:
    opened = await asyncio.to_thread(file.open, "rb")
    with opened:
        while piece := await asyncio.to_thread(opened.read, PIECE):
            yield piece
