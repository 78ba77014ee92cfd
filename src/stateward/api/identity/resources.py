"""Making, listing, showing, changing and deleting what is in the directory: five handlers for every kind."""

from __future__ import annotations

import uuid
from typing import Any, Final

import sqlalchemy as sa
from msgspec import UNSET
from starlette.requests import Request
from starlette.responses import Response

from stateward.api.faults import ApiFault
from stateward.api.http import base_url, convert, empty, json_object, reply, whole_number, yes_or_no
from stateward.api.identity.caller import Callers, not_allowed
from stateward.api.identity.kinds import DOMAIN, PROJECT, ROLE, USER, Body, Kind, PasswordChange
from stateward.api.identity.service import Identity
from stateward.api.identity.tokens import Token
from stateward.domain.errors import Invalid
from stateward.operations.keeping import require_project_free
from stateward.store import identity as directory
from stateward.store.rows import Values

#: What a body may repeat of a view and a caller cannot choose.
_OURS: Final = ("id", "links", "password_expires_at")


class Resources:
    """The handlers of one kind."""

    def __init__(self, kind: Kind, identity: Identity, public_url: str | None) -> None:
        """Serve a kind from the directory of an identity service."""
        self._kind = kind
        self._identity = identity
        self._callers = Callers(identity)
        self._public_url = public_url

    async def create(self, request: Request) -> Response:
        """Make one."""
        await self._callers.admin(request)
        kind = self._kind
        values, extra, password = await self._read(request)
        if "name" not in values:
            raise Invalid(f"Invalid input: {kind.name}.name is a required property.")
        if kind is USER:
            values["password"] = None if password is None else await self._identity.passwords.hash(password)

        def work(connection: sa.Connection) -> Values:
            row = kind.complete(connection, values) | {"id": uuid.uuid4().hex, "extra": extra}
            if "immutable" in kind.table.c:
                row.setdefault("immutable", False)
            return directory.insert(connection, kind.table, row)

        return self._show(request, await self._identity.change(work), 201)

    async def index(self, request: Request) -> Response:
        """List those with the values that the query asks for; to administrators, or by a name that is the caller's."""
        token = await self._callers.anyone(request)
        own = await self._own(token)
        # Clients look a name up to learn its id; of others' names the answer is that there are none.
        if own is not None and "name" not in request.query_params:
            raise not_allowed("the role admin")
        kind, query = self._kind, request.query_params
        filters: dict[str, Any] = {}
        for name in ("name", *kind.filters):
            if name in query:
                filters[name] = yes_or_no(query[name], name) if name == "enabled" else query[name]
        limit = whole_number(query["limit"], "limit", most=10_000) if "limit" in query else None
        if filters.get("parent_id") == directory.DEFAULT_DOMAIN:
            filters["parent_id"] = None
        rows: list[Values] = []
        # Nothing acts as a domain, and no role belongs to one.
        if not yes_or_no(query.get("is_domain", "false"), "is_domain") and not (
            kind is ROLE and "domain_id" in query
        ):
            rows = list(
                await self._identity.database.read(
                    lambda connection: directory.page(
                        connection, kind.table, filters, after=query.get("marker"), limit=limit
                    )
                )
            )
        return self.listing(request, [row for row in rows if own is None or row["id"] in own])

    async def show(self, request: Request) -> Response:
        """Show one; callers see themselves and the projects they have a role on."""
        row_id = request.path_params["row_id"]
        own = await self._own(await self._callers.anyone(request))
        if own is not None and row_id not in own:
            raise not_allowed("the role admin")
        row = await self._identity.database.read(
            lambda connection: directory.get(connection, self._kind.table, row_id)
        )
        return self._show(request, row, 200)

    async def change(self, request: Request) -> Response:
        """Change one; a changed password, and disabling, end the tokens there are."""
        await self._callers.admin(request)
        kind, row_id = self._kind, request.path_params["row_id"]
        values, extra, password = await self._read(request)
        if password is not None:
            values["password"] = await self._identity.passwords.hash(password)

        def work(connection: sa.Connection) -> Values:
            row = directory.lock(connection, kind.table, row_id)
            _guard(kind, row, lifted=values.get("immutable") is False and len(values) == 1 and not extra)
            for name in kind.fixed:
                if name in values:
                    _require_unchanged(kind, row, name, values[name])
            changed = {name: value for name, value in values.items() if name not in kind.fixed}
            if "description" in changed and kind is PROJECT:
                changed["description"] = changed["description"] or ""
            if extra:
                changed["extra"] = row["extra"] | extra
            if kind is USER and ("password" in changed or changed.get("enabled") is False):
                changed["epoch"] = row["epoch"] + 1
            return directory.update(connection, kind.table, row_id, changed) if changed else row

        return self._show(request, await self._identity.change(work), 200)

    async def delete(self, request: Request) -> Response:
        """Delete one."""
        actor = (await self._callers.admin(request)).actor(request.state.request_id)
        kind, row_id, now = self._kind, request.path_params["row_id"], self._identity.clock.now()

        def work(connection: sa.Connection) -> None:
            _guard(kind, directory.lock(connection, kind.table, row_id), lifted=False)
            if kind is PROJECT:
                require_project_free(connection, row_id, actor, now)
            directory.delete(connection, kind.table, row_id)

        await self._identity.change(work)
        return empty()

    async def projects_of_user(self, request: Request) -> Response:
        """List the projects a user has a role on, to that user."""
        user_id = request.path_params["row_id"]
        await self._callers.admin_or(request, user_id)

        def work(connection: sa.Connection) -> list[Values]:
            directory.get(connection, USER.table, user_id)
            return list(directory.projects_of(connection, user_id))

        return self.listing(request, await self._identity.database.read(work))

    async def projects_of_caller(self, request: Request) -> Response:
        """List the projects the caller may ask for a token for."""
        token = await self._callers.anyone(request)
        rows = await self._identity.database.read(
            lambda connection: directory.projects_of(connection, token.user_id)
        )
        return self.listing(request, list(rows))

    async def set_own_password(self, request: Request) -> Response:
        """Change the caller's password; all their tokens end."""
        user_id = request.path_params["row_id"]
        token = await self._callers.anyone(request)
        if token.user_id != user_id:
            raise not_allowed("to be that user")
        given = await _member(request, "user")
        change = convert(given, PasswordChange)
        passwords, table = self._identity.passwords, self._kind.table
        before = await self._identity.database.read(
            lambda connection: directory.get(connection, table, user_id)
        )
        if not await passwords.matches(change.original_password, before["password"]):
            raise ApiFault(401, "The original password is not right.")
        hashed = await passwords.hash(change.password)

        def work(connection: sa.Connection) -> None:
            row = directory.lock(connection, table, user_id)
            # What was checked above must still be the password: somebody else may have changed it meanwhile.
            if row["password"] != before["password"]:
                raise ApiFault(401, "The password was changed by another request at the same moment.")
            directory.update(connection, table, user_id, {"password": hashed, "epoch": row["epoch"] + 1})

        await self._identity.change(work)
        return empty()

    def listing(self, request: Request, rows: list[Values]) -> Response:
        """Answer with rows of this kind."""
        base = base_url(request, self._public_url)
        return reply(
            {
                self._kind.plural: [self._view(base, row) for row in rows],
                "links": {"next": None, "previous": None, "self": str(request.url)},
            }
        )

    async def _own(self, token: Token) -> frozenset[str] | None:
        """Return the ids of those that the caller may see; None for all."""
        # Roles are no secret, and clients look their ids up to name them.
        if token.is_admin or self._kind is ROLE:
            return None
        if self._kind is USER:
            return frozenset({token.user_id})
        if self._kind is DOMAIN:
            return frozenset({token.user_domain_id})
        rows = await self._identity.database.read(
            lambda connection: directory.projects_of(connection, token.user_id)
        )
        return frozenset(row["id"] for row in rows)

    async def _read(self, request: Request) -> tuple[dict[str, Any], dict[str, Any], str | None]:
        """Read a body: the columns it sets, what else it says, and a password."""
        kind = self._kind
        given = await _member(request, kind.name)
        body = convert(given, kind.body)
        values = {
            name: value
            for name in body.__struct_fields__
            if (value := getattr(body, name)) is not UNSET and name not in ("options", "password")
        }
        extra = {
            name: value
            for name, value in given.items()
            if name not in body.__struct_fields__ and name not in _OURS
        }
        _read_options(kind, body, values)
        password = getattr(body, "password", None)
        if "tags" in values:
            values["tags"] = tuple(dict.fromkeys(values["tags"]))
        return values, extra, None if password is UNSET else password

    def _show(self, request: Request, row: Values, status: int) -> Response:
        return reply({self._kind.name: self._view(base_url(request, self._public_url), row)}, status)

    def _view(self, base: str, row: Values) -> dict[str, Any]:
        link = f"{base}/identity/v3/{self._kind.plural}/{row['id']}"
        return self._kind.view(row) | {"links": {"self": link}}


def _read_options(kind: Kind, body: Body, values: dict[str, Any]) -> None:
    if body.options is UNSET or "immutable" not in kind.table.c:
        return
    values["immutable"] = bool(body.options.immutable)


def _guard(kind: Kind, row: Values, *, lifted: bool) -> None:
    """Refuse to change what is immutable, unless the change is to make it mutable.

    Raises:
        ApiFault: 403.
    """
    if row.get("immutable") and not lifted:
        raise ApiFault(
            403, f"The {kind.name} {row['id']} is immutable: set its option immutable to false first."
        )


def _require_unchanged(kind: Kind, row: Values, name: str, value: object) -> None:
    """Let a body repeat what cannot be changed.

    Raises:
        Invalid: it says something else.
    """
    if value != kind.view(row).get(name):
        raise Invalid(f"Cannot change {name} of a {kind.name}.")


async def _member(request: Request, name: str) -> dict[str, Any]:
    body = await json_object(request)
    if name not in body:
        raise Invalid(f"Invalid input: the body must be an object with an object {name!r} in it.")
    return convert(body[name], dict[str, Any])
