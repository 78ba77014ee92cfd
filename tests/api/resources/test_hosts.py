"""Hosts as Nova shows them: services, hypervisors and zones; and what the operator says of them."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa

from stateward.domain.placement import Room
from stateward.domain.records import HostReport
from stateward.store import claims, hosts
from tests import rows
from tests.api.resources.conftest import Api


def report(host: str, at: float = rows.NOW, **changes: Any) -> HostReport:
    facts: dict[str, Any] = {
        "host": host,
        "driver": "libvirt",
        "hypervisor_type": "QEMU",
        "hypervisor_version": 7002000,
        "reachable": True,
        "detail": "",
        "vcpus": 8,
        "memory": 16384,
        "disk": 100,
        "disk_used": 30,
        "running": 1,
        "cpu_info": '{"arch":"x86_64"}',
        "at": at,
    }
    return HostReport(**(facts | changes))


def cluster(connection: sa.Connection) -> None:
    """Make known: ``a`` that was just heard of, ``b`` that went silent, ``c`` that never was heard of."""
    for name, zone in (("a", "one"), ("b", "one"), ("c", "two")):
        hosts.register(connection, name, zone)
    hosts.heard(connection, report("a"))
    hosts.heard(connection, report("b", rows.NOW - 60))
    rows.insert(connection, id="i", host="a")
    assert claims.take(
        connection,
        "a",
        ["i"],
        purpose=claims.Purpose.HOME,
        need=Room(vcpus=1, memory=128, disk=1),
        capacity=Room(vcpus=8, memory=16384, disk=100),
        since=rows.NOW,
    )


async def prepared(api: Api) -> dict[str, hosts.Host]:
    await api.database.write(cluster)
    return {host.name: host for host in await api.database.read(hosts.every)}


async def host(api: Api, name: str) -> hosts.Host:
    return {each.name: each for each in await api.database.read(hosts.every)}[name]


async def test_services_are_shown_by_version(api: Api) -> None:
    known = await prepared(api)
    shown = await api("GET", "/os-services", by="admin", v="53")
    first: dict[str, Any] = {
        "id": known["a"].id,
        "binary": "nova-compute",
        "host": "a",
        "zone": "one",
        "status": "enabled",
        "state": "up",
        "updated_at": "2023-11-14T22:13:20.000000",
        "disabled_reason": None,
        "forced_down": False,
    }
    assert (shown.status, shown.body["services"][0]) == (200, first)
    assert [each["state"] for each in shown.body["services"]] == ["up", "down", "down"]
    assert shown.body["services"][2]["updated_at"] is None
    older = first | {"id": known["a"].number}
    assert (await api("GET", "/os-services", by="admin", v="52")).body["services"][0] == older
    del older["forced_down"]
    assert (await api("GET", "/os-services", by="admin", v="10")).body["services"][0] == older


async def test_services_are_found_by_host_and_binary(api: Api) -> None:
    await prepared(api)
    for query, found in (
        ("host=b", ["b"]),
        ("binary=nova-compute", ["a", "b", "c"]),
        ("binary=nova-scheduler", []),
        ("host=b&binary=nova-compute", ["b"]),
        ("host=none", []),
    ):
        answer = await api("GET", f"/os-services?{query}", by="admin", v="latest")
        assert [each["host"] for each in answer.body["services"]] == found
    assert (await api("GET", "/os-services?colour=red", by="admin", v="75")).status == 400


async def test_a_service_is_disabled_and_enabled_by_id(api: Api) -> None:
    known = await prepared(api)
    path = f"/os-services/{known['a'].id}"
    disabled = await api(
        "PUT", path, {"status": "disabled", "disabled_reason": "disk swap"}, by="admin", v="53"
    )
    assert disabled.status == 200
    service = disabled.body["service"]
    assert (service["id"], service["status"], service["disabled_reason"]) == (
        known["a"].id,
        "disabled",
        "disk swap",
    )
    assert (await host(api, "a")).enabled is False
    enabled = await api("PUT", path, {"status": "enabled"}, by="admin", v="53")
    assert (enabled.body["service"]["status"], enabled.body["service"]["disabled_reason"]) == (
        "enabled",
        None,
    )
    forced = await api("PUT", path, {"forced_down": True}, by="admin", v="53")
    assert (forced.body["service"]["forced_down"], forced.body["service"]["state"]) == (True, "down")
    raised = await api("PUT", path, {"forced_down": "false"}, by="admin", v="53")
    assert (raised.body["service"]["forced_down"], raised.body["service"]["state"]) == (False, "up")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "No updates were requested. Fields 'status' or 'forced_down' should be specified."),
        (
            {"disabled_reason": "x"},
            "No updates were requested. Fields 'status' or 'forced_down' should be specified.",
        ),
        (
            {"status": "enabled", "disabled_reason": "x"},
            "Specifying 'disabled_reason' with status 'enabled' is invalid.",
        ),
        (
            {"status": "gone"},
            (
                "Invalid input for field/attribute status. Value: gone. "
                "'gone' is not one of ['enabled', 'disabled']"
            ),
        ),
        (
            {"status": "disabled", "disabled_reason": ""},
            "Invalid input for field/attribute disabled_reason. Value: . '' should be non-empty",
        ),
        (
            {"status": "disabled", "disabled_reason": "x" * 256},
            (
                f"Invalid input for field/attribute disabled_reason. Value: {'x' * 256}. "
                f"'{'x' * 256}' is too long"
            ),
        ),
        (
            {"status": "disabled", "disabled_reason": "\0"},
            "The request's body has a NUL character in it, which is not allowed.",
        ),
        (
            {"forced_down": "perhaps"},
            (
                "Unrecognized value 'perhaps', acceptable values are: "
                "'0', '1', 'f', 'false', 'n', 'no', 'off', 'on', 't', 'true', 'y', 'yes'"
            ),
        ),
        (
            {"host": "a", "binary": "nova-compute"},
            (
                "Invalid input for field/attribute body. Value: {'host': 'a', 'binary': 'nova-compute'}. "
                "Additional properties are not allowed ('host' was unexpected)"
            ),
        ),
    ],
    ids=["nothing", "reason", "enabled", "status", "empty", "long", "NUL", "forced", "host"],
)
async def test_a_bad_change_of_a_service_is_refused(api: Api, body: object, message: str) -> None:
    known = await prepared(api)
    refused = await api("PUT", f"/os-services/{known['a'].id}", body, by="admin", v="53")
    assert (refused.status, refused.message) == (400, message)
    assert await host(api, "a") == known["a"]


async def test_a_service_that_is_not_there(api: Api) -> None:
    await prepared(api)
    wrong = await api("PUT", "/os-services/enable", {"status": "enabled"}, by="admin", v="53")
    assert (wrong.status, wrong.message) == (400, "Invalid uuid enable")
    nobody = "11111111-2222-3333-4444-555555555555"
    missing = await api("PUT", f"/os-services/{nobody}", {"status": "enabled"}, by="admin", v="53")
    assert (missing.status, missing.message) == (404, f"Service {nobody} could not be found.")


async def test_before_2_53_a_service_is_changed_by_a_verb(api: Api) -> None:
    await prepared(api)
    named = {"host": "a", "binary": "nova-compute"}

    async def put(verb: str, v: str = "11", **more: object) -> Any:
        return await api("PUT", f"/os-services/{verb}", named | more, by="admin", v=v)

    assert (await put("disable")).body == {"service": named | {"status": "disabled"}}
    assert (await host(api, "a")).enabled is False
    assert (await put("enable")).body == {"service": named | {"status": "enabled"}}
    logged = await put("disable-log-reason", disabled_reason="moved")
    assert logged.body == {"service": named | {"status": "disabled", "disabled_reason": "moved"}}
    assert (await host(api, "a")).disabled_reason == "moved"
    assert (await put("force-down", forced_down=True)).body == {"service": named | {"forced_down": True}}
    assert (await host(api, "a")).forced_down is True
    for answer, status, message in (
        (await put("disable-log-reason"), 400, "Missing disabled reason field"),
        (await put("force-down"), 400, "Missing forced_down field"),
        (await put("force-down", v="10"), 404, "Unknown action"),
        (await put("paint"), 404, "Unknown action"),
        (await put("enable", host="z"), 404, "Could not find binary nova-compute on host z."),
        (
            await put("enable", binary="nova-scheduler"),
            400,
            "Updating a nova-scheduler service is not supported. Only nova-compute services can be updated.",
        ),
    ):
        assert (answer.status, answer.message) == (status, message)
    assert (await api("PUT", "/os-services/enable", {"host": "a"}, by="admin")).status == 400


async def test_hypervisors_are_shown_by_version(api: Api) -> None:
    known = await prepared(api)
    shown = await api("GET", f"/os-hypervisors/{known['a'].id}", by="admin", v="88")
    newest: dict[str, Any] = {
        "id": known["a"].id,
        "hypervisor_hostname": "a",
        "state": "up",
        "status": "enabled",
        "host_ip": None,
        "hypervisor_type": "QEMU",
        "hypervisor_version": 7002000,
        "service": {"id": known["a"].id, "host": "a", "disabled_reason": None},
        "uptime": None,
    }
    assert (shown.status, shown.body) == (200, {"hypervisor": newest})
    del newest["uptime"]
    numbers = {
        "vcpus": 8,
        "vcpus_used": 1,
        "memory_mb": 16384,
        "memory_mb_used": 640,
        "free_ram_mb": 15744,
        "local_gb": 100,
        "local_gb_used": 1,
        "free_disk_gb": 99,
        "disk_available_least": 70,
        "current_workload": 0,
        "running_vms": 1,
    }
    older = newest | numbers | {"cpu_info": {"arch": "x86_64"}}
    assert (await api("GET", f"/os-hypervisors/{known['a'].id}", by="admin", v="87")).body == {
        "hypervisor": older
    }
    number = known["a"].number
    oldest = older | {"id": number, "cpu_info": '{"arch":"x86_64"}'}
    oldest["service"] = {"id": number, "host": "a", "disabled_reason": None}
    assert (await api("GET", f"/os-hypervisors/{number}", by="admin", v="27")).body == {"hypervisor": oldest}
    detail = await api("GET", "/os-hypervisors/detail", by="admin", v="27")
    assert detail.body["hypervisors"][0] == oldest
    assert [each["hypervisor_hostname"] for each in detail.body["hypervisors"]] == ["a", "b"]
    brief = await api("GET", "/os-hypervisors", by="admin")
    assert brief.body["hypervisors"][1] == {
        "id": known["b"].number,
        "hypervisor_hostname": "b",
        "state": "down",
        "status": "enabled",
    }


async def test_what_an_agent_says_of_its_processor_may_be_nothing(api: Api) -> None:
    await prepared(api)
    await api.database.write(lambda connection: hosts.heard(connection, report("c", cpu_info="")))
    detail = await api("GET", "/os-hypervisors/detail", by="admin", v="28")
    assert detail.body["hypervisors"][2]["cpu_info"] == {}


async def test_hypervisors_are_found_by_name_and_shown_with_servers(api: Api) -> None:
    await prepared(api)
    instance = {"name": "instance-00000001", "uuid": "i"}

    async def servers(path: str, v: str) -> dict[str, Any]:
        answer = await api("GET", path, by="admin", v=v)
        assert answer.status == 200, answer.body
        return {each["hypervisor_hostname"]: each.get("servers") for each in answer.body["hypervisors"]}

    pattern = "/os-hypervisors?hypervisor_hostname_pattern="
    assert await servers(f"{pattern}a", "53") == {"a": None}
    assert await servers(f"{pattern}a&with_servers=true", "53") == {"a": [instance]}
    assert await servers("/os-hypervisors?with_servers=1", "74") == {"a": [instance], "b": None}
    assert await servers("/os-hypervisors?with_servers=1", "75") == {"a": [instance], "b": []}
    assert await servers("/os-hypervisors/a/search", "52") == {"a": None}
    assert await servers("/os-hypervisors/a/servers", "52") == {"a": [instance]}
    assert (await api("GET", "/os-hypervisors/a/search", by="admin", v="53")).status == 404
    for path, version in ((f"{pattern}zz", "53"), ("/os-hypervisors/zz/search", "52")):
        missing = await api("GET", path, by="admin", v=version)
        assert (missing.status, missing.message) == (404, "No hypervisor matching 'zz' could be found.")
    paged = await api("GET", f"{pattern}a&limit=1", by="admin", v="53")
    assert (paged.status, paged.message) == (
        400,
        "Paging over hypervisors with the hypervisor_hostname_pattern query parameter is not supported.",
    )


async def test_hypervisors_have_pages_from_2_33_on(api: Api) -> None:
    known = await prepared(api)
    assert len((await api("GET", "/os-hypervisors?limit=1", by="admin", v="32")).body["hypervisors"]) == 2
    first = await api("GET", "/os-hypervisors/detail?limit=1", by="admin", v="53")
    link = first.body["hypervisors_links"][0]["href"]
    assert link == f"http://cloud/compute/v2.1/os-hypervisors/detail?limit=1&marker={known['a'].id}"
    second = await api("GET", link.removeprefix("http://cloud/compute/v2.1"), by="admin", v="53")
    assert [each["id"] for each in second.body["hypervisors"]] == [known["b"].id]
    refused = await api("GET", "/os-hypervisors?marker=7", by="admin", v="53")
    assert (refused.status, refused.message) == (400, "marker [7] not found")


async def test_a_hypervisor_that_is_not_there(api: Api) -> None:
    known = await prepared(api)
    invalid = await api("GET", "/os-hypervisors/1", by="admin", v="53")
    assert (invalid.status, invalid.message) == (400, "Invalid uuid 1")
    for wanted, version in ((known["c"].id, "53"), ("99", "52"), ("x", "52")):
        missing = await api("GET", f"/os-hypervisors/{wanted}", by="admin", v=version)
        assert missing.status == 404
        assert missing.message == f"Hypervisor with ID '{wanted}' could not be found."


async def test_uptime_is_not_known(api: Api) -> None:
    known = await prepared(api)
    path = f"/os-hypervisors/{known['a'].id}/uptime"
    unknown = await api("GET", path, by="admin", v="87")
    assert (unknown.status, unknown.message) == (501, "The requested functionality is not supported.")
    assert (await api("GET", path, by="admin", v="88")).status == 404


async def test_statistics_add_up_enabled_hosts(api: Api) -> None:
    known = await prepared(api)
    path = "/os-hypervisors/statistics"
    both = (await api("GET", path, by="admin", v="87")).body["hypervisor_statistics"]
    assert (both["count"], both["vcpus"], both["vcpus_used"], both["free_ram_mb"]) == (2, 16, 1, 31616)
    await api.database.write(lambda connection: hosts.change(connection, known["a"].id, {"enabled": False}))
    one = (await api("GET", path, by="admin", v="87")).body["hypervisor_statistics"]
    assert one == {
        "count": 1,
        "vcpus": 8,
        "memory_mb": 16384,
        "local_gb": 100,
        "vcpus_used": 0,
        "memory_mb_used": 512,
        "local_gb_used": 0,
        "free_ram_mb": 15872,
        "free_disk_gb": 100,
        "current_workload": 0,
        "running_vms": 1,
        "disk_available_least": 70,
    }
    assert (await api("GET", path, by="admin", v="88")).status == 404


async def test_zones_are_those_of_hosts(api: Api) -> None:
    known = await prepared(api)
    await api.database.write(lambda connection: hosts.change(connection, known["a"].id, {"enabled": False}))

    def zone(name: str, *, available: bool = True, members: object = None) -> dict[str, Any]:
        return {"zoneName": name, "zoneState": {"available": available}, "hosts": members}

    shown = await api("GET", "/os-availability-zone", by="reader")
    assert (shown.status, shown.body) == (200, {"availabilityZoneInfo": [zone("one"), zone("two")]})
    detail = await api("GET", "/os-availability-zone/detail", by="admin")

    def service(updated: str | None) -> dict[str, Any]:
        return {"nova-compute": {"available": False, "active": True, "updated_at": updated}}

    assert detail.body == {
        "availabilityZoneInfo": [
            zone("one", members={"b": service("2023-11-14T22:12:20.000000")}),
            zone("two", members={"c": service(None)}),
        ]
    }
    await api.database.write(lambda connection: hosts.change(connection, known["b"].id, {"enabled": False}))
    for path in ("", "/detail"):
        answer = await api("GET", f"/os-availability-zone{path}", by="admin")
        zones = [
            (each["zoneName"], each["zoneState"]["available"]) for each in answer.body["availabilityZoneInfo"]
        ]
        assert zones == [("two", True), ("one", False)]


async def test_there_are_no_aggregates(api: Api) -> None:
    assert (await api("GET", "/os-aggregates", by="admin")).body == {"aggregates": []}


@pytest.mark.parametrize(
    ("method", "path", "rule"),
    [
        ("GET", "/os-services", "os-services:list"),
        ("PUT", "/os-services/enable", "os-services:update"),
        ("GET", "/os-hypervisors", "os-hypervisors:list"),
        ("GET", "/os-hypervisors/detail", "os-hypervisors:list-detail"),
        ("GET", "/os-hypervisors/statistics", "os-hypervisors:statistics"),
        ("GET", "/os-hypervisors/1", "os-hypervisors:show"),
        ("GET", "/os-hypervisors/1/uptime", "os-hypervisors:uptime"),
        ("GET", "/os-hypervisors/1/search", "os-hypervisors:search"),
        ("GET", "/os-hypervisors/1/servers", "os-hypervisors:servers"),
        ("GET", "/os-availability-zone/detail", "os-availability-zone:detail"),
        ("GET", "/os-aggregates", "os-aggregates:index"),
    ],
)
async def test_hosts_are_for_admins(api: Api, method: str, path: str, rule: str) -> None:
    refused = await api(method, path, {} if method == "PUT" else None)
    assert refused.status == 403
    assert refused.message == f"Policy doesn't allow os_compute_api:{rule} to be performed."
