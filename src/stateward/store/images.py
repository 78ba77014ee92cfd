"""Images: their rows, who may see them, and the guarded steps of an upload.

An upload is begun by one UPDATE that only a queued image passes, and finished by one that only the same upload
passes: two uploads at once, or a deletion in the middle, cannot leave an image that is active without its data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

import msgspec
import sqlalchemy as sa

from stateward.domain.errors import Conflict
from stateward.domain.records import ImageFacts
from stateward.store.image_tables import IMAGE_IDS, IMAGE_MEMBERS, IMAGE_PROPERTIES, IMAGE_TAGS, IMAGES
from stateward.store.rows import every, insert_new, one

Direction = Literal["asc", "desc"]

_COLUMNS: Final = IMAGES.c
#: Parameters of one statement: SQLite allows 32,766.
_IDS_AT_ONCE: Final = 1000


class Image(msgspec.Struct, frozen=True, kw_only=True):
    """An image as it is kept; what is left out is so of one that was just made."""

    id: str
    name: str | None = None
    #: A project; None for an image that came with the installation.
    owner: str | None
    visibility: str
    status: str = "queued"
    disk_format: str | None = None
    container_format: str | None = None
    #: GiB and MiB that a flavor must have.
    min_disk: int = 0
    min_ram: int = 0
    protected: bool = False
    hidden: bool = False
    #: Bytes; None until there are data.
    size: int | None = None
    checksum: str | None = None
    hash_value: str | None = None
    #: Seconds since the epoch.
    created_at: float
    updated_at: float
    properties: dict[str, str]
    tags: tuple[str, ...] = ()

    @property
    def facts(self) -> ImageFacts:
        """What an instance made from it keeps of it."""
        return ImageFacts(id=self.id, disk_format=self.disk_format or "raw", properties=self.properties)


class Query(msgspec.Struct, frozen=True, kw_only=True):
    """What a list is asked for."""

    #: Columns and the values they must have.
    equal: Mapping[str, Any] = {}
    #: Columns and the values of which they must have one.
    among: Mapping[str, frozenset[str]] = {}
    properties: Mapping[str, str] = {}
    tags: tuple[str, ...] = ()
    size_min: int | None = None
    size_max: int | None = None
    #: Of images that others share with the asking project; None: all.
    member_status: str | None = "accepted"
    #: Columns, most significant first; the newest first within what is equal.
    sort: tuple[tuple[str, Direction], ...] = (("created_at", "desc"), ("id", "desc"))
    #: Only what comes after this image.
    after: Image | None = None
    limit: int = 25


#: Sort keys, with what stands for null, because databases differ about where null belongs.
SORTABLE: Final[Mapping[str, sa.ColumnElement[Any]]] = {
    "name": sa.func.coalesce(_COLUMNS.name, ""),
    "status": _COLUMNS.status,
    "container_format": sa.func.coalesce(_COLUMNS.container_format, ""),
    "disk_format": sa.func.coalesce(_COLUMNS.disk_format, ""),
    "size": sa.func.coalesce(_COLUMNS.size, -1),
    "id": _COLUMNS.id,
    "created_at": _COLUMNS.created_at,
    "updated_at": _COLUMNS.updated_at,
}
_OF_NULL: Final[Mapping[str, Any]] = {"name": "", "container_format": "", "disk_format": "", "size": -1}


def get_visible(
    connection: sa.Connection,
    image_id: str,
    project_id: str,
    is_admin: bool,  # noqa: FBT001 (the caller's standing, always passed with the project)
) -> Image | None:
    """Return an image that a project may use, or None: what it may not use does not exist for it."""
    statement = sa.select(IMAGES).where(_COLUMNS.id == image_id)
    if not is_admin:
        statement = statement.where(_visible(project_id))
    return _first(connection, statement)


def get(connection: sa.Connection, image_id: str) -> Image | None:
    """Return an image, whoever asks."""
    return _first(connection, sa.select(IMAGES).where(_COLUMNS.id == image_id))


def lock(connection: sa.Connection, image_id: str) -> Image | None:
    """Return an image that nobody else changes before this transaction ends (SQLite has one writer anyway)."""
    return _first(connection, sa.select(IMAGES).where(_COLUMNS.id == image_id).with_for_update())


def page(connection: sa.Connection, query: Query, project_id: str, *, is_admin: bool) -> list[Image]:
    """Return one page of the images that a project sees in its list, as asked for."""
    statement = sa.select(IMAGES).limit(query.limit)
    if not is_admin:
        statement = statement.where(_listed(project_id, query))
    for name, value in query.equal.items():
        statement = statement.where(_COLUMNS[name] == value)
    for name, values in query.among.items():
        statement = statement.where(_COLUMNS[name].in_(sorted(values)))
    for tag in query.tags:
        statement = statement.where(
            sa.exists().where(IMAGE_TAGS.c.image_id == _COLUMNS.id, IMAGE_TAGS.c.tag == tag)
        )
    for name, value in query.properties.items():
        columns = IMAGE_PROPERTIES.c
        statement = statement.where(
            sa.exists().where(columns.image_id == _COLUMNS.id, columns.name == name, columns.value == value)
        )
    if query.size_min is not None:
        statement = statement.where(_COLUMNS.size >= query.size_min)
    if query.size_max is not None:
        statement = statement.where(_COLUMNS.size <= query.size_max)
    for name, direction in query.sort:
        key = SORTABLE[name]
        statement = statement.order_by(key.desc() if direction == "desc" else key.asc())
    if query.after is not None:
        statement = statement.where(_comes_after(query.after, query.sort))
    return _complete(connection, every(connection, statement))


def insert(connection: sa.Connection, image: Image, *, again: bool = False) -> Image:
    """Insert an image without data.

    Args:
        connection: the transaction.
        image: the image.
        again: let it have the id of an image that is deleted, because an id made of the data can mean no others.

    Raises:
        Conflict: there is one of this id, or, as with Glance, there has been one.
    """
    values = msgspec.structs.asdict(image)
    properties, tags = values.pop("properties"), values.pop("tags")
    new = insert_new(connection, IMAGE_IDS, {"id": image.id}) is not None
    if not (new or again) or insert_new(connection, IMAGES, values) is None:
        raise Conflict(f"Image ID {image.id} already exists, or a deleted image had it: choose another one.")
    _insert_properties(connection, image.id, properties)
    _insert_tags(connection, image.id, tags)
    return image


def replace(connection: sa.Connection, before: Image, after: Image) -> None:
    """Write what differs between an image that is locked and what it is to be."""
    old, new = msgspec.structs.asdict(before), msgspec.structs.asdict(after)
    changed = {name: value for name, value in new.items() if value != old[name]}
    properties, tags = changed.pop("properties", None), changed.pop("tags", None)
    if changed:
        connection.execute(sa.update(IMAGES).where(_COLUMNS.id == after.id).values(**changed))
    if properties is not None:
        connection.execute(sa.delete(IMAGE_PROPERTIES).where(IMAGE_PROPERTIES.c.image_id == after.id))
        _insert_properties(connection, after.id, properties)
    if tags is not None:
        connection.execute(sa.delete(IMAGE_TAGS).where(IMAGE_TAGS.c.image_id == after.id))
        _insert_tags(connection, after.id, tags)


def delete(connection: sa.Connection, image_id: str) -> None:
    """Delete an image; whose data it had is the caller's to remove, once this is durable."""
    connection.execute(sa.delete(IMAGES).where(_COLUMNS.id == image_id))


