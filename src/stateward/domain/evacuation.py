"""What a person would approve: where the instances of a host go that died, or that is drained. Pure.

Hosts as placement sees them and the host's instances in, one line for each instance out: the row of the action table
that is to be admitted for it and the host it would go to, or why it is left. The plan is a proposal: each admission
claims its room, and tests its locks and the host's condition, in the WHERE clause of its own write (ADR 0020).
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec

from stateward.domain import placement
from stateward.domain.locks import OperationClass
from stateward.domain.placement import Candidate, Group, Room
from stateward.domain.states import TaskState, VmState

#: The key in metadata, image properties and extra specs.
PROPERTY: Final = "stateward:evacuate"


class Wish(enum.StrEnum):
    """What is to become of an instance whose host has died."""

    #: It is evacuated where its disk is on storage that other hosts reach; else it stays.
    EVACUATE = "evacuate"
    #: It waits for its host.
    STAY = "stay"
    #: It is evacuated in any case: a disk that is on the dead host is made anew from its image, and what was in it is
    #: lost.
    REBUILD = "rebuild"


class Said(msgspec.Struct, frozen=True, kw_only=True):
    """What one layer says: its name, and its wish; None where it says nothing."""

    origin: str
    wish: Wish | None = None


def said(origin: str, properties: Mapping[str, str]) -> Said:
    """Read what a layer's properties say; a word that is none is passed over, as for shutdowns."""
    word = properties.get(PROPERTY)
    return Said(origin=origin, wish=next((wish for wish in Wish if wish.value == word), None))


def wish_of(layers: Iterable[Said]) -> tuple[Wish, str]:
    """Return what the first layer that says something wishes, and that layer's name."""
    found = next(((each.wish, each.origin) for each in layers if each.wish is not None), None)
    return found or (Wish.EVACUATE, "default")


class Evacuee(msgspec.Struct, frozen=True, kw_only=True):
    """An instance of the host, as the plan sees it."""

    id: str
    name: str
    project_id: str
    vm_state: VmState
    task_state: TaskState | None = None
    need: Room
    zone: str | None = None
    group_id: str | None = None
    wish: Wish = Wish.EVACUATE
    #: The layer that the wish is from.
    wish_from: str = "default"
    #: Its definition and disks are not ours, and stay where they are.
    adopted: bool = False
    #: What any lock or hold on it blocks for the control plane itself.
    blocks: OperationClass = OperationClass(0)


