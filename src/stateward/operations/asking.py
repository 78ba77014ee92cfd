"""Actions that are a question to the guest, asked while the request waits: nothing of the question is kept.

They are admitted like every other, by their row's conditions in a guarded UPDATE, and leave an operation and audit
records; but no dispatch, because that would write the question down. So a kill in between loses it, and the next
start says so instead of asking again.
"""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec
import sqlalchemy as sa

from stateward.domain import admit
from stateward.domain.actions import BY_KEY, Action, key
from stateward.domain.errors import Refusal, Refused
from stateward.domain.records import Actor, Instance, Operation, OperationState
from stateward.operations.admission import Admission, operation_for
from stateward.operations.gate import admitted_row
from stateward.operations.refusals import recorded
from stateward.store import operations

_LOST: Final = (
    "The server was ended before the guest's answer came, so it is not known whether it was done. Ask again."
)


async def ask(
    admission: Admission,
    action: Action,
    instance_id: str,
    actor: Actor,
    question: Callable[[Instance], Awaitable[None]],
    *,
    project_id: str | None,
) -> Operation:
    """Admit an action, ask its question, and write down what came of it; return the operation, which succeeded.

    Args:
        admission: its database and clock are used.
        action: the row.
        instance_id: which instance.
        actor: who asks.
        question: asks it; what it raises goes into the operation as its sentence, and on to the caller.
        project_id: the caller sees only this project; None for all.

    Raises:
        Refused: the row does not admit it, or the instance is on no host.
    """
    checks = admit.conditions(action, actor.kind, project_id=project_id)

    def begin(connection: sa.Connection) -> tuple[Instance, Operation]:
        now = admission.clock.now()
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

    instance, operation = await admission.database.write(begin)
    try:
        await question(instance)
    except Exception as error:
        sentence = str(error)
        await admission.database.write(
            lambda connection: _end(
                connection, operation, OperationState.FAILED, sentence, admission.clock.now()
            )
        )
        raise
    await admission.database.write(
        lambda connection: _end(connection, operation, OperationState.SUCCEEDED, None, admission.clock.now())
    )
    return operation


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
