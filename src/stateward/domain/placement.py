"""Placement: which host gets an instance. Pure: candidates and a wish in, a host or the reasons against each out.

``FILTERS`` and ``WEIGHERS`` are the whole policy, one named function a rule. What is decided here is a proposal: the
write that claims the room tests it again in its WHERE clause (ADR 0012).
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Mapping
from typing import Final

import msgspec

from stateward.domain.hosts import Condition
from stateward.domain.records import FlavorFacts, HostReport


class GroupPolicy(enum.StrEnum):
    """How the members of a server group are spread over hosts (Nova's words)."""

    AFFINITY = "affinity"
    ANTI_AFFINITY = "anti-affinity"
    SOFT_AFFINITY = "soft-affinity"
    SOFT_ANTI_AFFINITY = "soft-anti-affinity"


class Room(msgspec.Struct, frozen=True, kw_only=True):
    """An amount of what hosts have: memory in MiB, disk in GiB."""

    vcpus: int = 0
    memory: int = 0
    disk: int = 0

    def __add__(self, other: Room) -> Room:
        """Add up."""
        return Room(
            vcpus=self.vcpus + other.vcpus, memory=self.memory + other.memory, disk=self.disk + other.disk
        )

    def times(self, count: int) -> Room:
        """Return so many times as much."""
        return Room(vcpus=self.vcpus * count, memory=self.memory * count, disk=self.disk * count)


NOTHING: Final = Room()


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """What the operator says of placement; the defaults are those of Nova 34."""

    #: Seconds after which a host that was not heard of counts as down.
    patience: float = 15.0
    #: How often a host's vCPUs, memory and disk may be given away.
    cpu_ratio: float = 4.0
    memory_ratio: float = 1.0
    disk_ratio: float = 1.0
    #: Kept for the host itself, before the ratios.
    reserved: Room = Room(memory=512)


NOVA_RULES: Final = Rules()


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """A host as placement sees it."""

    name: str
    zone: str
    enabled: bool
    #: It was heard of lately, and nobody said that it is down.
    up: bool
    #: Its hypervisor answers.
    reachable: bool
    #: Nothing is placed on a host that is silent, dead, or back and not clean yet.
    condition: Condition = Condition.UP
    #: Its instances' disks are on storage that all hosts so marked reach.
    shared: bool = False
    #: An operator works on it.
    maintained: bool = False
    #: All that may be claimed there; None before the host has told what it has.
    capacity: Room | None
    claimed: Room = NOTHING
    instances: int = 0


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """A server group, with where its other members are: how many by host."""

    policy: GroupPolicy
    #: Of an anti-affinity group; Nova's ``max_server_per_host``.
    most_per_host: int = 1
    members: Mapping[str, int] = {}


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What a host is wanted for."""

    need: Room
    #: Only a host of this zone, and only this host, when given.
    zone: str | None = None
    host: str | None = None
    #: None of these hosts.
    excluded: frozenset[str] = frozenset()
    #: One of these hosts (Nova's hint ``same_host``); None: no such wish.
    among: frozenset[str] | None = None
    group: Group | None = None
    #: Only a host that reaches the shared storage.
    shared: bool = False


class Filter(msgspec.Struct, frozen=True):
    """A rule a host must meet; ``says`` is why it is not taken otherwise."""

    says: str
    passes: Callable[[Candidate, Wanted], bool]


def need_of(flavor: FlavorFacts) -> Room:
    """Return what an instance of a flavor takes up; swap (MiB) counts as disk in whole GiB, as in Nova 34."""
    return Room(
        vcpus=flavor.vcpus,
        memory=flavor.ram,
        disk=flavor.disk + flavor.ephemeral + -(-flavor.swap // 1024),
    )


def capacity_of(report: HostReport, rules: Rules) -> Room:
    """Return all that may be claimed on a host: what it has, less what is reserved, times the ratios."""
    return Room(
        vcpus=int(max(report.vcpus - rules.reserved.vcpus, 0) * rules.cpu_ratio),
        memory=int(max(report.memory - rules.reserved.memory, 0) * rules.memory_ratio),
        disk=int(max(report.disk - rules.reserved.disk, 0) * rules.disk_ratio),
    )


def _enabled(host: Candidate, _wanted: Wanted) -> bool:
    return host.enabled


def _up(host: Candidate, _wanted: Wanted) -> bool:
    return host.up


def _reachable(host: Candidate, _wanted: Wanted) -> bool:
    return host.reachable


def _usable(host: Candidate, _wanted: Wanted) -> bool:
    return host.condition is Condition.UP


def _not_maintained(host: Candidate, _wanted: Wanted) -> bool:
    return not host.maintained


def _told(host: Candidate, _wanted: Wanted) -> bool:
    return host.capacity is not None


def _reaches_disk(host: Candidate, wanted: Wanted) -> bool:
    return host.shared or not wanted.shared


def _zone(host: Candidate, wanted: Wanted) -> bool:
    return wanted.zone is None or host.zone == wanted.zone


def _forced(host: Candidate, wanted: Wanted) -> bool:
    return wanted.host is None or host.name == wanted.host


def _not_excluded(host: Candidate, wanted: Wanted) -> bool:
    return host.name not in wanted.excluded


def _among(host: Candidate, wanted: Wanted) -> bool:
    return wanted.among is None or host.name in wanted.among


def _vcpus(host: Candidate, wanted: Wanted) -> bool:
    return host.claimed.vcpus + wanted.need.vcpus <= _capacity(host).vcpus


def _memory(host: Candidate, wanted: Wanted) -> bool:
    return host.claimed.memory + wanted.need.memory <= _capacity(host).memory


def _disk(host: Candidate, wanted: Wanted) -> bool:
    # What takes no disk fits a host that has none left, or whose disk shrank.
    return wanted.need.disk == 0 or host.claimed.disk + wanted.need.disk <= _capacity(host).disk


def _affinity(host: Candidate, wanted: Wanted) -> bool:
    group = wanted.group
    return (
        group is None
        or group.policy is not GroupPolicy.AFFINITY
        or not group.members
        or host.name in group.members
    )


def _anti_affinity(host: Candidate, wanted: Wanted) -> bool:
    group = wanted.group
    return (
        group is None
        or group.policy is not GroupPolicy.ANTI_AFFINITY
        or group.members.get(host.name, 0) < group.most_per_host
    )


def _capacity(host: Candidate) -> Room:
    return host.capacity or NOTHING


#: In the order in which a host that is not taken is explained.
FILTERS: Final[tuple[Filter, ...]] = (
    Filter("another host was asked for", _forced),
    Filter("it is in another zone", _zone),
    Filter("it is disabled", _enabled),
    Filter("it is down", _up),
    Filter("it is maintained", _not_maintained),
    Filter("it is suspect or dead, or back and not clean yet", _usable),
    Filter("it has not yet said what it has", _told),
    Filter("its hypervisor does not answer", _reachable),
    Filter("it does not reach the storage that the disk is on", _reaches_disk),
    Filter("it was excluded", _not_excluded),
    Filter("the servers it shall be together with are not there", _among),
    Filter("the server group's members are on another host", _affinity),
    Filter("the server group has its members there", _anti_affinity),
    Filter("it has too few vCPUs free", _vcpus),
    Filter("it has too little memory free", _memory),
    Filter("it has too little disk free", _disk),
)


def _soft_group(host: Candidate, wanted: Wanted) -> int:
    group = wanted.group
    if group is None:
        return 0
    here = group.members.get(host.name, 0)
    match group.policy:
        case GroupPolicy.SOFT_AFFINITY:
            return here
        case GroupPolicy.SOFT_ANTI_AFFINITY:
            return -here
        case _:
            return 0


def _free_memory(host: Candidate, _wanted: Wanted) -> int:
    return _capacity(host).memory - host.claimed.memory


def _free_vcpus(host: Candidate, _wanted: Wanted) -> int:
    return _capacity(host).vcpus - host.claimed.vcpus


def _fewest(host: Candidate, _wanted: Wanted) -> int:
    return -host.instances


#: What makes one host better than another, the most important first: more is better. Names break the tie.
WEIGHERS: Final[tuple[Callable[[Candidate, Wanted], int], ...]] = (
    _soft_group,
    _free_memory,
    _free_vcpus,
    _fewest,
)


def objection(host: Candidate, wanted: Wanted) -> str | None:
    """Return why a host cannot be taken; None when it can."""
    for rule in FILTERS:
        if not rule.passes(host, wanted):
            return rule.says
    return None


def explain(hosts: Iterable[Candidate], wanted: Wanted) -> dict[str, str]:
    """Say for each host that cannot be taken why not."""
    return {host.name: why for host in hosts if (why := objection(host, wanted)) is not None}


def choose(hosts: Iterable[Candidate], wanted: Wanted) -> str | None:
    """Return the name of the best host; None when none can be taken. The order of the hosts does not matter."""
    fit = [host for host in hosts if objection(host, wanted) is None]
    best = min(fit, key=lambda host: (*(-weigh(host, wanted) for weigh in WEIGHERS), host.name), default=None)
    return None if best is None else best.name


def spread(hosts: Iterable[Candidate], wanted: Wanted, most: int) -> list[str]:
    """Choose hosts for up to so many equal instances, one after the other; each sees those before it.

    Returns:
        A host's name for each instance that fits, at most ``most`` of them.
    """
    left = {host.name: host for host in hosts}
    chosen: list[str] = []
    while len(chosen) < most and (name := choose(left.values(), wanted)) is not None:
        chosen.append(name)
        host = left[name]
        left[name] = msgspec.structs.replace(
            host, claimed=host.claimed + wanted.need, instances=host.instances + 1
        )
        if wanted.group is not None:
            members = {**wanted.group.members, name: wanted.group.members.get(name, 0) + 1}
            wanted = msgspec.structs.replace(
                wanted, group=msgspec.structs.replace(wanted.group, members=members)
            )
    return chosen
