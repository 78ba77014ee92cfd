"""Claims: the room instances hold on hosts, so that no two are given the same.

A claim is a row, by instance and purpose, and part of the sums in its host's row. The room is tested in the WHERE
clause of the UPDATE that takes it, so no race overcommits; it is given back by the rows that a DELETE returns, each
of which is returned once, so giving back twice, or what was never taken, changes nothing (ADR 0012).

Whoever changes the claims of an instance holds its row by a guarded UPDATE in the same transaction, or is about to
insert it: what is read of them here stays so until the commit.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterable
from typing import Any, Final

import msgspec
import sqlalchemy as sa

from stateward.domain.hosts import Condition
from stateward.domain.placement import Room
from stateward.store.placement_tables import CLAIMS
from stateward.store.tables import HOSTS, INSTANCES

_COLUMNS = CLAIMS.c
_HOSTS = HOSTS.c


class Purpose(enum.StrEnum):
    """What an instance holds room for: one claim each."""

    #: Where it is, as it is.
    HOME = "home"
    #: Where it is going, or what it is becoming, until that is confirmed or reverted.
    MOVE = "move"


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """The room that one instance holds on one host."""

    instance_id: str
    purpose: Purpose
    host: str
    room: Room


def _fits(claimed: sa.Column[int], more: str, capacity: str) -> sa.ColumnElement[bool]:
    return claimed + sa.bindparam(more) <= sa.bindparam(capacity)


_TAKE: Final = (
    sa.update(HOSTS)
    .where(
        _HOSTS.name == sa.bindparam("b_host"),
        _HOSTS.enabled.is_(True),
        _HOSTS.forced_down.is_(False),
        _HOSTS.condition == sa.literal_column(f"'{Condition.UP.value}'"),
        _HOSTS.maintenance_until.is_(None),
        _HOSTS.seen_at >= sa.bindparam("b_since"),
        _fits(_HOSTS.claimed_vcpus, "b_vcpus", "b_all_vcpus"),
        _fits(_HOSTS.claimed_memory, "b_memory", "b_all_memory"),
        # What takes no disk fits a host that has none left.
        sa.or_(
            sa.bindparam("b_disk", type_=sa.BigInteger) == 0,
            _fits(_HOSTS.claimed_disk, "b_disk", "b_all_disk"),
        ),
    )
    .values(
        claimed_vcpus=_HOSTS.claimed_vcpus + sa.bindparam("b_vcpus"),
        claimed_memory=_HOSTS.claimed_memory + sa.bindparam("b_memory"),
        claimed_disk=_HOSTS.claimed_disk + sa.bindparam("b_disk"),
        claims=_HOSTS.claims + sa.bindparam("b_count"),
    )
)
_TAKE_ANYWAY: Final = (
    sa.update(HOSTS)
    .where(_HOSTS.name == sa.bindparam("b_host"))
    .values(
        claimed_vcpus=_HOSTS.claimed_vcpus + sa.bindparam("b_vcpus"),
        claimed_memory=_HOSTS.claimed_memory + sa.bindparam("b_memory"),
        claimed_disk=_HOSTS.claimed_disk + sa.bindparam("b_disk"),
        claims=_HOSTS.claims + 1,
    )
)
_GIVE_BACK: Final = (
    sa.update(HOSTS)
    .where(_HOSTS.name == sa.bindparam("b_host"))
    .values(
        claimed_vcpus=_HOSTS.claimed_vcpus - sa.bindparam("b_vcpus"),
        claimed_memory=_HOSTS.claimed_memory - sa.bindparam("b_memory"),
        claimed_disk=_HOSTS.claimed_disk - sa.bindparam("b_disk"),
        claims=_HOSTS.claims - 1,
    )
)
_INSERT: Final = sa.insert(CLAIMS)
_RELEASE_ALL: Final = (
    sa.delete(CLAIMS).where(_COLUMNS.instance_id == sa.bindparam("b_instance")).returning(CLAIMS)
)
_RELEASE: Final = _RELEASE_ALL.where(_COLUMNS.purpose == sa.bindparam("b_purpose"))


def take(
    connection: sa.Connection,
    host: str,
    instance_ids: Collection[str],
    *,
    purpose: Purpose,
    need: Room,
    capacity: Room,
    since: float,
) -> bool:
    """Claim room for some instances on one host, each as much, all of them or none.

    Args:
        connection: in a transaction.
        host: its name.
        instance_ids: none of which may hold a claim for the purpose.
        purpose: what for.
        need: what each of them takes up.
        capacity: all that may be claimed there.
        since: the host must have been heard of at this time or later; seconds since the epoch.

    Returns:
        False when the host has too little room now, or is disabled, maintained, down or not usable; then nothing is.
    """
    total = need.times(len(instance_ids))
    taken = connection.execute(
        _TAKE,
        {
            "b_host": host,
            "b_since": since,
            "b_vcpus": total.vcpus,
            "b_memory": total.memory,
            "b_disk": total.disk,
            "b_all_vcpus": capacity.vcpus,
            "b_all_memory": capacity.memory,
            "b_all_disk": capacity.disk,
            "b_count": len(instance_ids),
        },
    )
    if taken.rowcount != 1:
        return False
    connection.execute(
        _INSERT,
        [
            {
                "instance_id": instance_id,
                "purpose": purpose.value,
                "host": host,
                "vcpus": need.vcpus,
                "memory": need.memory,
                "disk": need.disk,
            }
            for instance_id in instance_ids
        ],
    )
    return True


def release(connection: sa.Connection, instance_id: str, purpose: Purpose | None = None) -> list[Claim]:
    """Give back what an instance holds for a purpose, or for all; return what that was.

    Doing it again, or for an instance that holds nothing, changes nothing.
    """
    if purpose is None:
        rows = connection.execute(_RELEASE_ALL, {"b_instance": instance_id}).all()
    else:
        rows = connection.execute(_RELEASE, {"b_instance": instance_id, "b_purpose": purpose.value}).all()
    # By the hosts' names: two transactions that wait for two hosts must wait for them in one order.
    claims = sorted((_claim_of(row) for row in rows), key=lambda claim: claim.host)
    for claim in claims:
        connection.execute(
            _GIVE_BACK,
            {
                "b_host": claim.host,
                "b_vcpus": claim.room.vcpus,
                "b_memory": claim.room.memory,
                "b_disk": claim.room.disk,
            },
        )
    return claims


def take_anyway(connection: sa.Connection, host: str, instance_id: str, need: Room) -> None:
    """Claim room for an instance that is on a host already, whether the host has it or not.

    What it takes up is taken up. A host that is overcommitted by it is given nothing more, which is what the sums are
    for.
    """
    connection.execute(
        _TAKE_ANYWAY,
        {"b_host": host, "b_vcpus": need.vcpus, "b_memory": need.memory, "b_disk": need.disk},
    )
    claim = {"instance_id": instance_id, "purpose": Purpose.HOME.value, "host": host}
    connection.execute(_INSERT, claim | msgspec.structs.asdict(need))


def settle_move(connection: sa.Connection, instance_id: str) -> bool:
    """Make what an instance claimed for a move its home, and give the old home back.

    Returns:
        False when it had claimed nothing for a move; nothing is changed then, so this can be repeated.
    """
    if Purpose.MOVE not in of_instance(connection, instance_id):
        return False
    release(connection, instance_id, Purpose.HOME)
    connection.execute(
        sa.update(CLAIMS)
        .where(_COLUMNS.instance_id == instance_id, _COLUMNS.purpose == Purpose.MOVE.value)
        .values(purpose=Purpose.HOME.value)
    )
    return True


def shrink(connection: sa.Connection, instance_id: str, need: Room) -> None:
    """Give back what an instance's home is larger than it now takes up; one that is no larger stays as it is."""
    home = of_instance(connection, instance_id).get(Purpose.HOME)
    if home is None:
        return
    spare = Room(
        vcpus=max(home.room.vcpus - need.vcpus, 0),
        memory=max(home.room.memory - need.memory, 0),
        disk=max(home.room.disk - need.disk, 0),
    )
    if spare == Room():
        return
    left = {
        "vcpus": home.room.vcpus - spare.vcpus,
        "memory": home.room.memory - spare.memory,
        "disk": home.room.disk - spare.disk,
    }
    changed = connection.execute(
        sa.update(CLAIMS)
        .where(
            _COLUMNS.instance_id == instance_id,
            _COLUMNS.purpose == Purpose.HOME.value,
            _COLUMNS.vcpus == home.room.vcpus,
            _COLUMNS.memory == home.room.memory,
            _COLUMNS.disk == home.room.disk,
        )
        .values(left)
    )
    if changed.rowcount == 1:
        connection.execute(
            sa.update(HOSTS)
            .where(_HOSTS.name == home.host)
            .values(
                claimed_vcpus=_HOSTS.claimed_vcpus - spare.vcpus,
                claimed_memory=_HOSTS.claimed_memory - spare.memory,
                claimed_disk=_HOSTS.claimed_disk - spare.disk,
            )
        )


