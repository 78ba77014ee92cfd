"""The plan that a person would approve, line by line."""

from __future__ import annotations

from typing import Any

import pytest

from stateward.domain.actions import BY_KEY
from stateward.domain.evacuation import EVACUATES, Evacuee, Move, Said, Wish, drain, evacuation, said, wish_of
from stateward.domain.hosts import Condition
from stateward.domain.locks import ALL_CLASSES, OperationClass
from stateward.domain.placement import Candidate, Group, GroupPolicy, Room
from stateward.domain.states import VmState

GUARDS = {key: row.guarded for key, row in BY_KEY.items()}
NEED = Room(vcpus=1, memory=100, disk=1)


def host(name: str, memory: int = 1000, **changes: Any) -> Candidate:
    facts: dict[str, Any] = {
        "zone": "nova",
        "enabled": True,
        "up": True,
        "reachable": True,
        "shared": True,
        "capacity": Room(vcpus=100, memory=memory, disk=100),
    }
    return Candidate(name=name, **(facts | changes))


def guest(name: str, vm_state: VmState = VmState.ACTIVE, **changes: Any) -> Evacuee:
    facts: dict[str, Any] = {"project_id": "p", "need": NEED, "zone": "nova"}
    return Evacuee(id=name, name=name, vm_state=vm_state, **(facts | changes))


DEAD = host("dead", up=False, condition=Condition.FENCED)


def lines(moves: tuple[Move, ...]) -> list[tuple[str, str | None, str | None]]:
    return [(move.name, move.action, move.to) for move in moves]


def test_they_are_spread_over_the_others_as_long_as_there_is_room() -> None:
    """Each sees those before it; the dead host itself is never chosen."""
    plan = evacuation(
        "dead",
        [guest("a"), guest("b"), guest("c"), guest("d")],
        [DEAD, host("x", 200), host("y", 150)],
        shared=True,
        guards=GUARDS,
    )
    assert lines(plan.moves) == [
        ("a", "evacuate", "x"),
        ("b", "evacuate", "y"),
        ("c", "evacuate", "x"),
        ("d", None, None),
    ]
    assert plan.moves[3].says == "no host has room for it"
    assert [move.name for move in plan.acting] == ["a", "b", "c"]


@pytest.mark.parametrize("state", VmState)
def test_every_state(state: VmState) -> None:
    """What is in no row is left and says so."""
    (move,) = evacuation("dead", [guest("a", state)], [host("x")], shared=True, guards=GUARDS).moves
    assert move.action == EVACUATES[True].get(state)
    assert (move.to is None) == (move.action is None)
    assert (str(state) in move.says) == (move.action is None)
    assert move.action is None or state in BY_KEY[move.action].when


@pytest.mark.parametrize(
    ("shared", "wish", "action", "says"),
    [
        (True, Wish.EVACUATE, "evacuate", "its disk is kept on storage that other hosts reach"),
        (True, Wish.REBUILD, "evacuate", "its disk is kept on storage that other hosts reach"),
        (True, Wish.STAY, None, "it stays, as its flavor says"),
        (False, Wish.EVACUATE, None, "its disk is on that host"),
        (
            False,
            Wish.REBUILD,
            "evacuate_anew",
            "its disk is made anew from its image, and what was in it is lost",
        ),
        (False, Wish.STAY, None, "it stays, as its flavor says"),
    ],
)
def test_disks_and_wishes(*, shared: bool, wish: Wish, action: str | None, says: str) -> None:
    """A disk that is on the dead host is lost only for who said so."""
    one = guest("a", wish=wish, wish_from="flavor")
    (move,) = evacuation("dead", [one], [host("x")], shared=shared, guards=GUARDS).moves
    assert (move.action, move.says) == (action, says)


