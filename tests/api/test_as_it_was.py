"""An image that no disk can be made over is found before the server is touched: it is as it was, and told why."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final

import msgspec
import pytest
import pytest_asyncio

from stateward.domain.states import Observed
from tests.agent.images import QCOW2_TABLE, qcow2_header
from tests.cloud import Cloud
from tests.wires import accepted

pytestmark = pytest.mark.asyncio(loop_scope="session")

GIB: Final = 1024**3
BROKEN: Final = (
    "The image is broken, upload it again: the file ends too early. Nothing was done to the guest."
)
LARGE: Final = (
    f"Flavor's disk is too small for requested image. Flavor disk is {GIB} bytes, image is {2 * GIB} bytes. "
    "Take a larger flavor, or a smaller image. Nothing was done to the guest."
)
#: The image's bytes; what the disk of a flavor is compared with is what its guest would see.
DATA: Final = {"broken": qcow2_header(GIB), "large": qcow2_header(2 * GIB) + bytes(QCOW2_TABLE)}


@pytest_asyncio.fixture(loop_scope="session")
async def server(shared_cloud: Cloud) -> AsyncIterator[str]:
    """Give a running server; others' lists must not know of it."""
    server = await shared_cloud.ready_server("as it was")
    yield server
    assert (await shared_cloud.ask("member", "DELETE", f"/servers/{server}")).status == 204
    assert await shared_cloud.settled(server) == {}


@pytest_asyncio.fixture(loop_scope="session")
async def image(shared_cloud: Cloud, request: pytest.FixtureRequest) -> AsyncIterator[str]:
    """Give an image with such data."""
    ask = shared_cloud.ask
    image = {"name": request.param, "disk_format": "qcow2", "container_format": "bare"}
    made = await ask("member", "POST", "/images", image, api="/image/v2")
    assert made.status == 201, made.body
    path = f"/images/{made.body['id']}"
    headers = {"x-auth-token": shared_cloud.tokens["member"], "content-type": "application/octet-stream"}
    sent = await shared_cloud.send(
        "PUT", f"/image/v2{path}/file", content=DATA[request.param], headers=headers
    )
    assert sent.status == 204
    yield made.body["id"]
    assert (await ask("member", "DELETE", path, api="/image/v2")).status == 204


async def act(cloud: Cloud, server: str, wire: str, options: Any) -> dict[str, Any]:
    """Ask for an action, wait for its end, and return its operation."""
    asked = await cloud.ask(
        "member", "POST", f"/servers/{server}/action", {wire: options}, microversion="2.104"
    )
    assert asked.status == accepted(wire), asked.body
    await cloud.settled(server)
    path = f"/operations/{asked.headers['x-stateward-operation']}"
    operation: dict[str, Any] = (await cloud.ask("member", "GET", path, api="/v1")).body
    return operation


async def seen(cloud: Cloud, server: str) -> tuple[Any, ...]:
    """Return what there is to be seen of a server and of its guest, but for when it was changed last."""
    shown = await cloud.settled(server)
    guest = cloud.hypervisor.guest(server)
    # They are the guest's, and seen whenever its host looks; the fence counts what was asked for.
    del shown["addresses"], shown["updated"]
    return shown, msgspec.structs.replace(guest, fence=0)


def asked(cloud: Cloud, server: str) -> bool:
    """Say whether the guest was ever asked to shut down."""
    calls = {call.name for call in cloud.hypervisor.calls if call.instance_id == server}
    return bool(calls & {"request_shutdown", "power_off"})


@pytest.mark.parametrize(
    ("image", "wire", "says"),
    [("broken", "rebuild", BROKEN), ("large", "rebuild", LARGE), ("broken", "rescue", BROKEN)],
    indirect=["image"],
)
async def test_an_image_that_no_disk_can_be_made_over(
    shared_cloud: Cloud, server: str, image: str, wire: str, says: str
) -> None:
    """The operation fails with what to do; the guest runs on and was asked for nothing, and no history but its own."""
    before = await seen(shared_cloud, server)
    options = {"imageRef": image} if wire == "rebuild" else {"rescue_image_ref": image}
    operation = await act(shared_cloud, server, wire, options)
    assert (operation["state"], operation["message"]) == ("failed", says)
    assert await seen(shared_cloud, server) == before
    shown, guest = before
    assert (shown["OS-EXT-STS:vm_state"], shown["OS-EXT-STS:power_state"]) == ("active", 1)
    assert (guest.observed, asked(shared_cloud, server)) == (Observed.RUNNING, False)
    listed = await shared_cloud.ask("member", "GET", f"/servers/{server}/os-instance-actions")
    assert [each["action"] for each in listed.body["instanceActions"]] == [wire, "create"]


@pytest.mark.parametrize("image", ["large"], indirect=True)
async def test_a_stopped_server_stays_stopped(shared_cloud: Cloud, server: str, image: str) -> None:
    """The same of one that is off: its disk is as it was, and it starts from it."""
    assert (await act(shared_cloud, server, "os-stop", None))["state"] == "succeeded"
    before = await seen(shared_cloud, server)
    operation = await act(shared_cloud, server, "rebuild", {"imageRef": image})
    assert (operation["state"], operation["message"]) == ("failed", LARGE)
    assert await seen(shared_cloud, server) == before
    assert (await act(shared_cloud, server, "os-start", None))["state"] == "succeeded"


@pytest.mark.parametrize("image", ["large"], indirect=True)
async def test_a_rescue_disk_has_its_images_own_size(shared_cloud: Cloud, server: str, image: str) -> None:
    """So no flavor is too small for one."""
    assert (await act(shared_cloud, server, "rescue", {"rescue_image_ref": image}))["state"] == "succeeded"
    assert (await act(shared_cloud, server, "unrescue", None))["state"] == "succeeded"
