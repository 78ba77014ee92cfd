"""Locks that come with a stop, a suspend or a create, in the Compute API; and what its refusals say (R7)."""

from __future__ import annotations

from typing import Any, Final

import pytest
import pytest_asyncio

from stateward.domain.locks import ALL_CLASSES, ActorKind, LockKind, OperationClass
from stateward.domain.states import TaskState, VmState
from stateward.operations.locking import Locking
from stateward.operations.stacking import LockWish
from stateward.store.engine import Database
from tests.rows import actor
from tests.table.front import IMAGE, LARGER, Front

WORDS: Final = "delete, stop, start, power, change, all"
PAST: Final = "The lock would expire in the past; give a later time, or none."
NEW: Final = {"name": "n", "imageRef": IMAGE, "flavorRef": LARGER, "networks": "none"}


@pytest_asyncio.fixture
async def front(database: Database) -> Front:
    """Give a front on either database, with a host, an image and a flavor."""
    made = Front(database)
    await made.open()
    return made


@pytest.mark.parametrize("wire", ["suspend", "os-stop"])
@pytest.mark.parametrize("minor", [1, 104])
async def test_it_is_locked_from_the_moment_it_is_admitted(front: Front, wire: str, minor: int) -> None:
    """By one request, in every version; the customer's next request is refused with who, when and why."""
    server = await front.add(VmState.ACTIVE)
    body = {wire: {"lock": {"reason": "Away.", "name": "mine"}}}
    answer = await front("POST", f"/servers/{server}/action", body, v=minor)
    assert (answer.status, answer.body) == (202, None)
    row = await front.desk.row(server)
    assert (row.owner_blocks, row.locked_by, row.locked_reason) == (ALL_CLASSES, "owner", "Away.")
    assert row.task_state is (TaskState.SUSPENDING if wire == "suspend" else TaskState.POWERING_OFF)
    for refused in (
        {"reboot": {"type": "HARD"}},
        {"os-start": None},
        {"resume": None},
        {"forceDelete": None},
    ):
        said = await front("POST", f"/servers/{server}/action", refused, v=minor)
        assert (said.status, said.message) == (
            409,
            (
                f"Instance {server} is locked. It was locked by user id-of-member as 'mine' at "
                "2023-11-14T22:13:20Z: Away."
            ),
        )
    assert (await front("DELETE", f"/servers/{server}", v=minor)).status == 409


@pytest.mark.parametrize("wire", ["suspend", "os-stop"])
async def test_refused_there_is_no_lock_either(front: Front, wire: str) -> None:
    """One without the other is worse than neither."""
    server = await front.add(VmState.SHELVED)
    answer = await front("POST", f"/servers/{server}/action", {wire: {"lock": {}}})
    assert answer.status == 409
    assert not (await front.desk.row(server)).locked


async def test_whose_it_is(front: Front) -> None:
    """An admin's is the provider's, of whom a customer is told neither name nor ticket; a reader places none."""
    server = await front.add(VmState.ACTIVE)
    assert (
        await front("POST", f"/servers/{server}/action", {"suspend": {"lock": {}}}, by="reader")
    ).status == 403
    body = {"suspend": {"lock": {"reason": "Unpaid.", "ticket": "T-9"}}}
    assert (await front("POST", f"/servers/{server}/action", body, by="admin")).status == 202
    said = await front("POST", f"/servers/{server}/action", {"resume": None})
    assert said.message == (
        f"Instance {server} is locked. It was locked by the provider at 2023-11-14T22:13:20Z: Unpaid."
    )


@pytest.mark.parametrize(
    ("lock", "says"),
    [
        ({"blocks": ["reboot"]}, f"There are no operations called 'reboot'; a lock blocks {WORDS}."),
        ({"expires_at": "1970-01-01"}, PAST),
        (
            {"expires_at": "x"},
            (
                "Invalid input for field/attribute expires_at. Value: x. It must be a time of ISO 8601, as "
                "2030-01-31T18:00:00Z."
            ),
        ),
        (
            {"x": 1},
            (
                "Invalid input for field/attribute lock. Value: {'x': 1}. Additional properties are not allowed "
                "('x' was unexpected)"
            ),
        ),
        (5, "Invalid input for field/attribute lock. Value: 5. 5 is not of type 'object', 'null'"),
        ({"reason": "x" * 10_000}, "Invalid input for field/attribute reason. Value: xxxxx"),
        ({"reason": "\x00"}, "The request's body has a NUL character in it, which is not allowed."),
    ],
)
@pytest.mark.parametrize("wire", ["suspend", "os-stop"])
async def test_a_lock_that_cannot_be(front: Front, wire: str, lock: Any, says: str) -> None:
    """Keeps the action from being admitted."""
    server = await front.add(VmState.ACTIVE)
    answer = await front("POST", f"/servers/{server}/action", {wire: {"lock": lock}})
    assert (answer.status, answer.message[: len(says)]) == (400, says)
    row = await front.desk.row(server)
    assert (row.locked, row.task_state) == (False, None)


