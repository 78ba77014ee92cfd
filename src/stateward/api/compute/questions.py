"""Asking an instance's host something while the request waits."""

from __future__ import annotations

from typing import Final

import msgspec

from stateward.api.compute.call import Call
from stateward.bus.port import Bus, NobodyAnswered, questions_subject
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
    whose = f"The host of instance {instance.id}"
    return await ask_host(call.services.bus, instance.host, question, seconds=_SECONDS, whose=whose)


async def ask_host(
    bus: Bus, host: str, question: Question, *, seconds: float, whose: str | None = None
) -> Answer:
    """Ask a host.

    Args:
        bus: the way to it.
        host: its name.
        question: what is asked.
        seconds: it has to answer.
        whose: what it is called to the caller; its name unless that is for nobody to know.

    Raises:
        HostUnavailable: it does not answer, or its hypervisor cannot be asked now.
        Conflict: it says that this cannot be done, and why.
    """
    try:
        raw = await bus.ask(questions_subject(host), msgspec.json.encode(question), timeout=seconds)
    except NobodyAnswered:
        raise HostUnavailable(
            f"{whose or f'Host {host!r}'} does not answer. Try again when it is back."
        ) from None
    answer = msgspec.json.decode(raw, type=Answer)
    if answer.error is not None:
        raise (HostUnavailable if answer.unavailable else Conflict)(answer.error)
    return answer
