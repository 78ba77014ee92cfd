"""Delivery to webhooks: each in the order of the trail, at least once, without holding up anything else (R15).

How far a webhook has been told is in the database, so a kill loses nothing: what was sent and not noted is sent again,
under the same id. One task for each webhook that has something to be told, a few at a time; who is slow or gone waits
alone, with the trail as its queue.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable
from functools import partial
from typing import Final

import msgspec
import sqlalchemy as sa
import structlog

from stateward.clock import Clock
from stateward.domain.events import TO, WHOLE, Event, Place, cloud_event
from stateward.domain.locks import ActorKind
from stateward.domain.notifications import notification
from stateward.domain.records import Actor
from stateward.domain.webhooks import Format, Letter, Patience, Webhook, message_id, sign
from stateward.operations.changes import Changes
from stateward.operations.posting import NotDelivered, Post
from stateward.store import instances, intervals, operations, told, webhooks
from stateward.store.engine import Database, StoreUnavailable

log = structlog.get_logger()

#: Seconds between two looks without a signal.
_PERIOD: Final = 1.0
#: Seconds after a signal: many changes of one moment are read at once.
_PAUSE: Final = 0.05
#: Records read at once for a webhook.
_BATCH: Final = 50
#: Seconds after which it is noted how far a webhook got: what was sent since would be sent again after a kill.
_NOTED: Final = 1.0
#: Of an error's sentence, kept.
_LONGEST: Final = 500

#: Makes the body of an event in a webhook's format; None: that format has no word for it.
Body = Callable[[sa.Connection, Webhook, Event], bytes | None]


def bodies(origin: str) -> Body:
    """Return what makes bodies: CloudEvents of this source, or Nova's notifications."""

    def body(connection: sa.Connection, webhook: Webhook, event: Event) -> bytes | None:
        if webhook.format is Format.CLOUDEVENTS:
            return msgspec.json.encode(cloud_event(event, webhook.reader, origin))
        entry = event.source.entry
        instance = None if entry.instance_id is None else instances.get(connection, entry.instance_id)
        if instance is None:
            return None
        were = intervals.at(connection, instance.id, entry.at)
        # What a record says that it led to counts: two changes in one moment have one time.
        state = event.detail().get(TO) or were.get(intervals.RECORDED)
        made = notification(event, instance, state=state, observed=were.get(intervals.OBSERVED))
        return None if made is None else msgspec.json.encode(made)

    return body


