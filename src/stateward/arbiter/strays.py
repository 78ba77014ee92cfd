"""Copies on another host than the record's: an older one is removed, one that may be the right one is halted (R14).

What is known of a copy is not kept: its host says so with each look at everything, for as long as it is there.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Set as AbstractSet
from typing import Any, Final

import msgspec
import sqlalchemy as sa
import structlog

from stateward.domain import admit
from stateward.domain.actions import BY_KEY
from stateward.domain.errors import Refusal, Refused
from stateward.domain.policies import Policies
from stateward.domain.records import Actor, Fault, Instance, Observation
from stateward.domain.states import Observed
from stateward.domain.strays import stray_of
from stateward.domain.verdicts import Kind, Stray, Verdict
from stateward.operations.admission import Admission
from stateward.operations.asking import at_work
from stateward.operations.immediate import system_actor
from stateward.operations.preparing import Wanted
from stateward.store import hosts, instances, operations, strays
from stateward.store.engine import StoreUnavailable

log = structlog.get_logger()


#: Seconds for which an older copy is seen before it is removed: until then its record's host has said if its own guest
#: has gone, as it has where somebody just migrated it by hand to where it once was.
_SETTLE_SECONDS: Final = 30.0


class _Written(msgspec.Struct, frozen=True, kw_only=True):
    """What a verdict came to."""

    #: An agent has something to do.
    acts: bool
    #: What a person was told.
    told: str | None


class Strays:
    """Judges copies, one after another."""

    def __init__(self, admission: Admission, policies: Policies) -> None:
        """Use an admission's database, clock and outbox."""
        self._admission = admission
        self._policies = policies
        #: By instance and host, as what it was seen last.
        self._due: dict[tuple[str, str], Observation] = {}
        self._signal = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        #: What was told of copies that are there, by instance and host, so that each of it is told once.
        self._told: dict[tuple[str, str], set[str]] = {}
        #: When an older copy was seen first, by the event loop's time.
        self._older: dict[tuple[str, str], float] = {}

    async def start(self) -> None:
        """Judge what is noticed from now on."""
        self._task = asyncio.create_task(self._run(), name="strays")

    async def stop(self) -> None:
        """Stop; what was due is seen again in the next look at everything."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    def notice(self, host: str, observation: Observation) -> None:
        """Have a guest judged that was seen on a host that is not its record's."""
        self._due[observation.instance_id, host] = observation
        self._signal.set()

    def look(self, host: str, there: AbstractSet[str]) -> None:
        """Take note of which instances a look at everything found copies of; of the others nothing is known."""
        for notes in (self._told, self._older):
            for copy in [each for each in notes if each[1] == host and each[0] not in there]:
                notes.pop(copy, None)

    async def _run(self) -> None:
        while True:
            await self._signal.wait()
            self._signal.clear()
            while self._due:
                (instance_id, host), observation = next(iter(self._due.items()))
                del self._due[instance_id, host]
                try:
                    await self.judge(host, observation)
                except StoreUnavailable as error:
                    log.warning("a verdict on a copy could not be written", host=host, error=str(error))
                except Exception:
                    log.exception("a copy could not be judged", instance=instance_id, host=host)

    async def judge(self, host: str, observation: Observation) -> Verdict | None:
        """Judge one copy and do what the table says; None when it is none, or is not judged now."""
        found = await self._admission.database.read(lambda connection: _look(connection, host, observation))
        if found is None:
            return None
        instance, stray = found
        verdict = self._policies.judge_stray(instance, stray)
        if verdict.kind is Kind.IGNORE:
            return verdict
        if stray is Stray.OLDER and not self._settled(host, observation):
            return verdict
        copy = (instance.id, host)
        if verdict.kind is Kind.ALERT and copy in self._told:
            # It rests, as was told, or since it was halted.
            return verdict
        try:
            written = await self._admission.database.write(
                lambda connection: self._write(connection, instance, host, observation.observed, verdict)
            )
        except Refused as refused:
            # The verdict was about a state that has passed, or something is not finished: for as long as the copy is
            # there, its host's next look at everything has it judged anew, an older one from its first sight on.
            log.debug("a verdict came too late", instance=instance.id, error=str(refused))
            return verdict
        if written.told is not None:
            self._told.setdefault(copy, set()).add(written.told)
        if written.acts:
            self._admission.wake()
        log.info(
            "verdict on a copy",
            instance=instance.id,
            host=host,
            verdict=verdict.kind.value,
            says=verdict.says,
        )
        return verdict

    def _settled(self, host: str, observation: Observation) -> bool:
        """Say whether an older copy has been there for long enough; if not, it is judged again then."""
        loop, copy = asyncio.get_running_loop(), (observation.instance_id, host)
        first = self._older.get(copy)
        if first is None:
            self._older[copy] = loop.time()
            loop.call_later(_SETTLE_SECONDS, self._once_settled, host, observation)
            return False
        if loop.time() < first + _SETTLE_SECONDS:
            return False
        del self._older[copy]
        return True

    def _once_settled(self, host: str, observation: Observation) -> None:
        # A look at everything has not found it gone meanwhile.
        if (observation.instance_id, host) in self._older:
            self.notice(host, observation)

    def _write(
        self, connection: sa.Connection, instance: Instance, host: str, seen: Observed, verdict: Verdict
    ) -> _Written:
        """Write a verdict with what it has done.

        Raises:
            Refused: something else is being done to the instance, or it is not as it was judged any more.
        """
        now = self._admission.clock.now()
        actor = system_actor(f"req-{uuid.uuid4()}")
        if at_work(connection, instance.id):
            raise Refused(Refusal.OVERTAKEN, action="remove_stray", instance_id=instance.id)
        loop = self._policies.crash_loop_of(instance)
        action = None if verdict.action is None else BY_KEY[verdict.action]
        alerts, says = verdict.kind is not Kind.RESTORE, verdict.says
        if action is not None:
            tries = operations.since(connection, instance.id, {action.name}, loop.seconds, now)
            if len(tries) >= loop.restores:
                action, alerts = None, True
                says = f"{says} That was tried {loop.restores} times, and the copy is still there; do it by hand."
                if says in self._told.get((instance.id, host), ()):
                    return _Written(acts=False, told=None)
        changed = instance
        if verdict.becomes is not None and instance.vm_state is not verdict.becomes:
            changed = self._put_in_error(connection, instance, verdict, actor, now)
        if action is not None:
            self._admission.admit_in(
                connection,
                action,
                instance.id,
                actor,
                wanted=Wanted(host=host),
                # As this transaction has left it.
                judged=changed,
                # Without the host's name: customers read it. The audit record has it.
                why=verdict.says,
            )
        detail: dict[str, Any] = {
            "expected": instance.vm_state.value,
            "observed": verdict.observed.value,
            "cause": instance.cause.value,
            "verdict": verdict.kind.value,
            "says": says,
            "decided_by": verdict.decided_by,
            "host": host,
            "seen": seen.value,
        }
        operations.record(
            connection,
            at=now,
            event="verdict",
            actor=actor,
            instance_id=instance.id,
            action=verdict.action or verdict.kind.value,
            detail=detail | operations.moved(instance, changed),
        )
        # An alert's verdict is told as one (``domain.events``).
        if alerts and verdict.kind is not Kind.ALERT:
            operations.alert(
                connection,
                says,
                at=now,
                actor=actor,
                instance_id=instance.id,
                action=verdict.kind.value,
                detail=detail,
            )
        return _Written(acts=action is not None, told=says if alerts else None)

    def _put_in_error(
        self, connection: sa.Connection, instance: Instance, verdict: Verdict, actor: Actor, now: float
    ) -> Instance:
        """Leave the instance to a person; its own guest stays as it is.

        Raises:
            Refused: it is not as it was judged any more.
        """
        action = BY_KEY["adopt"]
        changed = instances.guarded_update(
            connection,
            instance.id,
            admit.conditions(action, actor.kind, judged=instance),
            {
                "vm_state": verdict.becomes,
                "fault": Fault(code=500, message=verdict.says, created=now),
                "updated_at": now,
            },
        )
        if changed is None:
            raise Refused(Refusal.OVERTAKEN, action=action.name, instance_id=instance.id)
        return changed


def _look(connection: sa.Connection, host: str, observation: Observation) -> tuple[Instance, Stray] | None:
    """Return the instance and what is known of its copy; None where it is none, or not judged now, or here."""
    instance = instances.get(connection, observation.instance_id)
    if instance is None or (instance.host and hosts.frozen(connection, instance.host)):
        return None
    if any(each.instance_id == instance.id for each in strays.on(connection, host)):
        # Left there when the host was fenced: it is rid of that before it is used again.
        return None
    there = hosts.named(connection, host)
    shared = there is not None and there.shared
    stray = stray_of(
        instance, host, observation, operations.of_instance(connection, instance.id), shared=shared
    )
    return None if stray is None else (instance, stray)
