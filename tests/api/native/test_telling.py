"""The event stream: everything in the trail's order, to whom it concerns, from any place on."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from stateward.api.faults import Unauthorized
from stateward.api.identity.tokens import Token
from stateward.domain.locks import ActorKind
from stateward.store import told
from tests.api.native.bench import Api, Stream
from tests.rows import actor

ADMIN = actor(ActorKind.ADMIN, project="operations", request="req-2")


class Piece(msgspec.Struct, frozen=True):
    """One piece of a stream: its id, and the event in it, if there is one."""

    id: str
    event: dict[str, Any] | None

    @property
    def kind(self) -> str | None:
        return None if self.event is None else self.event["type"].removeprefix("org.stateward.")


async def piece(stream: Stream) -> Piece:
    raw = await stream.raw()
    assert raw is not None
    fields = dict(line.split(": ", 1) for line in raw.decode().splitlines() if line)
    event = msgspec.json.decode(fields["data"]) if "data" in fields else None
    if event is not None:
        assert (fields["event"], fields["id"]) == (event["type"], event["id"])
    return Piece(fields["id"], event)


def listed(body: dict[str, Any]) -> list[tuple[str, str]]:
    return [(each["id"], each["type"].removeprefix("org.stateward.")) for each in body["events"]]


async def events(api: Api, query: str = "", *, by: str = "admin") -> list[tuple[str, str]]:
    answer = await api("GET", f"/v1/events{query}", by=by, accept="application/json")
    assert answer.status == 200, answer.body
    return listed(answer.body)


async def some(api: Api) -> str:
    """Have an instance locked by its owner, its state reset, and unlocked."""
    instance_id = await api.desk.add()
    await api.desk.immediate.lock(instance_id, actor(), reason="Mine.", project_id=None)
    await api.desk.immediate.unlock(instance_id, actor(), project_id=None)
    return instance_id


ALL = [
    ("1.0", "operation.accepted"),
    ("1.2", "lock.placed"),
    ("2.0", "operation.accepted"),
    ("2.2", "lock.released"),
]


async def test_a_stream_begins_now_and_tells_what_comes(api: Api) -> None:
    """Its first piece says from where, in case it breaks before anything happened."""
    await some(api)
    async with api.follow("/v1/events", by="admin") as stream, asyncio.timeout(10):
        assert await piece(stream) == Piece("2.9", None)
        await api.stop()
        found = await piece(stream)
        assert (found.id, found.kind) == ("3.0", "operation.accepted")
        assert found.event is not None
        assert found.event["data"]["action"] == "stop"
        api.changes.close()
        assert await stream.raw() is None


@pytest.mark.parametrize("window", [told.WINDOW, 1])
@pytest.mark.parametrize("after", range(len(ALL) + 1))
async def test_nothing_is_lost_wherever_a_stream_breaks(
    api: Api, monkeypatch: pytest.MonkeyPatch, after: int, window: int
) -> None:
    """Whoever has seen so many of the events and comes again is told the others, once; however much is read at once."""
    monkeypatch.setattr(told, "WINDOW", window)
    await some(api)
    assert await events(api) == ALL
    last = ALL[after - 1][0] if after else "0.0"
    assert await events(api, f"?after={last}") == ALL[after:]
    async with api.follow(f"/v1/events?after={last}", by="admin") as stream, asyncio.timeout(10):
        assert await piece(stream) == Piece(last, None)
        for expected in ALL[after:]:
            found = await piece(stream)
            assert (found.id, found.kind) == expected


async def test_the_header_of_a_browser_that_comes_again(api: Api) -> None:
    """It is the same place."""
    await some(api)
    answer = await api("GET", "/v1/events", by="admin", accept="application/json", last_event_id="2.0")
    assert listed(answer.body) == ALL[3:]
    assert answer.body["last"] == "2.9"


async def test_a_list_is_of_the_newest(api: Api) -> None:
    """Oldest of them first, and so many at most."""
    await some(api)
    assert await events(api) == ALL
    assert await events(api, "?limit=2") == ALL[2:]
    assert await events(api, "?limit=2&after=0.0") == ALL[:2]
    assert await events(api, "?type=lock.*") == [ALL[1], ALL[3]]
    assert await events(api, "?type=lock.released&type=alert") == [ALL[3]]
    assert await events(api, "?type=lock.*&limit=1&after=0.0") == [ALL[1]]


async def test_who_is_told_what(api: Api) -> None:
    """The owner of what the provider did, not who; a stranger nothing; the operator everything."""
    instance_id = await api.desk.add()
    await api.desk.immediate.lock(instance_id, ADMIN, reason="Theirs.", project_id=None)
    expected = ALL[:2]
    assert await events(api, by="member") == expected
    assert await events(api, by="stranger") == []
    assert await events(api, f"?instance={instance_id}&project=p") == expected
    await api.desk.add(project_id="q")
    assert await events(api, "?project=q") == []
    await api.desk.add_host("alpha")
    assert await events(api, "?host=alpha") == []
    answer = await api("GET", "/v1/events", by="member", accept="application/json")
    data = answer.body["events"][1]["data"]
    assert data["actor"] == {"kind": "admin", "user_id": None, "project_id": None}
    assert data["detail"] == {"lock": {"kind": "admin", "name": "", "reason": "Theirs."}}
    assert "host" not in data["instance"]


async def test_a_state_that_changed(api: Api) -> None:
    """It is an event besides what changed it."""
    instance_id = await api.desk.add()
    from stateward.domain.states import VmState

    await api.desk.immediate.reset_state(instance_id, ADMIN, to=VmState.ERROR)
    answer = await api(
        "GET", "/v1/events?type=instance.state-changed", by="member", accept="application/json"
    )
    (event,) = answer.body["events"]
    assert (event["id"], event["subject"]) == ("1.1", instance_id)
    assert event["data"]["detail"] == {"from": "active", "to": "error"}


@pytest.mark.parametrize(
    ("query", "by", "status", "detail"),
    [
        ("?after=x", "admin", 400, "'x' is no event's id: ids are like 17.0."),
        ("?after=5.0", "admin", 400, "There is no event 5.0 yet; the last record is 0."),
        (
            "?after=999999999999999999",
            "admin",
            400,
            "There is no event 999999999999999999.9 yet; the last record is 0.",
        ),
        ("?host=nope", "admin", 404, "Host nope could not be found."),
        ("?project=nope", "admin", 404, "Project nope could not be found."),
        ("?instance=nope", "admin", 404, "Instance nope could not be found."),
        ("?project=p", "member", 403, None),
        ("?host=alpha", "member", 403, None),
        ("?x=1", "admin", 400, None),
        ("", "nobody", 401, None),
    ],
)
async def test_what_cannot_be_followed(
    api: Api, query: str, by: str, status: int, detail: str | None
) -> None:
    """It is refused before the stream begins, and as a list."""
    for accept in ("text/event-stream", "application/json"):
        answer = await api("GET", f"/v1/events{query}", by=by, accept=accept)
        assert answer.status == status
        assert detail in {None, answer.detail}


async def test_another_s_instance(api: Api) -> None:
    """For a customer there is none."""
    instance_id = await api.desk.add(project_id="q")
    answer = await api("GET", f"/v1/events?instance={instance_id}")
    assert (answer.status, answer.detail) == (404, f"Instance {instance_id} could not be found.")
    assert await events(api, f"?instance={instance_id}", by="stranger") == []


@pytest.mark.looptime
@pytest.mark.parametrize("change", ["revoked", "roles", "project"])
@pytest.mark.parametrize("path", ["/v1/events", "/v1/operations/events?instance={}"])
async def test_a_busy_stream_ends_with_its_token(
    virtual_api: Api, monkeypatch: pytest.MonkeyPatch, path: str, change: str
) -> None:
    """However often something happens, and also when its holder may do something else than before."""
    api = virtual_api
    instance_id = await api.desk.add()
    verify, clock = api.tokens.verify, asyncio.get_running_loop().time

    async def changed(token: str) -> Token:
        if change == "revoked":
            raise Unauthorized
        found = await verify(token)
        if change == "roles":
            return msgspec.structs.replace(found, roles=frozenset({"reader"}))
        return msgspec.structs.replace(found, project_id="q")

    async with api.follow(path.format(instance_id)) as stream:
        await stream.raw()
        monkeypatch.setattr(api.tokens, "verify", changed)
        began, said = clock(), asyncio.create_task(something_each_second(api, instance_id))
        while await stream.raw() is not None:
            assert clock() - began < 6
        assert 4 < clock() - began < 7
        said.cancel()


async def something_each_second(api: Api, instance_id: str) -> None:
    """Lock and unlock an instance, and tell of it."""
    while True:
        await api.desk.immediate.lock(instance_id, actor(), reason="Mine.", project_id=None)
        await api.desk.immediate.unlock(instance_id, actor(), project_id=None)
        api.changes.changed(instance_id)
        await asyncio.sleep(1)


async def test_how_it_is_sent(api: Api) -> None:
    """Nobody on the way keeps it; HEAD does not wait for its end."""
    answer = await api("HEAD", "/v1/events")
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-store"
