"""What cannot be done with a server's life is refused with what to change, and the server is as it was."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.api.test_bad_input import INVALID, NOBODY, NOT_A_NAME, act, bad, create
from tests.cloud import Cloud

pytestmark = pytest.mark.asyncio(loop_scope="session")

LONG = "x" * 256
TOO_LONG = f"Value: {LONG}. '{LONG}' is too long"
BACKUP = {"name": "b", "backup_type": "daily", "rotation": 1}


async def is_as_it_was(cloud: Cloud, body: Any, message: str) -> None:
    """Check that something is refused for this reason, and leaves nothing behind."""
    before = await _everything(cloud)
    assert (await act(cloud, body, who="admin-in-demo")).fault == bad(message)
    assert await _everything(cloud) == before


async def _everything(cloud: Cloud) -> list[Any]:
    """Return what there is to be seen of the server, its history and the images."""
    path = f"/servers/{cloud.server}"
    server = (await cloud.ask("admin", "GET", path, microversion="2.104")).body["server"]
    # They are the guest's, and seen whenever its host looks.
    del server["addresses"]
    return [
        server,
        (await cloud.ask("admin", "GET", f"{path}/os-instance-actions")).body,
        (await cloud.ask("admin", "GET", "/images", api="/image/v2")).body,
    ]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        # --- createImage
        ({"createImage": None}, f"{INVALID} createImage. Value: None. None is not of type 'object'"),
        ({"createImage": {}}, f"{INVALID} createImage. Value: {{}}. 'name' is a required property"),
        ({"createImage": {"name": ""}}, f"{INVALID} name. Value: . '' should be non-empty"),
        ({"createImage": {"name": LONG}}, f"{INVALID} name. {TOO_LONG}"),
        ({"createImage": {"name": "i", "metadata": {"a": LONG}}}, f"{INVALID} a. {TOO_LONG}"),
        (
            {"createImage": {"name": "i", "metadata": {"": "x"}}},
            f"{INVALID} metadata. Value: {{'': 'x'}}. One of its names is not as it must be: should be non-empty",
        ),
        (
            {"createImage": {"name": "i", "metadata": {"a": 1}}},
            f"{INVALID} a. Value: 1. 1 is not of type 'string'",
        ),
        # --- createBackup
        (
            {"createBackup": {"name": "b", "backup_type": "daily"}},
            (
                f"{INVALID} createBackup. Value: {{'name': 'b', 'backup_type': 'daily'}}. "
                "'rotation' is a required property"
            ),
        ),
        (
            {"createBackup": BACKUP | {"rotation": -1}},
            f"{INVALID} rotation. Value: -1. -1 is less than the minimum of 0",
        ),
        (
            {"createBackup": BACKUP | {"rotation": "-1"}},
            f"{INVALID} rotation. Value: -1. '-1' does not match '^[0-9]{{1,9}}$'",
        ),
        (
            {"createBackup": BACKUP | {"rotation": "many"}},
            f"{INVALID} rotation. Value: many. 'many' does not match '^[0-9]{{1,9}}$'",
        ),
        (
            {"createBackup": BACKUP | {"rotation": 10**30}},
            f"{INVALID} rotation. Value: {10**30}. {10**30} is greater than the maximum of 999999999",
        ),
        ({"createBackup": BACKUP | {"backup_type": LONG}}, f"{INVALID} backup_type. {TOO_LONG}"),
        # --- resize
        ({"resize": {}}, f"{INVALID} resize. Value: {{}}. 'flavorRef' is a required property"),
        ({"resize": {"flavorRef": "nosuch"}}, "Flavor nosuch could not be found."),
        ({"resize": {"flavorRef": 10**30}}, f"Flavor {10**30} could not be found."),
        ({"resize": {"flavorRef": "1"}}, "When resizing, instances must change flavor!"),
        ({"resize": {"flavorRef": "none"}}, "Resize to zero disk flavor is not allowed."),
        (
            {"resize": {"flavorRef": "1", "OS-DCF:diskConfig": "x"}},
            f"{INVALID} OS-DCF:diskConfig. Value: x. 'x' is not one of ['AUTO', 'MANUAL']",
        ),
        # --- rebuild
        ({"rebuild": {}}, f"{INVALID} rebuild. Value: {{}}. 'imageRef' is a required property"),
        ({"rebuild": {"imageRef": NOBODY}}, "Can not find requested image"),
        ({"rebuild": {"imageRef": "{queued}"}}, "Image {queued} is not active."),
        ({"rebuild": {"imageRef": "{large}"}}, "Flavor's memory is too small for requested image."),
        ({"rebuild": {"imageRef": "{wide}"}}, "Flavor's disk is too small for requested image."),
        ({"rebuild": {"imageRef": "{image}", "name": "a\nb"}}, NOT_A_NAME),
        ({"rebuild": {"imageRef": "{image}", "name": LONG}}, f"{INVALID} name. {TOO_LONG}"),
        ({"rebuild": {"imageRef": "{image}", "metadata": {"a": LONG}}}, f"{INVALID} a. {TOO_LONG}"),
        ({"rebuild": {"imageRef": "{image}", "key_name": "nosuch"}}, "Invalid key_name provided."),
        (
            {"rebuild": {"imageRef": "{image}", "user_data": "A" * 65536}},
            "User data too large. User data must be no larger than 65535 bytes once base64 encoded.",
        ),
        (
            {"rebuild": {"imageRef": "{image}", "user_data": "?"}},
            "Userdata content needs to be valid base 64.",
        ),
        (
            {"rebuild": {"imageRef": "{image}", "hostname": "-"}},
            f"{INVALID} hostname. Value: -. '-' is not a host name",
        ),
        (
            {"rebuild": {"imageRef": "{image}", "adminPass": ""}},
            f"{INVALID} adminPass. Value: . '' should be non-empty",
        ),
        (
            {"rebuild": {"imageRef": "{image}", "timeout": -1}},
            f"{INVALID} timeout. Value: -1. -1 is less than the minimum of 0",
        ),
        # --- rescue
        ({"rescue": {"rescue_image_ref": NOBODY}}, "Can not find requested image"),
        ({"rescue": {"rescue_image_ref": "{queued}"}}, "Image {queued} is not active."),
        (
            {"rescue": {"rescue_image_ref": ""}},
            f"{INVALID} rescue_image_ref. Value: . '' should be non-empty",
        ),
        ({"rescue": {"adminPass": 5}}, f"{INVALID} adminPass. Value: 5. 5 is not of type 'string', 'null'"),
        # --- unshelve
        (
            {"unshelve": {"availability_zone": "moon"}},
            "The requested availability zone is not available",
        ),
        ({"unshelve": {"host": "moon"}}, "Compute host moon could not be found."),
        (
            {"unshelve": {"host": None}},
            f"{INVALID} host. Value: None. None is not of type 'string'",
        ),
    ],
)
async def test_what_cannot_be(lives: Cloud, body: Any, message: str) -> None:
    """Each refusal says what is wrong; nothing of the server, its images or its history has changed."""
    text = json.dumps(body)
    for name, thing in lives.things.items():
        text, message = text.replace(name, thing), message.replace(name, thing)
    await is_as_it_was(lives, json.loads(text), message)


async def test_another_projects_image(lives: Cloud) -> None:
    """What the caller may not see is not there, for a rebuild as for a rescue."""
    hidden = lives.things["{hidden}"]
    for body in ({"rebuild": {"imageRef": hidden}}, {"rescue": {"rescue_image_ref": hidden}}):
        assert (await act(lives, body)).fault == bad("Can not find requested image")


@pytest.mark.parametrize("part", ["kernel_id", "ramdisk_id"])
@pytest.mark.parametrize("name", ["{hidden}", "{queued}", NOBODY, "/etc/hostname", ""])
async def test_an_image_that_boots_what_its_owner_may_not_see(lives: Cloud, part: str, name: str) -> None:
    """Else its guest would show another project's image, or a file of the host, to whoever names it."""
    other = lives.things.get(name, name)
    image = {
        "name": "i",
        "disk_format": "raw",
        "container_format": "bare",
        "kernel_id": lives.image,
        part: other,
    }
    made = await lives.ask("member", "POST", "/images", image, api="/image/v2")
    assert made.status == 201, made.body
    image_id = made.body["id"]
    headers = {"x-auth-token": lives.tokens["member"], "content-type": "application/octet-stream"}
    path = f"/image/v2/images/{image_id}/file"
    assert (await lives.send("PUT", path, content=b"0", headers=headers)).status == 204
    refused = bad(f"Image {other} could not be found.")
    assert (await create(lives, {"imageRef": image_id})).fault == refused
    for body in ({"rebuild": {"imageRef": image_id}}, {"rescue": {"rescue_image_ref": image_id}}):
        assert (await act(lives, body)).fault == refused
    # Others' lists must not know of it.
    assert (await lives.ask("member", "DELETE", f"/images/{image_id}", api="/image/v2")).status == 204


