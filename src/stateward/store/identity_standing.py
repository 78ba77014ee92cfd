"""What a token's holder is worth now: read each time a token is verified that is not remembered.

A token says who it was given to and for which project; whether they are still enabled and which roles they have
is never in the token, so that a removed role is gone at once.
"""

from __future__ import annotations

import uuid
from typing import Final

import msgspec
import sqlalchemy as sa

from stateward.store.identity import DEFAULT_DOMAIN, insert
from stateward.store.identity_tables import (
    APPLICATION_CREDENTIALS,
    DOMAINS,
    GENERATION,
    GRANTS,
    PROJECTS,
    REVOKED,
    ROLES,
    USERS,
)
from stateward.store.rows import insert_new

#: What having a role means beside itself.
_IMPLIES: Final = {"admin": frozenset({"member", "reader"}), "member": frozenset({"reader"})}
_BUILT_IN_ROLES: Final = ("admin", "member", "reader")


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """A user, and a project if one was asked for, as they are now."""

    user_name: str
    user_domain_id: str
    user_domain_name: str
    #: The user and their domain.
    user_enabled: bool
    epoch: int
    project_name: str | None
    project_domain_id: str | None
    project_domain_name: str | None
    #: The project and its domain; True without one.
    project_enabled: bool
    #: With those that others imply; empty without a project.
    roles: frozenset[str]


def implied(roles: frozenset[str]) -> frozenset[str]:
    """Return the roles with those that they imply."""
    return roles.union(*(_IMPLIES.get(role, frozenset()) for role in roles))


def standing(connection: sa.Connection, user_id: str, project_id: str | None) -> Standing | None:
    """Return how a user stands on a project (or on none); None when either does not exist."""
    user = connection.execute(_USER, {"user_id": user_id}).one_or_none()
    if user is None:
        return None
    if project_id is None:
        return Standing(
            user_name=user.name,
            user_domain_id=user.domain_id,
            user_domain_name=user.domain_name,
            user_enabled=user.enabled and user.domain_enabled,
            epoch=user.epoch,
            project_name=None,
            project_domain_id=None,
            project_domain_name=None,
            project_enabled=True,
            roles=frozenset(),
        )
    project = connection.execute(_PROJECT, {"project_id": project_id}).one_or_none()
    if project is None:
        return None
    granted = connection.execute(_ROLES, {"user_id": user_id, "project_id": project_id}).scalars()
    return Standing(
        user_name=user.name,
        user_domain_id=user.domain_id,
        user_domain_name=user.domain_name,
        user_enabled=user.enabled and user.domain_enabled,
        epoch=user.epoch,
        project_name=project.name,
        project_domain_id=project.domain_id,
        project_domain_name=project.domain_name,
        project_enabled=project.enabled and project.domain_enabled,
        roles=implied(frozenset(granted)),
    )


def credential_roles(connection: sa.Connection, credential_id: str, now: float) -> frozenset[str] | None:
    """Return the roles an application credential is limited to; None when it is gone or has expired."""
    columns = APPLICATION_CREDENTIALS.c
    row = connection.execute(
        sa.select(columns.roles, columns.expires_at).where(columns.id == credential_id)
    ).one_or_none()
    if row is None or (row.expires_at is not None and row.expires_at <= now):
        return None
    return frozenset(row.roles)


def is_revoked(connection: sa.Connection, audit_id: str) -> bool:
    """Tell whether the token of this audit id was revoked."""
    return connection.execute(_REVOKED, {"audit_id": audit_id}).first() is not None


def revoke(connection: sa.Connection, audit_id: str, expires_at: float, now: float) -> None:
    """Revoke a token until it would have expired by itself, and forget those that have."""
    connection.execute(sa.delete(REVOKED).where(REVOKED.c.expires_at <= now))
    insert_new(connection, REVOKED, {"audit_id": audit_id, "expires_at": expires_at})


def is_bootstrapped(connection: sa.Connection) -> bool:
    """Tell whether the first-start data are there."""
    return connection.execute(sa.select(GENERATION.c.number)).first() is not None


def bootstrap(connection: sa.Connection, passwords: dict[str, str]) -> None:
    """Write the first-start data: the domain, the roles, and users ``admin`` and ``demo`` on projects of their own.

    Args:
        connection: in a transaction.
        passwords: the hashes of the two users' passwords.

    Raises:
        IntegrityError: they are there already.
    """
    connection.execute(sa.insert(GENERATION).values(id=1, number=1))
    connection.execute(
        sa.insert(DOMAINS).values(
            id=DEFAULT_DOMAIN, name="Default", description="The default domain", enabled=True
        )
    )
    roles = {name: uuid.uuid4().hex for name in _BUILT_IN_ROLES}
    for name, role_id in roles.items():
        insert(connection, ROLES, {"id": role_id, "name": name, "immutable": True, "extra": {}})
    for name, role in (("admin", "admin"), ("demo", "member")):
        project = insert(
            connection,
            PROJECTS,
            {
                "id": uuid.uuid4().hex,
                "domain_id": DEFAULT_DOMAIN,
                "name": name,
                "description": "",
                "enabled": True,
                "immutable": False,
                "tags": (),
                "extra": {},
            },
        )
        user = insert(
            connection,
            USERS,
            {
                "id": uuid.uuid4().hex,
                "domain_id": DEFAULT_DOMAIN,
                "name": name,
                "enabled": True,
                "password": passwords[name],
                "extra": {},
            },
        )
        connection.execute(
            sa.insert(GRANTS).values(user_id=user["id"], project_id=project["id"], role_id=roles[role])
        )


_USER: Final = (
    sa.select(
        USERS.c.name,
        USERS.c.enabled,
        USERS.c.epoch,
        USERS.c.domain_id,
        DOMAINS.c.name.label("domain_name"),
        DOMAINS.c.enabled.label("domain_enabled"),
    )
    .join(DOMAINS, DOMAINS.c.id == USERS.c.domain_id)
    .where(USERS.c.id == sa.bindparam("user_id"))
)
_PROJECT: Final = (
    sa.select(
        PROJECTS.c.name,
        PROJECTS.c.enabled,
        PROJECTS.c.domain_id,
        DOMAINS.c.name.label("domain_name"),
        DOMAINS.c.enabled.label("domain_enabled"),
    )
    .join(DOMAINS, DOMAINS.c.id == PROJECTS.c.domain_id)
    .where(PROJECTS.c.id == sa.bindparam("project_id"))
)
_ROLES: Final = (
    sa.select(ROLES.c.name)
    .join(GRANTS, GRANTS.c.role_id == ROLES.c.id)
    .where(GRANTS.c.user_id == sa.bindparam("user_id"), GRANTS.c.project_id == sa.bindparam("project_id"))
)
_REVOKED: Final = sa.select(REVOKED.c.audit_id).where(REVOKED.c.audit_id == sa.bindparam("audit_id"))
