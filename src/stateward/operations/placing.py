"""Placing: hosts are chosen and their room is claimed inside the transaction that admits what needs it.

The choice is made of what was read (``domain.placement``), the claim by a guarded UPDATE (``store.claims``). When
somebody else was faster, the hosts are read and chosen anew: only a host that really has no room is given up.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Final

import msgspec
import sqlalchemy as sa

from stateward.domain import placement
from stateward.domain.errors import Invalid, Refusal, Refused
from stateward.domain.placement import Candidate, Group, Rules, Wanted
from stateward.domain.records import FlavorFacts, Instance
from stateward.store import claims, hosts, server_groups
from stateward.store.claims import Purpose
from stateward.store.hosts import Host

#: Times that others may be faster before this is a fault of our own: each time, somebody got what was wanted.
_TRIES: Final = 1000


class NoRoom(msgspec.Struct, frozen=True):
    """There are not enough hosts; ``why`` says of each what speaks against it. Nothing was claimed."""

    why: dict[str, str]


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where something shall be: the part of a wish that is not its size."""

    zone: str | None = None
    host: str | None = None
    excluded: frozenset[str] = frozenset()
    #: Of the project's servers: with any of these on one host, with none of these.
    with_any: tuple[str, ...] = ()
    with_none: tuple[str, ...] = ()
    group_id: str | None = None
    #: A host that has died: members of the server group that are there do not count.
    gone: str | None = None
    #: Only a host that reaches the shared storage.
    shared: bool = False


def claim_new(
    connection: sa.Connection,
    instance_ids: Sequence[str],
    *,
    flavor: FlavorFacts,
    place: Place,
    project_id: str,
    least: int,
    rules: Rules,
    now: float,
) -> list[Host] | NoRoom:
    """Claim room for new instances: for as many of them as fit, the first ones, but for at least so many.

    Args:
        connection: in the transaction that then inserts them.
        instance_ids: theirs.
        flavor: of each of them.
        place: where they shall be.
        project_id: whose they are.
        least: fewer than this are not placed at all.
        rules: the operator's.
        now: seconds since the epoch.

    Returns:
        A host for each that fits, in the order of their ids.

    Raises:
        Invalid: the server group is gone.
    """
    wanted = _wanted(connection, flavor, place, project_id)
    if place.group_id is not None and wanted.group is None:
        raise Invalid(f"Instance group {place.group_id} could not be found.")
    return _claim(
        connection, instance_ids, purpose=Purpose.HOME, wanted=wanted, least=least, rules=rules, now=now
    )


def claim(
    connection: sa.Connection,
    instance: Instance,
    purpose: Purpose,
    *,
    flavor: FlavorFacts,
    place: Place,
    rules: Rules,
    now: float,
) -> Host:
    """Claim room for an instance that is there: for its new size or host (``MOVE``), or to be on one again (``HOME``).

    Its server group is asked for by ``place.group_id``; itself does not count as a member, and a group that was
    deleted since binds nobody. What it held for the same purpose is given back first.

    Raises:
        Refused: no host has room (``NO_VALID_HOST``); the caller's transaction is to be undone.
    """
    # The group first, then hosts: whoever waits for both must wait for them in one order.
    wanted = _wanted(connection, flavor, place, instance.project_id, besides=instance.id)
    claims.release(connection, instance.id, purpose)
    found = _claim(connection, (instance.id,), purpose=purpose, wanted=wanted, least=1, rules=rules, now=now)
    if isinstance(found, NoRoom):
        raise Refused(Refusal.NO_VALID_HOST, instance_id=instance.id, why=found.why)
    return found[0]


def _claim(
    connection: sa.Connection,
    instance_ids: Sequence[str],
    *,
    purpose: Purpose,
    wanted: Wanted,
    least: int,
    rules: Rules,
    now: float,
) -> list[Host] | NoRoom:
    for _ in range(_TRIES):
        known = {host.name: host for host in hosts.every(connection)}
        candidates = [candidate_of(host, rules, now) for host in known.values()]
        chosen = placement.spread(candidates, wanted, len(instance_ids))
        if len(chosen) < least:
            return NoRoom(placement.explain(candidates, wanted))
        shares: defaultdict[str, list[str]] = defaultdict(list)
        for instance_id, name in zip(instance_ids, chosen, strict=False):
            shares[name].append(instance_id)
        capacities = {each.name: each.capacity for each in candidates if each.capacity is not None}
        # Undone when somebody else was faster on one of the hosts; it also lets go of the rows that were waited for:
        # two who kept theirs while waiting for each other's would wait for ever. SQLite has one writer at a time.
        attempt = connection.begin_nested() if connection.dialect.name == "postgresql" else None
        if all(
            claims.take(
                connection,
                name,
                shares[name],
                purpose=purpose,
                need=wanted.need,
                capacity=capacities[name],
                since=now - rules.patience,
            )
            for name in sorted(shares)
        ):
            if attempt is not None:
                attempt.commit()
            return [known[name] for name in chosen]
        if attempt is None:
            break
        attempt.rollback()
    msg = "hosts that were chosen could not be claimed, though nobody was faster"
    raise RuntimeError(msg)


def candidate_of(host: Host, rules: Rules, now: float) -> Candidate:
    """Return a host as placement sees it."""
    report = host.report
    return Candidate(
        name=host.name,
        zone=host.zone,
        enabled=host.enabled,
        up=host.up(now, rules.patience),
        reachable=report is not None and report.reachable,
        condition=host.condition,
        shared=host.shared,
        maintained=host.maintenance_until is not None,
        capacity=None if report is None else placement.capacity_of(report, rules),
        claimed=host.claimed,
        instances=host.claims,
    )


def _wanted(
    connection: sa.Connection,
    flavor: FlavorFacts,
    place: Place,
    project_id: str,
    *,
    besides: str | None = None,
) -> Wanted:
    excluded = place.excluded
    if place.with_none:
        excluded |= claims.hosts_of(connection, place.with_none, project_id)
    return Wanted(
        need=placement.need_of(flavor),
        zone=place.zone,
        host=place.host,
        excluded=excluded,
        among=claims.hosts_of(connection, place.with_any, project_id) if place.with_any else None,
        group=None if place.group_id is None else group_of(connection, place.group_id, besides, place.gone),
        shared=place.shared,
    )


def group_of(connection: sa.Connection, group_id: str, besides: str | None, gone: str | None) -> Group | None:
    """Hold the group, so that nobody else places a member until the commit, and look where its members are."""
    group = server_groups.get(connection, group_id, hold=True)
    if group is None:
        return None
    return Group(
        policy=group.policy,
        most_per_host=group.most_per_host or 1,
        members={
            host: count
            for host, count in claims.spread_of(connection, group_id, besides).items()
            if host != gone
        },
    )
