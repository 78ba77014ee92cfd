"""Delivery to webhooks: each in the order of the trail, at least once, without holding up anything else (R15).

How far a webhook has been told is in the database, so a kill loses nothing: what was sent and not noted is sent again,
under the same id. One task for each webhook that has something to be told, a few at a time; who is slow or gone waits
with its like, with the trail as its queue. Before each message the webhook is read again: it goes where the webhook is
sent to now, signed by the secrets of now, or not at all.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Set as AbstractSet
from functools import partial
from typing import Any, Final

import msgspec
import sqlalchemy as sa
import structlog

from stateward.clock import Clock
from stateward.domain.events import TO, WHOLE, Event, Place, cloud_event
from stateward.domain.notifications import notification
from stateward.domain.webhooks import Format, Letter, Patience, Webhook, message_id, sign
from stateward.operations.changes import Changes
from stateward.operations.failing import Failing, said
from stateward.operations.posting import NotDelivered, Post
from stateward.store import instances, intervals, told, webhooks
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
#: Seconds of dead letters, until what is new has its turn.
_TURN: Final = 1.0

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


class _Changed(Exception):
    """Somebody changed or deleted the webhook since it was read; the next look begins with what it is then."""


def _next(webhook: Webhook, place: Place, connection: sa.Connection) -> told.Told:
    """Return the events after a place that a webhook wants.

    Raises:
        _Changed: the webhook is not what it was.
    """
    found = told.after(connection, place, webhook.wanted, webhook.reader, records=_BATCH)
    # After the reading: where the terms are the same still, none of what is passed over came after they were changed.
    if not webhooks.stands(connection, webhook):
        raise _Changed
    return found


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
        steady: Callable[[], float] | None = None,
    ) -> None:
        """Keep the ports.

        Args:
            database: has the trail, the webhooks and how far they got.
            clock: tells the time of day.
            changes: tells when there may be news.
            post: sends.
            body: writes.
            patience: how often and how long.
            at_once: deliveries at a time at most to those that took their last message, and as many to the others.
            jitter: as ``Failing`` has it.
            steady: as ``Failing`` has it.
        """
        self._database = database
        self._clock = clock
        self._changes = changes
        self._post = post
        self._body = body
        self._failing = Failing(database, clock, patience or Patience(), jitter, steady)
        self._slots = asyncio.Semaphore(at_once)
        #: Whoever does not answer holds one for as long as an attempt may take; they hold up each other alone.
        self._slots_of_failing = asyncio.Semaphore(at_once)
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
                except Exception:
                    log.exception("webhooks could not be looked at; it is tried again")
                await follower.wait(_PERIOD)
                await asyncio.sleep(_PAUSE)

    async def look(self) -> None:
        """Begin to deliver to every webhook that may have something to be told, and is not being told now."""
        found = await self._database.read(webhooks.every)
        self._forget({each.id for each in found} | self._busy.keys())
        if not found:
            return
        await self._database.seal()
        last = await self._database.read(told.head)
        for webhook in found:
            if webhook.enabled and webhook.id not in self._busy:
                task = asyncio.create_task(self._serve(webhook, last), name=f"webhook {webhook.name}")
                self._busy[webhook.id] = task
                task.add_done_callback(partial(self._done, webhook.id))

    def _forget(self, kept: AbstractSet[str]) -> None:
        """Forget the webhooks that are gone."""
        notes: tuple[dict[str, Any], ...] = (self._passed, self._sent, self._noted)
        for each in notes:
            for gone in each.keys() - kept:
                del each[gone]
        self._failing.forget(kept)

    def _done(self, webhook_id: str, _task: asyncio.Task[None]) -> None:
        self._busy.pop(webhook_id, None)

    async def settle(self) -> None:
        """Return when nothing is being delivered: for tests."""
        while self._busy:
            await asyncio.gather(*self._busy.values())

    async def _serve(self, webhook: Webhook, last: int) -> None:
        try:
            await self._again(webhook)
            if not self._failing.waits(webhook):
                await self._on(webhook, last)
        except _Changed:
            pass
        except StoreUnavailable as error:
            log.warning("a webhook waits for the database", webhook=webhook.name, error=str(error))
        except Exception:
            # One webhook's fault must not stop the others; the next look tries again.
            log.exception("a webhook could not be told", webhook=webhook.name)

    async def _on(self, webhook: Webhook, last: int) -> None:
        """Deliver until nothing is left, or it fails.

        Raises:
            _Changed: the webhook is not what it was; how far it got till then counts.
        """
        place = max(webhook.reached, self._passed.get(webhook.id, webhook.reached))
        while place.number <= last and place != Place(last, WHOLE):
            batch = await self._database.read(partial(_next, webhook, place))
            for event in batch.events:
                try:
                    sent = await self._send(webhook, event)
                except NotDelivered as error:
                    reached = await self._note(webhook, place)
                    if reached is not None and reached.terms == webhook.terms:
                        await self._failing.failed(reached, event, error)
                    return
                if not sent:
                    continue
                place = event.place
                self._passed[webhook.id] = place
                self._sent[webhook.id] = self._sent.get(webhook.id, 0) + 1
            place = max(place, Place(batch.upto, WHOLE))
            self._passed[webhook.id] = place
            if not batch.more:
                break
            if self._is_to_be_noted(webhook):
                reached = await self._note(webhook, place)
                if reached is None:
                    return
                webhook = reached
        if self._is_to_be_noted(webhook):
            await self._note(webhook, place)

    def _is_to_be_noted(self, webhook: Webhook) -> bool:
        noted = self._noted.get(webhook.id)
        return noted is None or asyncio.get_running_loop().time() - noted >= _NOTED

    async def _send(self, webhook: Webhook, event: Event) -> bool:
        """Send an event; False: the webhook's format has no word for it.

        Raises:
            NotDelivered: it was not taken.
            _Changed: the webhook is not what it was.
        """

        def work(connection: sa.Connection) -> bytes | None:
            if not webhooks.stands(connection, webhook):
                raise _Changed
            return self._body(connection, webhook, event)

        async with self._slots if webhook.failing_since is None else self._slots_of_failing:
            # After the wait for a slot, which may be long.
            body = await self._database.read(work)
            if body is None:
                return False
            now = self._clock.now()
            headers = sign(webhook.secrets(now), message_id(event.place), int(now), body)
            await self._post(webhook.url, body, {**headers, "content-type": _CONTENT_TYPE})
        return True

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
        self._noted[webhook.id] = asyncio.get_running_loop().time()
        # Whatever came of it: what is noted counts from now on.
        self._sent.pop(webhook.id, None)
        self._passed.pop(webhook.id, None)
        return found

    async def _again(self, webhook: Webhook) -> None:
        """Deliver the dead letters that somebody wants delivered: for a while, or until one is not taken."""
        clock = asyncio.get_running_loop().time
        began = clock()
        found = await self._database.read(
            lambda connection: webhooks.letters(connection, webhook.id, due=True, limit=_BATCH)
        )
        for letter in found:
            if not await self._send_letter(webhook, letter) or clock() - began >= _TURN:
                return

    async def _send_letter(self, webhook: Webhook, letter: Letter) -> bool:
        """Deliver a dead letter, or forget one that is about nothing any more; False: it was not taken."""
        event = await self._database.read(lambda connection: told.one(connection, letter.place))
        try:
            sent = event is not None and await self._send(webhook, event)
        except NotDelivered as error:
            says, now = said(error), self._clock.now()
            await self._database.write(
                lambda connection: webhooks.letter_failed(connection, webhook, letter, now=now, error=says)
            )
            return False
        await self._database.write(lambda connection: webhooks.letter_done(connection, letter, sent=sent))
        return True


#: CloudEvents' JSON form; Nova's payloads are JSON too.
_CONTENT_TYPE: Final = "application/json"
