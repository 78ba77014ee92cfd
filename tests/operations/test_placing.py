"""Placing under races, on both databases: no host is ever promised more than it has, no group's policy broken."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest
import sqlalchemy as sa

from stateward.domain.errors import Invalid, Refusal, Refused
from stateward.domain.locks import ActorKind
from stateward.domain.placement import NOTHING, GroupPolicy, Room, Rules
from stateward.domain.records import FlavorFacts, Instance, OperationState, Outcome, Result
from stateward.domain.states import VmState
from stateward.operations.admission import Admitted
from stateward.operations.completion import Completion
from stateward.operations.creation import create, create_several
from stateward.operations.placing import Place, claim
from stateward.store import claims, hosts, server_groups
from stateward.store.claims import Purpose
from stateward.store.server_groups import NewServerGroup
from tests.operations.desk import Desk
from tests.rows import actor
from tests.stack import encoded, new_instance

#: A host of the desk has 4 vCPUs and 1,024 MiB.
SMALL = FlavorFacts(id="1", name="small", vcpus=1, ram=64, disk=0)
RULES = Rules(cpu_ratio=5.0, reserved=NOTHING)
CLIENTS = 16
FULL = "No valid host was found. There are not enough hosts available."


@pytest.fixture(autouse=True)
def _rules(desk: Desk) -> None:
    """Give every host room for 16 small ones by its memory, and for 20 by its vCPUs."""
    desk.admission.placement = RULES


async def several(desk: Desk, least: int, most: int, **changes: Any) -> list[Admitted]:
    return await create_several(
        desk.admission,
        new_instance(flavor=SMALL, **changes),
        actor(),
        least=least,
        most=most,
        reservation_id="r",
    )


async def crowd(desk: Desk, count: int, **changes: Any) -> list[Instance]:
    """Create one at a time from so many clients at once, and return the rows."""
    made: list[Instance] = []
    left = iter(range(count))

    async def client() -> None:
        for _number in left:
            new = new_instance(flavor=SMALL, **changes)
            made.append((await create(desk.admission, new, actor(), reservation_id="r")).instance)

    async with asyncio.TaskGroup() as tasks:
        for _client in range(CLIENTS):
            tasks.create_task(client())
    return made


async def group(desk: Desk, policy: GroupPolicy, most: int | None = None) -> str:
    new = NewServerGroup(
        id=f"group-{policy}", project_id="p", user_id="u", name="g", policy=policy, most_per_host=most
    )
    return (await desk.database.write(lambda connection: server_groups.create(connection, new))).id


async def sums(desk: Desk) -> dict[str, tuple[Room, int]]:
    return {host.name: (host.claimed, host.claims) for host in await desk.database.read(hosts.every)}


async def finish_all(desk: Desk, outcome: Outcome = Outcome.SUCCEEDED) -> None:
    """Let every unfinished operation end."""
    completion = Completion(desk.admission, lambda _instance_id: None)
    for _subject, _message, dispatch in await desk.outbox():
        result = Result(
            operation_id=dispatch.operation_id,
            instance_id=dispatch.instance_id,
            fence=dispatch.fence,
            outcome=outcome,
            message=None,
            observation=None,
        )
        # Twice, as a bus may: room that is given back twice would be room that nobody has.
        await completion.handle(encoded(result))
        await completion.handle(encoded(result))


async def test_no_host_is_overcommitted(desk: Desk) -> None:
    """120 at once onto three hosts with room for 16 each: 48 are placed, 72 say why not; deleting makes room again."""
    for name in ("a", "b", "c"):
        await desk.add_host(name)
    rows = await crowd(desk, 120)
    placed = [row for row in rows if row.vm_state is VmState.BUILDING]
    lost = [row for row in rows if row.vm_state is VmState.ERROR]
    assert Counter(row.host for row in placed) == {"a": 16, "b": 16, "c": 16}
    assert (len(lost), {row.fault and row.fault.message for row in lost}) == (72, {FULL})
    full = (Room(vcpus=16, memory=1024, disk=0), 16)
    assert await sums(desk) == {"a": full, "b": full, "c": full}
    why = dict.fromkeys("abc", "it has too little memory free")
    assert [detail["why"] for _event, _action, detail in await desk.audit() if "why" in detail] == [why] * 72
    for row in placed[:5]:
        await desk.admit("delete", row.id)
    await finish_all(desk)
    assert len([row for row in await crowd(desk, 10) if row.vm_state is VmState.BUILDING]) == 5
    assert await sums(desk) == {"a": full, "b": full, "c": full}


async def test_what_failed_keeps_its_room_until_it_is_deleted(desk: Desk) -> None:
    """Its disk may be there; nobody else is given the room."""
    await desk.add_host("a")
    (row,) = await crowd(desk, 1)
    await finish_all(desk, Outcome.FAILED)
    assert (await desk.row(row.id)).vm_state is VmState.ERROR
    assert (await sums(desk))["a"][1] == 1
    await desk.admit("delete", row.id)
    await finish_all(desk)
    assert (await sums(desk))["a"] == (NOTHING, 0)


async def test_anti_affinity_holds_under_a_race(desk: Desk) -> None:
    """Ten at once, three hosts: one on each, and seven that say so."""
    for name in ("a", "b", "c"):
        await desk.add_host(name)
    place = Place(group_id=await group(desk, GroupPolicy.ANTI_AFFINITY))
    rows = await crowd(desk, 10, place=place)
    assert sorted(row.host for row in rows) == [""] * 7 + ["a", "b", "c"]
    assert {row.group_id for row in rows} == {place.group_id}


async def test_affinity_holds_under_a_race(desk: Desk) -> None:
    """All on one host, and those that it has no room for nowhere."""
    for name in ("a", "b", "c"):
        await desk.add_host(name)
    rows = await crowd(desk, 20, place=Place(group_id=await group(desk, GroupPolicy.AFFINITY)))
    # Which host is chance: whoever is served first says it.
    (chosen,) = {row.host for row in rows} - {""}
    assert Counter(row.host for row in rows) == {chosen: 16, "": 4}


async def test_so_many_per_host(desk: Desk) -> None:
    """The rule of an anti-affinity group, in one request."""
    for name in ("a", "b"):
        await desk.add_host(name)
    place = Place(group_id=await group(desk, GroupPolicy.ANTI_AFFINITY, 2))
    made = await several(desk, 1, 9, place=place)
    assert Counter(each.instance.host for each in made) == {"a": 2, "b": 2}


async def test_as_many_as_fit(desk: Desk) -> None:
    """From the least to the most, numbered, in one transaction."""
    await desk.add_host("a")
    made = await several(desk, 3, 20, name="web", hostname="web")
    assert [each.instance.name for each in made] == [f"web-{number}" for number in range(1, 17)]
    assert {each.instance.vm_state for each in made} == {VmState.BUILDING}
    assert len(await desk.outbox()) == 16
    assert await sums(desk) == {"a": (Room(vcpus=16, memory=1024, disk=0), 16)}


async def test_fewer_than_the_least(desk: Desk) -> None:
    """All of them are in ERROR, and nothing is claimed."""
    await desk.add_host("a")
    made = await several(desk, 17, 20)
    assert len(made) == 20
    for each in made:
        assert (each.instance.vm_state, each.instance.host) == (VmState.ERROR, "")
        assert (each.operation.state, each.operation.message) == (OperationState.FAILED, FULL)
    assert await sums(desk) == {"a": (NOTHING, 0)}
    assert await desk.outbox() == []


async def test_hints(desk: Desk) -> None:
    """Together with one server, apart from another; of another project's nothing is known."""
    for name in ("a", "b", "c"):
        await desk.add_host(name)
    first, second = [each.instance for each in await several(desk, 2, 2)]
    (near,) = await several(desk, 1, 1, place=Place(with_any=(second.id, "nobody")))
    assert near.instance.host == second.host == "b"
    (far,) = await several(desk, 1, 1, place=Place(with_none=(first.id, second.id)))
    assert far.instance.host == "c"
    (stranger,) = await several(desk, 1, 1, project_id="q", place=Place(with_any=(first.id,)))
    assert stranger.instance.host == ""


