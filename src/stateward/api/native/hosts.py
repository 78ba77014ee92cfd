"""``/v1/hosts``: what is known of hosts, and what the operator says of them."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from typing import Annotated, Any, Final

import msgspec
import sqlalchemy as sa
from starlette.responses import Response

from stateward.api.http import iso_time, seconds_of_iso
from stateward.api.native.call import Call, Resource, reply
from stateward.api.native.views import Nothing
from stateward.domain.actions import Policy, Role
from stateward.domain.errors import Invalid, NotFound
from stateward.domain.hosts import CONDITION_SAYS, Condition, Frozen, PowerSaid
from stateward.domain.placement import Room, capacity_of
from stateward.operations.hosts import Hosts
from stateward.store import hosts
from stateward.store.hosts import Host

_READ: Final = Policy("stateward:hosts:read", Role.ADMIN)
_CHANGE: Final = Policy("stateward:hosts:change", Role.ADMIN)
#: Seconds of the longest maintenance: a year.
_LONGEST: Final = 31_536_000
Reason = Annotated[str, msgspec.Meta(min_length=1, max_length=255)]


class Disable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Give a host no new instances."""

    reason: Reason | None = None


class Maintain(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Work on a host until a time, or for so many seconds."""

    reason: Reason
    until: dt.datetime | None = None
    seconds: Annotated[float, msgspec.Meta(gt=0, le=_LONGEST)] | None = None


class Said(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an operator knows of a host, and from where."""

    reason: Reason = "An operator says so."


class FrozenView(msgspec.Struct, frozen=True, kw_only=True):
    """Why a host's instances are not judged for now."""

    why: Frozen
    since: str | None
    says: str | None


class HypervisorView(msgspec.Struct, frozen=True, kw_only=True):
    """What a host last said of itself."""

    driver: str
    type: str
    version: int
    #: Whether it answers its agent; ``says`` is what the agent says where it does not.
    reachable: bool
    says: str
    running: int
    boot_id: str


class RoomView(msgspec.Struct, frozen=True, kw_only=True):
    """What a host has: memory in MiB, disk in GiB."""

    vcpus: int
    memory: int
    disk: int


class HostView(msgspec.Struct, frozen=True, kw_only=True):
    """A host."""

    name: str
    id: str
    zone: str
    condition: Condition
    #: What that is, in a sentence.
    condition_means: str
    #: Null while it has always been up.
    condition_since: str | None
    condition_says: str | None
    #: It was heard of lately, and nobody said that it is down.
    heard: bool
    seen_at: str | None
    enabled: bool
    disabled_reason: str | None
    forced_down: bool
    #: Null: its instances are judged.
    frozen: FrozenView | None
    #: When its maintenance ends by itself.
    maintenance_until: str | None
    #: Its instances' disks are on storage that other hosts reach too.
    shared: bool
    #: Null before it was heard of for the first time.
    hypervisor: HypervisorView | None
    #: All that may be claimed there; null before it was heard of.
    capacity: RoomView | None
    claimed: RoomView
    #: Living ones by vm state.
    instances: dict[str, int]


class HostsView(msgspec.Struct, frozen=True, kw_only=True):
    """Hosts by name."""

    hosts: list[HostView]


def _time(at: float | None) -> str | None:
    return None if at is None else iso_time(at)


def _room(room: Room) -> RoomView:
    return RoomView(vcpus=room.vcpus, memory=room.memory, disk=room.disk)


def view(call: Call, host: Host, counted: dict[str, int]) -> HostView:
    """Show a host with the instances that were counted on it."""
    report, services = host.report, call.services
    return HostView(
        name=host.name,
        id=host.id,
        zone=host.zone,
        condition=host.condition,
        condition_means=CONDITION_SAYS[host.condition],
        condition_since=_time(host.condition_at),
        condition_says=host.condition_detail,
        heard=host.up(services.clock.now(), services.host_patience),
        seen_at=_time(host.seen_at),
        enabled=host.enabled,
        disabled_reason=host.disabled_reason,
        forced_down=host.forced_down,
        frozen=None
        if host.frozen is None
        else FrozenView(why=host.frozen, since=_time(host.frozen_at), says=host.frozen_detail),
        maintenance_until=_time(host.maintenance_until),
        shared=host.shared,
        hypervisor=None
        if report is None
        else HypervisorView(
            driver=report.driver,
            type=report.hypervisor_type,
            version=report.hypervisor_version,
            reachable=report.reachable,
            says=report.detail,
            running=report.running,
            boot_id=report.boot_id,
        ),
        capacity=None if report is None else _room(capacity_of(report, services.admission.placement)),
        claimed=_room(host.claimed),
        instances=counted,
    )


def seen(call: Call, name: str) -> Callable[[sa.Connection], HostView]:
    """Return what reads one host."""

    def read(connection: sa.Connection) -> HostView:
        host = hosts.named(connection, name)
        if host is None:
            raise NotFound(f"Host {name} could not be found.")
        return view(call, host, hosts.census(connection, name).get(name, {}))

    return read


def acting(call: Call, answer: Callable[[Any], Response]) -> Hosts:
    """Return what acts on hosts, once for a request's key; ``answer`` makes its answer of what the write results in."""
    found = call.services.hosts
    return found if call.once is None else found.on(call.once.database(answer))


async def _index(call: Call) -> Response:
    def read(connection: sa.Connection) -> list[HostView]:
        counted = hosts.census(connection)
        return [view(call, host, counted.get(host.name, {})) for host in hosts.every(connection)]

    return reply(HostsView(hosts=await call.services.database.read(read)))


async def _show(call: Call) -> Response:
    return reply(await call.services.database.read(seen(call, call.request.path_params["name"])))


async def _power(call: Call) -> Response:
    return reply(await call.services.hosts.power(call.request.path_params["name"]))


async def _enable(call: Call) -> Response:
    await call.body(Nothing)
    name = call.request.path_params["name"]
    return reply(await acting(call, reply).enable(name, call.actor, then=seen(call, name)))


async def _disable(call: Call) -> Response:
    wanted = await call.body(Disable)
    name = call.request.path_params["name"]
    return reply(await acting(call, reply).disable(name, call.actor, wanted.reason, then=seen(call, name)))


async def _maintain(call: Call) -> Response:
    wanted = await call.body(Maintain)
    name = call.request.path_params["name"]
    if (wanted.until is None) == (wanted.seconds is None):
        raise Invalid("Say until when, or for how many seconds: one of until and seconds.")
    now = call.services.clock.now()
    until = _until(wanted.until, now) if wanted.until is not None else now + (wanted.seconds or 0.0)
    return reply(
        await acting(call, reply).maintain(name, call.actor, wanted.reason, until, then=seen(call, name))
    )


def _until(until: dt.datetime, now: float) -> float:
    try:
        at = seconds_of_iso(until)
    except ValueError:
        raise Invalid("The end of a maintenance, until, is no time of the years 1 to 9999 (UTC).") from None
    if at > now + _LONGEST:
        raise Invalid("A maintenance lasts a year at most: say an earlier time.")
    return at


async def _end_maintenance(call: Call) -> Response:
    name = call.request.path_params["name"]
    return reply(await call.services.hosts.end_maintenance(name, call.actor, then=seen(call, name)))


async def _confirm(call: Call) -> Response:
    said = await call.body(Said)
    name = call.request.path_params["name"]
    return reply(await acting(call, reply).confirm(name, call.actor, said.reason, then=seen(call, name)))


async def _dead(call: Call) -> Response:
    said = await call.body(Said)
    name = call.request.path_params["name"]
    return reply(await acting(call, reply).confirm_dead(name, call.actor, said.reason, then=seen(call, name)))


async def _fenced(call: Call) -> Response:
    said = await call.body(Said)
    name = call.request.path_params["name"]
    return reply(await acting(call, reply).fenced(name, call.actor, said.reason, then=seen(call, name)))


#: By path, below ``/v1``.
RESOURCES: Final[dict[str, dict[str, Resource]]] = {
    "/hosts": {
        "GET": Resource(handler=_index, summary="List the hosts.", policy=_READ, answer=HostsView),
    },
    "/hosts/{name}": {
        "GET": Resource(handler=_show, summary="Show a host.", policy=_READ, answer=HostView),
    },
    "/hosts/{name}/power": {
        "GET": Resource(
            handler=_power,
            summary="Ask a host's management controller whether it has power.",
            policy=_READ,
            answer=PowerSaid,
        ),
    },
    "/hosts/{name}/enable": {
        "POST": Resource(
            handler=_enable,
            summary="Let new instances be placed on a host again.",
            policy=_CHANGE,
            body=Nothing,
            answer=HostView,
        ),
    },
    "/hosts/{name}/disable": {
        "POST": Resource(
            handler=_disable,
            summary="Give a host no new instances; those that are there stay as they are.",
            policy=_CHANGE,
            body=Disable,
            answer=HostView,
        ),
    },
    "/hosts/{name}/maintenance": {
        "POST": Resource(
            handler=_maintain,
            summary="Judge nothing of a host, and place nothing there, until a time.",
            policy=_CHANGE,
            body=Maintain,
            answer=HostView,
        ),
        "DELETE": Resource(
            handler=_end_maintenance,
            summary="End a host's maintenance now.",
            policy=_CHANGE,
            answer=HostView,
        ),
    },
    "/hosts/{name}/confirm": {
        "POST": Resource(
            handler=_confirm,
            summary="Say that so many instances of a host have changed as it says; they are judged then.",
            policy=_CHANGE,
            body=Said,
            answer=HostView,
        ),
    },
    "/hosts/{name}/dead": {
        "POST": Resource(
            handler=_dead,
            summary="Say, as the second signal, that a silent host is dead.",
            policy=_CHANGE,
            body=Said,
            answer=HostView,
        ),
    },
    "/hosts/{name}/fenced": {
        "POST": Resource(
            handler=_fenced,
            summary="Say that a dead host has no power: its instances may be started elsewhere.",
            policy=_CHANGE,
            body=Said,
            answer=HostView,
        ),
    },
}
