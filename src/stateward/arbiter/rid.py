"""What a host that comes back is rid of before it is used: each guest by a question that may be asked again."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Sequence
from typing import Final

import msgspec
import sqlalchemy as sa
import structlog

from stateward.bus.port import Bus, NobodyAnswered, questions_subject
from stateward.domain.questions import Answer, Expel, Leaves
from stateward.domain.records import Instance
from stateward.domain.states import ON_NO_HOST, Observed, VmState
from stateward.store import hosts, instances, strays
from stateward.store.engine import Database
from stateward.store.strays import Stray

log = structlog.get_logger()

#: Seconds in which a host removes one, or takes its power.
_SECONDS: Final = 60.0
#: So many are asked for at a time: fewer than the calls that a driver lets through.
_AT_ONCE: Final = 4
#: What says nothing of where the instance is now.
_NOT_SEEN: Final = frozenset({Observed.MISSING, Observed.UNKNOWN})


class Returning:
    """Has hosts that come back rid of what was made anew elsewhere."""

    def __init__(self, database: Database, bus: Bus) -> None:
        """Ask over this bus."""
        self._database = database
        self._bus = bus

    async def rid(self, host: str) -> bool:
        """Have a host take the power of all that are there, and remove those it can; whether it is rid of all.

        Of what is held all is kept (R6), and not waited for, or a hold would keep a whole host from being used: without
        power it is a copy like any other, which ``Strays`` keep for as long as the hold is there.

        Raises:
            StoreUnavailable: the database cannot be used.
        """
        found = await self._database.read(lambda connection: strays.on(connection, host))
        # The power of each, before anything else is done about any.
        if not await self._off(found):
            return False
        rid = True
        for stray in found:
            leaves = await self._database.read(functools.partial(_leaves, stray=stray))
            if leaves is Leaves.OFF:
                rid = False
                continue
            if leaves is not None and not await self._ask(stray, leaves):
                return False
            await self._database.write(functools.partial(strays.gone, stray=stray))
            log.info(
                "a stray is kept" if leaves is None else "a stray is gone",
                host=host,
                instance=stray.instance_id,
            )
        return rid

    async def _off(self, found: Sequence[Stray]) -> bool:
        """Take the power of all, whether or not one does not give it up."""
        turns = asyncio.Semaphore(_AT_ONCE)

        async def off(stray: Stray) -> bool:
            async with turns:
                return await self._ask(stray, Leaves.OFF)

        # Each within its own time: those in front that hang must not keep the others from being asked.
        return all(await asyncio.gather(*(off(stray) for stray in found)))

    async def _ask(self, stray: Stray, leaves: Leaves) -> bool:
        question = Expel(instance_id=stray.instance_id, fence=stray.fence, leaves=leaves)
        try:
            raw = await self._bus.ask(
                questions_subject(stray.host), msgspec.json.encode(question), timeout=_SECONDS
            )
        except NobodyAnswered:
            return False
        error = msgspec.json.decode(raw, type=Answer).error
        if error is not None:
            log.warning("a stray stays", host=stray.host, instance=stray.instance_id, error=error)
        return error is None


def _leaves(connection: sa.Connection, stray: Stray) -> Leaves | None:
    """Say what may be left of a stray: as long as the record's own copy is not certain, it is all that there is.

    None: it is held, and stays as it is without power.
    """
    instance = instances.get(connection, stray.instance_id)
    if instance is not None and not _certain(instance, stray.host):
        return Leaves.OFF
    if instance is not None and instance.held:
        return None
    host = hosts.named(connection, stray.host)
    return Leaves.DISK if host is not None and host.shared else Leaves.NOTHING


def _certain(instance: Instance, host: str) -> bool:
    if instance.vm_state in ON_NO_HOST:
        return True
    return (
        instance.host != host
        and instance.task_state is None
        and instance.vm_state is not VmState.ERROR
        and instance.observed not in _NOT_SEEN
    )