async def test_a_disk_does_not_shrink(lives: Cloud) -> None:
    """A smaller disk is refused, before the guest is asked anything."""
    server = await lives.ready_server("wide", flavorRef="wide")
    path = f"/servers/{server}/action"
    answer = await lives.ask("member", "POST", path, {"resize": {"flavorRef": "1"}}, microversion="2.104")
    assert answer.fault == bad("A disk cannot shrink: it has 3 GiB, and flavor m1.tiny has 1 GiB.")
    assert (await lives.settled(server))["OS-EXT-STS:vm_state"] == "active"
    # Others' lists must not know of it.
    assert (await lives.ask("member", "DELETE", f"/servers/{server}")).status == 204
    assert await lives.settled(server) == {}


async def test_no_room_to_grow(lives: Cloud) -> None:
    """A resize that its host has no room for is refused when it is asked for, not when it is under way (409)."""
    answer = await act(lives, {"resize": {"flavorRef": "huge"}})
    message = "No valid host was found. There are not enough hosts available."
    assert answer.fault == (409, "conflictingRequest", message)
    assert (await lives.settled(lives.server))["OS-EXT-STS:vm_state"] == "active"


@pytest.mark.parametrize("wire", ["createBackup", "createImage", "rebuild", "rescue", "resize", "unshelve"])
async def test_a_member_that_none_has(lives: Cloud, wire: str) -> None:
    """A misspelt one is refused, not passed over: somebody meant something by it."""
    needed: dict[str, dict[str, Any]] = {
        "createBackup": BACKUP,
        "createImage": {"name": "i"},
        "rebuild": {"imageRef": lives.image},
        "resize": {"flavorRef": "wide"},
    }
    options = {**needed.get(wire, {}), "nosuch": 1}
    unexpected = "Additional properties are not allowed ('nosuch' was unexpected)"
    await is_as_it_was(lives, {wire: options}, f"{INVALID} {wire}. Value: {options}. {unexpected}")
