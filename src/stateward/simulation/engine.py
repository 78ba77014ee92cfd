"""Playing a script: the cluster is built, the events happen at their times, and the log is returned."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from stateward.domain.actions import BY_KEY
from stateward.domain.locks import ActorKind
from stateward.domain.records import FlavorFacts, ImageFacts
from stateward.domain.states import VmState
from stateward.operations.creation import NewInstance, create
from stateward.operations.placing import Place
from stateward.simulation import loop
from stateward.simulation.log import Log, shortened
from stateward.simulation.machines import MACHINES
from stateward.simulation.operators import OPERATORS, SimulatedPower
from stateward.simulation.people import PEOPLE, operate
from stateward.simulation.phrases import Given, Occurrence, understand
from stateward.simulation.script import BadScript, InstanceLine, Script
from stateward.simulation.world import World, empty_database

#: Every simulation has the same ids and dice.
SEED: Final = 1

PHRASES: Final = (*MACHINES, *OPERATORS, *PEOPLE)

#: What is asked for, one after the other, to bring a new instance into a state.
_WAYS: Final[dict[str, tuple[str, ...]]] = {
    "active": (),
    "stopped": ("stop_force",),
    "paused": ("pause",),
    "suspended": ("suspend",),
    "rescued": ("rescue",),
    "resized": ("resize",),
    "resized-stopped": ("stop_force", "resize_stopped"),
    "shelved": ("shelve",),
    # What is shelved leaves its host at once where the settings say so.
    "offloaded": ("shelve",),
    "soft-deleted": ("delete_soft",),
    "error": (),
}


#: Looks at the cluster of a simulation.
Look = Callable[[World], Awaitable[None]]


async def _nothing(_world: World) -> None:
    pass


def play(script: Script, *, begin: Look = _nothing, end: Look = _nothing) -> list[str]:
    """Play a script and return its log.

    Args:
        script: what happens.
        begin: called when all is as the script says it begins.
        end: called when its time is over.

    Raises:
        BadScript: it names what is not there, or begins with what cannot be.
    """
    occurrences = [understand(script, event, PHRASES) for event in script.events]
    # Made on a loop of its own: threads take part in that.
    empty_database()
    return loop.run(_play(script, occurrences, begin, end), seed=SEED)


async def _play(script: Script, occurrences: Sequence[Occurrence], begin: Look, end: Look) -> list[str]:
    clock = asyncio.get_running_loop()
    log = Log(clock.time)
    async with World(script.hosts, script.settings, log, SimulatedPower, seed=SEED) as world:
        await _build(world, script)
        for each in occurrences:
            if each.at is None:
                await each.act(world, each.given)
                await world.quiet()
        await world.next_second()
        await begin(world)
        log.begin()
        began = clock.time()
        for each in occurrences:
            if each.at is not None:
                await asyncio.sleep(max(began + each.at - clock.time(), 0.0))
                log.say(f"> {each.text}")
                await each.act(world, each.given)
        await asyncio.sleep(max(began + script.until - clock.time(), 0.0))
        for line in _ending(world):
            log.say(line)
        await end(world)
    return log.lines()


async def _build(world: World, script: Script) -> None:
    """Make the instances and bring each to where it begins, all at once."""
    for line in script.instances:
        await _create(world, line)
    await world.quiet()
    offload = script.settings.shelve.offload
    for line in script.instances:
        if line.state == ("shelved" if offload else "offloaded"):
            raise BadScript(
                line.line,
                f"Nothing is {line.state} while shelve.offload is {str(offload).lower()}; set it otherwise.",
            )
    for step in range(max((len(_WAYS[line.state]) for line in script.instances), default=0)):
        for line in script.instances:
            way = _WAYS[line.state]
            if step < len(way):
                instance = await world.instance(line.name)
                row = BY_KEY[way[step]]
                await operate(world, instance, world.actor(ActorKind.ADMIN), (row,), Given(who="operator"))
        await world.quiet()
    for line in script.instances:
        if line.state == "error":
            instance = await world.instance(line.name)
            await world.plane.immediate.reset_state(
                instance.id, world.actor(ActorKind.ADMIN), to=VmState.ERROR
            )


async def _create(world: World, line: InstanceLine) -> None:
    words = " ".join(f"stateward.{key}={value}" for key, value in line.guest.items())
    new = NewInstance(
        project_id=line.project,
        user_id="customer",
        name=line.name,
        hostname=line.name,
        flavor=FlavorFacts(
            id="flavor",
            name="flavor",
            vcpus=line.vcpus,
            ram=line.memory,
            disk=line.disk,
            extra_specs=line.flavor,
        ),
        image=ImageFacts(
            id="image", disk_format="qcow2", properties={**line.image, "os_command_line": words}
        ),
        metadata=line.metadata,
        tags=line.tags,
        place=Place(host=line.host),
    )
    actor = world.actor(ActorKind.ADMIN if line.host else ActorKind.MEMBER, line.project)
    made = await create(world.plane.admission, new, actor, reservation_id="r")
    if made.instance.fault is not None:
        raise BadScript(line.line, f"There is no room for {line.name}: {made.instance.fault.message}")


def _ending(world: World) -> list[str]:
    """Say what everything is at the end; what is the same is said once."""
    if world.database.away:
        world.database.away = False
    groups: dict[str, list[str]] = {}
    for row in world.teller.recorded():
        seen = {name: host.states(row.id) for name, host in world.hosts.items()}
        there = [f"guest {state} on {name}" for name, state in seen.items() if state is not None]
        task = f", {row.task_state}" if row.task_state else ""
        lock = f", locked by {row.locked_by}" if row.locked_by else ""
        where = f" on {row.host}" if row.host else ""
        said = f"{row.vm_state}{where}{task}{lock}; {' and '.join(there) or 'no guest'}"
        groups.setdefault(said, []).append(row.name)
    return [f"= {shortened(names)}: {said}" for said, names in groups.items()]
