"""Adopting: guests that a host has already become instances, as they are.

The record comes first, in one transaction with its claim, its locks and the dispatch that has the host mark the guest:
killed anywhere, what is admitted is finished as any operation is. A guest's own id is its instance's, so the record's
uniqueness is what makes one instance of it, however often and by however many it is adopted.
"""

from __future__ import annotations

import enum
import uuid
from collections.abc import Sequence
from typing import Any

import msgspec
import sqlalchemy as sa

from stateward.domain import admit
from stateward.domain.actions import ADOPT
from stateward.domain.errors import NotFound
from stateward.domain.placement import need_of
from stateward.domain.records import Actor, Instance, Operation, Target
from stateward.domain.seeds import SeedFacts
from stateward.domain.states import Cause, Observed, VmState
from stateward.domain.strangers import NO_IMAGE, STATE_OF, Stranger
from stateward.operations import stacking
from stateward.operations.admission import Admission, operation_for, post_dispatch
from stateward.operations.stacking import LockWish
from stateward.store import adoptions, claims, hosts, instances, locks, operations


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """A guest that is to be adopted, and as whose instance."""

    stranger: Stranger
    project_id: str
    user_id: str
    name: str
    hostname: str
    #: Common to those of one request.
    reservation_id: str
    lock: LockWish | None = None


class Outcome(enum.StrEnum):
    """What came, or would come, of a wish."""

    ADOPTED = "adopted"
    #: It is an instance on this host.
    KNOWN = "known"
    REFUSED = "refused"


