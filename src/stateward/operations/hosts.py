"""What the operator says of hosts: each is one write with its condition in it, and one record in the audit trail."""

from __future__ import annotations

import copy
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Self, TypeVar

import sqlalchemy as sa

from stateward.domain.errors import Conflict, Invalid, NotFound
from stateward.domain.evacuation import PlanKind
from stateward.domain.hosts import TRANSITIONS, Event, PowerSaid
from stateward.domain.records import Actor
from stateward.operations import host_plans, sweeps
from stateward.operations.admission import Admission
from stateward.operations.host_plans import NO_WISHES, Wishes
from stateward.store import host_plans as kept_plans, hosts, operations
from stateward.store.engine import Database
from stateward.store.host_plans import KeptPlan
from stateward.store.hosts import Host

T = TypeVar("T")

#: Makes an answer of what is there, inside the transaction that changed it.
Then = Callable[[sa.Connection], T]
#: The same of a plan.
ThenOf = Callable[[sa.Connection, KeptPlan], T]


class Hosts:
    """Acts on hosts. Every method raises ``NotFound`` when there is no host of the name."""

    def __init__(
        self,
        admission: Admission,
        *,
        wishes: Wishes = NO_WISHES,
        said: Callable[[], None] = lambda: None,
        judge: Callable[[str], None] = lambda _instance_id: None,
        powers: Mapping[str, Callable[[], Awaitable[PowerSaid]]] = {},
    ) -> None:
        """Use an admission's database and clock.

        Args:
            admission: whose.
            wishes: what is evacuated.
            said: called after something was said of a host.
            judge: called with each instance of a host whose sweep was confirmed.
            powers: by host, what asks its management controller.
        """
        self._powers = powers
        self._judge = judge
        self._admission = admission
        self._database = admission.database
        self._wishes = wishes
        self._said = said

    def on(self, database: Database) -> Self:
        """Return the same on another database: one that adds to what each transaction does."""
        other = copy.copy(self)
        other._database = database  # noqa: SLF001 (its own copy)
        return other

    async def power(self, name: str) -> PowerSaid:
        """Ask a host's management controller whether it has power; nothing is changed.

        Raises:
            Conflict: none is known of it.
        """
        if await self._database.read(lambda connection: hosts.named(connection, name)) is None:
            raise NotFound(f"Host {name} could not be found.")
        if name not in self._powers:
            raise Conflict(f"No management controller of host {name} is known; name it in its [host.bmc].")
        return await self._powers[name]()

    async def enable(self, name: str, actor: Actor, *, then: Then[T]) -> T:
        """Let new instances be placed there again."""
        return await self._say(name, actor, "enable", {"enabled": True, "disabled_reason": None}, then)

    async def disable(self, name: str, actor: Actor, reason: str | None, *, then: Then[T]) -> T:
        """Place no new instances there; those that are there stay as they are."""
        return await self._say(name, actor, "disable", {"enabled": False, "disabled_reason": reason}, then)

    async def maintain(self, name: str, actor: Actor, reason: str, until: float, *, then: Then[T]) -> T:
        """Judge nothing of a host, and place nothing there, until some time; seconds since the epoch.

        Raises:
            Invalid: the time has passed.
        """

        def act(connection: sa.Connection, now: float) -> dict[str, Any]:
            if until <= now:
                raise Invalid("The end of the maintenance has passed already.")
            hosts.maintain(connection, name, reason, until, now)
            return {"reason": reason, "until": until}

        return await self._act(name, actor, "maintain", act, then)

    async def end_maintenance(self, name: str, actor: Actor, *, then: Then[T]) -> T:
        """Judge a host again; one that is not maintained stays as it is."""

        def act(connection: sa.Connection, now: float) -> dict[str, Any]:
            del now
            return {"was_maintained": hosts.end_maintenance(connection, name)}

        return await self._act(name, actor, "end_maintenance", act, then)

    async def confirm(self, name: str, actor: Actor, reason: str, *, then: Then[T]) -> T:
        """Say that a host's sweep is true: what it said of its instances is taken as it was kept, and judged (B5).

        Raises:
            Conflict: nothing of it waits for that.
        """
        due: list[str] = []

        def act(connection: sa.Connection, now: float) -> dict[str, Any]:
            found = sweeps.believe(connection, name, actor=actor, now=now, by="operator")
            if found is None:
                raise Conflict(f"Nothing that host {name} says of its instances waits to be confirmed.")
            # Not added to: what a write does that is tried again counts once.
            due[:] = found
            return {"reason": reason}

        done = await self._act(name, actor, "confirm", act, then)
        for instance_id in due:
            self._judge(instance_id)
        return done

    async def confirm_dead(self, name: str, actor: Actor, reason: str, *, then: Then[T]) -> T:
        """Say, as the second signal, that a silent host is dead.

        Raises:
            Conflict: it is not suspect.
        """
        return await self._becomes(name, actor, Event.CONFIRMED, reason, then)

    async def fenced(self, name: str, actor: Actor, reason: str, *, then: Then[T]) -> T:
        """Say that a dead host has no power: its instances may be started elsewhere.

        Raises:
            Conflict: it is not dead.
        """
        return await self._becomes(name, actor, Event.FENCED, reason, then)

    async def plan(
        self,
        name: str,
        actor: Actor,
        kind: PlanKind,
        *,
        then: ThenOf[T],
        migrate: bool = False,
        begin: bool = False,
    ) -> T:
        """Plan what becomes of a host's instances, and keep that.

        Args:
            name: the host's.
            actor: who asks.
            kind: what for.
            then: makes the answer.
            migrate: of a drain: what can be carried elsewhere is.
            begin: of a drain: it is carried out at once, and nothing new is placed there.

        Raises:
            Conflict: a plan that was approved is not over.
        """

        def work(connection: sa.Connection) -> T:
            host, now = known(connection, name), self._admission.clock.now()
            plan = host_plans.preview(
                connection,
                host,
                kind,
                rules=self._admission.placement,
                wishes=self._wishes,
                now=now,
                migrate=migrate,
            )
            detail = {"migrate": migrate} if kind is PlanKind.DRAIN else {}
            kept = host_plans.keep(connection, plan, kind, actor, now=now, detail=detail, approved=begin)
            if begin:
                hosts.change(connection, host.id, {"enabled": False, "disabled_reason": _DRAINED})
            return then(connection, kept)

        return await self._write(work)

    async def approve(self, name: str, plan_id: str, actor: Actor, *, then: ThenOf[T]) -> T:
        """Have a plan carried out.

        Raises:
            NotFound: there is no such host, or plan.
            Conflict: it cannot be approved now.
        """

        def work(connection: sa.Connection) -> T:
            known(connection, name)
            kept = host_plans.approve(connection, name, plan_id, actor, self._admission.clock.now())
            return then(connection, kept)

        return await self._write(work)

    async def cancel(self, name: str, actor: Actor, kind: PlanKind, *, then: Then[T]) -> T:
        """Give up the plans that are not over; what was admitted goes on."""

        def act(connection: sa.Connection, now: float) -> dict[str, Any]:
            return {"plans": kept_plans.cancel(connection, name, kind, now, approved=True)}

        return await self._act(name, actor, f"cancel_{kind}", act, then)

    async def _becomes(self, name: str, actor: Actor, event: Event, reason: str, then: Then[T]) -> T:
        def act(connection: sa.Connection, now: float) -> dict[str, Any]:
            if hosts.become(connection, name, event, reason, now) is None:
                when = sorted(each for row in TRANSITIONS if row.event is event for each in row.when)
                raise Conflict(
                    f"Host {name} is {known(connection, name).condition}; that can be said only of one that is "
                    f"{' or '.join(when)}."
                )
            return {"reason": reason}

        return await self._act(name, actor, _SAYS[event], act, then)

    async def _say(
        self, name: str, actor: Actor, action: str, changes: Mapping[str, Any], then: Then[T]
    ) -> T:
        def act(connection: sa.Connection, now: float) -> dict[str, Any]:
            del now
            hosts.change(connection, known(connection, name).id, dict(changes))
            return dict(changes)

        return await self._act(name, actor, action, act, then)

    async def _act(
        self,
        name: str,
        actor: Actor,
        action: str,
        act: Callable[[sa.Connection, float], dict[str, Any]],
        then: Then[T],
    ) -> T:
        """Act on a host that is there, and record it; return what ``then`` makes of it in the same transaction."""

        def work(connection: sa.Connection) -> T:
            now = self._admission.clock.now()
            known(connection, name)
            detail = act(connection, now)
            done = then(connection)
            operations.record(
                connection,
                at=now,
                event="host",
                actor=actor,
                instance_id=None,
                action=action,
                detail={"host": name} | detail,
            )
            return done

        return await self._write(work)

    async def _write(self, work: Callable[[sa.Connection], T]) -> T:
        done = await self._database.write(work)
        self._said()
        return done


_DRAINED = "It is drained."
#: What an operator says of a host, for the audit trail.
_SAYS = {Event.CONFIRMED: "confirm_dead", Event.FENCED: "fence_done"}


def known(connection: sa.Connection, name: str) -> Host:
    """Return a host.

    Raises:
        NotFound: there is none of this name.
    """
    host = hosts.named(connection, name)
    if host is None:
        raise NotFound(f"Host {name} could not be found.")
    return host