def test_locks() -> None:
    """One against starting keeps what would be started elsewhere; any keeps a disk from being lost."""
    start, delete = OperationClass.START, OperationClass.DELETE
    found = {
        (shared, state, blocks): evacuation(
            "dead",
            [guest("a", state, blocks=blocks, wish=Wish.REBUILD)],
            [host("x")],
            shared=shared,
            guards=GUARDS,
        )
        .moves[0]
        .action
        for shared in (True, False)
        for state in (VmState.ACTIVE, VmState.STOPPED)
        for blocks in (start, delete)
    }
    assert found == {
        (True, VmState.ACTIVE, start): None,
        (True, VmState.ACTIVE, delete): "evacuate",
        (True, VmState.STOPPED, start): None,
        (True, VmState.STOPPED, delete): "evacuate_stopped",
        (False, VmState.ACTIVE, start): None,
        (False, VmState.ACTIVE, delete): None,
        (False, VmState.STOPPED, start): None,
        (False, VmState.STOPPED, delete): None,
    }


def test_adopted_ones_stay() -> None:
    """Their disks are their host's own; a drain shuts them down."""
    one = guest("a", adopted=True, wish=Wish.REBUILD)
    (move,) = evacuation("dead", [one], [host("x")], shared=True, guards=GUARDS).moves
    assert (move.action, move.says) == (None, "it was adopted: its disks are its host's own")
    assert drain("h", [one], [host("x")], migrate=True, guards=GUARDS).moves[0].action == "stop"


def test_only_a_host_that_reaches_the_disk() -> None:
    """A disk on shared storage is found only there; one that is made anew goes anywhere."""
    hosts = [host("x", shared=False)]
    for shared, to in ((True, None), (False, "x")):
        one = guest("a", wish=Wish.REBUILD)
        (move,) = evacuation("dead", [one], hosts, shared=shared, guards=GUARDS).moves
        assert move.to == to


def test_server_groups_and_zones() -> None:
    """Members that were kept apart stay apart, and nobody leaves its zone."""
    apart = {"g": Group(policy=GroupPolicy.ANTI_AFFINITY, members={"x": 1})}
    plan = evacuation(
        "dead",
        [guest("a", group_id="g"), guest("b", group_id="g"), guest("c", zone="south")],
        [host("x"), host("y"), host("z", zone="south")],
        shared=True,
        guards=GUARDS,
        groups=apart,
    )
    assert lines(plan.moves) == [("a", "evacuate", "y"), ("b", None, None), ("c", "evacuate", "z")]


def test_who_decides() -> None:
    """The first layer that says something; a word that is none says nothing."""
    assert wish_of([]) == (Wish.EVACUATE, "default")
    assert wish_of([said("metadata", {}), said("image", {"stateward:evacuate": "stay"})]) == (
        Wish.STAY,
        "image",
    )
    layers = [
        said("metadata", {"stateward:evacuate": "perhaps"}),
        Said(origin="host", wish=Wish.REBUILD),
        Said(origin="default", wish=Wish.STAY),
    ]
    assert wish_of(layers) == (Wish.REBUILD, "host")


def test_draining_by_shutdowns() -> None:
    """What runs is shut down; what is off, or cannot be asked, is left."""
    evacuees = [guest(state.value, state) for state in VmState]
    plan = drain(
        "h", [*evacuees, guest("locked", blocks=ALL_CLASSES)], [host("x")], migrate=False, guards=GUARDS
    )
    assert [(move.name, move.action) for move in plan.acting] == [("active", "stop")]
    says = {move.name: move.says for move in plan.moves if move.action is None}
    assert says["locked"] == "a lock or a hold blocks it"
    assert (says["stopped"], says["suspended"]) == ("it is off", "it is off")
    assert says["paused"] == "an instance that is paused cannot be asked to shut down"


def test_draining_by_migration() -> None:
    """Where another host has room, those that are off too; what has to stay is shut down."""
    evacuees = [
        guest("a"),
        guest("b", VmState.STOPPED),
        guest("c", blocks=OperationClass.CHANGE),
        guest("d"),
        guest("e", VmState.STOPPED),
        guest("f", blocks=OperationClass.STOP),
    ]
    plan = drain("h", evacuees, [host("h"), host("x", 200)], migrate=True, guards=GUARDS)
    assert lines(plan.moves) == [
        ("a", "migrate", "x"),
        ("b", "migrate_stopped", "x"),
        ("c", "stop", None),
        ("d", "stop", None),
        ("e", None, None),
        ("f", None, None),
    ]
