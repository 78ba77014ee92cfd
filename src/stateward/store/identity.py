"""The identity service's directory: domains, projects, users, roles and who has which role where.

Names are unique by constraint: two requests that make the same name at the same moment are told apart by the
database, never by a look beforehand. A row that is read and then written is read with its lock.
"""

from __future__ import annotations

from typing import Final

import msgspec
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from stateward.domain.errors import Conflict, NotFound
from stateward.store.identity_tables import (
    APPLICATION_CREDENTIALS,
    DOMAINS,
    GENERATION,
    GRANTS,
    PROJECTS,
    ROLES,
    USERS,
)
from stateward.store.rows import Values, every, is_duplicate, one

#: What each table's rows are called in a sentence.
_CALLED: Final = {
    DOMAINS.name: "domain",
    PROJECTS.name: "project",
    USERS.name: "user",
    ROLES.name: "role",
    APPLICATION_CREDENTIALS.name: "application credential",
}


class Assignment(msgspec.Struct, frozen=True, kw_only=True):
    """A role a user has on a project, with the names people know them by."""

    user_id: str
    user_name: str
    user_domain_id: str
    user_domain_name: str
    project_id: str
    project_name: str
    project_domain_id: str
    project_domain_name: str
    role_id: str
    role_name: str


def get(connection: sa.Connection, table: sa.Table, row_id: str) -> Values:
    """Return one row.

    Raises:
        NotFound: there is none.
    """
    row = one(connection, sa.select(table).where(table.c.id == row_id))
    if row is None:
        raise _missing(table, row_id)
    return row


def lock(connection: sa.Connection, table: sa.Table, row_id: str) -> Values:
    """Return one row that nobody else changes before this transaction ends (SQLite has one writer anyway).

    Raises:
        NotFound: there is none.
    """
    statement = sa.select(table).where(table.c.id == row_id).with_for_update()
    row = one(connection, statement)
    if row is None:
        raise _missing(table, row_id)
    return row


def page(
    connection: sa.Connection,
    table: sa.Table,
    filters: Values,
    *,
    after: str | None = None,
    limit: int | None = None,
) -> list[Values]:
    """Return the rows whose columns have these values, by id.

    Args:
        connection: where.
        table: which.
        filters: column names and values; None asks for null.
        after: only rows whose id comes after this one.
        limit: rows at most; None: all.
    """
    statement = sa.select(table).order_by(table.c.id).limit(limit)
    for name, value in filters.items():
        statement = statement.where(table.c[name].is_(None) if value is None else table.c[name] == value)
    if after is not None:
        statement = statement.where(table.c.id > after)
    return every(connection, statement)


def insert(connection: sa.Connection, table: sa.Table, values: Values) -> Values:
    """Insert a row and return it.

    Raises:
        Conflict: the name is taken, or something the row names is not there (any more).
    """
    try:
        return every(connection, sa.insert(table).values(**values).returning(*table.c))[0]
    except IntegrityError as error:
        raise _refused(table, values, error) from error


def update(connection: sa.Connection, table: sa.Table, row_id: str, values: Values) -> Values:
    """Change a row and return it as it is then.

    Raises:
        NotFound: there is none.
        Conflict: the name is taken.
    """
    statement = sa.update(table).where(table.c.id == row_id).values(**values).returning(*table.c)
    try:
        row = one(connection, statement)
    except IntegrityError as error:
        raise _refused(table, values, error) from error
    if row is None:
        raise _missing(table, row_id)
    return row


def delete(connection: sa.Connection, table: sa.Table, row_id: str) -> None:
    """Delete a row; grants and application credentials of it go with it.

    Raises:
        NotFound: there is none.
        Conflict: a project has projects below it.
    """
    try:
        gone = connection.execute(sa.delete(table).where(table.c.id == row_id).returning(table.c.id)).all()
    except IntegrityError as error:
        raise Conflict(f"The {_CALLED[table.name]} {row_id} still has others that belong to it.") from error
    if not gone:
        raise _missing(table, row_id)


def resolve_domain(connection: sa.Connection, domain_id: str | None, name: str | None) -> Values | None:
    """Return the domain of an id or else a name; with neither, the default one; None when there is no such."""
    if domain_id is None and name is None:
        domain_id = DEFAULT_DOMAIN
    wanted = DOMAINS.c.id == domain_id if domain_id is not None else DOMAINS.c.name == name
    return one(connection, sa.select(DOMAINS).where(wanted))


def by_name(connection: sa.Connection, table: sa.Table, domain_id: str, name: str) -> Values | None:
    """Return the user or project of this name in a domain, or None."""
    statement = sa.select(table).where(table.c.domain_id == domain_id, table.c.name == name)
    return one(connection, statement)


