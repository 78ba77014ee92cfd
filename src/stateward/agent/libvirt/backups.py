"""libvirt's backup jobs, by which the disk of a guest that is on is copied as it is at the moment the job begins.

QEMU keeps that moment: before the guest overwrites what was not copied yet, it is. A job of a killed agent's goes
on without it; it is known by the file it writes into, and ended before anything else is done.
"""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Final

import libvirt
import structlog

from stateward.agent.driver import DriverError
from stateward.agent.libvirt import guests, xml
from stateward.agent.libvirt.connection import Connection, Lane
from stateward.agent.libvirt.frozen import to_its_end
from stateward.agent.libvirt.tools import FULL, failure

log = structlog.get_logger()

#: Seconds between two looks at a job: the first, doubled up to the last.
_FIRST_LOOK: Final = 0.05
_LAST_LOOK: Final = 1.0

#: Seconds that a job has to end when it is told to.
_END_SECONDS: Final = 30.0


class Backups:
    """The backup jobs of one host's guests.

    Args:
        connection: to its libvirtd.
        folder: whatever is copied is copied into it; a job that writes there is ours.
        doing: begins the sentences of errors.
    """

    def __init__(self, connection: Connection, folder: Path, doing: str) -> None:
        self._connection = connection
        self._folder = folder
        self._doing = doing

    async def copy(
        self, instance_id: str, disk: Path, target: Path, still: AbstractAsyncContextManager[None]
    ) -> bool:
        """Copy the disk of a guest that is on; False when it went off under it, and nothing is there then.

        Args:
            instance_id: the guest.
            disk: its file.
            target: the new file.
            still: held while the moment is taken.

        Raises:
            DriverError: it cannot be copied; the job is ended.
        """
        try:
            await self._end(instance_id)
            async with still:
                await to_its_end(
                    self._connection.run(
                        Lane.ACT, lambda connection: self._begin(connection, instance_id, disk, target)
                    )
                )
            await self._finish(instance_id)
        except DriverError:
            await asyncio.shield(self._give_up(instance_id))
            if await self._connection.run(Lane.LOOK, lambda connection: guests.on(connection, instance_id)):
                raise
            return False
        except BaseException:
            await asyncio.shield(self._give_up(instance_id))
            raise
        return True

    async def end_into(self, target: Path) -> None:
        """End a job of a killed agent's that writes into a file, whichever guest's it is."""

        def find(connection: libvirt.virConnect) -> str | None:
            for domain in connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE):
                if target in _targets(domain):
                    return domain.UUIDString()
            return None

        instance_id = await self._connection.run(Lane.LOOK, find)
        if instance_id is not None:
            await self._end(instance_id)

    def _begin(self, connection: libvirt.virConnect, instance_id: str, disk: Path, target: Path) -> None:
        domain = guests.require(connection, instance_id)
        device = xml.device_of(domain.XMLDesc(), disk)
        if device is None:
            raise DriverError(f"The guest does not have {disk} attached.")
        try:
            domain.backupBegin(xml.backup_xml(device, target), None)
        except libvirt.libvirtError as error:
            if FULL in error.get_error_message():
                raise failure(self._doing, FULL) from error
            raise

    async def _finish(self, instance_id: str) -> None:
        look = _FIRST_LOOK
        while not await self._connection.run(
            Lane.LOOK, lambda connection: _finished(connection, instance_id, self._doing)
        ):
            await asyncio.sleep(look)
            look = min(2 * look, _LAST_LOOK)

    async def _end(self, instance_id: str) -> None:
        """End the guest's job, if it has one of ours."""
        try:
            async with asyncio.timeout(_END_SECONDS):
                while True:
                    if not await self._connection.run(
                        Lane.ACT, lambda connection: _abort(connection, instance_id, self._folder)
                    ):
                        return
                    await asyncio.sleep(_FIRST_LOOK)
        except TimeoutError:
            raise DriverError(
                f"{self._doing}: an earlier copy does not end. Look at the guest with virsh domjobinfo."
            ) from None

    async def _give_up(self, instance_id: str) -> None:
        try:
            await self._end(instance_id)
        except DriverError as error:
            log.warning(
                "a copy could not be ended; the next one will", instance=instance_id, error=str(error)
            )


def _finished(connection: libvirt.virConnect, instance_id: str, doing: str) -> bool:
    """Say whether the job is done. Raises ``DriverError`` when it failed."""
    domain = guests.require(connection, instance_id)
    if domain.jobStats()["type"] != libvirt.VIR_DOMAIN_JOB_NONE:
        return False
    ended = domain.jobStats(libvirt.VIR_DOMAIN_JOB_STATS_COMPLETED)
    if ended["type"] != libvirt.VIR_DOMAIN_JOB_COMPLETED:
        raise failure(
            doing, ended.get(libvirt.VIR_DOMAIN_JOB_ERRMSG) or "the copy was ended by somebody else"
        )
    return True


def _abort(connection: libvirt.virConnect, instance_id: str, folder: Path) -> bool:
    """Tell a job of ours to end; say whether there was one still."""
    if not guests.on(connection, instance_id):
        return False
    domain = guests.require(connection, instance_id)
    if not any(target.parent == folder for target in _targets(domain)):
        return False
    try:
        domain.abortJob()
    except libvirt.libvirtError:
        # It has ended by itself meanwhile, or was told before and is on its way.
        return bool(_targets(domain))
    return True


def _targets(domain: libvirt.virDomain) -> frozenset[Path]:
    """Return the files that a domain's job copies into; none when there is no job, or no domain any more."""
    try:
        return xml.backup_targets(domain.backupGetXMLDesc())
    except libvirt.libvirtError as error:
        if error.get_error_code() in (
            *(libvirt.VIR_ERR_NO_DOMAIN_BACKUP, libvirt.VIR_ERR_NO_DOMAIN),
            *(libvirt.VIR_ERR_OPERATION_INVALID, libvirt.VIR_ERR_NO_SUPPORT),
        ):
            return frozenset()
        raise
