"""Guests whose file systems are frozen for a moment, and everything it takes that none stays so.

A guest whose file systems are frozen looks alive and does nothing. So a mark is on the disk before the agent inside
is asked, and goes when it has thawed them; whoever finds a mark, also after a kill, thaws, and tries again until the
agent has answered or the guest is off.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path
from typing import Final, TypeVar

import structlog

from stateward.agent.driver import DriverError
from stateward.agent.libvirt.tools import failure, sync

log = structlog.get_logger()

T = TypeVar("T")

#: Asks the agent inside a guest, named by its instance.
Ask = Callable[[str], Awaitable[None]]

#: Seconds between two attempts to thaw.
RETRY_SECONDS: Final = 10.0


async def to_its_end(call: Awaitable[T]) -> T:
    """Wait for a call that goes on when who waits is cancelled: what undoes it must not come before it."""
    task = asyncio.ensure_future(call)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


class Freezer:
    """Freezes the guests of one host.

    Args:
        folder: where the marks are; made when it is needed.
        reach: refuses a guest in which nobody can be asked.
        freeze: has a guest's file systems frozen; also when it fails they may be.
        thaw: has them thawed; returns when that is so, or the guest is off.
    """

    def __init__(self, folder: Path, *, reach: Ask, freeze: Ask, thaw: Ask) -> None:
        self._folder = folder
        self._reach = reach
        self._freeze = freeze
        self._thaw = thaw
        #: Nobody thaws what another has frozen just now.
        self._alone: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._thawing: asyncio.Task[None] | None = None

    def start(self, after: float = 0.0) -> None:
        """Thaw in the background, some seconds from now, whatever was left frozen."""
        if self._thawing is None or self._thawing.done():
            self._thawing = asyncio.create_task(self._thaw_all(after), name="thaw")

    async def stop(self) -> None:
        """Stop trying; the marks stay."""
        if self._thawing is not None:
            self._thawing.cancel()
            await asyncio.wait([self._thawing])
            self._thawing = None

    @contextlib.asynccontextmanager
    async def frozen(self, instance_id: str) -> AsyncGenerator[None]:
        """Have a guest's file systems frozen for a moment.

        Raises:
            DriverError: nobody froze them.
        """
        async with self._alone[instance_id]:
            mark = self._folder / instance_id
            if mark.exists():
                await self._thaw(instance_id)
            # Before the mark: where nobody was asked there is nothing to thaw.
            await self._reach(instance_id)
            _write(mark)
            try:
                await to_its_end(self._freeze(instance_id))
                yield
            finally:
                await asyncio.shield(self._try(instance_id))

    async def _thaw_all(self, after: float) -> None:
        await asyncio.sleep(after)
        while await self._left():  # noqa: ASYNC110 - it thaws; nobody tells when a guest can be asked
            await asyncio.sleep(RETRY_SECONDS)

    async def _left(self) -> bool:
        """Thaw each guest once that has a mark; say whether any is left."""
        try:
            for instance_id in self._marks():
                async with self._alone[instance_id]:
                    await self._try(instance_id)
            return bool(self._marks())
        except OSError as error:
            log.warning("which guests are frozen cannot be read; it is tried again", error=str(error))
            return True

    def _marks(self) -> list[str]:
        return sorted(mark.name for mark in self._folder.iterdir()) if self._folder.is_dir() else []

    async def _try(self, instance_id: str) -> None:
        """Thaw now, or leave it to the background."""
        try:
            await self._thaw(instance_id)
            (self._folder / instance_id).unlink(missing_ok=True)
        except (DriverError, OSError) as error:
            log.warning(
                "a guest's file systems may be frozen; thawing is tried again",
                instance=instance_id,
                error=str(error),
            )
            self.start(RETRY_SECONDS)
        except Exception:
            # No thread to ask by, say: nobody else would ever thaw it.
            log.exception(
                "a guest's file systems may be frozen; thawing is tried again", instance=instance_id
            )
            self.start(RETRY_SECONDS)


def _write(mark: Path) -> None:
    """Bring a mark to the disk; as small and as rare as the journal's writes, which hold the event loop up too."""
    try:
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
        sync(mark.parent)
    except OSError as error:
        raise failure("The guest's file systems cannot be frozen", error.strerror or str(error)) from error
