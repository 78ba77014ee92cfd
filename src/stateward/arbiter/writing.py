"""Writing verdicts: what the table says becomes a guarded UPDATE, an operation and an audit record.

Every write carries what the verdict was found by, and touches nothing where that is not so any more, or where the
host's instances are not judged now (``Frozen``): both are in the conditions that ``admit.conditions`` gives.
"""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
import structlog

from stateward.domain import admit
from stateward.domain.actions import BY_KEY, ENDS_OFF, Action, key, restores
from stateward.domain.admit import Condition, Test
from stateward.domain.errors import Refusal, Refused
from stateward.domain.locks import OperationClass
from stateward.domain.policies import CrashLoop, Policies
from stateward.domain.records import Fault, Instance, Operation, OperationState
from stateward.domain.states import Observed, VmState
from stateward.domain.steps import Step
from stateward.domain.verdicts import Verdict
from stateward.operations.admission import Admission, operation_for
from stateward.operations.asking import at_work
from stateward.operations.immediate import system_actor
from stateward.store import boots, hosts, instances, observations, operations

log = structlog.get_logger()


class Writing:
    """Writes what a verdict says."""

    def __init__(
        self, admission: Admission, policies: Policies, judge_later: Callable[[float, str], None]
    ) -> None:
        """Use an admission's database, clock and outbox; ``judge_later`` has an instance judged in so many seconds."""
        self._admission = admission
        self._policies = policies
        self._judge_later = judge_later

    async def no_alert(self, instance: Instance) -> None:
        """Note that there is nothing to alert of an instance; the next alert of it is news."""
        if instance.alerted is not None:
            await self._admission.database.write(
                lambda connection: observations.note_alert(connection, instance, None)
            )

    async def adopt(self, instance: Instance, verdict: Verdict) -> None:
        """Have the record follow the guest."""
        changes: dict[str, Any] = {
            "vm_state": verdict.becomes.value if verdict.becomes else None,
            # As of when it was seen first, not of when that was judged: people pay by it (R16).
            "state_since": instance.observed_at,
        }
        await self._write(instance, verdict, changes, alerts=verdict.alerts)

    async def quarantine(self, instance: Instance, verdict: Verdict) -> None:
        """Leave the instance to a person, in ERROR, and its guest exactly as it is."""
        fault = Fault(
            code=500,
            message=f"{verdict.says} Its guest is left as it is; find out why, then reset the instance's state.",
            created=self._admission.clock.now(),
        )
        await self._write(instance, verdict, {"vm_state": VmState.ERROR.value, "fault": fault}, alerts=True)

    async def restore(self, instance: Instance, verdict: Verdict) -> None:
        """Bring the guest back to the record; one that will not stay is left alone, in ERROR, if it may run at all."""
        actor = system_actor(f"req-{uuid.uuid4()}")
        loop = self._policies.crash_loop_of(instance)
        failed = f" The last attempt failed: {instance.fault.message}" if instance.fault is not None else ""
        last_seen = f"Last seen: {verdict.says}{failed}"
        too_often = (
            f"The guest had to be brought back {loop.restores} times within {loop.seconds:.0f} seconds"
        )

        def work(connection: sa.Connection) -> float | None:
            now = self._admission.clock.now()
            action = _chosen(connection, instance, verdict)
            if action.pending is None and at_work(connection, instance.id):
                # No task state keeps a second reap from being admitted beside the first.
                raise Refused(Refusal.OVERTAKEN, action=action.name, instance_id=instance.id)
            tries = operations.since(connection, instance.id, restores(), loop.seconds, now)
            # Who starts a locked guest again and again does not get it that way.
            kept = _kept(instance, action)
            if (
                action.pending is not None
                and not (kept or _never_left(action))
                and len(tries) >= loop.restores
            ):
                return None
            pause = _pause(tries, loop, now, kept=kept)
            if pause > 0:
                return pause
            self._admission.admit_in(
                connection, action, instance.id, actor, judged=instance, why=verdict.says
            )
            operations.record(
                connection,
                at=now,
                event="verdict",
                actor=actor,
                instance_id=instance.id,
                action=key(action),
                detail=_detail(instance, verdict),
            )
            if action.pending is not None and len(tries) == loop.restores:
                operations.alert(
                    connection,
                    f"{too_often}, and is again: it must not run. Find out who starts it, or why that fails. "
                    f"{last_seen}",
                    at=now,
                    actor=actor,
                    instance_id=instance.id,
                    action=key(action),
                    detail=_detail(instance, verdict),
                )
            return 0.0

        try:
            pause = await self._admission.database.write(work)
        except Refused as refused:
            # The verdict was about a state that has passed, and whoever changed that has it judged anew.
            log.debug("a verdict came too late", instance=instance.id, error=str(refused))
            return
        if pause is not None:
            if pause > 0:
                self._judge_later(pause, instance.id)
            else:
                self._admission.wake()
            return
        fault = Fault(
            code=500,
            message=f"{too_often} and is left alone. Find out why it goes off, then stop and start it or reboot "
            f"it hard. {last_seen}",
            created=self._admission.clock.now(),
        )
        await self._write(instance, verdict, {"vm_state": VmState.ERROR.value, "fault": fault}, alerts=True)

    async def alert(self, instance: Instance, verdict: Verdict) -> None:
        """Tell the operator, once for as long as it stays so."""
        if instance.alerted != instance.deviation:
            await self._write(instance, verdict, {})

    async def _write(
        self, instance: Instance, verdict: Verdict, changes: dict[str, Any], *, alerts: bool = False
    ) -> None:
        """Write a verdict that needs no agent, unless it comes too late."""

        def work(connection: sa.Connection) -> bool:
            now = self._admission.clock.now()
            return write_in(connection, now, instance, verdict, changes, alerts=alerts)

        await self._admission.database.write(work)


