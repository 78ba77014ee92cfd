"""Second signals of a host's death, and fences: protocols, and what there is of each (ADR 0020).

A witness says of a silent host that it lives, that it is dead, or that it cannot tell. A fence takes a host's power.
Both may be asked again after a kill at any moment, and so must be such that doing it twice is doing it once.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec

from stateward.arbiter.programs import Ended, run
from stateward.threads import on_thread

#: Seconds in which shared storage has to answer.
_READ_SECONDS: Final = 10.0
#: What a probe says by its status; any other says nothing.
_ALIVE, _DEAD = 0, 1


class Word(enum.StrEnum):
    """What a witness says."""

    ALIVE = "alive"
    DEAD = "dead"
    UNKNOWN = "unknown"


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """What a witness says, and for people why."""

    word: Word
    says: str


class Witness(Protocol):
    """Somebody else who may know whether a host lives."""

    async def ask(self, host: str, since: float) -> Evidence:
        """Say whether a host lives that has been silent since some time; another time is another silence."""
        ...


class FenceFailed(Exception):
    """A host's power could not be taken; ``str()`` is for people."""


class Fence(Protocol):
    """What takes a host's power."""

    async def fence(self, host: str) -> str:
        """Take it, so that nothing runs there when this returns; return for people how.

        Raises:
            FenceFailed: it is not certain that nothing runs there.
        """
        ...


class LeaseWitness:
    """Looks at the lease that a host's agent renews on shared storage, whatever has become of the network."""

    def __init__(
        self,
        folder: Path,
        seconds: float,
        time: Callable[[], float] | None = None,
        blocking: Callable[[Callable[[], bytes]], Coroutine[Any, Any, bytes]] = on_thread,
    ) -> None:
        """Watch the leases of a folder.

        Args:
            folder: on storage that the hosts and this machine reach.
            seconds: a lease that is not renewed for so long is lost.
            time: counts seconds; None: the event loop. No clock of another machine counts.
            blocking: reads it.
        """
        self._folder = folder
        self._seconds = seconds
        self._time = time
        self._blocking = blocking
        #: By host: the silence, what was in the lease, and since when it is so.
        self._seen: dict[str, tuple[float, bytes, float]] = {}
        #: The reads that storage has not answered yet, by host.
        self._reading: dict[str, asyncio.Task[bytes]] = {}

    async def ask(self, host: str, since: float) -> Evidence:
        """Compare the lease with what was in it."""
        try:
            async with asyncio.timeout(_READ_SECONDS):
                found = await self._read(host)
        except OSError as error:
            # The host may not have reached the storage either: its time begins anew.
            self._seen.pop(host, None)
            match error:
                case FileNotFoundError():
                    says = f"It has no lease in {self._folder}."
                case TimeoutError():
                    says = f"Its lease cannot be read: {self._folder} does not answer."
                case _:
                    says = f"Its lease cannot be read: {error}"
            return Evidence(word=Word.UNKNOWN, says=says)
        now = self._time() if self._time is not None else asyncio.get_running_loop().time()
        silence, was, at = self._seen.get(host, (since, found, now))
        if silence != since:
            was, at = found, now
        self._seen[host] = (since, found, at if was == found else now)
        if was != found:
            return Evidence(word=Word.ALIVE, says="It renews its lease on the shared storage.")
        if now - at >= self._seconds:
            return Evidence(word=Word.DEAD, says=f"It has not renewed its lease for {now - at:.0f} s.")
        if now == at:
            says = f"Whether it renews its lease is known in {self._seconds:.0f} s."
        else:
            says = f"It has not renewed its lease for {now - at:.0f} s yet."
        return Evidence(word=Word.UNKNOWN, says=says)

    async def _read(self, host: str) -> bytes:
        """Read a lease. Storage that hangs keeps one thread, however often it is asked for."""
        reading = self._reading.get(host)
        if reading is None:
            path = self._folder / f"{host}.lease"
            reading = self._reading[host] = asyncio.create_task(self._blocking(path.read_bytes))
            reading.add_done_callback(lambda done: self._read_at_last(host, done))
        return await asyncio.shield(reading)

    def _read_at_last(self, host: str, reading: asyncio.Task[bytes]) -> None:
        del self._reading[host]
        if not reading.cancelled():
            # Nobody may have waited for so long.
            reading.exception()


class CommandWitness:
    """Runs the operator's program: status 0 says that the host lives, 1 that it is dead."""

    def __init__(self, command: Sequence[str], seconds: float) -> None:
        """Run this, with ``{host}`` replaced, for so many seconds at most."""
        self._command = tuple(command)
        self._seconds = seconds

    async def ask(self, host: str, since: float) -> Evidence:
        """Run it."""
        del since
        ended = await _run(self._command, host, self._seconds)
        if ended.status == _ALIVE:
            return Evidence(word=Word.ALIVE, says=f"The probe reaches it.{_said(ended)}")
        if ended.status == _DEAD:
            return Evidence(word=Word.DEAD, says=f"The probe says that it is dead.{_said(ended)}")
        return Evidence(word=Word.UNKNOWN, says=f"The probe cannot tell ({ended.how}).{_said(ended)}")


class CommandFence:
    """Runs the operator's program: status 0 says that the host has no power any more."""

    def __init__(self, command: Sequence[str], seconds: float) -> None:
        """Run this, with ``{host}`` replaced, for so many seconds at most."""
        self._command = tuple(command)
        self._seconds = seconds

    async def fence(self, host: str) -> str:
        """Run it."""
        ended = await _run(self._command, host, self._seconds)
        if ended.status != 0:
            raise FenceFailed(f"The fence program failed ({ended.how}).{_said(ended)}")
        return f"The fence program took its power.{_said(ended)}"


class FirstThatWorks:
    """Fences that are tried in their order until one has done it."""

    def __init__(self, *fences: Fence) -> None:
        """Try these."""
        self._fences = fences

    async def fence(self, host: str) -> str:
        """Try them."""
        failures: list[str] = []
        for fence in self._fences:
            try:
                return await fence.fence(host)
            except FenceFailed as error:
                failures.append(str(error))
        raise FenceFailed(" ".join(failures))


class Means(msgspec.Struct, frozen=True, kw_only=True):
    """What there is to make sure of a host's death."""

    witnesses: tuple[Witness, ...] = ()
    #: None: the operator takes its power.
    fence: Fence | None = None


async def _run(command: tuple[str, ...], host: str, seconds: float) -> Ended:
    words = [word.replace("{host}", host) for word in command]
    return await run(words, seconds, environment={"STATEWARD_HOST": host})


def _said(ended: Ended) -> str:
    return f" It says: {ended.said}" if ended.said else ""
