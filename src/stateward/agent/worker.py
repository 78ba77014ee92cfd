"""The worker: carries out the operations dispatched to one host.

Each instance has a lane of its own, in which operations run one after another; lanes run side by side, so a
guest that takes its time holds nobody up. What is begun is journaled first, so a killed agent goes on where it
was; what a newer fence overtook stops at its next step, and a wait for a guest at once (B3).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Awaitable, Callable

import msgspec
import structlog

from stateward.agent.driver import Driver, DriverError, HypervisorUnavailable
from stateward.agent.journal import Journal
from stateward.agent.limits import CallHung
from stateward.agent.steps import STEPS
from stateward.agent.telling import Telling
from stateward.agent.watch import Watch
from stateward.agent.work import Cancelled, LeftOn, Superseded, look
from stateward.bus.port import RESULTS, Bus
from stateward.clock import Clock
from stateward.domain.records import Command, Dispatch, Observation, Order, Outcome, Result, WaitsFor
from stateward.domain.shutdown import Ending, Rung
from stateward.domain.states import Observed
from stateward.domain.steps import Step

log = structlog.get_logger()

#: Seconds until a hypervisor that was away is tried again without a signal that it is back.
_RETRY_SECONDS = 1.0

#: Times that a step is tried whose driver calls hang; the guest can be such that none will ever come back.
_TRIES = 2

_decoder = msgspec.json.Decoder(Dispatch)
_order_decoder = msgspec.json.Decoder(Order)


class Worker:
    """One host's worker."""

    def __init__(self, driver: Driver, bus: Bus, journal: Journal, clock: Clock, watch: Watch) -> None:
        """Keep the ports; nothing is begun."""
        self.driver = driver
        self.journal = journal
        self.clock = clock
        self.watch = watch
        self._bus = bus
        self._lanes: dict[str, _Lane] = {}

    async def resume(self) -> None:
        """Go on with what a former life of this agent left unfinished."""
        for result in self.journal.unsent():
            await self.send(result)
        for entry in self.journal.unfinished():
            self._lane(entry.dispatch.instance_id).take(entry.dispatch)

    async def handle(self, payload: bytes) -> None:
        """Take one dispatch; returns as soon as it is in the journal."""
        dispatch = _decoder.decode(payload)
        if self.journal.accept(dispatch, self.clock.now()):
            self._lane(dispatch.instance_id).take(dispatch)
            return
        entry = self.journal.entry(dispatch.instance_id)
        if entry is None or entry.dispatch.operation_id != dispatch.operation_id:
            await self.send(
                result_of(dispatch, Outcome.SUPERSEDED, "A newer operation had reached the host before it.")
            )
        elif entry.result is not None:
            await self.send(entry.result)
        # Otherwise it is the one being worked on: a duplicate.

    async def handle_order(self, payload: bytes) -> None:
        """Take one order to an operation, which may be here, not yet, or no more; one that is late is left."""
        order = _order_decoder.decode(payload)
        lane = self._lanes.get(order.instance_id)
        if self.journal.ordered(order, self.clock.now()) and lane is not None:
            lane.obey(order)

    def telling(self, dispatch: Dispatch) -> Telling:
        """Make what tells the control plane how far an operation is."""
        return Telling(self._bus, self.journal, self.clock, dispatch)

    async def send(self, result: Result) -> None:
        """Send a result to the control plane."""
        await self._bus.publish(
            RESULTS, msgspec.json.encode(result), message_id=f"{result.operation_id}.result"
        )
        self.journal.sent(result.operation_id)

    async def observe(self, instance_id: str) -> Observation | None:
        """Look at a guest now; None when the hypervisor cannot be asked, or does not answer."""
        # The number is taken before the question, so that the answer is at least as new as its number.
        seq = self.journal.next_seq()
        try:
            guest = await self.driver.get(instance_id)
        except DriverError:
            return None
        return Observation(
            instance_id=instance_id,
            observed=guest.observed,
            cause=guest.cause,
            seq=seq,
            at=self.clock.now(),
        )

    async def stop(self) -> None:
        """Stop at once, mid-step; the journal knows where."""
        lanes = [lane.task for lane in self._lanes.values() if lane.task is not None]
        for task in lanes:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*lanes, return_exceptions=True)

    def busy(self, instance_id: str) -> bool:
        """Whether an operation is being carried out on the instance."""
        return instance_id in self._lanes

    def _lane(self, instance_id: str) -> _Lane:
        lane = self._lanes.get(instance_id)
        if lane is None:
            lane = self._lanes[instance_id] = _Lane(self, instance_id)
        return lane

    def lane_ended(self, instance_id: str) -> None:
        """Forget a lane that has run empty."""
        del self._lanes[instance_id]


