"""The processes that an instance's machines are, whichever host of this machine has them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path


class Processes:
    """Looks for the machines of one instance, wherever they run."""

    def __init__(self, instance_id: str) -> None:
        self._instance_id = instance_id.encode()
        #: The processes of each look, where they differ from those of the one before.
        self.seen: list[frozenset[int]] = []
        self.looks = 0

    def look(self) -> frozenset[int]:
        """Return the processes that are alive now."""
        found = set[int]()
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                words = (folder / "cmdline").read_bytes().split(b"\0")
                state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if b"qemu-system" in words[0] and self._instance_id in words and state not in "ZX":
                found.add(int(folder.name))
        self.looks += 1
        now = frozenset(found)
        if self.seen[-1:] != [now]:
            self.seen.append(now)
        return now

    async def watch(self) -> None:
        """Look until cancelled."""
        while True:
            self.look()
            await asyncio.sleep(0.05)


@asynccontextmanager
async def watched(instance_id: str) -> AsyncGenerator[Processes]:
    """Look for the machines of an instance meanwhile."""
    processes = Processes(instance_id)
    task = asyncio.create_task(processes.watch())
    try:
        yield processes
    finally:
        task.cancel()
        await asyncio.wait([task])
