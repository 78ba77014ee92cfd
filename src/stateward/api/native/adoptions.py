"""``/v1/strangers``, ``/v1/adoptions`` and ``/v1/instances/{id}/release``: what exists comes, and goes, as it is."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Annotated, Final

import msgspec
import sqlalchemy as sa
from starlette.responses import Response

from stateward.api.compute.questions import ask_host
from stateward.api.compute.server_create import host_name
from stateward.api.native.call import Call, Resource, reply
from stateward.api.native.locks import find_instance
from stateward.api.native.operations import shown
from stateward.api.native.views import Nothing, OperationView
from stateward.domain.actions import ADOPT, BY_KEY, Policy, Role
from stateward.domain.errors import Conflict, HostUnavailable, Invalid, NotFound
from stateward.domain.locks import kind_placed_by
from stateward.domain.questions import WhoElse
from stateward.domain.records import Instance
from stateward.domain.states import Observed, VmState
from stateward.domain.strangers import STATE_OF, NovaFacts, Stranger, StrangerCard, StrangerDisk
from stateward.operations import adopting
from stateward.operations.admission import Admitted
from stateward.operations.adopting import Adopted, Outcome, Wish
from stateward.operations.stacking import LockWish
from stateward.store import adoptions, hosts, identity, instances
from stateward.store.identity_tables import PROJECTS, USERS
from stateward.store.operation_queries import Found

_READ: Final = Policy("stateward:strangers:read", Role.ADMIN)
_RELEASE: Final = BY_KEY["release_guest"]
_LONGEST_NAME: Final = 255
#: Seconds in which a host describes all the guests that are not known.
_SECONDS: Final = 30.0
_QUERY: Final = {
    "host": "Only those of this host.",
    "name": "Only those whose host calls them so; * stands for anything, ? for one character.",
}


class StrangerView(msgspec.Struct, frozen=True, kw_only=True):
    """A guest that its host has and Stateward does not look after."""

    host: str
    #: Its instance will have the same.
    id: str
    #: Its host's name for it.
    name: str
    state: Observed
    vcpus: int
    #: MiB.
    memory: int
    disks: tuple[StrangerDisk, ...]
    interfaces: tuple[StrangerCard, ...]
    autostart: bool
    transient: bool
    #: It bears Stateward's mark, though there is no record of it here.
    marked: bool
    #: What Nova wrote into its definition; null: nothing.
    nova: NovaFacts | None


class UnaskedView(msgspec.Struct, frozen=True, kw_only=True):
    """A host that could not be asked, and why."""

    host: str
    why: str


class StrangersView(msgspec.Struct, frozen=True, kw_only=True):
    """The strangers of all hosts, or of one, by host and name."""

    strangers: list[StrangerView]
    #: Nothing is known of these.
    unasked: list[UnaskedView]
    #: So many others that are meant were adopted, and are instances.
    known: int


class Adoption(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Guests of one host that are to be instances."""

    host: str
    #: Their names or ids; null: all that are not instances.
    domains: list[str] | None = None
    #: Whose they become, by id; null: the project each was in before, or that Nova or Stateward wrote into it, where
    #: it exists here, else the caller's. One that was a server before is refused any other project.
    project: str | None = None
    #: Only say what would come of it.
    dry_run: bool = False
    #: Lock them from their first moment, for this reason.
    lock: Annotated[str, msgspec.Meta(min_length=1, max_length=255)] | None = None
    #: Also those that bear Stateward's mark: their record was lost.
    again: bool = False


class AdoptedView(msgspec.Struct, frozen=True, kw_only=True):
    """What came, or would come, of one guest."""

    id: str
    #: Its host's name for it.
    domain: str
    outcome: Outcome
    #: Why it was refused; empty when it was not.
    why: str
    name: str
    project_id: str
    user_id: str
    #: The state its instance will have if the guest stays as it is; null where it is refused.
    becomes: VmState | None
    flavor: str
    vcpus: int
    #: MiB.
    memory: int
    #: GiB.
    disk: int
    #: Null where nothing was begun.
    operation: OperationView | None


class AdoptionsView(msgspec.Struct, frozen=True, kw_only=True):
    """What came, or would come, of each guest."""

    host: str
    dry_run: bool
    guests: list[AdoptedView]