def write_in(
    connection: sa.Connection,
    now: float,
    instance: Instance,
    verdict: Verdict,
    changes: dict[str, Any],
    *,
    alerts: bool = False,
    cause: str | None = None,
) -> bool:
    """Write a verdict that needs no agent: the record's change, its operation and the audit record.

    Args:
        connection: in a transaction.
        now: seconds since the epoch.
        instance: as it was judged.
        verdict: what is written.
        changes: of the record; nothing is written where it is not as it was judged any more. An alert has none: what it
            tells is noted in the row, and it is not written where that is so already.
        alerts: a person has to look; that is a record of its own.
        cause: to be told in the stead of the observation's.

    Returns:
        Whether it was written; not, when it came too late.
    """
    action = BY_KEY["adopt"]
    actor = system_actor(f"req-{uuid.uuid4()}")
    checks = admit.conditions(action, actor.kind, judged=instance)
    if changes:
        written = changes | {"updated_at": now}
    else:
        told = instance.deviation
        written = {"alerted": told}
        checks += (Condition(column="alerted", test=Test.DIFFERS, value=told, refusal=Refusal.OVERTAKEN),)
    updated = instances.guarded_update(connection, instance.id, checks, written)
    if updated is None:
        return False
    if changes:
        operation = operation_for(
            action, updated, actor, now=now, operation_id=str(uuid.uuid4()), message=verdict.says
        )
        operations.insert(connection, operation)
    detail = _detail(instance, verdict) | ({} if cause is None else {"cause": cause})
    operations.record(
        connection,
        at=now,
        event="verdict",
        actor=actor,
        instance_id=instance.id,
        action=verdict.kind.value,
        detail=detail | operations.moved(instance, updated),
    )
    if alerts:
        fault = changes.get("fault")
        operations.alert(
            connection,
            verdict.says if fault is None else fault.message,
            at=now,
            actor=actor,
            instance_id=instance.id,
            action=verdict.kind.value,
            detail=detail,
        )
    return True


def judged(connection: sa.Connection, instance: Instance) -> bool:
    """Say whether an instance is judged now: its host's are, and it is not its host's boot that decides of it."""
    return hosts.frozen(connection, instance.host) is None and boots.awaited(connection, instance) is None


def _chosen(connection: sa.Connection, instance: Instance, verdict: Verdict) -> Action:
    """Return the row of a restore: of what its hold failed to have off, the one that does it as the newest hold wanted.

    A memory that shall be kept is evidence: the power alone is never taken of such a guest.
    """
    action, saving = BY_KEY[verdict.action or ""], BY_KEY["restore_held_saved"]
    if action.name != saving.name or instance.vm_state not in saving.when:
        return action
    hold = operations.newest(connection, instance.id, ENDS_OFF)
    return saving if hold is not None and ENDS_OFF[hold.action] else action


def _kept(instance: Instance, action: Action) -> bool:
    """Whether a restore keeps a guest off, or halted, that a lock lets nobody start (R1, R6, R7)."""
    blocks = instance.owner_blocks | instance.admin_blocks | instance.hold_blocks
    return bool(blocks & OperationClass.START) and not action.lets_run


def _never_left(action: Action) -> bool:
    """Whether a restore takes the power of what must be off: in ERROR its guest would run on, and its data be lost."""
    off = action.wants in {Observed.SHUTOFF, Observed.MISSING}
    return off and not action.lets_run and Step.SHUT_DOWN not in action.steps


def _pause(tries: list[Operation], loop: CrashLoop, now: float, *, kept: bool) -> float:
    """Return the seconds to wait before a guest is brought back again: longer after each time, however that ended.

    Where a lock keeps it off only what failed is waited for: who starts it again and again has it run no longer.
    """
    if kept:
        tries = list(itertools.takewhile(lambda each: each.state is OperationState.FAILED, tries))
    # What lies ahead was written by a clock that was set back since: it must not make the pause an hour.
    ended = [at for each in tries if (at := each.finished_at or each.started_at) <= now]
    return max(max(ended) + loop.wait(len(tries)) - now, 0.0) if ended else 0.0


def _detail(instance: Instance, verdict: Verdict) -> dict[str, Any]:
    return {
        "expected": instance.vm_state.value,
        "observed": instance.observed.value,
        "cause": instance.cause.value,
        "verdict": verdict.kind.value,
        "says": verdict.says,
        "decided_by": verdict.decided_by,
        "seen_at": deviates_since(instance),
    }


def deviates_since(instance: Instance) -> float | None:
    """Return since when record and guest differ, which is what the times to detect and to restore are counted from.

    That is when the later of the two became so: of a guest that is brought back again, when the try before ended.
    """
    return None if instance.observed_at is None else max(instance.observed_at, instance.updated_at)
