"""Every row that has a wire name, asked for over HTTP: who may, in which state, over what, and behind which lock."""

from __future__ import annotations

from typing import Final

import pytest

from stateward.domain.actions import BY_KEY, Action, Role, key, of_wire
from stateward.domain.locks import OperationClass
from stateward.domain.records import Instance
from stateward.domain.states import ON_NO_HOST, TaskState, VmState
from tests.table.front import DEAD, Front
from tests.wires import WIRES, accepted, version

#: One row of each wire name and variant; rows that only the state tells apart stand for one another.
ROWS: Final = [row for row in BY_KEY.values() if row.wire is not None and row.label is None]
OPERATIONS: Final = [row for row in ROWS if row.is_operation]
#: Refused whatever the server's state is: no guest has a screen.
UNAVAILABLE: Final = {"get_vnc_console", "get_spice_console"}


#: What is no operation and is not accepted here: no agent answers, no guest has a screen, and the host is up.
AT_ONCE: Final = {
    "changePassword": 503,
    "getConsoleOutput": 503,
    "get_serial_console": 400,
    "get_spice_console": 400,
    "get_vnc_console": 400,
    "os-migrateLive": 400,
}


def by_key(row: Action) -> str:
    return key(row)


def alike(row: Action) -> list[Action]:
    """Return the rows that the same request can mean: those of the wire name and the variant."""
    assert row.wire is not None
    return [each for each in of_wire(row.wire) if each.variant == row.variant]


def states(row: Action) -> frozenset[VmState]:
    """Return the states that some row of the request is admitted in."""
    return frozenset[VmState]().union(*(each.when for each in alike(row)))


def answered(row: Action, state: VmState) -> int:
    """Return the status of the answer to whoever may, when no lock and nothing in flight is in the way."""
    return AT_ONCE.get(row.name, accepted(row.name)) if state in states(row) else 409


def place(row: Action) -> dict[str, str]:
    """Return where a server has to be for a row to be admitted."""
    return {} if row.evacuates is None else {"host": DEAD}


def asker(row: Action) -> str:
    """Return the least that may."""
    return "admin" if row.policy.role is Role.ADMIN else "member"


async def untouched(front: Front, before: Instance) -> None:
    """Check that a refusal left nothing behind."""
    assert await front.desk.row(before.id) == before
    assert await front.desk.operations(before.id) == []


@pytest.mark.parametrize("row", ROWS, ids=by_key)
async def test_a_state_that_it_is_not_admitted_in(front: Front, row: Action) -> None:
    """Refused in Nova's sentence, with the action and the state (409); what is deleted is not there (404)."""
    for state in sorted(set(VmState) - states(row)):
        server = await front.add(state)
        before = await front.desk.row(server)
        answer = await front.act(row, server, by=asker(row))
        if state is VmState.DELETED:
            assert (answer.status, answer.message) == (404, f"Instance {server} could not be found.")
        else:
            sentence = f"Cannot '{row.name}' instance {server} while it is in vm_state {state}"
            assert (answer.status, list(answer.body)) == (409, ["conflictingRequest"])
            assert answer.message == sentence
        await untouched(front, before)


@pytest.mark.parametrize("row", OPERATIONS, ids=by_key)
async def test_a_state_that_it_is_admitted_in(front: Front, row: Action) -> None:
    """Admitted: in its task state, as an action of its name, by one operation whose id the answer tells."""
    assert row.wire is not None
    for each in alike(row):
        for state in sorted(each.when):
            server = await front.add(state, **place(row), **({"was": each.was.value} if each.was else {}))
            # From 2.95 on an evacuated server is left off, by another row.
            answer = await front.act(row, server, by=asker(row), v=94 if row.evacuates else None)
            assert answer.status == accepted(row.name), (state, answer)
            (operation,) = await front.desk.operations(server)
            assert answer.headers["x-stateward-operation"] == operation.id
            assert operation.action == key(each)
            after = await front.desk.row(server)
            # Of what is on no host there is nothing to remove, so it is gone at once.
            gone = each.becomes is VmState.DELETED and state in ON_NO_HOST
            assert (after.vm_state, after.task_state) == (
                (VmState.DELETED, None) if gone else (state, each.pending)
            )
            listed = await front("GET", f"/servers/{server}/os-instance-actions")
            assert [action["action"] for action in listed.body["instanceActions"]] == [row.name]


