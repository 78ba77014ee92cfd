"""What must be true of a server that was killed and started again."""

from __future__ import annotations

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
from tests.harness import Admin

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


def broken_records(database: Path) -> list[str]:
    """Look into the database itself: nothing is unfinished, and everything was admitted and finished once.

    The last operation that succeeded is the one whose state the instance has, and the arbiter had nothing to do:
    what looked like a deviation was an operation under way.
    """
    found: list[str] = []
    with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        rows = connection.execute
        for table, what in (
            ("operations", "finished_at IS NULL"),
            ("outbox", "1"),
            ("operations", "user_id = ''"),
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
    admin: Admin, fleet: Fleet, guests: Callable[[], Awaitable[Mapping[str, Observed]]], *, seconds: float
) -> None:
    """Wait until every operation has ended, and compare all accounts.

    Args:
        admin: asks the server.
        fleet: knows what was accepted and locked; what was looked at is not looked at again.
        guests: asks the hypervisors.
        seconds: the operations have to end.
    """
    servers = await admin.settled(seconds=seconds)
    found = lies(servers, await guests())
    found += broken_records(admin.server.data / "stateward.db")
    found += await lost_locks(admin, fleet)
    accepted, fleet.accepted = fleet.accepted, []
    found += await unkept(admin, accepted)
    assert not found, "\n".join(found)