def of_instance(connection: sa.Connection, instance_id: str) -> dict[Purpose, Claim]:
    """Return what an instance holds."""
    rows = connection.execute(sa.select(CLAIMS).where(_COLUMNS.instance_id == instance_id))
    return {claim.purpose: claim for claim in map(_claim_of, rows)}


def hosts_of(connection: sa.Connection, instance_ids: Iterable[str], project_id: str) -> frozenset[str]:
    """Return the hosts where some of a project's instances hold anything."""
    rows = connection.execute(
        sa.select(_COLUMNS.host)
        .join(INSTANCES, INSTANCES.c.id == _COLUMNS.instance_id)
        .where(_COLUMNS.instance_id.in_(sorted(set(instance_ids))), INSTANCES.c.project_id == project_id)
    )
    return frozenset(row.host for row in rows)


def spread_of(connection: sa.Connection, group_id: str, besides: str | None = None) -> dict[str, int]:
    """Count the members of a server group that hold anything on each host, ``besides`` one instance."""
    statement = (
        sa.select(_COLUMNS.host, sa.func.count(_COLUMNS.instance_id.distinct()))
        .join(INSTANCES, INSTANCES.c.id == _COLUMNS.instance_id)
        .where(INSTANCES.c.group_id == group_id)
        .group_by(_COLUMNS.host)
    )
    if besides is not None:
        statement = statement.where(_COLUMNS.instance_id != besides)
    return {host: count for host, count in connection.execute(statement)}  # noqa: C416 (rows are no pairs to dict)


def _claim_of(row: sa.Row[Any]) -> Claim:
    return Claim(
        instance_id=row.instance_id,
        purpose=Purpose(row.purpose),
        host=row.host,
        room=Room(vcpus=row.vcpus, memory=row.memory, disk=row.disk),
    )
