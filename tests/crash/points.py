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


class Traps:
    """Lets each instance's operation come to a moment of its own and no further, as long as the patch is there."""

    def __init__(self, agent: Agent, patch: pytest.MonkeyPatch) -> None:
        self._set: dict[str, tuple[Point, asyncio.Event]] = {}
        self._finished = agent.worker.journal.finished
        self._send = agent.worker.send
        for step, function in list(steps.STEPS.items()):
            patch.setitem(steps.STEPS, step, self._around(step, function))
        patch.setattr(agent.worker.journal, "finished", self._keep)
        patch.setattr(agent.worker, "send", self._tell)

    def set(self, instance_id: str, point: Point) -> None:
        """Set one."""
        self._set[instance_id] = (point, asyncio.Event())

    async def reached(self) -> None:
        """Wait until all are where they are to be."""
        for _, reached in self._set.values():
            await reached.wait()

    def _around(
        self, step: Step, function: Callable[[Work], Awaitable[None]]
    ) -> Callable[[Work], Awaitable[None]]:
        async def run(work: Work) -> None:
            instance_id = work.dispatch.instance_id
            await self._hold(instance_id, Point(When.BEFORE, step))
            if self._is(instance_id, Point(When.DURING, step)):
                asyncio.get_running_loop().call_later(0.02, self._set[instance_id][1].set)
            await function(work)
            await self._hold(instance_id, Point(When.AFTER, step))

        return run

    def _keep(self, result: Result) -> None:
        if self._is(result.instance_id, Point(When.UNKEPT)):
            # It cannot wait here; the lane ends where it is, as it does when the agent is stopped.
            self._set[result.instance_id][1].set()
            raise asyncio.CancelledError
        self._finished(result)

    async def _tell(self, result: Result) -> None:
        await self._hold(result.instance_id, Point(When.UNSENT))
        await self._send(result)

    def _is(self, instance_id: str, point: Point) -> bool:
        return instance_id in self._set and self._set[instance_id][0] == point

    async def _hold(self, instance_id: str, point: Point) -> None:
        if self._is(instance_id, point):
            self._set[instance_id][1].set()
            await asyncio.Event().wait()
