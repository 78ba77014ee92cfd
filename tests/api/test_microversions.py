"""What a request means depends on its microversion; what each changed is listed in docs/compatibility.md."""

from __future__ import annotations

from typing import Any

import pytest

from tests.cloud import Answer, Cloud

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def names(
    cloud: Cloud, query: str, minor: int, who: str = "member"
) -> list[str] | tuple[int, str, str]:
    """List servers by a query string; return their names, or the fault."""
    answer = await cloud.ask(who, "GET", f"/servers?{query}", microversion=f"2.{minor}")
    return [each["name"] for each in answer.body["servers"]] if answer.status == 200 else answer.fault


def bad(message: str) -> tuple[int, str, str]:
    """Return the fault of a bad request."""
    return 400, "badRequest", message


@pytest.mark.parametrize(
    ("query", "before", "since", "fault"),
    [
        ("status=nosuch", [], 38, "Invalid status value"),
        ("nosuch=1", ["web"], 75, "Additional properties are not allowed ('nosuch' was unexpected)"),
        (
            "block_device=1",
            ["web"],
            75,
            "Additional properties are not allowed ('block_device' was unexpected)",
        ),
    ],
)
async def test_a_query_that_is_refused_later(
    shared_cloud: Cloud, query: str, before: list[str], since: int, fault: str
) -> None:
    """What was passed over in the beginning is refused from some version on."""
    assert await names(shared_cloud, query, since - 1) == before
    assert await names(shared_cloud, query, since) == bad(fault)


@pytest.mark.parametrize(
    ("query", "since"),
    [
        ("tags=nosuch", 26),
        ("changes-before=2020-01-01T00:00:00Z", 66),
        ("locked=true", 73),
        ("availability_zone=nosuch", 83),
        ("key_name=nosuch", 83),
        ("user_id=nosuch", 83),
        ("vm_state=stopped", 83),
        ("task_state=spawning", 83),
        ("hostname=nosuch", 90),
    ],
)
async def test_a_filter_that_is_opened_later(shared_cloud: Cloud, query: str, since: int) -> None:
    """A filter that members could not use is passed over before its version, and counts from it on."""
    assert await names(shared_cloud, query, since - 1) == ["web"]
    assert await names(shared_cloud, query, since) == []


@pytest.mark.parametrize("query", ["ip=10.0.0.1", "ip6=::1", "host=nosuch", "node=nosuch"])
async def test_filters_of_admins(shared_cloud: Cloud, query: str) -> None:
    """An address is nobody's, and a host that is not there has no server."""
    assert await names(shared_cloud, f"all_tenants=1&{query}", 1, "admin") == []


async def test_filters_that_are_passed_over(shared_cloud: Cloud) -> None:
    """Nova's filters by what nothing here has are known, and change nothing."""
    query = "config_drive=x&progress=0&power_state=1&root_device_name=/dev/vda&description=x"
    assert await names(shared_cloud, query, 104) == ["web"]


async def test_deleted_servers_are_for_admins(shared_cloud: Cloud) -> None:
    """Nova's own sentence refuses them."""
    assert await names(shared_cloud, "status=deleted", 104) == (
        403,
        "forbidden",
        "Only administrators may list deleted instances",
    )


async def update(cloud: Cloud, minor: int, **members: Any) -> Answer:
    """Change the server that is there."""
    path = f"/servers/{cloud.server}"
    return await cloud.ask("member", "PUT", path, {"server": members}, microversion=f"2.{minor}")


async def test_a_host_name_with_a_domain(shared_cloud: Cloud) -> None:
    """From 2.90 a host name can be given, and from 2.94 with its domain."""
    early = await update(shared_cloud, 89, hostname="web.example.org")
    assert early.fault[2].endswith("Additional properties are not allowed ('hostname' was unexpected)")
    plain = await update(shared_cloud, 93, hostname="web.example.org")
    assert plain.fault == bad(
        "Invalid input for field/attribute hostname. Value: web.example.org. 'web.example.org' is not a host name"
    )
    for name in ("web.example.org", "web"):
        changed = await update(shared_cloud, 94, hostname=name)
        assert changed.body["server"]["OS-EXT-SRV-ATTR:hostname"] == name
    for wrong in ("web\n", "-web", "a..b", ".", "x" * 64, "a." * 128 + "a"):
        assert (await update(shared_cloud, 94, hostname=wrong)).status == 400


async def test_a_pinned_zone(shared_cloud: Cloud) -> None:
    """From 2.104 a server's zone can be pinned in Nova; here none is, and it says so."""
    early = await update(shared_cloud, 103, pinned_availability_zone=None)
    assert early.fault[2].endswith(
        "Additional properties are not allowed ('pinned_availability_zone' was unexpected)"
    )
    none = await update(shared_cloud, 104, pinned_availability_zone=None)
    assert none.body["server"]["pinned_availability_zone"] is None
    assert (await update(shared_cloud, 104, pinned_availability_zone="nova")).fault == bad(
        "A server cannot be pinned to its availability zone: it never leaves it."
    )


async def test_a_flavors_factor(shared_cloud: Cloud) -> None:
    """From 2.102 flavors have no ``rxtx_factor``: it is not shown, and refused."""
    for minor, there in ((101, True), (102, False)):
        answer = await shared_cloud.ask("member", "GET", "/flavors/1", microversion=f"2.{minor}")
        assert ("rxtx_factor" in answer.body["flavor"]) is there
    flavor = {"name": "f", "ram": 64, "vcpus": 1, "disk": 1, "rxtx_factor": 2.0}
    answer = await shared_cloud.ask("admin", "POST", "/flavors", {"flavor": flavor}, microversion="2.102")
    assert answer.fault[2].endswith("Additional properties are not allowed ('rxtx_factor' was unexpected)")
