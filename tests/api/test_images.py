"""Images: making, finding, changing, sharing and deleting them, and whose they are."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from stateward.store import images as store
from stateward.store.engine import Database
from tests.api.embedded import Embedded, embedded
from tests.api.images import DATA, FORMATS, V2, make, names, patch


@pytest_asyncio.fixture
async def world(database: Database, tmp_path: Path) -> AsyncIterator[Embedded]:
    async with embedded(database, tmp_path / "images") as world:
        yield world


def message(response: Any) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["message"]


async def test_an_image_is_made_and_shown(world: Embedded) -> None:
    demo = await world.demo()
    response = await world.client.post(
        f"{V2}/images",
        json=FORMATS | {"name": "one", "tags": ["b", "a"], "min_ram": 64, "os_shutdown_timeout": "30"},
        headers=demo,
    )

    made = response.json()
    address = f"/v2/images/{made['id']}"
    assert response.status_code == 201
    assert response.headers["location"] == f"http://cloud.test:8774/image{address}"
    assert made == {
        "id": made["id"],
        "name": "one",
        "status": "queued",
        "visibility": "shared",
        "owner": await world.id_of("project", "demo"),
        "size": None,
        "virtual_size": None,
        "checksum": None,
        "os_hash_algo": None,
        "os_hash_value": None,
        "disk_format": "raw",
        "container_format": "bare",
        "min_disk": 0,
        "min_ram": 64,
        "protected": False,
        "os_hidden": False,
        "tags": ["a", "b"],
        "created_at": "2027-01-15T08:00:00Z",
        "updated_at": "2027-01-15T08:00:00Z",
        "self": address,
        "file": f"{address}/file",
        "schema": "/v2/schemas/image",
        "os_shutdown_timeout": "30",
    }
    assert (await world.client.get(f"/image{address}", headers=demo)).json() == made


async def test_an_id_may_be_chosen_once(world: Embedded) -> None:
    demo = await world.demo()
    image_id = "01234567-89ab-cdef-0123-456789abcdef"

    answers = await asyncio.gather(
        *(world.client.post(f"{V2}/images", json={"id": image_id}, headers=demo) for _ in range(4))
    )

    assert sorted(answer.status_code for answer in answers) == [201, 409, 409, 409]


async def test_the_id_of_a_deleted_image_is_nobody_s(world: Embedded) -> None:
    """Hosts may have the deleted one's bytes under it: whoever got it would have them in their guests."""
    demo, admin = await world.demo(), await world.admin()
    made = await make(world, demo, visibility="private")
    path = f"{V2}/images"

    # Also in the moment at which it is deleted, and by its own project.
    first, *others = await asyncio.gather(
        world.client.delete(f"{path}/{made['id']}", headers=demo),
        *(world.client.post(path, json={"id": made["id"]}, headers=headers) for headers in (admin, demo) * 2),
    )
    late = await world.client.post(path, json={"id": made["id"]}, headers=admin)
    shown = await world.client.get(f"{path}/{made['id']}", headers=admin)

    assert first.status_code == 204
    said = f"Image ID {made['id']} already exists, or a deleted image had it: choose another one."
    assert [message(answer) for answer in (*others, late)] == [(409, said)] * 5
    assert shown.status_code == 404


async def test_a_patch_changes_adds_and_removes_in_order(world: Embedded) -> None:
    demo = await world.demo()
    made = await make(world, demo, name="one", a="1", b="2", tags=["t"])
    world.clock.time += 60.0

    response = await patch(
        world,
        demo,
        made["id"],
        {"op": "replace", "path": "/name", "value": "two"},
        {"op": "replace", "path": "/tags", "value": ["y", "x", "y"]},
        {"op": "add", "path": "/visibility", "value": "private"},
        {"op": "replace", "path": "/a", "value": "3"},
        {"op": "remove", "path": "/b"},
        {"op": "add", "path": "/b~1c~0d", "value": "4"},
        {"op": "replace", "path": "/os_hidden", "value": True},
    )

    expected = made | {
        "name": "two",
        "tags": ["x", "y"],
        "visibility": "private",
        "a": "3",
        "b/c~d": "4",
        "os_hidden": True,
        "updated_at": "2027-01-15T08:01:00Z",
    }
    del expected["b"]
    assert (response.status_code, response.json()) == (200, expected)
    assert (await world.client.get(f"{V2}/images/{made['id']}", headers=demo)).json() == expected


