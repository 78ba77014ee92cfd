"""The worker: carries out the operations dispatched to one host.

Each instance has a lane of its own, in which operations run one after another; lanes run side by side, so a
guest that takes its time holds nobody up. What is begun is journaled first, so a killed agent goes on where it
was; what a newer fence overtook stops at its next step, and a wait for a guest at once (B3).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Generator

import msgspec
import structlog

from stateward.agent.driver import Driver, DriverError
from stateward.agent.journal import Journal
from stateward.agent.run import Run
from stateward.agent.telling import Telling
from stateward.agent.watch import Watch
from stateward.agent.work import Cancelled, LeftOn, Superseded
from stateward.bus.port import RESULTS, Bus
from stateward.clock import Clock
from stateward.domain.questions import Expel, Leaves
from stateward.domain.records import (
    Dispatch,
    GuestSpec,
    ImageFacts,
    Observation,
    Order,
    Outcome,
    Result,
)
from stateward.domain.shutdown import Ending
from stateward.domain.steps import LOOKS, Step

log = structlog.get_logger()

#: Seconds until an operation is carried out again whose result could not be kept.
_RETRY_SECONDS = 1.0

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
        self._moves = Moves()

    async def resume(self) -> None:
        """Go on with what a former life of this agent left unfinished.

        All that can fail comes before anything is begun, so that after a failure it may be called again.
        """
        for result in self.journal.unsent():
            await self.send(result)
        for entry in self.journal.unfinished():
            self._lane(entry.dispatch.instance_id).take(entry.dispatch)

    async def handle(self, payload: bytes) -> None:
        """Take one dispatch; returns as soon as it is in the journal."""
        dispatch = _decoder.decode(payload)
        if self.journal.accept(dispatch, self.clock.now()):
            self._lane(dispatch.instance_id).take(dispatch)
            self.moved()
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

    async def overtaken(self, instance_id: str, fence: int) -> None:
        """Return when an operation of this fence, or a newer one, has come and nothing older acts any more (B1)."""
        with self._moves.follow() as moved:
            while not self._past(instance_id, fence):
                await moved.wait()
                moved.clear()

    def _past(self, instance_id: str, fence: int) -> bool:
        entry, lane = self.journal.entry(instance_id), self._lanes.get(instance_id)
        acting = None if lane is None else lane.acting
        return entry is not None and entry.dispatch.fence >= fence and (acting is None or acting >= fence)

    def overtake(self, instance_id: str, fence: int) -> bool:
        """Have nothing older than a fence act on an instance from now on; False when something newer does."""
        dispatch = _standing_down(instance_id, fence)
        if self.journal.accept(dispatch, self.clock.now()):
            self._lane(instance_id).take(dispatch)
            self.moved()
        entry = self.journal.entry(instance_id)
        return entry is None or entry.dispatch.fence <= fence

    async def expel(self, wanted: Expel) -> None:
        """Take the power of a guest that was made anew elsewhere, and remove it; may be done again.

        Raises:
            DriverError: it cannot be, or something newer has been done to it here.
        """
        instance_id = wanted.instance_id
        newest = self.overtake(instance_id, wanted.fence)
        await self.overtaken(instance_id, wanted.fence)
        guest = await self.driver.get(instance_id)
        if not newest or guest.fence > wanted.fence:
            raise DriverError(f"Something newer was done to instance {instance_id} on this host; it stays.")
        await self.driver.power_off(instance_id)
        if wanted.leaves is Leaves.OFF:
            return
        await self.driver.discard_memory(instance_id)
        if wanted.leaves is Leaves.DISK:
            await self.driver.forget(instance_id)
        else:
            await self.driver.remove(instance_id)

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

    def moved(self) -> None:
        """Have those look again who wait for an operation to come, or to end."""
        self._moves.changed()

    def lane_ended(self, instance_id: str) -> None:
        """Forget a lane that has run empty."""
        del self._lanes[instance_id]
        self.moved()


class Moves:
    """Wakes those who wait for something to move."""

    def __init__(self) -> None:
        """Begin with nobody."""
        self._events: set[asyncio.Event] = set()

    def changed(self) -> None:
        """Wake everybody."""
        for event in self._events:
            event.set()

    @contextlib.contextmanager
    def follow(self) -> Generator[asyncio.Event]:
        """Give an event that is set at every move from now on."""
        event = asyncio.Event()
        self._events.add(event)
        try:
            yield event
        finally:
            self._events.discard(event)


class _Lane:
    """One instance's operations, one at a time; the newest takes the place of whatever waits."""

    def __init__(self, worker: Worker, instance_id: str) -> None:
        self._worker = worker
        self._instance_id = instance_id
        self._next: Dispatch | None = None
        self._run_now: Run | None = None
        self.task: asyncio.Task[None] | None = None

    @property
    def acting(self) -> int | None:
        """The fence of the operation that is being carried out; None while there is none."""
        return None if self._run_now is None else self._run_now.dispatch.fence

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
                self._run_now = Run(
                    driver=self._worker.driver,
                    journal=self._worker.journal,
                    clock=self._worker.clock,
                    dispatch=dispatch,
                    changed=changed,
                    telling=telling,
                )
                try:
                    await self._finish(dispatch, self._run_now)
                finally:
                    self._run_now = None
                    self._worker.moved()

    async def _finish(self, dispatch: Dispatch, run: Run) -> None:
        with structlog.contextvars.bound_contextvars(
            instance=dispatch.instance_id, operation=dispatch.operation_id, action=dispatch.action
        ):
            result = await self._outcome(dispatch, run)
            if result.outcome is Outcome.FAILED:
                result = _failed_at(run.step, result)
                await run.undo()
            elif result.outcome is not Outcome.SUCCEEDED and dispatch.snapshot is not None:
                await self._discard_copy(dispatch.snapshot)
            try:
                observation = await self._worker.observe(dispatch.instance_id)
            except Exception:
                # Raised further it would have the operation carried out again, for as long as the fault lasts.
                log.exception("a guest could not be looked at after its operation")
                observation = None
            result = msgspec.structs.replace(
                result,
                observation=observation,
                shutdown=run.note,
                ending=run.ending,
                seq=self._worker.journal.next_seq(),
                boot_id=self._worker.driver.boot_id(),
            )
            self._worker.journal.finished(result)
            await self._worker.send(result)

    async def _outcome(self, dispatch: Dispatch, run: Run) -> Result:
        """Do the steps, and say how that went."""
        for image_id in self._worker.journal.leftovers(dispatch):
            await self._discard_copy(image_id)
        try:
            await run.steps()
        except Superseded:
            return result_of(dispatch, Outcome.SUPERSEDED, "Overtaken by a newer operation.")
        except Cancelled:
            return result_of(dispatch, Outcome.CANCELLED, run.cancelled())
        except LeftOn as left:
            run.ending = Ending.LEFT_ON
            return result_of(dispatch, Outcome.FAILED, str(left))
        except DriverError as error:
            log.warning("an operation could not be carried out", error=str(error))
            return result_of(dispatch, Outcome.FAILED, str(error))
        except Exception as error:  # a fault of ours must not leave the instance in a task state (B3)
            log.exception("an operation failed by a fault of Stateward's own")
            return result_of(dispatch, Outcome.FAILED, f"Internal fault of the agent: {error!r}")
        else:
            return result_of(dispatch, Outcome.SUCCEEDED, run.done())

    async def _discard_copy(self, image_id: str) -> None:
        """Delete a copy of the disk that becomes no image; one that cannot be deleted keeps nobody waiting."""
        try:
            await self._worker.driver.discard_snapshot(image_id)
        except DriverError as error:
            log.warning(
                "a copy of a disk that nobody needs is left on the host", image=image_id, error=str(error)
            )
        except Exception:
            log.exception(
                "a copy of a disk could not be deleted by a fault of Stateward's own", image=image_id
            )
        else:
            self._worker.journal.discarded(image_id)


def _standing_down(instance_id: str, fence: int) -> Dispatch:
    """Make what has everything older stop: an operation of which nobody waits for the result."""
    nobody = GuestSpec(
        instance_id=instance_id,
        domain_name="",
        display_name="",
        project_id="",
        vcpus=0,
        memory=0,
        disk=0,
        image=ImageFacts(id="", disk_format=""),
    )
    return Dispatch(
        operation_id=f"expel-{instance_id}-{fence}",
        instance_id=instance_id,
        action="expel",
        fence=fence,
        steps=(Step.STAND_DOWN,),
        guest=nobody,
        shutdown=None,
    )


def _failed_at(step: Step, result: Result) -> Result:
    """Say where an operation failed; and to people, where nothing was done to the guest, that it was not."""
    message = result.message
    if step in LOOKS and message is not None:
        message = f"{message.rstrip('.')}. Nothing was done to the guest."
    return msgspec.structs.replace(result, failed_at=step, message=message)


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
