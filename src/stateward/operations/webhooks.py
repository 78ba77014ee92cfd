"""What operators do with webhooks; every change of them is in the audit trail, without secrets."""

from __future__ import annotations

import base64
import secrets
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec
import sqlalchemy as sa

from stateward.clock import Clock
from stateward.domain.errors import Conflict, Invalid, NotFound
from stateward.domain.events import EVENT_TYPES, PREFIX, WHOLE, Filter, Place, types_of
from stateward.domain.notifications import RECORDS
from stateward.domain.records import Actor
from stateward.domain.webhooks import (
    SECRET_BYTES,
    SECRET_PREFIX,
    Format,
    Letter,
    Webhook,
    check_secret,
    sign,
)
from stateward.operations.posting import Post, check_url
from stateward.store import operations, subjects, told, webhooks
from stateward.store.engine import Database

#: The type of what a test delivers; it is in no trail.
TEST_TYPE: Final = f"{PREFIX}webhook.test"
#: Unknown dead letters that a refusal names at most.
_NAMED: Final = 10
#: Of a webhook that begins anew.
_UNTRIED: Final[Mapping[str, Any]] = {
    "failing_since": None,
    "attempts": 0,
    "next_try_at": None,
    "last_error": None,
}
#: Dead letters of one answer at most.
_LETTERS: Final = 1000


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """A webhook as somebody wants it."""

    name: str
    url: str
    format: Format = Format.CLOUDEVENTS
    types: Sequence[str] = ()
    instance_id: str | None = None
    project_id: str | None = None
    host: str | None = None
    customer: bool = False
    #: Somebody's own; None: a new one is made.
    secret: str | None = None


def new_secret() -> str:
    """Return a secret that nobody has."""
    return SECRET_PREFIX + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()