async def test_a_patch_has_its_own_media_type(world: Embedded) -> None:
    demo = await world.demo()
    made = await make(world, demo)

    response = await world.client.patch(f"{V2}/images/{made['id']}", json=[], headers=demo)

    assert response.status_code == 415


async def test_what_is_another_projects_does_not_exist(world: Embedded) -> None:
    admin, demo = await world.admin(), await world.demo()
    private = await make(world, admin, name="private", visibility="private")
    shared = await make(world, admin, name="shared", visibility="shared")
    public = await make(world, admin, name="public", visibility="public")
    community = await make(world, admin, name="community", visibility="community")
    own = await make(world, demo, name="own", visibility="private")

    assert sorted(await names(world, demo)) == ["own", "public"]
    assert await names(world, demo, "?visibility=community") == ["community"]
    assert sorted(await names(world, admin)) == ["community", "own", "private", "public", "shared"]
    statuses: dict[str, list[int]] = {}
    for image in (private, shared, public, community, own):
        path = f"{V2}/images/{image['id']}"
        responses = [
            await world.client.get(path, headers=demo),
            await world.client.get(f"{path}/file", headers=demo),
            await patch(world, demo, image["id"], {"op": "add", "path": "/x", "value": "y"}),
            await world.client.put(f"{path}/tags/t", headers=demo),
            await world.client.put(f"{path}/file", content=b"", headers=demo | DATA),
            await world.client.delete(path, headers=demo),
        ]
        statuses[image["name"]] = [response.status_code for response in responses]
    assert statuses == {
        "private": [404, 404, 404, 404, 404, 404],
        "shared": [404, 404, 404, 404, 404, 404],
        "public": [200, 204, 403, 403, 403, 403],
        "community": [200, 204, 403, 403, 403, 403],
        "own": [200, 204, 200, 204, 204, 204],
    }


async def test_the_compute_api_sees_what_the_project_may_use(world: Embedded) -> None:
    made = await make(world, await world.demo(), name="one", visibility="private", a="b", tags=["t"])
    project = await world.id_of("project", "demo")

    def look(project_id: str, *, is_admin: bool) -> Any:
        return world.database.read(lambda c: store.get_visible(c, made["id"], project_id, is_admin))

    own = await look(project, is_admin=False)
    assert own is not None
    assert (own.id, own.name, own.properties, own.tags) == (made["id"], "one", {"a": "b"}, ("t",))
    assert await look("another", is_admin=False) is None
    assert await look("another", is_admin=True) == own


async def test_who_only_reads_changes_nothing(world: Embedded) -> None:
    admin = await world.admin()
    user = await world.make("user", admin, name="reader", password="p")
    await world.grant(user["id"], await world.id_of("project", "demo"), "reader")
    made = await make(world, await world.demo(), name="one")
    reader = await world.log_in("reader", "p", "demo")
    path = f"{V2}/images/{made['id']}"

    assert await names(world, reader) == ["one"]
    responses = [
        await world.client.post(f"{V2}/images", json={}, headers=reader),
        await patch(world, reader, made["id"], {"op": "add", "path": "/x", "value": "y"}),
        await world.client.put(f"{path}/tags/t", headers=reader),
        await world.client.put(f"{path}/file", content=b"", headers=reader | DATA),
        await world.client.post(f"{path}/members", json={"member": "x"}, headers=reader),
        await world.client.delete(path, headers=reader),
    ]
    assert [response.status_code for response in responses] == [403] * 6


async def test_a_token_for_no_project_sees_no_images(world: Embedded) -> None:
    unscoped = await world.log_in("demo", "a password for demo", None)

    assert message(await world.client.get(f"{V2}/images", headers=unscoped)) == (
        401,
        "The token is not for a project. Ask for one that is.",
    )


