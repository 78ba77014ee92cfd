"""``/v1/events``: everything that happens, as CloudEvents, told from the audit trail (R15).

The operator is told everything; a customer what concerns the project's instances, without what is the provider's to
know. A stream begins where ``Last-Event-ID`` says, else now, and loses nothing over a restart of either side: every
piece of it carries the place in the trail that it goes on from.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from typing import Any, Final

import msgspec
import sqlalchemy as sa
import structlog
from starlette.responses import Response, StreamingResponse

from stateward.api.http import whole_number
from stateward.api.native.call import Call, Resource, reply
from stateward.api.native.leave import Leave
from stateward.domain.actions import Policy, Role
from stateward.domain.errors import Forbidden, Invalid
from stateward.domain.events import WHOLE, Event, Filter, Place, Reader, cloud_event, place_of, types_of
from stateward.store import subjects, told
from stateward.store.engine import StoreUnavailable

log = structlog.get_logger()

_READ: Final = Policy("stateward:events:read", Role.READER)
#: Seconds until the trail is looked at without a signal: not everything that is recorded is signalled.
_PERIOD: Final = 0.25
#: Seconds between two looks: many changes in one moment are read at once.
_PAUSE: Final = 0.05
#: Seconds until a silent stream shows that it lives.
_HEARTBEAT: Final = 15.0
#: Milliseconds after which a client whose stream broke comes again.
_RETRY: Final = 2000
#: How often a list looks: through 200,000 records, where few are wanted; ``last`` says how far it came.
_LOOKS: Final = 40
#: Events of a page when nothing is said.
_PAGE: Final = 100
_HEADERS: Final = {"cache-control": "no-store", "x-accel-buffering": "no"}
_JSON: Final = "application/json"


class EventsView(msgspec.Struct, frozen=True, kw_only=True):
    """Events, oldest first, in CloudEvents' JSON form (docs/events.md)."""

    events: list[dict[str, Any]]
    #: What comes after these comes after this id.
    last: str


async def _events(call: Call) -> Response:
    wanted, reader, place = _wanted(call), _reader(call), _place(call)
    await call.services.database.seal()

    def look(connection: sa.Connection) -> int:
        subjects.check(connection, wanted, reader)
        return told.head(connection)

    last = Place(await call.services.database.read(look), WHOLE)
    if place is not None and place.number > last.number:
        raise Invalid(f"There is no event {place} yet; the last record is {last.number}.")
    if _JSON in call.request.headers.get("accept", ""):
        return await _list(call, wanted, reader, place, last)
    if call.request.method == "HEAD":
        return Response(b"", headers=_HEADERS, media_type="text/event-stream")
    return StreamingResponse(
        _stream(call, wanted, reader, place or last), headers=_HEADERS, media_type="text/event-stream"
    )


async def _list(call: Call, wanted: Filter, reader: Reader, place: Place | None, last: Place) -> Response:
    most = call.services.max_limit
    limit = whole_number(call.request.query_params.get("limit", "0"), "limit", most=most)
    limit = limit or min(_PAGE, most)
    if place is None:
        found = await _newest(call, last.number + 1, wanted, reader, limit)
    else:
        found, last = await _following(call, place, wanted, reader, limit)
    views = [_view(call, event, reader) for event in found]
    return reply(EventsView(events=views, last=str(last)))


async def _newest(call: Call, before: int, wanted: Filter, reader: Reader, limit: int) -> list[Event]:
    """Look back, as far as that is done for one request."""
    found: list[Event] = []
    for _look in range(_LOOKS):
        at = before
        batch = await call.services.database.read(
            lambda connection: told.newest(connection, at, wanted, reader)  # noqa: B023 (read before the loop goes on)
        )
        found += batch.events
        if len(found) >= limit or not batch.more:
            break
        before = batch.upto
        await asyncio.sleep(0)
    return found[:limit][::-1]


async def _following(
    call: Call, place: Place, wanted: Filter, reader: Reader, limit: int
) -> tuple[list[Event], Place]:
    """Look forward, as far as that is done for one request; return how far that went."""
    found: list[Event] = []
    for _look in range(_LOOKS):
        at = place
        batch = await call.services.database.read(
            lambda connection: told.after(connection, at, wanted, reader)  # noqa: B023 (read before the loop goes on)
        )
        found += batch.events
        if len(found) >= limit:
            return found[:limit], found[limit - 1].place
        place = max(place, Place(batch.upto, WHOLE))
        if not batch.more:
            break
        await asyncio.sleep(0)
    return found, place


async def _stream(call: Call, wanted: Filter, reader: Reader, place: Place) -> AsyncGenerator[bytes]:
    services, clock = call.services, asyncio.get_running_loop().time
    with services.changes.following(None) as follower:
        # Without data no event, but the place to come again from, should the stream break before the first one.
        yield b"retry: %d\nid: %s\n\n" % (_RETRY, str(place).encode())
        spoken, more, leave = clock(), True, Leave(call)
        while not services.changes.closed:
            if not more:
                await follower.wait(_PERIOD)
                await asyncio.sleep(_PAUSE)
            try:
                await services.database.seal()
                at = place
                batch = await services.database.read(
                    lambda connection: told.after(connection, at, wanted, reader)  # noqa: B023 (read before the loop goes on)
                )
            except StoreUnavailable as error:
                log.warning("a stream of events waits for the database", error=str(error))
                more = False
                continue
            for event in batch.events:
                # Before each: whoever reads slowly may take long over one.
                if not await leave.lasts():
                    return
                yield _sent(event.row.type, str(event.place), _view(call, event, reader))
                spoken = clock()
            place, more = max(place, Place(batch.upto, WHOLE)), batch.more
            if not await leave.lasts():
                return
            if clock() - spoken >= _HEARTBEAT:
                yield b": alive\nid: %s\n\n" % str(place).encode()
                spoken = clock()


def _sent(name: str, place: str, content: Mapping[str, Any]) -> bytes:
    return b"event: %s\nid: %s\ndata: %s\n\n" % (name.encode(), place.encode(), msgspec.json.encode(content))


def _view(call: Call, event: Event, reader: Reader) -> dict[str, Any]:
    return cloud_event(event, reader, call.services.event_source)


def _reader(call: Call) -> Reader:
    return Reader(project_id=call.visible_project)


def _wanted(call: Call) -> Filter:
    params = call.request.query_params
    for name in ("project", "host"):
        if name in params and not call.token.is_admin:
            raise Forbidden(f"stateward:events:read:{name}")
    return Filter(
        types=types_of(params.getlist("type")),
        instance_id=params.get("instance"),
        project_id=params.get("project"),
        host=params.get("host"),
    )


def _place(call: Call) -> Place | None:
    text = call.request.headers.get("last-event-id") or call.request.query_params.get("after")
    return None if text is None else place_of(text)


RESOURCES: Final[dict[str, dict[str, Resource]]] = {
    "/events": {
        "GET": Resource(
            handler=_events,
            summary="Follow what happens (server-sent events); with Accept: application/json, list it.",
            policy=_READ,
            query={
                "type": "Only events of this type; 'lock.*' for all of a kind; may be given several times.",
                "instance": "Only those of this instance (its id).",
                "project": "Only those of this project's instances; for administrators.",
                "host": "Only those of this host; for administrators.",
                "after": "Those after the event with this id, as the header Last-Event-ID.",
                "limit": f"In a list: so many at most; {_PAGE} when it is not given.",
            },
        )
    },
}
