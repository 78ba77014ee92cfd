"""One step of the plan of a host's boot: one transaction that looks at all of it, and does what can be done now (R14).

What is waited for is in the rows: an operation that was admitted, the instance whose turn comes next, and since when.
So a step that is repeated, or done by another process, does nothing twice.
"""

from __future__ import annotations

import uuid
from collections import Counter
from typing import Any

import sqlalchemy as sa

from stateward.arbiter.writing import deviates_since, write_in
from stateward.domain.actions import BY_KEY
from stateward.domain.boots import (
    CAUSE,
    Fate,
    Kept,
    Pace,
    Turn,
    TurnState,
    as_rebooted,
    fate_of,
    next_turns,
)
from stateward.domain.errors import Refusal, Refused
from stateward.domain.policies import Policies
from stateward.domain.records import Fault, Instance
from stateward.domain.states import Cause, VmState
from stateward.domain.verdicts import Kind, Verdict
from stateward.operations.admission import Admission
from stateward.operations.immediate import system_actor
from stateward.store import audit, boots, hosts, instances, observations, operations


class Step:
    """A step, and what is left to do once its transaction is durable."""

    def __init__(
        self, connection: sa.Connection, admission: Admission, policies: Policies, pace: Pace
    ) -> None:
        """Prepare it.

        Args:
            connection: in a transaction.
            admission: by which instances are started.
            policies: what the arbiter's table leaves to them they decide.
            pace: the operator's.
        """
        self._connection = connection
        self._admission = admission
        self._pace = pace
        self._policies = policies
        self._now = admission.clock.now()
        #: Nothing is left of the plan.
        self.over = False
        #: Seconds until the next one if nothing happens until then; None: no time will make a difference.
        self.again_in: float | None = None
        #: Something is in the outbox.
        self.admitted = False
        #: What the arbiter's table has to judge now.
        self.judge: list[str] = []

    def take(self, host: str) -> None:
        """Do what can be done now of a host's plan."""
        if hosts.frozen(self._connection, host):
            return
        turns: list[Turn] = []
        ready: set[str] = set()
        for turn in map(self._not_ahead, boots.turns(self._connection, host, hold=True)):
            if turn.state is TurnState.STARTED:
                turns.append(self._ended(turn))
            elif turn.state is TurnState.WAITING:
                turns.append(self._look(turn, ready))
            else:
                turns.append(turn)
        chosen, self.again_in = next_turns(turns, ready, self._pace, self._now)
        for turn in chosen:
            turns[turns.index(turn)] = self._carry_out(turn)
        states = {turn.state for turn in turns}
        if states & {TurnState.WAITING, TurnState.STARTED}:
            if chosen:
                # Some of these may have been given up, and left their places to others.
                self.again_in = 0.0
            return
        self.over = True
        if TurnState.ENDED in states:
            self._end(host, turns)

    def _not_ahead(self, turn: Turn) -> Turn:
        """Take what was written by a clock that has been set back since for written now: nobody waits for it again."""
        times = {"began_at": turn.began_at, "ended_at": turn.ended_at}
        ahead = {name: self._now for name, at in times.items() if at is not None and at > self._now}
        return boots.change(self._connection, turn, **ahead) if ahead else turn

    def _look(self, turn: Turn, ready: set[str]) -> Turn:
        """See what is to be done about an instance that waits for its turn; it may have been changed meanwhile."""
        instance = instances.get(self._connection, turn.instance_id)
        if instance is None or (instance.fence, instance.host) != (turn.fence, turn.host):
            return self._give_up(turn, "overtaken")
        fate = rebooted_fate(instance, self._policies)
        if fate.kind is Kept.START:
            ready.add(turn.instance_id)
            return turn
        return turn if fate.kind is Kept.IN_FLIGHT else self._carry_out(turn)

    def _carry_out(self, turn: Turn) -> Turn:
        """Start an instance, or end its turn, by what it is now; it waits on while its host's are not judged.

        PostgreSQL lets locks come and go, and guests be seen otherwise, until its row is held: by an older look it
        would be left to the table, which starts what is locked.
        """
        instance = instances.hold(self._connection, turn.instance_id)
        if instance is None or (instance.fence, instance.host) != (turn.fence, turn.host):
            return self._give_up(turn, "overtaken")
        fate = rebooted_fate(instance, self._policies)
        if fate.kind is Kept.IN_FLIGHT:
            return turn
        try:
            with audit.part(self._connection):
                if fate.kind is Kept.START:
                    return self._begin(turn, instance, fate)
                return self._settle(turn, instance, fate)
        except Refused as refused:
            if refused.refusal is Refusal.FROZEN:
                return turn
            self.judge.append(instance.id)
            return self._give_up(turn, "overtaken")

    def _begin(self, turn: Turn, instance: Instance, fate: Fate) -> Turn:
        """Start an instance whose turn it is.

        Raises:
            Refused: it cannot be started now.
        """
        # First: what waits for its turn is nobody's to start.
        begun = boots.change(self._connection, turn, state=TurnState.STARTED.value)
        admitted = self._admission.admit_in(
            self._connection,
            BY_KEY[fate.action or ""],
            instance.id,
            system_actor(f"req-{uuid.uuid4()}"),
            fence=turn.fence,
            why=fate.says,
        )
        self.admitted = True
        record_fate(self._connection, instance, fate, self._now)
        return boots.change(
            self._connection,
            begun,
            operation_id=admitted.operation.id,
            fence=admitted.instance.fence,
            began_at=self._now,
        )

    def _settle(self, turn: Turn, instance: Instance, fate: Fate) -> Turn:
        """End the turn of an instance that is not to be started after all.

        Raises:
            Refused: its host's instances are not judged now.
        """
        if fate.kind is Kept.LEAVE:
            record_fate(self._connection, instance, fate, self._now)
            return boots.change(self._connection, turn, state=TurnState.LEFT.value, says=fate.says)
        # First here too, for the same reason.
        ended = self._give_up(turn, fate.kind.value)
        if fate.kind is Kept.ADOPT and not record_fate(self._connection, instance, fate, self._now):
            raise Refused(Refusal.FROZEN, action="adopt", instance_id=instance.id)
        # What became of it besides is for the table.
        self.judge.append(instance.id)
        return ended

    def _ended(self, turn: Turn) -> Turn:
        """End the turn of an instance whose operation has ended: that is when it counts as started."""
        operation = operations.get(self._connection, turn.operation_id or "")
        if operation is not None and operation.finished_at is None:
            return turn
        ended_at = None if operation is None else operation.finished_at
        return boots.change(
            self._connection,
            turn,
            state=TurnState.ENDED.value,
            ended_at=self._now if ended_at is None else min(ended_at, self._now),
            outcome="gone" if operation is None else operation.state.value,
        )

    def _give_up(self, turn: Turn, outcome: str) -> Turn:
        return boots.change(
            self._connection, turn, state=TurnState.ENDED.value, ended_at=self._now, outcome=outcome
        )

    def _end(self, host: str, turns: list[Turn]) -> None:
        """Say what came of a plan, and forget it."""
        began = [turn.began_at for turn in turns if turn.began_at is not None]
        operations.record(
            self._connection,
            at=self._now,
            event="host.restarted",
            actor=system_actor(f"req-{uuid.uuid4()}"),
            instance_id=None,
            detail={
                "host": host,
                "outcomes": Counter(turn.outcome or turn.state.value for turn in turns),
                "seconds": round(self._now - min(began), 3) if began else 0.0,
            },
        )
        boots.end(self._connection, host)


