"""A server's whole life over HTTP on a simulated host: states, words, answers and what the guest is made of."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
import pytest_asyncio

from stateward.domain.states import Observed
from tests.cloud import Answer, Cloud, running_cloud
from tests.harness import until

pytestmark = pytest.mark.asyncio(loop_scope="module")

#: Twice of everything that flavor ``1`` has.
LARGE: Final = {"name": "large", "id": "2", "ram": 1024, "vcpus": 2, "disk": 2}


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=[False, True], ids=["plain", "keeps"])
async def cloud(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Cloud]:
    """Run a server as it is by default, and one that keeps what is deleted or shelved."""
    folder = tmp_path_factory.mktemp("cloud")
    async with running_cloud(folder / "data", keeps=request.param) as cloud:
        answer = await cloud.ask("admin", "POST", "/flavors", {"flavor": LARGE})
        assert answer.status == 200, answer.body
        yield cloud


async def act(
    cloud: Cloud, server: str, wire: str, options: Any = None, *, by: str = "member", v: int = 104
) -> Answer:
    """Ask for an action."""
    return await cloud.ask(by, "POST", f"/servers/{server}/action", {wire: options}, microversion=f"2.{v}")


class Step(msgspec.Struct, frozen=True):
    """One action of a life: what is asked, and what is seen while it is in flight and afterwards."""

    wire: str
    options: Any
    answer: int
    #: The driver's call that is held while the server is looked at.
    call: str
    #: (vm state, task state, status) then, and (vm state, status) at the end.
    during: tuple[str, str, str]
    after: tuple[str, str]
    by: str = "member"
    #: Seen at the end instead where what is deleted or shelved is kept.
    kept: tuple[str, str] | None = None


_RESIZE: Final = {"flavorRef": "2"}
_STOP: Final = Step(
    "os-stop", None, 202, "power_off", ("active", "powering-off", "ACTIVE"), ("stopped", "SHUTOFF")
)
_RESCUE: Final = Step(
    "rescue", None, 200, "power_off", ("active", "rescuing", "ACTIVE"), ("rescued", "RESCUE")
)
_SHELVE: Final = Step(
    "shelve",
    None,
    202,
    "snapshot",
    ("active", "shelving", "ACTIVE"),
    ("shelved_offloaded", "SHELVED_OFFLOADED"),
    kept=("shelved", "SHELVED"),
)
_RESIZED: Final = ("resized", "VERIFY_RESIZE")
_ACTIVE: Final = ("active", "ACTIVE")
_STOPPED: Final = ("stopped", "SHUTOFF")
LIVES: Final[dict[str, tuple[Step, ...]]] = {
    "rescued": (
        _RESCUE,
        Step("unrescue", None, 202, "power_off", ("rescued", "unrescuing", "RESCUE"), _ACTIVE),
    ),
    "rescued when off": (
        _STOP,
        Step("rescue", None, 200, "power_off", ("stopped", "rescuing", "SHUTOFF"), ("rescued", "RESCUE")),
        Step("unrescue", None, 202, "power_on", ("rescued", "unrescuing", "RESCUE"), _ACTIVE),
    ),
    "resized and confirmed": (
        Step("resize", _RESIZE, 202, "power_off", ("active", "resize_prep", "RESIZE"), _RESIZED),
        Step(
            "confirmResize",
            None,
            204,
            "drop_kept_disk",
            ("resized", "resize_confirming", "VERIFY_RESIZE"),
            _ACTIVE,
        ),
    ),
    "resized and reverted": (
        Step("resize", _RESIZE, 202, "grow_disk", ("active", "resize_prep", "RESIZE"), _RESIZED),
        Step(
            "revertResize",
            None,
            202,
            "return_disk",
            ("resized", "resize_reverting", "REVERT_RESIZE"),
            _ACTIVE,
        ),
    ),
    "resized when off": (
        _STOP,
        Step("resize", _RESIZE, 202, "keep_disk", ("stopped", "resize_prep", "RESIZE"), _RESIZED),
        Step(
            "confirmResize",
            None,
            204,
            "drop_kept_disk",
            ("resized", "resize_confirming", "VERIFY_RESIZE"),
            _STOPPED,
        ),
        Step("resize", {"flavorRef": 2}, 400, "", ("", "", ""), _STOPPED),
    ),
    "reverted when off": (
        _STOP,
        Step("resize", _RESIZE, 202, "keep_disk", ("stopped", "resize_prep", "RESIZE"), _RESIZED),
        Step(
            "revertResize",
            None,
            202,
            "return_disk",
            ("resized", "resize_reverting", "REVERT_RESIZE"),
            _STOPPED,
        ),
    ),
    "rebuilt": (
        Step(
            "rebuild",
            {"imageRef": "{image}"},
            202,
            "discard_disk",
            ("active", "rebuilding", "REBUILD"),
            _ACTIVE,
        ),
    ),
    "rebuilt when off": (
        _STOP,
        Step(
            "rebuild",
            {"imageRef": "{image}"},
            202,
            "discard_disk",
            ("stopped", "rebuilding", "REBUILD"),
            _STOPPED,
        ),
    ),
    "shelved": (
        _SHELVE,
        Step("unshelve", None, 202, "power_on", ("", "unshelving", ""), _ACTIVE),
    ),
    "reset": (
        _RESCUE,
        Step("os-resetState", {"state": "error"}, 202, "", ("", "", ""), ("error", "ERROR"), by="admin"),
        Step("rescue", None, 200, "define", ("error", "rescuing", "ERROR"), ("rescued", "RESCUE")),
    ),
}


@pytest.mark.parametrize("life", LIVES)
async def test_a_life(cloud: Cloud, life: str) -> None:
    """Each step is answered as in Nova, seen in its task state, and ends where it shall; and all are recorded."""
    server = await cloud.ready_server(life)
    keeps = cloud.keeps
    at, done = _ACTIVE, ["create"]
    for step in LIVES[life]:
        options = step.options
        if options == {"imageRef": "{image}"}:
            options = {"imageRef": cloud.image}
        hang = cloud.hypervisor.hang_next(step.call) if step.call else None
        answer = await act(cloud, server, step.wire, options, by=step.by)
        assert answer.status == step.answer, (step, answer)
        if hang is not None:
            await hang.reached.wait()
            seen = (await cloud.ask("member", "GET", f"/servers/{server}", microversion="2.104")).body[
                "server"
            ]
            vm_state, task_state, status = step.during
            assert seen["OS-EXT-STS:task_state"] == task_state
            assert (seen["OS-EXT-STS:vm_state"], seen["status"]) == ((vm_state, status) if vm_state else at)
            hang.release()
        settled = await cloud.settled(server)
        at = step.kept if keeps and step.kept else step.after
        assert (settled["OS-EXT-STS:vm_state"], settled["status"]) == at, (step, settled)
        done += [{"os-stop": "stop", "os-resetState": "reset_state"}.get(step.wire, step.wire)] * (
            answer.status < 400
        )
    listed = await cloud.ask("member", "GET", f"/servers/{server}/os-instance-actions")
    assert [each["action"] for each in listed.body["instanceActions"]] == done[::-1]
    answer = await cloud.ask("member", "DELETE", f"/servers/{server}")
    assert (answer.status, answer.raw) == (204, b"")
    await cloud.settled(server)
    if keeps:
        assert (await act(cloud, server, "forceDelete")).status == 202
    assert await cloud.settled(server) == {}
    assert cloud.hypervisor.guest(server).blank


async def test_what_a_rescued_guest_boots(cloud: Cloud) -> None:
    """The image that is named, with the password that is named; its own disk is there, and boots afterwards."""
    server = await cloud.ready_server("rescued")
    other = await make_image(cloud, "rescue")
    answer = await act(cloud, server, "rescue", {"rescue_image_ref": other, "adminPass": "secret"})
    assert (answer.status, answer.body) == (200, {"adminPass": "secret"})
    await cloud.settled(server)
    guest = cloud.hypervisor.guest(server)
    assert guest.spec is not None
    assert guest.spec.rescue is not None
    assert (guest.spec.rescue.id, guest.rescue_image, guest.disk_image) == (other, other, cloud.image)
    assert (await act(cloud, server, "unrescue")).status == 202
    await cloud.settled(server)
    guest = cloud.hypervisor.guest(server)
    assert guest.spec is not None
    assert (guest.spec.rescue, guest.rescue_image, guest.disk_image) == (None, None, cloud.image)


async def test_a_password_is_made_up(cloud: Cloud) -> None:
    """Where none is named, as Nova does."""
    server = await cloud.ready_server("password")
    answer = await act(cloud, server, "rescue")
    assert list(answer.body) == ["adminPass"]
    assert len(answer.body["adminPass"]) >= 12
    await cloud.settled(server)


async def test_what_a_resized_guest_has(cloud: Cloud) -> None:
    """The new flavor's processors, memory and disk, and the old one's again after a revert."""
    server = await cloud.ready_server("resized")

    async def has() -> tuple[Any, ...]:
        shown = await cloud.settled(server)
        guest = cloud.hypervisor.guest(server)
        assert guest.spec is not None
        return (
            shown["flavor"]["original_name"],
            guest.spec.vcpus,
            guest.spec.memory,
            guest.disk,
            guest.kept and guest.kept.disk,
        )

    small, large = ("m1.tiny", 1, 512, 1, None), ("large", 2, 1024, 2)
    assert await has() == small
    for end, left in (("revertResize", small), ("confirmResize", (*large, None))):
        assert (await act(cloud, server, "resize", {"flavorRef": "2"})).status == 202
        assert await has() == (*large, 1)
        assert (await act(cloud, server, end)).status == (202 if end == "revertResize" else 204)
        assert await has() == left


async def test_a_rebuild_keeps_what_the_server_is(cloud: Cloud) -> None:
    """Id, flavor and ports stay; image, name, metadata and what the guest is told change; the answer shows it."""
    server = await cloud.ready_server("before", metadata={"a": "b"})
    before = await cloud.settled(server)
    spec = cloud.hypervisor.guest(server).spec
    assert spec is not None
    other = await make_image(cloud, "other")
    body = {
        "imageRef": other,
        "name": "after",
        "metadata": {"c": "d"},
        "description": "said",
        "user_data": "Iw==",
        "hostname": "host",
        "adminPass": "secret",
    }
    answer = await act(cloud, server, "rebuild", body)
    assert answer.status == 202
    assert answer.headers["location"] == f"http://cloud/compute/v2.1/servers/{server}"
    shown = answer.body["server"]
    assert (shown["id"], shown["status"], shown["adminPass"]) == (server, "REBUILD", "secret")
    assert (shown["name"], shown["metadata"], shown["user_data"]) == ("after", {"c": "d"}, "Iw==")
    after = await cloud.settled(server)
    assert after["image"]["id"] == other
    assert (after["name"], after["metadata"], after["description"]) == ("after", {"c": "d"}, "said")
    assert after["OS-EXT-SRV-ATTR:hostname"] == "host"
    for same in ("id", "flavor", "created", "tenant_id", "OS-EXT-SRV-ATTR:instance_name"):
        assert after[same] == before[same]
    guest = cloud.hypervisor.guest(server)
    assert (guest.disk_image, guest.observed) == (other, Observed.RUNNING)
    assert guest.spec is not None
    assert guest.spec.ports == spec.ports
    assert guest.spec.seed is not None
    assert guest.spec.seed.hostname == "host"


@pytest.mark.parametrize(
    ("v", "last"),
    [(1, "description"), (19, "key_name"), (54, "user_data"), (57, "hostname"), (89, "hostname")],
)
async def test_a_rebuild_by_microversion(cloud: Cloud, v: int, last: str) -> None:
    """Each member has its first microversion, and is refused before it in Nova's words."""
    server = await cloud.ready_server("by microversion")
    answer = await act(cloud, server, "rebuild", {"imageRef": cloud.image, last: None}, v=v)
    _status, _name, message = answer.fault
    assert answer.status == 400
    assert message.endswith(f"Additional properties are not allowed ('{last}' was unexpected)")
    assert (
        "user_data" in (await act(cloud, server, "rebuild", {"imageRef": cloud.image}, v=v)).body["server"]
    ) == (v >= 57)
    await cloud.settled(server)


