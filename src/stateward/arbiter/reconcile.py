"""The arbiter: compares the record of an instance with what was seen of it, and has done what the table says.

It takes no input but an instance's id: whatever woke it, it reads the row and judges that (R11-R13). What agents say
comes in by ``intake``, and what follows from a verdict is written by ``writing``.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Iterable, Mapping

import sqlalchemy as sa
import structlog

from stateward.arbiter.boots import Boots
from stateward.arbiter.breaker import Breaker
from stateward.arbiter.intake import Intake
from stateward.arbiter.strays import Strays
from stateward.arbiter.writing import Writing, judged
from stateward.bus.port import Bus
from stateward.domain.boots import Pace
from stateward.domain.policies import NO_POLICIES, Policies
from stateward.domain.records import Instance
from stateward.domain.sweeps import SweepLimits
from stateward.domain.verdicts import Kind, Verdict
from stateward.operations.admission import Admission
from stateward.store import instances, observations
from stateward.store.engine import StoreUnavailable

log = structlog.get_logger()

#: Seconds until an instance is judged again whose verdict could not be written.
_RETRY_SECONDS = 1.0

#: Instances that are judged at a time.
_AT_ONCE = 32

#: Rows that are looked through at a time for those of which something may follow: a project may have ten thousand.
_REVIEWED_AT_ONCE = 500


class Arbiter:
    """Judges instances, woken by reports and by the end of operations."""

    def __init__(
        self,
        admission: Admission,
        policies: Policies = NO_POLICIES,
        pace: Pace | None = None,
        sweeps: Mapping[str | None, SweepLimits] = {},
    ) -> None:
        """Use an admission's database, clock and outbox; what the table leaves to policies these decide.

        Args:
            admission: see above.
            policies: see above.
            pace: of the restarts after a boot.
            sweeps: how many instances of a host may change at once, by its name; None is for all others.
        """
        self._database = admission.database
        self._policies = policies
        self._writing = Writing(admission, policies, self._later)
        self.boots = Boots(admission, policies, pace or Pace(), self.wake)
        self._strays = Strays(admission, policies)
        self.intake = Intake(
            admission,
            Breaker(sweeps),
            judge=self._later,
            boots=self.boots,
            strays=self._strays,
            policies=policies,
        )
        self._due: dict[str, None] = {}
        #: Instances that were locked or unlocked with many others; nothing was seen of them.
        self._reviewed: dict[str, None] = {}
        self._signal = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self, bus: Bus) -> None:
        """Take reports from now on."""
        self._task = asyncio.create_task(self._run(), name="arbiter")
        await self.boots.start()
        await self._strays.start()
        await self.intake.start(bus)

    async def stop(self) -> None:
        """Stop; what was due is due again with each host's first answer to the next life."""
        await self.boots.stop()
        await self._strays.stop()
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    def wake(self, instance_id: str) -> None:
        """Judge this instance soon."""
        self._due[instance_id] = None
        self._signal.set()
        self.boots.wake()

    def review(self, instance_ids: Iterable[str]) -> None:
        """Judge those of these instances soon that are not as recorded, a part of them at a time."""
        self._reviewed |= dict.fromkeys(instance_ids)
        self._signal.set()

    def _later(self, seconds: float, instance_id: str) -> None:
        if seconds:
            asyncio.get_running_loop().call_later(seconds, self.wake, instance_id)
        else:
            self.wake(instance_id)

    async def _run(self) -> None:
        while True:
            await self._signal.wait()
            self._signal.clear()
            while self._due or self._reviewed:
                # Several at a time, which share a commit: a host's hundred are judged together.
                some = _taken(self._due, _AT_ONCE)
                await asyncio.gather(*(self._judge(instance_id) for instance_id in some))
                if self._reviewed:
                    await self._look_through(_taken(self._reviewed, _REVIEWED_AT_ONCE))

    async def _look_through(self, instance_ids: tuple[str, ...]) -> None:
        """Have those judged of which something may follow; of all others one row in many is all that is read."""
        try:
            rows = await self._database.read(
                lambda connection: observations.seen_by_id(connection, instance_ids)
            )
            for row in rows:
                if row.alerted is not None or row.verdict(row.observed, row.cause).kind is not Kind.AGREE:
                    self.wake(row.id)
        except StoreUnavailable as error:
            log.warning("instances cannot be looked at now; it is tried again", error=str(error))
            asyncio.get_running_loop().call_later(_RETRY_SECONDS, self.review, instance_ids)
        except Exception:
            log.exception("instances could not be looked at; the next look at their hosts brings them back")

    async def _judge(self, instance_id: str) -> None:
        try:
            await self.reconcile(instance_id)
        except StoreUnavailable as error:
            log.warning("a verdict could not be written; it is judged again", error=str(error))
            self._later(_RETRY_SECONDS, instance_id)
        except Exception:
            # One instance's fault must not stop the judging of all others; the next report brings it back.
            log.exception("an instance could not be judged", instance=instance_id)

    async def reconcile(self, instance_id: str) -> Verdict | None:
        """Judge one instance and do what the table says.

        Returns:
            None when there is no such instance, or its host's are not judged now: whoever has them judged again wakes
            each. What is frozen between this look and the write is left by the write's own condition.
        """

        def look(connection: sa.Connection) -> tuple[Instance | None, bool]:
            found = instances.get(connection, instance_id)
            return found, found is not None and judged(connection, found)

        instance, now = await self._database.read(look)
        if instance is None:
            return None
        # Something was written of it: whether everything of its host is as judged is not known any more.
        self.intake.doubt(instance.host)
        if not now:
            return None
        verdict = self._policies.judge(instance)
        # What an operation in flight comes to is judged at its end.
        self.intake.judged(instance, left=verdict.kind is Kind.IGNORE and instance.task_state is None)
        if verdict.kind is not Kind.ALERT:
            await self._writing.no_alert(instance)
        match verdict.kind:
            case Kind.AGREE | Kind.IGNORE:
                return verdict
            case Kind.ADOPT:
                await self._writing.adopt(instance, verdict)
            case Kind.RESTORE:
                await self._writing.restore(instance, verdict)
            case Kind.ALERT:
                await self._writing.alert(instance, verdict)
            case Kind.QUARANTINE:
                await self._writing.quarantine(instance, verdict)
        log.info(
            "verdict",
            instance=instance_id,
            expected=instance.vm_state.value,
            observed=instance.observed.value,
            cause=instance.cause.value,
            verdict=verdict.kind.value,
            says=verdict.says,
            decided_by=verdict.decided_by,
        )
        return verdict


def _taken(waiting: dict[str, None], count: int) -> tuple[str, ...]:
    """Take the first that wait, so many at most."""
    some = tuple(itertools.islice(waiting, count))
    for each in some:
        del waiting[each]
    return some
