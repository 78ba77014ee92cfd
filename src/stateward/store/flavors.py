"""Flavors: the sizes an instance can have, and which projects may use the private ones."""

from __future__ import annotations

from typing import Any, Final

import msgspec
import sqlalchemy as sa

from stateward.domain.errors import Conflict, NotFound
from stateward.domain.records import FlavorFacts
from stateward.store.compute_tables import FLAVOR_ACCESS, FLAVORS
from stateward.store.rows import insert_new

_COLUMNS = FLAVORS.c

#: What a new installation starts with: (id and name, vCPUs, MiB of memory, GiB of disk).
_DEFAULTS: Final = (("tiny", 1, 128, 0), ("small", 1, 256, 1), ("medium", 2, 512, 2))


class Flavor(msgspec.Struct, frozen=True, kw_only=True):
    """One flavor; memory and swap in MiB, disks in GiB."""

    #: Counts up over all flavors.
    number: int
    #: What clients name it by.
    id: str
    name: str
    description: str | None
    vcpus: int
    ram: int
    disk: int
    ephemeral: int
    swap: int
    rxtx_factor: float
    #: False: only the projects that were given access see it, and admins.
    public: bool
    extra_specs: dict[str, str]


class NewFlavor(msgspec.Struct, frozen=True, kw_only=True):
    """A flavor to be made; the units are ``Flavor``'s."""

    id: str
    name: str
    vcpus: int
    ram: int
    disk: int
    ephemeral: int = 0
    swap: int = 0
    rxtx_factor: float = 1.0
    public: bool = True
    description: str | None = None
    extra_specs: dict[str, str] = {}


class FlavorQuery(msgspec.Struct, frozen=True, kw_only=True):
    """What to list: every given field narrows the list."""

    #: True: the public ones, and those ``project_id`` has access to; False: the private ones; None: all.
    public: bool | None = True
    project_id: str | None = None
    #: MiB.
    min_ram: int | None = None
    #: GiB.
    min_disk: int | None = None
    #: A column; number is added last, which makes the order total.
    sort: str = "id"
    descending: bool = False
    limit: int | None = None
    #: The id after which the page begins.
    marker: str | None = None


def _flavor_of(row: sa.Row[Any]) -> Flavor:
    return Flavor(
        number=row.number,
        id=row.id,
        name=row.name,
        description=row.description,
        vcpus=row.vcpus,
        ram=row.ram,
        disk=row.disk,
        ephemeral=row.ephemeral,
        swap=row.swap,
        rxtx_factor=row.rxtx_factor,
        public=row.public,
        extra_specs=row.extra_specs,
    )


def _accessible(project_id: str) -> sa.ColumnElement[bool]:
    given = sa.select(FLAVOR_ACCESS.c.flavor).where(
        FLAVOR_ACCESS.c.flavor == _COLUMNS.number, FLAVOR_ACCESS.c.project_id == project_id
    )
    return sa.or_(_COLUMNS.public, given.exists())


def find(
    connection: sa.Connection, flavor_id: str, *, project_id: str | None = None, lock: bool = False
) -> Flavor:
    """Return a flavor.

    Args:
        connection: where to look.
        flavor_id: which.
        project_id: only if this project may use it; None: whether or not.
        lock: keep others from changing it until the transaction ends.

    Raises:
        NotFound: there is none, or the project may not use it.
    """
    statement = sa.select(FLAVORS).where(_COLUMNS.id == flavor_id)
    if project_id is not None:
        statement = statement.where(_accessible(project_id))
    if lock:
        statement = statement.with_for_update()
    row = connection.execute(statement).one_or_none()
    if row is None:
        raise NotFound(f"Flavor {flavor_id} could not be found.")
    return _flavor_of(row)


def get(connection: sa.Connection, flavor_id: str, *, project_id: str | None = None) -> FlavorFacts | None:
    """Return what an instance of this flavor keeps of it; None when ``find`` finds none."""
    try:
        flavor = find(connection, flavor_id, project_id=project_id)
    except NotFound:
        return None
    return FlavorFacts(
        id=flavor.id,
        name=flavor.name,
        vcpus=flavor.vcpus,
        ram=flavor.ram,
        disk=flavor.disk,
        ephemeral=flavor.ephemeral,
        swap=flavor.swap,
        extra_specs=flavor.extra_specs,
    )


def page(connection: sa.Connection, query: FlavorQuery) -> list[Flavor]:
    """Return a page of flavors.

    Raises:
        LookupError: the marker names no flavor; the argument is the marker.
    """
    statement = sa.select(FLAVORS).where(*_clauses(query))
    column = (
        sa.func.coalesce(_COLUMNS.description, "") if query.sort == "description" else _COLUMNS[query.sort]
    )
    if query.marker is not None:
        after = connection.execute(
            sa.select(column, _COLUMNS.number).where(_COLUMNS.id == query.marker)
        ).one_or_none()
        if after is None:
            raise LookupError(query.marker)
        value, number = after
        further = column < value if query.descending else column > value
        statement = statement.where(sa.or_(further, sa.and_(column == value, _COLUMNS.number > number)))
    statement = statement.order_by(column.desc() if query.descending else column.asc(), _COLUMNS.number)
    if query.limit is not None:
        statement = statement.limit(query.limit)
    return [_flavor_of(row) for row in connection.execute(statement)]