class Webhooks:
    """Makes, changes and tests webhooks."""

    def __init__(self, database: Database, clock: Clock, post: Post, origin: str) -> None:
        """Keep the ports; ``origin``: the CloudEvents source."""
        self._database = database
        self._clock = clock
        self._post = post
        self._origin = origin

    def on(self, database: Database) -> Webhooks:
        """Return the same on another database: one that adds to what each transaction does."""
        return Webhooks(database, self._clock, self._post, self._origin)

    async def every(self) -> list[tuple[Webhook, int]]:
        """Return all, each with the number of its dead letters."""

        def work(connection: sa.Connection) -> list[tuple[Webhook, int]]:
            letters = webhooks.count_letters(connection)
            return [(each, letters.get(each.id, 0)) for each in webhooks.every(connection)]

        return await self._database.read(work)

    async def get(self, key: str) -> tuple[Webhook, int]:
        """Return one, by id or name, with the number of its dead letters.

        Raises:
            NotFound: there is none.
        """

        def work(connection: sa.Connection) -> tuple[Webhook, int]:
            found = _known(connection, key)
            return found, webhooks.count_letters(connection).get(found.id, 0)

        return await self._database.read(work)

    async def add(self, wanted: Wanted, actor: Actor) -> Webhook:
        """Make a webhook; it is told what happens from now on.

        Raises:
            Conflict: another is called so.
            Invalid: its address, types or secret are none, or its parts do not go together.
            NotFound: what it is to be about is not there.
        """
        if wanted.customer and wanted.project_id is None:
            raise Invalid("A webhook that is told what customers are told needs the project whose they are.")
        if wanted.customer and wanted.format is Format.NOVA:
            raise Invalid("Nova's notifications name hosts and people; customers are told in CloudEvents.")
        types = types_of(wanted.types)
        _check_words(wanted.format, types)
        secret = new_secret() if wanted.secret is None else check_secret(wanted.secret)
        now = self._clock.now()
        values = {name: getattr(wanted, name) for name in Wanted.__struct_fields__}
        values |= {"url": check_url(wanted.url), "types": types, "secret": secret}

        # What happened before is not told, and so must be in the trail.
        await self._database.seal()

        def work(connection: sa.Connection) -> Webhook:
            made = Webhook(
                id=str(uuid.uuid4()),
                old_secret=None,
                old_secret_until=None,
                enabled=True,
                disabled_reason=None,
                reached=Place(told.head(connection), WHOLE),
                failing_since=None,
                attempts=0,
                next_try_at=None,
                last_error=None,
                delivered=0,
                created_at=now,
                **values,
            )
            subjects.check(connection, made.wanted, made.reader)
            webhooks.insert(connection, made)
            _record(connection, actor, made, "add", {"url": made.url}, at=now)
            return made

        return await self._database.write(work)

    async def change(self, key: str, changes: Mapping[str, Any], actor: Actor) -> tuple[Webhook, int]:
        """Change a webhook's address or types, or whether it is told; what it was not told meanwhile, it is then.

        Returns:
            It as it is now, with the number of its dead letters.

        Raises:
            Invalid: the address or the types are none.
            NotFound: there is no such webhook.
        """
        values = dict(changes)
        if "url" in values:
            values["url"] = check_url(values["url"])
            # What was, was elsewhere.
            values |= _UNTRIED
        if "types" in values:
            values["types"] = types_of(values["types"])
        if values.get("enabled"):
            values |= {**_UNTRIED, "disabled_reason": None}
        elif "enabled" in values:
            values["disabled_reason"] = "An operator disabled it."

        def checked(found: Webhook) -> dict[str, Any]:
            _check_words(found.format, values.get("types", found.types))
            return values

        return await self._write(key, checked, actor, "change", {"changes": sorted(changes)})

    async def rotate(
        self, key: str, actor: Actor, *, overlap: float, secret: str | None
    ) -> tuple[Webhook, int]:
        """Give a webhook a new secret; the old one signs beside it for so many seconds.

        Returns:
            As ``change``.

        Raises:
            Invalid: the secret is none.
            NotFound: there is no such webhook.
        """
        fresh = new_secret() if secret is None else check_secret(secret)
        until = self._clock.now() + overlap

        def values(webhook: Webhook) -> dict[str, Any]:
            return {"secret": fresh, "old_secret": webhook.secret, "old_secret_until": until}

        return await self._write(key, values, actor, "rotate", {"overlap": overlap})

    async def delete(self, key: str, actor: Actor) -> None:
        """Delete a webhook and its dead letters.

        Raises:
            NotFound: there is none.
        """

        def work(connection: sa.Connection) -> None:
            found = _known(connection, key)
            webhooks.delete(connection, found.id)
            _record(connection, actor, found, "delete", {"url": found.url}, at=self._clock.now())

        await self._database.write(work)

    async def test(self, key: str) -> None:
        """Send a webhook something now, whether it is enabled or not.

        Raises:
            NotFound: there is none.
            NotDelivered: it was not taken.
        """
        webhook, _letters = await self.get(key)
        now, number = self._clock.now(), uuid.uuid4().hex
        body = msgspec.json.encode(
            {
                "specversion": "1.0",
                "id": number,
                "source": self._origin,
                "type": TEST_TYPE,
                "datacontenttype": "application/json",
                "data": {"webhook": webhook.name, "says": "An operator tests this webhook."},
            }
        )
        headers = sign(webhook.secrets(now), f"test_{number}", int(now), body)
        await self._post(webhook.url, body, {**headers, "content-type": "application/json"})

    async def letters(self, key: str) -> list[Letter]:
        """Return a webhook's dead letters, oldest first.

        Raises:
            NotFound: there is no such webhook.
        """

        def work(connection: sa.Connection) -> list[Letter]:
            return webhooks.letters(connection, _known(connection, key).id, limit=_LETTERS)

        return await self._database.read(work)

    async def redeliver(self, key: str, numbers: Sequence[int] | None, actor: Actor) -> int:
        """Have dead letters delivered again, all where none is named; return how many.

        Raises:
            Conflict: the webhook is disabled: nothing would be delivered.
            NotFound: there is no such webhook, or it has no dead letter of such a number; then nothing is done.
        """

        def work(connection: sa.Connection) -> int:
            found = _known(connection, key)
            if not found.enabled:
                raise Conflict(f"Webhook {found.name} is disabled; enable it first.")
            if numbers is not None:
                unknown = sorted(set(numbers) - webhooks.of_numbers(connection, found.id, numbers))
                if unknown:
                    which = ", ".join(map(str, unknown[:_NAMED])) + (" …" if unknown[_NAMED:] else "")
                    raise NotFound(
                        f"Webhook {found.name} has no dead letter {which}; nothing is delivered again."
                    )
            count = webhooks.send_again(connection, found.id, numbers)
            _record(connection, actor, found, "redeliver", {"letters": count}, at=self._clock.now())
            return count

        return await self._database.write(work)

    async def _write(
        self,
        key: str,
        values: Callable[[Webhook], Mapping[str, Any]],
        actor: Actor,
        what: str,
        detail: Mapping[str, Any],
    ) -> tuple[Webhook, int]:
        def work(connection: sa.Connection) -> tuple[Webhook, int]:
            found = _known(connection, key)
            letters = webhooks.count_letters(connection).get(found.id, 0)
            changes = values(found)
            if not changes:
                return found, letters
            changed = webhooks.change(connection, found.id, changes)
            if changed is None:
                raise NotFound(f"Webhook {key} could not be found.")
            _record(connection, actor, changed, what, detail, at=self._clock.now())
            return changed, letters

        return await self._database.write(work)


def _check_words(form: Format, types: tuple[str, ...]) -> None:
    """Refuse what would never be told.

    Raises:
        Invalid: Nova has no word for any of the types.
    """
    rows = [row for row in EVENT_TYPES if row.records & RECORDS]
    if form is Format.NOVA and not any(Filter(types=types).wants(row) for row in rows):
        names = " and ".join(row.name for row in rows)
        raise Invalid(f"Nova's notifications are of {names} alone; of these types nothing would be sent.")


def _known(connection: sa.Connection, key: str) -> Webhook:
    found = webhooks.get(connection, key)
    if found is None:
        raise NotFound(f"Webhook {key} could not be found.")
    return found


def _record(
    connection: sa.Connection,
    actor: Actor,
    webhook: Webhook,
    what: str,
    detail: Mapping[str, Any],
    *,
    at: float,
) -> None:
    operations.record(
        connection,
        at=at,
        event="webhook",
        actor=actor,
        instance_id=None,
        action=what,
        detail={"webhook": webhook.name, "webhook_id": webhook.id, **detail},
    )
