"""A server whose operations stop at named points, so that it can be killed there: ``python -m tests.crash.doomed …``.

The folder in ``DOOM`` has a file for each instance, with the point as its words say it ("before power_off"). An
operation that comes to its instance's point renames that file, which says that it is there, and goes no further.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from stateward.agent import steps
from stateward.agent.work import Work
from stateward.cli.main import main
from stateward.domain.steps import Step
from tests.crash.points import Point, When

VARIABLE: Final = "DOOM"
REACHED: Final = ".reached"


def _doomed(
    folder: Path, step: Step, function: Callable[[Work], Awaitable[None]]
) -> Callable[[Work], Awaitable[None]]:
    async def run(work: Work) -> None:
        file = folder / work.dispatch.instance_id
        words = file.read_text() if file.exists() else ""
        for when in (When.BEFORE, When.AFTER):
            if when is When.AFTER:
                await function(work)
            if words == str(Point(when, step)):
                file.rename(file.with_suffix(REACHED))
                await asyncio.Event().wait()

    return run


if __name__ == "__main__":
    doom = Path(os.environ[VARIABLE])
    for each, its_function in list(steps.STEPS.items()):
        steps.STEPS[each] = _doomed(doom, each, its_function)
    main()
