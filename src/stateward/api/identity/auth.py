"""The handlers of ``/v3/auth``: asking for tokens, showing what they say and taking them back."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from starlette.requests import Request
from starlette.responses import Response

from stateward.api.faults import ApiFault, Unauthorized
from stateward.api.http import base_url, empty, iso_time, json_object, reply
from stateward.api.identity.caller import Callers, not_allowed
from stateward.api.identity.catalog import catalog
from stateward.api.identity.login import log_in
from stateward.api.identity.service import Identity
from stateward.api.identity.tokens import Token
from stateward.domain.errors import Invalid, NotFound
from stateward.store.identity import roles_named
from stateward.store.identity_tables import APPLICATION_CREDENTIALS
from stateward.store.rows import Values, one


class AuthResources:
    """The handlers."""

    def __init__(self, identity: Identity, public_url: str | None) -> None:
        """Serve the tokens of an identity service."""
        self._identity = identity
        self._callers = Callers(identity)
        self._public_url = public_url

    async def log_in(self, request: Request) -> Response:
        """Give a token to who proves who they are."""
        body = await json_object(request)
        if "auth" not in body:
            raise Invalid("Invalid input: the body must be an object with an object 'auth' in it.")
        sealed, token = await log_in(self._identity, body["auth"])
        if token.is_admin:
            await self._identity.record_login(token, request.state.request_id)
        response = reply(await self._view(request, token), 201)
        response.headers["x-subject-token"] = sealed
        return response

    async def show(self, request: Request) -> Response:
        """Say what a token is worth: to its holder, and to administrators."""
        sealed, token = await self._subject(request)
        response = reply(await self._view(request, token))
        response.headers["x-subject-token"] = sealed
        return response

    async def revoke(self, request: Request) -> Response:
        """Take a token back."""
        _sealed, token = await self._subject(request)
        await self._identity.revoke(token)
        return empty()

    async def catalog(self, request: Request) -> Response:
        """Show the catalog of the caller's token."""
        token = await self._callers.anyone(request)
        return reply(
            {
                "catalog": catalog(base_url(request, self._public_url), token),
                "links": {"next": None, "previous": None, "self": str(request.url)},
            }
        )

    async def nothing(self, request: Request) -> Response:
        """Say that the caller can have no domain or system scope."""
        await self._callers.anyone(request)
        kind = request.url.path.rsplit("/", 1)[1]
        return reply({kind: [], "links": {"next": None, "previous": None, "self": str(request.url)}})

    async def _subject(self, request: Request) -> tuple[str, Token]:
        caller = await self._callers.anyone(request)
        sealed = request.headers.get("x-subject-token")
        if sealed is None:
            raise ApiFault(400, "The request has no header X-Subject-Token.")
        try:
            token = await self._identity.verify(sealed)
        except Unauthorized as error:
            # 401 would say that the caller's own token is not good.
            raise NotFound(f"Could not find token: {error}") from None
        if not caller.is_admin and caller.user_id != token.user_id:
            raise not_allowed("the role admin, or to be the token's user")
        return sealed, token

    async def _view(self, request: Request, token: Token) -> dict[str, Any]:
        def work(connection: sa.Connection) -> tuple[list[Values], Values | None]:
            statement = sa.select(APPLICATION_CREDENTIALS).where(
                APPLICATION_CREDENTIALS.c.id == token.application_credential_id
            )
            return roles_named(connection, token.roles), one(connection, statement)

        roles, credential = await self._identity.database.read(work)
        view: dict[str, Any] = {
            "methods": token.methods,
            "user": {
                "id": token.user_id,
                "name": token.user_name,
                "domain": {"id": token.user_domain_id, "name": token.user_domain_name},
                "password_expires_at": None,
            },
            "audit_ids": [token.audit_id],
            "issued_at": iso_time(token.issued_at),
            "expires_at": iso_time(token.expires_at),
        }
        if token.project_id is not None:
            view["project"] = {
                "id": token.project_id,
                "name": token.project_name,
                "domain": {"id": token.project_domain_id, "name": token.project_domain_name},
            }
            view["is_domain"] = False
            view["roles"] = [{"id": role["id"], "name": role["name"]} for role in roles]
            if "nocatalog" not in request.query_params:
                view["catalog"] = catalog(base_url(request, self._public_url), token)
        if credential is not None:
            view["application_credential"] = {
                "id": credential["id"],
                "name": credential["name"],
                "restricted": not credential["unrestricted"],
            }
        return {"token": view}
