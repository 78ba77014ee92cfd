"""``Idempotency-Key``: what is sent again is answered again, and done once (B3)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from tests import postgres
from tests.cloud import Answer, Cloud, running_cloud

pytestmark = pytest.mark.asyncio(loop_scope="session")

REPLAYED = "idempotency-replayed"
OPERATION = "x-stateward-operation"


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def cloud(
    shared_database: str | None, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Cloud]:
    """Run a server of these tests' own, because they change things, on a database of its own."""
    folder = tmp_path_factory.mktemp("keys") / "data"
    with contextlib.ExitStack() as undo:
        database = shared_database
        if database is not None:
            server: postgres.Postgres = request.getfixturevalue("postgres_server")
            database = undo.enter_context(server.bare()).render_as_string(hide_password=False)
        async with running_cloud(folder, database=database) as cloud:
            yield cloud


async def send(
    cloud: Cloud,
    key: str | None,
    method: str,
    path: str,
    body: Any = None,
    *,
    who: str = "member",
    version: str = "2.1",
) -> Answer:
    """Ask with a key."""
    headers = {"x-auth-token": cloud.tokens[who], "openstack-api-version": f"compute {version}"}
    if key is not None:
        headers["idempotency-key"] = key
    content = None if body is None else msgspec.json.encode(body)
    return await cloud.send(method, f"/compute/v2.1{path}", content=content, headers=headers)


def said(answer: Answer) -> tuple[int, bytes, str | None, str | None]:
    """Return what a client goes by."""
    return answer.status, answer.raw, answer.headers.get(OPERATION), answer.headers.get("location")


async def done(cloud: Cloud, server: str, action: str) -> int:
    """Count how often something was done to a server."""
    answer = await cloud.ask("admin", "GET", f"/servers/{server}/os-instance-actions", microversion="2.96")
    return [each["action"] for each in answer.body["instanceActions"]].count(action)


async def test_an_action_is_done_once(cloud: Cloud) -> None:
    """Also when the server has changed since in a way that the action would be refused for."""
    server = await cloud.ready_server("once")
    first = await send(cloud, "k1", "POST", f"/servers/{server}/action", {"os-stop": None})
    assert first.status == 202
    assert REPLAYED not in first.headers
    assert (await cloud.settled(server))["status"] == "SHUTOFF"
    again = await send(cloud, "k1", "POST", f"/servers/{server}/action", {"os-stop": None})
    assert said(again) == said(first)
    assert again.headers[REPLAYED] == "true"
    assert await done(cloud, server, "stop") == 1
    # Without the key it is Nova's refusal.
    other = await send(cloud, None, "POST", f"/servers/{server}/action", {"os-stop": None})
    assert other.status == 409


async def test_a_server_is_made_once(cloud: Cloud) -> None:
    """With the same id and the same password, though that was made up."""
    body = {"server": {"name": "keyed", "imageRef": cloud.image, "flavorRef": "1"}}
    first = await send(cloud, "make", "POST", "/servers", body)
    again = await send(cloud, "make", "POST", "/servers", body)
    assert first.status == 202
    assert said(again) == said(first)
    assert again.headers["content-type"] == first.headers["content-type"]
    listed = await cloud.ask("member", "GET", "/servers?name=^keyed$")
    assert [server["id"] for server in listed.body["servers"]] == [first.body["server"]["id"]]


async def test_several_servers_are_made_once(cloud: Cloud) -> None:
    """All of one request, under one key."""
    body = {"server": {"name": "many", "imageRef": cloud.image, "flavorRef": "1", "min_count": 3}}
    answers = [await send(cloud, "many", "POST", "/servers", body) for _ in range(2)]
    assert said(answers[0]) == said(answers[1])
    listed = await cloud.ask("member", "GET", "/servers?name=^many-")
    assert sorted(server["name"] for server in listed.body["servers"]) == ["many-1", "many-2", "many-3"]


async def test_a_server_is_deleted_once(cloud: Cloud) -> None:
    """The answer is the same when there is nothing left to delete."""
    server = await cloud.ready_server("gone")
    first = await send(cloud, "delete", "DELETE", f"/servers/{server}")
    assert await cloud.settled(server) == {}
    again = await send(cloud, "delete", "DELETE", f"/servers/{server}")
    assert (first.status, said(again)) == (204, said(first))
    assert (await send(cloud, None, "DELETE", f"/servers/{server}")).status == 404


