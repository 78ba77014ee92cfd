"""An instance's whole life on a real guest, told over HTTP: what its owner sees, what it says, what is left behind.

One story, because every boot of a guest on processors in software takes seconds; the guest counts its boots on its
disk, so that each of them says which disk it is.
"""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any, Final

import pytest

from stateward.agent.libvirt.daemons import LibvirtPlace
from stateward.domain.actions import ACTIONS, Role
from stateward.domain.networks import Network
from stateward.guest.build import TINY_GUEST_PROPERTIES, GuestFiles
from tests.guests.conftest import TinyImages
from tests.harness import Admin, Answer, ServerProcess, until
from tests.wires import options

pytestmark = [pytest.mark.guests, pytest.mark.slow, pytest.mark.asyncio, pytest.mark.timeout(600)]

#: Seconds that a loaded machine may take for one step of the story.
PATIENCE: Final = 120.0
KEY: Final = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAnllVNRYTa38wN8PtipKvXsNfbRAa8xZYCfjQwpM0ym me@here"
SCRIPT: Final = b"#!/bin/sh\necho said by the user of $(hostname)\n"
ASKED: Final = "stateward-guest: power button pressed"
#: What the guest says of its two flavors; MiB of its disk.
SMALL: Final = ("stateward-guest: 1 processors,", "stateward-guest: disk vda 1024 MiB")
MEDIUM: Final = ("stateward-guest: 2 processors,", "stateward-guest: disk vda 2048 MiB")
NOTHING_USED: Final = {"vcpus_used": 0, "memory_mb_used": 0, "local_gb_used": 0}


class Story:
    """One server's owner, and the host it is on."""

    def __init__(self, admin: Admin, owner: Admin, host: Path) -> None:
        self.admin = admin
        self.owner = owner
        self.host = host
        self.id = ""
        #: Lines of the console that were read before.
        self._heard = 0

    async def act(self, name: str, body: Any = None, *, status: int = 202) -> Answer:
        """Ask for an action."""
        answer = await self.owner.ask("POST", f"/compute/v2.1/servers/{self.id}/action", {name: body})
        assert answer.status == status, answer
        return answer

    async def show(self) -> dict[str, Any]:
        """Look at the server as an admin does."""
        answer = await self.admin.ask("GET", f"/compute/v2.1/servers/{self.id}")
        assert answer.status == 200, answer
        server: dict[str, Any] = answer.body["server"]
        return server

    async def becomes(self, status: str, flavor: str, power: int = 1) -> dict[str, Any]:
        """Wait until nothing is in flight; the server is then so, and has no fault."""
        last = dict[str, Any]()

        async def look() -> dict[str, Any] | None:
            last.update(await self.show())
            return last if last["OS-EXT-STS:task_state"] is None else None

        server = await until(look, seconds=PATIENCE, says=lambda: f"{last}\n{self.owner.server.tail()}")
        assert server.get("fault") is None, server["fault"]
        seen = (server["status"], server["flavor"]["original_name"], server["OS-EXT-STS:power_state"])
        assert seen == (status, flavor, power)
        return server

    async def console(self) -> list[str]:
        """Return all that the guest said."""
        answer = await self.act("os-getConsoleOutput", {}, status=200)
        output: str = answer.body["output"]
        return output.splitlines()

    async def hears(self, *lines: str, last: str = "stateward-guest: up") -> list[str]:
        """Wait until the guest says lines, anew, that begin like these, in this order; return all that it said.

        The last one alone would not do: a guest that is shut down may say it as late as that.
        """
        said = list[str]()
        wanted = (*lines, last)

        async def look() -> bool | None:
            everything = await self.console()
            said[:] = everything[self._heard :]
            rest = iter(said)
            return True if all(any(line.startswith(each) for line in rest) for each in wanted) else None

        await until(look, seconds=PATIENCE, says=lambda: f"not {wanted} in {said}")
        self._heard += len(said)
        return said

    def forgets(self) -> None:
        """Expect a new console: its file went with the host's other files."""
        self._heard = 0

    async def used(self) -> dict[str, int]:
        """Return what is claimed on the host, besides what is kept for itself."""
        answer = await self.admin.ask(
            "GET", "/compute/v2.1/os-hypervisors/detail", openstack_api_version="compute 2.87"
        )
        (node,) = answer.body["hypervisors"]
        return {name: node[name] for name in NOTHING_USED}

    async def images(self) -> dict[str, dict[str, Any]]:
        """Return the project's own images by name."""
        answer = await self.owner.ask("GET", f"/image/v2/images?owner={self.owner.login.project}")
        return {image["name"]: image for image in answer.body["images"]}

    async def image_is_active(self, image_id: str) -> dict[str, Any]:
        """Wait until an image has its data."""
        last = dict[str, Any]()

        async def look() -> dict[str, Any] | None:
            last.update((await self.owner.ask("GET", f"/image/v2/images/{image_id}")).body)
            return last if last["status"] == "active" else None

        return await until(look, seconds=PATIENCE, says=lambda: f"{last}\n{self.owner.server.tail()}")

    def files(self) -> list[str]:
        """Return the names in the server's folder on the host; none when there is no folder."""
        folder = self.host / "instances" / self.id
        return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []

    def copies(self) -> list[str]:
        """Return the copies of disks that are left on the host."""
        folder = self.host / "snapshots"
        return [path.name for path in folder.iterdir()] if folder.is_dir() else []

    async def actions(self) -> list[str]:
        """Return the names of what was done, newest first."""
        answer = await self.owner.ask("GET", f"/compute/v2.1/servers/{self.id}/os-instance-actions")
        return [each["action"] for each in answer.body["instanceActions"]]


