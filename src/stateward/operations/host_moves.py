"""What plans for hosts come to: their lines are admitted one by one, at a rate, and followed to their ends.

A line is admitted, and noted to be, in one transaction: killed between any two lines, the next life goes on with
the next one. Whoever asks for it is the control plane itself, which every lock binds.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import uuid
from collections.abc import Callable
from typing import Final

import msgspec
import sqlalchemy as sa
import structlog

from stateward.domain.actions import BY_KEY, Action
from stateward.domain.actions.row import Disk
from stateward.domain.errors import Invalid, Refusal, Refused
from stateward.domain.evacuation import UNDER_WAY, MoveState, PlanKind, PlanState, unwished
from stateward.domain.records import Instance, Operation, OperationState
from stateward.domain.states import VmState
from stateward.operations.admission import Admission, Admitted
from stateward.operations.host_plans import NO_WISHES, Wishes
from stateward.operations.immediate import system_actor
from stateward.operations.preparing import Wanted
from stateward.store import audit, host_plans, instances, operations
from stateward.store.engine import StoreUnavailable
from stateward.store.host_plans import KeptMove, KeptPlan

log = structlog.get_logger()

#: Seconds between two looks while a plan is under way; woken it looks at once.
_PERIOD: Final = 1.0
#: Seconds between two looks while none is.
_IDLE: Final = 10.0


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """How fast plans are carried out: so many lines of each at a time, and so many begun a minute."""

    parallel: int = 4
    per_minute: float = 30.0


class HostMoves:
    """Carries out approved plans."""

    def __init__(self, admission: Admission, pace: Pace, wishes: Wishes = NO_WISHES) -> None:
        """Use an admission's database and clock."""
        self._admission = admission
        self._pace = pace
        self._wishes = wishes
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        #: When each plan may have its next line begun, by the event loop's time: no clock that jumps counts.
        self._next: dict[str, float] = {}

    def wake(self) -> None:
        """Look now: a plan was approved."""
        self._wake.set()

    async def start(self) -> None:
        """Go on with what was approved."""
        self._task = asyncio.create_task(self._run(), name="plans for hosts")

    async def stop(self) -> None:
        """Stop; what was admitted goes on, and the next start goes on with the rest."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def look(self) -> bool:
        """Bring every approved plan further; False when there is none.

        Raises:
            StoreUnavailable: the database cannot be used.
        """
        database = self._admission.database
        plans = await database.read(lambda c: host_plans.in_state(c, PlanState.APPROVED))
        for plan in plans:
            try:
                await self._follow(plan)
            except StoreUnavailable:
                raise
            except Exception:
                # One plan's fault must not keep those behind it waiting.
                log.exception("a plan for a host could not be carried on; it is tried again", plan=plan.id)
        return bool(plans)

    async def _follow(self, plan: KeptPlan) -> None:
        database = self._admission.database
        moves = await database.read(lambda c: host_plans.moves(c, plan.id))
        for move in moves:
            if move.state in UNDER_WAY:
                await self._write(functools.partial(self._further, plan=plan, move=move), move)
        moves = await database.read(lambda c: host_plans.moves(c, plan.id))
        under_way = sum(move.state in UNDER_WAY for move in moves)
        for move in moves:
            if move.state is not MoveState.WAITING:
                continue
            now = asyncio.get_running_loop().time()
            if under_way >= self._pace.parallel or self._next.get(plan.id, now) > now:
                break
            if await self._write(functools.partial(self._begin, plan=plan, move=move), move):
                # What was refused has begun nothing.
                under_way += 1
                self._next[plan.id] = now + 60.0 / self._pace.per_minute
            self._admission.wake()
        moves = await database.read(lambda c: host_plans.moves(c, plan.id))
        if not any(move.state in UNDER_WAY or move.state is MoveState.WAITING for move in moves):
            await database.write(lambda c: self._end(c, plan))
            self._next.pop(plan.id, None)

    async def _write(self, work: Callable[[sa.Connection], bool | None], move: KeptMove) -> bool:
        """Bring a line further; False when it is not, or by a fault of its own cannot be: the others go on."""
        try:
            return bool(await self._admission.database.write(work))
        except StoreUnavailable:
            raise
        except Exception:
            log.exception(
                "a line of a plan could not be carried on; it is tried again",
                plan=move.plan_id,
                instance=move.instance_id,
            )
            return False

    def _begin(self, connection: sa.Connection, plan: KeptPlan, move: KeptMove) -> bool:
        """Admit a line's operation, and note it; False when it was refused, which is noted too."""
        if move.action is None or not host_plans.still(connection, plan.id, PlanState.APPROVED):
            return False
        # A line may have waited for an hour: what it was made by is looked at anew, and stays so until it is admitted.
        held = instances.hold(connection, move.instance_id)
        passed = None if held is None else self._passed(plan, BY_KEY[move.action], held)
        if passed is not None:
            host_plans.move_on(connection, move, MoveState.REFUSED, message=passed)
            return False
        try:
            try:
                admitted = self._admit(connection, plan, move, move.to_host)
            except Refused as refused:
                if refused.refusal is not Refusal.NO_VALID_HOST or move.to_host is None:
                    raise
                # Somebody else has taken the room that was planned with: then wherever there is some.
                admitted = self._admit(connection, plan, move, None)
        except (Refused, Invalid) as error:
            host_plans.move_on(connection, move, MoveState.REFUSED, message=str(error))
            return False
        to = admitted.instance.host if plan.kind is PlanKind.EVACUATE else move.to_host
        host_plans.move_on(
            connection, move, MoveState.ADMITTED, operation_id=admitted.operation.id, to_host=to
        )
        return True

    def _passed(self, plan: KeptPlan, action: Action, instance: Instance) -> str | None:
        """Say why a line is not about an instance any more; None where it is.

        Locks and states are in the conditions of the admission.
        """
        if instance.host != plan.host:
            return "It is not on this host any more."
        if action.evacuates is None:
            return None
        against = unwished(*self._wishes.of(instance), lost=action.evacuates is Disk.ANEW)
        return None if against is None else f"Since the plan was made that has changed: {against}."

    def _admit(self, connection: sa.Connection, plan: KeptPlan, move: KeptMove, host: str | None) -> Admitted:
        with audit.part(connection):
            return self._admission.admit_in(
                connection,
                BY_KEY[move.action or ""],
                move.instance_id,
                # Not the plan's id: customers see the request's.
                system_actor(f"req-{uuid.uuid4()}"),
                wanted=Wanted(host=host),
                why=_WHY,
                told={"host": plan.host, "plan": plan.id},
            )

    def _further(self, connection: sa.Connection, plan: KeptPlan, move: KeptMove) -> None:
        """Look at what became of a line's operation."""
        operation = operations.get(connection, move.operation_id or "")
        if operation is None or operation.finished_at is None:
            return
        if operation.state is not OperationState.SUCCEEDED:
            self._failed(connection, move, operation.message or operation.state.value)
            return
        instance = instances.get(connection, move.instance_id)
        if instance is None or not _carried(move) or move.state is MoveState.CONFIRMING:
            host_plans.move_on(connection, move, MoveState.DONE, to_host=_place(instance))
            return
        self._confirm(connection, plan, move, instance, operation)

    def _confirm(
        self,
        connection: sa.Connection,
        plan: KeptPlan,
        move: KeptMove,
        instance: Instance,
        operation: Operation,
    ) -> None:
        """Confirm a move that has arrived: nobody asked for it who could."""
        if instance.task_state is not None:
            return
        if instance.vm_state is not VmState.RESIZED:
            message = "" if instance.fault is None else instance.fault.message
            self._failed(connection, move, message or f"It is {instance.vm_state} now.")
            return
        row = BY_KEY["confirmResize" if instance.was is VmState.ACTIVE else "confirmResize_stopped"]
        try:
            with audit.part(connection):
                admitted = self._admission.admit_in(
                    connection,
                    row,
                    instance.id,
                    operation.actor,
                    why=_WHY,
                    told={"host": plan.host, "plan": plan.id},
                )
        except Refused as refused:
            self._failed(connection, move, f"It has arrived, and waits to be confirmed: {refused}")
            return
        host_plans.move_on(
            connection,
            move,
            MoveState.CONFIRMING,
            operation_id=admitted.operation.id,
            to_host=instance.host,
        )

    def _failed(self, connection: sa.Connection, move: KeptMove, message: str) -> None:
        host_plans.move_on(connection, move, MoveState.FAILED, message=message)

    def _end(self, connection: sa.Connection, plan: KeptPlan) -> None:
        now = self._admission.clock.now()
        if not host_plans.end(connection, plan.id, now):
            return
        tally: dict[str, int] = {}
        for move in host_plans.moves(connection, plan.id):
            tally[move.state.value] = tally.get(move.state.value, 0) + 1
        operations.record(
            connection,
            at=now,
            event="host",
            actor=system_actor(f"req-{plan.id}"),
            instance_id=None,
            action=f"{plan.kind}_done",
            detail={"host": plan.host, "plan": plan.id, "moves": tally},
        )

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            pause = _PERIOD
            try:
                if not await self.look():
                    pause = _IDLE
                self._admission.wake()
            except StoreUnavailable as error:
                log.warning("plans for hosts cannot be looked at now", error=str(error))
            except Exception:
                log.exception("plans for hosts could not be looked at; it is tried again")
            # Not wait_for: on Python 3.11 it loses a cancellation that comes together with the event.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._wake.wait()


#: Customers read it, so no host is named.
_WHY: Final = "The provider empties its host."


def _carried(move: KeptMove) -> bool:
    """Whether a line carries its instance to another host as an image."""
    return move.action is not None and BY_KEY[move.action].leaves


def _place(instance: Instance | None) -> str | None:
    return None if instance is None or not instance.host else instance.host