def delete_without_data(connection: sa.Connection, image_id: str) -> None:
    """Delete an image that was to be filled and will not be; one that has its data stays."""
    connection.execute(sa.delete(IMAGES).where(_COLUMNS.id == image_id, _COLUMNS.status != "active"))


def delete_backup(connection: sa.Connection, image_id: str) -> bool:
    """Delete a backup that has its data; False when it was protected, or is gone, since it was found (``backups``)."""
    statement = (
        sa.delete(IMAGES)
        .where(_COLUMNS.id == image_id, _COLUMNS.status == "active", sa.not_(_COLUMNS.protected))
        .returning(_COLUMNS.id)
    )
    return connection.execute(statement).first() is not None


def backups(connection: sa.Connection, instance_id: str, backup_type: str) -> list[str]:
    """Return the ids of an instance's backups of a type that have their data, newest first; not protected ones."""
    statement = sa.select(_COLUMNS.id).where(_COLUMNS.status == "active", sa.not_(_COLUMNS.protected))
    for name, value in (
        ("instance_uuid", instance_id),
        ("image_type", "backup"),
        ("backup_type", backup_type),
    ):
        statement = statement.where(
            sa.exists().where(
                IMAGE_PROPERTIES.c.image_id == _COLUMNS.id,
                IMAGE_PROPERTIES.c.name == name,
                IMAGE_PROPERTIES.c.value == value,
            )
        )
    return list(connection.execute(statement.order_by(_COLUMNS.created_at.desc(), _COLUMNS.id)).scalars())


def begin_upload(connection: sa.Connection, image_id: str, upload: str, now: float) -> bool:
    """Let one upload into a queued image begin; False when the image is not queued."""
    statement = (
        sa.update(IMAGES)
        .where(_COLUMNS.id == image_id, _COLUMNS.status == "queued")
        .values(status="saving", upload=upload, updated_at=now)
        .returning(_COLUMNS.id)
    )
    return connection.execute(statement).first() is not None


def finish_upload(
    connection: sa.Connection, upload: str, *, size: int, checksum: str, hash_value: str, now: float
) -> bool:
    """Make an image active whose data are in place; False when the upload was given up, or the image deleted."""
    statement = (
        sa.update(IMAGES)
        .where(_COLUMNS.upload == upload, _COLUMNS.status == "saving")
        .values(
            status="active",
            upload=None,
            size=size,
            checksum=checksum,
            hash_value=hash_value,
            updated_at=now,
        )
        .returning(_COLUMNS.id)
    )
    return connection.execute(statement).first() is not None