async def upload(admin: Admin, files: GuestFiles) -> str:
    """Make the tiny guest's images, and return the one to boot."""
    kernel = await admin.make_image("kernel", {}, data=files.kernel.read_bytes())
    ramdisk = await admin.make_image("ramdisk", {}, data=files.ramdisk.read_bytes())
    properties = {**TINY_GUEST_PROPERTIES, "kernel_id": kernel, "ramdisk_id": ramdisk}
    return await admin.make_image("tiny", properties, kind="qcow2", data=files.disk.read_bytes())


def server_body(name: str, image: str, flavor: str, **members: Any) -> dict[str, Any]:
    """Describe a new server."""
    return {"server": {"name": name, "imageRef": image, "flavorRef": flavor, **members}}


async def create(story: Story, body: dict[str, Any]) -> str:
    """Ask for a server and return its id."""
    answer = await story.owner.ask("POST", "/compute/v2.1/servers", body)
    assert answer.status == 202, answer
    server_id: str = answer.body["server"]["id"]
    return server_id


async def test_the_life_of_an_instance(
    place: LibvirtPlace, network: Network, images: TinyImages, tmp_path: Path
) -> None:
    """From its creation to its end, every way that its owner has."""
    config = tmp_path / "settings.toml"
    config.write_text(
        "[placement]\nreserved_memory = 0\n[reclaim]\ninterval = 3600\n"
        f'[[host]]\nname = "one"\nuri = "{place.uri}"\n[[network]]\nname = "lab"\nsource = "{network.source}"\n'
    )
    async with ServerProcess(tmp_path, ("--config", str(config))) as server:
        admin = Admin(server, await server.log_in("admin"))
        owner = Admin(server, await server.log_in("demo"))
        await admin.hosts_up()
        image = await upload(admin, images.files)
        story = Story(admin, owner, server.data / "hosts" / "one")
        await _created(story, image)
        await _locked(story)
        await _resized(story)
        await _rescued(story)
        await _shelved(story)
        await _rebuilt(story, image)
        await _copied(story)
        await _deleted(story)
        await server.stop()
        assert server.faults() == []


async def _created(story: Story, image: str) -> None:
    """It has its key, its user data, and the address that is shown."""
    key = {"keypair": {"name": "key", "public_key": KEY, "type": "ssh"}}
    assert (await story.owner.ask("POST", "/compute/v2.1/os-keypairs", key)).status == 201
    user_data = base64.b64encode(SCRIPT).decode()
    networks = await story.owner.ask("GET", "/network/v2.0/networks?name=lab")
    (lab,) = networks.body["networks"]
    more = {"key_name": "key", "user_data": user_data, "networks": [{"uuid": lab["id"]}]}
    story.id = await create(story, server_body("life", image, "small", **more))
    await story.becomes("ACTIVE", "small")
    said = await story.hears(
        *("stateward-guest: boot 1", *SMALL, "stateward-guest: hostname life"),
        *(f"stateward-guest: ssh key {KEY}", "stateward-guest: address", "said by the user of life"),
        last="stateward-guest: user data ended with 0",
    )
    (address,) = [line.rpartition(" ")[2] for line in said if line.startswith("stateward-guest: address")]

    async def shown() -> list[str] | None:
        ports = (await story.show())["addresses"].get("lab", [])
        return [port["addr"] for port in ports] or None

    assert await until(shown, seconds=PATIENCE, says=lambda: "no address is shown") == [address]
    assert await story.used() == {"vcpus_used": 1, "memory_mb_used": 256, "local_gb_used": 1}