def rebooted_fate(instance: Instance, policies: Policies) -> Fate:
    """Say what becomes of an instance of a host that has booted."""
    return fate_of(instance, policies.judge(as_rebooted(instance)))


def record_fate(connection: sa.Connection, instance: Instance, fate: Fate, now: float) -> bool:
    """Write what becomes of an instance to its record, where that changes, and to the audit trail.

    Returns:
        False when the record was to change, or to stay, and something was admitted since it was read.
    """
    if fate.quiet:
        return True
    kind = _KINDS[fate.kind]
    if fate.becomes is not None:
        verdict = Verdict(
            expected=instance.vm_state,
            observed=instance.observed,
            causes=frozenset({Cause.HOST}),
            kind=kind,
            becomes=fate.becomes,
            says=fate.says,
        )
        changes: dict[str, Any] = {"vm_state": fate.becomes.value}
        alerts = fate.becomes is VmState.ERROR
        if alerts:
            changes["fault"] = Fault(code=500, message=fate.says, created=now)
        return write_in(connection, now, instance, verdict, changes, alerts=alerts, cause=CAUSE)
    if fate.kind is Kept.LEAVE and not observations.note_alert(connection, instance, instance.deviation):
        return False
    operations.record(
        connection,
        at=now,
        event="verdict",
        actor=system_actor(f"req-{uuid.uuid4()}"),
        instance_id=instance.id,
        action=fate.action or kind.value,
        detail={
            "expected": instance.vm_state.value,
            "observed": instance.observed.value,
            "cause": CAUSE,
            "verdict": kind.value,
            "says": fate.says,
            "seen_at": deviates_since(instance),
        },
    )
    return True


_KINDS = {Kept.START: Kind.RESTORE, Kept.ADOPT: Kind.ADOPT, Kept.LEAVE: Kind.ALERT}
