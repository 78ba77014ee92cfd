"""Operations as they change: server-sent events.

A stream begins with an event ``snapshot``, always: whoever comes again needs no ``Last-Event-ID`` and has missed
nothing that is still so. Then every change is an event ``operation``. Nothing is asked of the database without a
signal, but for one look every few seconds, for signals that were in another process.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Final

import msgspec
import sqlalchemy as sa
import structlog
from starlette.responses import Response, StreamingResponse

from stateward.api.native.call import Call, Resource
from stateward.api.native.leave import Leave
from stateward.api.native.operations import READ, find, shown
from stateward.domain.errors import Invalid, NotFound
from stateward.domain.records import UNFINISHED
from stateward.store import instances, operation_queries
from stateward.store.engine import StoreUnavailable
from stateward.store.operation_queries import Found, OperationQuery

log = structlog.get_logger()

#: Seconds until the database is asked without a signal.
_PERIOD: Final = 5.0
#: Seconds until a silent stream shows that it lives.
_HEARTBEAT: Final = 15.0
#: Seconds between two looks: many changes in one moment are told as one.
_PAUSE: Final = 0.05
#: Operations of an instance that are followed, the newest.
_FOLLOWED: Final = 50
#: How a stream is sent: not stored, not held back by a proxy.
_HEADERS: Final = {"cache-control": "no-store", "x-accel-buffering": "no"}

Look = Callable[[sa.Connection], Sequence[Found]]


async def _of_operation(call: Call) -> Response:
    operation_id = call.request.path_params["id"]
    first = await find(call, operation_id)

    def look(connection: sa.Connection) -> Sequence[Found]:
        found = operation_queries.get(connection, operation_id, call.visible_project)
        return [] if found is None else [found]

    return _stream(call, first.operation.instance_id, look, ends=True)


async def _of_instance(call: Call) -> Response:
    instance_id = call.request.query_params.get("instance")
    if instance_id is None:
        raise Invalid("The query parameter 'instance' is needed: the id of the instance to follow.")
    instance = await call.services.database.read(lambda connection: instances.get(connection, instance_id))
    if instance is None or call.visible_project not in {None, instance.project_id}:
        raise NotFound(f"Instance {instance_id} could not be found.")
    query = OperationQuery(project_id=call.visible_project, instance_id=instance_id, limit=_FOLLOWED)
    return _stream(
        call, instance_id, lambda connection: operation_queries.page(connection, query), ends=False
    )


def _stream(call: Call, instance_id: str, look: Look, *, ends: bool) -> Response:
    """Follow what ``look`` sees; ``ends`` with the one operation that it sees."""
    if call.request.method == "HEAD":
        return Response(b"", headers=_HEADERS, media_type="text/event-stream")
    return StreamingResponse(
        _events(call, instance_id, look, ends=ends), headers=_HEADERS, media_type="text/event-stream"
    )


async def _events(call: Call, instance_id: str, look: Look, *, ends: bool) -> AsyncGenerator[bytes]:
    services, clock = call.services, asyncio.get_running_loop().time
    with services.changes.following(instance_id) as follower:
        known = await services.database.read(look)
        shown_first = known if ends else [each for each in known if each.operation.state in UNFINISHED]
        yield _event(call, "snapshot", shown_first)
        spoken, leave = clock(), Leave(call)
        while not services.changes.closed and not (ends and all(map(_final, known))):
            await follower.wait(_PERIOD)
            await asyncio.sleep(_PAUSE)
            try:
                found = await services.database.read(look)
            except StoreUnavailable as error:
                log.warning("a stream of operations waits for the database", error=str(error))
                continue
            if not await leave.lasts():
                return
            # Oldest first: what began later happened later.
            for each in reversed([each for each in found if each not in known]):
                yield _event(call, "operation", [each])
                spoken = clock()
            known = found
            if clock() - spoken >= _HEARTBEAT:
                yield b": alive\n\n"
                spoken = clock()


def _final(found: Found) -> bool:
    return found.operation.finished_at is not None


def _event(call: Call, name: str, found: Sequence[Found]) -> bytes:
    views = [shown(call, each) for each in found]
    content = msgspec.json.encode({"operations": views})
    return b"event: %s\ndata: %s\n\n" % (name.encode(), content)


RESOURCES: Final[dict[str, dict[str, Resource]]] = {
    "/operations/events": {
        "GET": Resource(
            handler=_of_instance,
            summary="Follow the operations on an instance (server-sent events).",
            policy=READ,
            query={"instance": "The instance's id; needed."},
        )
    },
    "/operations/{id}/events": {
        "GET": Resource(
            handler=_of_operation,
            summary="Follow an operation to its end (server-sent events).",
            policy=READ,
        )
    },
}
