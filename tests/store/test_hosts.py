"""Hosts, on both databases."""

from __future__ import annotations

import msgspec
import pytest
import sqlalchemy as sa

from stateward.domain.records import HostReport
from stateward.store import hosts
from tests.rows import NOW


def report(at: float, host: str = "h") -> HostReport:
    return HostReport(
        host=host,
        driver="simulated",
        hypervisor_type="QEMU",
        hypervisor_version=9_000_000,
        reachable=True,
        detail="",
        vcpus=4,
        memory=1024,
        disk=10,
        disk_used=1,
        running=0,
        cpu_info="{}",
        at=at,
    )


def test_a_host_is_registered_once(connection: sa.Connection) -> None:
    """A restart changes neither its id nor what the operator said of it."""
    hosts.register(connection, "h", "north")
    (first,) = hosts.every(connection)
    assert (first.name, first.zone, first.enabled, first.forced_down) == ("h", "north", True, False)
    assert (first.report, first.seen_at, first.disabled_reason) == (None, None, None)
    assert hosts.change(connection, first.id, {"enabled": False, "disabled_reason": "Broken."})
    hosts.register(connection, "h", "south")
    (again,) = hosts.every(connection)
    assert again == msgspec.structs.replace(first, enabled=False, disabled_reason="Broken.")


def test_hosts_come_by_name(connection: sa.Connection) -> None:
    """Whatever the order in which they were registered."""
    for name in ("b", "a", "c"):
        hosts.register(connection, name, "z")
    assert [host.name for host in hosts.every(connection)] == ["a", "b", "c"]


def test_the_newest_heartbeat_is_kept(connection: sa.Connection) -> None:
    """A late one changes nothing; nor does a host's that nobody registered."""
    hosts.register(connection, "h", "z")
    hosts.register(connection, "other", "z")
    for at in (NOW, NOW + 5, NOW + 1):
        hosts.heard(connection, report(at))
    hosts.heard(connection, report(NOW, "stranger"))
    heard, other = hosts.every(connection)
    assert (heard.seen_at, heard.report) == (NOW + 5, report(NOW + 5))
    assert (other.name, other.seen_at) == ("other", None)


@pytest.mark.parametrize(
    ("seen_at", "forced_down", "up"),
    [
        (None, False, False),
        (NOW, False, True),
        (NOW - 15, False, True),
        (NOW - 15.1, False, False),
        (NOW + 3, False, True),
        (NOW, True, False),
    ],
)
def test_when_a_host_is_up(*, seen_at: float | None, forced_down: bool, up: bool) -> None:
    """Heard of in time, and nobody said that it is down."""
    host = hosts.Host(
        id="i",
        number=1,
        name="h",
        zone="z",
        report=None,
        seen_at=seen_at,
        enabled=True,
        disabled_reason=None,
        forced_down=forced_down,
    )
    assert host.up(NOW, 15) is up


def test_changing_nobody(connection: sa.Connection) -> None:
    """The API then says that there is no such host."""
    assert not hosts.change(connection, "nobody", {"enabled": False})