def _clauses(query: FlavorQuery) -> list[sa.ColumnElement[bool]]:
    clauses: list[sa.ColumnElement[bool]] = []
    if query.public is True and query.project_id is not None:
        clauses.append(_accessible(query.project_id))
    elif query.public is not None:
        clauses.append(_COLUMNS.public.is_(query.public))
    if query.min_ram is not None:
        clauses.append(_COLUMNS.ram >= query.min_ram)
    if query.min_disk is not None:
        clauses.append(_COLUMNS.disk >= query.min_disk)
    return clauses


def create(connection: sa.Connection, new: NewFlavor) -> Flavor:
    """Make a flavor.

    Raises:
        Conflict: there is one of this id or name.
    """
    row = insert_new(connection, FLAVORS, msgspec.structs.asdict(new))
    if row is not None:
        return _flavor_of(row)
    same = connection.execute(sa.select(_COLUMNS.id).where(_COLUMNS.name == new.name)).one_or_none()
    if same is None:
        raise Conflict(f"Flavor with ID {new.id} already exists.")
    raise Conflict(f"Flavor with name {new.name} already exists.")


def register(connection: sa.Connection, new: NewFlavor) -> None:
    """Make a flavor unless there is one of its id or name, which then stays as it is."""
    insert_new(connection, FLAVORS, msgspec.structs.asdict(new))


def register_defaults(connection: sa.Connection) -> None:
    """Make the flavors of a new installation; one that has any keeps what its admin made of them."""
    if connection.execute(sa.select(_COLUMNS.number).limit(1)).one_or_none() is None:
        for name, vcpus, ram, disk in _DEFAULTS:
            register(connection, NewFlavor(id=name, name=name, vcpus=vcpus, ram=ram, disk=disk))


def describe(connection: sa.Connection, flavor_id: str, description: str | None) -> Flavor:
    """Change a flavor's description.

    Raises:
        NotFound: there is none of this id.
    """
    return _change(connection, flavor_id, {"description": description})


def add_extra_specs(connection: sa.Connection, flavor_id: str, specs: dict[str, str]) -> Flavor:
    """Set some extra specs and leave the others.

    Raises:
        NotFound: there is no flavor of this id.
    """
    flavor = find(connection, flavor_id, lock=True)
    return _change(connection, flavor_id, {"extra_specs": flavor.extra_specs | specs})


def drop_extra_spec(connection: sa.Connection, flavor_id: str, key: str) -> None:
    """Remove one extra spec.

    Raises:
        NotFound: there is no flavor of this id, or it has no such key.
    """
    flavor = find(connection, flavor_id, lock=True)
    if key not in flavor.extra_specs:
        raise NotFound(no_extra_spec(flavor_id, key))
    rest = {name: value for name, value in flavor.extra_specs.items() if name != key}
    _change(connection, flavor_id, {"extra_specs": rest})


def no_extra_spec(flavor_id: str, key: str) -> str:
    """Say that a flavor has no such extra spec."""
    return f"Flavor {flavor_id} has no extra specs with key {key}."


def _change(connection: sa.Connection, flavor_id: str, changes: dict[str, Any]) -> Flavor:
    statement = sa.update(FLAVORS).where(_COLUMNS.id == flavor_id).values(**changes).returning(FLAVORS)
    row = connection.execute(statement).one_or_none()
    if row is None:
        raise NotFound(f"Flavor {flavor_id} could not be found.")
    return _flavor_of(row)


def delete(connection: sa.Connection, flavor_id: str) -> None:
    """Remove a flavor; instances made with it keep their copy.

    Raises:
        NotFound: there is none of this id.
    """
    if connection.execute(sa.delete(FLAVORS).where(_COLUMNS.id == flavor_id)).rowcount == 0:
        raise NotFound(f"Flavor {flavor_id} could not be found.")


def projects(connection: sa.Connection, flavor: Flavor) -> list[str]:
    """Return the projects that were given access to a private flavor."""
    statement = (
        sa.select(FLAVOR_ACCESS.c.project_id)
        .where(FLAVOR_ACCESS.c.flavor == flavor.number)
        .order_by(FLAVOR_ACCESS.c.project_id)
    )
    return list(connection.execute(statement).scalars())


def give_access(
    connection: sa.Connection, flavor_id: str, project_id: str, *, private_only: bool
) -> list[str]:
    """Let a project use a private flavor, and return all that may.

    Args:
        connection: in a transaction.
        flavor_id: which.
        project_id: the project; it need not exist here.
        private_only: refuse for a public flavor, where it means nothing.

    Raises:
        NotFound: there is no flavor of this id.
        Conflict: the project has access already, or the flavor is public.
    """
    flavor = find(connection, flavor_id, lock=True)
    if private_only and flavor.public:
        raise Conflict("Can not add access to a public flavor.")
    if insert_new(connection, FLAVOR_ACCESS, {"flavor": flavor.number, "project_id": project_id}) is None:
        raise Conflict(
            f"Flavor access already exists for flavor {flavor_id} and project {project_id} combination."
        )
    return projects(connection, flavor)


def take_access(connection: sa.Connection, flavor_id: str, project_id: str) -> list[str]:
    """Take a project's access to a flavor away, and return all that still have it.

    Raises:
        NotFound: there is no flavor of this id, or the project has no access.
    """
    flavor = find(connection, flavor_id, lock=True)
    statement = sa.delete(FLAVOR_ACCESS).where(
        FLAVOR_ACCESS.c.flavor == flavor.number, FLAVOR_ACCESS.c.project_id == project_id
    )
    if connection.execute(statement).rowcount == 0:
        raise NotFound(f"Flavor access not found for {flavor_id} / {project_id} combination.")
    return projects(connection, flavor)