def give_up_upload(connection: sa.Connection, image_id: str, upload: str, now: float) -> bool:
    """Put an image back to queued; False when the upload had finished, and its data must stay."""
    connection.execute(
        sa.update(IMAGES)
        .where(_COLUMNS.upload == upload, _COLUMNS.status == "saving")
        .values(status="queued", upload=None, updated_at=now)
    )
    status = connection.execute(
        sa.select(_COLUMNS.status).where(_COLUMNS.id == image_id)
    ).scalar_one_or_none()
    return status != "active"


def give_up_all_uploads(connection: sa.Connection, now: float) -> frozenset[str]:
    """Put every image back to queued whose upload a crash has ended; return the ids of those that have data."""
    connection.execute(
        sa.update(IMAGES)
        .where(_COLUMNS.status == "saving")
        .values(status="queued", upload=None, updated_at=now)
    )
    return frozenset(connection.execute(sa.select(_COLUMNS.id).where(_COLUMNS.status == "active")).scalars())


def built_in(connection: sa.Connection, name: str) -> list[str]:
    """Return the ids of the unprotected images of this name that came with the installation."""
    statement = sa.select(_COLUMNS.id).where(
        _COLUMNS.name == name, _COLUMNS.owner.is_(None), _COLUMNS.protected.is_(False)
    )
    return list(connection.execute(statement).scalars())


def _visible(project_id: str) -> sa.ColumnElement[bool]:
    return sa.or_(
        _COLUMNS.owner == project_id,
        _COLUMNS.visibility.in_(("public", "community")),
        sa.and_(_COLUMNS.visibility == "shared", _shared_with(project_id, None)),
    )


def _listed(project_id: str, query: Query) -> sa.ColumnElement[bool]:
    """Say what is in a project's list: others' community images only for those who ask for them."""
    offered = ("public", "community") if query.equal.get("visibility") == "community" else ("public",)
    return sa.or_(
        _COLUMNS.owner == project_id,
        _COLUMNS.visibility.in_(offered),
        sa.and_(_COLUMNS.visibility == "shared", _shared_with(project_id, query.member_status)),
    )


def _shared_with(project_id: str, status: str | None) -> sa.ColumnElement[bool]:
    columns = IMAGE_MEMBERS.c
    found = sa.exists().where(columns.image_id == _COLUMNS.id, columns.member == project_id)
    return found if status is None else found.where(columns.status == status)


def _comes_after(image: Image, sort: tuple[tuple[str, Direction], ...]) -> sa.ColumnElement[bool]:
    """Compare by several keys of different directions: greater by one, and equal by all before it."""
    alternatives: list[sa.ColumnElement[bool]] = []
    equal: list[sa.ColumnElement[bool]] = []
    for name, direction in sort:
        value = getattr(image, name)
        value = _OF_NULL[name] if value is None else value
        key = SORTABLE[name]
        alternatives.append(sa.and_(*equal, key < value if direction == "desc" else key > value))
        equal.append(key == value)
    return sa.or_(*alternatives)


def _first(connection: sa.Connection, statement: sa.Select[Any]) -> Image | None:
    row = one(connection, statement)
    return None if row is None else _complete(connection, [row])[0]


def _complete(connection: sa.Connection, rows: Sequence[Mapping[str, Any]]) -> list[Image]:
    """Make images of rows, with their properties and tags."""
    properties: dict[str, dict[str, str]] = {row["id"]: {} for row in rows}
    tags: dict[str, list[str]] = {row["id"]: [] for row in rows}
    ids = list(properties)
    for begin in range(0, len(ids), _IDS_AT_ONCE):
        some = ids[begin : begin + _IDS_AT_ONCE]
        named = sa.select(IMAGE_PROPERTIES).where(IMAGE_PROPERTIES.c.image_id.in_(some))
        for row in connection.execute(named.order_by(IMAGE_PROPERTIES.c.name)):
            properties[row.image_id][row.name] = row.value
        tagged = sa.select(IMAGE_TAGS).where(IMAGE_TAGS.c.image_id.in_(some)).order_by(IMAGE_TAGS.c.tag)
        for row in connection.execute(tagged):
            tags[row.image_id].append(row.tag)
    return [
        Image(
            **{name: value for name, value in row.items() if name != "upload"},
            properties=properties[row["id"]],
            tags=tuple(tags[row["id"]]),
        )
        for row in rows
    ]


def _insert_properties(connection: sa.Connection, image_id: str, properties: Mapping[str, str]) -> None:
    if properties:
        connection.execute(
            sa.insert(IMAGE_PROPERTIES),
            [{"image_id": image_id, "name": name, "value": value} for name, value in properties.items()],
        )


def _insert_tags(connection: sa.Connection, image_id: str, tags: Sequence[str]) -> None:
    if tags:
        connection.execute(sa.insert(IMAGE_TAGS), [{"image_id": image_id, "tag": tag} for tag in tags])