@pytest.mark.parametrize("row", [row for row in ROWS if row.name not in UNAVAILABLE], ids=by_key)
async def test_something_else_in_flight(front: Front, row: Action) -> None:
    """Refused in Nova's sentence over every task state that the row may not overtake."""
    state = min(states(row) & {VmState.ACTIVE} or states(row))
    for task_state in sorted(set(TaskState) - row.over):
        server = await front.add(state, task_state=task_state.value)
        before = await front.desk.row(server)
        answer = await front.act(row, server, by=asker(row))
        sentence = f"Cannot '{row.name}' instance {server} while it is in task_state {task_state}"
        assert (answer.status, answer.message) == (409, sentence)
        await untouched(front, before)


@pytest.mark.parametrize("row", ROWS, ids=by_key)
async def test_a_hold_that_blocks_one_class(front: Front, row: Action) -> None:
    """It refuses exactly what belongs to the class, before anything is said of the state."""
    for state in (min(states(row)), VmState.BUILDING):
        for blocked in OperationClass:
            server = await front.add(state, **place(row), hold_blocks=int(blocked), locked_by="hold")
            before = await front.desk.row(server)
            answer = await front.act(row, server, by=asker(row))
            locked = f"Instance {server} is locked"
            if row.guarded & blocked:
                assert (answer.status, answer.message) == (409, locked)
                await untouched(front, before)
            else:
                assert (answer.status, locked in str(answer.body)) == (answered(row, state), False)


@pytest.mark.parametrize("row", ROWS, ids=by_key)
async def test_an_owners_lock(front: Front, row: Action) -> None:
    """It binds the project's members and not the admins; what is exempt passes."""
    state = min(states(row))
    for by in ("member", "admin"):
        server = await front.add(state, **place(row), owner_blocks=15, locked_by="owner")
        answer = await front.act(row, server, by=by)
        if by == "member" and row.policy.role is Role.ADMIN:
            assert answer.status == 403
        elif by == "member" and row.guarded:
            assert (answer.status, answer.message) == (409, f"Instance {server} is locked")
        else:
            assert answer.status == answered(row, state), (by, answer)


@pytest.mark.parametrize("row", ROWS, ids=by_key)
async def test_a_role_that_is_not_enough(front: Front, row: Action) -> None:
    """A reader, and a member for what only admins may, hear of the rule (403)."""
    server = await front.add(min(states(row)))
    before = await front.desk.row(server)
    for by in {"reader", "member"} if row.policy.role is Role.ADMIN else {"reader"}:
        answer = await front.act(row, server, by=by)
        rule = f"Policy doesn't allow {row.policy.rule} to be performed."
        assert (answer.status, list(answer.body), answer.message) == (403, ["forbidden"], rule)
    await untouched(front, before)


@pytest.mark.parametrize("row", ROWS, ids=by_key)
async def test_another_projects_server(front: Front, row: Action) -> None:
    """It is not there, in whatever state it is, and however wrong the rest of the request is."""
    for state in VmState:
        server = await front.add(state)
        before = await front.desk.row(server)
        answer = await front.act(row, server, by="stranger")
        assert (answer.status, answer.message) == (404, f"Instance {server} could not be found.")
        await untouched(front, before)


@pytest.mark.parametrize(
    "options",
    [
        {"rebuild": {"imageRef": "nosuch"}},
        {"resize": {"flavorRef": "nosuch"}},
        {"rescue": {"rescue_image_ref": "nosuch"}},
        {"unshelve": {"availability_zone": "nosuch"}},
        {"unshelve": {"host": "nosuch"}},
    ],
)
async def test_another_projects_server_with_something_else_that_is_not_there(
    front: Front, options: dict[str, object]
) -> None:
    """What the request names besides is no way to find out that a server exists."""
    for state in (VmState.ACTIVE, VmState.SHELVED, VmState.DELETED):
        server = await front.add(state)
        answer = await front("POST", f"/servers/{server}/action", options, by="stranger")
        assert (answer.status, answer.message) == (404, f"Instance {server} could not be found.")


@pytest.mark.parametrize("wire", WIRES)
async def test_a_microversion_without_it(front: Front, wire: str) -> None:
    """Nova's answer to an action of other microversions, whether there is such a server or not."""
    row = of_wire(wire)[0]
    server = await front.add(VmState.ACTIVE)
    for minor in {row.since - 1, row.since, version(row), version(row) + 1} - {0, 105}:
        answer = await front.act(row, server, by="admin", v=minor)
        there = row.since <= minor <= version(row)
        said = None if answer.status < 400 else (answer.status, answer.message)
        assert (said == (404, "The resource could not be found.")) != there, (minor, said)
