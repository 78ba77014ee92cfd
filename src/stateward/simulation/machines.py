"""Phrases about guests, hosts, hypervisors, networks and the server: what happens behind everybody's back."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec

from stateward.agent.driver import DriverError
from stateward.agent.simulated import disks, guests
from stateward.agent.simulated.guests import SimulatedGuest
from stateward.agent.simulated.hypervisor import Change, SimulatedHypervisor
from stateward.domain.records import GuestSpec
from stateward.domain.states import Cause
from stateward.simulation.phrases import Given, Phrase
from stateward.simulation.wire import FAIR, Weather, Wire
from stateward.simulation.world import Host, World

#: What an operator's hand on the hypervisor itself does, by virsh's word.
_VIRSH: Final[dict[str, Callable[[SimulatedHypervisor, str], None]]] = {
    "destroy": SimulatedHypervisor.destroy,
    "start": SimulatedHypervisor.start,
    "suspend": SimulatedHypervisor.pause,
    "resume": SimulatedHypervisor.resume,
    "managedsave": SimulatedHypervisor.save,
    "save": SimulatedHypervisor.save_to_file,
    "undefine": SimulatedHypervisor.undefine,
    "shutdown": lambda hypervisor, guest: hypervisor.change(guest, guests.request_shutdown),
}

#: What a guest does by itself, or what its hypervisor does with it.
_GUEST: Final[dict[str, Callable[[SimulatedHypervisor, str], None]]] = {
    "crashes": SimulatedHypervisor.crash,
    "crashes and stays there": functools.partial(SimulatedHypervisor.crash, kept=True),
    "powers itself off": SimulatedHypervisor.guest_shutdown,
    "halts on a full disk": functools.partial(SimulatedHypervisor.pause, cause=Cause.IO_ERROR),
    "halts for a migration": functools.partial(SimulatedHypervisor.pause, cause=Cause.MIGRATION),
    "halts half-way through a migration": functools.partial(
        SimulatedHypervisor.pause, cause=Cause.HALF_MIGRATED
    ),
    "halts for a dump": functools.partial(SimulatedHypervisor.pause, cause=Cause.SAVED),
    "falls asleep": functools.partial(SimulatedHypervisor.pause, cause=Cause.GUEST),
    "runs on": SimulatedHypervisor.resume,
    "is ended for want of memory": functools.partial(SimulatedHypervisor.crash, cause=Cause.OUT_OF_MEMORY),
    "is migrated away": functools.partial(SimulatedHypervisor.crash, cause=Cause.MIGRATION),
}

#: What can be made to fail, in words.
_CALLS: Final = (
    *("define", "power on", "power off", "pause", "unpause", "save memory", "restore memory"),
    *("list", "get"),
)


async def _behind(
    world: World, given: Given, verbs: dict[str, Callable[[SimulatedHypervisor, str], None]]
) -> None:
    for name in given.which:
        host = world.hosts[given.host] if given.host else world.home(await world.instance(name))
        try:
            verbs[given.verb](host.hypervisor, world.id_of(name))
        except DriverError as error:
            world.log.say(f"{host.name}: {error}")


async def _guest(world: World, given: Given) -> None:
    await _behind(world, given, _GUEST)


async def _virsh(world: World, given: Given) -> None:
    await _behind(world, given, _VIRSH)


async def _copy(world: World, given: Given) -> None:
    for name in given.which:
        instance = await world.instance(name)
        spec = world.home(instance).hypervisor.guest(instance.id).spec
        if spec is None:
            world.log.say(f"{instance.host}: guest {name} is not there to be copied")
            continue
        world.hosts[given.host].hypervisor.change(instance.id, _made(spec))


def _made(spec: GuestSpec) -> Change:
    def change(guest: SimulatedGuest, now: float) -> SimulatedGuest:
        return guests.power_on(guests.define(disks.prepare_disk(guest, spec), spec), now)

    return change


async def _dies(world: World, given: Given) -> None:
    await world.lose_power(given.host)


async def _returns(world: World, given: Given) -> None:
    await world.boot(given.host)


async def _reboots(world: World, given: Given) -> None:
    await world.lose_power(given.host)
    world.after(given.seconds or 0.0, f"host {given.host} is up again", lambda: world.boot(given.host))


async def _libvirtd(world: World, given: Given) -> None:
    hypervisor = world.hosts[given.host].hypervisor
    if given.verb == "stops":
        hypervisor.unavailable()
    else:
        hypervisor.available()


async def _restarts(world: World, given: Given) -> None:
    hypervisor = world.hosts[given.host].hypervisor
    hypervisor.unavailable()

    async def back() -> None:
        hypervisor.available()

    world.after(given.seconds or 0.0, f"libvirtd of {given.host} runs again", back)


async def _lists(world: World, given: Given) -> None:
    hypervisor = world.hosts[given.host].hypervisor
    there = [guest.id for guest in hypervisor.guests()]
    shown = {"all": len(there), "half": len(there) // 2, "none": 0}[given.verb]
    hypervisor.hidden = frozenset(there[shown:])


async def _hides(world: World, given: Given) -> None:
    for name in given.which:
        instance = await world.instance(name)
        hypervisor = world.home(instance).hypervisor
        hypervisor.hidden |= {instance.id}


async def _slow(world: World, given: Given) -> None:
    world.hosts[given.host].hypervisor.set_latency(given.seconds or 0.0)


async def _events(world: World, given: Given) -> None:
    world.hosts[given.host].hypervisor.silent = given.verb == "are lost"


async def _agent(world: World, given: Given) -> None:
    await (world.kill_agent if given.verb == "is killed" else world.start_agent)(given.host)


async def _clock(world: World, given: Given) -> None:
    world.hosts[given.host].clock.wrong += given.seconds or 0.0


async def _server_clock(world: World, given: Given) -> None:
    world.clock.wrong += given.seconds or 0.0


async def _network(world: World, given: Given) -> None:
    wire = world.wires[given.host]
    (wire.cut if given.verb == "is cut" else wire.mend)()


def _weather(change: Callable[[Weather, Given], Weather]) -> Callable[[World, Given], Awaitable[None]]:
    async def act(world: World, given: Given) -> None:
        wire: Wire = world.wires[given.host]
        wire.weather = change(wire.weather, given)

    return act


async def _server(world: World, given: Given) -> None:
    if given.verb == "is killed":
        await world.kill_server()
        if given.seconds is not None:
            world.after(given.seconds, "the server starts", world.start_server)
    else:
        await world.start_server()


async def _database(world: World, given: Given) -> None:
    world.database.away = given.verb == "is away"


async def _fails(world: World, given: Given) -> None:
    host: Host = world.hosts[given.host]
    host.hypervisor.fail_next(
        given.verb.replace(" ", "_"), DriverError(f"The hypervisor could not do it: {given.text}.")
    )


MACHINES: Final[tuple[Phrase, ...]] = (
    Phrase(
        f"guest {{which}} ({'|'.join(_GUEST)})[ on {{host}}]",
        _guest,
        "A guest does something by itself, on the host it is recorded on or on another.",
    ),
    Phrase(
        f"virsh ({'|'.join(_VIRSH)}) {{which}}[ on {{host}}]",
        _virsh,
        "Somebody does something to the guest past Stateward.",
    ),
    Phrase(
        "a copy of {which} runs on {host}", _copy, "A second guest of the instance comes up on another host."
    ),
    Phrase("host {host} dies", _dies, "Its power is gone, and stays so."),
    Phrase("host {host} comes back", _returns, "It has power again, and boots."),
    Phrase("host {host} reboots in {time}", _reboots, "Its power is gone; after the time it is up again."),
    Phrase(
        "libvirtd of {host} (stops|starts)", _libvirtd, "Its hypervisor cannot be asked; its guests run on."
    ),
    Phrase("libvirtd of {host} restarts in {time}", _restarts, "The same, for a time."),
    Phrase(
        "libvirtd of {host} lists (all|half|none) of its guests", _lists, "It answers, and leaves guests out."
    ),
    Phrase("libvirtd hides {which}", _hides, "It answers, and leaves these out."),
    Phrase(
        "libvirtd of {host} takes {time} for each call", _slow, "Every call lasts so long; at first 10 ms."
    ),
    Phrase(
        f"libvirtd of {{host}} fails its next ({'|'.join(_CALLS)}): {{text}}",
        _fails,
        "One call fails, with these words.",
    ),
    Phrase("events of {host} (are lost|come again)", _events, "Its hypervisor tells of no change."),
    Phrase("agent of {host} (is killed|starts)", _agent, "With kill -9; nobody watches the host meanwhile."),
    Phrase("clock of {host} jumps {offset}", _clock, "Its time of day is wrong by so much more: +1h, -10s."),
    Phrase("clock of the server jumps {offset}", _server_clock, "The same, of the server's."),
    Phrase(
        "network of {host} (is cut|is back)",
        _network,
        "Messages are kept, in both directions, and come late.",
    ),
    Phrase(
        "messages of {host} take {time}",
        _weather(lambda weather, given: msgspec.structs.replace(weather, delay=given.seconds or 0.0)),
        "Each comes so much later.",
    ),
    Phrase(
        "messages of {host} come in any order within {time}",
        _weather(lambda weather, given: msgspec.structs.replace(weather, spread=given.seconds or 0.0)),
        "Each comes later by chance, by so much at most.",
    ),
    Phrase(
        "messages of {host} come twice",
        _weather(lambda weather, _given: msgspec.structs.replace(weather, twice=True)),
        "Each comes again a second later.",
    ),
    Phrase(
        "messages of {host} come as they should",
        _weather(lambda _weather, _given: FAIR),
        "As at the beginning.",
    ),
    Phrase(
        "server (is killed)[ for {time}]", _server, "With kill -9, and the agents with it; guests run on."
    ),
    Phrase("server (starts)", _server, "On the same database."),
    Phrase("database (is away|is back)", _database, "It cannot be read or written."),
)
