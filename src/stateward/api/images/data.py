"""The handlers of images' data: uploading and downloading, in pieces that never hold the event loop up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import IO

import sqlalchemy as sa
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from stateward.api.faults import ApiFault
from stateward.api.http import empty
from stateward.api.identity import Identity
from stateward.api.images.callers import caller_of
from stateward.api.images.service import PIECE, Images
from stateward.domain.errors import Invalid


class ImageData:
    """The handlers."""

    def __init__(self, images: Images, identity: Identity) -> None:
        """Serve the data of images to the users of an identity service."""
        self._images = images
        self._identity = identity

    async def upload(self, request: Request) -> Response:
        """Give an image its data."""
        caller = await caller_of(self._identity, request)
        if request.headers.get("content-type", "").partition(";")[0].strip() != "application/octet-stream":
            raise ApiFault(415, "An image's data must be of the media type application/octet-stream.")
        image_id = request.path_params["image_id"]

        def check(connection: sa.Connection) -> None:
            image = caller.hold(connection, image_id)
            if image.disk_format is None or image.container_format is None:
                raise Invalid("Properties disk_format, container_format must be set prior to saving data.")

        announced = request.headers.get("content-length", "")
        await self._images.upload(
            image_id,
            request.stream(),
            announced=int(announced) if announced.isdecimal() and len(announced) < _DIGITS else None,
            check=check,
        )
        return empty()

    async def download(self, request: Request) -> Response:
        """Send an image's data; 204 when it has none yet."""
        caller = await caller_of(self._identity, request)
        image_id = request.path_params["image_id"]
        image = await self._images.database.read(lambda connection: caller.see(connection, image_id))
        if image.status != "active":
            return empty()
        file = await self._images.open(image)
        headers = {"content-length": str(image.size), "content-md5": image.checksum or ""}
        return StreamingResponse(_pieces(file), headers=headers, media_type="application/octet-stream")


async def _pieces(file: IO[bytes]) -> AsyncIterator[bytes]:
    with file:
        while piece := await asyncio.to_thread(file.read, PIECE):
            yield piece


#: More than any disk's size has.
_DIGITS = 19