async def test_a_sealed_lock_of_the_provider_s(front: Front) -> None:
    """Makes no sense; the owner's is sealed by the request that suspends."""
    server = await front.add(VmState.ACTIVE)
    path, body = f"/servers/{server}/action", {"suspend": {"lock": {"sealed": True}}}
    refused = await front("POST", path, body, by="admin")
    assert (refused.status, refused.message) == (
        400,
        "Only an owner's lock can be sealed; the provider's is never released by the owner.",
    )
    assert (await front("POST", path, body)).status == 202
    unlock = await front("POST", path, {"unlock": None})
    assert (unlock.status, unlock.message) == (
        403,
        "Policy doesn't allow os_compute_api:os-lock-server:unlock:unlock_override to be performed.",
    )


async def created(front: Front, body: dict[str, Any]) -> str:
    """Make a server and return its id."""
    answer = await front("POST", "/servers", body)
    assert answer.status == 202, answer.body
    return str(answer.body["server"]["id"])


@pytest.mark.parametrize(
    "body",
    [
        {"server": NEW | {"stateward:lock": {"blocks": ["delete"], "reason": "Keep."}}},
        {"server": NEW, "os:scheduler_hints": {"stateward:lock": "delete"}},
    ],
    ids=["member", "hint"],
)
async def test_a_server_is_locked_as_it_is_made(front: Front, body: dict[str, Any]) -> None:
    """There is no gap in which it could be deleted; what else can be done to it can."""
    server = await created(front, body)
    row = await front.desk.row(server)
    assert (row.owner_blocks, row.vm_state) == (OperationClass.DELETE, VmState.BUILDING)
    said = await front("DELETE", f"/servers/{server}")
    assert (
        said.status,
        said.message.startswith(f"Instance {server} is locked. It was locked against delete"),
    ) == (
        409,
        True,
    )
    (operation,) = await front.desk.operations(server)
    assert operation.action == "create"


@pytest.mark.parametrize(
    "body",
    [
        {"server": NEW | {"stateward:lock": {"blocks": ["fly"]}}},
        {"server": NEW, "os:scheduler_hints": {"stateward:lock": "fly"}},
    ],
    ids=["member", "hint"],
)
async def test_a_server_whose_lock_cannot_be(front: Front, body: dict[str, Any]) -> None:
    """Is not made."""
    answer = await front("POST", "/servers", body)
    assert (answer.status, answer.message) == (
        400,
        f"There are no operations called 'fly'; a lock blocks {WORDS}.",
    )
    assert (await front("GET", "/servers")).body == {"servers": []}


async def test_a_tag_that_binds(front: Front) -> None:
    """Is not shaken off by whom the lock that it brought binds, in whatever way; an admin takes it away."""
    server, other = await front.add(VmState.ACTIVE, tags=("db", "x")), await front.add(VmState.ACTIVE)
    locking = Locking(front.desk.admission, front.desk.immediate, lambda: None)
    admin = actor(ActorKind.ADMIN, project="operations")
    wish = LockWish(
        kind=LockKind.ADMIN, holder="h", name="keep", blocks=OperationClass.DELETE, reason="Audit."
    )
    await locking.place_on_project("p", "db", admin, wish)
    path = f"/servers/{server}/tags"
    said = (
        f"Instance {server} is locked. It was locked against delete with everything tagged 'db' by the provider at "
        "2023-11-14T22:13:20Z: Audit."
    )
    refused = [
        await front("PUT", path, {"tags": ["x"]}),
        await front("DELETE", path),
        await front("DELETE", f"{path}/db"),
    ]
    assert [(each.status, each.message) for each in refused] == [(409, said)] * 3
    assert (await front("DELETE", f"{path}/x")).status == 204
    assert (await front("PUT", f"/servers/{other}/tags/db")).status == 201
    assert (await front("DELETE", f"/servers/{other}")).status == 409
    assert (await front("DELETE", path, by="admin")).status == 204
    assert (await front("DELETE", f"/servers/{server}")).status == 204
