"""What must be true of a server that was killed and started again."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final

from stateward.agent.simulated import SimulatedHypervisor
from stateward.domain.actions import BY_KEY
from stateward.domain.records import OperationState
from stateward.domain.states import Observed, VmState
from tests.crash.fleet import Accepted, Fleet
from tests.harness import Admin, until

#: Seconds in which the arbiter has seen and removed a guest that a dead server's call made.
_REAPED_SECONDS: Final = 30.0

#: What the guest must be for the recorded state to be true, and the API's power state.
_TRUE: Final = {
    VmState.ACTIVE: (Observed.RUNNING, 1),
    VmState.PAUSED: (Observed.PAUSED, 3),
    VmState.SUSPENDED: (Observed.SUSPENDED, 4),
    VmState.STOPPED: (Observed.SHUTOFF, 4),
}


def simulated_guests(folder: Path) -> dict[str, Observed]:
    """Return the simulated hypervisor's own account of a host; a disk without a guest counts as missing."""
    hypervisor = SimulatedHypervisor(folder)
    try:
        return {
            guest.id: Observed.MISSING if guest.spec is None else guest.observed
            for guest in hypervisor.guests()
        }
    finally:
        hypervisor.close()


def lies(servers: Mapping[str, dict[str, Any]], guests: Mapping[str, Observed]) -> list[str]:
    """Compare the API's account with the hypervisors'; every server has its guest, and every guest its server."""
    found: list[str] = []
    for server_id, server in servers.items():
        word = VmState(server["OS-EXT-STS:vm_state"])
        power = server["OS-EXT-STS:power_state"]
        guest = guests.get(server_id, Observed.MISSING)
        if _TRUE.get(word) != (guest, power):
            fault = server.get("fault", {}).get("message", "")
            found.append(f"server {server_id} is {word} with power state {power}, its guest {guest} {fault}")
    found.extend(f"guest {guest_id} has no server" for guest_id in guests.keys() - servers.keys())
    return found


async def unkept(admin: Admin, accepted: list[Accepted]) -> list[str]:
    """Ask for each accepted request's operation: it must be finished, by taking effect or by being overtaken."""
    found: list[str] = []
    async with admin.server.connection(admin.login.token) as connection:
        for each in accepted:
            path = f"/compute/v2.1/servers/{each.server_id}/os-instance-actions/{each.request_id}"
            answer = await connection.ask("GET", path)
            if answer.status != 200:
                found.append(f"{each}: {answer.status}")
                continue
            (event,) = answer.body["instanceAction"]["events"]
            if event["finish_time"] is None or event["result"] not in {"Success", "Superseded"}:
                found.append(f"{each}: {event}")
    return found


async def lost_locks(admin: Admin, fleet: Fleet) -> list[str]:
    """Look for the locks that must be there, and for those that must not."""
    found: list[str] = []
    async with admin.server.connection(admin.login.token) as connection:
        for server_id, holder in fleet.locks.items():
            answer = await connection.ask("GET", f"/compute/v2/{admin.login.project}/servers/{server_id}")
            if answer.status == 200 and answer.body["server"]["locked_by"] != holder:
                found.append(f"{server_id}: {answer.body['server']['locked_by']} instead of {holder}")
    return found


def broken_records(database: Path, *, calls_outlive: bool) -> list[str]:
    """Look into the database itself: nothing is unfinished, and everything was admitted and finished once.

    The last operation that succeeded is the one whose state the instance has, and the arbiter had nothing to do:
    what looked like a deviation was an operation under way.

    Args:
        database: the server's.
        calls_outlive: a daemon goes on with a call whose caller was killed. A guest can then come to be after
            the next life found none and said that it is deleted; only the arbiter can remove it, and must.
    """
    of_the_arbiter = "user_id = ''" + (" AND action <> 'reap'" if calls_outlive else "")
    found: list[str] = []
    with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        rows = connection.execute
        for table, what in (
            ("operations", "finished_at IS NULL"),
            ("outbox", "1"),
            ("operations", of_the_arbiter),
        ):
            found.extend(
                f"{table} where {what}: {row}" for row in rows(f"SELECT * FROM {table} WHERE {what}")
            )
        found.extend(
            f"{event} {count} times: {operation}"
            for operation, event, count in rows(
                "SELECT operation_id, event, count(*) FROM audit WHERE operation_id IS NOT NULL"
                " GROUP BY 1, 2 HAVING count(*) > 1"
            )
        )
        last: dict[str, str] = {}
        for instance_id, key in rows(
            "SELECT instance_id, action FROM operations WHERE state = ? ORDER BY fence, started_at",
            (OperationState.SUCCEEDED.value,),
        ):
            becomes = BY_KEY[key].becomes
            if becomes is not None:
                last[instance_id] = becomes.value
        states: dict[str, str] = dict(rows("SELECT id, vm_state FROM instances").fetchall())
        found.extend(
            f"instance {instance_id} is {states[instance_id]}, its last operation made it {state}"
            for instance_id, state in last.items()
            if states[instance_id] != state
        )
        found.extend(
            f"instance {each} has no operation that succeeded" for each in states.keys() - last.keys()
        )
    return found


async def check_everything(
    admin: Admin,
    fleet: Fleet,
    guests: Callable[[], Awaitable[Mapping[str, Observed]]],
    *,
    seconds: float,
    calls_outlive: bool = False,
) -> None:
    """Wait until every operation has ended, and compare all accounts.

    Args:
        admin: asks the server.
        fleet: knows what was accepted and locked; what was looked at is not looked at again.
        guests: asks the hypervisors.
        seconds: the operations have to end.
        calls_outlive: see `broken_records`.
    """
    accepted, fleet.accepted = fleet.accepted, []

    async def look() -> list[str] | None:
        servers = await admin.settled(seconds=seconds)
        found = lies(servers, await guests())
        found += broken_records(admin.server.data / "stateward.db", calls_outlive=calls_outlive)
        return None if found and calls_outlive and loop.time() < deadline else found

    loop = asyncio.get_running_loop()
    # What a call left behind is gone a moment after it was seen.
    deadline = loop.time() + _REAPED_SECONDS
    found = await until(look, seconds=2 * seconds, says=lambda: "a look takes this long")
    found += await lost_locks(admin, fleet)
    found += await unkept(admin, accepted)
    assert not found, "\n".join(found)
