"""What a lock keeps besides the instance itself: the copies of its disk, and the project it is in (R1, R6).

Each is asked inside the transaction that would delete something, which holds what it asks about: no hold and no lock
is placed between the question and the deletion.
"""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

from stateward.domain.errors import Kept
from stateward.domain.locks import BINDS, LockKind, OperationClass, explained
from stateward.domain.records import Actor
from stateward.operations import stacking
from stateward.operations.refusals import recorded
from stateward.store import instances, locks
from stateward.store.images import Image

#: The property by which an image says of which instance's disk it is a copy (Nova's name).
INSTANCE: Final = "instance_uuid"


def require_image_free(connection: sa.Connection, image: Image, by: Actor, now: float) -> None:
    """Go on only if an image is neither a copy of a held instance's disk nor a locked one's only disk.

    The instances' rows are held from here on. Who holds an image's row too takes it after this: whatever ends an
    operation holds the instance's first.

    Args:
        connection: the transaction.
        image: as it was read.
        by: who would delete it, or have it say that it is another's copy.
        now: seconds since the epoch, for the audit trail.

    Raises:
        Kept: it is, and stays for as long as the lock does (R1, R6).
    """
    kept_as = set(instances.living_on(connection, image.id))
    if INSTANCE in image.properties:
        kept_as.add(image.properties[INSTANCE])
    # In one order for everybody.
    for instance_id in sorted(kept_as):
        held = instances.hold(connection, instance_id)
        if held is None:
            continue
        disk = held.shelved_image is not None and held.shelved_image.id == image.id
        kept = [
            lock
            for lock in stacking.stack_of(connection, held)
            if lock.kind is LockKind.HOLD
            or (disk and by.kind in BINDS[lock.kind] and lock.blocks & OperationClass.DELETE)
        ]
        if not kept:
            continue
        what = "the disk of" if disk else "a copy of the disk of"
        # Anybody can give an image of their own the name of another's instance.
        why = f" {explained(kept)}" if held.project_id == image.owner else ""
        with recorded(connection, "delete_image", held.id, by, now):
            raise Kept(f"Image {image.id} is kept: it is {what} instance {held.id}, which is locked.{why}")


def require_project_free(connection: sa.Connection, project_id: str, by: Actor, now: float) -> None:
    """Go on only if nothing of a project is locked against being deleted.

    Args:
        connection: the transaction.
        project_id: which.
        by: who would delete it.
        now: seconds since the epoch, for the audit trail.

    Raises:
        Kept: something is; the sentence says what to release first (R1).
    """
    # Nobody makes an instance or places a lock there meanwhile.
    locks.hold_project(connection, project_id, alone=True)
    with recorded(connection, "delete_project", None, by, now):
        own = locks.of_project(connection, project_id)
        if own:
            raise Kept(f"Project {project_id} is locked: release its locks first. {explained(own)}")
        kept = instances.blocked(connection, project_id, OperationClass.DELETE)
        if kept:
            raise Kept(
                f"Project {project_id} has instances that are locked against being deleted; release them first: "
                f"{', '.join(kept)}."
            )