def assignments(
    connection: sa.Connection,
    *,
    user_id: str | None = None,
    project_id: str | None = None,
    role_id: str | None = None,
) -> list[Assignment]:
    """Return who has which role where; each filter that is not None narrows it."""
    user_domain = DOMAINS.alias("user_domain")
    project_domain = DOMAINS.alias("project_domain")
    statement = (
        sa.select(
            USERS.c.id.label("user_id"),
            USERS.c.name.label("user_name"),
            user_domain.c.id.label("user_domain_id"),
            user_domain.c.name.label("user_domain_name"),
            PROJECTS.c.id.label("project_id"),
            PROJECTS.c.name.label("project_name"),
            project_domain.c.id.label("project_domain_id"),
            project_domain.c.name.label("project_domain_name"),
            ROLES.c.id.label("role_id"),
            ROLES.c.name.label("role_name"),
        )
        .select_from(GRANTS)
        .join(USERS, USERS.c.id == GRANTS.c.user_id)
        .join(user_domain, user_domain.c.id == USERS.c.domain_id)
        .join(PROJECTS, PROJECTS.c.id == GRANTS.c.project_id)
        .join(project_domain, project_domain.c.id == PROJECTS.c.domain_id)
        .join(ROLES, ROLES.c.id == GRANTS.c.role_id)
        .order_by(USERS.c.name, PROJECTS.c.name, ROLES.c.name)
    )
    for column, value in (
        (GRANTS.c.user_id, user_id),
        (GRANTS.c.project_id, project_id),
        (GRANTS.c.role_id, role_id),
    ):
        if value is not None:
            statement = statement.where(column == value)
    return [Assignment(**row) for row in every(connection, statement)]


def roles_named(connection: sa.Connection, names: frozenset[str]) -> list[Values]:
    """Return the roles of these names, by name."""
    statement = sa.select(ROLES).where(ROLES.c.name.in_(sorted(names))).order_by(ROLES.c.name)
    return every(connection, statement)


def grant(connection: sa.Connection, user_id: str, project_id: str, role_id: str) -> None:
    """Give a user a role on a project; having it already is no error.

    Raises:
        NotFound: one of the three does not exist.
    """
    # The rows are held until the end of the transaction, so that none of them is deleted in between and the
    # insert below can only find the grant there already.
    for table, row_id in ((PROJECTS, project_id), (USERS, user_id), (ROLES, role_id)):
        lock(connection, table, row_id)
    if not has_grant(connection, user_id, project_id, role_id):
        connection.execute(sa.insert(GRANTS).values(user_id=user_id, project_id=project_id, role_id=role_id))


def has_grant(connection: sa.Connection, user_id: str, project_id: str, role_id: str) -> bool:
    """Tell whether a user was given a role on a project itself, not implied by another."""
    found = sa.select(GRANTS.c.role_id).where(*_is_grant(user_id, project_id, role_id))
    return connection.execute(found).first() is not None


def ungrant(connection: sa.Connection, user_id: str, project_id: str, role_id: str) -> None:
    """Take a role on a project away.

    Raises:
        NotFound: the user does not have it.
    """
    statement = sa.delete(GRANTS).where(*_is_grant(user_id, project_id, role_id)).returning(GRANTS.c.role_id)
    if connection.execute(statement).first() is None:
        raise NotFound(
            f"Could not find role assignment with role: {role_id}, user: {user_id}, project: {project_id}."
        )


def projects_of(connection: sa.Connection, user_id: str) -> list[Values]:
    """Return the enabled projects on which a user has a role, by name."""
    on = sa.select(GRANTS.c.project_id).where(GRANTS.c.user_id == user_id)
    statement = (
        sa.select(PROJECTS)
        .where(PROJECTS.c.id.in_(on), PROJECTS.c.enabled.is_(True))
        .order_by(PROJECTS.c.name)
    )
    return every(connection, statement)


def generation(connection: sa.Connection) -> int:
    """Return the number of changes so far; 0 before there is anything."""
    return connection.execute(sa.select(GENERATION.c.number)).scalar_one_or_none() or 0


def count_change(connection: sa.Connection) -> None:
    """Count a change: every transaction that changes an identity table does."""
    connection.execute(sa.update(GENERATION).values(number=GENERATION.c.number + 1))


#: The id of the one domain there is from the start.
DEFAULT_DOMAIN: Final = "default"


def _is_grant(user_id: str, project_id: str, role_id: str) -> tuple[sa.ColumnElement[bool], ...]:
    return GRANTS.c.user_id == user_id, GRANTS.c.project_id == project_id, GRANTS.c.role_id == role_id


def _missing(table: sa.Table, row_id: str) -> NotFound:
    return NotFound(f"Could not find {_CALLED[table.name]}: {row_id}.")


def _refused(table: sa.Table, values: Values, error: IntegrityError) -> Conflict:
    called = _CALLED[table.name]
    if is_duplicate(error):
        return Conflict(
            f"Conflict occurred attempting to store {called} - Duplicate entry found with name {values.get('name')}."
        )
    return Conflict(f"The {called} refers to something that does not exist any more.")
