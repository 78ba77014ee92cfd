"""The actions that are done when they are admitted: locks, reset-state, names, metadata and tags.

Each is a guarded UPDATE by its row's conditions like every other; what differs is what it changes.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from typing import Any, Self

import msgspec
import sqlalchemy as sa

from stateward.domain import admit
from stateward.domain.actions import BY_KEY, Action
from stateward.domain.errors import Forbidden
from stateward.domain.locks import ALL_CLASSES, ActorKind, Lock, kind_placed_by, kind_released_by, summarise
from stateward.domain.records import Actor, Instance, Operation
from stateward.domain.states import VmState
from stateward.operations import finishing
from stateward.operations.admission import Admission, Admitted, guarded, operation_for
from stateward.store import instances, locks, operations
from stateward.store.engine import Database

#: Changes an instance whose row the transaction already holds; returns what to write and what to audit.
Effect = Callable[[sa.Connection, Instance, float], tuple[Mapping[str, Any], Mapping[str, Any]]]


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of an immediate action, and the operation that was in flight when it was admitted (B1)."""

    admitted: Admitted
    in_flight: Operation | None


class Immediate:
    """The immediate actions, on the same admission."""

    def __init__(self, admission: Admission, compare: Callable[[str], None]) -> None:
        """Use an admission's database and clock; ``compare`` has the arbiter look at an instance."""
        self._admission = admission
        self._compare = compare

    def on(self, database: Database) -> Self:
        """Return the same actions on another database: one that adds to what each transaction does."""
        return type(self)(self._admission.on(database), self._compare)

    async def lock(
        self, instance_id: str, actor: Actor, *, reason: str | None, project_id: str | None
    ) -> Done:
        """Place the unnamed owner or admin lock (R3, R5).

        Raises:
            Refused: there is no such instance for the caller.
        """

        def effect(
            connection: sa.Connection, instance: Instance, now: float
        ) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
            lock = Lock(
                id=str(uuid.uuid4()),
                instance_id=instance.id,
                kind=kind_placed_by(actor.kind, in_own_project=actor.project_id == instance.project_id),
                holder=actor.user_id,
                reason=reason,
                blocks=ALL_CLASSES,
                placed_at=now,
            )
            others: list[Lock] = []
            for present in locks.of_instance(connection, instance.id):
                if present.kind is lock.kind:
                    # Locking again without a reason clears the old reason: the new lock says what holds now.
                    locks.release(connection, instance.id, lock.kind)
                else:
                    others.append(present)
            locks.place(connection, lock)
            return _union([*others, lock]), {"kind": lock.kind.value, "reason": reason}

        return await self._do(BY_KEY["lock"], instance_id, actor, effect, project_id)

    async def unlock(self, instance_id: str, actor: Actor, *, project_id: str | None) -> Done:
        """Take a lock away: the owner's, or for an admin the provider's first.

        Raises:
            Forbidden: a member asks while the provider's lock holds.
            Refused: there is no such instance for the caller.
        """

        def effect(
            connection: sa.Connection, instance: Instance, _now: float
        ) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
            present = locks.of_instance(connection, instance.id)
            try:
                kind = kind_released_by(actor.kind, [lock.kind for lock in present])
            except PermissionError:
                raise Forbidden("os_compute_api:os-lock-server:unlock:unlock_override") from None
            if kind is not None:
                locks.release(connection, instance.id, kind)
            left = [lock for lock in present if lock.kind is not kind]
            return _union(left), {"kind": kind.value if kind else None}

        return await self._do(BY_KEY["unlock"], instance_id, actor, effect, project_id)

    async def reset_state(self, instance_id: str, actor: Actor, *, to: VmState) -> Done:
        """Set the record, end what is in flight, and let the arbiter compare.

        Raises:
            Refused: there is no such instance.
        """
        gone: list[str] = []

        def effect(
            connection: sa.Connection, instance: Instance, now: float
        ) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
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
            return changes, {"from": instance.vm_state.value, "to": to.value}

        done = await self._do(BY_KEY["reset_state"], instance_id, actor, effect, None, bump_fence=True)
        self._admission.forget_images(gone)
        self._compare(instance_id)
        return done

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

        Raises:
            Refused: the action's row does not admit it.
            Exception: whatever ``change`` raises; nothing is kept then.
        """

        def effect(
            _connection: sa.Connection, instance: Instance, _now: float
        ) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
            changes = change(instance)
            return changes, {"changes": sorted(changes)}

        return await self._do(action, instance_id, actor, effect, project_id)

    async def _do(
        self,
        action: Action,
        instance_id: str,
        actor: Actor,
        effect: Effect,
        project_id: str | None,
        *,
        bump_fence: bool = False,
    ) -> Done:
        checks = admit.conditions(action, actor.kind, project_id=project_id)

        def work(connection: sa.Connection) -> Done:
            now = self._admission.clock.now()
            # The guarded UPDATE comes first: it holds the row, so what ``effect`` reads stays true until commit.
            held = guarded(
                connection, action, instance_id, checks, {"updated_at": now}, bump_fence=bump_fence
            )
            in_flight = (
                operations.get(connection, held.operation_id) if held.operation_id is not None else None
            )
            changes, detail = effect(connection, held, now)
            instance = instances.change_held(connection, held, changes) if changes else held
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
                detail=detail,
            )
            return Done(admitted=Admitted(instance=instance, operation=operation), in_flight=in_flight)

        return await self._admission.database.write(work)


def _union(stack: list[Lock]) -> Mapping[str, Any]:
    """Fold the lock rows into the columns that the guarded UPDATEs test."""
    summary = summarise(stack)
    return {
        "owner_blocks": int(summary.owner_blocks),
        "admin_blocks": int(summary.admin_blocks),
        "hold_blocks": int(summary.hold_blocks),
        "locked_by": summary.locked_by,
        "locked_reason": summary.locked_reason,
    }


def system_actor(request_id: str) -> Actor:
    """Name the control plane itself as the actor."""
    return Actor(kind=ActorKind.SYSTEM, user_id="", project_id="", request_id=request_id)
