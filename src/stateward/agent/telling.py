"""Telling the control plane how far an operation is (B4), without slowing it down.

The latest word replaces those before it, so a step that is over within ``TELL_SECONDS`` is never told: an operation
that is quick costs no message and no write. What is lost by a kill is told again by the next life's first step.
"""

from __future__ import annotations

import asyncio
import contextlib
from types import TracebackType
from typing import Self

import msgspec
import structlog

from stateward.agent.journal import Journal
from stateward.bus.port import PROGRESS, Bus
from stateward.clock import Clock
from stateward.domain.records import Dispatch, Progress, ProgressReport, WaitsFor
from stateward.domain.shutdown import Rung
from stateward.domain.steps import Step

log = structlog.get_logger()

#: Seconds that a word waits for a later one to take its place.
TELL_SECONDS = 0.05


class Telling:
    """One operation's words; a context manager, which says nothing more after its end."""

    def __init__(self, bus: Bus, journal: Journal, clock: Clock, dispatch: Dispatch) -> None:
        """Say nothing yet."""
        self._bus = bus
        self._journal = journal
        self._clock = clock
        self._dispatch = dispatch
        self._said: Progress | None = None
        self._untold: Progress | None = None
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Begin."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End; what was not told yet is not news any more."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    def say(
        self,
        step: Step,
        *,
        waits_for: WaitsFor | None = None,
        deadline: float | None = None,
        signalled_at: float | None = None,
        rung: Rung | None = None,
    ) -> None:
        """Say which step is under way and what it waits for; the same again is no news. Times since the epoch."""
        steps = self._dispatch.steps
        said = Progress(
            seq=0,
            step=step,
            number=steps.index(step) + 1,
            of=len(steps),
            waits_for=waits_for,
            deadline=deadline,
            signalled_at=signalled_at,
            rung=rung,
            at=0.0,
        )
        if said == self._said:
            return
        self._said = said
        self._untold = msgspec.structs.replace(said, seq=self._journal.next_seq(), at=self._clock.now())
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._tell(), name=f"tell {self._dispatch.operation_id}")

    async def _tell(self) -> None:
        await asyncio.sleep(TELL_SECONDS)
        while self._untold is not None:
            progress, self._untold = self._untold, None
            report = ProgressReport(operation_id=self._dispatch.operation_id, progress=progress)
            try:
                await self._bus.publish(
                    PROGRESS,
                    msgspec.json.encode(report),
                    message_id=f"{report.operation_id}.{progress.seq}",
                )
            except Exception:
                log.exception("how far an operation is could not be told")
