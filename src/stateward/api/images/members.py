"""The handlers of images' members: the projects that a shared image is shared with."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
import sqlalchemy as sa
from starlette.requests import Request
from starlette.responses import Response

from stateward.api.faults import ApiFault
from stateward.api.http import convert, empty, json_object, reply
from stateward.api.identity import Identity
from stateward.api.images.attributes import moment
from stateward.api.images.callers import caller_of
from stateward.api.images.service import Images
from stateward.domain.errors import NotFound
from stateward.store import image_members as store
from stateward.store.image_members import Member
from stateward.store.images import Image


class NewMember(msgspec.Struct):
    """The body that shares an image with a project."""

    member: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]


class Answer(msgspec.Struct):
    """The body by which a project says whether it wants the image in its lists."""

    status: Literal["pending", "accepted", "rejected"]


class ImageMembers:
    """The handlers; the owner shares, the member answers."""

    def __init__(self, images: Images, identity: Identity) -> None:
        """Serve the members of images to the users of an identity service."""
        self._images = images
        self._identity = identity

    async def add(self, request: Request) -> Response:
        """Share an image with a project."""
        caller = await caller_of(self._identity, request)
        wanted = convert(await json_object(request), NewMember)
        image_id, now = request.path_params["image_id"], self._images.clock.now()

        def work(connection: sa.Connection) -> Member:
            image = caller.hold(connection, image_id)
            if image.visibility != "shared":
                raise ApiFault(403, "Only shared images have members.")
            return store.add(
                connection,
                Member(
                    image_id=image_id,
                    member=wanted.member,
                    status="pending",
                    created_at=now,
                    updated_at=now,
                ),
            )

        return reply(_view(await self._images.database.write(work)))

    async def index(self, request: Request) -> Response:
        """List an image's members to its owner; a member sees itself only."""
        caller = await caller_of(self._identity, request)
        image_id = request.path_params["image_id"]

        def work(connection: sa.Connection) -> list[Member]:
            image = caller.see(connection, image_id)
            return [
                member
                for member in store.members(connection, image_id)
                if caller.is_admin or caller.project_id in {image.owner, member.member}
            ]

        found = await self._images.database.read(work)
        return reply({"members": [_view(member) for member in found], "schema": "/v2/schemas/members"})

    async def show(self, request: Request) -> Response:
        """Show one member to the owner and to itself."""
        caller = await caller_of(self._identity, request)
        image_id, member_id = request.path_params["image_id"], request.path_params["member_id"]

        def work(connection: sa.Connection) -> Member:
            image = caller.see(connection, image_id)
            if not caller.is_admin and caller.project_id not in {image.owner, member_id}:
                raise NotFound(f"{member_id} is not a member of image {image_id}.")
            return store.get(connection, image_id, member_id)

        return reply(_view(await self._images.database.read(work)))

    async def answer(self, request: Request) -> Response:
        """Accept or reject a shared image, as the project it is shared with."""
        caller = await caller_of(self._identity, request)
        caller.require_member()
        answer = convert(await json_object(request), Answer)
        image_id, member_id = request.path_params["image_id"], request.path_params["member_id"]
        now = self._images.clock.now()

        def work(connection: sa.Connection) -> Member:
            caller.see(connection, image_id)
            if not caller.is_admin and caller.project_id != member_id:
                raise ApiFault(403, "Only the project that an image is shared with accepts or rejects it.")
            return store.answer(connection, image_id, member_id, answer.status, now)

        return reply(_view(await self._images.database.write(work)))

    async def remove(self, request: Request) -> Response:
        """Share an image with a project no more."""
        caller = await caller_of(self._identity, request)
        image_id, member_id = request.path_params["image_id"], request.path_params["member_id"]

        def work(connection: sa.Connection) -> None:
            image: Image = caller.hold(connection, image_id)
            store.remove(connection, image.id, member_id)

        await self._images.database.write(work)
        return empty()


def _view(member: Member) -> dict[str, Any]:
    return {
        "image_id": member.image_id,
        "member_id": member.member,
        "status": member.status,
        "created_at": moment(member.created_at),
        "updated_at": moment(member.updated_at),
        "schema": "/v2/schemas/member",
    }
