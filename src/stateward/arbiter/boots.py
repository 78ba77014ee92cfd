"""After a host has booted: its whole inventory is judged as one plan, and the plan is carried out (R14, ADR 0019).

The plan is made in the transaction that has the host's instances judged again, so nothing is started before. It is
rows, and each step of it is one transaction that begins with a look at all of them: killed anywhere, whoever comes
next goes on with the rest.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections import Counter
from collections.abc import Callable

import msgspec
import sqlalchemy as sa
import structlog

from stateward.arbiter.turns import Step, rebooted_fate, record_fate
from stateward.domain.boots import Fate, Kept, Pace, Turn, TurnState, priority_of, summary
from stateward.domain.policies import Policies
from stateward.domain.records import Instance
from stateward.operations.admission import Admission
from stateward.operations.immediate import system_actor
from stateward.store import boots, hosts, instances, operations
from stateward.store.engine import StoreUnavailable

log = structlog.get_logger()

#: Seconds until a plan is looked at again of which nothing was told: its host may be frozen, the database away.
_PERIOD = 5.0
#: Seconds until plans are looked for again that nobody told of; only a commit whose answer was lost leaves one.
_FIND_PERIOD = 30.0


class Boots:
    """Plans, and carries out what was planned."""

    def __init__(
        self, admission: Admission, policies: Policies, pace: Pace, judge: Callable[[str], None]
    ) -> None:
        """Use an admission's database, clock and outbox; ``judge`` is called with what is for the table to judge."""
        self._admission = admission
        self._database = admission.database
        self._policies = policies
        self._pace = pace
        self._judge = judge
        #: Hosts with a plan under way, each with the time to look at it again, by the event loop's: no clock that jumps
        #: has anybody wait.
        self._hosts: dict[str, float] = {}
        self._signal = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Carry out plans from now on, also those that a former life left."""
        self._task = asyncio.create_task(self._run(), name="boots")

    async def stop(self) -> None:
        """Stop; the plans are in the database."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    def wake(self) -> None:
        """Look at the plans: an operation has ended, or there is a new one."""
        if self._hosts:
            self._hosts = dict.fromkeys(self._hosts, 0.0)
            self._signal.set()

    def planned(self, host: str) -> None:
        """Begin with a host's plan, once it is durable."""
        self._hosts[host] = 0.0
        self._signal.set()

    def judge_in(self, connection: sa.Connection, host: str, boot_id: str) -> list[str] | None:
        """Judge the inventory of a host that has booted, if that is what its instances wait for.

        To be called in the transaction that keeps the first complete report of that boot.

        Returns:
            Every instance there, for the table to judge what the boot does not explain; None: they wait for nothing, or
            for something else.
        """
        before = hosts.boots_of(connection, host)
        if not hosts.judged_in(connection, host, boot_id):
            return None
        now = self._admission.clock.now()
        found = instances.on_host(connection, host)
        fates: list[Fate] = []
        plan: list[Turn] = []
        # What an older plan says counts no more.
        boots.begin(connection, host, ())
        for instance in found:
            fate = self._fate_in(connection, instance, now)
            fates.append(fate)
            state = _STATE.get(fate.kind)
            if state is not None:
                turn = Turn(
                    instance_id=instance.id,
                    host=host,
                    boot_id=boot_id,
                    fence=instance.fence,
                    priority=priority_of(instance, self._pace.priority),
                    number=instance.number,
                    state=state,
                )
                left = state is TurnState.LEFT
                plan.append(msgspec.structs.replace(turn, says=fate.says) if left else turn)
        boots.begin(connection, host, plan)
        starts = Counter(turn.priority for turn in plan if turn.state is TurnState.WAITING)
        operations.record(
            connection,
            at=now,
            event="host.booted",
            actor=system_actor(f"req-{uuid.uuid4()}"),
            instance_id=None,
            detail={
                "host": host,
                "boot_id": boot_id,
                "boot_before": None if before is None else before.judged,
                "instances": len(found),
                "plan": summary(fates),
                "priorities": [[each, starts[each]] for each in sorted(starts, reverse=True)],
                "parallel": self._pace.parallel,
                "delay": self._pace.delay,
            },
        )
        # Last: of a frozen host nothing could be written above. Its plan waits with it.
        hosts.freeze_down(connection, host)
        return [instance.id for instance in found]

    def _fate_in(self, connection: sa.Connection, instance: Instance, now: float) -> Fate:
        """Say what becomes of an instance, and write that down where it says something to a person or to the record."""
        told = {Kept.ADOPT, Kept.LEAVE}
        fate = rebooted_fate(instance, self._policies)
        if fate.kind not in told:
            return fate
        # Until it is held, PostgreSQL lets locks come and go, and left to the table it would be started against one.
        held = instances.hold(connection, instance.id)
        if held is None or (held.fence, held.host) != (instance.fence, instance.host):
            return Fate(kind=Kept.TABLE)
        fate = rebooted_fate(held, self._policies)
        if fate.kind in told and not record_fate(connection, held, fate, now):
            return Fate(kind=Kept.TABLE)
        return fate

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        find_at = 0.0
        while True:
            now = loop.time()
            if find_at <= now:
                find_at = now + _FIND_PERIOD
                await self._find()
            for host in [each for each, at in self._hosts.items() if at <= now]:
                self._hosts[host] = now + _PERIOD
                try:
                    await self.step(host)
                except StoreUnavailable as error:
                    log.warning("a plan of restarts waits for the database", host=host, error=str(error))
                except Exception:
                    # One host's fault must not keep the guests of all others off.
                    log.exception("a plan of restarts could not be looked at", host=host)
            rest = min([find_at, *self._hosts.values()])
            # Not wait_for: on Python 3.11 it loses a cancellation that comes together with the event.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(rest):
                    await self._signal.wait()
            self._signal.clear()

    async def _find(self) -> None:
        """Find the plans that nobody told of: a former life's, or one whose commit was done and not answered."""
        try:
            for host in await self._database.read(boots.open_on):
                self._hosts.setdefault(host, 0.0)
        except StoreUnavailable as error:
            log.warning("plans of restarts cannot be looked for now", error=str(error))
        except Exception:
            # It must not end the plans that are known.
            log.exception("plans of restarts could not be looked for; it is tried again")

    async def step(self, host: str) -> None:
        """Do what can be done now of a host's plan."""
        mark = self._hosts.get(host)

        def work(connection: sa.Connection) -> Step:
            step = Step(connection, self._admission, self._policies, self._pace)
            step.take(host)
            return step

        done = await self._database.write(work)
        if done.over:
            # Unless another plan has begun since.
            if self._hosts.get(host) == mark:
                self._hosts.pop(host, None)
        elif done.again_in is not None:
            again_at = asyncio.get_running_loop().time() + done.again_in
            self._hosts[host] = min(again_at, self._hosts.get(host, again_at))
        if done.admitted:
            self._admission.wake()
        for instance_id in done.judge:
            self._judge(instance_id)


_STATE = {
    Kept.START: TurnState.WAITING,
    Kept.IN_FLIGHT: TurnState.WAITING,
    Kept.LEAVE: TurnState.LEFT,
}