async def _strangers(call: Call) -> Response:
    params = call.request.query_params
    wanted, pattern = params.get("host"), params.get("name", "*")
    found = await call.services.database.read(hosts.every)
    names = [host.name for host in found if wanted in {None, host.name}]
    if wanted is not None and not names:
        raise adopting.no_host(wanted)
    answers = await asyncio.gather(*(_try(call, name) for name in names))
    strangers: list[StrangerView] = []
    unasked: list[UnaskedView] = []
    for name, answer in zip(names, answers, strict=True):
        if isinstance(answer, str):
            unasked.append(UnaskedView(host=name, why=answer))
        else:
            strangers += [_stranger_view(name, each) for each in answer if fnmatchcase(each.name, pattern)]

    def known(connection: sa.Connection) -> int:
        called = (each for name in names for each in adoptions.living_at(connection, name).values())
        return sum(each is not None and fnmatchcase(each, pattern) for each in called)

    return reply(
        StrangersView(strangers=strangers, unasked=unasked, known=await call.services.database.read(known))
    )


async def _try(call: Call, host: str) -> Sequence[Stranger] | str:
    """Ask a host; one that cannot be asked keeps no other from being shown."""
    try:
        return await _strangers_of(call, host)
    except (HostUnavailable, Conflict) as error:
        return str(error)


async def _strangers_of(call: Call, host: str) -> Sequence[Stranger]:
    """Ask a host for its guests that are no instances here, and are not about to be removed as deleted ones."""
    known = await call.services.database.read(lambda connection: adoptions.living_at(connection, host))
    question = WhoElse(known=tuple(sorted(known)))
    answer = await ask_host(call.services.bus, host, question, seconds=_SECONDS)
    return answer.strangers


async def _adopt(call: Call) -> Response:
    wanted = await call.body(Adoption)
    database = call.services.database
    at = await database.read(lambda connection: hosts.named(connection, wanted.host))
    if at is None:
        raise adopting.no_host(wanted.host)
    chosen, known = await _chosen(call, wanted)
    reservation_id = f"r-{uuid.uuid4().hex[:8]}"
    wishes = await database.read(
        lambda connection: [_wish(connection, call, wanted, each, reservation_id) for each in chosen]
    )

    def answer(done: Sequence[Adopted]) -> Response:
        guests = [_adopted_view(call, each) for each in done] + known
        view = AdoptionsView(
            host=wanted.host,
            dry_run=wanted.dry_run,
            guests=sorted(guests, key=lambda each: each.domain),
        )
        return reply(view, 200 if wanted.dry_run else 202)

    if wanted.dry_run:
        return answer(
            await database.read(
                lambda connection: [
                    adopting.foresee(connection, wanted.host, each, again=wanted.again) for each in wishes
                ]
            )
        )
    admission = call.services.admission
    if call.once is not None:
        admission = admission.on(call.once.database(answer))
    return answer(await adopting.adopt(admission, wanted.host, wishes, call.actor, again=wanted.again))


async def _chosen(call: Call, wanted: Adoption) -> tuple[Sequence[Stranger], list[AdoptedView]]:
    """Return the guests that are meant, and of those that are instances already what is to be said.

    Raises:
        Invalid: one that is named is not there.
    """
    strangers = await _strangers_of(call, wanted.host)
    if wanted.domains is None:
        return strangers, []
    names = set(wanted.domains)
    chosen = [each for each in strangers if names & {each.id, each.name}]
    left = names - {name for each in chosen for name in (each.id, each.name)}
    known: list[AdoptedView] = []
    if left:
        at = await call.services.database.read(
            lambda connection: adoptions.living_at(connection, wanted.host)
        )
        for instance_id, adopted_as in at.items():
            if left & {instance_id, adopted_as}:
                known.append(_known_view(await find_instance(call, instance_id)))
                left -= {instance_id, adopted_as or instance_id}
    if left:
        missing = ", ".join(repr(name) for name in sorted(left))
        raise Invalid(f"Host {wanted.host!r} has no guest that is named, or has the id, {missing}.")
    return chosen, known


