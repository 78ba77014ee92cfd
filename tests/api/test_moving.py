"""Moving a server to another host: asked for as in Nova, refused with its sentences, and nothing is changed."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from tests.cloud import Cloud

pytestmark = pytest.mark.asyncio(loop_scope="session")

NOWHERE = "No valid host was found. There are not enough hosts available."
NOT_WHILE_IT_RUNS = "No valid host was found. A guest cannot be moved while it runs; migrate it cold."
LIVE = {"host": None, "block_migration": "auto"}


async def host_of(cloud: Cloud) -> str:
    """Return the name of the one host there is."""
    shown = await cloud.ask("admin", "GET", f"/servers/{cloud.server}")
    name: str = shown.body["server"]["OS-EXT-SRV-ATTR:host"]
    return name


@pytest.mark.parametrize(
    ("body", "minor", "status", "message"),
    [
        ({"migrate": None}, 1, 400, NOWHERE),
        ({"migrate": {"any": "thing"}}, 55, 400, NOWHERE),
        ({"migrate": None}, 56, 400, NOWHERE),
        ({"migrate": {}}, 104, 400, NOWHERE),
        ({"migrate": {"host": "HOST"}}, 56, 400, "Cannot migrate to the host where the server exists."),
        ({"migrate": {"host": "mars"}}, 56, 400, "Compute host mars could not be found."),
        (
            {"os-migrateLive": {"host": None, "block_migration": False, "disk_over_commit": "False"}},
            1,
            400,
            NOT_WHILE_IT_RUNS,
        ),
        ({"os-migrateLive": LIVE}, 25, 400, NOT_WHILE_IT_RUNS),
        ({"os-migrateLive": LIVE | {"force": True}}, 30, 400, NOT_WHILE_IT_RUNS),
        ({"os-migrateLive": LIVE}, 104, 400, NOT_WHILE_IT_RUNS),
        ({"os-migrateLive": LIVE | {"host": "mars"}}, 68, 400, "Compute host mars could not be found."),
        (
            {"os-migrateLive": LIVE | {"host": "HOST"}},
            68,
            400,
            "Unable to migrate instance (SERVER) to current host (HOST).",
        ),
        ({"evacuate": {"onSharedStorage": "False"}}, 1, 400, "Compute service of HOST is still in use."),
        ({"evacuate": {}}, 14, 400, "Compute service of HOST is still in use."),
        ({"evacuate": {"host": "mars"}}, 95, 404, "Compute host mars not found."),
        ({"evacuate": {"host": "HOST"}}, 95, 400, "The target host can't be the same one."),
        ({"evacuate": {"force": True}}, 29, 400, "Can't force to a non-provided destination"),
    ],
)
async def test_a_move_is_refused(
    shared_cloud: Cloud, body: dict[str, Any], minor: int, status: int, message: str
) -> None:
    """As Nova 34 says it where only one host is up; the end about a guest that runs is ours."""
    host = await host_of(shared_cloud)
    asked = msgspec.json.decode(msgspec.json.encode(body).replace(b"HOST", host.encode()))
    answer = await shared_cloud.ask(
        "admin",
        "POST",
        f"/servers/{shared_cloud.server}/action",
        asked,
        microversion=f"2.{minor}",
    )
    assert answer.fault[::2] == (status, message.replace("HOST", host).replace("SERVER", shared_cloud.server))
    shown = await shared_cloud.settled(shared_cloud.server)
    assert (shown["status"], shown["OS-EXT-SRV-ATTR:host"]) == ("ACTIVE", host)


@pytest.mark.parametrize(
    ("body", "minor", "field"),
    [
        ({"migrate": {"host": "a b"}}, 56, "host"),
        ({"migrate": {"force": True}}, 56, "migrate"),
        (
            {"os-migrateLive": {"host": None, "block_migration": "auto", "disk_over_commit": False}},
            1,
            "block",
        ),
        ({"os-migrateLive": {"host": None}}, 25, "block_migration"),
        ({"os-migrateLive": LIVE | {"force": True}}, 68, "force"),
        ({"evacuate": {}}, 1, "onSharedStorage"),
        ({"evacuate": {"onSharedStorage": True}}, 14, "onSharedStorage"),
        ({"evacuate": {"force": True}}, 68, "force"),
        ({"evacuate": {"host": ""}}, 95, "host"),
    ],
)
async def test_a_body_of_another_microversion_is_refused(
    shared_cloud: Cloud, body: dict[str, Any], minor: int, field: str
) -> None:
    """And says what of it."""
    answer = await shared_cloud.ask(
        "admin", "POST", f"/servers/{shared_cloud.server}/action", body, microversion=f"2.{minor}"
    )
    status, _, message = answer.fault
    assert status == 400
    assert field in message


@pytest.mark.parametrize(
    ("body", "rule"),
    [
        ({"migrate": None}, "os-migrate-server:migrate"),
        ({"os-migrateLive": LIVE}, "os-migrate-server:migrate_live"),
        ({"evacuate": {}}, "os-evacuate"),
    ],
)
async def test_moving_is_for_admins(shared_cloud: Cloud, body: dict[str, Any], rule: str) -> None:
    """A member is told which rule says so; for somebody else's member there is no such server."""
    for role, expected in (
        ("member", (403, f"Policy doesn't allow os_compute_api:{rule} to be performed.")),
        ("othertenant", (404, f"Instance {shared_cloud.server} could not be found.")),
    ):
        answer = await shared_cloud.ask(
            role, "POST", f"/servers/{shared_cloud.server}/action", body, microversion="2.100"
        )
        assert answer.fault[::2] == expected


async def test_an_evacuation_from_a_host_that_is_not_fenced(shared_cloud: Cloud) -> None:
    """That somebody forced it down fences nobody. What was said of the host is taken back; the others share it."""
    services = await shared_cloud.ask("admin", "GET", "/os-services", microversion="2.53")
    (service,) = services.body["services"]
    path = f"/os-services/{service['id']}"
    not_fenced = (
        f"Instance {shared_cloud.server} cannot be evacuated: its host {service['host']} is not fenced. Only the "
        "instances of a host whose power was taken may be started elsewhere"
    )
    for down, expected in (
        (True, (409, not_fenced)),
        (False, (400, f"Compute service of {service['host']} is still in use.")),
    ):
        put = await shared_cloud.ask("admin", "PUT", path, {"forced_down": down}, microversion="2.53")
        assert put.status == 200
        answer = await shared_cloud.ask(
            "admin", "POST", f"/servers/{shared_cloud.server}/action", {"evacuate": {}}, microversion="2.95"
        )
        assert answer.fault[::2] == expected
