"""What a step is given: the operation, its driver, and ways to wait, to note and to be interrupted."""

from __future__ import annotations

from typing import Protocol

from stateward.agent.driver import Driver, Guest
from stateward.domain.records import Dispatch, Order
from stateward.domain.shutdown import Ending, Rung


class Work(Protocol):
    """What a step may use."""

    driver: Driver
    dispatch: Dispatch

    @property
    def order(self) -> Order | None:
        """The order that stands for the operation now (B4); read anew after every wait."""
        ...

    def first_signalled(self) -> float:
        """Journal that the guest is about to be asked; return how many seconds ago it was asked first."""
        ...

    @property
    def rung(self) -> Rung | None:
        """How the guest was asked last, also by an agent killed since; None when that is not known."""
        ...

    def asked(self, rung: Rung) -> None:
        """Journal how the guest was asked."""
        ...

    def waits_for_guest(self, seconds: float) -> None:
        """Tell the control plane that the guest has so many seconds in all, from when it was first asked."""
        ...

    async def wait_for_change(self, seconds: float) -> None:
        """Return when something happened to the guest or to the operation's orders, or after some seconds.

        Raises:
            Superseded: a newer operation came for the instance.
            Cancelled: the operation was told to leave the instance as it is.
        """
        ...

    def time(self) -> float:
        """Return the event loop's time, in seconds."""
        ...

    def ended(self, ending: Ending, note: str) -> None:
        """Journal how the guest's shutdown ended; it is part of the result."""
        ...


class Superseded(Exception):
    """A newer operation came for the instance; this one must not act any more."""


class Cancelled(Exception):
    """The operation was told to leave the instance as it is (B4)."""


class LeftOn(Exception):
    """The guest's time was up and it was left on, as was chosen; ``str()`` says why, for people."""


async def look(work: Work) -> Guest:
    """Look at the guest, whose fence says whether this worker is the one that is late.

    Raises:
        Superseded: a newer operation has been at the guest.
    """
    guest = await work.driver.get(work.dispatch.instance_id)
    if guest.fence > work.dispatch.fence:
        raise Superseded
    return guest