async def test_images_of_a_server(cloud: Cloud) -> None:
    """createImage tells the image's address before 2.45 and its id since; the image says what it was made from."""
    server = await cloud.ready_server("imaged")
    old = await act(cloud, server, "createImage", {"name": "old"}, v=44)
    assert (old.status, old.raw) == (202, b"")
    await cloud.settled(server)
    new = await act(cloud, server, "createImage", {"name": "new", "metadata": {"of": "mine"}}, v=45)
    assert (new.status, "location" in new.headers) == (202, False)
    await cloud.settled(server)
    image_id = old.headers["location"].removeprefix("http://cloud/image/v2/images/")
    for found, name in ((image_id, "old"), (new.body["image_id"], "new")):
        image = (await cloud.ask("member", "GET", f"/images/{found}", api="/image/v2")).body
        assert (image["name"], image["status"], image["visibility"]) == (name, "active", "private")
        assert (image["instance_uuid"], image["base_image_ref"]) == (server, cloud.image)
        assert (image["image_type"], image["min_disk"], image["disk_format"]) == ("snapshot", 1, "qcow2")
    assert image["of"] == "mine"
    assert (await cloud.settled(server))["status"] == "ACTIVE"
    # And servers are made of it.
    await cloud.ready_server("of an image", imageRef=image_id)


