"""Who is asking the image service, and what they may do with an image."""

from __future__ import annotations

import sqlalchemy as sa
from starlette.requests import Request

from stateward.api.faults import ApiFault, Unauthorized
from stateward.api.identity import Identity, Token
from stateward.domain.errors import NotFound
from stateward.store import images as store
from stateward.store.images import Image


class Caller:
    """The holder of a token for a project."""

    def __init__(self, token: Token, project_id: str, request_id: str) -> None:
        """Keep them."""
        self.project_id = project_id
        self.actor = token.actor(request_id)
        self.is_admin = token.is_admin
        self._is_member = token.is_member

    def require_member(self) -> None:
        """Go on only if the caller may make and change things.

        Raises:
            ApiFault: they may only look (403).
        """
        if not (self.is_admin or self._is_member):
            raise ApiFault(403, "You are not authorized to complete this action: it needs the role member.")

    def require_owner(self, image: Image) -> None:
        """Go on only if the image is the caller's to change.

        Raises:
            ApiFault: it is another project's, or came with the installation (403).
        """
        self.require_member()
        if not self.is_admin and image.owner != self.project_id:
            raise ApiFault(
                403, f"You are not permitted to change image {image.id}: it is not your project's."
            )

    def require_publisher(self, image: Image) -> None:
        """Go on only if the caller may make the image what it is to be: public, or another project's.

        Raises:
            ApiFault: only administrators may (403).
        """
        if self.is_admin:
            return
        if image.visibility == "public":
            raise ApiFault(
                403, "You are not authorized to complete publicize_image action: it needs the role admin."
            )
        if image.owner != self.project_id:
            raise ApiFault(403, "Only administrators may give an image to another project.")

    def see(self, connection: sa.Connection, image_id: str) -> Image:
        """Return an image that exists for the caller.

        Raises:
            NotFound: none of this id does.
        """
        image = store.get_visible(connection, image_id, self.project_id, self.is_admin)
        if image is None:
            raise NotFound(f"No image found with ID {image_id}")
        return image

    def hold(self, connection: sa.Connection, image_id: str) -> Image:
        """Return an image that is the caller's to change, locked until the transaction ends.

        Raises:
            NotFound: it does not exist for the caller.
            ApiFault: it is not theirs to change (403).
        """
        self.require_member()
        self.see(connection, image_id)
        image = store.lock(connection, image_id)
        if image is None:
            raise NotFound(f"No image found with ID {image_id}")
        self.require_owner(image)
        return image


async def caller_of(identity: Identity, request: Request) -> Caller:
    """Return who makes a request.

    Raises:
        Unauthorized: there is no good token, or it is for no project.
    """
    value = request.headers.get("x-auth-token")
    if value is None:
        raise Unauthorized
    token = await identity.verify(value)
    if token.project_id is None:
        raise Unauthorized("The token is not for a project. Ask for one that is.")
    return Caller(token, token.project_id, request.state.request_id)
