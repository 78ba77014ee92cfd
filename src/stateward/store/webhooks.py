"""Webhooks, how far each has been told, and its dead letters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from stateward.domain.errors import Conflict
from stateward.domain.events import Event, Place
from stateward.domain.webhooks import TERMS, Format, Letter, Webhook
from stateward.store.webhook_tables import WEBHOOK_LETTERS, WEBHOOKS

_COLUMNS: Final = WEBHOOKS.c
_LETTERS: Final = WEBHOOK_LETTERS.c
#: Asked before each message.
_STANDS: Final = sa.select(sa.literal(1)).where(
    _COLUMNS.id == sa.bindparam("id"),
    *(_COLUMNS[name].is_not_distinct_from(sa.bindparam(name, type_=_COLUMNS[name].type)) for name in TERMS),
)


def insert(connection: sa.Connection, webhook: Webhook) -> None:
    """Write a new webhook.

    Raises:
        Conflict: another is called so.
    """
    try:
        with connection.begin_nested():
            connection.execute(sa.insert(WEBHOOKS).values(_row(webhook)))
    except IntegrityError:
        raise Conflict(f"There is a webhook {webhook.name!r} already.") from None


def every(connection: sa.Connection) -> list[Webhook]:
    """Return all webhooks, by name."""
    return [_webhook(row) for row in connection.execute(sa.select(WEBHOOKS).order_by(_COLUMNS.name))]


def get(connection: sa.Connection, key: str) -> Webhook | None:
    """Return the webhook of an id or a name."""
    row = connection.execute(
        sa.select(WEBHOOKS).where(sa.or_(_COLUMNS.id == key, _COLUMNS.name == key)).limit(1)
    ).one_or_none()
    return None if row is None else _webhook(row)


def stands(connection: sa.Connection, webhook: Webhook) -> bool:
    """Say whether a webhook is there and has the terms that it had when it was read."""
    terms = dict(zip(TERMS, webhook.terms, strict=True))
    return connection.execute(_STANDS, {"id": webhook.id, **terms}).first() is not None


def change(connection: sa.Connection, webhook_id: str, changes: Mapping[str, Any]) -> Webhook | None:
    """Change columns of a webhook and return it; None when it is gone."""
    statement = sa.update(WEBHOOKS).where(_COLUMNS.id == webhook_id).values(dict(changes)).returning(WEBHOOKS)
    row = connection.execute(statement).one_or_none()
    return None if row is None else _webhook(row)


def delete(connection: sa.Connection, webhook_id: str) -> bool:
    """Delete a webhook and its dead letters; False when it is gone already."""
    connection.execute(sa.delete(WEBHOOK_LETTERS).where(_LETTERS.webhook_id == webhook_id))
    return connection.execute(sa.delete(WEBHOOKS).where(_COLUMNS.id == webhook_id)).rowcount == 1


def went_on(connection: sa.Connection, webhook: Webhook, to: Place, *, delivered: int) -> bool:
    """Note that all up to a place is delivered or nothing to it; False when it is not where it was any more."""
    told = {"failing_since": None, "last_error": None} if delivered else {}
    values = _at(to) | told | {"delivered": _COLUMNS.delivered + delivered}
    return _from(connection, webhook, values | {"attempts": 0, "next_try_at": None})


def failed(
    connection: sa.Connection, webhook: Webhook, *, now: float, next_try_at: float, error: str
) -> bool:
    """Note that the next event could not be delivered; False as with ``disabled``."""
    values = {
        "attempts": _COLUMNS.attempts + 1,
        "next_try_at": next_try_at,
        "last_error": error,
        "failing_since": sa.func.coalesce(_COLUMNS.failing_since, now),
    }
    return _from(connection, webhook, values, _posted_to(webhook))


def disabled(connection: sa.Connection, webhook: Webhook, *, reason: str, error: str) -> bool:
    """Disable a webhook; False when it is not where it was any more, or is sent to elsewhere."""
    values = {"enabled": False, "disabled_reason": reason, "last_error": error}
    return _from(connection, webhook, values, _posted_to(webhook))


def given_up(connection: sa.Connection, webhook: Webhook, event: Event, *, now: float, error: str) -> bool:
    """Make the next event a dead letter and go on after it; False as with ``disabled``."""
    values = _at(event.place) | {
        "attempts": 0,
        "next_try_at": None,
        "last_error": error,
        "failing_since": sa.func.coalesce(_COLUMNS.failing_since, now),
    }
    if not _from(connection, webhook, values, _posted_to(webhook)):
        return False
    connection.execute(
        sa.insert(WEBHOOK_LETTERS).values(
            webhook_id=webhook.id,
            event_number=event.place.number,
            event_part=event.place.part,
            type=event.row.type,
            attempts=webhook.attempts + 1,
            failed_at=now,
            error=error,
        )
    )
    return True


def letters(
    connection: sa.Connection, webhook_id: str, *, due: bool = False, limit: int | None = None
) -> list[Letter]:
    """Return a webhook's dead letters, oldest first; ``due``: only those that are to be delivered again."""
    statement = sa.select(WEBHOOK_LETTERS).where(_LETTERS.webhook_id == webhook_id)
    if due:
        statement = statement.where(_LETTERS.due)
    rows = connection.execute(statement.order_by(_LETTERS.number).limit(limit))
    return [
        Letter(
            number=row.number,
            webhook_id=row.webhook_id,
            place=Place(row.event_number, row.event_part),
            type=row.type,
            attempts=row.attempts,
            failed_at=row.failed_at,
            error=row.error,
            due=bool(row.due),
        )
        for row in rows
    ]


