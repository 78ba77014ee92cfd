"""Which instances exist for a caller."""

from __future__ import annotations

from stateward.api.compute.call import Call
from stateward.domain.errors import Refusal, Refused
from stateward.domain.records import Instance
from stateward.domain.states import VmState
from stateward.store import instances


async def find(call: Call, instance_id: str) -> Instance:
    """Return an instance the caller may see.

    Raises:
        Refused: there is none, or it is deleted.
    """
    found = await call.services.database.read(lambda connection: instances.get(connection, instance_id))
    if (
        found is None
        or found.vm_state is VmState.DELETED
        or call.visible_project not in {None, found.project_id}
    ):
        raise Refused(Refusal.NOT_FOUND, instance_id=instance_id)
    return found
