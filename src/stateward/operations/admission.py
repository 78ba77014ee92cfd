"""Admission: how anything is changed, by a request, the arbiter or the command line alike.

One transaction holds the guarded UPDATE of the instance, the operation, the audit record and, for what an agent
must do, the dispatch in the outbox. Killed before its commit, nothing happened; after it, everything will.
"""

from __future__ import annotations

import copy
import uuid
from collections.abc import Callable, Mapping
from typing import Any, Self

import msgspec
import sqlalchemy as sa

from stateward.bus.port import operations_subject
from stateward.clock import Clock
from stateward.domain import admit
from stateward.domain.actions import Action, key
from stateward.domain.bodies import ShutdownOptions, ShutdownRequest
from stateward.domain.errors import Refusal, Refused
from stateward.domain.placement import NOVA_RULES, Rules
from stateward.domain.records import (
    UNFINISHED,
    Actor,
    Dispatch,
    GuestSpec,
    Instance,
    Operation,
    OperationState,
    Outcome,
    Result,
)
from stateward.domain.seeds import seed_of
from stateward.domain.settle import settle
from stateward.domain.shutdown import DEFAULT_SECONDS, AtDeadline, Layer, Limits, ShutdownPlan, layer, plan
from stateward.domain.states import VmState
from stateward.domain.steps import Step
from stateward.store import instances, operations
from stateward.store.engine import Database


class ShutdownDefaults(msgspec.Struct, frozen=True, kw_only=True):
    """What the operator says of clean shutdowns."""

    default: Layer = Layer(origin="default", seconds=DEFAULT_SECONDS, at_deadline=AtDeadline.FORCE)
    limits: Limits = Limits()
    #: What hosts say, by name.
    hosts: Mapping[str, Layer] = {}


class Admitted(msgspec.Struct, frozen=True, kw_only=True):
    """An admitted action: the row as it is now, and the operation written for it."""

    instance: Instance
    operation: Operation


class Admission:
    """The one way in. ``wake`` is called after a commit that left something in the outbox."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        shutdown: ShutdownDefaults,
        wake: Callable[[], None],
        placement: Rules = NOVA_RULES,
    ) -> None:
        """Keep the ports and what the operator says."""
        self.database = database
        self.clock = clock
        #: By which hosts are chosen and filled.
        self.placement = placement
        self._shutdown = shutdown
        self._wake = wake

    def on(self, database: Database) -> Self:
        """Return the same admission on another database: one that adds to what each transaction does."""
        other = copy.copy(self)
        other.database = database
        return other

    async def admit(
        self,
        action: Action,
        instance_id: str,
        actor: Actor,
        *,
        body: object = None,
        project_id: str | None = None,
        fence: int | None = None,
        why: str | None = None,
    ) -> Admitted:
        """Admit an operation: a row of the action table that an agent works on.

        Args:
            action: the row.
            instance_id: which instance.
            actor: who asks, for the audit trail and for which locks bind.
            body: the request's decoded body.
            project_id: the caller sees only this project; None for all.
            fence: admit only if nothing was admitted since; see ``admit.conditions``.
            why: for the operation's message and the audit trail; the arbiter says here what it saw.

        Raises:
            Refused: with the reason, when the guarded UPDATE touched nothing.
            StoreUnavailable: the database cannot be written.
        """

        def work(connection: sa.Connection) -> Admitted:
            return self.admit_in(
                connection,
                action,
                instance_id,
                actor,
                body=body,
                project_id=project_id,
                fence=fence,
                why=why,
            )

        admitted = await self.database.write(work)
        self._wake()
        return admitted

    def admit_in(
        self,
        connection: sa.Connection,
        action: Action,
        instance_id: str,
        actor: Actor,
        *,
        body: object = None,
        project_id: str | None = None,
        fence: int | None = None,
        why: str | None = None,
    ) -> Admitted:
        """Admit an operation inside a transaction of the caller's, who then calls ``wake``; see ``admit``."""
        now = self.clock.now()
        operation_id = str(uuid.uuid4())
        changes: dict[str, Any] = {"updated_at": now}
        if action.pending is not None:
            changes |= {"task_state": action.pending.value, "operation_id": operation_id}
        checks = admit.conditions(action, actor.kind, project_id=project_id, fence=fence)
        instance = guarded(connection, action, instance_id, checks, changes, bump_fence=True)
        if action.over:
            overtaken = operations.supersede(
                connection, instance_id, now, f"Overtaken by {action.name} (request {actor.request_id})."
            )
        else:
            overtaken = []
        if not instance.host and action.becomes is not VmState.DELETED:
            raise Refused(Refusal.NO_HOST, instance_id=instance_id)
        operation = operation_for(action, instance, actor, now=now, operation_id=operation_id, message=why)
        shutdown = self._plan(action, instance, body)
        if shutdown is not None:
            operation.params["shutdown"] = msgspec.to_builtins(shutdown)
        operations.insert(connection, operation)
        operations.record(
            connection,
            at=now,
            event="admitted",
            actor=actor,
            instance_id=instance.id,
            operation_id=operation_id,
            action=operation.action,
            detail=_without_none(
                shutdown=operation.params.get("shutdown"), why=why, overtakes=overtaken or None
            ),
        )
        if not instance.host:
            return _gone(connection, action, operation, instance, actor)
        post_dispatch(connection, action, operation, instance)
        return Admitted(instance=instance, operation=operation)

    def wake(self) -> None:
        """Tell the dispatcher that a committed transaction left something in the outbox."""
        self._wake()

    def _plan(self, action: Action, instance: Instance, body: object) -> ShutdownPlan | None:
        if Step.SHUT_DOWN not in action.steps:
            return None
        requested = body if isinstance(body, ShutdownRequest) else ShutdownRequest()
        choice = requested.at_deadline
        return plan(
            (
                Layer(
                    origin="request",
                    seconds=requested.timeout,
                    at_deadline=None if choice is None else AtDeadline(choice),
                ),
                layer("metadata", instance.metadata),
                layer("image", instance.image.properties),
                layer("flavor", instance.flavor.extra_specs),
                self._shutdown.hosts.get(instance.host, Layer(origin="host")),
                self._shutdown.default,
            ),
            force=isinstance(body, ShutdownOptions) and body.force,
            action=action.name,
            may_save=action.if_saved is not None,
            limits=self._shutdown.limits,
        )


