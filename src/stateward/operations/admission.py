"""Admission: how anything is changed, by a request, the arbiter or the command line alike.

One transaction holds the guarded UPDATE of the instance, the operation, the audit record and, for what an agent
must do, the dispatch in the outbox. Killed before its commit, nothing happened; after it, everything will.
"""

from __future__ import annotations

import copy
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import msgspec
import sqlalchemy as sa

from stateward.bus.port import operations_subject
from stateward.clock import Clock
from stateward.domain.actions import BY_KEY, Action, key
from stateward.domain.bodies import ShutdownOptions, ShutdownRequest
from stateward.domain.errors import Refusal, Refused
from stateward.domain.locks import Lock
from stateward.domain.placement import NOVA_RULES, Rules
from stateward.domain.records import (
    UNFINISHED,
    Actor,
    Dispatch,
    FlavorFacts,
    GuestSpec,
    Instance,
    Operation,
    OperationState,
    Outcome,
    Result,
    Target,
)
from stateward.domain.seeds import seed_of
from stateward.domain.settle import is_as_it_was
from stateward.domain.shutdown import (
    DEFAULT_SECONDS,
    AtDeadline,
    Layer,
    Limits,
    ShutdownPlan,
    layer,
    plan,
)
from stateward.domain.states import VmState
from stateward.domain.steps import Step
from stateward.operations import finishing, stacking
from stateward.operations.finishing import Ended, target_of
from stateward.operations.gate import first_that_fits
from stateward.operations.preparing import NOTHING, Wanted, aim
from stateward.operations.refusals import recorded
from stateward.operations.room import claim_for
from stateward.store import audit, instances, operations
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
    #: Images deleted with it, by id, whose data are to be removed once this is durable.
    images: tuple[str, ...] = ()
    #: The lock that was placed with it, if one was wanted.
    lock: Lock | None = None

    @property
    def placed(self) -> Lock:
        """The lock that was placed with it, where one was wanted.

        Raises:
            ValueError: none was.
        """
        if self.lock is None:
            msg = f"operation {self.operation.id} placed no lock"
            raise ValueError(msg)
        return self.lock


class Admission:
    """The one way in. ``wake`` is called after a commit that left something in the outbox."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        shutdown: ShutdownDefaults,
        wake: Callable[[], None],
        placement: Rules = NOVA_RULES,
        *,
        offload: bool = True,
        forget_images: Callable[[Sequence[str]], None] = lambda _ids: None,
    ) -> None:
        """Keep the ports and what the operator says.

        Args:
            database: the store.
            clock: tells the time.
            shutdown: of clean shutdowns.
            wake: called after a commit that left something in the outbox.
            placement: by which hosts are chosen and filled.
            offload: what is shelved leaves its host at once, as in Nova 34 by default.
            forget_images: called with the ids of images that were deleted, once that is durable.
        """
        self.database = database
        self.clock = clock
        #: By which hosts are chosen and filled.
        self.placement = placement
        self._shutdown = shutdown
        self._wake = wake
        self._offload = offload
        self._forget_images = forget_images

    def on(self, database: Database) -> Self:
        """Return the same admission on another database: one that adds to what each transaction does."""
        other = copy.copy(self)
        other.database = database
        return other

    async def admit(
        self,
        action: Action | tuple[Action, ...],
        instance_id: str,
        actor: Actor,
        *,
        body: object = None,
        wanted: Wanted = NOTHING,
        project_id: str | None = None,
        fence: int | None = None,
        why: str | None = None,
    ) -> Admitted:
        """Admit an operation: a row of the action table that an agent works on.

        Args:
            action: the row, or several of one action that begin in different states: whichever fits.
            instance_id: which instance.
            actor: who asks, for the audit trail and for which locks bind.
            body: the request's decoded body.
            wanted: what the request wants besides the action.
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
                wanted=wanted,
                project_id=project_id,
                fence=fence,
                why=why,
            )

        admitted = await self.database.write(work)
        self._wake()
        self.forget_images(admitted.images)
        return admitted

    def admit_in(
        self,
        connection: sa.Connection,
        action: Action | tuple[Action, ...],
        instance_id: str,
        actor: Actor,
        *,
        body: object = None,
        wanted: Wanted = NOTHING,
        project_id: str | None = None,
        fence: int | None = None,
        judged: Instance | None = None,
        why: str | None = None,
        told: Mapping[str, Any] = {},
    ) -> Admitted:
        """Admit an operation inside a transaction of the caller's, who then calls ``wake``; see ``admit``.

        ``judged`` is the row that a verdict was found by; see ``admit.conditions``. ``told`` is for the audit trail
        alone, and for the provider's eyes: customers are shown none of it.
        """
        rows = action if isinstance(action, tuple) else (action,)
        now = self.clock.now()
        operation_id = str(uuid.uuid4())
        with recorded(connection, key(rows[0]), instance_id, actor, now):
            action, instance = first_that_fits(
                connection,
                rows,
                instance_id,
                actor,
                {"updated_at": now, **wanted.changes},
                operation_id=operation_id,
                project_id=project_id,
                fence=fence,
                judged=judged,
                now=now,
            )
        ended = Ended([], [])
        if action.over:
            ended = finishing.supersede(
                connection,
                instance_id,
                now,
                f"Overtaken by {action.name} (request {actor.request_id}).",
                by=action,
            )
        if wanted.seed:
            seed = msgspec.structs.replace(instance.seed, **wanted.seed)
            instance = instances.change_held(connection, instance, {"seed": seed})
        target = aim(connection, action, instance, actor, wanted=wanted, now=now)
        instance = claim_for(connection, action, instance, wanted, self.placement, now=now)
        if action.elsewhere:
            # For the dispatch only: the record stays where it is.
            instance = msgspec.structs.replace(instance, host=wanted.host or "")
        if not instance.host and not action.without_host:
            raise Refused(Refusal.NO_HOST, instance_id=instance_id)
        lock: Lock | None = None
        if wanted.lock is not None:
            instance, lock = stacking.place_in(connection, instance, wanted.lock, now)
        operation = operation_for(action, instance, actor, now=now, operation_id=operation_id, message=why)
        if target != Target():
            operation.params["target"] = msgspec.to_builtins(target)
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
                shutdown=operation.params.get("shutdown"),
                why=why,
                overtakes=ended.operations or None,
                lock=None if lock is None else stacking.told(lock),
            )
            | dict(told),
        )
        if not instance.host:
            gone = _gone(connection, operation, instance, actor, ended.images)
            return msgspec.structs.replace(gone, lock=lock)
        post_dispatch(connection, action, operation, instance)
        return Admitted(instance=instance, operation=operation, images=tuple(ended.images), lock=lock)

    def follow_in(
        self, connection: sa.Connection, operation: Operation, instance: Instance, result: Result
    ) -> bool:
        """Admit what follows an operation, for who asked for that; False when nothing does.

        A lock that was placed meanwhile, or anything else admitted, leaves the instance as it is.
        """
        done = BY_KEY[operation.action]
        then: str | None = None
        flavor: FlavorFacts | None = None
        # Who moves goes on in any case; what is shelved leaves its host where the operator says so.
        if result.outcome is Outcome.SUCCEEDED and (self._offload or done.becomes is not VmState.SHELVED):
            then, flavor = done.then, target_of(operation).flavor
        elif result.outcome is Outcome.FAILED and not is_as_it_was(result):
            # Without the flavor: what failed leaves no trace.
            then = done.undo
        if then is None:
            return False
        actor = Actor(
            kind=operation.actor_kind,
            user_id=operation.user_id,
            project_id=operation.project_id,
            request_id=operation.request_id,
        )
        try:
            # Of what is refused late, for want of room say, nothing stays.
            with audit.part(connection):
                self.admit_in(
                    connection,
                    BY_KEY[then],
                    instance.id,
                    actor,
                    wanted=Wanted(target=Target(flavor=flavor)),
                    fence=operation.fence,
                )
        except Refused:
            return False
        return True

    def forget_images(self, image_ids: Sequence[str]) -> None:
        """Have the data of images removed that were deleted for good; what is missed the next start removes."""
        if image_ids:
            self._forget_images(image_ids)

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
    shutdown, target = operation.params.get("shutdown"), target_of(operation)
    return Dispatch(
        operation_id=operation.id,
        instance_id=instance.id,
        action=operation.action,
        fence=operation.fence,
        steps=action.steps,
        guest=guest_of(instance, target),
        snapshot=target.snapshot,
        quiesce=target.quiesce,
        shutdown=None if shutdown is None else msgspec.convert(shutdown, ShutdownPlan),
    )