class Courier:
    """Delivers to webhooks."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        changes: Changes,
        post: Post,
        body: Body,
        *,
        patience: Patience | None = None,
        at_once: int = 8,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """Keep the ports.

        Args:
            database: has the trail, the webhooks and how far they got.
            clock: tells the time of day.
            changes: tells when there may be news.
            post: sends.
            body: writes.
            patience: how often and how long.
            at_once: deliveries at a time at most.
            jitter: from 0 to 1: spreads attempts, so that those who failed together do not come again together.
        """
        self._database = database
        self._clock = clock
        self._changes = changes
        self._post = post
        self._body = body
        self._patience = patience or Patience()
        self._slots = asyncio.Semaphore(at_once)
        self._jitter = jitter
        self._task: asyncio.Task[None] | None = None
        self._busy: dict[str, asyncio.Task[None]] = {}
        #: How far webhooks got beyond what is noted, and how many events were sent on the way.
        self._passed: dict[str, Place] = {}
        self._sent: dict[str, int] = {}
        self._noted: dict[str, float] = {}

    async def start(self) -> None:
        """Deliver from now on."""
        self._task = asyncio.create_task(self._run(), name="webhooks")

    async def stop(self) -> None:
        """Stop and note how far it got; what was not noted as delivered is delivered again by the next life."""
        for task in [*([self._task] if self._task is not None else []), *self._busy.values()]:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        with contextlib.suppress(StoreUnavailable):
            for webhook in await self._database.read(webhooks.every):
                if webhook.id in self._passed:
                    await self._note(webhook, max(webhook.reached, self._passed[webhook.id]))

    async def _run(self) -> None:
        with self._changes.following(None) as follower:
            while True:
                try:
                    await self.look()
                except StoreUnavailable as error:
                    log.warning("webhooks wait for the database", error=str(error))
                await follower.wait(_PERIOD)
                await asyncio.sleep(_PAUSE)

    async def look(self) -> None:
        """Begin to deliver to every webhook that may have something to be told, and is not being told now."""
        found = await self._database.read(webhooks.every)
        if not found:
            return
        await self._database.seal()
        last = await self._database.read(told.head)
        for webhook in found:
            if webhook.enabled and webhook.id not in self._busy:
                task = asyncio.create_task(self._serve(webhook, last), name=f"webhook {webhook.name}")
                self._busy[webhook.id] = task
                task.add_done_callback(partial(self._done, webhook.id))

    def _done(self, webhook_id: str, _task: asyncio.Task[None]) -> None:
        self._busy.pop(webhook_id, None)

    async def settle(self) -> None:
        """Return when nothing is being delivered: for tests."""
        while self._busy:
            await asyncio.gather(*self._busy.values())

    async def _serve(self, webhook: Webhook, last: int) -> None:
        try:
            await self._again(webhook)
            if (webhook.next_try_at or 0.0) <= self._clock.now():
                await self._on(webhook, last)
        except StoreUnavailable as error:
            log.warning("a webhook waits for the database", webhook=webhook.name, error=str(error))
        except Exception:
            # One webhook's fault must not stop the others; the next look tries again.
            log.exception("a webhook could not be told", webhook=webhook.name)

    async def _on(self, webhook: Webhook, last: int) -> None:
        """Deliver until nothing is left, or it fails."""
        place = max(webhook.reached, self._passed.get(webhook.id, webhook.reached))
        while place.number <= last and place != Place(last, WHOLE):
            at = place
            batch = await self._database.read(
                lambda connection: told.after(connection, at, webhook.wanted, webhook.reader, records=_BATCH)  # noqa: B023 (read before the loop goes on)
            )
            for event in batch.events:
                body = await self._written(webhook, event)
                if body is None:
                    continue
                try:
                    await self._send(webhook, event, body)
                except NotDelivered as error:
                    reached = await self._note(webhook, place)
                    if reached is not None:
                        await self._failed(reached, event, error)
                    return
                place = event.place
                self._passed[webhook.id] = place
                self._sent[webhook.id] = self._sent.get(webhook.id, 0) + 1
            place = max(place, Place(batch.upto, WHOLE))
            self._passed[webhook.id] = place
            if not batch.more:
                break
            if self._clock.now() - self._noted.get(webhook.id, 0.0) >= _NOTED:
                reached = await self._note(webhook, place)
                if reached is None:
                    return
                webhook = reached
        if self._clock.now() - self._noted.get(webhook.id, 0.0) >= _NOTED:
            await self._note(webhook, place)

    async def _written(self, webhook: Webhook, event: Event) -> bytes | None:
        return await self._database.read(lambda connection: self._body(connection, webhook, event))

    async def _send(self, webhook: Webhook, event: Event, body: bytes) -> None:
        now = self._clock.now()
        headers = sign(webhook.secrets(now), message_id(event.place), int(now), body)
        async with self._slots:
            await self._post(webhook.url, body, {**headers, "content-type": _CONTENT_TYPE})

    async def _note(self, webhook: Webhook, place: Place) -> Webhook | None:
        """Note how far a webhook got, and return it as it is then; None when somebody changed it meanwhile."""
        sent = self._sent.get(webhook.id, 0)
        if place == webhook.reached:
            return webhook

        def work(connection: sa.Connection) -> Webhook | None:
            if not webhooks.went_on(connection, webhook, place, delivered=sent):
                return None
            return webhooks.get(connection, webhook.id)

        found = await self._database.write(work)
        self._noted[webhook.id] = self._clock.now()
        # Whatever came of it: what is noted counts from now on.
        self._sent.pop(webhook.id, None)
        self._passed.pop(webhook.id, None)
        return found

    async def _failed(self, webhook: Webhook, event: Event, error: NotDelivered) -> None:
        """Have an event tried again later, or give it up; disable a webhook that has failed for too long."""
        says, now, patience = str(error)[:_LONGEST], self._clock.now(), self._patience
        attempts = webhook.attempts + 1
        pause = patience.pause(attempts) * (0.8 + 0.4 * self._jitter())
        dead = error.gone or now - (webhook.failing_since or now) >= patience.disable_after

        def work(connection: sa.Connection) -> None:
            if dead:
                _disable(connection, webhook, says, now)
            elif attempts >= patience.attempts:
                webhooks.given_up(connection, webhook, event, now=now, error=says)
            else:
                webhooks.failed(connection, webhook, now=now, next_try_at=now + pause, error=says)

        await self._database.write(work)
        log.warning(
            "a webhook was not told",
            webhook=webhook.name,
            told=str(event.place),
            attempts=attempts,
            error=says,
        )

    async def _again(self, webhook: Webhook) -> None:
        """Deliver the dead letters that somebody wants delivered."""
        found = await self._database.read(
            lambda connection: webhooks.letters(connection, webhook.id, due=True)
        )
        for letter in found:
            await self._send_letter(webhook, letter)

    async def _send_letter(self, webhook: Webhook, letter: Letter) -> None:
        event = await self._database.read(lambda connection: told.one(connection, letter.place))
        body = None if event is None else await self._written(webhook, event)
        try:
            if event is not None and body is not None:
                await self._send(webhook, event, body)
        except NotDelivered as error:
            says, now = str(error)[:_LONGEST], self._clock.now()
            await self._database.write(
                lambda connection: webhooks.letter_failed(connection, letter.number, now=now, error=says)
            )
        else:
            await self._database.write(lambda connection: webhooks.letter_sent(connection, letter.number))


#: CloudEvents' JSON form; Nova's payloads are JSON too.
_CONTENT_TYPE: Final = "application/json"


def _disable(connection: sa.Connection, webhook: Webhook, says: str, now: float) -> None:
    reason = f"Nothing could be delivered any more: {says}"
    webhooks.change(connection, webhook.id, {"enabled": False, "disabled_reason": reason, "last_error": says})
    operations.record(
        connection,
        at=now,
        event="alert",
        actor=Actor(kind=ActorKind.SYSTEM, user_id="", project_id="", request_id=""),
        instance_id=None,
        action="webhook_disabled",
        detail={
            "webhook": webhook.name,
            "webhook_id": webhook.id,
            "says": f"Webhook {webhook.name} was disabled. {reason}",
        },
    )
