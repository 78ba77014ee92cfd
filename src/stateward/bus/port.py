"""The bus port: how the control plane and the agents reach each other.

Delivery is at least once and in no promised order; a message is delivered again until it was acknowledged. Who
receives must therefore take duplicates and late arrivals (fences and sequence numbers make them harmless).
Questions (``ask``) are answered or time out; nothing is kept of them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

#: Handles one message's payload. Returning acknowledges it; raising has it delivered again later.
Handler = Callable[[bytes], Awaitable[None]]
#: Answers one question.
Answerer = Callable[[bytes], Awaitable[bytes]]


class NobodyAnswered(Exception):
    """A question found no one to answer it in time; ``str()`` names the subject."""


class Bus(Protocol):
    """Subjects of messages, each with one group of receivers."""

    async def publish(self, subject: str, payload: bytes, *, message_id: str) -> None:
        """Hand a message over; on return the bus answers for its delivery (as long as the bus itself lives)."""
        ...

    async def subscribe(self, subject: str, handler: Handler) -> None:
        """Have the subject's messages handled from now on, several at a time, until the bus is closed."""
        ...

    async def ask(self, subject: str, payload: bytes, *, timeout: float) -> bytes:
        """Ask a question and return its answer.

        Raises:
            NobodyAnswered: within ``timeout`` seconds.
        """
        ...

    async def answer(self, subject: str, answerer: Answerer) -> None:
        """Answer the subject's questions from now on, until the bus is closed."""
        ...

    async def close(self) -> None:
        """Stop delivering; wait for the handlers under way."""
        ...


def operations_subject(host: str) -> str:
    """Name the subject of the dispatches for a host's agent."""
    return f"operations.{host}"


def console_subject(host: str) -> str:
    """Name the subject of the console questions to a host's agent."""
    return f"console.{host}"


def control_subject(host: str) -> str:
    """Name the subject of the orders to operations on a host."""
    return f"control.{host}"


def questions_subject(host: str) -> str:
    """Name the subject of the questions to a host's agent (``stateward.domain.questions``)."""
    return f"questions.{host}"


RESULTS = "results"
PROGRESS = "progress"
REPORTS = "reports"
TALLIES = "tallies"
ADDRESSES = "addresses"
HOSTS = "hosts"
#: Asked by an agent that starts, with its host's name.
STANDING = "standing"