def guest_of(instance: Instance, target: Target) -> GuestSpec:
    """Describe the guest of an instance as an operation makes it."""
    flavor = target.flavor or instance.flavor
    return GuestSpec(
        instance_id=instance.id,
        domain_name=instance.domain_name,
        display_name=instance.name,
        project_id=instance.project_id,
        vcpus=flavor.vcpus,
        memory=flavor.ram,
        disk=flavor.disk,
        image=target.disk_from or target.image or instance.image,
        ephemeral=flavor.ephemeral,
        swap=flavor.swap,
        ports=instance.ports,
        seed=seed_of(
            instance.seed,
            hostname=instance.hostname,
            zone=instance.zone,
            user_data=instance.user_data,
            metadata=instance.metadata,
            connected=bool(instance.ports),
        ),
        rescue=target.rescue or instance.rescue,
        adopted=instance.adopted_as is not None,
    )


def _gone(
    connection: sa.Connection, operation: Operation, instance: Instance, actor: Actor, images: Sequence[str]
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
    changed, with_it = finishing.apply(connection, operation, instance, result, now)
    if changed is None:
        msg = f"instance {instance.id} vanished inside a transaction that holds its row"
        raise RuntimeError(msg)
    operations.record(
        connection,
        at=now,
        event="finished",
        actor=actor,
        instance_id=instance.id,
        operation_id=operation.id,
        action=operation.action,
        detail={"outcome": result.outcome.value, "message": message, "shutdown": None}
        | operations.moved(instance, changed),
    )
    finished = msgspec.structs.replace(
        operation, state=OperationState.SUCCEEDED, finished_at=now, message=message
    )
    return Admitted(instance=changed, operation=finished, images=(*images, *with_it))


def post_dispatch(
    connection: sa.Connection, action: Action, operation: Operation, instance: Instance
) -> None:
    """Leave an operation's dispatch in the outbox."""
    if operation.state not in UNFINISHED:
        msg = f"operation {operation.id} is finished; there is nothing to dispatch"
        raise ValueError(msg)
    operations.post(
        connection,
        operations_subject(operation.host),
        operation.id,
        msgspec.json.encode(dispatch_of(action, operation, instance)),
    )


def _without_none(**values: object) -> dict[str, object]:
    return {name: value for name, value in values.items() if value is not None}
