"""``/v1/instances/{id}/locks`` and ``holds``, and ``/v1/projects/{id}/locks`` (B2, R3-R6)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Final, Literal

import msgspec
from starlette.responses import Response

from stateward.api.locking import LockView, lock_view, wish_of
from stateward.api.native.call import Call, Resource, reply
from stateward.api.native.operations import shown
from stateward.api.native.views import OperationView
from stateward.bus.port import NobodyAnswered, questions_subject
from stateward.domain.actions import BY_KEY, Policy, Role
from stateward.domain.bodies import Hold, LockWanted
from stateward.domain.errors import Invalid, NotFound
from stateward.domain.locks import Lock, LockKind
from stateward.domain.questions import Overtaken
from stateward.domain.records import Instance, Operation
from stateward.operations import stacking
from stateward.operations.admission import Admitted
from stateward.operations.immediate import Done
from stateward.operations.locking import Locking
from stateward.store import identity, instances, locks
from stateward.store.identity_tables import PROJECTS
from stateward.store.operation_queries import Found

_READ: Final = Policy("stateward:locks:read", Role.READER)
_RELEASE_HOLD: Final = Policy("stateward:holds:release", Role.ADMIN)
#: Seconds in which a host says that what was overtaken has ended.
_CONFIRM_SECONDS: Final = 5.0
_REASON: Final = {"reason": "Why; it is kept in the audit trail."}
LONGEST_REASON: Final = 255


class NewLock(LockWanted, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A lock to be placed on an instance, beside those that are there."""

    #: By default as Nova's ``lock``: an admin of another project places the provider's.
    kind: Literal["owner", "admin"] | None = None
    #: End what is in flight; otherwise it is finished, and the answer names it.
    overtake: bool = False


