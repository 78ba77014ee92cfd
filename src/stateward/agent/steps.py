"""The steps' functions: one for each member of ``Step``, made of driver calls and, for one of them, waiting.

A step is given a ``Work`` that knows the operation, and lets it wait for the guest in a way that a newer
operation interrupts at once. It never looks at the record: agents have no database.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from stateward.agent.driver import Driver, Guest
from stateward.domain.records import Dispatch
from stateward.domain.shutdown import RESEND_SECONDS
from stateward.domain.states import Observed
from stateward.domain.steps import Step

OFF = frozenset({Observed.SHUTOFF, Observed.SUSPENDED, Observed.CRASHED, Observed.MISSING})


class Work(Protocol):
    """What a step may use."""

    driver: Driver
    dispatch: Dispatch

    def first_signalled(self) -> float:
        """Journal that the guest is about to be asked; return how many seconds ago it was asked first."""
        ...

    async def wait_for_change(self, seconds: float) -> None:
        """Return when something happened to the guest, or after some seconds.

        Raises:
            Superseded: a newer operation came for the instance.
        """
        ...

    def time(self) -> float:
        """Return the event loop's time, in seconds."""
        ...

    def note(self, text: str) -> None:
        """Say how the guest's shutdown went; the last note is part of the result."""
        ...


class Superseded(Exception):
    """A newer operation came for the instance; this one must not act any more."""


async def look(work: Work) -> Guest:
    """Look at the guest, whose fence says whether this worker is the one that is late.

    Raises:
        Superseded: a newer operation has been at the guest.
    """
    guest = await work.driver.get(work.dispatch.instance_id)
    if guest.fence > work.dispatch.fence:
        raise Superseded
    return guest


async def prepare_disk(work: Work) -> None:
    """Make the disk, unless it is there."""
    await work.driver.prepare_disk(work.dispatch.guest)


async def define(work: Work) -> None:
    """Make the guest known, and mark it with the fence from its first moment."""
    await work.driver.define(work.dispatch.guest)
    await work.driver.mark_fence(work.dispatch.instance_id, work.dispatch.fence)


async def power_on(work: Work) -> None:
    """Start the guest; one that crashed, or hangs halted, is switched off first so that it can be."""
    guest = await look(work)
    if guest.observed in {Observed.CRASHED, Observed.PAUSED}:
        await work.driver.power_off(work.dispatch.instance_id)
    await work.driver.power_on(work.dispatch.instance_id)


async def shut_down(work: Work) -> None:
    """Ask the guest to shut down and wait until it is off or its time is up (R9).

    The time runs from the first time it was asked, also when this agent was killed and started since: the guest
    has been shutting down all the while. Forcing is left to the next step.
    """
    plan = work.dispatch.shutdown
    instance_id = work.dispatch.instance_id
    guest = await look(work)
    if guest.observed in OFF:
        work.note("the guest was off")
        return
    if plan is None or plan.seconds == 0:
        work.note("the guest was not asked")
        return
    if guest.observed is Observed.PAUSED:
        work.note("the guest was halted and could not be asked")
        return
    begin = work.time() - min(max(work.first_signalled(), 0.0), float(plan.seconds))
    deadline = begin + plan.seconds
    while True:
        await work.driver.request_shutdown(instance_id)
        resend = min(work.time() + RESEND_SECONDS, deadline)
        while work.time() < resend:
            guest = await look(work)
            if guest.observed in OFF:
                work.note(f"the guest shut itself down after {work.time() - begin:.1f} s")
                return
            await work.wait_for_change(max(resend - work.time(), 0.0))
        if work.time() >= deadline:
            guest = await look(work)
            if guest.observed in OFF:
                work.note(f"the guest shut itself down after {work.time() - begin:.1f} s")
            else:
                work.note(
                    f"the guest did not shut down within {plan.seconds} s ({plan.origin}) and was forced"
                )
            return


def _simple(call: Callable[[Driver, str], Awaitable[None]]) -> Callable[[Work], Awaitable[None]]:
    async def run(work: Work) -> None:
        await call(work.driver, work.dispatch.instance_id)

    return run


STEPS: dict[Step, Callable[[Work], Awaitable[None]]] = {
    Step.PREPARE_DISK: prepare_disk,
    Step.DEFINE: define,
    Step.POWER_ON: power_on,
    Step.SHUT_DOWN: shut_down,
    Step.POWER_OFF: _simple(lambda driver, instance_id: driver.power_off(instance_id)),
    Step.PAUSE: _simple(lambda driver, instance_id: driver.pause(instance_id)),
    Step.UNPAUSE: _simple(lambda driver, instance_id: driver.unpause(instance_id)),
    Step.SAVE_MEMORY: _simple(lambda driver, instance_id: driver.save_memory(instance_id)),
    Step.RESTORE_MEMORY: _simple(lambda driver, instance_id: driver.restore_memory(instance_id)),
    Step.DISCARD_MEMORY: _simple(lambda driver, instance_id: driver.discard_memory(instance_id)),
    Step.INJECT_NMI: _simple(lambda driver, instance_id: driver.inject_nmi(instance_id)),
    Step.REMOVE: _simple(lambda driver, instance_id: driver.remove(instance_id)),
}
