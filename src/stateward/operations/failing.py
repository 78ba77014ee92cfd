"""What becomes of a webhook that did not take an event: tried again later, given up, or disabled (R15)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Set as AbstractSet
from typing import Final

import sqlalchemy as sa
import structlog

from stateward.clock import Clock
from stateward.domain.events import Event
from stateward.domain.locks import ActorKind
from stateward.domain.records import Actor
from stateward.domain.webhooks import Patience, Webhook
from stateward.operations.posting import NotDelivered
from stateward.store import operations, webhooks
from stateward.store.engine import Database

log = structlog.get_logger()

#: Of an error's sentence, kept.
_LONGEST: Final = 500


def said(error: NotDelivered) -> str:
    """Return what is kept of an error."""
    return str(error)[:_LONGEST]


class Failing:
    """Decides of failures, by the patience that the operator set."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        patience: Patience,
        jitter: Callable[[], float],
        steady: Callable[[], float] | None,
    ) -> None:
        """Keep the ports.

        Args:
            database: has the webhooks.
            clock: tells the time of day.
            patience: how often and how long.
            jitter: from 0 to 1: spreads attempts, so that those who failed together do not come again together.
            steady: seconds by a clock that nobody sets; None: the event loop's.
        """
        self._database = database
        self._clock = clock
        self._patience = patience
        self._jitter = jitter
        self._steady = steady
        #: By webhook: the begin of its failures, how long they had lasted when the first was seen here, and when.
        self._seen: dict[str, tuple[float, float, float]] = {}

    def waits(self, webhook: Webhook) -> bool:
        """Say whether the next attempt is later."""
        return self._patience.waits(webhook.next_try_at, self._clock.now())

    async def failed(self, webhook: Webhook, event: Event, error: NotDelivered) -> None:
        """Have an event tried again later, or give it up; disable a webhook that has failed for too long.

        Nothing happens to one that somebody changed since it was read.
        """
        says, now, patience = said(error), self._clock.now(), self._patience
        attempts = webhook.attempts + 1
        pause = patience.spread(attempts, self._jitter())
        dead = error.gone or self._for_too_long(webhook, now)

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

    def forget(self, kept: AbstractSet[str]) -> None:
        """Forget all webhooks but these."""
        for gone in self._seen.keys() - kept:
            del self._seen[gone]

    def _for_too_long(self, webhook: Webhook, now: float) -> bool:
        """Say whether nothing could be delivered for so long that nobody waits for it any more.

        While this process runs its own clock counts, and it must have seen failures for some time itself: a clock that
        was set, or a server that was off for days, has not tried anything meanwhile.
        """
        steady = asyncio.get_running_loop().time() if self._steady is None else self._steady()
        since = now if webhook.failing_since is None else webhook.failing_since
        seen = self._seen.get(webhook.id)
        if seen is None or seen[0] != since:
            seen = self._seen[webhook.id] = (since, max(now - since, 0.0), steady)
        here, most = steady - seen[2], self._patience.disable_after
        return here >= min(self._patience.longest_pause, most) and seen[1] + here >= most


def _disable(connection: sa.Connection, webhook: Webhook, says: str, now: float) -> None:
    reason = f"Nothing could be delivered any more: {says}"
    if not webhooks.disabled(connection, webhook, reason=reason, error=says):
        return
    operations.alert(
        connection,
        f"Webhook {webhook.name} was disabled. {reason}",
        at=now,
        actor=Actor(kind=ActorKind.SYSTEM, user_id="", project_id="", request_id=""),
        action="webhook_disabled",
        detail={"webhook": webhook.name, "webhook_id": webhook.id},
    )
