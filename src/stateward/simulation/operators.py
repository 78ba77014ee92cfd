"""Phrases about what operators say of hosts, and the power that simulated fences take from simulated machines."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import sqlalchemy as sa

from stateward.arbiter.witnesses import Evidence, FenceFailed, Word
from stateward.domain.errors import Conflict, Forbidden, Invalid, NotFound
from stateward.domain.evacuation import PlanKind
from stateward.domain.locks import ActorKind
from stateward.domain.records import Actor
from stateward.operations import sweeps
from stateward.operations.hosts import Hosts
from stateward.simulation.phrases import Given, Phrase
from stateward.simulation.world import World
from stateward.store import host_plans
from stateward.store.engine import StoreUnavailable

#: Seconds that a fence needs.
_FENCING: Final = 5.0
_REFUSALS: Final = (NotFound, Conflict, Invalid, Forbidden, StoreUnavailable)


class SimulatedPower:
    """What a management controller knows and can do; a witness and a fence."""

    def __init__(self, world: World) -> None:
        """Reach every machine."""
        self._world = world

    async def ask(self, host: str, since: float) -> Evidence:
        """Say whether the machine has power."""
        if self._world.hosts[host].fence == "never returns":
            return Evidence(word=Word.UNKNOWN, says="Its management controller does not answer.")
        if self._world.hosts[host].powered:
            return Evidence(word=Word.ALIVE, says="It has power.")
        return Evidence(word=Word.DEAD, says="It has no power.")

    async def fence(self, host: str) -> str:
        """Take the machine's power."""
        machine = self._world.hosts[host]
        await asyncio.sleep(_FENCING)
        if machine.fence == "never returns":
            patience = self._world.settings.death.fence_timeout
            await asyncio.sleep(patience)
            raise FenceFailed(f"Nothing came of it within {patience:g} s.")
        if machine.fence == "fails":
            raise FenceFailed("Its management controller refuses.")
        if machine.powered:
            await self._world.lose_power(host)
        return "Its power was taken."


def _nothing(_connection: sa.Connection) -> None:
    pass


async def _say(world: World, given: Given, act: Callable[[Hosts, Actor], Awaitable[object]]) -> None:
    try:
        await act(world.plane.hosts, world.actor(ActorKind.ADMIN))
    except _REFUSALS as error:
        world.log.say(f"{given.host}: refused to the operator: {error}")


async def _dead(world: World, given: Given) -> None:
    await _say(
        world, given, lambda hosts, actor: hosts.confirm_dead(given.host, actor, "script", then=_nothing)
    )


async def _fenced(world: World, given: Given) -> None:
    await _say(world, given, lambda hosts, actor: hosts.fenced(given.host, actor, "script", then=_nothing))


async def _enable(world: World, given: Given) -> None:
    await _say(
        world,
        given,
        lambda hosts, actor: (
            hosts.enable(given.host, actor, then=_nothing)
            if given.verb == "enables"
            else hosts.disable(given.host, actor, "script", then=_nothing)
        ),
    )


async def _maintain(world: World, given: Given) -> None:
    until = world.clock.now() + (given.seconds or 0.0)
    await _say(
        world, given, lambda hosts, actor: hosts.maintain(given.host, actor, "script", until, then=_nothing)
    )


async def _end_maintenance(world: World, given: Given) -> None:
    await _say(world, given, lambda hosts, actor: hosts.end_maintenance(given.host, actor, then=_nothing))


async def _drain(world: World, given: Given) -> None:
    await _say(
        world,
        given,
        lambda hosts, actor: hosts.plan(
            given.host,
            actor,
            PlanKind.DRAIN,
            then=lambda _connection, _plan: None,
            migrate=bool(given.verb),
            begin=True,
        ),
    )
    await _show(world, given.host, PlanKind.DRAIN)


async def _plan(world: World, given: Given) -> None:
    if given.verb == "plans":
        await _say(
            world,
            given,
            lambda hosts, actor: hosts.plan(
                given.host, actor, PlanKind.EVACUATE, then=lambda _connection, _plan: None
            ),
        )
    await _show(world, given.host, PlanKind.EVACUATE)


async def _approve(world: World, given: Given) -> None:
    plan = await world.database.look(
        lambda connection: host_plans.of_host(connection, given.host, PlanKind.EVACUATE)
    )
    plan_id = "" if plan is None else plan.id
    await _say(
        world,
        given,
        lambda hosts, actor: hosts.approve(given.host, plan_id, actor, then=lambda _connection, _plan: None),
    )


async def _cancel(world: World, given: Given) -> None:
    kind = PlanKind.DRAIN if given.verb == "drain" else PlanKind.EVACUATE
    await _say(world, given, lambda hosts, actor: hosts.cancel(given.host, actor, kind, then=_nothing))


async def _show(world: World, host: str, kind: PlanKind) -> None:
    """Write the newest plan, a line for what is done with one instance, or with several alike."""

    def look(connection: sa.Connection) -> list[host_plans.KeptMove]:
        plan = host_plans.of_host(connection, host, kind)
        return [] if plan is None else host_plans.moves(connection, plan.id)

    moves = await world.database.look(look)
    if not moves:
        world.log.say(f"{host}: no plan")
    for move in sorted(moves, key=lambda each: (each.to_host or "~", each.action or "~", each.number)):
        where = f"to {move.to_host} by {move.action}" if move.to_host else move.action or "left"
        world.log.say(f": {where}: {move.says}", before=f"{host}: plan: ", subject=move.name)


async def _confirm(world: World, given: Given) -> None:
    actor = world.actor(ActorKind.ADMIN)
    try:
        judged = await world.database.write(
            lambda connection: sweeps.believe(
                connection, given.host, actor=actor, now=world.clock.now(), by="operator"
            )
        )
    except StoreUnavailable as error:
        world.log.say(f"{given.host}: refused to the operator: {error}")
        return
    for instance_id in judged or ():
        world.plane.arbiter.wake(instance_id)


async def _fencing(world: World, given: Given) -> None:
    world.hosts[given.host].fence = given.verb


OPERATORS: Final[tuple[Phrase, ...]] = (
    Phrase("operator confirms what {host} lists", _confirm, "What a sweep would have changed is true."),
    Phrase("operator confirms that {host} is dead", _dead, "The second signal of a host's death."),
    Phrase("operator says that {host} has no power", _fenced, "It was fenced by hand."),
    Phrase("operator (enables|disables) {host}", _enable, "New instances may be placed there, or not."),
    Phrase("operator maintains {host} for {time}", _maintain, "Nothing of it is judged, for so long."),
    Phrase("operator ends the maintenance of {host}", _end_maintenance, "Before its time."),
    Phrase("operator drains {host}[ by (migration)]", _drain, "Empty it, and write the plan into the log."),
    Phrase(
        "operator (plans|looks at) the evacuation of {host}",
        _plan,
        "Make a plan, or look at the one that there is; it is written into the log.",
    ),
    Phrase("operator approves the evacuation of {host}", _approve, "Have its newest plan carried out."),
    Phrase("operator cancels the (drain|evacuation) of {host}", _cancel, "Give plans up that are not over."),
    Phrase(
        "fence of {host} (works|fails|never returns)",
        _fencing,
        "What comes of taking its power, where the settings name a fence; one that works takes five seconds.",
    ),
)
