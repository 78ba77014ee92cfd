"""The projects that a shared image is shared with."""

from __future__ import annotations

import msgspec
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from stateward.domain.errors import Conflict, NotFound
from stateward.store.image_tables import IMAGE_MEMBERS
from stateward.store.rows import every, is_duplicate, one

_COLUMNS = IMAGE_MEMBERS.c


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """A project that an image is shared with."""

    image_id: str
    member: str
    #: ``pending``, ``accepted`` or ``rejected``.
    status: str
    #: Seconds since the epoch.
    created_at: float
    updated_at: float


def members(connection: sa.Connection, image_id: str) -> list[Member]:
    """Return an image's members, the oldest first."""
    statement = sa.select(IMAGE_MEMBERS).where(_COLUMNS.image_id == image_id)
    return [
        Member(**row) for row in every(connection, statement.order_by(_COLUMNS.created_at, _COLUMNS.member))
    ]


def get(connection: sa.Connection, image_id: str, member: str) -> Member:
    """Return one.

    Raises:
        NotFound: the image is not shared with that project.
    """
    row = one(connection, sa.select(IMAGE_MEMBERS).where(*_is(image_id, member)))
    if row is None:
        raise _missing(image_id, member)
    return Member(**row)


def add(connection: sa.Connection, member: Member) -> Member:
    """Share an image with one more project.

    Raises:
        Conflict: it is shared with it, or was deleted a moment ago.
    """
    try:
        connection.execute(sa.insert(IMAGE_MEMBERS).values(**msgspec.structs.asdict(member)))
    except IntegrityError as error:
        if is_duplicate(error):
            raise Conflict(
                f"The target member {member.member} is already associated with image {member.image_id}."
            ) from error
        raise Conflict(f"Image {member.image_id} was deleted at the same moment.") from error
    return member


def answer(connection: sa.Connection, image_id: str, member: str, status: str, now: float) -> Member:
    """Keep a member's answer to being shared an image.

    Raises:
        NotFound: it is not shared with that project.
    """
    statement = (
        sa.update(IMAGE_MEMBERS)
        .where(*_is(image_id, member))
        .values(status=status, updated_at=now)
        .returning(*_COLUMNS)
    )
    row = one(connection, statement)
    if row is None:
        raise _missing(image_id, member)
    return Member(**row)


def remove(connection: sa.Connection, image_id: str, member: str) -> None:
    """Share an image with a project no more.

    Raises:
        NotFound: it was not.
    """
    statement = sa.delete(IMAGE_MEMBERS).where(*_is(image_id, member)).returning(_COLUMNS.member)
    if connection.execute(statement).first() is None:
        raise _missing(image_id, member)


def _is(image_id: str, member: str) -> tuple[sa.ColumnElement[bool], ...]:
    return _COLUMNS.image_id == image_id, _COLUMNS.member == member


def _missing(image_id: str, member: str) -> NotFound:
    return NotFound(f"{member} is not a member of image {image_id}.")
