"""Adopting and giving back over HTTP, on a whole server with a simulated host: every record, and the guest itself."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from stateward.agent.simulated.guests import Origin, SimulatedGuest
from stateward.domain.records import GuestSpec, ImageFacts
from stateward.domain.states import Observed
from stateward.domain.strangers import NovaFacts
from tests.cloud import Answer, Cloud, running_cloud

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cloud]:
    """Run a server on its own database."""
    async with running_cloud(tmp_path_factory.mktemp("cloud") / "data") as cloud:
        yield cloud


@pytest_asyncio.fixture(loop_scope="module")
async def cloud(served: Cloud) -> AsyncIterator[Cloud]:
    """Give the server, and take every server and every guest away afterwards."""
    yield served
    listed = await served.ask("admin", "GET", "/servers?all_tenants=1")
    for server in listed.body["servers"]:
        assert (await served.ask("admin", "DELETE", f"/servers/{server['id']}")).status == 204
        assert await served.settled(server["id"]) == {}
    for left in served.hypervisor.guests():
        served.hypervisor.change(left.id, lambda found, _now: SimulatedGuest(id=found.id))


def guest(name: str) -> GuestSpec:
    """Describe a guest that somebody makes without Stateward."""
    return GuestSpec(
        instance_id=str(uuid.uuid4()),
        domain_name=name,
        display_name="",
        project_id="",
        vcpus=2,
        memory=96,
        disk=3,
        image=ImageFacts(id="theirs", disk_format="raw"),
    )


async def native(
    cloud: Cloud, method: str, path: str, body: Any = msgspec.UNSET, by: str = "admin"
) -> Answer:
    """Ask Stateward's own API."""
    return await cloud.ask(by, method, path, body, api="/v1")


async def adopt(cloud: Cloud, status: int = 202, **wanted: Any) -> list[dict[str, Any]]:
    """Adopt, wait until that is done, and return what is said of each."""
    answer = await native(cloud, "POST", "/adoptions", {"host": "h", **wanted})
    assert answer.status == status, answer.body
    found: list[dict[str, Any]] = answer.body["guests"]
    for each in found:
        if each["operation"] is not None:
            await cloud.settled(each["id"])
    return found


async def release(cloud: Cloud, server_id: str) -> None:
    """Give one back, and wait until it is."""
    answer = await native(cloud, "POST", f"/instances/{server_id}/release")
    assert answer.status == 202, answer.body
    assert await cloud.settled(server_id) == {}


async def used(cloud: Cloud) -> dict[str, int]:
    """Return what is claimed on the host."""
    answer = await native(cloud, "GET", "/hosts/h")
    claimed: dict[str, int] = answer.body["claimed"]
    return claimed


