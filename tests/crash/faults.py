"""One fault in one of the driver's calls that one operation makes, chosen by its number."""

from __future__ import annotations

import asyncio
import enum
from collections import defaultdict
from collections.abc import Callable
from typing import TypeVar

import msgspec
import structlog

from stateward.agent.driver import DriverError, GuestMissing, HypervisorUnavailable
from stateward.agent.simulated import SimulatedHypervisor

T = TypeVar("T")

#: What is in the message of every fault made here.
MADE = "made by a test"


class Fault(enum.StrEnum):
    """What happens to a call."""

    REFUSED = "refused"
    #: Its effect comes, its answer is an error.
    LOST_REFUSED = "done and refused"
    MISSING = "guest missing"
    #: Stands for whatever a driver is not to raise.
    OS_ERROR = "unexpected error"
    AWAY = "hypervisor away"
    LOST_AWAY = "done and hypervisor away"
    HANG = "hang"
    #: Its effect comes, its answer does not.
    LOST_HANG = "done and hang"
    #: Every call of the same method hangs from then on.
    DEAD = "hangs always"

    @property
    def passes(self) -> bool:
        """Whether an operation gets over it."""
        return self in {Fault.AWAY, Fault.LOST_AWAY, Fault.HANG, Fault.LOST_HANG}


_ERRORS: dict[Fault, type[Exception]] = {
    Fault.REFUSED: DriverError,
    Fault.LOST_REFUSED: DriverError,
    Fault.MISSING: GuestMissing,
    Fault.OS_ERROR: OSError,
    Fault.AWAY: HypervisorUnavailable,
    Fault.LOST_AWAY: HypervisorUnavailable,
}
_AFTER = {Fault.LOST_REFUSED, Fault.LOST_AWAY, Fault.LOST_HANG}


class Planned(msgspec.Struct, frozen=True):
    """A fault of the call with this number, from 0; its method is for people, and for ``Fault.DEAD``."""

    number: int
    method: str
    fault: Fault
    #: From then on every call of the method fares so.
    always: bool = False

    def meets(self, number: int, method: str) -> bool:
        """Say whether a call is the one, or one of those."""
        if self.always or self.fault is Fault.DEAD:
            return number >= self.number and method == self.method
        return number == self.number

    def __str__(self) -> str:
        """Say it."""
        return f"call {self.number} '{self.method}' {self.fault}"


class FaultyHypervisor(SimulatedHypervisor):
    """A hypervisor whose faults are planned by operation, and that remembers each operation's calls."""

    def __init__(self) -> None:
        super().__init__()
        self.plan: dict[str, Planned] = {}
        self.made: defaultdict[str, list[str]] = defaultdict(list)
        #: Of which operations the planned fault has happened.
        self.met: set[str] = set()

    async def call(self, name: str, instance_id: str | None, act: Callable[[], T]) -> T:
        """Do what a driver's method does, unless it is the planned call; looks of the observer do not count."""
        operation: str | None = structlog.contextvars.get_contextvars().get("operation")
        if operation is None:
            return await super().call(name, instance_id, act)
        number = len(self.made[operation])
        self.made[operation].append(name)
        planned = self.plan.get(operation)
        if planned is None or not planned.meets(number, name):
            return await super().call(name, instance_id, act)
        self.met.add(operation)
        assert name == planned.method, f"{planned}: it is {name} now"
        if planned.fault in _AFTER:
            await super().call(name, instance_id, act)
        error = _ERRORS.get(planned.fault)
        if error is not None:
            raise error(MADE)
        await asyncio.Event().wait()
        raise AssertionError
