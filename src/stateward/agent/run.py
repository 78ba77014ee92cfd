"""One operation being carried out: its steps in their order, with all that interrupts them.

What a step may use is ``Work``; this is the one there is. Everything a later life must know is in the journal before
it counts.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Awaitable, Callable

import structlog

from stateward.agent.driver import Driver, DriverError, HypervisorUnavailable
from stateward.agent.journal import Journal
from stateward.agent.limits import CallHung
from stateward.agent.newest import while_newest
from stateward.agent.steps import STEPS, UNDO
from stateward.agent.telling import Telling
from stateward.agent.work import Cancelled, Superseded, look
from stateward.clock import Clock
from stateward.domain.records import Command, Dispatch, Order, WaitsFor
from stateward.domain.shutdown import Ending, Rung
from stateward.domain.states import Observed
from stateward.domain.steps import Step

log = structlog.get_logger()

#: Seconds until a hypervisor that was away is tried again without a signal that it is back.
_RETRY_SECONDS = 1.0

#: Times that a step is tried whose driver calls hang; the guest can be such that none will ever come back.
_TRIES = 2


class Run:
    """One operation being carried out; the ``Work`` its steps are given."""

    def __init__(
        self,
        *,
        driver: Driver,
        journal: Journal,
        clock: Clock,
        dispatch: Dispatch,
        changed: asyncio.Event,
        telling: Telling,
    ) -> None:
        """Begin where a former life of this agent came to; ``changed`` is set at every change of the guest."""
        self.driver = while_newest(driver, self._check_newest)
        self.dispatch = dispatch
        self._journal = journal
        self._clock = clock
        self._changed = changed
        self._telling = telling
        self._superseded = False
        entry = journal.entry(dispatch.instance_id)
        self._done: frozenset[Step] = frozenset() if entry is None else entry.done
        self.note = None if entry is None else entry.note
        self.ending = None if entry is None else entry.ending
        self.rung = None if entry is None else entry.rung
        self._signalled_at = None if entry is None else entry.signalled_at
        self.order = journal.order(dispatch.operation_id)
        #: The step under way, or the first to come.
        self._step = next((step for step in dispatch.steps if step not in self._done), dispatch.steps[-1])

    @property
    def step(self) -> Step:
        """The step under way, or the last one."""
        return self._step

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
        # Journaled before it is asked: without a rung, the hypervisor went away under the call.
        asked = {
            Rung.AGENT: "was already asked to shut down through its agent",
            Rung.POWER_BUTTON: "was already asked to shut down by its power button",
            None: "may already have been asked to shut down",
        }[self.rung]
        ago = max(self._clock.now() - self._signalled_at, 0.0)
        return (
            f"Cancelled. The guest {asked}, {ago:.1f} s before: "
            "nothing more is done to it, and it may still go off by itself."
        )

    async def steps(self) -> None:
        """Do what is not done yet.

        Raises:
            Superseded, Cancelled, LeftOn: it ends before its last step.
            DriverError: a step cannot be done.
        """
        left = [step for step in self.dispatch.steps if step not in self._done]
        await self._persist(self._mark)
        for self._step in left:
            self._tell()
            await self._persist(functools.partial(STEPS[self._step], self))
            self._journal.finished_step(self.dispatch.operation_id, self._step, self._done)
            self._done |= {self._step}

    async def undo(self) -> None:
        """Take back what was done, after a failure; what cannot be taken back keeps nobody waiting.

        In the journal it is not done any more, before it is taken back: killed in between, the agent does the steps
        again from there, and so fails again or succeeds after all.
        """
        steps = self.dispatch.steps
        begun = steps[: steps.index(self._step) + 1]
        for step in [each for each in reversed(begun) if each in UNDO]:
            self._done = frozenset(steps[: steps.index(step)])
            self._journal.undone(self.dispatch.operation_id, self._done)
            try:
                await UNDO[step](self)
            except Superseded:
                return
            except DriverError as error:
                log.warning("a step could not be taken back", step=step.value, error=str(error))
            except Exception:
                log.exception("a step could not be taken back by a fault of Stateward's own", step=step.value)

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

    def _check_newest(self) -> None:
        if self._superseded:
            raise Superseded

    def _check(self) -> None:
        self._check_newest()
        if self.order is not None and self.order.command is Command.CANCEL and self._waits:
            raise Cancelled

    @property
    def _waits(self) -> bool:
        """Whether the guest's shutdown is still to come, or under way: until then nothing is done to it."""
        return Step.SHUT_DOWN in self.dispatch.steps and Step.SHUT_DOWN not in self._done

    def first_signalled(self) -> float:
        """See ``Work``."""
        now = self._clock.now()
        if self._signalled_at is None:
            self._journal.signalled(self.dispatch.operation_id, now)
            self._signalled_at = now
        return now - self._signalled_at

    def asked(self, rung: Rung) -> None:
        """See ``Work``."""
        if rung is not self.rung:
            self._journal.asked(self.dispatch.operation_id, rung)
            self.rung = rung

    def waits_for_guest(self, seconds: float) -> None:
        """See ``Work``."""
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
        """See ``Work``."""
        # Not wait_for: on Python 3.11 it loses a cancellation that comes together with the event.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        self._changed.clear()
        self._check()

    def time(self) -> float:
        """See ``Work``."""
        return asyncio.get_running_loop().time()

    def ended(self, ending: Ending, note: str) -> None:
        """See ``Work``."""
        self._journal.ended(self.dispatch.operation_id, ending, note)
        self.ending, self.note = ending, note