async def test_a_guest_is_listed_adopted_used_and_given_back(cloud: Cloud) -> None:
    """It runs through all of it, but for what is asked of it; nothing of it is left in the records of the host."""
    theirs = guest("web-1")
    cloud.hypervisor.make(theirs, autostart=True)
    run = cloud.hypervisor.guest(theirs.instance_id).run
    listed = (await native(cloud, "GET", "/strangers?host=h")).body
    assert listed == {
        "strangers": [
            {
                "host": "h",
                "id": theirs.instance_id,
                "name": "web-1",
                "state": "running",
                "vcpus": 2,
                "memory": 96,
                "disks": [{"device": "vda", "source": "", "size": 3 * 1024**3}],
                "interfaces": [],
                "autostart": True,
                "transient": False,
                "marked": False,
                "nova": None,
            }
        ],
        "unasked": [],
        "known": 0,
    }
    assert (await native(cloud, "GET", "/strangers?name=web-?")).body == listed
    (plan,) = await adopt(cloud, 200, dry_run=True)
    assert (plan["outcome"], plan["operation"], plan["becomes"]) == ("adopted", None, "active")
    assert (await native(cloud, "GET", "/strangers")).body == listed
    (done,) = await adopt(cloud, domains=["web-1"], project=cloud.projects["gold"])
    server = await cloud.settled(done["id"])
    assert (server["id"], server["name"], server["status"]) == (theirs.instance_id, "web-1", "ACTIVE")
    assert (server["tenant_id"], server["image"], server["addresses"]) == (cloud.projects["gold"], "", {})
    assert server["OS-EXT-SRV-ATTR:instance_name"] == "web-1"
    assert {name: server["flavor"][name] for name in ("original_name", "vcpus", "ram", "disk")} == {
        "original_name": "adopted",
        "vcpus": 2,
        "ram": 96,
        "disk": 3,
    }
    assert await used(cloud) == {"vcpus": 2, "memory": 96, "disk": 3}
    for query, known in (("", 1), ("?name=web-*", 1), ("?name=w", 0)):
        none: dict[str, Any] = {"strangers": [], "unasked": [], "known": known}
        assert (await native(cloud, "GET", f"/strangers{query}")).body == none
    assert cloud.hypervisor.guest(theirs.instance_id).run == run

    for action, state in (("os-stop", "SHUTOFF"), ("os-start", "ACTIVE"), ("suspend", "SUSPENDED")):
        assert (
            await cloud.ask("member", "POST", f"/servers/{done['id']}/action", {action: None})
        ).status == 202
        assert (await cloud.settled(done["id"]))["status"] == state
    await cloud.ask("member", "POST", f"/servers/{done['id']}/action", {"resume": None})
    assert (await cloud.settled(done["id"]))["status"] == "ACTIVE"
    run = cloud.hypervisor.guest(theirs.instance_id).run

    await release(cloud, done["id"])
    left = cloud.hypervisor.guest(theirs.instance_id)
    assert (left.run, left.observed, left.fence) == (run, Observed.RUNNING, 0)
    assert left.origin is not None
    assert (left.origin.adopted, left.origin.autostart) == (False, True)
    assert await used(cloud) == {"vcpus": 0, "memory": 0, "disk": 0}
    assert [each["id"] for each in (await native(cloud, "GET", "/strangers")).body["strangers"]] == [
        done["id"]
    ]


async def test_given_back_and_adopted_again_it_is_the_same_server(cloud: Cloud) -> None:
    """Its id stays, its fence goes on and its history is whole."""
    theirs = guest("web-1")
    cloud.hypervisor.make(theirs)
    for _ in range(2):
        (done,) = await adopt(cloud)
        assert (done["outcome"], done["operation"]["state"]) == ("adopted", "accepted")
        assert (await cloud.settled(done["id"]))["status"] == "ACTIVE"
        await release(cloud, done["id"])
    (done,) = await adopt(cloud)
    server = await cloud.settled(done["id"])
    assert (server["id"], server["status"]) == (theirs.instance_id, "ACTIVE")
    answer = await native(cloud, "GET", f"/operations?instance={done['id']}")
    actions = [(each["action"], each["state"]) for each in answer.body["operations"]]
    assert actions == [("adopt_guest", "succeeded")] + 2 * [
        ("release_guest", "succeeded"),
        ("adopt_guest", "succeeded"),
    ]
    assert cloud.hypervisor.guest(theirs.instance_id).fence == 5
    assert (await used(cloud))["vcpus"] == 2


@pytest.mark.parametrize(
    ("act", "status", "vm_state"),
    [
        ("pause", "PAUSED", "paused"),
        ("save", "SUSPENDED", "suspended"),
        ("destroy", "SHUTOFF", "stopped"),
        ("crash", "SHUTOFF", "stopped"),
    ],
)
async def test_the_state_is_the_one_it_is_found_in(
    cloud: Cloud, act: str, status: str, vm_state: str
) -> None:
    """And it stays so: the arbiter agrees with it."""
    theirs = guest("web-1")
    cloud.hypervisor.make(theirs)
    getattr(cloud.hypervisor, act)(theirs.instance_id)
    before = cloud.hypervisor.guest(theirs.instance_id).observed
    (done,) = await adopt(cloud)
    assert done["becomes"] == vm_state
    assert (await cloud.settled(done["id"]))["status"] == status
    assert cloud.hypervisor.guest(theirs.instance_id).observed is before