async def _locked(story: Story) -> None:
    """Nothing that a lock guards is done: the guest hears nothing of it, and nothing is written down."""
    await story.act("lock", {"locked_reason": "not now"})
    before = await story.show()
    guarded = [row for row in ACTIONS if row.wire and row.guarded and row.policy.role is Role.MEMBER]
    wires = {"resize", "rescue", "rebuild", "shelve", "unshelve", "restore", "forceDelete"}
    assert wires < {row.wire for row in guarded}
    locked = re.compile(rf"Instance {story.id} is locked\. It was locked by user \w+ at [0-9TZ:-]+: not now")
    for row in guarded:
        body = options(row, image=before["image"]["id"], flavor="medium")
        refused = await story.act(str(row.wire), body, status=409)
        assert locked.fullmatch(refused.body["conflictingRequest"]["message"])
    deleted = await story.owner.ask("DELETE", f"/compute/v2.1/servers/{story.id}")
    assert deleted.status == 409, deleted
    assert await story.show() == before
    assert await story.actions() == ["lock", "create"]
    assert ASKED not in await story.console()
    await story.act("unlock")


async def _resized(story: Story) -> None:
    """There and back, with the disk as it was; then there for good."""
    await story.act("resize", {"flavorRef": "medium"})
    await story.becomes("VERIFY_RESIZE", "medium")
    await story.hears(ASKED, "stateward-guest: powered off", "stateward-guest: boot 2", *MEDIUM)
    assert await story.used() == {"vcpus_used": 3, "memory_mb_used": 768, "local_gb_used": 3}
    assert [name for name in story.files() if "kept" in name]

    await story.act("revertResize")
    await story.becomes("ACTIVE", "small")
    await story.hears(ASKED, "stateward-guest: powered off", "stateward-guest: boot 2", *SMALL)
    assert await story.used() == {"vcpus_used": 1, "memory_mb_used": 256, "local_gb_used": 1}
    assert not [name for name in story.files() if "kept" in name]

    await story.act("resize", {"flavorRef": "medium"})
    await story.becomes("VERIFY_RESIZE", "medium")
    await story.hears(ASKED, "stateward-guest: powered off", "stateward-guest: boot 3", *MEDIUM)
    await story.act("confirmResize", status=204)
    await story.becomes("ACTIVE", "medium")
    assert await story.used() == {"vcpus_used": 2, "memory_mb_used": 512, "local_gb_used": 2}
    assert not [name for name in story.files() if "kept" in name]


async def _rescued(story: Story) -> None:
    """Another system, with its own disk as the second one; and back to it."""
    await story.act("rescue", {"adminPass": "secret"}, status=200)
    await story.becomes("RESCUE", "medium")
    await story.hears(ASKED, "stateward-guest: boot 1", "stateward-guest: disk vdb 2048 MiB")
    await story.act("unrescue")
    await story.becomes("ACTIVE", "medium")
    await story.hears(ASKED, "stateward-guest: boot 4", *MEDIUM)
    assert not [name for name in story.files() if "rescue" in name]


async def _shelved(story: Story) -> None:
    """Its host is freed at once; on the way back it has the data of its disk, its address, and no image is left."""
    before = await story.show()
    # The log goes with the host's other files: what it said last is read through what was open before.
    with (story.host / "instances" / story.id / "console.log").open("rb") as log:
        log.seek(0, 2)
        await story.act("shelve")
        server = await story.becomes("SHELVED_OFFLOADED", "medium", power=0)
        said = log.read().decode()
    assert ASKED in said
    assert "stateward-guest: powered off" in said
    assert (server["OS-EXT-SRV-ATTR:host"], server["hostId"]) == (None, "")
    assert await story.used() == NOTHING_USED
    assert (story.files(), story.copies()) == ([], [])
    shelved = (await story.images())["life-shelved"]
    assert (shelved["status"], shelved["protected"]) == ("active", True)
    assert (await story.actions())[0] == "shelve"

    story.forgets()
    await story.act("unshelve")
    server = await story.becomes("ACTIVE", "medium")
    await story.hears("stateward-guest: boot 5", *MEDIUM)
    assert server["OS-EXT-SRV-ATTR:host"] == "one"
    assert (server["image"], server["addresses"]) == (before["image"], before["addresses"])
    assert await story.images() == {}
    assert await story.used() == {"vcpus_used": 2, "memory_mb_used": 512, "local_gb_used": 2}


