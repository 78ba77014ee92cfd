"""Servers whose stacked locks do not work, each in a way that a review may let pass; run as a program.

They show that ``stack_clients`` and the search over ``stack_model`` find what they are there to find.
``python -m tests.linear.broken_stack FAULT`` takes the arguments of ``stateward`` after the fault's name.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Final
from unittest import mock

import sqlalchemy as sa
from starlette.types import Message, Receive, Scope, Send

from stateward import plane, server
from stateward.api.app import Ready, build
from stateward.api.compute import services
from stateward.api.images import Images
from stateward.cli.main import main
from stateward.clock import Clock
from stateward.domain.actions import Action
from stateward.domain.locks import Lock
from stateward.domain.records import Actor
from stateward.operations import finishing, locking, stacking
from stateward.operations.expiry import Expiry
from stateward.operations.finishing import Ended
from stateward.operations.immediate import Done
from stateward.operations.locking import Locking
from stateward.store import instances, locks, overrides
from stateward.store.engine import Database
from stateward.store.tables import LOCKS, OVERRIDES
from tests.linear import broken

#: Seconds by which a clock is ahead.
_AHEAD: Final = 0.15
#: Seconds until somebody looks again.
_SOON: Final = 0.02

_supersede = finishing.supersede


class Watched(broken.Watched):
    """An application whose answers are watched: for any lock that was placed, and then a reading."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        locked, placed = False, 201 if scope.get("path", "").endswith("/locks") else 202

        async def hear(message: Message) -> None:
            nonlocal locked
            locked = locked or (message["type"] == "http.response.start" and message["status"] == placed)
            await send(message)

        await super().__call__(scope, receive, hear)
        if locked and scope["method"] == "POST" and scope["path"].endswith(("/locks", "/holds")):
            broken.MOMENT.locked()


class Ahead:
    """A clock that is ahead of the one that requests are told the time by."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def now(self) -> float:
        """Return seconds since the epoch, and some."""
        return self._clock.now() + _AHEAD


class EarlyExpiry(Expiry):
    """Looks for locks whose time is up by a clock that is ahead."""

    def __init__(self, database: Any, clock: Clock, warning: float) -> None:
        super().__init__(database, Ahead(clock), warning)


class EarlyLocking(Locking):
    """Takes them away by that clock, too."""

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self._now = Ahead(self._admission.clock).now


class StaleExpiry(Expiry):
    """Takes locks away by what it read of their holder and name when it first saw them."""

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self._read: dict[tuple[str, str, str], Lock] = {}

    async def look(self, locking: Locking) -> float:
        """Expire what was read, whatever is there now."""
        for lock in await self._database.read(locks.expiring):
            self._read.setdefault((lock.scope, lock.holder, lock.name), lock)
        for known, lock in list(self._read.items()):
            if (lock.expires_at or 0.0) <= self._clock.now():
                del self._read[known]
                await _take_away(self._database, lock, LOCKS.c.holder == lock.holder)
        return _SOON


class ByName(Locking):
    """Releases all locks of a name, whoever placed them."""

    async def release(self, instance_id: str, lock_id: str, actor: Actor, **options: Any) -> Done:
        """Release one, and those that are called the same."""
        lock = await self._database.read(lambda connection: locks.get(connection, lock_id))
        done = await super().release(instance_id, lock_id, actor, **options)
        if lock is not None:
            await _take_away(self._database, lock)
        return done


async def _take_away(database: Database, lock: Lock, *conditions: sa.ColumnElement[bool]) -> None:
    """Delete all locks of a name on one instance."""

    def work(connection: sa.Connection) -> None:
        held = instances.hold(connection, lock.instance_id or "")
        statement = sa.delete(LOCKS).where(
            LOCKS.c.scope == lock.scope, LOCKS.c.name == lock.name, *conditions
        )
        connection.execute(statement)
        if held is not None:
            stacking.restack(connection, held)

    await database.write(work)


def polite(connection: sa.Connection, instance_id: str, now: float, message: str, *, by: Action) -> Ended:
    """Supersede what is in flight, unless it is a hold that comes."""
    if by.name == "hold":
        return Ended([], [])
    return _supersede(connection, instance_id, now, message, by=by)


def never_used_up(
    connection: sa.Connection, lock: Lock, instance_id: str, user_id: str, _now: float
) -> str | None:
    """Find an admin's leave to pass a lock, and leave it as good as it was."""
    query = sa.select(OVERRIDES.c.id).where(
        OVERRIDES.c.instance_id == instance_id,
        OVERRIDES.c.lock_id == lock.id,
        OVERRIDES.c.user_id == user_id,
    )
    found: str | None = connection.execute(query).scalar()
    return found


#: What is put in the place of what.
FAULTS: Final[dict[str, dict[tuple[Any, str], Callable[..., Any]]]] = {
    "check-then-act": {(plane, "Admission"): broken.CheckThenAct},
    "early-expiry": {(plane, "Expiry"): EarlyExpiry, (plane, "Locking"): EarlyLocking},
    "stale-expiry": {(plane, "Expiry"): StaleExpiry},
    "releases-another-with-it": {(services, "Locking"): ByName},
    "releases-anybody's": {(locking, "may_release"): lambda *_: True},
    "hold-overtakes-nothing": {(finishing, "supersede"): polite},
    "override-is-not-used-up": {(overrides, "take"): never_used_up},
}


def watched(those: services.Services, images: Images, ready: Ready) -> Any:
    """Build the application, watched."""
    return Watched(build(those, images, ready))


if __name__ == "__main__":
    for (module, name), part in ({(server, "build"): watched} | FAULTS[sys.argv.pop(1)]).items():
        mock.patch.object(module, name, part).start()
    main()