async def test_a_wreck_in_memory_is_left_to_a_person(cloud: Cloud) -> None:
    """It is recorded as ERROR, and not touched."""
    theirs = guest("web-1")
    cloud.hypervisor.make(theirs)
    cloud.hypervisor.crash(theirs.instance_id, kept=True)
    (done,) = await adopt(cloud)
    assert (await cloud.settled(done["id"]))["status"] == "ERROR"
    assert cloud.hypervisor.guest(theirs.instance_id).observed is Observed.CRASHED


async def test_what_nova_wrote_is_taken_up(cloud: Cloud) -> None:
    """Name and flavor; project and user where they are known here. What is asked for counts before it."""
    nova = NovaFacts(
        name="shop", project_id=cloud.projects["gold"], user_id=cloud.users["member"], flavor="m1.large"
    )
    cloud.hypervisor.make(guest("instance-1"), nova=nova)
    strange = msgspec.structs.replace(nova, project_id="f" * 32, user_id="e" * 32)
    cloud.hypervisor.make(guest("instance-2"), nova=strange)
    first, second = await adopt(cloud)
    shown = await cloud.settled(first["id"])
    assert (shown["name"], shown["flavor"]["original_name"]) == ("shop", "m1.large")
    assert (shown["tenant_id"], shown["user_id"]) == (cloud.projects["gold"], cloud.users["member"])
    shown = await cloud.settled(second["id"])
    token = await cloud.ask("admin", "GET", "/auth/projects", api="/identity/v3")
    own = {each["name"]: each["id"] for each in token.body["projects"]}["admin"]
    assert (shown["tenant_id"], shown["user_id"]) == (own, cloud.users["admin"])
    for each in (first, second):
        await release(cloud, each["id"])
        cloud.hypervisor.change(each["id"], lambda found, _now: SimulatedGuest(id=found.id))
    cloud.hypervisor.make(guest("instance-3"), nova=nova)
    (third,) = await adopt(cloud, project=cloud.projects["other"])
    assert (await cloud.settled(third["id"]))["tenant_id"] == cloud.projects["other"]


async def test_the_past_of_a_server_stays_its_project_s(cloud: Cloud) -> None:
    """Adopted again, it goes to whom it was before; to nobody else, who would be told and billed another's past."""
    theirs = guest("web-1")
    cloud.hypervisor.make(theirs)
    await adopt(cloud, project=cloud.projects["gold"])
    await release(cloud, theirs.instance_id)
    for dry_run, status in ((True, 200), (False, 202)):
        (refused,) = await adopt(cloud, status, project=cloud.projects["other"], dry_run=dry_run)
        assert (refused["outcome"], refused["operation"]) == ("refused", None)
        assert refused["why"].startswith(f"It was a server of project {cloud.projects['gold']} before")
    assert cloud.hypervisor.guest(theirs.instance_id).fence == 0
    (again,) = await adopt(cloud)
    assert (again["outcome"], again["project_id"]) == ("adopted", cloud.projects["gold"])
    assert (await cloud.settled(again["id"]))["tenant_id"] == cloud.projects["gold"]


async def test_locked_from_its_first_moment(cloud: Cloud) -> None:
    """The lock keeps it from its owner, and from being given back; released, that goes."""
    cloud.hypervisor.make(guest("web-1"))
    (done,) = await adopt(cloud, project=cloud.projects["gold"], lock="Moved in today.")
    server = await cloud.settled(done["id"])
    assert (server["locked"], server["locked_reason"]) == (True, "Moved in today.")
    stop = await cloud.ask("member", "POST", f"/servers/{done['id']}/action", {"os-stop": None})
    assert stop.status == 409
    # Elsewhere it does not bind the provider; what is given back would lose it without a word.
    refused = await native(cloud, "POST", f"/instances/{done['id']}/release")
    assert refused.status == 409
    assert "Moved in today." in refused.body["detail"]
    hold = {"reason": "A court.", "shutdown": "none"}
    assert (await native(cloud, "POST", f"/instances/{done['id']}/holds", hold)).status == 202
    refused = await native(cloud, "POST", f"/instances/{done['id']}/release")
    assert refused.status == 409
    assert "A court." in refused.body["detail"]
    assert (await cloud.settled(done["id"]))["status"] == "ACTIVE"
    for lock in (await native(cloud, "GET", f"/instances/{done['id']}/locks")).body["locks"]:
        kind = "holds" if lock["kind"] == "hold" else "locks"
        gone = await native(cloud, "DELETE", f"/instances/{done['id']}/{kind}/{lock['id']}")
        assert gone.status == 204
    await release(cloud, done["id"])