@pytest.mark.parametrize("wire", ["lock", "unlock"])
async def test_an_immediate_action_is_done_once(cloud: Cloud, wire: str) -> None:
    """A lock that was released since is not placed again by who never heard the answer."""
    server = await cloud.ready_server(wire)
    key = f"immediate-{wire}"
    answers = [await send(cloud, key, "POST", f"/servers/{server}/action", {wire: None}) for _ in range(2)]
    assert said(answers[0]) == said(answers[1]) == (202, b"", None, None)
    assert answers[1].headers[REPLAYED] == "true"
    assert await done(cloud, server, wire) == 1


async def test_a_key_is_for_one_request(cloud: Cloud) -> None:
    """Another body, server, method, version or project with it is refused, and nothing is done."""
    server, other = await cloud.ready_server("one"), await cloud.ready_server("two")
    path = f"/servers/{server}/action"
    first = await send(cloud, "k2", "POST", path, {"os-stop": None})
    answers = [
        await send(cloud, "k2", "POST", path, {"os-stop": {"timeout": 5}}),
        await send(cloud, "k2", "POST", path, {"os-start": None}),
        await send(cloud, "k2", "POST", f"/servers/{other}/action", {"os-stop": None}),
        await send(cloud, "k2", "DELETE", f"/servers/{server}"),
        await send(cloud, "k2", "POST", path, {"os-stop": None}, version="2.73"),
    ]
    message = "The Idempotency-Key k2 was used for another request already; a new request needs a new key."
    assert {answer.fault for answer in answers} == {(422, "unprocessableEntity", message)}
    assert said(await send(cloud, "k2", "POST", path, {"os-stop": None})) == said(first)
    assert (await cloud.settled(other))["status"] == "ACTIVE"


async def test_a_key_is_one_users(cloud: Cloud) -> None:
    """Another user's key of the same name is another key."""
    server = await cloud.ready_server("shared")
    path, body = f"/servers/{server}/action", {"os-stop": None}
    first = await send(cloud, "k3", "POST", path, body)
    await cloud.settled(server)
    assert first.status == 202
    assert (await send(cloud, "k3", "POST", path, body, who="member2")).status == 409
    assert (await send(cloud, "k3", "POST", path, body, who="othertenant")).status == 404
    assert (await send(cloud, "k3", "POST", path, body, who="admin")).status == 409


async def test_what_is_refused_may_be_tried_again(cloud: Cloud) -> None:
    """A refusal changed nothing, so its key is free."""
    server = await cloud.ready_server("later")
    path = f"/servers/{server}/action"
    assert (await send(cloud, "k4", "POST", path, {"os-start": None})).status == 409
    await send(cloud, None, "POST", path, {"os-stop": None})
    await cloud.settled(server)
    assert (await send(cloud, "k4", "POST", path, {"os-start": None})).status == 202


@pytest.mark.parametrize("key", ["", " ", "a b", "a" * 256, "\u00e9", "a\tb", "\x7f"])
async def test_a_key_that_is_none(cloud: Cloud, key: str) -> None:
    """It is refused before anything is done."""
    headers: Any = {
        b"x-auth-token": cloud.tokens["member"].encode(),
        b"idempotency-key": key.encode("latin-1"),
    }
    answer = await cloud.send("POST", "/compute/v2.1/servers", content=b"{}", headers=headers)
    message = "Invalid input for header Idempotency-Key: it must be 1 to 255 visible ASCII characters."
    assert answer.fault == (400, "badRequest", message)


async def test_the_longest_key(cloud: Cloud) -> None:
    """Its 255 characters are a key."""
    server = await cloud.ready_server("long")
    key = "~!" + "x" * 253
    answers = [
        await send(cloud, key, "POST", f"/servers/{server}/action", {"os-stop": None}) for _ in range(2)
    ]
    assert said(answers[0]) == said(answers[1])
    assert answers[0].status == 202


async def test_sixteen_at_once(cloud: Cloud) -> None:
    """They all get one answer, and one operation is admitted (the database makes them wait for each other)."""
    server = await cloud.ready_server("race")
    body = {"server": {"name": "raced", "imageRef": cloud.image, "flavorRef": "1"}}
    requests: list[tuple[str, str, dict[str, Any]]] = [
        ("stop", f"/servers/{server}/action", {"os-stop": {"timeout": 1}}),
        ("create", "/servers", body),
    ]
    for name, path, content in requests:
        answers = await asyncio.gather(
            *(send(cloud, f"race-{name}", "POST", path, content) for _ in range(16))
        )
        assert {answer.status for answer in answers} == {202}
        assert len({said(answer) for answer in answers}) == 1
        assert [answer.headers.get(REPLAYED) for answer in answers].count(None) == 1
    assert await done(cloud, server, "stop") == 1
    listed = await cloud.ask("member", "GET", "/servers?name=^raced$")
    assert len(listed.body["servers"]) == 1