class Adopted(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one wish."""

    wish: Wish
    outcome: Outcome
    #: Why it was refused; empty when it was not.
    why: str = ""
    #: None while it is only foreseen, or was refused.
    instance: Instance | None = None
    operation: Operation | None = None


def foresee(connection: sa.Connection, host: str, wish: Wish, *, again: bool) -> Adopted:
    """Say what would come of a wish.

    Args:
        connection: where to look.
        host: the guest's.
        wish: which guest, and as what.
        again: also when the guest bears the mark of a Stateward that has no record of it here.
    """
    found, stranger = instances.get(connection, wish.stranger.id), wish.stranger
    if found is not None and found.vm_state is not VmState.DELETED:
        if found.host == host:
            return Adopted(wish=wish, outcome=Outcome.KNOWN, instance=found)
        where = f"on host {found.host}" if found.host else "on no host"
        return _refused(wish, f"An instance of this id is {where}; two must not run.")
    if stranger.mark is not None and found is not None:
        return _refused(
            wish, "Its instance was deleted; the host removes, or gives back, what is left of it."
        )
    if found is not None and found.project_id != wish.project_id:
        return _refused(
            wish,
            f"It was a server of project {found.project_id} before, whose history and usage are kept under its id "
            "and are not another project's to see: adopt it into that project, or define the guest anew with "
            "another UUID while it is off.",
        )
    if stranger.mark is not None and not again:
        return _refused(
            wish,
            "It bears Stateward's mark. If its record was lost, adopt it again on purpose; "
            "if another Stateward looks after it, leave it.",
        )
    if stranger.observed not in STATE_OF:
        return _refused(wish, f"Its host says that it is {stranger.observed}; look again.")
    return Adopted(wish=wish, outcome=Outcome.ADOPTED)


def _refused(wish: Wish, why: str) -> Adopted:
    return Adopted(wish=wish, outcome=Outcome.REFUSED, why=why)


async def adopt(
    admission: Admission, host: str, wishes: Sequence[Wish], actor: Actor, *, again: bool
) -> list[Adopted]:
    """Admit the adoption of guests of one host, each by itself: one that is refused is in no other's way.

    Room on the host is claimed whether there is any or not, since they take it up already.

    Raises:
        NotFound: there is no such host.
        StoreUnavailable: the database cannot be written.
    """

    def work(connection: sa.Connection) -> list[Adopted]:
        at = hosts.named(connection, host)
        if at is None:
            raise no_host(host)
        # What they inherit is read below: no lock is placed on their projects between that and the commit, and no
        # project is deleted. These, like the rows of several, in one order for whoever waits for them.
        for project_id in sorted({wish.project_id for wish in wishes}):
            locks.hold_project(connection, project_id, alone=False)
        return [
            _adopt_in(connection, at.name, at.zone, wish, actor, now=admission.clock.now(), again=again)
            for wish in sorted(wishes, key=lambda wish: wish.stranger.id)
        ]

    adopted = await admission.database.write(work)
    admission.wake()
    return adopted


def no_host(name: str) -> NotFound:
    """Say that there is no such host."""
    return NotFound(f"Host {name!r} could not be found.")


def _adopt_in(
    connection: sa.Connection, host: str, zone: str, wish: Wish, actor: Actor, *, now: float, again: bool
) -> Adopted:
    foreseen = foresee(connection, host, wish, again=again)
    if foreseen.outcome is not Outcome.ADOPTED:
        return foreseen
    operation_id = str(uuid.uuid4())
    instance = _row(connection, wish, host, zone, actor, operation_id=operation_id, now=now)
    if instance is None:
        # Somebody else was faster between the look and the write.
        return foresee(connection, host, wish, again=again)
    claims.take_anyway(connection, host, instance.id, need_of(instance.flavor))
    detail: dict[str, Any] = {
        "name": instance.name,
        "host": host,
        "domain": instance.adopted_as,
        "found": wish.stranger.observed.value,
    }
    if wish.lock is not None:
        instance, lock = stacking.place_in(connection, instance, wish.lock, now)
        detail["lock"] = stacking.told(lock)
    operation = operation_for(ADOPT, instance, actor, now=now, operation_id=operation_id)
    target = Target(found=STATE_OF[wish.stranger.observed])
    operation.params["target"] = msgspec.to_builtins(target)
    operations.insert(connection, operation)
    operations.record(
        connection,
        at=now,
        event="admitted",
        actor=actor,
        instance_id=instance.id,
        operation_id=operation_id,
        action=operation.action,
        detail=detail | operations.moved(None, instance),
    )
    post_dispatch(connection, ADOPT, operation, instance)
    return Adopted(wish=wish, outcome=Outcome.ADOPTED, instance=instance, operation=operation)


def _row(
    connection: sa.Connection,
    wish: Wish,
    host: str,
    zone: str,
    actor: Actor,
    *,
    operation_id: str,
    now: float,
) -> Instance | None:
    """Write the row, or have a deleted one of this id live again; None when it is neither new nor deleted."""
    values = _values(wish, operation_id, now) | {"host": host, "zone": zone}
    inherited = locks.of_instance(connection, wish.stranger.id, wish.project_id, ())
    values |= stacking.columns_of(inherited)
    fence = wish.stranger.fence + 1
    instance = adoptions.insert_unless_known(
        connection,
        {
            **values,
            "id": wish.stranger.id,
            "created_at": now,
            "fence": fence,
        },
    )
    if instance is not None:
        return instance
    # Whose the record is never changes: all that is told and billed of its past is that project's (ADR 0021).
    checks = admit.conditions(ADOPT, actor.kind, project_id=wish.project_id)
    before = instances.get(connection, wish.stranger.id)
    if before is None or before.host != host:
        # Each host counts what it sees by itself.
        values |= {"observed_seq": 0, "addresses_seq": 0}
    revived = instances.guarded_update(connection, wish.stranger.id, checks, values, bump_fence=True)
    if revived is None:
        return None
    # A lock of its own may have ended between the reading above and the holding of its row.
    revived = stacking.restack(connection, revived)
    if revived.fence >= fence:
        return revived
    return instances.change_held(connection, revived, {"fence": fence})


def _values(wish: Wish, operation_id: str, now: float) -> dict[str, Any]:
    """Return what is recorded of a guest that nobody here has looked at yet, but for where it is and its locks."""
    return {
        "project_id": wish.project_id,
        "user_id": wish.user_id,
        "name": wish.name,
        "description": None,
        "hostname": wish.hostname,
        "flavor": wish.stranger.flavor(),
        "image": NO_IMAGE,
        "key_name": None,
        "user_data": None,
        "metadata": {},
        "tags": (),
        "seed": SeedFacts(),
        "ports": (),
        "reservation_id": wish.reservation_id,
        "updated_at": now,
        "launched_at": None,
        "terminated_at": None,
        "vm_state": VmState.BUILDING.value,
        "task_state": ADOPT.pending and ADOPT.pending.value,
        "operation_id": operation_id,
        "fault": None,
        "observed": Observed.UNKNOWN.value,
        "cause": Cause.OTHER.value,
        "addresses": (),
        "old_flavor": None,
        "was": None,
        "rescue": None,
        "shelved_image": None,
        "group_id": None,
        "hints": None,
        "state_since": None,
        "adopted_as": wish.stranger.name,
    }
