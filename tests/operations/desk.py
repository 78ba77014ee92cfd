"""Admission on a bare database: no bus, no agent, a clock that is set by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec
import sqlalchemy as sa

from stateward.domain.actions import BY_KEY
from stateward.domain.locks import ActorKind
from stateward.domain.placement import NOVA_RULES, Rules
from stateward.domain.records import Dispatch, HostReport, Instance, Operation
from stateward.operations.admission import Admission, Admitted, ShutdownDefaults
from stateward.operations.immediate import Immediate
from stateward.store import hosts, instances, operations
from stateward.store.engine import Database, StoreUnavailable, Work
from stateward.store.tables import AUDIT
from tests.rows import NOW, SetClock, actor, insert

T = TypeVar("T")


class Desk:
    """Where operations are admitted, and what that left behind."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.clock = SetClock()
        self.wakes = 0
        self.compared: list[str] = []
        #: Images whose data are to be removed.
        self.forgotten: list[str] = []
        self.open(offload=True)

    def open(self, *, offload: bool, placement: Rules = NOVA_RULES) -> None:
        """Admit by the operator's settings from now on."""
        self.admission = Admission(
            self.database,
            self.clock,
            ShutdownDefaults(),
            self.wake,
            placement,
            offload=offload,
            forget_images=self.forgotten.extend,
        )
        self.immediate = Immediate(self.admission, self.compared.append)

    def wake(self) -> None:
        """Count how often the dispatcher was woken."""
        self.wakes += 1

    async def add(self, **changes: Any) -> str:
        """Insert an instance and return its id."""
        return (await self.database.write(lambda connection: insert(connection, **changes))).id

    async def add_host(
        self, name: str, *, zone: str = "nova", at: float = NOW, reachable: bool = True
    ) -> str:
        """Register a host that was heard of, and return its id."""
        report = HostReport(
            host=name,
            driver="simulated",
            hypervisor_type="simulated",
            hypervisor_version=1,
            reachable=reachable,
            detail="",
            vcpus=4,
            memory=1024,
            disk=10,
            disk_used=0,
            running=0,
            cpu_info="",
            at=at,
        )

        def work(connection: sa.Connection) -> str:
            hosts.register(connection, name, zone)
            hosts.heard(connection, report)
            return next(host.id for host in hosts.every(connection) if host.name == name)

        return await self.database.write(work)

    async def admit(
        self, action: str, instance_id: str, kind: ActorKind = ActorKind.MEMBER, **options: Any
    ) -> Admitted:
        """Admit an operation by its key."""
        return await self.admission.admit(BY_KEY[action], instance_id, actor(kind), **options)

    async def change(self, instance_id: str, changes: Mapping[str, Any]) -> None:
        """Change an instance's row past everything."""
        await self.database.write(
            lambda connection: instances.guarded_update(connection, instance_id, (), changes)
        )

    async def row(self, instance_id: str) -> Instance:
        """Return an instance's row."""
        found = await self.database.read(lambda connection: instances.get(connection, instance_id))
        assert found is not None
        return found

    async def operation(self, operation_id: str) -> Operation:
        """Return an operation."""
        found = await self.database.read(lambda connection: operations.get(connection, operation_id))
        assert found is not None
        return found

    async def operations(self, instance_id: str) -> list[Operation]:
        """Return an instance's operations, newest first."""
        return await self.database.read(lambda connection: operations.of_instance(connection, instance_id))

    async def outbox(self) -> list[tuple[str, str, Dispatch]]:
        """Return what waits to be sent: subject, message id and dispatch."""
        posted = await self.database.read(operations.posted)
        return [
            (subject, message_id, msgspec.json.decode(payload, type=Dispatch))
            for _number, subject, message_id, payload in posted
        ]

    async def audit(self) -> list[tuple[str, str | None, dict[str, Any]]]:
        """Return the audit trail: event, action and detail."""
        await self.database.seal()
        rows = await self.database.read(
            lambda connection: connection.execute(
                sa.select(AUDIT.c.event, AUDIT.c.action, AUDIT.c.detail).order_by(AUDIT.c.number)
            ).all()
        )
        return [(row.event, row.action, row.detail) for row in rows]


class Away:
    """A database whose writes fail while it is ``away``."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.dialect = database.dialect
        self.away = False

    async def read(self, work: Work[T]) -> T:
        """Read."""
        return await self._database.read(work)

    async def write(self, work: Work[T]) -> T:
        """Write, unless it is away."""
        if self.away:
            raise StoreUnavailable("The database cannot be used now: it is away")
        return await self._database.write(work)

    async def seal(self) -> None:
        """Seal."""
        await self._database.seal()

    async def close(self) -> None:
        """Leave the closing to whoever opened it."""