def guarded(
    connection: sa.Connection,
    action: Action,
    instance_id: str,
    checks: tuple[admit.Condition, ...],
    changes: Mapping[str, Any],
    *,
    bump_fence: bool = False,
) -> Instance:
    """Do the guarded UPDATE and return the row, or say why it touched nothing.

    Raises:
        Refused: the reason, found by evaluating the same conditions on the row.
    """
    # PostgreSQL may show the row changed again between the UPDATE and the reading: then the UPDATE is tried anew.
    for _attempt in range(3):
        instance = instances.guarded_update(connection, instance_id, checks, changes, bump_fence=bump_fence)
        if instance is not None:
            return instance
        found = instances.get(connection, instance_id)
        if found is None:
            raise Refused(Refusal.NOT_FOUND, instance_id=instance_id)
        refused = admit.explain(checks, action, found)
        if refused is not None:
            raise refused
    raise Refused(Refusal.OVERTAKEN, action=action.name, instance_id=instance_id)


def operation_for(
    action: Action,
    instance: Instance,
    actor: Actor,
    *,
    now: float,
    operation_id: str,
    message: str | None = None,
) -> Operation:
    """Make the operation's record; what no agent works on is finished as it is written."""
    done = not action.is_operation
    return Operation(
        id=operation_id,
        instance_id=instance.id,
        action=key(action),
        actor_kind=actor.kind,
        user_id=actor.user_id,
        project_id=actor.project_id,
        request_id=actor.request_id,
        fence=instance.fence,
        host=instance.host,
        state=OperationState.SUCCEEDED if done else OperationState.ACCEPTED,
        started_at=now,
        finished_at=now if done else None,
        message=message,
        params={},
    )


def dispatch_of(action: Action, operation: Operation, instance: Instance) -> Dispatch:
    """Make what the agent is sent; the same operation always gives the same dispatch."""
    shutdown = operation.params.get("shutdown")
    return Dispatch(
        operation_id=operation.id,
        instance_id=instance.id,
        action=operation.action,
        fence=operation.fence,
        steps=action.steps,
        guest=GuestSpec(
            instance_id=instance.id,
            domain_name=instance.domain_name,
            display_name=instance.name,
            project_id=instance.project_id,
            vcpus=instance.flavor.vcpus,
            memory=instance.flavor.ram,
            disk=instance.flavor.disk,
            image=instance.image,
            ephemeral=instance.flavor.ephemeral,
            swap=instance.flavor.swap,
            ports=instance.ports,
            seed=seed_of(
                instance.seed,
                hostname=instance.hostname,
                zone=instance.zone,
                user_data=instance.user_data,
                metadata=instance.metadata,
                connected=bool(instance.ports),
            ),
        ),
        shutdown=None if shutdown is None else msgspec.convert(shutdown, ShutdownPlan),
    )


def _gone(
    connection: sa.Connection, action: Action, operation: Operation, instance: Instance, actor: Actor
) -> Admitted:
    """Finish the removal of an instance that no host was found for: no agent will ever answer for it."""
    now = operation.started_at
    message = "It was on no host; there was nothing to remove."
    result = Result(
        operation_id=operation.id,
        instance_id=instance.id,
        fence=operation.fence,
        outcome=Outcome.SUCCEEDED,
        message=message,
        observation=None,
    )
    operations.finish(connection, operation.id, OperationState.SUCCEEDED, now, message)
    operations.record(
        connection,
        at=now,
        event="finished",
        actor=actor,
        instance_id=instance.id,
        operation_id=operation.id,
        action=operation.action,
        detail={"outcome": result.outcome.value, "message": message, "shutdown": None},
    )
    changed = instances.guarded_update(connection, instance.id, (), settle(action, instance, result, now))
    if changed is None:
        msg = f"instance {instance.id} vanished inside a transaction that holds its row"
        raise RuntimeError(msg)
    finished = msgspec.structs.replace(
        operation, state=OperationState.SUCCEEDED, finished_at=now, message=message
    )
    return Admitted(instance=changed, operation=finished)


def post_dispatch(
    connection: sa.Connection, action: Action, operation: Operation, instance: Instance
) -> None:
    """Leave an operation's dispatch in the outbox."""
    if operation.state not in UNFINISHED:
        msg = f"operation {operation.id} is finished; there is nothing to dispatch"
        raise ValueError(msg)
    operations.post(
        connection,
        operations_subject(instance.host),
        operation.id,
        msgspec.json.encode(dispatch_of(action, operation, instance)),
    )


def _without_none(**values: object) -> dict[str, object]:
    return {name: value for name, value in values.items() if value is not None}
