"""Application credentials: what a program logs in with instead of its owner's password."""

from __future__ import annotations

import secrets
import uuid
from typing import Annotated, Any

import msgspec
import sqlalchemy as sa
from starlette.requests import Request
from starlette.responses import Response

from stateward.api.faults import ApiFault
from stateward.api.http import base_url, convert, empty, iso_time, json_object, reply, seconds_of_iso
from stateward.api.identity.caller import Callers, not_allowed
from stateward.api.identity.kinds import Name255, NewPassword, Text
from stateward.api.identity.service import Identity
from stateward.api.identity.tokens import Token
from stateward.domain.errors import Invalid, NotFound
from stateward.store import identity as directory
from stateward.store.identity_standing import implied
from stateward.store.identity_tables import APPLICATION_CREDENTIALS, USERS
from stateward.store.rows import Values

_COLUMNS = APPLICATION_CREDENTIALS.c


class RoleRef(msgspec.Struct):
    """A role by id or by name."""

    id: str | None = None
    name: str | None = None


class CredentialBody(msgspec.Struct):
    """What a caller asks for."""

    name: Name255
    description: Text | None = None
    secret: NewPassword | None = None
    #: None: all the caller has.
    roles: Annotated[list[RoleRef], msgspec.Meta(max_length=100)] | None = None
    unrestricted: bool = False
    expires_at: str | None = None
    access_rules: list[Any] | None = None


class Credentials:
    """The handlers; a user's credentials are made by that user only, with what their token may do."""

    def __init__(self, identity: Identity, public_url: str | None) -> None:
        """Serve the application credentials of an identity service's users."""
        self._identity = identity
        self._callers = Callers(identity)
        self._public_url = public_url

    async def create(self, request: Request) -> Response:
        """Make one; the answer is the only time its secret is told."""
        token = await self._owner(request)
        body = (await json_object(request)).get("application_credential")
        wanted = convert(body, CredentialBody)
        if token.project_id is None:
            raise Invalid("An application credential is for a project: ask with a token for one.")
        if wanted.access_rules:
            raise Invalid("Access rules are not supported.")
        expires_at = None if wanted.expires_at is None else _moment(wanted.expires_at)
        if expires_at is not None and expires_at <= self._identity.clock.now():
            raise Invalid("An application credential cannot expire in the past.")
        secret = wanted.secret or secrets.token_urlsafe(64)
        hashed = await self._identity.passwords.hash(secret)

        def work(connection: sa.Connection) -> tuple[Values, list[Values]]:
            roles = _chosen(connection, wanted.roles, token)
            row = {
                "id": uuid.uuid4().hex,
                "user_id": token.user_id,
                "project_id": token.project_id,
                "name": wanted.name,
                "description": wanted.description,
                "secret": hashed,
                "roles": tuple(role["name"] for role in roles),
                "unrestricted": wanted.unrestricted,
                "expires_at": expires_at,
            }
            return directory.insert(connection, APPLICATION_CREDENTIALS, row), roles

        row, roles = await self._identity.change(work)
        view = self._view(request, row, roles) | {"secret": secret}
        return reply({"application_credential": view}, 201)

    async def index(self, request: Request) -> Response:
        """List a user's."""
        user_id = request.path_params["user_id"]
        await self._callers.admin_or(request, user_id)
        filters = {"user_id": user_id}
        if "name" in request.query_params:
            filters["name"] = request.query_params["name"]

        def work(connection: sa.Connection) -> list[tuple[Values, list[Values]]]:
            directory.get(connection, USERS, user_id)
            rows = directory.page(connection, APPLICATION_CREDENTIALS, filters)
            return [(row, directory.roles_named(connection, frozenset(row["roles"]))) for row in rows]

        found = await self._identity.database.read(work)
        return reply(
            {
                "application_credentials": [self._view(request, row, roles) for row, roles in found],
                "links": {"next": None, "previous": None, "self": str(request.url)},
            }
        )

    async def show(self, request: Request) -> Response:
        """Show one."""
        await self._callers.admin_or(request, request.path_params["user_id"])

        def work(connection: sa.Connection) -> tuple[Values, list[Values]]:
            row = _of_user(connection, request)
            return row, directory.roles_named(connection, frozenset(row["roles"]))

        row, roles = await self._identity.database.read(work)
        return reply({"application_credential": self._view(request, row, roles)})

    async def delete(self, request: Request) -> Response:
        """Delete one; the tokens it was exchanged for end."""
        token = await self._callers.admin_or(request, request.path_params["user_id"])
        if token.application_credential_id is not None:
            await self._require_unrestricted(token)

        def work(connection: sa.Connection) -> None:
            row = _of_user(connection, request)
            directory.delete(connection, APPLICATION_CREDENTIALS, row["id"])

        await self._identity.change(work)
        return empty()

    async def _owner(self, request: Request) -> Token:
        token = await self._callers.anyone(request)
        if token.user_id != request.path_params["user_id"]:
            raise not_allowed("to be that user")
        if token.application_credential_id is not None:
            await self._require_unrestricted(token)
        return token

    async def _require_unrestricted(self, token: Token) -> None:
        statement = sa.select(_COLUMNS.unrestricted).where(_COLUMNS.id == token.application_credential_id)
        if not await self._identity.database.read(
            lambda connection: connection.execute(statement).scalar_one_or_none()
        ):
            raise ApiFault(403, "A restricted application credential cannot make or delete others.")

    def _view(self, request: Request, row: Values, roles: list[Values]) -> dict[str, Any]:
        base = base_url(request, self._public_url)
        link = f"{base}/identity/v3/users/{row['user_id']}/application_credentials/{row['id']}"
        return {
            "id": row["id"],
            "name": row["name"],
            "description": row["description"],
            "project_id": row["project_id"],
            "roles": [{"id": role["id"], "name": role["name"], "domain_id": None} for role in roles],
            "unrestricted": row["unrestricted"],
            "expires_at": None if row["expires_at"] is None else iso_time(row["expires_at"]),
            "links": {"self": link},
        }


def _of_user(connection: sa.Connection, request: Request) -> Values:
    credential_id = request.path_params["credential_id"]
    row = directory.get(connection, APPLICATION_CREDENTIALS, credential_id)
    if row["user_id"] != request.path_params["user_id"]:
        raise NotFound(f"Could not find application credential: {credential_id}.")
    return row


def _chosen(connection: sa.Connection, wanted: list[RoleRef] | None, token: Token) -> list[Values]:
    """Return the roles asked for, which must be the caller's own.

    Raises:
        Invalid: one of them is not.
    """
    own = directory.roles_named(connection, token.roles)
    if not wanted:
        return own
    names: set[str] = set()
    for ref in wanted:
        found = [
            role["name"]
            for role in own
            if ref.id == role["id"] or (ref.id is None and ref.name == role["name"])
        ]
        if not found:
            raise Invalid(f"The caller does not have the role {ref.id or ref.name}.")
        names.update(found)
    return [role for role in own if role["name"] in implied(frozenset(names))]


def _moment(text: str) -> float:
    """Read an ISO 8601 time, in UTC unless it says otherwise, as seconds since the epoch.

    Raises:
        Invalid: it is none.
    """
    try:
        return seconds_of_iso(text)
    except ValueError:
        raise Invalid(f"Invalid input: {text!r} is not a time in ISO 8601.") from None
