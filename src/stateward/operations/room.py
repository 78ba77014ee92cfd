"""The room that operations need beside what their instance holds, claimed in the transaction that admits them."""

from __future__ import annotations

from collections.abc import Mapping

import sqlalchemy as sa

from stateward.domain.actions import Action
from stateward.domain.actions.row import Disk
from stateward.domain.errors import Refusal, Refused
from stateward.domain.placement import Rules
from stateward.domain.records import Instance
from stateward.domain.states import Cause, Observed, VmState
from stateward.operations.placing import Place, claim
from stateward.operations.preparing import Wanted, larger
from stateward.store import claims, hosts, instances, strays
from stateward.store.claims import Purpose


def claim_for(
    connection: sa.Connection, action: Action, instance: Instance, wanted: Wanted, rules: Rules, *, now: float
) -> Instance:
    """Claim the room that an operation needs beside what the instance holds; return the row with its host.

    Raises:
        Refused: there is none.
    """
    if action.evacuates is not None:
        return _evacuated(connection, action.evacuates, instance, wanted, rules, now=now)
    if action.places:
        move = claims.of_instance(connection, instance.id).get(Purpose.MOVE)
        if move is not None:
            # It is on its way: the room was claimed before it left its old host.
            claims.settle_move(connection, instance.id)
            return _now_on(connection, instance, {"host": move.host})
        purpose, flavor = Purpose.HOME, instance.flavor
        place = Place(zone=wanted.zone, host=wanted.host, group_id=instance.group_id)
    elif action.leaves:
        # Room for both flavors: a revert gives the old one back there.
        purpose, flavor = Purpose.MOVE, larger(instance.flavor, wanted.target.flavor)
        place = Place(
            zone=instance.zone,
            host=wanted.host,
            excluded=frozenset({instance.host}),
            group_id=instance.group_id,
        )
    elif action.becomes is VmState.RESIZED and wanted.target.flavor is not None:
        purpose, flavor = Purpose.MOVE, wanted.target.flavor
        place = Place(host=instance.host)
    else:
        return instance
    host = claim(connection, instance, purpose, flavor=flavor, place=place, rules=rules, now=now)
    if not action.places:
        return instance
    return _now_on(connection, instance, {"host": host.name, "zone": host.zone})


def _evacuated(
    connection: sa.Connection, disk: Disk, instance: Instance, wanted: Wanted, rules: Rules, *, now: float
) -> Instance:
    """Have an instance be on another host than the one that was fenced, which is to be rid of it when it returns.

    Raises:
        Refused: it is on no host, or its host is not fenced, or its disk is there, or no other host has room.
    """
    left = instance.host
    if not left:
        raise Refused(Refusal.NO_HOST, instance_id=instance.id)
    fenced = hosts.hold_fenced(connection, left)
    if fenced is None:
        raise Refused(Refusal.NOT_FENCED, instance_id=instance.id, host=left)
    if instance.adopted_as is not None or (disk is Disk.SHARED and not fenced.shared):
        raise Refused(Refusal.DISK_IS_THERE, instance_id=instance.id, host=left)
    # Also what it held for a move that is not going to end.
    claims.release(connection, instance.id)
    place = Place(
        zone=None if wanted.host is not None else instance.zone,
        host=wanted.host,
        excluded=frozenset({left}),
        group_id=instance.group_id,
        gone=left,
        shared=disk is Disk.SHARED,
    )
    host = claim(
        connection, instance, Purpose.HOME, flavor=instance.flavor, place=place, rules=rules, now=now
    )
    strays.note(connection, left, instance.id, instance.fence, now)
    return _now_on(connection, instance, {"host": host.name, "zone": host.zone})


def _now_on(connection: sa.Connection, instance: Instance, where: Mapping[str, str]) -> Instance:
    """Write the host that an instance comes to. Nothing was seen of it there: each host counts what it sees itself."""
    unseen = {"observed": Observed.UNKNOWN.value, "cause": Cause.OTHER.value, "observed_seq": 0}
    return instances.change_held(connection, instance, {**where, **unseen, "addresses_seq": 0})