class Move(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a plan."""

    instance_id: str
    name: str
    project_id: str
    vm_state: VmState
    #: The key of the row of the action table; None: it is left as it is.
    action: str | None
    #: The host that it would go to; None where it goes nowhere.
    to: str | None
    says: str


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """The lines, in the order in which they would be admitted."""

    host: str
    moves: tuple[Move, ...]

    @property
    def acting(self) -> tuple[Move, ...]:
        """Those for which something is done."""
        return tuple(move for move in self.moves if move.action is not None)


#: What a row blocks is in the table of actions; these are its classes, by the row's key, given to ``plan``.
Guards = Mapping[str, OperationClass]

_KEPT: Final = "its disk is kept on storage that other hosts reach"
_LOST: Final = "its disk is made anew from its image, and what was in it is lost"

#: The rows by which an instance leaves a dead host, by whether its disk is shared and its vm state.
EVACUATES: Final[Mapping[bool, Mapping[VmState, str]]] = {
    True: {
        VmState.ACTIVE: "evacuate",
        VmState.ERROR: "evacuate",
        VmState.STOPPED: "evacuate_stopped",
    },
    False: {
        VmState.ACTIVE: "evacuate_anew",
        VmState.ERROR: "evacuate_anew",
        VmState.STOPPED: "evacuate_anew_stopped",
    },
}


class Cluster:
    """The other hosts, filling up as a plan places instances on them."""

    def __init__(
        self, host: str, candidates: Iterable[Candidate], groups: Mapping[str, Group], *, shared: bool
    ) -> None:
        """Begin as they are.

        Args:
            host: which they leave.
            candidates: all hosts.
            groups: by their ids, without members on ``host``.
            shared: only hosts that reach the shared storage.
        """
        self._shared = shared
        self._left = host
        self._candidates = {each.name: each for each in candidates}
        self._groups = dict(groups)

    def place(self, evacuee: Evacuee) -> str | None:
        """Choose a host for one, and have it taken there; None: there is none with room."""
        group = None if evacuee.group_id is None else self._groups.get(evacuee.group_id)
        wanted = placement.Wanted(
            need=evacuee.need,
            zone=evacuee.zone,
            excluded=frozenset({self._left}),
            group=group,
            shared=self._shared,
        )
        chosen = placement.choose(self._candidates.values(), wanted)
        if chosen is None:
            return None
        taken = self._candidates[chosen]
        self._candidates[chosen] = msgspec.structs.replace(
            taken, claimed=taken.claimed + evacuee.need, instances=taken.instances + 1
        )
        if group is not None and evacuee.group_id is not None:
            members = {**group.members, chosen: group.members.get(chosen, 0) + 1}
            self._groups[evacuee.group_id] = msgspec.structs.replace(group, members=members)
        return chosen


def evacuation(
    host: str,
    evacuees: Sequence[Evacuee],
    candidates: Iterable[Candidate],
    *,
    shared: bool,
    guards: Guards,
    groups: Mapping[str, Group] = {},
) -> Plan:
    """Plan what becomes of the instances of a dead host.

    Args:
        host: its name.
        evacuees: its living instances, in the order in which they are to be moved.
        candidates: all hosts, as they are.
        shared: the instances' disks are on storage that other hosts reach.
        guards: what the rows of ``EVACUATES`` do, by which locks block them.
        groups: server groups by id, without their members on the dead host.
    """
    cluster = Cluster(host, candidates, groups, shared=shared)
    return Plan(
        host=host, moves=tuple(_evacuated(each, cluster, shared=shared, guards=guards) for each in evacuees)
    )


def unwished(wish: Wish, origin: str, *, lost: bool) -> str | None:
    """Say why what is wished keeps an instance from being evacuated; None where it does not.

    Args:
        wish: what is wished for it.
        origin: the layer that the wish is from.
        lost: its disk would be made anew.
    """
    if wish is Wish.STAY:
        return f"it stays, as its {origin} says"
    if lost and wish is not Wish.REBUILD:
        return "its disk is on that host"
    return None


def _evacuated(evacuee: Evacuee, cluster: Cluster, *, shared: bool, guards: Guards) -> Move:
    action = EVACUATES[shared].get(evacuee.vm_state)
    if action is None:
        return _left(
            evacuee, f"an instance that is {evacuee.vm_state} is not evacuated; it waits for its host"
        )
    if evacuee.adopted:
        return _left(evacuee, "it was adopted: its disks are its host's own")
    against = unwished(evacuee.wish, evacuee.wish_from, lost=not shared)
    if against is not None:
        return _left(evacuee, against)
    if evacuee.blocks & guards[action]:
        return _left(evacuee, "a lock or a hold blocks it")
    to = cluster.place(evacuee)
    if to is None:
        return _left(evacuee, "no host has room for it")
    return _moved(evacuee, action, to, _KEPT if shared else _LOST)


def drain(
    host: str,
    evacuees: Sequence[Evacuee],
    candidates: Iterable[Candidate],
    *,
    migrate: bool,
    guards: Guards,
    groups: Mapping[str, Group] = {},
) -> Plan:
    """Plan how a host that runs is emptied of guests that are on; with ``migrate`` of all instances that can leave it.

    The arguments are those of ``evacuation``. What has no room elsewhere is shut down and stays.
    """
    cluster = Cluster(host, candidates, groups, shared=False)
    return Plan(
        host=host, moves=tuple(_drained(each, cluster, migrate=migrate, guards=guards) for each in evacuees)
    )


def _drained(evacuee: Evacuee, cluster: Cluster, *, migrate: bool, guards: Guards) -> Move:
    on = evacuee.vm_state is VmState.ACTIVE
    says = "it is shut down, and stays"
    if migrate and not evacuee.adopted and (on or evacuee.vm_state is VmState.STOPPED):
        row = "migrate" if on else "migrate_stopped"
        if evacuee.blocks & guards[row]:
            says = "it is shut down and stays: a lock or a hold keeps it from leaving"
        elif (to := cluster.place(evacuee)) is not None:
            return _moved(evacuee, row, to, "it is carried there as an image")
        else:
            says = "it is shut down and stays: no other host has room for it"
    if evacuee.vm_state in OFF:
        return _left(evacuee, "it is off")
    if not on:
        return _left(evacuee, f"an instance that is {evacuee.vm_state} cannot be asked to shut down")
    if evacuee.blocks & guards["stop"]:
        return _left(evacuee, "a lock or a hold blocks it")
    return _moved(evacuee, "stop", None, says)


#: Where there is no guest that is on.
OFF: Final = frozenset(
    {
        VmState.STOPPED,
        VmState.SUSPENDED,
        VmState.SHELVED,
        VmState.SHELVED_OFFLOADED,
        VmState.SOFT_DELETED,
        VmState.DELETED,
    }
)


def _moved(evacuee: Evacuee, action: str | None, to: str | None, says: str) -> Move:
    return Move(
        instance_id=evacuee.id,
        name=evacuee.name,
        project_id=evacuee.project_id,
        vm_state=evacuee.vm_state,
        action=action,
        to=to,
        says=says,
    )


def _left(evacuee: Evacuee, why: str) -> Move:
    return _moved(evacuee, None, None, why)


class PlanKind(enum.StrEnum):
    """What a plan is for."""

    EVACUATE = "evacuate"
    DRAIN = "drain"


class PlanState(enum.StrEnum):
    """How far a plan has come."""

    #: Somebody has to approve it.
    PLANNED = "planned"
    APPROVED = "approved"
    DONE = "done"
    #: Another one was made, or the host came back, or somebody took it back.
    CANCELLED = "cancelled"


class MoveState(enum.StrEnum):
    """How far one line of a plan has come."""

    #: Nothing is done for it, as the plan says.
    LEFT = "left"
    WAITING = "waiting"
    #: Its operation is under way.
    ADMITTED = "admitted"
    #: It has arrived, and the move is being confirmed.
    CONFIRMING = "confirming"
    DONE = "done"
    FAILED = "failed"
    #: It was refused when its turn came.
    REFUSED = "refused"


UNDER_WAY: Final = frozenset({MoveState.ADMITTED, MoveState.CONFIRMING})
