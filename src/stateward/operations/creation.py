"""Creating instances: the one admission that inserts rows instead of guarding one."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

import msgspec
import sqlalchemy as sa

from stateward.domain.actions import CREATE
from stateward.domain.errors import Refusal
from stateward.domain.networks import Network, ports_of
from stateward.domain.records import Actor, Fault, FlavorFacts, ImageFacts, OperationState
from stateward.domain.seeds import SeedFacts
from stateward.domain.states import Cause, Observed, VmState
from stateward.operations import stacking
from stateward.operations.admission import Admission, Admitted, operation_for, post_dispatch
from stateward.operations.placing import NoRoom, Place, claim_new
from stateward.operations.stacking import LockWish
from stateward.store import instances, locks, operations
from stateward.store.hosts import Host


class NewInstance(msgspec.Struct, frozen=True, kw_only=True):
    """What a request says of the instance it wants."""

    project_id: str
    user_id: str
    name: str
    hostname: str
    flavor: FlavorFacts
    image: ImageFacts
    description: str | None = None
    key_name: str | None = None
    user_data: str | None = None
    metadata: dict[str, str] = {}
    tags: tuple[str, ...] = ()
    seed: SeedFacts = SeedFacts()
    #: The networks it gets a port on, one for each.
    networks: tuple[Network, ...] = ()
    place: Place = Place()
    #: A lock that it has from its first moment, so that there is no gap.
    lock: LockWish | None = None
    #: The scheduler hints as they were given, for the view.
    hints: dict[str, Any] | None = None


async def create(admission: Admission, new: NewInstance, actor: Actor, *, reservation_id: str) -> Admitted:
    """Admit one new instance; see ``create_several``."""
    (admitted,) = await create_several(admission, new, actor, least=1, most=1, reservation_id=reservation_id)
    return admitted


async def create_several(
    admission: Admission, new: NewInstance, actor: Actor, *, least: int, most: int, reservation_id: str
) -> list[Admitted]:
    """Admit as many new instances as there is room for, in one transaction, and claim that room.

    When there is not even room for ``least``, all ``most`` of them are kept in ERROR, on no host, with Nova's "No
    valid host was found": that is how Nova 34 answers a request that was accepted before its hosts were looked at.

    Args:
        admission: whose database, clock, rules and outbox to use.
        new: the instance wanted; with ``most`` above 1 its names are numbered.
        actor: who asks.
        least: admit no fewer.
        most: admit no more.
        reservation_id: common to the instances of one request.

    Raises:
        Invalid: its server group is gone.
        StoreUnavailable: the database cannot be written.
    """

    def work(connection: sa.Connection) -> list[Admitted]:
        now = admission.clock.now()
        # What it inherits is read below: no lock is placed on the project between that and the commit.
        locks.hold_project(connection, new.project_id, alone=False)
        ids = [str(uuid.uuid4()) for _ in range(most)]
        found = claim_new(
            connection,
            ids,
            flavor=new.flavor,
            place=new.place,
            project_id=new.project_id,
            least=least,
            rules=admission.placement,
            now=now,
        )
        places: Sequence[Host | NoRoom] = [found] * most if isinstance(found, NoRoom) else found
        return [
            _insert(
                connection,
                new if most == 1 else _numbered(new, number),
                actor,
                values={"id": instance_id, "reservation_id": reservation_id},
                place=place,
                now=now,
            )
            for number, (instance_id, place) in enumerate(zip(ids, places, strict=False), start=1)
        ]

    admitted = await admission.database.write(work)
    admission.wake()
    return admitted


def _insert(
    connection: sa.Connection,
    new: NewInstance,
    actor: Actor,
    *,
    values: dict[str, Any],
    place: Host | NoRoom,
    now: float,
) -> Admitted:
    """Write a new instance with its operation, its audit record and, when it has a host, its dispatch."""
    operation_id = str(uuid.uuid4())
    values |= _row(values["id"], new, now)
    detail: dict[str, Any] = {"name": new.name}
    if isinstance(place, NoRoom):
        fault = Fault(code=500, message=Refusal.NO_VALID_HOST.value, created=now)
        values |= {"host": "", "zone": new.place.zone or "", "vm_state": VmState.ERROR.value, "fault": fault}
        values |= {"task_state": None, "operation_id": None}
        detail |= {"host": "", "why": place.why}
    else:
        pending = CREATE.pending
        values |= {"host": place.name, "zone": place.zone, "vm_state": VmState.BUILDING.value}
        values |= {"task_state": pending and pending.value, "operation_id": operation_id}
        detail |= {"host": place.name}
    inherited = locks.of_instance(connection, values["id"], new.project_id, new.tags)
    instance = instances.insert(connection, {**values, **stacking.columns_of(inherited)})
    if new.lock is not None:
        instance, lock = stacking.place_in(connection, instance, new.lock, now)
        detail |= {"lock": stacking.told(lock)}
    operation = operation_for(CREATE, instance, actor, now=now, operation_id=operation_id)
    if instance.fault is not None:
        operation = msgspec.structs.replace(
            operation, state=OperationState.FAILED, finished_at=now, message=instance.fault.message
        )
    operations.insert(connection, operation)
    operations.record(
        connection,
        at=now,
        event="admitted",
        actor=actor,
        instance_id=instance.id,
        operation_id=operation.id,
        action=operation.action,
        detail=detail | operations.moved(None, instance),
    )
    if instance.fault is None:
        post_dispatch(connection, CREATE, operation, instance)
    return Admitted(instance=instance, operation=operation)


def _numbered(new: NewInstance, number: int) -> NewInstance:
    return msgspec.structs.replace(new, name=f"{new.name}-{number}", hostname=f"{new.hostname}-{number}")


def _row(instance_id: str, new: NewInstance, now: float) -> dict[str, Any]:
    return {
        "project_id": new.project_id,
        "user_id": new.user_id,
        "name": new.name,
        "description": new.description,
        "hostname": new.hostname,
        "flavor": new.flavor,
        "image": new.image,
        "key_name": new.key_name,
        "user_data": new.user_data,
        "metadata": new.metadata,
        "tags": new.tags,
        "seed": new.seed,
        "ports": ports_of(instance_id, new.networks),
        "created_at": now,
        "updated_at": now,
        "fence": 1,
        "observed": Observed.UNKNOWN.value,
        "cause": Cause.OTHER.value,
        "group_id": new.place.group_id,
        "hints": new.hints,
    }
