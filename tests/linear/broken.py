"""Servers whose locks do not work, each in a way that reviews have let pass elsewhere; run as a program.

They show that the clients and the checker find what they are there to find. ``python -m tests.linear.broken FAULT``
takes the arguments of ``stateward`` after the fault's name.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, Final, cast
from unittest import mock

import sqlalchemy as sa
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stateward import plane, server
from stateward.api.app import Ready, build
from stateward.api.compute.services import Services
from stateward.api.images import Images
from stateward.cli.main import main
from stateward.domain import admit
from stateward.domain.actions import Action
from stateward.domain.errors import Refusal, Refused
from stateward.domain.locks import ActorKind
from stateward.domain.records import Actor, Instance
from stateward.operations.admission import Admission, Admitted
from stateward.operations.immediate import Done, Immediate
from stateward.store import instances

#: Seconds that something is held for at most when what it waits for does not come.
_AT_MOST: Final = 0.2

_conditions = admit.conditions


class Moment:
    """Lets an operation wait until a lock was placed and answered, and then a reading begun and answered."""

    def __init__(self) -> None:
        self._locks = 0
        self._waiting: list[tuple[int, asyncio.Event]] = []

    def locked(self) -> None:
        """Note that a lock was answered."""
        self._locks += 1

    def read(self, locks: int) -> None:
        """Note that a reading was answered that began after so many locks."""
        for since, event in self._waiting:
            if locks > since:
                event.set()

    @property
    def locks(self) -> int:
        """How many locks were answered."""
        return self._locks

    async def come(self) -> None:
        """Wait for it."""
        event = asyncio.Event()
        entry = (self._locks, event)
        self._waiting.append(entry)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_AT_MOST):
                await event.wait()
        self._waiting.remove(entry)


MOMENT: Final = Moment()


class Watched:
    """An application whose answers are watched for the moment."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.routes = getattr(app, "routes", [])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        locks = MOMENT.locks
        body = b""

        async def hear() -> Message:
            nonlocal body
            message = await receive()
            body += message.get("body", b"")
            return message

        await self._app(scope, hear, send)
        if scope["type"] == "http" and scope["method"] == "GET":
            MOMENT.read(locks)
        elif body.startswith(b'{"lock"'):
            MOMENT.locked()


class LocksFirst(Admission):
    """Looks at the locks in the row as it was read before; all else is in the guarded UPDATE as it should be."""

    async def admit(
        self, action: Action | tuple[Action, ...], instance_id: str, actor: Actor, **options: Any
    ) -> Admitted:
        """Check the locks, and act."""
        # All rows of one action are guarded alike.
        row = action[0] if isinstance(action, tuple) else action
        found = await self.look(instance_id)
        if found is None:
            raise Refused(Refusal.NOT_FOUND, instance_id=instance_id)
        of_locks = tuple(each for each in _conditions(row, actor.kind) if each.refusal is Refusal.LOCKED)
        refused = admit.explain(of_locks, row, found)
        if refused is not None:
            raise refused
        if of_locks:
            await self.between()
        return await super().admit(action, instance_id, actor, **options)

    async def look(self, instance_id: str) -> Instance | None:
        """Read the row."""
        return await self.database.read(lambda connection: instances.get(connection, instance_id))

    async def between(self) -> None:
        """Come between the check and the act."""

    def admit_in(
        self,
        connection: sa.Connection,
        action: Action | tuple[Action, ...],
        instance_id: str,
        actor: Actor,
        **options: Any,
    ) -> Admitted:
        """Act on all conditions but the locks'."""

        def conditions(*arguments: Any, **more: Any) -> tuple[admit.Condition, ...]:
            return tuple(
                each for each in _conditions(*arguments, **more) if each.refusal is not Refusal.LOCKED
            )

        with mock.patch.object(admit, "conditions", conditions):
            return super().admit_in(connection, action, instance_id, actor, **options)


class CheckThenAct(LocksFirst):
    """Checks in one transaction and acts in another, and a lock is placed, answered and read in between."""

    async def between(self) -> None:
        """Let that happen."""
        await MOMENT.come()


class StaleLocks(LocksFirst):
    """Looks at the locks in a copy of the row that may be a moment old."""

    _copy: Instance | None = None

    async def look(self, instance_id: str) -> Instance | None:
        """Return the copy."""
        if self._copy is None or self._copy.id != instance_id:
            self._copy = await super().look(instance_id)
            asyncio.get_running_loop().call_later(0.05, self._forget)
        return self._copy

    def _forget(self) -> None:
        self._copy = None


class EarlyAnswer(Immediate):
    """Answers a lock before it is placed."""

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self._later = set[asyncio.Task[Done]]()

    async def lock(
        self, instance_id: str, actor: Actor, *, reason: str | None, project_id: str | None
    ) -> Done:
        """Have it placed soon."""

        async def place() -> Done:
            await asyncio.sleep(0.02)
            return await Immediate.lock(self, instance_id, actor, reason=reason, project_id=project_id)

        task = asyncio.create_task(place())
        self._later.add(task)
        task.add_done_callback(self._later.discard)
        return cast("Done", SimpleNamespace(in_flight=None))


class FreesBoth(Immediate):
    """Takes the owner's lock away together with the provider's."""

    async def unlock(self, instance_id: str, actor: Actor, *, project_id: str | None) -> Done:
        """Unlock, and once more."""
        done = await super().unlock(instance_id, actor, project_id=project_id)
        if actor.kind is ActorKind.ADMIN:
            await super().unlock(instance_id, actor, project_id=project_id)
        return done


FAULTS: Final[dict[str, dict[str, Callable[..., Any]]]] = {
    "check-then-act": {"Admission": CheckThenAct},
    "stale-locks": {"Admission": StaleLocks},
    "early-answer": {"Immediate": EarlyAnswer},
    "frees-both": {"Immediate": FreesBoth},
}


def watched(services: Services, images: Images, ready: Ready) -> Any:
    """Build the application, watched."""
    return Watched(build(services, images, ready))


if __name__ == "__main__":
    for name, part in FAULTS[sys.argv.pop(1)].items():
        assert hasattr(plane, name)
        setattr(plane, name, part)
    assert hasattr(server, "build")
    server.build = watched
    main()
