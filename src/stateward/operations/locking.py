"""Locks placed, released and expired by the native API, on instances and on projects (B2, R3-R6).

On an instance each is an immediate action by its row of the table. A project's lock is written to all its instances
in one transaction, and inherited by those made later.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from typing import Any, Final, Self

import sqlalchemy as sa

from stateward.domain.actions import BY_KEY, WAYS
from stateward.domain.bodies import Hold
from stateward.domain.errors import Forbidden, NotFound
from stateward.domain.locks import Lock, LockKind, may_release
from stateward.domain.records import Actor, Instance
from stateward.operations import stacking
from stateward.operations.admission import Admission, Admitted
from stateward.operations.immediate import Done, Immediate, system_actor
from stateward.operations.preparing import Wanted
from stateward.operations.refusals import recorded
from stateward.operations.stacking import LockWish
from stateward.store import instances, locks, operations
from stateward.store.engine import Database

#: The rule that refuses who may not release a lock.
RELEASE: Final = "stateward:locks:release"


class Locking:
    """Places and takes away locks."""

    def __init__(self, admission: Admission, immediate: Immediate, expiring: Callable[[], None]) -> None:
        """Use an admission and its immediate actions; ``expiring`` is called when a lock was placed that expires."""
        self._admission = admission
        self._database = admission.database
        self._now = admission.clock.now
        self._immediate = immediate
        self._expiring = expiring

    def on(self, database: Database) -> Self:
        """Return the same on another database: one that adds to what each transaction does."""
        return type(self)(self._admission.on(database), self._immediate.on(database), self._expiring)

    async def place(
        self, instance_id: str, actor: Actor, wish: LockWish, *, overtake: bool, project_id: str | None
    ) -> Done:
        """Place a lock on an instance.

        Args:
            instance_id: which instance.
            actor: who asks.
            wish: the lock.
            overtake: end what is in flight (B1); otherwise it is finished, and the answer names it.
            project_id: the caller sees only this project; None for all.

        Raises:
            Conflict: the actor has one of this kind and name there.
            Invalid: the wish's parts do not go together.
            Refused: there is no such instance for the caller.
        """
        if overtake:
            rows = (BY_KEY["place_lock_overtaking"],)
            done: Admitted | Done = await self._admission.admit(
                rows, instance_id, actor, wanted=Wanted(lock=wish), project_id=project_id
            )
        else:
            done = await self._place(instance_id, actor, wish, project_id=project_id)
        if wish.expires_at is not None:
            self._expiring()
        return done if isinstance(done, Done) else Done(admitted=done, in_flight=None)

    async def hold(self, instance_id: str, actor: Actor, wanted: Hold) -> Admitted:
        """Place a hold, and have the guest go off as is wanted; what is in flight is overtaken (R6).

        Raises:
            Conflict: the actor has a hold of this name there.
            Refused: there is no such instance.
        """
        wish = LockWish(
            kind=LockKind.HOLD,
            holder=actor.user_id,
            name=wanted.name or f"hold-{uuid.uuid4().hex[:8]}",
            reason=wanted.reason,
            ticket=wanted.ticket,
            off=wanted.shutdown != "none",
        )
        return await self._admission.admit(
            WAYS[wanted.shutdown],
            instance_id,
            actor,
            body=wanted,
            wanted=Wanted(lock=wish),
            why=wanted.reason,
        )

    async def _place(self, instance_id: str, actor: Actor, wish: LockWish, *, project_id: str | None) -> Done:
        placed: list[Lock] = []

        def effect(
            connection: sa.Connection, instance: Instance, now: float
        ) -> tuple[Instance, Mapping[str, Any]]:
            instance, lock = stacking.place_in(connection, instance, wish, now)
            # Not added to: what a write does that is tried again counts once.
            placed[:] = [lock]
            return instance, {"lock": stacking.told(lock)}

        return await self._immediate.do(
            BY_KEY["place_lock"], instance_id, actor, effect, project_id=project_id, placed=placed
        )

    async def release(
        self, instance_id: str, lock_id: str, actor: Actor, *, reason: str | None, project_id: str | None
    ) -> Done:
        """Take one lock away from an instance; the others hold on (R5, B2).

        Raises:
            Forbidden: it is not the actor's to release.
            NotFound: the instance has no such lock of its own.
            Refused: there is no such instance for the caller.
        """

        def effect(
            connection: sa.Connection, instance: Instance, _now: float
        ) -> tuple[Instance, Mapping[str, Any]]:
            lock = locks.get(connection, lock_id)
            if lock is None or lock.instance_id != instance.id:
                raise NotFound(f"Instance {instance_id} has no lock {lock_id} of its own.")
            if not may_release(lock, actor.kind, actor.user_id):
                raise Forbidden(RELEASE)
            locks.release(connection, lock_id)
            return stacking.restack(connection, instance), {"lock": stacking.told(lock), "reason": reason}

        return await self._immediate.do(
            BY_KEY["release_lock"], instance_id, actor, effect, project_id=project_id
        )

    async def expire(self, lock: Lock) -> bool:
        """Take a lock away whose time is up; False when it is gone meanwhile, or its time is not up.

        Raises:
            StoreUnavailable: the database cannot be written.
        """
        actor = system_actor(f"req-{uuid.uuid4()}")

        def work(connection: sa.Connection) -> list[str] | None:
            now, freed = self._now(), None
            if lock.instance_id is None:
                freed = stacking.release_from_project(connection, lock, now, expired=True)
            else:
                held = instances.hold(connection, lock.instance_id)
                if held is not None and locks.release_expired(connection, lock.id, now):
                    freed = [stacking.restack(connection, held).id]
            if freed is not None:
                _record(connection, now, "lock_expired", actor, lock)
            return freed

        freed = await self._database.write(work)
        self._immediate.locked_otherwise(freed or ())
        return freed is not None

    async def warn(self, lock: Lock) -> bool:
        """Tell, once, that a lock expires soon; False when that was told, or the lock is gone or changed.

        Raises:
            StoreUnavailable: the database cannot be written.
        """
        actor = system_actor(f"req-{uuid.uuid4()}")

        def work(connection: sa.Connection) -> bool:
            now = self._now()
            told_now = locks.warn(connection, lock, now)
            if told_now:
                _record(connection, now, "lock_expires_soon", actor, lock)
            return told_now

        return await self._database.write(work)

    async def place_on_project(
        self, project_id: str, tag: str | None, actor: Actor, wish: LockWish
    ) -> tuple[Lock, list[str]]:
        """Place a lock that a project's instances inherit at once, those made later included.

        Returns:
            The lock, and the ids of the instances that inherit it now.

        Raises:
            Conflict: the actor has one of this kind and name there.
            Invalid: the wish's parts do not go together.
        """

        def work(connection: sa.Connection) -> tuple[Lock, list[str]]:
            now = self._now()
            lock = wish.made(now, project_id=project_id, tag=tag)
            found = stacking.place_on_project(connection, lock, now)
            _record(connection, now, "lock_placed", actor, lock, instances=len(found))
            return lock, found

        placed = await self._database.write(work)
        self._immediate.locked_otherwise(placed[1])
        if wish.expires_at is not None:
            self._expiring()
        return placed

    async def release_from_project(
        self, lock_id: str, actor: Actor, *, reason: str | None, project_id: str | None
    ) -> Lock:
        """Take a project's lock away from all its instances.

        Raises:
            Forbidden: it is not the actor's to release.
            NotFound: there is no such lock for the caller.
        """

        def work(connection: sa.Connection) -> tuple[Lock, list[str]]:
            lock = locks.get(connection, lock_id)
            if lock is None or lock.project_id is None or project_id not in {None, lock.project_id}:
                raise NotFound(f"There is no lock {lock_id} on a project.")
            now = self._now()
            with recorded(connection, "release_lock", None, actor, now):
                if not may_release(lock, actor.kind, actor.user_id):
                    raise Forbidden(RELEASE)
            freed = stacking.release_from_project(connection, lock, now)
            if freed is None:
                raise NotFound(f"There is no lock {lock_id} on a project.")
            _record(connection, now, "lock_released", actor, lock, reason=reason)
            return lock, freed

        lock, freed = await self._database.write(work)
        self._immediate.locked_otherwise(freed)
        return lock


def _record(
    connection: sa.Connection, now: float, event: str, actor: Actor, lock: Lock, **more: object
) -> None:
    operations.record(
        connection,
        at=now,
        event=event,
        actor=actor,
        instance_id=lock.instance_id,
        detail={"lock": stacking.told(lock), **more},
    )
