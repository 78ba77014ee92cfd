"""Hosts, on both databases."""

from __future__ import annotations

import msgspec
import pytest
import sqlalchemy as sa

from stateward.domain.hosts import Event, Frozen
from stateward.domain.records import HostReport
from stateward.store import hosts
from stateward.store.engine import Database
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


async def boots(database: Database) -> tuple[str | None, str | None, Frozen | None]:
    (host,) = await database.read(hosts.every)
    return host.boot_id, host.booted_id, host.frozen


async def note(database: Database, boot_id: str, seq: int) -> bool:
    return await database.write(lambda connection: hosts.note_boot(connection, "h", boot_id, seq, NOW))


async def test_a_boot_freezes_in_the_statement_that_notes_it(database: Database) -> None:
    """Not the first that is told of a host, and not one that is told late."""
    await database.write(lambda connection: hosts.register(connection, "h", "nova"))
    assert [await note(database, "", 1), await note(database, "one", 2)] == [False, False]
    assert await boots(database) == ("one", "one", None)
    assert [await note(database, "two", 5), await note(database, "two", 6)] == [True, False]
    assert [await note(database, "one", 4), await boots(database)] == [False, ("one", "two", Frozen.BOOT)]
    assert not await database.write(lambda connection: hosts.judged_in(connection, "h", "one"))
    judged = [
        await database.write(lambda connection: hosts.judged_in(connection, "h", "two")) for _ in range(2)
    ]
    assert (judged, await boots(database)) == ([True, False], ("two", "two", None))


@pytest.mark.parametrize(
    ("why", "then", "after"),
    [
        (Frozen.SWEEP, Frozen.BOOT, Frozen.BOOT),
        (Frozen.SILENT, Frozen.SILENT, Frozen.BOOT),
        (Frozen.MAINTENANCE, Frozen.MAINTENANCE, Frozen.BOOT),
    ],
)
async def test_a_boot_of_a_frozen_host(database: Database, why: Frozen, then: Frozen, after: Frozen) -> None:
    """It explains a sweep; the other reasons stand, and the boot is judged after them."""
    await database.write(lambda connection: hosts.register(connection, "h", "nova"))
    await note(database, "one", 1)
    await database.write(lambda connection: hosts.freeze(connection, "h", why, "for a test", NOW))
    assert await note(database, "two", 2)
    assert (await boots(database))[2] is then
    await database.write(lambda connection: hosts.thaw(connection, "h", why))
    assert (await boots(database))[2] is after


@pytest.mark.parametrize("why", [Frozen.SWEEP, Frozen.MAINTENANCE])
async def test_what_is_down_is_not_judged_when_a_reason_ends(database: Database, why: Frozen) -> None:
    """Nobody looks first whether it lives: that is in the statement."""
    await database.write(lambda connection: hosts.register(connection, "h", "nova"))
    await note(database, "one", 1)
    await database.write(lambda connection: hosts.freeze(connection, "h", why, "for a test", NOW))
    await database.write(lambda connection: hosts.become(connection, "h", Event.SILENT, "It is.", NOW + 1))
    assert await database.write(lambda connection: hosts.thaw(connection, "h", why))
    (host,) = await database.read(hosts.every)
    assert (host.frozen, host.frozen_at, host.frozen_detail) == (Frozen.SILENT, NOW + 1, "It is.")
    await note(database, "two", 2)
    await database.write(
        lambda connection: hosts.become(connection, "h", Event.HEARD, "It is back.", NOW + 2)
    )
    assert await database.write(lambda connection: hosts.thaw(connection, "h", Frozen.SILENT))
    assert (await boots(database))[2] is Frozen.BOOT
