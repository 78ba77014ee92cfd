"""What guests are reached by: looked at after something changed until all is known, else at each relist.

Nothing tells when a network has given a guest its address, some seconds after the guest was started, so for a
while after a change the networks are asked every second. Only what is news is reported.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

import msgspec
import structlog

from stateward.agent.driver import Driver, DriverError
from stateward.agent.journal import Journal
from stateward.bus.port import ADDRESSES, Bus
from stateward.domain.networks import PortAddress
from stateward.domain.records import AddressReport

log = structlog.get_logger()

#: Seconds between two looks while a guest's address is waited for, and how long it is waited for after a change.
_SOON: Final = 1.0
_PATIENCE: Final = 60.0


class AddressWatch:
    """Watches one host's guests; ``period`` is the seconds between two looks when nothing happens."""

    def __init__(self, *, host: str, driver: Driver, journal: Journal, bus: Bus, period: float) -> None:
        """Keep the ports."""
        self._host = host
        self._driver = driver
        self._journal = journal
        self._bus = bus
        self._period = period
        self._told: dict[str, tuple[PortAddress, ...]] = {}
        self._wake = asyncio.Event()

    def changed(self) -> None:
        """Look soon: a guest may have been started."""
        self._wake.set()

    async def run(self) -> None:
        """Watch until cancelled."""
        loop = asyncio.get_running_loop()
        eager_until = 0.0
        while True:
            # No guest has an address sooner, and a hundred that change at once are looked at once.
            await asyncio.sleep(_SOON)
            if self._wake.is_set():
                self._wake.clear()
                eager_until = loop.time() + _PATIENCE
            if await self._look() or loop.time() >= eager_until:
                # Not wait_for: on Python 3.11 it loses a cancellation that comes together with the event.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._period):
                        await self._wake.wait()

    async def _look(self) -> bool:
        """Look; say whether nothing is waited for."""
        try:
            return await self.look()
        except DriverError:
            # The observer tells of it; what was told before still stands.
            return True
        except Exception:
            # A fault of ours in one report must not end the watching of the whole host.
            log.exception("looking for addresses failed; it is done again", host=self._host)
            return False

    async def look(self) -> bool:
        """Report what is news; say whether every guest that runs and has a port is known to have an address.

        Raises:
            DriverError: the hypervisor could not be asked.
        """
        seq = self._journal.next_seq()
        now = await self._driver.addresses()
        news = {instance: found for instance, found in now.items() if self._told.get(instance) != found}
        if news:
            report = AddressReport(host=self._host, addresses=news, seq=seq)
            await self._bus.publish(
                ADDRESSES, msgspec.json.encode(report), message_id=f"{self._host}.{seq}.addresses"
            )
        # A guest that is off now may have been off to another host before it runs here again.
        self._told = now
        return all(now.values())
