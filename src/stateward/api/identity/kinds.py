"""The kinds of things in the directory, a row each: what a body may say, how it is kept and how it is shown.

Projects, users and roles are made, listed, shown, changed and deleted by the same five handlers
(``resources``); what differs between them is here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Final

import msgspec
import sqlalchemy as sa
from msgspec import UNSET, UnsetType

from stateward.domain.errors import Invalid
from stateward.store import identity as directory
from stateward.store.identity_tables import DOMAINS, PROJECTS, ROLES, USERS
from stateward.store.rows import Values

Name64 = Annotated[str, msgspec.Meta(min_length=1, max_length=64, pattern=r"\S")]
Name255 = Annotated[str, msgspec.Meta(min_length=1, max_length=255, pattern=r"\S")]
Id = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
Text = Annotated[str, msgspec.Meta(max_length=65_535)]
Tag = Annotated[str, msgspec.Meta(min_length=1, max_length=255, pattern="^[^,/]*$")]
Tags = Annotated[list[Tag], msgspec.Meta(max_length=80)]
NewPassword = Annotated[str, msgspec.Meta(min_length=1, max_length=4096)]


class Options(msgspec.Struct):
    """What of a body's ``options`` has a meaning here; users' options have none and are passed over."""

    immutable: bool | None = None


class Body(msgspec.Struct):
    """What every kind's body may say; what is not known of it is kept as it came."""

    enabled: bool | UnsetType = UNSET
    options: Options | UnsetType = UNSET


class ProjectBody(Body):
    """A project."""

    name: Name64 | UnsetType = UNSET
    domain_id: Id | UnsetType | None = UNSET
    parent_id: Id | UnsetType | None = UNSET
    description: Text | UnsetType | None = UNSET
    tags: Tags | UnsetType = UNSET
    is_domain: bool | UnsetType = UNSET


class UserBody(Body):
    """A user; their description and e-mail address are kept like anything else a caller says of them."""

    name: Name255 | UnsetType = UNSET
    domain_id: Id | UnsetType | None = UNSET
    default_project_id: Id | UnsetType | None = UNSET
    password: NewPassword | UnsetType | None = UNSET


class PasswordChange(msgspec.Struct):
    """What a user says to change their own password."""

    original_password: str
    password: NewPassword


class RoleBody(Body):
    """A role."""

    name: Name255 | UnsetType = UNSET
    domain_id: Id | UnsetType | None = UNSET
    description: Text | UnsetType | None = UNSET


class Kind(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of thing in the directory."""

    name: str
    table: sa.Table
    body: type[Body]
    #: Makes the columns of a new row complete, in the transaction that inserts it.
    complete: Callable[[sa.Connection, dict[str, Any]], dict[str, Any]]
    #: Says what a client sees of a row.
    view: Callable[[Values], dict[str, Any]]
    #: Columns that a list can be narrowed by, beside the name.
    filters: tuple[str, ...]
    #: The columns that a change leaves as they are; saying anything else is an error.
    fixed: tuple[str, ...] = ("domain_id",)

    @property
    def plural(self) -> str:
        """Its name in lists and addresses."""
        return f"{self.name}s"


def _complete_project(connection: sa.Connection, values: dict[str, Any]) -> dict[str, Any]:
    if values.pop("is_domain", False):
        raise Invalid("Projects that act as domains are not supported.")
    domain = _domain(connection, values)
    parent_id = values.get("parent_id")
    if parent_id == domain:
        parent_id = None
    if parent_id is not None:
        directory.lock(connection, PROJECTS, parent_id)
    return {"enabled": True, "tags": (), **values} | {
        "description": values.get("description") or "",
        "domain_id": domain,
        "parent_id": parent_id,
    }


def _complete_user(connection: sa.Connection, values: dict[str, Any]) -> dict[str, Any]:
    return {"enabled": True, **values} | {"domain_id": _domain(connection, values)}


def _complete_role(_connection: sa.Connection, values: dict[str, Any]) -> dict[str, Any]:
    if values.pop("domain_id", None) is not None:
        raise Invalid("Roles of a domain are not supported: a role is everybody's.")
    values.pop("enabled", None)
    return values


def _no_new_domain(_connection: sa.Connection, _values: dict[str, Any]) -> dict[str, Any]:
    raise Invalid("There is one domain, which is built in.")


def _domain(connection: sa.Connection, values: dict[str, Any]) -> str:
    domain: str = directory.get(connection, DOMAINS, values.get("domain_id") or directory.DEFAULT_DOMAIN)[
        "id"
    ]
    return domain


def _project_view(row: Values) -> dict[str, Any]:
    return {
        **row["extra"],
        "id": row["id"],
        "name": row["name"],
        "domain_id": row["domain_id"],
        "parent_id": row["parent_id"] or row["domain_id"],
        "description": row["description"],
        "enabled": row["enabled"],
        "is_domain": False,
        "tags": row["tags"],
        "options": _options(row),
    }


def _user_view(row: Values) -> dict[str, Any]:
    view: dict[str, Any] = {
        **row["extra"],
        "id": row["id"],
        "name": row["name"],
        "domain_id": row["domain_id"],
        "enabled": row["enabled"],
        "password_expires_at": None,
        "options": {},
    }
    if row["default_project_id"] is not None:
        view["default_project_id"] = row["default_project_id"]
    return view


def _role_view(row: Values) -> dict[str, Any]:
    return {
        **row["extra"],
        "id": row["id"],
        "name": row["name"],
        "domain_id": None,
        "description": row["description"],
        "options": _options(row),
    }


def _domain_view(row: Values) -> dict[str, Any]:
    return {
        "id": row["id"],
        "name": row["name"],
        "description": row["description"],
        "enabled": row["enabled"],
        "options": {},
        "tags": [],
    }


def _options(row: Values) -> dict[str, Any]:
    return {"immutable": True} if row["immutable"] else {}


PROJECT: Final = Kind(
    name="project",
    table=PROJECTS,
    body=ProjectBody,
    complete=_complete_project,
    view=_project_view,
    filters=("domain_id", "parent_id", "enabled"),
    fixed=("domain_id", "parent_id", "is_domain"),
)
USER: Final = Kind(
    name="user",
    table=USERS,
    body=UserBody,
    complete=_complete_user,
    view=_user_view,
    filters=("domain_id", "enabled"),
)
ROLE: Final = Kind(
    name="role", table=ROLES, body=RoleBody, complete=_complete_role, view=_role_view, filters=()
)
DOMAIN: Final = Kind(
    name="domain",
    table=DOMAINS,
    body=Body,
    complete=_no_new_domain,
    view=_domain_view,
    filters=("enabled",),
)