async def test_lists_are_filtered(world: Embedded) -> None:
    demo = await world.demo()
    await make(world, demo, name="a", tags=["x", "y"], os_distro="debian", protected=True)
    await make(world, demo, name="b", tags=["x"], os_distro="Debian", visibility="private")
    hidden = await make(world, demo, name="c", disk_format="qcow2", os_hidden=True)

    expected = {
        "?name=a": ["a"],
        "?status=queued": ["a", "b"],
        "?status=active": [],
        "?visibility=private": ["b"],
        "?visibility=all": ["a", "b"],
        f"?owner={await world.id_of('project', 'demo')}": ["a", "b"],
        "?owner=another": [],
        "?tag=x": ["a", "b"],
        "?tag=x&tag=y": ["a"],
        "?tag=X": [],
        "?os_distro=debian": ["a"],
        "?os_distro=debian&tag=z": [],
        "?protected=true": ["a"],
        "?os_hidden=true": ["c"],
        "?os_hidden=True&disk_format=qcow2": ["c"],
        f"?os_hidden=1&id={hidden['id']}": ["c"],
        "?name=in:a,c,x": ["a"],
        '?name=in:"b",a&status=in:queued': ["a", "b"],
        "?disk_format=in:qcow2&os_hidden=1": ["c"],
        "?status=in:active,killed": [],
        "?id=in:": [],
        "?owner=in:another": [],
        "?size_min=1": [],
        "?limit=0": [],
    }
    found = {query: sorted(await names(world, demo, query)) for query in expected}
    assert found == expected


@pytest.mark.parametrize(
    "sort",
    [
        "",
        "sort=name:asc",
        "sort=name:desc,created_at:asc",
        "sort_key=size&sort_dir=asc",
        "sort_key=name&sort_key=id&sort_dir=asc&sort_dir=desc",
        "sort_key=disk_format&sort_key=name&sort_dir=desc",
        "sort=id",
    ],
)
async def test_pages_leave_nothing_out_and_repeat_nothing(world: Embedded, sort: str) -> None:
    demo = await world.demo()
    for number in range(7):
        world.clock.time += number % 2
        await make(
            world, demo, name=None if number == 3 else f"n{number % 3}", disk_format=("raw", None)[number % 2]
        )
    whole = (await world.client.get(f"{V2}/images?{sort}", headers=demo)).json()["images"]
    seen: list[dict[str, Any]] = []
    address: str | None = f"/v2/images?{sort}&limit=3".replace("?&", "?")
    sizes: list[int] = []
    while address is not None:
        page = (await world.client.get(f"/image{address}", headers=demo)).json()
        seen += page["images"]
        sizes.append(len(page["images"]))
        address = page.get("next")

    assert sizes == [3, 3, 1]
    assert seen == whole
    assert len({image["id"] for image in seen}) == 7


async def test_lists_are_sorted_as_asked(world: Embedded) -> None:
    demo = await world.demo()
    for name in ("b", "c", "a"):
        world.clock.time += 1.0
        await make(world, demo, name=name)

    assert await names(world, demo) == ["a", "c", "b"]
    assert await names(world, demo, "?sort=name:asc") == ["a", "b", "c"]
    assert await names(world, demo, "?sort_key=created_at&sort_dir=asc") == ["b", "c", "a"]


async def test_what_is_protected_is_not_deleted(world: Embedded) -> None:
    demo = await world.demo()
    made = await make(world, demo, protected=True)
    path = f"{V2}/images/{made['id']}"

    refused = await world.client.delete(path, headers=demo)
    await patch(world, demo, made["id"], {"op": "replace", "path": "/protected", "value": False})
    deleted = await world.client.delete(path, headers=demo)
    gone = await world.client.delete(path, headers=demo)

    assert message(refused) == (403, f"Image {made['id']} is protected and cannot be deleted.")
    assert deleted.status_code == 204
    assert message(gone) == (404, f"No image found with ID {made['id']}")


async def test_tags_are_given_and_taken(world: Embedded) -> None:
    demo = await world.demo()
    made = await make(world, demo, tags=["a"])
    path = f"{V2}/images/{made['id']}/tags"

    statuses = [
        (await world.client.put(f"{path}/b%20c", headers=demo)).status_code,
        (await world.client.put(f"{path}/b%20c", headers=demo)).status_code,
        (await world.client.delete(f"{path}/a", headers=demo)).status_code,
        (await world.client.delete(f"{path}/a", headers=demo)).status_code,
        (await world.client.put(f"{path}/{'t' * 256}", headers=demo)).status_code,
    ]
    await asyncio.gather(*(world.client.put(f"{path}/t{number}", headers=demo) for number in range(5)))

    shown = await world.client.get(f"{V2}/images/{made['id']}", headers=demo)
    assert statuses == [204, 204, 204, 404, 400]
    assert shown.json()["tags"] == ["b c", "t0", "t1", "t2", "t3", "t4"]