async def test_what_needs_its_disk_is_refused_and_deleting_gives_it_back(cloud: Cloud) -> None:
    """With a sentence that says why; a deleted one is off, and all of it is still there."""
    theirs = guest("web-1")
    cloud.hypervisor.make(theirs)
    (done,) = await adopt(cloud, project=cloud.projects["gold"])
    path = f"/servers/{done['id']}/action"
    for body in (
        {"rebuild": {"imageRef": cloud.image}},
        {"resize": {"flavorRef": "1"}},
        {"rescue": None},
        {"createImage": {"name": "copy"}},
        {"createBackup": {"name": "copy", "backup_type": "daily", "rotation": 1}},
        {"shelve": None},
    ):
        answer = await cloud.ask("member", "POST", path, body)
        assert answer.status == 409, body
        assert "its definition and disks are its owner's" in answer.fault[2]
    assert (await cloud.settled(done["id"]))["status"] == "ACTIVE"
    assert (await cloud.ask("member", "DELETE", f"/servers/{done['id']}")).status == 204
    assert await cloud.settled(done["id"]) == {}
    left = cloud.hypervisor.guest(theirs.instance_id)
    assert (left.observed, left.disk, left.spec) == (Observed.SHUTOFF, 3, theirs)
    assert left.origin is not None
    assert left.origin.adopted is False


async def test_what_was_made_here_is_not_given_back(cloud: Cloud) -> None:
    """It would leave a disk of ours behind."""
    server_id = await cloud.ready_server("web")
    refused = await native(cloud, "POST", f"/instances/{server_id}/release")
    assert refused.status == 409
    assert "was made here, not adopted" in refused.body["detail"]


async def test_two_adopt_at_once_and_again(cloud: Cloud) -> None:
    """One server comes of it, with one claim; the other is told that it is one."""
    cloud.hypervisor.make(guest("web-1"))
    both = await asyncio.gather(adopt(cloud), adopt(cloud))
    outcomes = sorted(each["outcome"] for found in both for each in found)
    assert outcomes in (["adopted", "known"], ["adopted"])
    (again,) = await adopt(cloud, domains=["web-1"])
    assert (again["outcome"], again["operation"], again["becomes"]) == ("known", None, "active")
    assert (await used(cloud))["vcpus"] == 2


async def test_a_request_with_a_key_is_done_once(cloud: Cloud) -> None:
    """Sent again, it gets the same answer, operation and all."""
    cloud.hypervisor.make(guest("web-1"))
    headers = {"x-auth-token": cloud.tokens["admin"], "idempotency-key": "one"}
    content = msgspec.json.encode({"host": "h", "domains": ["web-1"]})
    first = await cloud.send("POST", "/v1/adoptions", content=content, headers=headers)
    assert first.status == 202
    await cloud.settled(first.body["guests"][0]["id"])
    second = await cloud.send("POST", "/v1/adoptions", content=content, headers=headers)
    assert (second.status, second.body) == (202, first.body)
    assert second.headers["idempotency-replayed"] == "true"


async def test_a_mark_without_a_record_is_adopted_on_purpose_only(cloud: Cloud) -> None:
    """It may be another Stateward's. With the record lost, the server has the same id, and its fence goes on."""
    theirs = msgspec.structs.replace(guest("web-1"), project_id=cloud.projects["gold"])
    cloud.hypervisor.make(theirs)
    cloud.hypervisor.change(
        theirs.instance_id,
        lambda found, _now: msgspec.structs.replace(found, fence=7, origin=Origin(adopted=True)),
    )
    (refused,) = await adopt(cloud)
    assert (refused["outcome"], refused["operation"]) == ("refused", None)
    assert "bears Stateward's mark" in refused["why"]
    (done,) = await adopt(cloud, again=True)
    server = await cloud.settled(done["id"])
    assert (server["id"], server["tenant_id"], server["status"]) == (
        theirs.instance_id,
        cloud.projects["gold"],
        "ACTIVE",
    )
    assert cloud.hypervisor.guest(theirs.instance_id).fence == 8


