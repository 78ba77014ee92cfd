"""What an agent is asked while a request waits: it answers from its driver at once and keeps nothing.

Questions take no lane: they may come while an operation is carried out, and hold none up.
"""

from __future__ import annotations

from typing import Final

import msgspec

from stateward.agent.driver import Driver, DriverError, HypervisorUnavailable
from stateward.domain.questions import Answer, Question, SetPassword

_DECODER: Final[msgspec.json.Decoder[Question]] = msgspec.json.Decoder(Question)


class Questions:
    """Answers for one driver."""

    def __init__(self, driver: Driver) -> None:
        """Ask this driver."""
        self._driver = driver

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
        return Answer(diagnostics=await self._driver.diagnostics(question.instance_id))
