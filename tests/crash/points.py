"""The moments at which an agent is killed, derived from a row's steps."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Awaitable, Callable

import msgspec
import pytest

from stateward.agent import steps
from stateward.agent.agent import Agent
from stateward.agent.work import Work
from stateward.domain.actions import Action
from stateward.domain.records import Result
from stateward.domain.steps import Step


class When(enum.StrEnum):
    """Where around a step, or around the result."""

    BEFORE = "before"
    #: The guest was asked, and is given its time.
    DURING = "during"
    #: After the step's effect, before the journal knows of it.
    AFTER = "after"
    #: After the last step, before the result is in the journal.
    UNKEPT = "result not kept"
    #: The result is in the journal and was not sent.
    UNSENT = "result not sent"


class Point(msgspec.Struct, frozen=True):
    """One moment."""

    when: When
    step: Step | None = None

    def __str__(self) -> str:
        """Say it as a test's name does."""
        return self.when.value if self.step is None else f"{self.when} {self.step}"


def points(row: Action) -> list[Point]:
    """Return every moment of a row's operation: a new row, or a new step, has its own by itself."""
    found: list[Point] = []
    for step in row.steps:
        found.append(Point(When.BEFORE, step))
        if step is Step.SHUT_DOWN:
            found.append(Point(When.DURING, step))
        found.append(Point(When.AFTER, step))
    return [*found, Point(When.UNKEPT), Point(When.UNSENT)]


class Trap:
    """Lets an agent come to a moment and no further; ``reached`` tells when it is there."""

    def __init__(self, point: Point, agent: Agent, patch: pytest.MonkeyPatch) -> None:
        self.reached = asyncio.Event()
        self._point = point
        if point.step is not None:
            patch.setitem(steps.STEPS, point.step, self._step(steps.STEPS[point.step]))
        elif point.when is When.UNKEPT:
            patch.setattr(agent.worker.journal, "finished", self._finished)
        else:
            patch.setattr(agent.worker, "send", self._send)

    def _step(self, step: Callable[[Work], Awaitable[None]]) -> Callable[[Work], Awaitable[None]]:
        async def run(work: Work) -> None:
            if self._point.when is When.DURING:
                asyncio.get_running_loop().call_later(0.02, self.reached.set)
                await step(work)
                return
            if self._point.when is When.AFTER:
                await step(work)
            await self._hold()

        return run

    def _finished(self, _result: Result) -> None:
        # It cannot wait here; the lane ends where it is, as it does when the agent is stopped.
        self.reached.set()
        raise asyncio.CancelledError

    async def _send(self, _result: Result) -> None:
        await self._hold()

    async def _hold(self) -> None:
        self.reached.set()
        await asyncio.Event().wait()
