"""The arbiter: keeps what agents saw, compares it with the record, and does what the table says.

It takes no input but an instance's id: whatever woke it, it reads the row and judges that. Its writes carry the
fence it read, so a verdict about a state that has passed meanwhile touches nothing (R11-R13).
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from typing import Any

import msgspec
import sqlalchemy as sa
import structlog

from stateward.bus.port import REPORTS, Bus
from stateward.domain import admit
from stateward.domain.actions import BY_KEY, restores
from stateward.domain.admit import Condition, Test
from stateward.domain.errors import Refusal, Refused
from stateward.domain.records import Fault, Instance, Observation, Operation, OperationState, Report
from stateward.domain.states import Cause, Observed, VmState
from stateward.domain.verdicts import Kind, Verdict, judge, judge_instance
from stateward.operations.admission import Admission, operation_for
from stateward.operations.immediate import system_actor
from stateward.store import instances, observations, operations
from stateward.store.engine import StoreUnavailable

log = structlog.get_logger()

#: Seconds until an instance is judged again whose verdict could not be written.
_RETRY_SECONDS = 1.0

#: Seconds between the first failed attempt to bring a guest back and the second.
_FIRST_PAUSE_SECONDS = 0.5

_decoder = msgspec.json.Decoder(Report)


class CrashLoop(msgspec.Struct, frozen=True, kw_only=True):
    """A guest that had to be brought back this often within so many seconds is left alone, in ERROR."""

    restores: int = 5
    seconds: float = 600.0


class Arbiter:
    """Judges instances, woken by reports and by the end of operations."""

    def __init__(self, admission: Admission, crash_loop: CrashLoop | None = None) -> None:
        """Use an admission's database, clock and outbox."""
        self._admission = admission
        self._crash_loop = crash_loop or CrashLoop()
        self._due: dict[str, None] = {}
        self._signal = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        #: What was alerted last, so that a deviation that stays is told once.
        self._alerted: dict[str, tuple[VmState, Observed, Cause]] = {}
        #: The latest observation taken note of; rows keep only those that were news.
        self._seen: dict[tuple[str, str], int] = {}

    async def start(self, bus: Bus) -> None:
        """Take reports from now on."""
        self._task = asyncio.create_task(self._run(), name="arbiter")
        await bus.subscribe(REPORTS, self.handle)

    async def stop(self) -> None:
        """Stop; what was due is seen again in the next report."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    def wake(self, instance_id: str) -> None:
        """Judge this instance soon."""
        self._due[instance_id] = None
        self._signal.set()

    async def handle(self, payload: bytes) -> None:
        """Keep a report's observations and judge what is not as recorded."""
        report = _decoder.decode(payload)
        news = await self._admission.database.read(lambda connection: self._news(connection, report))
        if not news:
            return
        due = await self._admission.database.write(lambda connection: _keep(connection, report.host, news))
        # Only now: a report that could not be kept comes again, and must count then.
        for each in news:
            seen = (report.host, each.instance_id)
            self._seen[seen] = max(each.seq, self._seen.get(seen, 0))
        for instance_id in due:
            self.wake(instance_id)

    def _news(self, connection: sa.Connection, report: Report) -> list[Observation]:
        """Return what of a report is worth a write: what changes a row, or what a row still disagrees with.

        A steady host's relist therefore writes nothing.
        """
        named = {observation.instance_id: observation for observation in report.observations}
        known = observations.seen_on(connection, report.host) if report.complete else []
        living = {row.id for row in known}
        others = [instance_id for instance_id in named if instance_id not in living]
        if others:
            # Deleted ones whose guest is still there, or after a report of a few: those few.
            known += observations.seen_by_id(connection, others)
        news: list[Observation] = []
        for row in known:
            observation = named.get(row.id) or Observation(
                instance_id=row.id, observed=Observed.MISSING, cause=Cause.OTHER, seq=report.seq, at=report.at
            )
            # Each host counts by itself.
            seen = (report.host, row.id)
            if row.host != report.host or observation.seq <= max(row.observed_seq, self._seen.get(seen, 0)):
                continue
            changed = (row.observed, row.cause) != (observation.observed, observation.cause)
            if changed or self._undone(row):
                news.append(observation)
            else:
                self._seen[seen] = observation.seq
        return news

    def _undone(self, row: observations.Seen) -> bool:
        """Say whether something was due for what was seen before, and has not been done."""
        if row.task_state is not None:
            return False
        verdict = judge(
            row.vm_state,
            row.observed,
            row.cause,
            locked=row.locked_by is not None,
            held=bool(row.hold_blocks),
            kept_off=row.kept_off,
        )
        return verdict.kind in {Kind.ADOPT, Kind.RESTORE}

    async def _run(self) -> None:
        while True:
            await self._signal.wait()
            self._signal.clear()
            while self._due:
                instance_id = next(iter(self._due))
                del self._due[instance_id]
                try:
                    await self.reconcile(instance_id)
                except StoreUnavailable as error:
                    log.warning("a verdict could not be written; it is judged again", error=str(error))
                    asyncio.get_running_loop().call_later(_RETRY_SECONDS, self.wake, instance_id)
                except Exception:
                    # One instance's fault must not stop the judging of all others; the next report brings it back.
                    log.exception("an instance could not be judged", instance=instance_id)

    async def reconcile(self, instance_id: str) -> Verdict | None:
        """Judge one instance and do what the table says; None when there is no such instance."""
        instance = await self._admission.database.read(
            lambda connection: instances.get(connection, instance_id)
        )
        if instance is None:
            return None
        verdict = judge_instance(instance)
        if verdict.kind is not Kind.ALERT:
            self._alerted.pop(instance_id, None)
        match verdict.kind:
            case Kind.AGREE | Kind.IGNORE:
                return verdict
            case Kind.ADOPT:
                await self._adopt(instance, verdict)
            case Kind.RESTORE:
                await self._restore(instance, verdict)
            case Kind.ALERT:
                await self._alert(instance, verdict)
        log.info(
            "verdict",
            instance=instance_id,
            expected=instance.vm_state.value,
            observed=instance.observed.value,
            cause=instance.cause.value,
            verdict=verdict.kind.value,
            says=verdict.says,
        )
        return verdict

    async def _adopt(self, instance: Instance, verdict: Verdict) -> None:
        changes: dict[str, Any] = {"vm_state": verdict.becomes.value if verdict.becomes else None}
        await self._write(instance, verdict, changes)

    async def _restore(self, instance: Instance, verdict: Verdict) -> None:
        action = BY_KEY[verdict.action or ""]
        actor = system_actor(f"req-{uuid.uuid4()}")

        def work(connection: sa.Connection) -> float | None:
            now = self._admission.clock.now()
            if action.pending is None and operations.unfinished(connection, instance.id):
                # No task state keeps a second reap from being admitted beside the first.
                raise Refused(Refusal.OVERTAKEN, action=action.name, instance_id=instance.id)
            tries = operations.since(connection, instance.id, restores(), now - self._crash_loop.seconds)
            # Who starts a held guest again and again does not get it that way.
            if action.pending is not None and not instance.held and len(tries) >= self._crash_loop.restores:
                return None
            pause = _pause(tries, now)
            if pause > 0:
                return pause
            self._admission.admit_in(
                connection, action, instance.id, actor, fence=instance.fence, why=verdict.says
            )
            operations.record(
                connection,
                at=now,
                event="verdict",
                actor=actor,
                instance_id=instance.id,
                action=verdict.action,
                detail=_detail(instance, verdict),
            )
            return 0.0

        try:
            pause = await self._admission.database.write(work)
        except Refused as refused:
            # Something was admitted since the row was read: the verdict was about a state that has passed.
            log.debug("a verdict came too late", instance=instance.id, error=str(refused))
            return
        if pause is not None:
            if pause > 0:
                asyncio.get_running_loop().call_later(pause, self.wake, instance.id)
            else:
                self._admission.wake()
            return
        last = f" The last attempt failed: {instance.fault.message}" if instance.fault is not None else ""
        fault = Fault(
            code=500,
            message=f"The guest had to be brought back {self._crash_loop.restores} times within "
            f"{self._crash_loop.seconds:.0f} seconds and is left alone. Find out why it goes off, then stop and "
            f"start it or reboot it hard. Last seen: {verdict.says}{last}",
            created=self._admission.clock.now(),
        )
        await self._write(instance, verdict, {"vm_state": VmState.ERROR.value, "fault": fault})

    async def _alert(self, instance: Instance, verdict: Verdict) -> None:
        what = (instance.vm_state, instance.observed, instance.cause)
        if self._alerted.get(instance.id) == what:
            return
        await self._write(instance, verdict, {})
        self._alerted[instance.id] = what

    async def _write(self, instance: Instance, verdict: Verdict, changes: dict[str, Any]) -> None:
        """Write a verdict that needs no agent: the record's change, its operation and the audit record."""
        action = BY_KEY["adopt"]
        actor = system_actor(f"req-{uuid.uuid4()}")
        checks = (
            *admit.conditions(action, actor.kind, fence=instance.fence),
            Condition(
                column="observed_seq",
                test=Test.EQUALS,
                value=instance.observed_seq,
                refusal=Refusal.OVERTAKEN,
            ),
        )

        def work(connection: sa.Connection) -> None:
            now = self._admission.clock.now()
            if changes:
                updated = instances.guarded_update(
                    connection, instance.id, checks, changes | {"updated_at": now}
                )
                if updated is None:
                    return
                operation = operation_for(
                    action, updated, actor, now=now, operation_id=str(uuid.uuid4()), message=verdict.says
                )
                operations.insert(connection, operation)
            operations.record(
                connection,
                at=now,
                event="verdict",
                actor=actor,
                instance_id=instance.id,
                action=verdict.kind.value,
                detail=_detail(instance, verdict),
            )

        await self._admission.database.write(work)


def _pause(tries: list[Operation], now: float) -> float:
    """Return the seconds to wait before a guest is brought back again: after failed attempts, twice as long each."""
    failed = 0
    for operation in tries:
        if operation.state is not OperationState.FAILED:
            break
        failed += 1
    if not failed:
        return 0.0
    ended = tries[0].finished_at or tries[0].started_at
    return max(ended + _FIRST_PAUSE_SECONDS * float(2 ** (failed - 1)) - now, 0.0)


def _detail(instance: Instance, verdict: Verdict) -> dict[str, Any]:
    return {
        "expected": instance.vm_state.value,
        "observed": instance.observed.value,
        "cause": instance.cause.value,
        "verdict": verdict.kind.value,
        "says": verdict.says,
    }


def _keep(connection: sa.Connection, host: str, news: list[Observation]) -> list[str]:
    return [each.instance_id for each in news if observations.observe(connection, each, host=host)]