class _Lane:
    """One instance's operations, one at a time; the newest takes the place of whatever waits."""

    def __init__(self, worker: Worker, instance_id: str) -> None:
        self._worker = worker
        self._instance_id = instance_id
        self._next: Dispatch | None = None
        self._run_now: _Run | None = None
        self.task: asyncio.Task[None] | None = None

    def take(self, dispatch: Dispatch) -> None:
        """Run this operation next, and have the one that runs stop."""
        self._next = dispatch
        if self._run_now is not None:
            self._run_now.supersede()
        if self.task is None:
            self.task = asyncio.create_task(self._run(), name=f"lane {self._instance_id}")

    def obey(self, order: Order) -> None:
        """Hand an order to the operation that runs, if it is for that one."""
        if self._run_now is not None and self._run_now.dispatch.operation_id == order.operation_id:
            self._run_now.obey(order)

    async def _run(self) -> None:
        try:
            while self._next is not None:
                dispatch, self._next = self._next, None
                try:
                    await self._carry_out(dispatch)
                except Exception:
                    # The journal or the bus failed (a full disk): what was admitted will finish all the same.
                    log.exception("an operation's result could not be kept; it is carried out again")
                    await asyncio.sleep(_RETRY_SECONDS)
                    self._again(dispatch)
        finally:
            self._worker.lane_ended(self._instance_id)

    def _again(self, dispatch: Dispatch) -> None:
        """Run this operation next, unless a newer one waits."""
        if self._next is None:
            self._next = dispatch

    async def _carry_out(self, dispatch: Dispatch) -> None:
        with self._worker.watch.subscribe(self._instance_id) as changed:
            async with self._worker.telling(dispatch) as telling:
                self._run_now = _Run(self._worker, dispatch, changed, telling)
                try:
                    await self._finish(dispatch, self._run_now)
                finally:
                    self._run_now = None

    async def _finish(self, dispatch: Dispatch, run: _Run) -> None:
        with structlog.contextvars.bound_contextvars(
            instance=dispatch.instance_id, operation=dispatch.operation_id, action=dispatch.action
        ):
            try:
                await run.steps()
            except Superseded:
                result = result_of(dispatch, Outcome.SUPERSEDED, "Overtaken by a newer operation.")
            except Cancelled:
                result = result_of(dispatch, Outcome.CANCELLED, run.cancelled())
            except LeftOn as left:
                run.ending = Ending.LEFT_ON
                result = result_of(dispatch, Outcome.FAILED, str(left))
            except DriverError as error:
                log.warning("an operation could not be carried out", error=str(error))
                result = result_of(dispatch, Outcome.FAILED, str(error))
            except Exception as error:  # a fault of ours must not leave the instance in a task state (B3)
                log.exception("an operation failed by a fault of Stateward's own")
                result = result_of(dispatch, Outcome.FAILED, f"Internal fault of the agent: {error!r}")
            else:
                result = result_of(dispatch, Outcome.SUCCEEDED, run.done())
            try:
                observation = await self._worker.observe(dispatch.instance_id)
            except Exception:
                # Raised further it would have the operation carried out again, for as long as the fault lasts.
                log.exception("a guest could not be looked at after its operation")
                observation = None
            result = msgspec.structs.replace(
                result, observation=observation, shutdown=run.note, ending=run.ending
            )
            self._worker.journal.finished(result)
            await self._worker.send(result)