async def test_a_host_that_cannot_be_asked(cloud: Cloud) -> None:
    """It is named, and nothing is concluded of its guests."""
    cloud.hypervisor.make(guest("web-1"))
    cloud.hypervisor.unavailable()
    found = (await native(cloud, "GET", "/strangers")).body
    assert (found["strangers"], [each["host"] for each in found["unasked"]]) == ([], ["h"])
    assert (await native(cloud, "POST", "/adoptions", {"host": "h"})).status == 503
    cloud.hypervisor.available()
    assert len(await adopt(cloud)) == 1


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ({}, 400, "host"),
        ({"host": "nowhere"}, 404, "Host 'nowhere' could not be found."),
        ({"host": "h", "domains": ["nobody"]}, 400, "no guest that is named, or has the id, 'nobody'"),
        ({"host": "h", "project": "nothing"}, 400, "There is no project 'nothing'."),
        ({"host": "h", "lock": ""}, 400, "lock"),
        ({"host": "h", "more": 1}, 400, "more"),
        ({"host": "h", "domains": "web"}, 400, "domains"),
    ],
)
async def test_what_cannot_be_meant(cloud: Cloud, body: dict[str, Any], status: int, says: str) -> None:
    """It is refused with a sentence, and nothing is adopted."""
    cloud.hypervisor.make(guest("web-1"))
    answer = await native(cloud, "POST", "/adoptions", body)
    assert answer.status == status
    assert says in answer.body["detail"]
    assert len((await native(cloud, "GET", "/strangers")).body["strangers"]) == 1


async def test_only_administrators(cloud: Cloud) -> None:
    """Nobody else hears of a host's guests, adopts one, or gives one back."""
    cloud.hypervisor.make(guest("web-1"))
    (done,) = await adopt(cloud, project=cloud.projects["gold"])
    for method, path, body in (
        ("GET", "/strangers", msgspec.UNSET),
        ("POST", "/adoptions", {"host": "h"}),
        ("POST", f"/instances/{done['id']}/release", msgspec.UNSET),
    ):
        assert (await native(cloud, method, path, body, by="member")).status == 403
    assert (await native(cloud, "GET", "/strangers?host=nowhere")).status == 404
    assert (await native(cloud, "POST", f"/instances/{uuid.uuid4()}/release")).status == 404


@pytest.mark.parametrize("seen", [Observed.RUNNING, Observed.PAUSED, Observed.SUSPENDED, Observed.SHUTOFF])
async def test_what_comes_back_after_it_was_given_back_is_given_back_again(
    cloud: Cloud, seen: Observed
) -> None:
    """As by a snapshot, a saved memory or a definition of its owner's, which has our mark from before.

    Only that is taken off: it runs on, and keeps its memory.
    """
    theirs = guest("web-1")
    cloud.hypervisor.make(theirs)
    (done,) = await adopt(cloud)
    await release(cloud, done["id"])
    before = cloud.hypervisor.guest(theirs.instance_id)
    changes = {
        Observed.PAUSED: cloud.hypervisor.pause,
        Observed.SUSPENDED: cloud.hypervisor.save,
        Observed.SHUTOFF: cloud.hypervisor.destroy,
    }
    if seen in changes:
        changes[seen](theirs.instance_id)
    cloud.hypervisor.change(
        theirs.instance_id,
        lambda found, _now: msgspec.structs.replace(found, origin=Origin(adopted=True)),
    )
    async with asyncio.timeout(30):
        while (cloud.hypervisor.guest(theirs.instance_id).origin or Origin()).adopted:  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0.005)
    left = cloud.hypervisor.guest(theirs.instance_id)
    assert (left.spec, left.disk, left.fence, left.observed) == (theirs, 3, 0, seen)
    assert left.run == (None if seen is Observed.SHUTOFF else before.run)
