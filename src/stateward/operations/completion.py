"""Completion: an agent's result is applied once, if it is still about the operation in flight."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import sqlalchemy as sa

from stateward.bus.port import RESULTS, Bus
from stateward.clock import Clock
from stateward.domain.actions import BY_KEY
from stateward.domain.admit import Condition, Test
from stateward.domain.errors import Refusal
from stateward.domain.records import Actor, OperationState, Outcome, Result
from stateward.domain.settle import settle
from stateward.domain.states import ON_NO_HOST
from stateward.store import claims, instances, observations, operations
from stateward.store.engine import Database

_STATE_OF = {
    Outcome.SUCCEEDED: OperationState.SUCCEEDED,
    Outcome.FAILED: OperationState.FAILED,
    Outcome.SUPERSEDED: OperationState.SUPERSEDED,
    Outcome.CANCELLED: OperationState.CANCELLED,
}
_decoder = msgspec.json.Decoder(Result)


class Completion:
    """Applies results; ``settled`` is called with the instance's id after each that counted."""

    def __init__(self, database: Database, clock: Clock, settled: Callable[[str], None]) -> None:
        """Keep the ports."""
        self._database = database
        self._clock = clock
        self._settled = settled

    async def start(self, bus: Bus) -> None:
        """Take results from the bus from now on."""
        await bus.subscribe(RESULTS, self.handle)

    async def handle(self, payload: bytes) -> None:
        """Apply one result; raises when the database is away, and the bus then delivers it again."""
        result = _decoder.decode(payload)
        if await self._database.write(lambda connection: self._apply(connection, result)):
            self._settled(result.instance_id)

    def _apply(self, connection: sa.Connection, result: Result) -> bool:
        now = self._clock.now()
        operation = operations.get(connection, result.operation_id)
        if operation is None or operation.finished_at is not None:
            return False
        message = result.message if result.message is not None else operation.message
        if not operations.finish(connection, operation.id, _STATE_OF[result.outcome], now, message):
            return False
        if result.observation is not None:
            observations.observe(connection, result.observation)
        instance = instances.get(connection, result.instance_id)
        if instance is None:
            return False
        settled_result = result
        if result.outcome is Outcome.SUPERSEDED:
            # The agent gave it up for a newer fence, yet here it is the newest: the record must not keep waiting.
            settled_result = msgspec.structs.replace(
                result, outcome=Outcome.FAILED, message=message or "The host gave the operation up."
            )
        changes = settle(BY_KEY[operation.action], instance, settled_result, now)
        checks = (
            Condition(column="fence", test=Test.EQUALS, value=operation.fence, refusal=Refusal.OVERTAKEN),
        )
        changed = instances.guarded_update(connection, instance.id, checks, changes)
        if changed is not None and changed.vm_state in ON_NO_HOST:
            claims.release(connection, changed.id)
        operations.record(
            connection,
            at=now,
            event="finished",
            actor=Actor(
                kind=operation.actor_kind,
                user_id=operation.user_id,
                project_id=operation.project_id,
                request_id=operation.request_id,
            ),
            instance_id=instance.id,
            operation_id=operation.id,
            action=operation.action,
            detail={"outcome": result.outcome.value, "message": message, "shutdown": result.shutdown},
        )
        return True