def _wish(
    connection: sa.Connection, call: Call, wanted: Adoption, stranger: Stranger, reservation_id: str
) -> Wish:
    """Say as what a guest is adopted: what was asked for, else as before, or as it is written in it, or the caller's.

    Raises:
        Invalid: the project that was asked for is not there.
    """
    nova, actor = stranger.nova or NovaFacts(), call.actor
    if wanted.project is not None and not _exists(connection, PROJECTS, wanted.project):
        raise Invalid(f"There is no project {wanted.project!r}.")
    marked = None if stranger.mark is None else stranger.mark.project_id
    before = instances.project_of(connection, stranger.id)
    project_id = wanted.project or next(
        (each for each in (before, nova.project_id, marked) if each and _exists(connection, PROJECTS, each)),
        actor.project_id,
    )
    theirs = nova.user_id is not None and _exists(connection, USERS, nova.user_id)
    name = (nova.name or stranger.name)[:_LONGEST_NAME]
    lock = None
    if wanted.lock is not None:
        kind = kind_placed_by(actor.kind, in_own_project=actor.project_id == project_id)
        lock = LockWish(kind=kind, holder=actor.user_id, reason=wanted.lock)
    return Wish(
        stranger=stranger,
        project_id=project_id,
        user_id=(nova.user_id or "") if theirs else actor.user_id,
        name=name,
        hostname=host_name(name),
        reservation_id=reservation_id,
        lock=lock,
    )


def _exists(connection: sa.Connection, table: sa.Table, row_id: str) -> bool:
    try:
        identity.get(connection, table, row_id)
    except NotFound:
        return False
    return True


async def _release(call: Call) -> Response:
    await call.body(Nothing)
    instance = await find_instance(call, call.request.path_params["id"])

    def answer(admitted: Admitted) -> Response:
        found = Found(
            operation=admitted.operation, project_id=instance.project_id, instance_name=instance.name
        )
        return reply(shown(call, found), 202)

    admission = call.services.admission
    if call.once is not None:
        admission = admission.on(call.once.database(answer))
    return answer(await admission.admit(_RELEASE, instance.id, call.actor))


def _stranger_view(host: str, stranger: Stranger) -> StrangerView:
    return StrangerView(
        host=host,
        id=stranger.id,
        name=stranger.name,
        state=stranger.observed,
        vcpus=stranger.vcpus,
        memory=stranger.memory,
        disks=stranger.disks,
        interfaces=stranger.cards,
        autostart=stranger.autostart,
        transient=stranger.transient,
        marked=stranger.mark is not None,
        nova=stranger.nova,
    )


def _adopted_view(call: Call, adopted: Adopted) -> AdoptedView:
    if adopted.outcome is Outcome.KNOWN and adopted.instance is not None:
        return _known_view(adopted.instance)
    wish, flavor = adopted.wish, adopted.wish.stranger.flavor()
    operation = None
    if adopted.operation is not None:
        found = Found(operation=adopted.operation, project_id=wish.project_id, instance_name=wish.name)
        operation = shown(call, found)
    return AdoptedView(
        id=wish.stranger.id,
        domain=wish.stranger.name,
        outcome=adopted.outcome,
        why=adopted.why,
        name=wish.name,
        project_id=wish.project_id,
        user_id=wish.user_id,
        becomes=None if adopted.outcome is Outcome.REFUSED else STATE_OF.get(wish.stranger.observed),
        flavor=flavor.name,
        vcpus=flavor.vcpus,
        memory=flavor.ram,
        disk=flavor.disk,
        operation=operation,
    )


def _known_view(instance: Instance) -> AdoptedView:
    """Say of a guest that it is an instance, as it is recorded."""
    return AdoptedView(
        id=instance.id,
        domain=instance.domain_name,
        outcome=Outcome.KNOWN,
        why="",
        name=instance.name,
        project_id=instance.project_id,
        user_id=instance.user_id,
        becomes=instance.vm_state,
        flavor=instance.flavor.name,
        vcpus=instance.flavor.vcpus,
        memory=instance.flavor.ram,
        disk=instance.flavor.disk,
        operation=None,
    )


#: By path, below ``/v1``.
RESOURCES: Final[dict[str, dict[str, Resource]]] = {
    "/strangers": {
        "GET": Resource(
            handler=_strangers,
            summary="List the guests that hosts have and Stateward does not look after.",
            policy=_READ,
            answer=StrangersView,
            query=_QUERY,
        )
    },
    "/adoptions": {
        "POST": Resource(
            handler=_adopt,
            summary="Make guests that a host has instances, as they are and without touching them.",
            policy=ADOPT.policy,
            body=Adoption,
            answer=AdoptionsView,
            status=202,
        )
    },
    "/instances/{id}/release": {
        "POST": Resource(
            handler=_release,
            summary="Give an adopted guest back, as it is and without touching it.",
            policy=_RELEASE.policy,
            body=Nothing,
            answer=OperationView,
            status=202,
        )
    },
}
