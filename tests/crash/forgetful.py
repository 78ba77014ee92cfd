"""Servers that do not survive being killed, run as a program: ``python -m tests.crash.forgetful FAULT …``.

They show that the kill tests find what they are there to find.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import Any, Final, cast
from unittest import mock

from stateward.agent import steps
from stateward.agent.journal import Journal
from stateward.agent.work import Work
from stateward.cli.main import main
from stateward.domain.steps import Step
from stateward.operations import dispatch


def no_repost() -> None:
    """Forget what the bus had taken."""

    mock.patch.object(dispatch, "repost", return_value=0).start()


def journal_first() -> None:
    """Note a step before it is done."""
    for step, function in steps.STEPS.items():
        steps.STEPS[step] = _noted_first(step, function)


def _noted_first(
    step: Step, function: Callable[[Work], Awaitable[None]]
) -> Callable[[Work], Awaitable[None]]:
    async def run(work: Work) -> None:
        journal: Journal = cast("Any", work)._worker.journal
        entry = journal.entry(work.dispatch.instance_id)
        journal.finished_step(work.dispatch.operation_id, step, entry.done if entry else frozenset())
        await asyncio.sleep(0.1)
        await function(work)

    return run


FAULTS: Final[dict[str, Callable[[], None]]] = {"no-repost": no_repost, "journal-first": journal_first}

if __name__ == "__main__":
    FAULTS[sys.argv.pop(1)]()
    main()
