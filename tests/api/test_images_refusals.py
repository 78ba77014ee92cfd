"""What the image service refuses. Refusing changes nothing, so the tests share one server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_asyncio
import sqlalchemy as sa

from stateward.store.engine import open_database
from tests.api.embedded import Embedded, database_of, embedded
from tests.api.images import V2, make, names, patch

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[sa.URL]:
    with database_of(request, tmp_path_factory.mktemp("images")) as url:
        yield url


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(url: sa.URL, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Embedded]:
    opened = open_database(url.render_as_string(hide_password=False))
    async with embedded(opened, tmp_path_factory.mktemp("folder") / "images") as world:
        yield world
    await opened.close()


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"op": "replace", "path": "/missing", "value": "x"}, 409),
        ({"op": "remove", "path": "/missing"}, 409),
        ({"op": "remove", "path": "/name"}, 403),
        ({"op": "replace", "path": "/id", "value": "x"}, 403),
        ({"op": "replace", "path": "/status", "value": "active"}, 403),
        ({"op": "replace", "path": "/size", "value": 1}, 403),
        ({"op": "replace", "path": "/os_hash_value", "value": "x"}, 403),
        ({"op": "replace", "path": "/locations", "value": []}, 403),
        ({"op": "replace", "path": "/visibility", "value": "public"}, 403),
        ({"op": "replace", "path": "/owner", "value": "another"}, 403),
        ({"op": "replace", "path": "/visibility", "value": "secret"}, 400),
        ({"op": "replace", "path": "/disk_format", "value": "floppy"}, 400),
        ({"op": "replace", "path": "/min_ram", "value": -1}, 400),
        ({"op": "replace", "path": "/min_ram", "value": 2**40}, 400),
        ({"op": "replace", "path": "/protected", "value": "yes"}, 400),
        ({"op": "add", "path": "/property", "value": 7}, 400),
        ({"op": "add", "path": "/property", "value": "nul \x00"}, 400),
        ({"op": "add", "path": f"/{'p' * 256}", "value": "x"}, 400),
        ({"op": "add", "path": "/a/b", "value": "x"}, 400),
        ({"op": "add", "path": "/", "value": "x"}, 400),
        ({"op": "add", "path": "name", "value": "x"}, 400),
        ({"op": "move", "path": "/name", "value": "x"}, 400),
        ({"path": "/name"}, 400),
    ],
)
async def test_a_patch_that_is_wrong_changes_nothing(
    world: Embedded, change: dict[str, Any], status: int
) -> None:
    demo = await world.demo()
    made = await make(world, demo, name="one")

    response = await patch(
        world, demo, made["id"], {"op": "replace", "path": "/name", "value": "two"}, change
    )

    assert response.status_code == status, response.text
    assert (await world.client.get(f"{V2}/images/{made['id']}", headers=demo)).json() == made


@pytest.mark.parametrize(
    ("values", "status"),
    [
        ({"name": 1}, 400),
        ({"name": "n" * 256}, 400),
        ({"id": "x"}, 400),
        ({"id": "01234567-89AB-CDEF-0123-456789ABCDEF"}, 400),
        ({"id": 7}, 400),
        ({"tags": ["t" * 256]}, 400),
        ({"tags": "t"}, 400),
        ({"container_format": "box"}, 400),
        ({"property": None}, 400),
        ({"property": {"a": "b"}}, 400),
        ({"": "x"}, 400),
        ({"size": 1}, 403),
        ({"status": "active"}, 403),
        ({"locations": []}, 403),
        ({"visibility": "public"}, 403),
        ({"owner": "another"}, 403),
        ({str(number): "x" for number in range(129)}, 413),
    ],
)
async def test_an_image_that_cannot_be_is_refused(
    world: Embedded, values: dict[str, Any], status: int
) -> None:
    demo = await world.demo()
    before = await names(world, demo)

    response = await world.client.post(f"{V2}/images", json=values, headers=demo)

    assert response.status_code == status, response.text
    assert response.json()["error"]["code"] == status
    assert await names(world, demo) == before


@pytest.mark.parametrize(
    "query",
    [
        "limit=x",
        "limit=-1",
        f"limit={'9' * 5000}",
        "marker=nothing",
        "sort=colour",
        "sort=name:up",
        "sort_key=name&sort_key=id&sort_dir=asc&sort_dir=asc&sort_dir=asc",
        "os_hidden=perhaps",
        "size_min=much",
        "member_status=perhaps",
    ],
)
async def test_a_question_without_meaning_is_a_bad_request(world: Embedded, query: str) -> None:
    response = await world.client.get(f"{V2}/images?{query}", headers=await world.demo())

    assert response.status_code == 400, response.text


@pytest.mark.parametrize(
    "query", ["limit=99999999999", "size_max=999999999999999999", "x=%F0%9F%98%80", "name=%ff"]
)
async def test_an_odd_question_has_an_answer(world: Embedded, query: str) -> None:
    response = await world.client.get(f"{V2}/images?{query}", headers=await world.demo())

    assert response.status_code == 200, response.text


@pytest.mark.parametrize("headers", [{}, {"x-auth-token": "x"}])
async def test_who_is_nobody_is_asked_who_they_are(world: Embedded, headers: dict[str, str]) -> None:
    for path in ("images", "images/x", "images/x/file", "schemas/image", "info/stores", "images/x/members"):
        response = await world.client.get(f"{V2}/{path}", headers=headers)
        assert response.status_code == 401, path
        assert response.headers["www-authenticate"] == 'Keystone uri="/identity"'