async def test_a_shared_image_is_offered_accepted_and_taken_back(world: Embedded) -> None:
    admin, demo = await world.admin(), await world.demo()
    project = await world.id_of("project", "demo")
    made = await make(world, admin, name="one", visibility="shared")
    image, path = f"{V2}/images/{made['id']}", f"{V2}/images/{made['id']}/members"
    assert (await world.client.get(image, headers=demo)).status_code == 404

    offered = await world.client.post(path, json={"member": project}, headers=admin)
    again = await world.client.post(path, json={"member": project}, headers=admin)
    pending = [await names(world, demo), await names(world, demo, "?member_status=pending")]
    seen = await world.client.get(image, headers=demo)
    accepted = await world.client.put(f"{path}/{project}", json={"status": "accepted"}, headers=demo)
    listed = [await names(world, demo), await names(world, demo, "?member_status=all&visibility=shared")]
    members = await world.client.get(path, headers=demo)
    shown = await world.client.get(f"{path}/{project}", headers=demo)
    not_theirs = await world.client.post(path, json={"member": "x"}, headers=demo)
    odd = await world.client.put(f"{path}/{project}", json={"status": "perhaps"}, headers=demo)
    missing = await world.client.put(f"{path}/x", json={"status": "accepted"}, headers=admin)
    taken = await world.client.delete(f"{path}/{project}", headers=admin)

    assert offered.json() == {
        "image_id": made["id"],
        "member_id": project,
        "status": "pending",
        "created_at": "2027-01-15T08:00:00Z",
        "updated_at": "2027-01-15T08:00:00Z",
        "schema": "/v2/schemas/member",
    }
    assert again.status_code == 409
    assert (pending, seen.status_code) == ([[], ["one"]], 200)
    assert accepted.json() == shown.json() == offered.json() | {"status": "accepted"}
    assert listed == [["one"], ["one"]]
    assert members.json()["members"] == [shown.json()]
    assert [one.status_code for one in (not_theirs, odd, missing, taken)] == [403, 400, 404, 204]
    assert (await world.client.get(image, headers=demo)).status_code == 404


async def test_only_shared_images_have_members(world: Embedded) -> None:
    demo = await world.demo()
    made = await make(world, demo, visibility="private")

    response = await world.client.post(
        f"{V2}/images/{made['id']}/members", json={"member": "x"}, headers=demo
    )

    assert message(response) == (403, "Only shared images have members.")


async def test_the_service_describes_itself(world: Embedded) -> None:
    demo = await world.demo()
    versions = await world.client.get("/image/")
    plainly = await world.client.get("/image/versions")
    schema = (await world.client.get(f"{V2}/schemas/image", headers=demo)).json()
    made = await make(world, demo)

    assert (versions.status_code, plainly.status_code) == (300, 200)
    assert versions.json() == plainly.json()
    assert versions.json()["versions"][0] == {
        "id": "v2.7",
        "status": "CURRENT",
        "links": [{"rel": "self", "href": "http://cloud.test:8774/image/v2/"}],
    }
    assert schema["name"] == "image"
    assert schema["properties"].keys() == made.keys()
    for name in ("images", "member", "members"):
        shown = (await world.client.get(f"{V2}/schemas/{name}", headers=demo)).json()
        assert shown["name"] == name
    assert (await world.client.get(f"{V2}/schemas/nothing", headers=demo)).status_code == 404
    methods = (await world.client.get(f"{V2}/info/import", headers=demo)).json()["import-methods"]
    stores = (await world.client.get(f"{V2}/info/stores", headers=demo)).json()["stores"]
    assert (methods["value"], stores) == ([], [{"id": "folder", "default": "true"}])
    assert (await world.client.get(f"{V2}/tasks", headers=demo)).status_code == 404
    assert (await world.client.put(f"{V2}/images", headers=demo)).status_code == 405
