"""Addresses: what hosts say that their guests are reached by is kept, so that each belongs to one instance.

A guest that is off keeps what it had, because its network gives it the same again as a rule; once that is seen
with another guest of the host on the same network, it is not shown with the first any more.
"""

from __future__ import annotations

import functools

import msgspec
import sqlalchemy as sa

from stateward.bus.port import ADDRESSES, Bus
from stateward.domain.networks import PortAddress
from stateward.domain.records import AddressReport
from stateward.store import observations
from stateward.store.engine import Database

_decoder = msgspec.json.Decoder(AddressReport)


async def keep_addresses(bus: Bus, database: Database) -> None:
    """Keep every report of addresses from now on."""
    await bus.subscribe(ADDRESSES, functools.partial(take, database))


async def take(database: Database, payload: bytes) -> None:
    """Keep one report; nothing is written where it is no news."""
    report = _decoder.decode(payload)
    # Looked at outside of the write, which most reports need not: each write takes only what is newer than its row.
    changes = await database.read(lambda connection: _changes(connection, report))
    if changes:
        await database.write(lambda connection: _keep(connection, report, changes))


def _changes(connection: sa.Connection, report: AddressReport) -> dict[str, tuple[PortAddress, ...]]:
    known = observations.addresses_of(connection, report.host)
    changes = {
        instance_id: found
        for instance_id, found in report.addresses.items()
        if instance_id in known and known[instance_id][0] != found
    }
    taken = {
        (network, address.address)
        for instance_id, found in changes.items()
        for network in known[instance_id][1]
        for address in found
    }
    for instance_id, (had, networks) in known.items():
        if instance_id in report.addresses:
            continue
        kept = tuple(
            each for each in had if not any((network, each.address) in taken for network in networks)
        )
        if kept != had:
            changes[instance_id] = kept
    return changes


def _keep(
    connection: sa.Connection, report: AddressReport, changes: dict[str, tuple[PortAddress, ...]]
) -> None:
    for instance_id, addresses in sorted(changes.items()):
        observations.keep_addresses(connection, instance_id, report.host, addresses, report.seq)
