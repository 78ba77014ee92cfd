"""What a lock keeps besides the instance itself: the copies of its disk, and the project it is in (R1, R6).

Each is asked inside the transaction that would delete something, which holds what it asks about: no hold and no lock
is placed between the question and the deletion.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import sqlalchemy as sa

from stateward.domain.errors import Conflict
from stateward.domain.locks import LockKind, OperationClass, explained
from stateward.operations import stacking
from stateward.store import instances, locks

#: The property by which an image says of which instance's disk it is a copy (Nova's name).
INSTANCE: Final = "instance_uuid"


def require_image_free(connection: sa.Connection, image_id: str, properties: Mapping[str, str]) -> None:
    """Go on only if an image is no copy of a held instance's disk.

    Raises:
        Conflict: it is, and stays for as long as the hold does (R6).
    """
    instance_id = properties.get(INSTANCE)
    held = None if instance_id is None else instances.hold(connection, instance_id)
    if held is not None and held.held:
        kept = [lock for lock in stacking.stack_of(connection, held) if lock.kind is LockKind.HOLD]
        raise Conflict(
            f"Image {image_id} is kept: instance {held.id}, of whose disk it is a copy, is held. {explained(kept)}"
        )


def require_project_free(connection: sa.Connection, project_id: str) -> None:
    """Go on only if nothing of a project is locked against being deleted.

    Raises:
        Conflict: something is; the sentence says what to release first (R1).
    """
    # Nobody makes an instance or places a lock there meanwhile.
    locks.hold_project(connection, project_id, alone=True)
    own = locks.of_project(connection, project_id)
    if own:
        raise Conflict(f"Project {project_id} is locked: release its locks first. {explained(own)}")
    kept = instances.blocked(connection, project_id, OperationClass.DELETE)
    if kept:
        raise Conflict(
            f"Project {project_id} has instances that are locked against being deleted; release them first: "
            f"{', '.join(kept)}."
        )
