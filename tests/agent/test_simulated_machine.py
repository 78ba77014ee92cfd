"""Whatever is done in whatever order, simulated guests are what a table of a dozen lines says they are."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from hypothesis import HealthCheck, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from stateward.agent.driver import DriverError, GuestMissing
from stateward.agent.simulated import SimulatedDriver, SimulatedHypervisor
from stateward.domain.states import Observed
from tests.agent.simulated_bench import SetClock, spec_of

NOTHING, DISK, OFF, RUNNING, PAUSED, SAVED, WRECK = (
    "nothing",
    "disk",
    "off",
    "running",
    "paused",
    "saved",
    "wreck",
)

LOOKS: Final = {
    NOTHING: Observed.MISSING,
    DISK: Observed.MISSING,
    OFF: Observed.SHUTOFF,
    RUNNING: Observed.RUNNING,
    PAUSED: Observed.PAUSED,
    SAVED: Observed.SUSPENDED,
    WRECK: Observed.CRASHED,
}

STATES: Final = (NOTHING, DISK, OFF, RUNNING, PAUSED, SAVED, WRECK)

#: For each verb what it makes of a guest in each of ``STATES``; "=": leaves it, "!": refused, "?": missing.
#: Guests take no time to shut down here.
TABLE: Final = {
    "prepare_disk": f"{DISK} = = = = = =",
    "define": f"! {OFF} = = = = =",
    "power_on": f"? ? {RUNNING} = ! ! !",
    "request_shutdown": f"= = = {OFF} = = =",
    "power_off": f"= = = {OFF} {OFF} = {OFF}",
    "pause": "? ? ! paused = ! !",
    "unpause": "? ? ! = running ! !",
    "save_memory": "? ? ! saved saved = !",
    "restore_memory": "? ? ! = = running =",
    "discard_memory": f"= = = = = {OFF} =",
    "remove": f"= {NOTHING} {NOTHING} ! ! {NOTHING} !",
    "mark_fence": "= = = = = = =",
    "destroy": f"? ? ! {OFF} {OFF} ! {OFF}",
    "crash": f"? ? ! {OFF} ! ! !",
    "wreck": f"? ? ! {WRECK} ! ! !",
    "start": f"? ? {RUNNING} ! ! {RUNNING} !",
    "undefine": f"? ? {DISK} {DISK} {DISK} {DISK} {DISK}",
    "guest_shutdown": f"? ? ! {OFF} ! ! !",
    "reboot_host": f"= = = {OFF} {OFF} = {OFF}",
}

GUESTS: Final[tuple[str, ...]] = ("a", "b")


class SimulatedGuests(RuleBasedStateMachine):
    """Two guests in a folder, under a driver and under what is done behind its back."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.home = tempfile.TemporaryDirectory()
        self.clock = SetClock()
        self.expected = dict.fromkeys(GUESTS, NOTHING)
        self.fences = dict.fromkeys(GUESTS, 0)
        self.told: set[str | None] = set()
        self.hypervisor = SimulatedHypervisor(Path(self.home.name), clock=self.clock)
        self.driver = SimulatedDriver(self.hypervisor)
        self.runner.run(self.driver.open(self.told.add))

    def teardown(self) -> None:
        """Leave nothing open."""
        self.runner.run(self.driver.close())
        self.hypervisor.close()
        self.runner.close()
        self.home.cleanup()

    @rule(verb=st.sampled_from(sorted(TABLE)), guest=st.sampled_from(GUESTS), fence=st.integers(0, 5))
    def act(self, verb: str, guest: str, fence: int) -> None:
        """Do one thing; it has the effect and the answer of its line, and is told when it changes a guest."""
        answer = ""
        before = dict(self.expected)
        self.told.clear()
        try:
            self.runner.run(self._do(verb, guest, fence))
        except GuestMissing:
            answer = "?"
        except DriverError:
            answer = "!"
        for each in GUESTS if verb == "reboot_host" else (guest,):
            becomes = TABLE[verb].split()[STATES.index(before[each])]
            assert answer == (becomes if becomes in {"?", "!"} else "")
            if becomes in STATES:
                self.expected[each] = becomes
        if verb == "mark_fence" and LOOKS[before[guest]] is not Observed.MISSING:
            self.fences[guest] = max(self.fences[guest], fence)
        looks_new = {each for each in GUESTS if LOOKS[self.expected[each]] is not LOOKS[before[each]]}
        # A boot is told of as well.
        assert self.told == (looks_new | {None} if verb == "reboot_host" else looks_new)
        for each in GUESTS:
            if LOOKS[self.expected[each]] is Observed.MISSING:
                self.fences[each] = 0

    async def _do(self, verb: str, guest: str, fence: int) -> None:
        spec = spec_of(guest, "stateward.shutdown=0")
        driver, hypervisor = self.driver, self.hypervisor
        calls: dict[str, Callable[[], Awaitable[None]]] = {
            "prepare_disk": lambda: driver.prepare_disk(spec),
            "define": lambda: driver.define(spec),
            "mark_fence": lambda: driver.mark_fence(guest, fence),
        }
        verbs: dict[str, Callable[[], None]] = {
            "destroy": lambda: hypervisor.destroy(guest),
            "crash": lambda: hypervisor.crash(guest),
            "wreck": lambda: hypervisor.crash(guest, kept=True),
            "start": lambda: hypervisor.start(guest),
            "undefine": lambda: hypervisor.undefine(guest),
            "guest_shutdown": lambda: hypervisor.guest_shutdown(guest),
            "reboot_host": hypervisor.reboot_host,
        }
        if verb in verbs:
            verbs[verb]()
        elif verb in calls:
            await calls[verb]()
        else:
            await getattr(driver, verb)(guest)
        # What is told is told in the next turn of the loop.
        await asyncio.sleep(0)

    @rule(seconds=st.floats(0, 1e6))
    def wait(self, seconds: float) -> None:
        """Let time pass, which changes none of these guests."""
        self.clock.at += seconds

    @rule()
    def kill(self) -> None:
        """Let another process take over, without a word from the one before."""
        killed = self.hypervisor
        self.runner.run(self.driver.close())
        self.hypervisor = SimulatedHypervisor(Path(self.home.name), clock=self.clock)
        killed.close()
        self.driver = SimulatedDriver(self.hypervisor)
        self.runner.run(self.driver.open(self.told.add))

    @invariant()
    def looks_as_expected(self) -> None:
        """The list and the single looks agree with the table."""
        listed = {
            guest.instance_id: (guest.observed, guest.fence) for guest in self.runner.run(self.driver.list())
        }
        known = {
            guest: (LOOKS[state], self.fences[guest])
            for guest, state in self.expected.items()
            if LOOKS[state] is not Observed.MISSING
        }
        assert listed == known
        for guest in GUESTS:
            assert self.runner.run(self.driver.get(guest)).observed is LOOKS[self.expected[guest]]


TestSimulatedGuests = SimulatedGuests.TestCase
TestSimulatedGuests.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    suppress_health_check=[HealthCheck.too_slow],
)
