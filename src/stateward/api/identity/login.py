"""Logging in: from the body of POST /v3/auth/tokens to a token."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
import sqlalchemy as sa
from msgspec import UNSET, UnsetType

from stateward.api.faults import Unauthorized
from stateward.api.http import convert
from stateward.api.identity.service import Identity
from stateward.api.identity.tokens import Token
from stateward.domain.errors import Invalid
from stateward.store import identity as directory
from stateward.store.identity_standing import standing
from stateward.store.identity_tables import APPLICATION_CREDENTIALS, PROJECTS, USERS
from stateward.store.rows import Values, one

Secret = Annotated[str, msgspec.Meta(max_length=4096)]


class DomainName(msgspec.Struct):
    """Which domain: by one of the two."""

    id: str | None = None
    name: str | None = None


class Named(msgspec.Struct):
    """Which user or project: by id, or by name in a domain."""

    id: str | None = None
    name: str | None = None
    domain: DomainName | None = None


class Login(Named):
    """Who, and the password."""

    password: Secret = ""


class ByPassword(msgspec.Struct):
    """The password method."""

    user: Login


class ByToken(msgspec.Struct):
    """The token method."""

    id: str


class ByCredential(msgspec.Struct):
    """The application credential method: the credential by id, or by name and user."""

    secret: Secret
    id: str | None = None
    name: str | None = None
    user: Named | None = None


class Proof(msgspec.Struct):
    """How the user proves who they are."""

    methods: list[str]
    password: ByPassword | None = None
    token: ByToken | None = None
    application_credential: ByCredential | None = None


class ScopeTo(msgspec.Struct):
    """What the token is to be for."""

    project: Named | None = None
    domain: dict[str, Any] | None = None
    system: dict[str, Any] | None = None
    unscoped: dict[str, Any] | None = None
    trust: dict[str, Any] | None = msgspec.field(name="OS-TRUST:trust", default=None)


class Auth(msgspec.Struct):
    """The body's ``auth``."""

    identity: Proof
    scope: ScopeTo | str | UnsetType = UNSET


class Holder(msgspec.Struct, frozen=True, kw_only=True):
    """A user who has proved who they are."""

    user_id: str
    epoch: int
    methods: tuple[str, ...]
    default_project_id: str | None
    #: The only project a token may be for; None: any.
    bound_to: str | None = None
    expires_by: float | None = None
    credential_id: str | None = None


async def log_in(identity: Identity, body: object) -> tuple[str, Token]:
    """Give a token for the decoded ``auth`` of a request.

    Raises:
        Invalid: it is not written as it must be.
        Unauthorized: the user, the proof or the project is not right.
    """
    auth = convert(body, Auth)
    holder = await _prove(identity, auth.identity)
    project_id = await identity.database.read(lambda connection: _project(connection, holder, auth.scope))
    return await identity.issue(
        user_id=holder.user_id,
        project_id=project_id,
        epoch=holder.epoch,
        methods=holder.methods,
        expires_by=holder.expires_by,
        application_credential_id=holder.credential_id,
    )


async def _prove(identity: Identity, proof: Proof) -> Holder:
    match proof.methods:
        case ["password"] if proof.password is not None:
            return await _by_password(identity, proof.password.user)
        case ["token"] if proof.token is not None:
            return await _by_token(identity, proof.token.id)
        case ["application_credential"] if proof.application_credential is not None:
            return await _by_credential(identity, proof.application_credential)
        case ["password" | "token" | "application_credential" as method]:
            raise Invalid(f"Invalid input: auth.identity has no {method!r}.")
        case _:
            raise Unauthorized(
                "Attempted to authenticate with an unsupported method: exactly one of password, token and "
                "application_credential is supported."
            )


async def _by_password(identity: Identity, login: Login) -> Holder:
    user = await identity.database.read(lambda connection: _user(connection, login))
    if not await identity.passwords.matches(login.password, None if user is None else user["password"]):
        raise Unauthorized
    if user is None:
        raise Unauthorized
    return _holder(user, "password")


