"""The handlers of images: making, listing, showing, changing, deleting and tagging them."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Final

import msgspec
import sqlalchemy as sa
from starlette.requests import Request
from starlette.responses import Response

from stateward.api.faults import ApiFault
from stateward.api.http import convert, empty, json_body, json_object, reply
from stateward.api.identity import Identity
from stateward.api.images.attributes import Change, patched, read_new, view
from stateward.api.images.callers import caller_of
from stateward.api.images.query import next_page, read_query
from stateward.api.images.service import Images, lock_unkept
from stateward.domain.errors import Conflict, Invalid, NotFound
from stateward.operations.keeping import INSTANCE
from stateward.store import images as store
from stateward.store.images import Image

_PATCH: Final = "application/openstack-images-v2.1-json-patch"


class ImageResources:
    """The handlers."""

    def __init__(self, images: Images, identity: Identity) -> None:
        """Serve images to the users of an identity service."""
        self._images = images
        self._identity = identity

    async def create(self, request: Request) -> Response:
        """Make an image without data."""
        caller = await caller_of(self._identity, request)
        caller.require_member()
        new = read_new(await json_object(request))
        now = self._images.clock.now()
        blank = Image(
            id=new.id or str(uuid.uuid4()),
            owner=caller.project_id,
            visibility="shared",
            created_at=now,
            updated_at=now,
            properties=new.properties,
        )
        image = msgspec.structs.replace(blank, **new.values)
        caller.require_publisher(image)
        made = await self._images.database.write(lambda connection: store.insert(connection, image))
        response = reply(view(made), 201)
        response.headers["location"] = f"{str(request.url).rstrip('/')}/{made.id}"
        return response

    async def index(self, request: Request) -> Response:
        """List the images that the caller's project sees."""
        caller = await caller_of(self._identity, request)
        params = request.query_params
        after = None
        if "marker" in params:
            marker = params["marker"]
            try:
                after = await self._images.database.read(lambda connection: caller.see(connection, marker))
            except NotFound:
                raise Invalid(f"Invalid marker: there is no image {marker}.") from None
        query = read_query(params, after)
        found = await self._images.database.read(
            lambda connection: store.page(connection, query, caller.project_id, is_admin=caller.is_admin)
        )
        listing = {
            "images": [view(image) for image in found],
            "schema": "/v2/schemas/images",
            "first": "/v2/images" if after is None and not params else f"/v2/images?{request.url.query}",
        }
        following = next_page(params, found, query)
        if following is not None:
            listing["next"] = following
        return reply(listing)

    async def show(self, request: Request) -> Response:
        """Show an image."""
        caller = await caller_of(self._identity, request)
        image_id = request.path_params["image_id"]
        image = await self._images.database.read(lambda connection: caller.see(connection, image_id))
        return reply(view(image))

    async def change(self, request: Request) -> Response:
        """Change an image by a JSON patch."""
        caller = await caller_of(self._identity, request)
        if request.headers.get("content-type", "").partition(";")[0].strip() != _PATCH:
            raise ApiFault(415, f"A change of an image must be of the media type {_PATCH}.")
        changes = convert(await json_body(request), list[Change])
        image_id, now = request.path_params["image_id"], self._images.clock.now()

        def work(connection: sa.Connection) -> Image:
            caller.require_member()
            seen = caller.see(connection, image_id)
            caller.require_owner(seen)
            moves = patched(seen, changes).properties.get(INSTANCE) != seen.properties.get(INSTANCE)
            # Kept, or it could be deleted as if it were nobody's copy.
            before = (
                lock_unkept(connection, image_id, caller.require_owner, by=caller.actor, now=now)
                if moves
                else caller.hold(connection, image_id)
            )
            after = msgspec.structs.replace(patched(before, changes), updated_at=now)
            if not moves and after.properties.get(INSTANCE) != before.properties.get(INSTANCE):
                raise Conflict(f"Image {image_id} changed at the same moment; try again.")
            if (after.visibility, after.owner) != (before.visibility, before.owner):
                caller.require_publisher(after)
            store.replace(connection, before, after)
            return after

        return reply(view(await self._images.database.write(work)))

    async def delete(self, request: Request) -> Response:
        """Delete an image and its data."""
        caller = await caller_of(self._identity, request)
        image_id = request.path_params["image_id"]
        await self._images.database.read(lambda connection: caller.see(connection, image_id))
        await self._images.delete(image_id, caller.require_owner, by=caller.actor)
        return empty()

    async def tag(self, request: Request) -> Response:
        """Give an image a tag."""
        tag = request.path_params["tag"]
        return await self._retag(request, lambda image: [*image.tags, tag])

    async def untag(self, request: Request) -> Response:
        """Take a tag away."""
        tag = request.path_params["tag"]

        def without(image: Image) -> list[str]:
            if tag not in image.tags:
                raise NotFound(f"Image {image.id} has no tag {tag}.")
            return [other for other in image.tags if other != tag]

        return await self._retag(request, without)

    async def _retag(self, request: Request, tags: Callable[[Image], list[str]]) -> Response:
        caller = await caller_of(self._identity, request)
        image_id, now = request.path_params["image_id"], self._images.clock.now()

        def work(connection: sa.Connection) -> None:
            before = caller.hold(connection, image_id)
            after = patched(before, [Change(op="replace", path="/tags", value=tags(before))])
            store.replace(connection, before, msgspec.structs.replace(after, updated_at=now))

        await self._images.database.write(work)
        return empty()