async def _rebuilt(story: Story, image: str) -> None:
    """A fresh disk; who it is, and what it was told, stay."""
    before = await story.show()
    await story.act("rebuild", {"imageRef": image})
    server = await story.becomes("ACTIVE", "medium")
    await story.hears(
        *(ASKED, "stateward-guest: boot 1", *MEDIUM, "stateward-guest: hostname life"),
        *(f"stateward-guest: ssh key {KEY}", "said by the user of life"),
        last="stateward-guest: user data ended with 0",
    )
    same = ("id", "name", "addresses", "image", "key_name", "flavor", "OS-EXT-SRV-ATTR:user_data")
    assert {name: server[name] for name in same} == {name: before[name] for name in same}


async def _copied(story: Story) -> None:
    """Into an image that boots with the data of the disk, and into backups, of which the rotation keeps one."""
    await story.act("os-stop")
    await story.becomes("SHUTOFF", "medium", power=4)
    await story.hears(ASKED, last="stateward-guest: powered off")
    answer = await story.act("createImage", {"name": "snapshot"})
    snapshot = await story.image_is_active(answer.body["image_id"])
    # The image is there a moment before its operation has ended.
    await story.becomes("SHUTOFF", "medium", power=4)
    assert (snapshot["disk_format"], snapshot["min_disk"], snapshot["image_type"]) == ("qcow2", 2, "snapshot")
    for name in ("monday", "tuesday"):
        body = {"name": name, "backup_type": "daily", "rotation": 1}
        await story.image_is_active((await story.act("createBackup", body)).body["image_id"])
        await story.becomes("SHUTOFF", "medium", power=4)
    assert sorted(await story.images()) == ["snapshot", "tuesday"]
    assert story.copies() == []

    other = Story(story.admin, story.owner, story.host)
    other.id = await create(other, server_body("twin", snapshot["id"], "medium", networks="none"))
    await other.becomes("ACTIVE", "medium")
    await other.hears("stateward-guest: boot 2", *MEDIUM)
    await other.act("forceDelete")

    async def gone() -> bool | None:
        shown = await other.admin.ask("GET", f"/compute/v2.1/servers/{other.id}")
        return True if shown.status == 404 else None

    await until(gone, seconds=PATIENCE, says=other.owner.server.tail)
    assert other.files() == []
    assert await story.used() == {"vcpus_used": 2, "memory_mb_used": 512, "local_gb_used": 2}


async def _deleted(story: Story) -> None:
    """For a while, from which it comes back with its data; and then for good."""
    await _soft_deleted(story)
    assert await _listed(story, "") == []
    assert await _listed(story, "?status=SOFT_DELETED") == [story.id]
    await story.act("restore")
    server = await story.becomes("ACTIVE", "medium")
    assert server["OS-SRV-USG:terminated_at"] is None
    await story.hears("stateward-guest: boot 2", *MEDIUM)

    await _soft_deleted(story)
    await story.hears(ASKED, last="stateward-guest: powered off")
    await story.act("forceDelete")

    async def gone() -> bool | None:
        shown = await story.admin.ask("GET", f"/compute/v2.1/servers/{story.id}")
        return True if shown.status == 404 else None

    await until(gone, seconds=PATIENCE, says=story.owner.server.tail)
    assert (story.files(), story.copies()) == ([], [])
    assert await story.used() == NOTHING_USED


async def _soft_deleted(story: Story) -> None:
    answer = await story.owner.ask("DELETE", f"/compute/v2.1/servers/{story.id}")
    assert answer.status == 204, answer
    server = await story.becomes("SOFT_DELETED", "medium", power=4)
    assert server["OS-SRV-USG:terminated_at"] is not None


async def _listed(story: Story, query: str) -> list[str]:
    answer = await story.owner.ask("GET", f"/compute/v2.1/servers{query}")
    assert answer.status == 200, answer
    return [server["id"] for server in answer.body["servers"]]
