"""What an operation aims at besides a state: worked out when it is admitted, in the same transaction.

A request brings a ``Wanted``; what follows from the instance's own row (the flavor to go back to, the image to
start from) is added here, where the row is held.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any, Final

import msgspec
import sqlalchemy as sa

from stateward.domain.actions import Action
from stateward.domain.errors import Invalid
from stateward.domain.records import Actor, FlavorFacts, Instance, Target
from stateward.domain.settle import SNAPSHOT_FORMAT
from stateward.domain.states import VmState
from stateward.domain.steps import Step
from stateward.operations.stacking import LockWish
from stateward.store import images
from stateward.store.images import Image

#: Glance's property by which an image asks that file systems be frozen while it is copied (Nova's name).
_QUIESCE: Final = "os_require_quiesce"
_GIB: Final = 1024**3
_TRUE: Final = frozenset({"true", "1", "yes", "on"})


class ImageWanted(msgspec.Struct, frozen=True, kw_only=True):
    """The image that a copy of the disk becomes."""

    name: str
    properties: Mapping[str, str] = {}


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What a request wants besides the action itself."""

    target: Target = Target()
    #: Columns that are changed as the operation is admitted.
    changes: Mapping[str, Any] = {}
    #: What of the instance's ``SeedFacts`` is changed as the operation is admitted.
    seed: Mapping[str, Any] = {}
    image: ImageWanted | None = None
    #: An image that the instance's flavor must be large enough for.
    must_fit: Image | None = None
    #: unshelve and migrate: only a host of this zone, and only this host, when given.
    zone: str | None = None
    host: str | None = None
    #: A lock that is placed as the operation is admitted, so that nothing comes between the two (R6, R7).
    lock: LockWish | None = None


NOTHING: Final = Wanted()


def aim(
    connection: sa.Connection,
    action: Action,
    instance: Instance,
    actor: Actor,
    *,
    wanted: Wanted,
    now: float,
) -> Target:
    """Return what an admitted operation aims at; an image that it will fill is made, without data.

    Args:
        connection: the transaction that holds the instance's row.
        action: the row of the action table.
        instance: as it is.
        actor: who asks.
        wanted: what the request says.
        now: seconds since the epoch.

    Raises:
        Invalid: the flavor does not fit the instance, or its image; or it is to go where it is.
    """
    _check(connection, action, instance, wanted)
    target = wanted.target
    if action.becomes is VmState.RESCUED and target.rescue is None:
        target = msgspec.structs.replace(target, rescue=instance.rescue or instance.image)
    if action.name == "revertResize":
        target = msgspec.structs.replace(target, flavor=instance.old_flavor)
    if action.places:
        target = msgspec.structs.replace(target, disk_from=instance.shelved_image)
    if Step.SNAPSHOT in action.steps:
        # Shelved, it is off when it is copied, and lives on the copy.
        shelved = action.becomes in {VmState.SHELVED, VmState.SHELVED_OFFLOADED}
        copy = wanted.image or ImageWanted(name=f"{instance.name}-{'shelved' if shelved else 'snapshot'}")
        made = images.insert(connection, _queued(instance, actor, copy, now, protected=shelved))
        quiesce = instance.image.properties.get(_QUIESCE, "").lower() in _TRUE
        target = msgspec.structs.replace(target, snapshot=made.id, quiesce=quiesce and not shelved)
    return target


def _check(connection: sa.Connection, action: Action, instance: Instance, wanted: Wanted) -> None:
    """Refuse what cannot be made of an instance, whatever its state."""
    flavor = wanted.target.flavor
    if action.leaves and wanted.host is not None and wanted.host == instance.host:
        raise Invalid("Cannot migrate to the host where the server exists.")
    if action.name == "resize" and flavor is not None:
        _check_flavor(instance.flavor, flavor)
        image = images.get(connection, instance.image.id)
        if image is not None:
            check_fits(flavor, image)
    if wanted.must_fit is not None:
        check_fits(instance.flavor, wanted.must_fit)


def check_fits(flavor: FlavorFacts, image: Image) -> None:
    """Refuse an image that asks for more than a flavor has.

    Raises:
        Invalid: it does (Nova 34's sentences).
    """
    if flavor.ram < image.min_ram:
        raise Invalid("Flavor's memory is too small for requested image.")
    if flavor.disk and flavor.disk < image.min_disk:
        raise Invalid("Flavor's disk is too small for requested image.")
    # The smallest that its disk can be: what a compressed or sparse image becomes only the host finds out.
    if flavor.disk and image.size is not None and flavor.disk * _GIB < image.size:
        raise Invalid(
            "Flavor's disk is too small for requested image. "
            f"Flavor disk is {flavor.disk * _GIB} bytes, image is {image.size} bytes."
        )


def larger(one: FlavorFacts, other: FlavorFacts | None) -> FlavorFacts:
    """Return a flavor that takes up as much as the larger of two, in each of what a host has."""
    if other is None:
        return one
    sizes = ("vcpus", "ram", "disk", "ephemeral", "swap")
    return msgspec.structs.replace(
        one, **{size: max(getattr(one, size), getattr(other, size)) for size in sizes}
    )


def _check_flavor(old: FlavorFacts, new: FlavorFacts) -> None:
    """Refuse what a resize cannot do (Nova 34's sentences)."""
    if new.id == old.id:
        raise Invalid("When resizing, instances must change flavor!")
    if old.disk and not new.disk:
        raise Invalid("Resize to zero disk flavor is not allowed.")
    if new.disk < old.disk:
        raise Invalid(
            f"A disk cannot shrink: it has {old.disk} GiB, and flavor {new.name} has {new.disk} GiB."
        )


def _queued(instance: Instance, actor: Actor, wanted: ImageWanted, now: float, *, protected: bool) -> Image:
    """Describe the image of an instance's disk; what booted the instance boots those made from it (Nova's names).

    One that a shelved instance lives on is protected: deleting it would delete the instance's disk.
    """
    own = {
        "base_image_ref": instance.image.id,
        "image_type": "snapshot",
        "instance_uuid": instance.id,
        "user_id": actor.user_id,
        "owner_id": instance.project_id,
    }
    return Image(
        id=str(uuid.uuid4()),
        name=wanted.name,
        owner=instance.project_id,
        visibility="private",
        disk_format=SNAPSHOT_FORMAT,
        container_format="bare",
        min_disk=instance.flavor.disk,
        protected=protected,
        created_at=now,
        updated_at=now,
        properties={**instance.image.properties, **own, **wanted.properties},
    )
