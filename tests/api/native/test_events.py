"""Server-sent events: a snapshot, every change, an end; and no look at the database that nothing asked for."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from stateward.api.faults import Unauthorized
from stateward.api.identity.tokens import Token
from stateward.domain.records import OperationState
from tests.api.native.bench import Api, Event

pytestmark = pytest.mark.asyncio


def said(event: Event | None) -> tuple[str, list[str]] | None:
    return None if event is None else (event.name, event.states)


async def test_an_operation_is_followed_to_its_end(api: Api) -> None:
    """A signal brings each change at once."""
    operation = await api.stop()
    async with api.follow(f"/v1/operations/{operation.id}/events") as stream, asyncio.timeout(10):
        assert said(await stream.next()) == ("snapshot", ["accepted"])
        await api.waits(operation, left=20)
        changed = await stream.next()
        assert said(changed) == ("operation", ["running"])
        assert changed is not None
        assert changed.operations[0]["progress"]["seconds_left"] == 20.0
        await api("POST", f"/v1/operations/{operation.id}/cancel")
        ordered = await stream.next()
        assert ordered is not None
        assert ordered.operations[0]["order"] == {"command": "cancel", "seconds": None}
        await api.ends(operation, OperationState.CANCELLED, "it was")
        last = await stream.next()
        assert said(last) == ("operation", ["cancelled"])
        assert last is not None
        assert last.operations[0]["message"] == "it was"
        assert await stream.next() is None


async def test_a_finished_operation_is_told_and_that_is_all(api: Api) -> None:
    """Whoever comes again after its end learns of it."""
    operation = await api.stop()
    await api.ends(operation)
    async with api.follow(f"/v1/operations/{operation.id}/events") as stream, asyncio.timeout(10):
        assert said(await stream.next()) == ("snapshot", ["succeeded"])
        assert await stream.next() is None


async def test_an_instance_is_followed(api: Api) -> None:
    """What is under way comes first; what begins later is told when it does, and the stream stays."""
    first = await api.stop()
    other = await api.stop()
    async with (
        api.follow(f"/v1/operations/events?instance={first.instance_id}") as stream,
        asyncio.timeout(10),
    ):
        assert said(await stream.next()) == ("snapshot", ["accepted"])
        await api.ends(other)
        await api.ends(first)
        assert said(await stream.next()) == ("operation", ["succeeded"])
        second = (await api.desk.admit("delete", first.instance_id)).operation
        api.changes.changed()
        told = await stream.next()
        assert said(told) == ("operation", ["accepted"])
        assert told is not None
        assert told.operations[0]["id"] == second.id
        api.changes.close()
        assert await stream.next() is None


async def test_changes_of_one_moment_come_in_their_order(api: Api) -> None:
    """What was overtaken before what overtook it."""
    first = await api.stop()
    path = f"/v1/operations/events?instance={first.instance_id}"
    async with api.follow(path) as stream, asyncio.timeout(10):
        await stream.next()
        api.desk.clock.at += 1
        await api.desk.admit("delete", first.instance_id)
        api.changes.changed(first.instance_id)
        assert said(await stream.next()) == ("operation", ["superseded"])
        assert said(await stream.next()) == ("operation", ["accepted"])


@pytest.mark.parametrize(
    ("query", "by", "status", "detail"),
    [
        ("", "member", 400, "The query parameter 'instance' is needed: the id of the instance to follow."),
        ("?instance=x", "member", 404, "Instance x could not be found."),
        ("?instance={}", "stranger", 404, "Instance {} could not be found."),
        (
            "?instance={}&x=1",
            "member",
            400,
            "The query parameter 'x' is not known here; known are: instance.",
        ),
    ],
)
async def test_an_instance_that_cannot_be_followed(
    api: Api, query: str, by: str, status: int, detail: str
) -> None:
    """It is refused before the stream begins."""
    instance_id = await api.desk.add()
    answer = await api("GET", f"/v1/operations/events{query.format(instance_id)}", by=by)
    assert (answer.status, answer.detail) == (status, detail.format(instance_id))


async def test_how_a_stream_is_sent(api: Api) -> None:
    """No one on the way keeps it or holds it back; HEAD does not wait for its end."""
    operation = await api.stop()
    answer = await api("HEAD", f"/v1/operations/{operation.id}/events")
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert (answer.headers["cache-control"], answer.headers["x-accel-buffering"]) == ("no-store", "no")


@pytest.mark.looptime
async def test_a_silent_stream_lives(virtual_api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says so, and ends when its token does."""
    api = virtual_api
    operation = await api.stop()
    async with api.follow(f"/v1/operations/{operation.id}/events") as stream:
        assert said(await stream.next()) == ("snapshot", ["accepted"])
        clock = asyncio.get_running_loop().time
        began = clock()
        assert await stream.raw() == b": alive\n\n"
        assert 15 <= clock() - began < 21

        async def refuse(_token: str) -> Token:
            raise Unauthorized

        monkeypatch.setattr(api.tokens, "verify", refuse)
        assert await stream.raw() is None
        assert clock() - began < 42


@pytest.mark.looptime
async def test_a_lost_signal_costs_seconds(virtual_api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """A change that nobody told of is seen by the look that is made anyway."""
    api = virtual_api
    operation = await api.stop()
    async with api.follow(f"/v1/operations/{operation.id}/events") as stream:
        await stream.next()
        with monkeypatch.context() as deaf:
            deaf.setattr(api.changes, "changed", str)
            await api.ends(operation)
        began = asyncio.get_running_loop().time()
        assert said(await stream.next()) == ("operation", ["succeeded"])
        assert 4 < asyncio.get_running_loop().time() - began < 6


@pytest.mark.looptime
async def test_the_database_is_not_asked_without_need(
    virtual_api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once every few seconds, and once for many signals of one moment; other instances' signals are not heard."""
    api = virtual_api
    operation = await api.stop()
    looks = 0
    read = api.desk.database.read

    async def counted(work: Any) -> Any:
        nonlocal looks
        looks += 1
        return await read(work)

    async with api.follow(f"/v1/operations/{operation.id}/events") as stream:
        await stream.next()
        monkeypatch.setattr(api.desk.database, "read", counted)
        await asyncio.sleep(4)
        assert looks == 0
        for _ in range(100):
            api.changes.changed("another")
            api.changes.changed(operation.instance_id)
        await asyncio.sleep(0.1)
        assert looks == 1