async def test_a_group_that_is_gone(desk: Desk) -> None:
    """Nothing new is put into it."""
    await desk.add_host("a")
    with pytest.raises(Invalid, match="Instance group gone could not be found"):
        await several(desk, 1, 1, place=Place(group_id="gone"))
    assert await sums(desk) == {"a": (NOTHING, 0)}


LARGE = FlavorFacts(id="2", name="large", vcpus=8, ram=256, disk=2)
_ANYWHERE = Place()


async def resize(desk: Desk, row: Instance, place: Place = _ANYWHERE) -> str:
    def work(connection: sa.Connection) -> str:
        return claim(
            connection, row, Purpose.MOVE, flavor=LARGE, place=place, rules=RULES, now=desk.clock.now()
        ).name

    return await desk.database.write(work)


async def test_both_sizes_are_held_until_one_is_given_back(desk: Desk) -> None:
    """A resize on another host, confirmed; asked for twice, it holds the room once."""
    await desk.add_host("a")
    (row,) = await crowd(desk, 1)
    with pytest.raises(Refused) as refused:
        await resize(desk, row, Place(excluded=frozenset({"a"})))
    assert (refused.value.refusal, str(refused.value)) == (Refusal.NO_VALID_HOST, FULL)
    assert refused.value.facts["why"] == {"a": "it was excluded"}
    await desk.add_host("b")
    large = Room(vcpus=8, memory=256, disk=2)
    for _ in range(2):
        assert await resize(desk, row, Place(excluded=frozenset({"a"}))) == "b"
        assert await sums(desk) == {"a": (Room(vcpus=1, memory=64), 1), "b": (large, 1)}
    assert await desk.database.write(lambda connection: claims.settle_move(connection, row.id))
    assert await sums(desk) == {"a": (NOTHING, 0), "b": (large, 1)}