class NewProjectLock(LockWanted, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A lock that a project's instances inherit, those made later too."""

    kind: Literal["owner", "admin"] | None = None
    #: Only those with this tag.
    tag: Annotated[str, msgspec.Meta(min_length=1, max_length=60)] | None = None


class LocksView(msgspec.Struct, frozen=True, kw_only=True):
    """Locks, oldest first."""

    locks: list[LockView]


class PlacedView(msgspec.Struct, frozen=True, kw_only=True):
    """A lock that was placed."""

    lock: LockView
    #: What was admitted before the lock, and will be finished (B1); null: nothing.
    in_flight: OperationView | None
    #: Of a lock that overtakes: the host has said that nothing older acts on the guest any more (B1).
    confirmed: bool | None


class ProjectLockView(msgspec.Struct, frozen=True, kw_only=True):
    """A project's lock that was placed."""

    lock: LockView
    #: Which inherit it now, by id.
    instances: list[str]


class HeldView(msgspec.Struct, frozen=True, kw_only=True):
    """A hold that was placed, and the operation that switches the guest off."""

    hold: LockView
    operation: OperationView
    #: The host has said that nothing older acts on the guest any more; false: it has not, within a few seconds (B1).
    confirmed: bool


async def find_instance(call: Call, instance_id: str) -> Instance:
    """Return an instance that the caller may see.

    Raises:
        NotFound: there is none.
    """
    found = await call.services.database.read(lambda connection: instances.get(connection, instance_id))
    if found is None or call.visible_project not in {None, found.project_id}:
        raise NotFound(f"Instance {instance_id} could not be found.")
    return found


def _operation(call: Call, operation: Operation, instance: Instance) -> OperationView:
    return shown(
        call, Found(operation=operation, project_id=instance.project_id, instance_name=instance.name)
    )


def _view(call: Call, lock: Lock) -> LockView:
    return lock_view(lock, admin=call.token.is_admin)


async def _index(call: Call) -> Response:
    instance = await find_instance(call, call.request.path_params["id"])
    stack = await call.services.database.read(lambda connection: stacking.stack_of(connection, instance))
    return reply(LocksView(locks=[_view(call, lock) for lock in stack]))


async def _place(call: Call) -> Response:
    wanted = await call.body(NewLock)
    instance = await find_instance(call, call.request.path_params["id"])
    kind = None if wanted.kind is None else LockKind(wanted.kind)
    wish = wish_of(wanted, call.actor, instance.project_id, kind=kind, named=True)

    def answer(done: Done | Admitted, *, confirmed: bool = False) -> Response:
        admitted, in_flight = (done.admitted, done.in_flight) if isinstance(done, Done) else (done, None)
        return reply(
            PlacedView(
                lock=_view(call, admitted.placed),
                in_flight=None if in_flight is None else _operation(call, in_flight, instance),
                confirmed=confirmed if wanted.overtake else None,
            ),
            201,
        )

    done = await _locking(call, answer).place(
        instance.id, call.actor, wish, overtake=wanted.overtake, project_id=call.visible_project
    )
    if not wanted.overtake:
        return answer(done)
    return await _amended(call, answer(done, confirmed=await _confirmed(call, done.admitted)))


def _locking(call: Call, answer: Callable[[Any], Response]) -> Locking:
    """Return what places locks, once for a request's key; ``answer`` makes its answer of what the write results in."""
    locking = call.services.locking
    return locking if call.once is None else locking.on(call.once.database(answer))


async def _amended(call: Call, response: Response) -> Response:
    """Have the answer given again as it became after the write."""
    if call.once is not None:
        await call.once.amend(response)
    return response


async def _release(call: Call) -> Response:
    await call.services.locking.release(
        call.request.path_params["id"],
        call.request.path_params["lock"],
        call.actor,
        reason=_reason(call),
        project_id=call.visible_project,
    )
    return Response(b"", 204)


def _reason(call: Call) -> str | None:
    """Return why a lock is released, as far as it is said.

    Raises:
        Invalid: it is empty, or too long for the audit trail.
    """
    reason = call.request.query_params.get("reason")
    if reason is not None and not 1 <= len(reason) <= LONGEST_REASON:
        raise Invalid(f"The reason must have 1 to {LONGEST_REASON} characters.")
    return reason


async def _hold(call: Call) -> Response:
    wanted = await call.body(Hold)

    def answer(admitted: Admitted, *, confirmed: bool = False) -> Response:
        return reply(
            HeldView(
                hold=_view(call, admitted.placed),
                operation=_operation(call, admitted.operation, admitted.instance),
                confirmed=confirmed,
            ),
            202,
        )

    admitted = await _locking(call, answer).hold(call.request.path_params["id"], call.actor, wanted)
    return await _amended(call, answer(admitted, confirmed=await _confirmed(call, admitted)))


async def _confirmed(call: Call, admitted: Admitted) -> bool:
    """Wait until nothing that was overtaken acts on the guest any more; False when the host does not say so in time."""
    instance = admitted.instance
    if not instance.host:
        return True
    question = msgspec.json.encode(Overtaken(instance_id=instance.id, fence=admitted.operation.fence))
    try:
        await call.services.bus.ask(questions_subject(instance.host), question, timeout=_CONFIRM_SECONDS)
    except NobodyAnswered:
        return False
    return True


async def _project_index(call: Call) -> Response:
    project_id = _project(call)
    found = await call.services.database.read(lambda connection: locks.of_project(connection, project_id))
    return reply(LocksView(locks=[_view(call, lock) for lock in found]))


async def _project_place(call: Call) -> Response:
    wanted = await call.body(NewProjectLock)
    project_id = _project(call)
    if call.visible_project is None:
        # A mistyped id would be locked, and nobody would hear of it.
        await call.services.database.read(lambda connection: identity.get(connection, PROJECTS, project_id))
    kind = None if wanted.kind is None else LockKind(wanted.kind)
    wish = wish_of(wanted, call.actor, project_id, kind=kind, named=True)

    def answer(placed: tuple[Lock, list[str]]) -> Response:
        lock, inheriting = placed
        return reply(ProjectLockView(lock=_view(call, lock), instances=inheriting), 201)

    return answer(await _locking(call, answer).place_on_project(project_id, wanted.tag, call.actor, wish))


async def _project_release(call: Call) -> Response:
    await call.services.locking.release_from_project(
        call.request.path_params["lock"],
        call.actor,
        reason=_reason(call),
        project_id=_project(call),
    )
    return Response(b"", 204)


def _project(call: Call) -> str:
    """Return the project of the path, if it exists for the caller.

    Raises:
        NotFound: it is another's.
    """
    project_id: str = call.request.path_params["id"]
    if call.visible_project not in {None, project_id}:
        raise NotFound(f"Project {project_id} could not be found.")
    return project_id


_PLACE: Final = BY_KEY["place_lock"].policy
_RELEASE: Final = BY_KEY["release_lock"].policy

#: By path, below ``/v1``.
RESOURCES: Final[dict[str, dict[str, Resource]]] = {
    "/instances/{id}/locks": {
        "GET": Resource(
            handler=_index,
            summary="List the locks that hold for an instance.",
            policy=_READ,
            answer=LocksView,
        ),
        "POST": Resource(
            handler=_place,
            summary="Place a lock on an instance, beside those that are there.",
            policy=_PLACE,
            body=NewLock,
            answer=PlacedView,
            status=201,
        ),
    },
    "/instances/{id}/locks/{lock}": {
        "DELETE": Resource(
            handler=_release,
            summary="Release one lock; the others hold on.",
            policy=_RELEASE,
            status=204,
            query=_REASON,
        )
    },
    "/instances/{id}/holds": {
        "POST": Resource(
            handler=_hold,
            summary="Place a legal hold: overtake what is in flight, switch the guest off, and keep it off.",
            policy=BY_KEY["hold_none"].policy,
            body=Hold,
            answer=HeldView,
            status=202,
        )
    },
    "/instances/{id}/holds/{lock}": {
        "DELETE": Resource(
            handler=_release,
            summary="Release a hold; the guest stays as it is.",
            policy=_RELEASE_HOLD,
            status=204,
            query=_REASON,
        )
    },
    "/projects/{id}/locks": {
        "GET": Resource(
            handler=_project_index,
            summary="List the locks that a project's instances inherit.",
            policy=_READ,
            answer=LocksView,
        ),
        "POST": Resource(
            handler=_project_place,
            summary="Place a lock that a project's instances inherit, those made later too.",
            policy=_PLACE,
            body=NewProjectLock,
            answer=ProjectLockView,
            status=201,
        ),
    },
    "/projects/{id}/locks/{lock}": {
        "DELETE": Resource(
            handler=_project_release,
            summary="Release a project's lock, from all its instances.",
            policy=_RELEASE,
            status=204,
            query=_REASON,
        )
    },
}
