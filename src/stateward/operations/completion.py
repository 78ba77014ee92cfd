"""Completion: an agent's result is applied once, if it is still about the operation in flight."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import sqlalchemy as sa

from stateward.bus.port import RESULTS, Bus
from stateward.domain.actions import BY_KEY
from stateward.domain.records import Observation, OperationState, Outcome, Result
from stateward.domain.states import Cause, Observed
from stateward.operations import finishing
from stateward.operations.admission import Admission
from stateward.store import hosts, instances, observations, operations

_STATE_OF = {
    Outcome.SUCCEEDED: OperationState.SUCCEEDED,
    Outcome.FAILED: OperationState.FAILED,
    Outcome.SUPERSEDED: OperationState.SUPERSEDED,
    Outcome.CANCELLED: OperationState.CANCELLED,
}
_decoder = msgspec.json.Decoder(Result)


class _Applied(msgspec.Struct, frozen=True):
    """What is left to do once a result's transaction is durable."""

    images: list[str]
    followed: bool


class Completion:
    """Applies results.

    Args:
        admission: whose database and clock to use, and by which what follows at once is admitted.
        settled: called with the instance's id after each result that counted.
    """

    def __init__(self, admission: Admission, settled: Callable[[str], None]) -> None:
        self._admission = admission
        self._database = admission.database
        self._clock = admission.clock
        self._settled = settled

    async def start(self, bus: Bus) -> None:
        """Take results from the bus from now on."""
        await bus.subscribe(RESULTS, self.handle)

    async def handle(self, payload: bytes) -> None:
        """Apply one result; raises when the database is away, and the bus then delivers it again."""
        result = _decoder.decode(payload)
        applied = await self._database.write(lambda connection: self._apply(connection, result))
        if applied is None:
            return
        if applied.followed:
            self._admission.wake()
        self._admission.forget_images(applied.images)
        self._settled(result.instance_id)

    def _apply(self, connection: sa.Connection, result: Result) -> _Applied | None:
        now = self._clock.now()
        operation = operations.get(connection, result.operation_id)
        if operation is None or operation.finished_at is not None:
            return None
        # Before the operation, as whoever overtakes it does: the other way round, PostgreSQL would find the two waiting
        # for each other and end one of them, a hold among others.
        instances.hold(connection, operation.instance_id)
        message = result.message if result.message is not None else operation.message
        if not operations.finish(connection, operation.id, _STATE_OF[result.outcome], now, message):
            return None
        # Before anybody judges what the operation has left.
        boots = hosts.boots_of(connection, operation.host)
        if boots is not None and boots.latest != result.boot_id:
            hosts.note_boot(connection, operation.host, result.boot_id, result.seq, now)
        if result.observation is not None:
            # Of a guest on a host that the instance has left since it says nothing, and hosts count by themselves.
            # As of now by our clock, as what is recorded of it is.
            seen = msgspec.structs.replace(result.observation, at=now)
            observations.observe(connection, seen, host=operation.host)
        elif result.outcome is Outcome.SUCCEEDED and BY_KEY[operation.action].wants is not None:
            # What was seen before it counts no more: the record will say what it brought about, and judged by the old
            # the guest would be brought back from there.
            observations.observe(connection, _unseen(result, now), host=operation.host)
        instance = instances.get(connection, result.instance_id)
        if instance is None:
            return None
        settled_result = result
        if result.outcome is Outcome.SUPERSEDED:
            # The agent gave it up for a newer fence, yet here it is the newest: the record must not keep waiting.
            settled_result = msgspec.structs.replace(
                result, outcome=Outcome.FAILED, message=message or "The host gave the operation up."
            )
        changed, gone = finishing.apply(connection, operation, instance, settled_result, now)
        operations.record(
            connection,
            at=now,
            event="finished",
            actor=operation.actor,
            instance_id=instance.id,
            operation_id=operation.id,
            action=operation.action,
            detail={"outcome": result.outcome.value, "message": message, "shutdown": result.shutdown}
            | operations.moved(instance, changed),
        )
        if settled_result.outcome is Outcome.FAILED and BY_KEY[operation.action].name == "hold":
            operations.alert(
                connection,
                f"The hold is placed, but what it had to do failed: {settled_result.message or ''} "
                "What a hold keeps off is switched off as soon as that can be done; see that it is.",
                at=now,
                actor=operation.actor,
                instance_id=instance.id,
                operation_id=operation.id,
                action=operation.action,
                detail={"expected": instance.vm_state.value, "observed": instance.observed.value},
            )
        followed = changed is not None and self._admission.follow_in(connection, operation, changed, result)
        return _Applied(images=gone, followed=followed)


def _unseen(result: Result, now: float) -> Observation:
    """Return that nobody knows how a guest is since an operation: the hypervisor could not be asked after it."""
    return Observation(
        instance_id=result.instance_id, observed=Observed.UNKNOWN, cause=Cause.OTHER, seq=result.seq, at=now
    )
