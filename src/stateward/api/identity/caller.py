"""Who is asking the identity service, and whether that is enough."""

from __future__ import annotations

from starlette.requests import Request

from stateward.api.faults import ApiFault, Unauthorized
from stateward.api.identity.service import Identity
from stateward.api.identity.tokens import Token


class Callers:
    """Finds the caller of a request by its token."""

    def __init__(self, identity: Identity) -> None:
        """Ask this service about tokens."""
        self._identity = identity

    async def anyone(self, request: Request) -> Token:
        """Return the caller's token.

        Raises:
            Unauthorized: there is none that is good.
        """
        value = request.headers.get("x-auth-token")
        if value is None:
            raise Unauthorized
        return await self._identity.verify(value)

    async def admin(self, request: Request) -> Token:
        """Return the token of a caller who is an administrator.

        Raises:
            Unauthorized: there is no good token.
            ApiFault: the caller is none (403).
        """
        token = await self.anyone(request)
        if not token.is_admin:
            raise not_allowed("the role admin")
        return token

    async def admin_or(self, request: Request, user_id: str) -> Token:
        """Return the token of a caller who is an administrator, or this user.

        Raises:
            Unauthorized: there is no good token.
            ApiFault: the caller is neither (403).
        """
        token = await self.anyone(request)
        if not token.is_admin and token.user_id != user_id:
            raise not_allowed("the role admin, or to be the user it is about")
        return token


def not_allowed(needed: str) -> ApiFault:
    """Make the refusal of something the caller's roles are not enough for."""
    return ApiFault(403, f"You are not authorized to perform the requested action: it needs {needed}.")
