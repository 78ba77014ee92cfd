"""Placement: each rule by itself, and what holds of every choice whatever the hosts and the wish."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec
import pytest
from hypothesis import given, strategies as st

from stateward.domain.hosts import Condition
from stateward.domain.placement import (
    FILTERS,
    NOTHING,
    Candidate,
    Group,
    GroupPolicy,
    Room,
    Rules,
    Wanted,
    capacity_of,
    choose,
    explain,
    need_of,
    objection,
    spread,
)
from stateward.domain.records import FlavorFacts, HostReport

NEED = Room(vcpus=2, memory=512, disk=10)


def host(name: str = "a", **changes: Any) -> Candidate:
    facts: dict[str, Any] = {
        "zone": "nova",
        "enabled": True,
        "up": True,
        "reachable": True,
        "capacity": Room(vcpus=8, memory=4096, disk=100),
    }
    return Candidate(name=name, **(facts | changes))


def grouped(policy: GroupPolicy, most: int = 1, **members: int) -> Wanted:
    return Wanted(need=NEED, group=Group(policy=policy, most_per_host=most, members=members))


REFUSED: list[tuple[dict[str, Any], Wanted, str]] = [
    ({}, Wanted(need=NEED, host="b"), "another host was asked for"),
    ({}, Wanted(need=NEED, zone="south"), "it is in another zone"),
    ({"enabled": False}, Wanted(need=NEED), "it is disabled"),
    ({"up": False}, Wanted(need=NEED), "it is down"),
    ({"maintained": True}, Wanted(need=NEED), "it is maintained"),
    (
        {"condition": Condition.RETURNED},
        Wanted(need=NEED),
        "it is suspect or dead, or back and not clean yet",
    ),
    ({"capacity": None}, Wanted(need=NEED), "it has not yet said what it has"),
    ({"reachable": False}, Wanted(need=NEED), "its hypervisor does not answer"),
    ({}, Wanted(need=NEED, shared=True), "it does not reach the storage that the disk is on"),
    ({}, Wanted(need=NEED, excluded=frozenset({"a"})), "it was excluded"),
    (
        {},
        Wanted(need=NEED, among=frozenset({"b"})),
        "the servers it shall be together with are not there",
    ),
    ({}, grouped(GroupPolicy.AFFINITY, b=1), "the server group's members are on another host"),
    ({}, grouped(GroupPolicy.ANTI_AFFINITY, a=1), "the server group has its members there"),
    ({}, grouped(GroupPolicy.ANTI_AFFINITY, 2, a=2), "the server group has its members there"),
    ({"claimed": Room(vcpus=7)}, Wanted(need=NEED), "it has too few vCPUs free"),
    ({"claimed": Room(memory=3585)}, Wanted(need=NEED), "it has too little memory free"),
    ({"claimed": Room(disk=91)}, Wanted(need=NEED), "it has too little disk free"),
]


@pytest.mark.parametrize(("bad", "wanted", "says"), REFUSED)
def test_why_a_host_is_not_taken(bad: dict[str, Any], wanted: Wanted, says: str) -> None:
    """Each rule refuses for itself, with its own sentence."""
    assert explain([host(**bad), host("z")], wanted).get("a") == says
    assert choose([host(**bad)], wanted) is None


def test_every_rule_was_seen() -> None:
    """The cases above are those of the table: a new rule needs one."""
    assert {says for _bad, _wanted, says in REFUSED} == {rule.says for rule in FILTERS}


@pytest.mark.parametrize(
    "wanted",
    [
        Wanted(need=NEED, host="a", zone="nova", among=frozenset({"a", "b"}), excluded=frozenset({"b"})),
        grouped(GroupPolicy.AFFINITY),
        grouped(GroupPolicy.AFFINITY, a=3),
        grouped(GroupPolicy.ANTI_AFFINITY, b=1),
        grouped(GroupPolicy.ANTI_AFFINITY, 2, a=1),
        grouped(GroupPolicy.SOFT_AFFINITY, b=1),
        grouped(GroupPolicy.SOFT_ANTI_AFFINITY, a=5),
    ],
)
def test_a_host_that_is_taken(wanted: Wanted) -> None:
    """Filled to the last vCPU, MiB and GiB."""
    assert objection(host(claimed=Room(vcpus=6, memory=3584, disk=90)), wanted) is None


def test_what_takes_no_disk_fits_a_full_disk() -> None:
    """A disk of 0 GiB is as large as its image, which nobody counts (Nova)."""
    full = host(claimed=Room(disk=200))
    assert objection(full, Wanted(need=Room(vcpus=1, memory=1))) is None
    assert objection(full, Wanted(need=Room(vcpus=1, memory=1, disk=1))) == "it has too little disk free"


@pytest.mark.parametrize(
    ("hosts", "best"),
    [
        ([host("a"), host("b", claimed=Room(memory=1))], "a"),
        ([host("a", claimed=Room(memory=1)), host("b", claimed=Room(vcpus=6))], "b"),
        ([host("a", claimed=Room(vcpus=1)), host("b", instances=9)], "b"),
        ([host("a", instances=1), host("b")], "b"),
        ([host("c"), host("b"), host("d")], "b"),
    ],
    ids=["memory", "memory before vCPUs", "vCPUs before number", "number", "name"],
)
def test_the_better_host(hosts: list[Candidate], best: str) -> None:
    """The most important weigher that tells them apart decides; else the name."""
    assert choose(hosts, Wanted(need=NEED)) == best
    assert choose(reversed(hosts), Wanted(need=NEED)) == best


def test_soft_policies_come_before_room() -> None:
    """They choose among what fits, and never refuse."""
    full, empty = host("full", claimed=Room(memory=2000)), host("empty")
    assert choose([full, empty], grouped(GroupPolicy.SOFT_AFFINITY, full=1)) == "full"
    assert choose([full, empty], grouped(GroupPolicy.SOFT_ANTI_AFFINITY, empty=1)) == "full"
    assert choose([empty], grouped(GroupPolicy.SOFT_ANTI_AFFINITY, empty=9)) == "empty"


def test_what_a_flavor_needs() -> None:
    """Swap counts as disk, rounded up to whole GiB."""
    flavor = FlavorFacts(id="f", name="f", vcpus=2, ram=512, disk=5, ephemeral=3, swap=1025)
    assert need_of(flavor) == Room(vcpus=2, memory=512, disk=10)
    assert need_of(FlavorFacts(id="f", name="f", vcpus=1, ram=1, disk=0)) == Room(vcpus=1, memory=1)


def test_what_a_host_can_give() -> None:
    """Less what is reserved, times the ratio, rounded down; never less than nothing."""
    report = HostReport(
        host="h",
        driver="libvirt",
        hypervisor_type="QEMU",
        hypervisor_version=1,
        reachable=True,
        detail="",
        vcpus=3,
        memory=1000,
        disk=10,
        disk_used=0,
        running=0,
        cpu_info="",
        at=0.0,
    )
    assert capacity_of(report, Rules()) == Room(vcpus=12, memory=488, disk=10)
    rules = Rules(
        cpu_ratio=1.5, memory_ratio=1.5, disk_ratio=0.5, reserved=Room(vcpus=0, memory=100, disk=11)
    )
    assert capacity_of(report, rules) == Room(vcpus=4, memory=1350, disk=0)


rooms = st.builds(Room, vcpus=st.integers(0, 20), memory=st.integers(0, 5000), disk=st.integers(0, 50))
candidates = st.builds(
    Candidate,
    name=st.sampled_from("abcdef"),
    zone=st.sampled_from(["north", "south"]),
    enabled=st.integers(0, 9).map(bool),
    up=st.integers(0, 9).map(bool),
    reachable=st.integers(0, 9).map(bool),
    capacity=st.none() | rooms,
    claimed=rooms,
    instances=st.integers(0, 5),
)
clusters = st.lists(candidates, max_size=6, unique_by=lambda each: each.name)
groups = st.builds(
    Group,
    policy=st.sampled_from(GroupPolicy),
    most_per_host=st.integers(1, 3),
    members=st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 3), max_size=3),
)
wishes = st.builds(
    Wanted,
    need=st.builds(Room, vcpus=st.integers(1, 3), memory=st.integers(1, 900), disk=st.integers(0, 5)),
    zone=st.none() | st.sampled_from(["north", "south"]),
    excluded=st.frozensets(st.sampled_from("abcdef"), max_size=2),
    group=st.none() | groups,
)


@given(clusters, wishes, st.integers(0, 12), st.randoms())
def test_every_choice_keeps_the_rules(
    cluster: list[Candidate], wanted: Wanted, most: int, chance: Any
) -> None:
    """No host gets more than it has, a group's policy holds, and as many are placed as can be."""
    chosen = spread(cluster, wanted, most)
    assert len(chosen) <= most
    by_name = {each.name: each for each in cluster}
    shares = Counter(chosen)
    for name, count in shares.items():
        found = by_name[name]
        assert objection(found, wanted) is None
        assert found.capacity is not None
        total = found.claimed + wanted.need.times(count)
        assert total.vcpus <= found.capacity.vcpus
        assert total.memory <= found.capacity.memory
        assert wanted.need.disk == 0 or total.disk <= found.capacity.disk
    if wanted.group is not None:
        where = Counter(dict(wanted.group.members)) + shares
        if wanted.group.policy is GroupPolicy.ANTI_AFFINITY:
            assert all(where[name] <= wanted.group.most_per_host for name in shares)
        if wanted.group.policy is GroupPolicy.AFFINITY:
            assert len(shares) <= 1
            assert not wanted.group.members or set(shares) <= set(wanted.group.members)
    if len(chosen) < most:
        # Nothing more fits: every host has something against it, once the chosen ones are there.
        assert _objections(cluster, wanted, chosen)
    chance.shuffle(cluster)
    assert spread(cluster, wanted, most) == chosen, "the order in which hosts are read decides nothing"


def _objections(cluster: list[Candidate], wanted: Wanted, chosen: list[str]) -> bool:
    shares = Counter(chosen)
    group = wanted.group
    if group is not None:
        members = dict(Counter(dict(group.members)) + shares)
        wanted = msgspec.structs.replace(wanted, group=msgspec.structs.replace(group, members=members))
    filled = [
        msgspec.structs.replace(each, claimed=each.claimed + wanted.need.times(shares[each.name]))
        for each in cluster
    ]
    return len(explain(filled, wanted)) == len(filled)


@given(rooms, rooms, st.integers(0, 5))
def test_rooms_add_up(one: Room, other: Room, count: int) -> None:
    """As numbers do."""
    assert one + other == other + one
    assert one + NOTHING == one
    assert one.times(count) == sum([one] * count, start=NOTHING)
