"""The actions that are done when they are admitted: locks, reset-state, names, metadata and tags.

Each is a guarded UPDATE by its row's conditions like every other; what differs is what it changes.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import msgspec
import sqlalchemy as sa

from stateward.domain import admit
from stateward.domain.actions import BY_KEY, Action, key
from stateward.domain.errors import Forbidden, Refusal, Refused
from stateward.domain.locks import BINDS, ActorKind, Lock, explained, kind_placed_by, released_by_unlock
from stateward.domain.policies import KEY as POLICY
from stateward.domain.records import Actor, Instance, Operation
from stateward.domain.states import VmState
from stateward.operations import finishing, stacking
from stateward.operations.admission import Admission, Admitted, operation_for
from stateward.operations.gate import admitted_row
from stateward.operations.refusals import recorded
from stateward.operations.stacking import LockWish
from stateward.store import instances, locks, operations
from stateward.store.engine import Database

#: Changes an instance whose row the transaction already holds; returns it as it is then, and what to audit.
Effect = Callable[[sa.Connection, Instance, float], tuple[Instance, Mapping[str, Any]]]


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of an immediate action, and the operation that was in flight when it was admitted (B1)."""

    admitted: Admitted
    in_flight: Operation | None


class Immediate:
    """The immediate actions, on the same admission."""

    def __init__(
        self,
        admission: Admission,
        compare: Callable[[str], None],
        review: Callable[[Sequence[str]], None] | None = None,
    ) -> None:
        """Use an admission's database and clock.

        Args:
            admission: whose.
            compare: has the arbiter look at an instance.
            review: has it look at many, after what has happened to others; None: at each like at one.
        """
        self._admission = admission
        self._compare = compare
        self._review = review

    def on(self, database: Database) -> Self:
        """Return the same actions on another database: one that adds to what each transaction does."""
        return type(self)(self._admission.on(database), self._compare, self._review)

    async def lock(
        self, instance_id: str, actor: Actor, *, reason: str | None, project_id: str | None
    ) -> Done:
        """Place the unnamed owner or admin lock (R3, R5).

        Raises:
            Refused: there is no such instance for the caller.
        """

        def effect(
            connection: sa.Connection, instance: Instance, now: float
        ) -> tuple[Instance, Mapping[str, Any]]:
            wish = LockWish(
                kind=kind_placed_by(actor.kind, in_own_project=actor.project_id == instance.project_id),
                holder=actor.user_id,
                reason=reason,
            )
            instance, lock = stacking.place_in(connection, instance, wish, now)
            return instance, {"kind": lock.kind.value, "reason": reason}

        return await self.do(BY_KEY["lock"], instance_id, actor, effect, project_id=project_id)

    async def unlock(self, instance_id: str, actor: Actor, *, project_id: str | None) -> Done:
        """Take the unnamed lock away: the owner's, or for an admin the provider's first.

        Raises:
            Forbidden: a member asks while the provider's lock holds, or the owner's is sealed (R4).
            Refused: there is no such instance for the caller.
        """

        def effect(
            connection: sa.Connection, instance: Instance, _now: float
        ) -> tuple[Instance, Mapping[str, Any]]:
            try:
                lock = released_by_unlock(actor.kind, stacking.stack_of(connection, instance))
            except PermissionError:
                raise Forbidden("os_compute_api:os-lock-server:unlock:unlock_override") from None
            if lock is None:
                return instance, {"kind": None}
            locks.release(connection, lock.id)
            return stacking.restack(connection, instance), {"kind": lock.kind.value}

        return await self.do(BY_KEY["unlock"], instance_id, actor, effect, project_id=project_id)

    async def reset_state(self, instance_id: str, actor: Actor, *, to: VmState) -> Done:
        """Set the record, end what is in flight, and let the arbiter compare.

        Raises:
            Refused: there is no such instance.
        """
        gone: list[str] = []

        def effect(
            connection: sa.Connection, instance: Instance, now: float
        ) -> tuple[Instance, Mapping[str, Any]]:
            message = f"The state was reset (request {actor.request_id})."
            # Not added to: what a write does that is tried again counts once.
            gone[:] = finishing.supersede(
                connection, instance.id, now, message, by=BY_KEY["reset_state"]
            ).images
            changes: dict[str, Any] = {"vm_state": to.value, "task_state": None, "operation_id": None}
            if instance.was is not None:
                # Nothing is left to confirm it by: it has the new flavor for good, and no room for the old one.
                confirmed = msgspec.structs.replace(instance, vm_state=to, was=None)
                finishing.give_room_back(connection, instance, confirmed)
                changes |= {"was": None, "old_flavor": None}
            return instances.change_held(connection, instance, changes), {}

        done = await self.do(
            BY_KEY["reset_state"], instance_id, actor, effect, project_id=None, bump_fence=True
        )
        self.overtaken(instance_id, gone)
        return done

    def overtaken(self, instance_id: str, images: Sequence[str]) -> None:
        """Have what an overtaken operation left cleaned up, and the instance looked at, once that is durable."""
        self._admission.forget_images(images)
        self._compare(instance_id)

    def locked_otherwise(self, instance_ids: Sequence[str]) -> None:
        """Have instances judged whose locks have changed, once that is durable: nothing else is seen of them."""
        if self._review is not None:
            self._review(instance_ids)
            return
        for instance_id in instance_ids:
            self._compare(instance_id)

    async def change(
        self,
        action: Action,
        instance_id: str,
        actor: Actor,
        change: Callable[[Instance], Mapping[str, Any]],
        *,
        project_id: str | None,
    ) -> Done:
        """Change columns by a function of the row as the transaction holds it (names, metadata, tags).

        Tags are what locks select by: who changes them changes what the instance inherits.

        Raises:
            Refused: the action's row does not admit it, or it would free the instance from a lock that binds the actor.
            Exception: whatever ``change`` raises; nothing is kept then.
        """

        def effect(
            connection: sa.Connection, instance: Instance, _now: float
        ) -> tuple[Instance, Mapping[str, Any]]:
            changes = change(instance)
            changed = instances.change_held(connection, instance, changes) if changes else instance
            if "tags" in changes:
                before = stacking.stack_of(connection, instance)
                left = {lock.id for lock in stacking.stack_of(connection, changed)}
                lost = [lock for lock in before if lock.id not in left and actor.kind in BINDS[lock.kind]]
                if lost:
                    said = explained(lost)
                    raise Refused(Refusal.LOCKED, says=said, action=action.name, instance_id=instance.id)
                changed = stacking.restack(connection, changed)
            return changed, {"changes": sorted(changes)}

        return await self.do(action, instance_id, actor, effect, project_id=project_id)

    async def do(
        self,
        action: Action,
        instance_id: str,
        actor: Actor,
        effect: Effect,
        *,
        project_id: str | None,
        bump_fence: bool = False,
        placed: Sequence[Lock] = (),
    ) -> Done:
        """Do one immediate action by its row.

        Args:
            action: the row.
            instance_id: which instance.
            actor: who asks.
            effect: what it changes; raises to change nothing.
            project_id: the caller sees only this project; None for all.
            bump_fence: what is in flight may not act any more.
            placed: where the effect leaves the lock that it placed.

        Raises:
            Refused: the row does not admit it.
            StoreUnavailable: the database cannot be written.
        """
        checks = admit.conditions(action, actor.kind, project_id=project_id)
        judge_again = False

        def work(connection: sa.Connection) -> Done:
            nonlocal judge_again
            now = self._admission.clock.now()
            if action.name == "update_tags":
                # Before the instance's row is held: who places a project's lock takes them in this order too.
                owner = instances.project_of(connection, instance_id)
                locks.hold_project(connection, owner or "", alone=False)
            # The guarded UPDATE comes first: it holds the row, so what ``effect`` reads stays true until commit.
            with recorded(connection, key(action), instance_id, actor, now):
                held = admitted_row(
                    connection,
                    action,
                    instance_id,
                    checks,
                    {"updated_at": now},
                    actor=actor,
                    bump_fence=bump_fence,
                    now=now,
                )
                in_flight = (
                    operations.get(connection, held.operation_id) if held.operation_id is not None else None
                )
                instance, detail = effect(connection, held, now)
            judge_again = _judged_by(instance) != _judged_by(held)
            operation = operation_for(action, instance, actor, now=now, operation_id=str(uuid.uuid4()))
            operations.insert(connection, operation)
            operations.record(
                connection,
                at=now,
                event="admitted",
                actor=actor,
                instance_id=instance_id,
                operation_id=operation.id,
                action=operation.action,
                detail={**detail, **operations.moved(held, instance)},
            )
            lock = placed[0] if placed else None
            return Done(
                admitted=Admitted(instance=instance, operation=operation, lock=lock), in_flight=in_flight
            )

        done = await self._admission.database.write(work)
        if judge_again:
            self._compare(instance_id)
        return done


def _judged_by(instance: Instance) -> tuple[object, ...]:
    """Return what changes a verdict, or has its write refused, although nothing is seen, and nobody looks again for."""
    return *(getattr(instance, column) for column in admit.LOCKS), instance.metadata.get(POLICY)


def system_actor(request_id: str) -> Actor:
    """Name the control plane itself as the actor."""
    return Actor(kind=ActorKind.SYSTEM, user_id="", project_id="", request_id=request_id)