async def _by_token(identity: Identity, value: str) -> Holder:
    token = await identity.verify(value)
    user = await identity.database.read(lambda connection: directory.get(connection, USERS, token.user_id))
    limited = token.application_credential_id is not None
    return Holder(
        user_id=token.user_id,
        # The token's own and not the user's now: a password that was changed a moment ago counts.
        epoch=token.epoch,
        methods=tuple(dict.fromkeys((*token.methods, "token"))),
        default_project_id=user["default_project_id"],
        bound_to=token.project_id if limited else None,
        # A token got by a token ends with it: else a stolen one could be renewed for ever.
        expires_by=token.expires_at,
        credential_id=token.application_credential_id,
    )


async def _by_credential(identity: Identity, given: ByCredential) -> Holder:
    def find(connection: sa.Connection) -> tuple[Values, Values] | None:
        columns = APPLICATION_CREDENTIALS.c
        statement = sa.select(APPLICATION_CREDENTIALS)
        if given.id is not None:
            statement = statement.where(columns.id == given.id)
        elif given.name is not None and given.user is not None:
            user = _user(connection, given.user)
            if user is None:
                return None
            statement = statement.where(columns.name == given.name, columns.user_id == user["id"])
        else:
            raise Invalid("Invalid input: an application credential needs its id, or its name and its user.")
        credential = one(connection, statement)
        if credential is None:
            return None
        return credential, directory.get(connection, USERS, credential["user_id"])

    found = await identity.database.read(find)
    right = await identity.passwords.matches(given.secret, None if found is None else found[0]["secret"])
    if found is None or not right:
        raise Unauthorized
    credential, user = found
    return msgspec.structs.replace(
        _holder(user, "application_credential"),
        bound_to=credential["project_id"],
        expires_by=credential["expires_at"],
        credential_id=credential["id"],
    )


def _holder(user: Values, method: str) -> Holder:
    return Holder(
        user_id=user["id"],
        epoch=user["epoch"],
        methods=(method,),
        default_project_id=user["default_project_id"],
    )


def _user(connection: sa.Connection, named: Named) -> Values | None:
    return _find(connection, USERS, named, "user")


def _find(connection: sa.Connection, table: sa.Table, named: Named, called: str) -> Values | None:
    if named.id is not None:
        return one(connection, sa.select(table).where(table.c.id == named.id))
    if named.name is None:
        raise Invalid(f"Invalid input: the {called} needs an id, or a name and a domain.")
    domain = named.domain or DomainName()
    row = directory.resolve_domain(connection, domain.id, domain.name)
    return None if row is None else directory.by_name(connection, table, row["id"], named.name)


def _project(connection: sa.Connection, holder: Holder, scope: ScopeTo | str | UnsetType) -> str | None:
    """Return the id of the project the token is to be for, or None for none."""
    wanted = ScopeTo(unscoped={}) if scope == "unscoped" else ScopeTo() if scope is UNSET else scope
    if isinstance(wanted, str):
        raise Invalid(f"Invalid input: auth.scope cannot be {wanted!r}.")
    if wanted.system is not None or wanted.domain is not None or wanted.trust is not None:
        raise Unauthorized(
            "Tokens are for a project or unscoped: there are no system, domain or trust scopes."
        )
    if wanted.project is not None:
        project = _find(connection, PROJECTS, wanted.project, "project")
        if project is None:
            raise Unauthorized("The project to scope to does not exist, or the user has no access to it.")
        project_id: str | None = project["id"]
    elif wanted.unscoped is not None:
        project_id = None
    else:
        project_id = holder.bound_to or _default_project(connection, holder)
    if holder.bound_to is not None and project_id != holder.bound_to:
        raise Unauthorized("An application credential is good for its own project only.")
    return project_id


def _default_project(connection: sa.Connection, holder: Holder) -> str | None:
    if holder.default_project_id is None:
        return None
    there = standing(connection, holder.user_id, holder.default_project_id)
    return holder.default_project_id if there and there.roles and there.project_enabled else None