async def test_a_member_that_moves_does_not_stand_in_its_own_way(desk: Desk) -> None:
    """It may stay where it is; where another member is it may not; a group that is gone binds nobody."""
    for name in ("a", "b"):
        await desk.add_host(name)
    group_id = await group(desk, GroupPolicy.ANTI_AFFINITY)
    place = Place(group_id=group_id, host="a")
    first, second = sorted(await crowd(desk, 2, place=Place(group_id=group_id)), key=lambda row: row.host)
    assert await resize(desk, first, place) == "a"
    with pytest.raises(Refused) as refused:
        await resize(desk, second, place)
    assert refused.value.facts["why"] == {
        "a": "the server group has its members there",
        "b": "another host was asked for",
    }
    await desk.database.write(lambda connection: server_groups.delete(connection, group_id, None))
    assert await resize(desk, second, place) == "a"


async def test_moves_and_creates_at_once(desk: Desk) -> None:
    """Whatever is faster, what is claimed is what the rows say, and no host has more than it can give."""
    for name in ("a", "b", "c"):
        await desk.add_host(name)
    rows = await crowd(desk, 6)
    async with asyncio.TaskGroup() as tasks:
        moves = [tasks.create_task(_try(resize(desk, row))) for row in rows]
        creating = tasks.create_task(crowd(desk, 40))
        for row in rows[:3]:
            tasks.create_task(desk.admit("delete", row.id, ActorKind.MEMBER))
    placed = [row for row in creating.result() if row.host]
    moved = [host for move in moves if (host := move.result()) is not None]
    found = await sums(desk)
    assert sum(count for _room, count in found.values()) == 6 + len(placed) + len(moved)
    for room, _count in found.values():
        assert room.memory <= 1024
        assert room.vcpus <= 20
        assert room.memory > 1024 - SMALL.ram or room.vcpus == 20, "it is full"
    total = sum(room.memory for room, _count in found.values())
    assert total == 64 * (6 + len(placed)) + 256 * len(moved)


async def _try(resizing: Any) -> str | None:
    try:
        moved: str = await resizing
    except Refused:
        return None
    return moved
