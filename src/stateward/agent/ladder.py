"""The one ladder by which every action shuts a guest down (R9).

The agent inside it, where one answers; else its power button, and again every ``RESEND_SECONDS``; at the end of its
time what was chosen for then. A rung that cannot work is not waited on: a guest that is off is done, one that is
halted is not asked at all, because the request would fire when it is let run.

The time runs from the first time it was asked, also when this agent was killed and started since: the guest has been
shutting down all the while. Orders (B4) count from the moment they come: each turn of the loop reads them anew.
"""

from __future__ import annotations

from typing import Final

from stateward.agent.driver import DriverError, Guest, HypervisorUnavailable
from stateward.agent.limits import CallHung
from stateward.agent.work import LeftOn, Work, look
from stateward.domain.records import Command
from stateward.domain.shutdown import RESEND_SECONDS, AtDeadline, Ending, Rung, ShutdownPlan
from stateward.domain.states import Cause, Observed

OFF: Final = frozenset({Observed.SHUTOFF, Observed.SUSPENDED, Observed.CRASHED, Observed.MISSING})

#: What is said of a guest that went off while it was waited for, and did not do that by itself.
_WENT_OFF: Final = {
    Cause.CRASHED: "the guest crashed",
    Cause.DESTROYED: "the guest's power was taken by somebody else",
    Cause.SAVED: "the guest was saved and switched off by somebody else",
}

#: For an operation that says nothing of its guest's shutdown.
_NO_TIME: Final = ShutdownPlan(seconds=0, origin="default")


async def shut_down(work: Work) -> None:
    """Ask the guest to shut down and wait until it is off or its time is up. Forcing is left to the next step.

    Raises:
        LeftOn: its time was up, and it was chosen that it stays on then.
        Superseded, Cancelled: the wait was ended.
    """
    guest = await look(work)
    if guest.observed in OFF:
        _off(work, guest, "the guest was off")
    elif guest.observed is Observed.PAUSED:
        await _time_is_up(work, "the guest was halted and could not be asked")
    elif _seconds(work) == 0:
        await _time_is_up(work, "the guest was not asked")
    else:
        await _climb(work)


async def _climb(work: Work) -> None:
    instance_id = work.dispatch.instance_id
    begin = next_rung = work.time()
    begin -= max(work.first_signalled(), 0.0)
    agent_answered = work.rung is Rung.AGENT
    while True:
        guest = await look(work)
        now = work.time()
        if guest.observed in OFF:
            _off(work, guest, f"{_went_off(guest)} after {now - begin:.1f} s")
            return
        seconds = _seconds(work)
        if now >= begin + seconds:
            await _time_is_up(work, _why(work, now - begin))
            return
        work.waits_for_guest(seconds)
        if now >= next_rung:
            rung = await work.driver.request_shutdown(instance_id, by_agent=not agent_answered)
            if rung is not None:
                work.asked(rung)
                agent_answered = agent_answered or rung is Rung.AGENT
            next_rung = work.time() + RESEND_SECONDS
            continue
        await work.wait_for_change(min(next_rung, begin + seconds) - now)


def _plan(work: Work) -> ShutdownPlan:
    return work.dispatch.shutdown or _NO_TIME


def _escalated(work: Work) -> bool:
    return work.order is not None and work.order.command is Command.ESCALATE


def _seconds(work: Work) -> int:
    """Return what the guest gets in all, in seconds from when it was first asked."""
    order = work.order
    if order is None or order.seconds is None:
        return 0 if _escalated(work) else _plan(work).seconds
    return order.seconds


def _why(work: Work, elapsed: float) -> str:
    if _escalated(work):
        return f"the guest did not shut down within {elapsed:.1f} s (escalated)"
    origin = _plan(work).origin if work.order is None else "extended"
    return f"the guest did not shut down within {_seconds(work)} s ({origin})"


def _went_off(guest: Guest) -> str:
    """Say how a guest that was asked went off, as far as its hypervisor knows (B4): whose doing it was."""
    return _WENT_OFF.get(guest.cause, "the guest shut itself down")


def _off(work: Work, guest: Guest, note: str) -> None:
    # Killed after the memory was saved and before the journal knew, the next life finds it so.
    if guest.observed is Observed.SUSPENDED and _plan(work).at_deadline is AtDeadline.SAVE:
        work.ended(Ending.SAVED, "the guest's memory was saved")
    else:
        work.ended(Ending.OFF, note)


async def _time_is_up(work: Work, why: str) -> None:
    """Do with a guest that is on what was chosen for the end of its time; an escalation takes the power always."""
    choice = AtDeadline.FORCE if _escalated(work) else _plan(work).at_deadline
    match choice:
        case AtDeadline.FORCE:
            work.ended(Ending.FORCED, f"{why} and was forced")
        case AtDeadline.FAIL:
            raise LeftOn(
                f"{_sentence(why)} and was left on, as was chosen ({_plan(work).at_deadline_origin})."
            )
        case AtDeadline.SAVE:
            await _save(work, why)


async def _save(work: Work, why: str) -> None:
    if not work.driver.capabilities.suspend:
        raise LeftOn(f"{_sentence(why)}; its hypervisor cannot save its memory, so it was left on.")
    try:
        await work.driver.save_memory(work.dispatch.instance_id)
    except (HypervisorUnavailable, CallHung):
        raise
    except DriverError as error:
        guest = await look(work)
        if guest.observed in OFF:
            _off(work, guest, "the guest shut itself down at the end of its time")
            return
        raise LeftOn(
            f"{_sentence(why)}; its memory could not be saved, so it was left on: {error}"
        ) from error
    work.ended(Ending.SAVED, f"{why}; its memory was saved")


def _sentence(why: str) -> str:
    return why[0].upper() + why[1:]
