"""Asking an instance's host something while the request waits."""

from __future__ import annotations

from typing import Final

import msgspec

from stateward.api.compute.call import Call
from stateward.bus.port import NobodyAnswered, questions_subject
from stateward.domain.errors import Conflict, HostUnavailable
from stateward.domain.questions import Answer, Question
from stateward.domain.records import Instance

#: Seconds a host has to answer: longer than it gives an agent inside a guest.
_SECONDS: Final = 10.0


async def ask(call: Call, instance: Instance, question: Question) -> Answer:
    """Ask the instance's host.

    Raises:
        HostUnavailable: it does not answer, or its hypervisor cannot be asked now.
        Conflict: it says that this cannot be done, and why.
    """
    subject = questions_subject(instance.host)
    try:
        raw = await call.services.bus.ask(subject, msgspec.json.encode(question), timeout=_SECONDS)
    except NobodyAnswered:
        raise HostUnavailable(
            f"The host of instance {instance.id} does not answer. Try again when it is back."
        ) from None
    answer = msgspec.json.decode(raw, type=Answer)
    if answer.error is not None:
        raise (HostUnavailable if answer.unavailable else Conflict)(answer.error)
    return answer