async def test_backups_rotate(cloud: Cloud) -> None:
    """So many of one type are kept, the newest; those of another type stay."""
    server = await cloud.ready_server("backed up")

    async def backup(name: str, kind: str, rotation: int | str) -> None:
        body = {"name": name, "backup_type": kind, "rotation": rotation}
        answer = await act(cloud, server, "createBackup", body, v=104)
        assert (answer.status, list(answer.body)) == (202, ["image_id"])
        await cloud.settled(server)

    async def there() -> set[str]:
        answer = await cloud.ask("member", "GET", "/images?image_type=backup", api="/image/v2")
        return {image["name"] for image in answer.body["images"] if image["instance_uuid"] == server}

    await backup("w1", "weekly", 1)
    for name in ("d1", "d2", "d3"):
        await backup(name, "daily", "2")
    assert await there() == {"w1", "d2", "d3"}
    await backup("d4", "daily", 0)
    assert await there() == {"w1"}


async def test_a_shelved_servers_image(cloud: Cloud) -> None:
    """It is protected while the server lives on it, and gone when the server is back, or deleted."""
    for end in ("unshelve", "delete"):
        server = await cloud.ready_server("shelved")
        assert (await act(cloud, server, "shelve")).status == 202
        await cloud.settled(server)
        (image,) = await images_of(cloud, server)
        assert (image["name"], image["status"], image["protected"]) == ("shelved-shelved", "active", True)
        guest = cloud.hypervisor.guest(server)
        assert guest.blank != cloud.keeps
        refused = await cloud.ask("member", "DELETE", f"/images/{image['id']}", api="/image/v2")
        assert refused.status == 403
        if end == "delete":
            assert (await act(cloud, server, "forceDelete")).status == 202
            assert await cloud.settled(server) == {}
        else:
            assert (await act(cloud, server, "unshelve")).status == 202
            assert (await cloud.settled(server))["status"] == "ACTIVE"
            made_of = cloud.image if cloud.keeps else image["id"]
            assert cloud.hypervisor.guest(server).disk_image == made_of
            assert (await cloud.settled(server))["image"]["id"] == cloud.image
        assert await images_of(cloud, server) == []
        data = cloud.data / "images" / image["id"]

        async def removed(data: Path = data) -> bool | None:
            return None if data.exists() else True

        # By a thread, once it is durable.
        await until(removed, seconds=10, says=lambda: "the image's data stay")


