"""What the operator says of hosts: each is one write with its condition in it, and one record in the audit trail."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, Self, TypeVar

import sqlalchemy as sa

from stateward.domain.errors import NotFound
from stateward.domain.records import Actor
from stateward.operations.admission import Admission
from stateward.store import hosts, operations
from stateward.store.engine import Database
from stateward.store.hosts import Host

T = TypeVar("T")


class Hosts:
    """Acts on hosts, by an admission's database and clock."""

    def __init__(self, admission: Admission) -> None:
        """Keep the ports."""
        self._admission = admission

    def on(self, database: Database) -> Self:
        """Return the same on another database: one that adds to what each transaction does."""
        other = copy.copy(self)
        other._admission = self._admission.on(database)  # noqa: SLF001 (its own copy)
        return other

    async def enable(self, name: str, actor: Actor, *, then: Callable[[sa.Connection], T]) -> T:
        """Let new instances be placed there again; return what ``then`` makes of it in the same transaction.

        Raises:
            NotFound: there is no such host.
        """
        return await self._say(name, actor, "enable", {"enabled": True, "disabled_reason": None}, then)

    async def disable(
        self, name: str, actor: Actor, reason: str | None, *, then: Callable[[sa.Connection], T]
    ) -> T:
        """Place no new instances there; those that are there stay as they are.

        Raises:
            NotFound: there is no such host.
        """
        return await self._say(name, actor, "disable", {"enabled": False, "disabled_reason": reason}, then)

    async def _say(
        self,
        name: str,
        actor: Actor,
        action: str,
        changes: Mapping[str, Any],
        then: Callable[[sa.Connection], T],
    ) -> T:
        def work(connection: sa.Connection) -> T:
            host = known(connection, name)
            hosts.change(connection, host.id, dict(changes))
            done = then(connection)
            operations.record(
                connection,
                at=self._admission.clock.now(),
                event="host",
                actor=actor,
                instance_id=None,
                action=action,
                detail={"host": name} | dict(changes),
            )
            return done

        return await self._admission.database.write(work)


def known(connection: sa.Connection, name: str) -> Host:
    """Return a host.

    Raises:
        NotFound: there is none of this name.
    """
    host = hosts.named(connection, name)
    if host is None:
        raise NotFound(f"Host {name} could not be found.")
    return host
