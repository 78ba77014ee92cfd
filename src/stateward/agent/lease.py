"""A lease on shared storage: says that this host lives to whoever reaches that storage, whatever the network does."""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import msgspec
import structlog

from stateward.threads import on_thread

log = structlog.get_logger()


class Lease(msgspec.Struct, frozen=True, kw_only=True):
    """What is in the file. Who reads it asks whether it changed, not what time it is."""

    host: str
    boot_id: str
    #: Larger at each renewal, over all lives of the agent.
    counter: int


class LeaseFile:
    """Renews one host's lease."""

    def __init__(
        self,
        folder: Path,
        host: str,
        *,
        seconds: float,
        boot_id: Callable[[], str],
        counter: Callable[[], int],
        blocking: Callable[[Callable[[], None]], Coroutine[Any, Any, None]] = on_thread,
    ) -> None:
        """Renew ``folder/HOST.lease`` every so many seconds, with what the two say then; ``blocking`` writes it."""
        self._path = folder / f"{host}.lease"
        self._host = host
        self._seconds = seconds
        self._boot_id = boot_id
        self._counter = counter
        self._blocking = blocking

    async def run(self) -> None:
        """Renew it until cancelled. Storage that hangs or fails holds up nothing else of the agent."""
        failed = False
        while True:
            try:
                lease = Lease(host=self._host, boot_id=self._boot_id(), counter=self._counter())
                await self._blocking(functools.partial(self.renew, lease))
            except OSError as error:
                if not failed:
                    log.warning("the lease cannot be renewed", path=str(self._path), error=str(error))
                failed = True
            except Exception:
                # No thread for it, say: a lease that is never renewed again has the host's death confirmed.
                log.exception("the lease could not be renewed; it is tried again", path=str(self._path))
                failed = True
            else:
                failed = False
            await asyncio.sleep(self._seconds)

    def renew(self, lease: Lease) -> None:
        """Write it in one piece: a reader sees the old one or the new one."""
        new = self._path.with_suffix(".new")
        with new.open("wb") as file:
            file.write(msgspec.json.encode(lease))
            file.flush()
            os.fsync(file.fileno())
        new.replace(self._path)
