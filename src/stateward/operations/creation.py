"""Creating an instance: the one admission that inserts a row instead of guarding one."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

import msgspec
import sqlalchemy as sa

from stateward.domain.actions import CREATE
from stateward.domain.networks import Network, ports_of
from stateward.domain.records import Actor, Fault, FlavorFacts, ImageFacts, OperationState
from stateward.domain.seeds import SeedFacts
from stateward.domain.states import Cause, Observed, VmState
from stateward.operations.admission import Admission, Admitted, operation_for, post_dispatch
from stateward.store import hosts, instances, operations


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
    #: Only a host of this zone, and only this host, when given.
    zone: str | None = None
    host: str | None = None


async def create(
    admission: Admission, new: NewInstance, actor: Actor, *, patience: float, reservation_id: str
) -> Admitted:
    """Admit one new instance; see ``create_all``."""
    (admitted,) = await create_all(admission, [new], actor, patience=patience, reservation_id=reservation_id)
    return admitted


async def create_all(
    admission: Admission,
    wanted: Sequence[NewInstance],
    actor: Actor,
    *,
    patience: float,
    reservation_id: str,
) -> list[Admitted]:
    """Admit new instances, all or none, each on the usable host that has the fewest.

    Without one the instance is kept in ERROR with Nova's "No valid host was found", as in Nova.

    Args:
        admission: whose database, clock and outbox to use.
        wanted: the instances wanted.
        actor: who asks.
        patience: seconds after which a host that was not heard of counts as down.
        reservation_id: common to the instances of one request.

    Raises:
        StoreUnavailable: the database cannot be written.
    """

    def one(connection: sa.Connection, new: NewInstance) -> Admitted:
        now = admission.clock.now()
        host = _choose(connection, new, now, patience)
        operation_id = str(uuid.uuid4())
        values = _row(new, now, reservation_id)
        if host is None:
            fault = Fault(
                code=500,
                message="No valid host was found. There are not enough hosts available.",
                created=now,
            )
            values |= {"host": "", "zone": new.zone or "", "vm_state": VmState.ERROR.value, "fault": fault}
            values |= {"task_state": None, "operation_id": None}
        else:
            pending = CREATE.pending
            values |= {"host": host.name, "zone": host.zone, "vm_state": VmState.BUILDING.value}
            values |= {"task_state": pending and pending.value, "operation_id": operation_id}
        instance = instances.insert(connection, values)
        operation = operation_for(CREATE, instance, actor, now=now, operation_id=operation_id)
        if host is None:
            operation = msgspec.structs.replace(
                operation,
                state=OperationState.FAILED,
                finished_at=now,
                message=instance.fault.message if instance.fault else None,
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
            detail={"name": new.name, "host": instance.host},
        )
        if host is not None:
            post_dispatch(connection, CREATE, operation, instance)
        return Admitted(instance=instance, operation=operation)

    admitted = await admission.database.write(lambda connection: [one(connection, new) for new in wanted])
    admission.wake()
    return admitted


def _choose(connection: sa.Connection, new: NewInstance, now: float, patience: float) -> hosts.Host | None:
    usable = [
        host
        for host in hosts.every(connection)
        if host.enabled
        and host.up(now, patience)
        and host.report is not None
        and host.report.reachable
        and (new.zone is None or host.zone == new.zone)
        and (new.host is None or host.name == new.host)
    ]
    load = hosts.load(connection) if len(usable) > 1 else {}
    return min(usable, key=lambda host: (load.get(host.name, 0), host.name), default=None)


def _row(new: NewInstance, now: float, reservation_id: str) -> dict[str, Any]:
    instance_id = str(uuid.uuid4())
    return {
        "id": instance_id,
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
        "reservation_id": reservation_id,
        "created_at": now,
        "updated_at": now,
        "fence": 1,
        "observed": Observed.UNKNOWN.value,
        "cause": Cause.OTHER.value,
    }
