"""What an agent is asked while a request waits: it answers from its driver at once and keeps nothing.

Questions take no lane: they may come while an operation is carried out, and hold none up.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import msgspec

from stateward.agent.driver import Driver, DriverError, HypervisorUnavailable
from stateward.domain.questions import (
    Answer,
    Expel,
    Inventory,
    Overtaken,
    Question,
    SecondLook,
    SetPassword,
    WhoElse,
)
from stateward.domain.records import Report
from stateward.domain.strangers import Stranger

_DECODER: Final[msgspec.json.Decoder[Question]] = msgspec.json.Decoder(Question)


class Questions:
    """Answers for one driver."""

    def __init__(
        self,
        driver: Driver,
        overtaken: Callable[[str, int], Awaitable[None]],
        fence_of: Callable[[str], int],
        *,
        inventory: Callable[[int], Awaitable[Report]],
        expel: Callable[[Expel], Awaitable[None]],
    ) -> None:
        """Keep what answers.

        Args:
            driver: is asked.
            overtaken: returns when nothing older than a fence acts on an instance.
            fence_of: the highest fence that came for an instance, 0 when none did.
            inventory: looks at everything, and gives that a number above another.
            expel: has the host rid of a guest.
        """
        self._driver = driver
        self._overtaken = overtaken
        self._fence_of = fence_of
        self._inventory = inventory
        self._expel = expel

    async def answer(self, payload: bytes) -> bytes:
        """Answer one question."""
        question = _DECODER.decode(payload)
        try:
            answer = await self._answer(question)
        except HypervisorUnavailable as error:
            answer = Answer(error=str(error), unavailable=True)
        except DriverError as error:
            answer = Answer(error=str(error))
        return msgspec.json.encode(answer)

    async def _answer(self, question: Question) -> Answer:
        if isinstance(question, SetPassword):
            await self._driver.set_password(question.instance_id, question.user, question.password)
            return Answer()
        if isinstance(question, Overtaken):
            await self._overtaken(question.instance_id, question.fence)
            return Answer()
        if isinstance(question, WhoElse):
            found = await self._driver.strangers(frozenset(question.known))
            return Answer(strangers=tuple(self._with_fence(each) for each in found))
        if isinstance(question, Inventory):
            return Answer(report=await self._inventory(question.above))
        if isinstance(question, SecondLook):
            return Answer(traces=await self._driver.second_look(question.instance_ids))
        if isinstance(question, Expel):
            await self._expel(question)
            return Answer()
        return Answer(diagnostics=await self._driver.diagnostics(question.instance_id))

    def _with_fence(self, stranger: Stranger) -> Stranger:
        """Tell the fence of what was done here before it was given back too: a lower one would count as overtaken."""
        fence = max(stranger.fence, self._fence_of(stranger.id))
        return msgspec.structs.replace(stranger, fence=fence)
