"""Actions that are a question to the guest, asked while the request waits: nothing of the question is kept.

They are admitted like every other, by their row's conditions in a guarded UPDATE, and leave an operation and audit
records; but no dispatch, because that would write the question down. So a kill in between loses it, and the next
start says so instead of asking again. While the process lives, each ends: whoever asked may go away meanwhile, and an
end that cannot be written is written later.
"""

from __future__ import annotations

import asyncio
import functools
import uuid
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, TypeVar

import msgspec
import sqlalchemy as sa
import structlog

from stateward.domain import admit
from stateward.domain.actions import BY_KEY, Action, key
from stateward.domain.errors import Refusal, Refused
from stateward.domain.records import Actor, Instance, Operation, OperationState
from stateward.operations.admission import Admission, operation_for
from stateward.operations.gate import admitted_row
from stateward.operations.refusals import recorded
from stateward.store import operations
from stateward.store.engine import StoreUnavailable

T = TypeVar("T")

log = structlog.get_logger()

#: Seconds until an end is written again that could not be.
_RETRY_SECONDS: Final = 1.0
_LOST: Final = (
    "The server was ended before the guest's answer came, so it is not known whether it was done. Ask again."
)


class Asking:
    """Asks, and sees each question to its end."""

    def __init__(self, admission: Admission) -> None:
        """Use an admission's database and clock."""
        self._admission = admission
        #: Questions under way, and ends that are still to be written.
        self._tasks: set[asyncio.Task[Any]] = set()

    async def start(self) -> None:
        """End what a former life was asking."""
        lost = await end_lost(self._admission)
        if lost:
            log.warning("questions to guests were lost", count=lost)

    async def stop(self) -> None:
        """Stop; what has not ended the next start ends."""
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def ask(
        self,
        action: Action,
        instance_id: str,
        actor: Actor,
        question: Callable[[Instance], Awaitable[None]],
        *,
        project_id: str | None,
    ) -> Operation:
        """Admit an action, ask its question, and write down what came of it; return the operation, which succeeded.

        Whoever is cancelled meanwhile is not told; the question is asked and ended all the same.

        Args:
            action: the row.
            instance_id: which instance.
            actor: who asks.
            question: asks it; what it raises goes into the operation as its sentence, and on to the caller.
            project_id: the caller sees only this project; None for all.

        Raises:
            Refused: the row does not admit it, or the instance is on no host.
            StoreUnavailable: it could not be admitted, or what came of it not be written yet.
        """
        checks = admit.conditions(action, actor.kind, project_id=project_id)
        asked = self._task(self._asked(action, instance_id, actor, checks, question))
        return await asyncio.shield(asked)

    async def _asked(
        self,
        action: Action,
        instance_id: str,
        actor: Actor,
        checks: tuple[admit.Condition, ...],
        question: Callable[[Instance], Awaitable[None]],
    ) -> Operation:
        def begin(connection: sa.Connection) -> tuple[Instance, Operation]:
            now = self._admission.clock.now()
            with recorded(connection, key(action), instance_id, actor, now):
                instance = admitted_row(
                    connection,
                    action,
                    instance_id,
                    checks,
                    {"updated_at": now},
                    actor=actor,
                    bump_fence=False,
                    now=now,
                )
            if not instance.host:
                raise Refused(Refusal.NO_HOST, instance_id=instance_id)
            operation = msgspec.structs.replace(
                operation_for(action, instance, actor, now=now, operation_id=str(uuid.uuid4())),
                state=OperationState.RUNNING,
                finished_at=None,
            )
            operations.insert(connection, operation)
            operations.record(
                connection,
                at=now,
                event="admitted",
                actor=actor,
                instance_id=instance_id,
                operation_id=operation.id,
                action=operation.action,
            )
            return instance, operation

        instance, operation = await self._admission.database.write(begin)
        try:
            await question(instance)
        except Exception as error:
            await self._ended(operation, OperationState.FAILED, str(error))
            raise
        await self._ended(operation, OperationState.SUCCEEDED, None)
        return operation

    async def _ended(self, operation: Operation, state: OperationState, message: str | None) -> None:
        """Write an end down; where that fails now the caller is told so, and it is written later."""
        write = functools.partial(
            _end, operation=operation, state=state, message=message, now=self._admission.clock.now()
        )
        try:
            await self._admission.database.write(write)
        except Exception:
            self._task(self._later(write))
            raise

    async def _later(self, write: Callable[[sa.Connection], None]) -> None:
        while True:
            await asyncio.sleep(_RETRY_SECONDS)
            try:
                await self._admission.database.write(write)
            except StoreUnavailable as error:
                log.warning("the end of a question cannot be written now", error=str(error))
            except Exception:
                log.exception("the end of a question could not be written; it is tried again")
            else:
                return

    def _task(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work, name="a question to a guest")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def at_work(connection: sa.Connection, instance_id: str) -> bool:
    """Say whether an agent works on an instance, or will; what is asked of its guest keeps nothing from being done."""
    return any(BY_KEY[each.action].is_operation for each in operations.unfinished(connection, instance_id))


async def end_lost(admission: Admission) -> int:
    """End the questions that a killed process was asking; return how many."""

    def work(connection: sa.Connection) -> int:
        lost = [each for each in operations.unfinished(connection) if not BY_KEY[each.action].is_operation]
        for operation in lost:
            _end(connection, operation, OperationState.FAILED, _LOST, admission.clock.now())
        return len(lost)

    return await admission.database.write(work)


def _end(
    connection: sa.Connection, operation: Operation, state: OperationState, message: str | None, now: float
) -> None:
    if not operations.finish(connection, operation.id, state, now, message):
        return
    operations.record(
        connection,
        at=now,
        event="finished",
        actor=operation.actor,
        instance_id=operation.instance_id,
        operation_id=operation.id,
        action=operation.action,
        detail={"outcome": state.value, "message": message},
    )