def count_letters(connection: sa.Connection) -> dict[str, int]:
    """Return how many dead letters each webhook has that has some, by id."""
    rows = connection.execute(sa.select(_LETTERS.webhook_id, sa.func.count()).group_by(_LETTERS.webhook_id))
    return {row[0]: row[1] for row in rows}


def of_numbers(connection: sa.Connection, webhook_id: str, numbers: Iterable[int]) -> set[int]:
    """Return those of some numbers that are a webhook's dead letters'."""
    statement = sa.select(_LETTERS.number).where(
        _LETTERS.webhook_id == webhook_id, _LETTERS.number.in_(list(numbers))
    )
    return set(connection.execute(statement).scalars())


def send_again(connection: sa.Connection, webhook_id: str, numbers: Iterable[int] | None) -> int:
    """Have dead letters delivered again, all of them where none is named; return how many."""
    statement = sa.update(WEBHOOK_LETTERS).where(_LETTERS.webhook_id == webhook_id)
    if numbers is not None:
        statement = statement.where(_LETTERS.number.in_(list(numbers)))
    return connection.execute(statement.values(due=True)).rowcount


def letter_done(connection: sa.Connection, letter: Letter, *, sent: bool) -> None:
    """Forget a dead letter that was delivered after all, or (not ``sent``) is about nothing any more."""
    found = connection.execute(sa.delete(WEBHOOK_LETTERS).where(_LETTERS.number == letter.number))
    if sent and found.rowcount:
        connection.execute(
            sa.update(WEBHOOKS)
            .where(_COLUMNS.id == letter.webhook_id)
            # It takes what it is sent: it has not failed since before.
            .values(delivered=_COLUMNS.delivered + 1, failing_since=None, last_error=None)
        )


def letter_failed(
    connection: sa.Connection, webhook: Webhook, letter: Letter, *, now: float, error: str
) -> None:
    """Note that a dead letter could not be delivered again; it stays due where the webhook is sent to elsewhere."""
    here = sa.select(_COLUMNS.id).where(_COLUMNS.id == webhook.id, _posted_to(webhook))
    connection.execute(
        sa.update(WEBHOOK_LETTERS)
        .where(_LETTERS.number == letter.number, here.exists())
        .values(due=False, attempts=_LETTERS.attempts + 1, failed_at=now, error=error)
    )


def _posted_to(webhook: Webhook) -> sa.ColumnElement[bool]:
    """What an attempt tells of: the address as it was."""
    return _COLUMNS.url == webhook.url


def _at(place: Place) -> dict[str, Any]:
    return {"reached_number": place.number, "reached_part": place.part}


def _from(
    connection: sa.Connection, webhook: Webhook, values: Mapping[str, Any], *more: sa.ColumnElement[bool]
) -> bool:
    """Change a webhook that is where it was when it was read."""
    statement = sa.update(WEBHOOKS).where(
        _COLUMNS.id == webhook.id,
        _COLUMNS.enabled,
        _COLUMNS.reached_number == webhook.reached.number,
        _COLUMNS.reached_part == webhook.reached.part,
        _COLUMNS.attempts == webhook.attempts,
        *more,
    )
    return connection.execute(statement.values(dict(values))).rowcount == 1


def _row(webhook: Webhook) -> dict[str, Any]:
    values = {name: getattr(webhook, name) for name in Webhook.__struct_fields__}
    place: Place = values.pop("reached")
    return values | _at(place) | {"format": webhook.format.value}


def _webhook(row: sa.Row[Any]) -> Webhook:
    values: dict[str, Any] = dict(zip(_COLUMNS.keys(), row, strict=True))
    place = Place(values.pop("reached_number"), values.pop("reached_part"))
    values |= {"format": Format(row.format), "enabled": bool(row.enabled), "customer": bool(row.customer)}
    return Webhook(reached=place, **values)