async def test_offloading_is_for_admins(cloud: Cloud) -> None:
    """Where it does not follow the shelving by itself, an admin says when."""
    server = await cloud.ready_server("offloaded")
    assert (await act(cloud, server, "shelve")).status == 202
    await cloud.settled(server)
    answer = await act(cloud, server, "shelveOffload", by="admin")
    if not cloud.keeps:
        sentence = f"Cannot 'shelveOffload' instance {server} while it is in vm_state shelved_offloaded"
        assert answer.fault == (409, "conflictingRequest", sentence)
        return
    assert answer.status == 202
    offloaded = await cloud.settled(server)
    assert offloaded["status"] == "SHELVED_OFFLOADED"
    assert (offloaded["OS-EXT-SRV-ATTR:host"], offloaded["hostId"]) == (None, "")


async def test_deleted_for_a_while(cloud: Cloud) -> None:
    """Where deleted servers are kept: off, asked nothing twice, and restored; only a forceDelete removes it."""
    server = await cloud.ready_server("deleted")
    assert (await cloud.ask("member", "DELETE", f"/servers/{server}")).status == 204
    deleted = await cloud.settled(server)
    if not cloud.keeps:
        assert deleted == {}
        return
    assert (deleted["OS-EXT-STS:vm_state"], deleted["status"]) == ("soft-delete", "SOFT_DELETED")
    assert deleted["OS-SRV-USG:terminated_at"] is not None
    assert cloud.hypervisor.guest(server).observed is Observed.SHUTOFF
    again = await cloud.ask("member", "DELETE", f"/servers/{server}")
    sentence = f"Cannot 'delete' instance {server} while it is in vm_state soft-delete"
    assert again.fault == (409, "conflictingRequest", sentence)
    assert (await act(cloud, server, "restore")).status == 202
    restored = await cloud.settled(server)
    assert (restored["status"], restored["OS-SRV-USG:terminated_at"]) == ("ACTIVE", None)
    assert cloud.hypervisor.guest(server).observed is Observed.RUNNING
    listed = await cloud.ask("member", "GET", f"/servers/{server}/os-instance-actions")
    assert [each["action"] for each in listed.body["instanceActions"]] == ["restore", "delete", "create"]