class _Run:
    """One operation being carried out; the ``Work`` its steps are given."""

    def __init__(self, worker: Worker, dispatch: Dispatch, changed: asyncio.Event, telling: Telling) -> None:
        self.driver = worker.driver
        self.dispatch = dispatch
        self._worker = worker
        self._changed = changed
        self._telling = telling
        self._superseded = False
        # What a former life of this agent came to.
        entry = worker.journal.entry(dispatch.instance_id)
        self._done: frozenset[Step] = frozenset() if entry is None else entry.done
        self.note = None if entry is None else entry.note
        self.ending = None if entry is None else entry.ending
        self.rung = None if entry is None else entry.rung
        self._signalled_at = None if entry is None else entry.signalled_at
        self.order = worker.journal.order(dispatch.operation_id)
        #: The step under way, or the first to come.
        self._step = next((step for step in dispatch.steps if step not in self._done), dispatch.steps[-1])

    def supersede(self) -> None:
        """End at the next step, or now if it waits."""
        self._superseded = True
        self._changed.set()

    def obey(self, order: Order) -> None:
        """Count an order from now on, also in a wait."""
        self.order = order
        self._changed.set()

    def done(self) -> str | None:
        """Say how it went; a cancel that came too late is not passed over in silence."""
        if self.order is None or self.order.command is not Command.CANCEL:
            return self.note
        return f"The cancel came too late: {self.note or 'there was nothing to wait for'}."

    def cancelled(self) -> str:
        """Say what a cancel could not undo."""
        if self._signalled_at is None:
            return "Cancelled. The guest was not asked to shut down, and stays as it is."
        how = {Rung.AGENT: " through its agent", Rung.POWER_BUTTON: " by its power button", None: ""}[
            self.rung
        ]
        ago = max(self._worker.clock.now() - self._signalled_at, 0.0)
        return (
            f"Cancelled. The guest was already asked to shut down{how}, {ago:.1f} s before: "
            "it was left on, and may still go off by itself."
        )

    async def steps(self) -> None:
        left = [step for step in self.dispatch.steps if step not in self._done]
        await self._persist(self._mark)
        for self._step in left:
            self._tell()
            await self._persist(functools.partial(STEPS[self._step], self))
            self._worker.journal.finished_step(self.dispatch.operation_id, self._step, self._done)
            self._done |= {self._step}

    async def _mark(self) -> None:
        """Store the fence with the guest; a newer one there means that this agent is the one that is late."""
        guest = await look(self)
        if guest.observed is not Observed.MISSING:
            await self.driver.mark_fence(self.dispatch.instance_id, self.dispatch.fence)

    async def _persist(self, call: Callable[[], Awaitable[None]]) -> None:
        """Run a step; while the hypervisor is away, wait for it and run the step again.

        After a call that hung the step is run once more. Both begin with a look at the guest: if a newer fence
        is there, this operation is the one that is late.
        """
        again, hung = False, False
        while True:
            self._check()
            try:
                if again:
                    await look(self)
                    self._tell()
                await call()
            except HypervisorUnavailable as error:
                log.warning("the hypervisor is away; the operation waits for it", error=str(error))
                self._tell(WaitsFor.HYPERVISOR)
                await self.wait_for_change(_RETRY_SECONDS)
            except CallHung as error:
                if hung:
                    raise CallHung(error.method, error.seconds, times=_TRIES) from error
                log.warning("a call hung; the step is done once more", error=str(error))
                hung = True
            else:
                return
            again = True

    def _check(self) -> None:
        if self._superseded:
            raise Superseded
        if self.order is not None and self.order.command is Command.CANCEL and self._waits:
            raise Cancelled

    @property
    def _waits(self) -> bool:
        """Whether the guest's shutdown is still to come, or under way: until then nothing is done to it."""
        return Step.SHUT_DOWN in self.dispatch.steps and Step.SHUT_DOWN not in self._done

    def first_signalled(self) -> float:
        now = self._worker.clock.now()
        if self._signalled_at is None:
            self._worker.journal.signalled(self.dispatch.operation_id, now)
            self._signalled_at = now
        return now - self._signalled_at

    def asked(self, rung: Rung) -> None:
        if rung is not self.rung:
            self._worker.journal.asked(self.dispatch.operation_id, rung)
            self.rung = rung

    def waits_for_guest(self, seconds: float) -> None:
        deadline = None if self._signalled_at is None else self._signalled_at + seconds
        self._tell(WaitsFor.GUEST, deadline)

    def _tell(self, waits_for: WaitsFor | None = None, deadline: float | None = None) -> None:
        self._telling.say(
            self._step,
            waits_for=waits_for,
            deadline=deadline,
            signalled_at=self._signalled_at,
            rung=self.rung,
        )

    async def wait_for_change(self, seconds: float) -> None:
        # Not wait_for: on Python 3.11 it loses a cancellation that comes together with the event.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        self._changed.clear()
        self._check()

    def time(self) -> float:
        return asyncio.get_running_loop().time()

    def ended(self, ending: Ending, note: str) -> None:
        self._worker.journal.ended(self.dispatch.operation_id, ending, note)
        self.ending, self.note = ending, note


def result_of(dispatch: Dispatch, outcome: Outcome, message: str | None) -> Result:
    """Make a result without an observation."""
    return Result(
        operation_id=dispatch.operation_id,
        instance_id=dispatch.instance_id,
        fence=dispatch.fence,
        outcome=outcome,
        message=message,
        observation=None,
    )