@pytest.mark.parametrize(
    ("wire", "event"),
    [
        ("rescue", "compute_rescue_instance"),
        ("createImage", "compute_snapshot_instance"),
        ("resize", "compute_prep_resize"),
        ("shelve", "compute_shelve_instance"),
    ],
)
async def test_events_have_novas_names(cloud: Cloud, wire: str, event: str) -> None:
    """Named after the method of Nova's compute manager."""
    server = await cloud.ready_server("events")
    options = {"createImage": {"name": "i"}, "resize": {"flavorRef": "2"}}.get(wire)
    answer = await act(cloud, server, wire, options)
    await cloud.settled(server)
    path = f"/servers/{server}/os-instance-actions/{answer.headers['x-openstack-request-id']}"
    shown = (await cloud.ask("member", "GET", path, microversion="2.104")).body["instanceAction"]
    # What follows by itself is part of what was asked for.
    events = [event] if cloud.keeps or wire != "shelve" else ["compute_shelve_offload_instance", event]
    assert (shown["action"], [each["event"] for each in shown["events"]]) == (wire, events)


async def make_image(cloud: Cloud, name: str, **members: Any) -> str:
    """Make a public image that has its data."""
    image = {"name": name, "disk_format": "qcow2", "container_format": "bare", "visibility": "public"}
    made = await cloud.ask("admin", "POST", "/images", image | members, api="/image/v2")
    assert made.status == 201, made.body
    image_id: str = made.body["id"]
    headers = {"x-auth-token": cloud.tokens["admin"], "content-type": "application/octet-stream"}
    path = f"/image/v2/images/{image_id}/file"
    assert (await cloud.send("PUT", path, content=b"an image", headers=headers)).status == 204
    return image_id


async def images_of(cloud: Cloud, server: str) -> list[dict[str, Any]]:
    """Return the images that were made of a server's disk."""
    answer = await cloud.ask("member", "GET", "/images?visibility=private", api="/image/v2")
    return [image for image in answer.body["images"] if image.get("instance_uuid") == server]
