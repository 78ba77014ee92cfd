"""Control of a running operation: extend its deadline, escalate it, or cancel its wait (B4).

One transaction holds the guarded UPDATE of the operation, the audit record and the order for its agent in the
outbox. Killed before its commit, nothing happened; after it, the agent will be told: what is in flight is posted
again at the next start, and an agent keeps the latest order where it finds it again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import msgspec
import sqlalchemy as sa

from stateward.bus.port import control_subject
from stateward.clock import Clock
from stateward.domain import control
from stateward.domain.errors import Conflict, NotFound
from stateward.domain.records import Actor, Command, Operation
from stateward.domain.shutdown import DEFAULT_CAP_SECONDS
from stateward.store import instances, operations
from stateward.store.engine import Database

#: PostgreSQL may show the row changed again between the reading and the UPDATE; then it is tried anew.
_ATTEMPTS = 3


class Control:
    """Controls operations. ``wake`` is called after a commit that left something in the outbox.

    Every method takes the operation's id, who asks, and ``project_id``: the caller sees only operations on instances
    of this project; None for all. Each returns the operation as it is after the order was written, which is before
    the agent has it; asking for what stands already writes nothing and is no error. They raise:

    - ``NotFound``: there is no such operation for the caller.
    - ``Forbidden``: somebody stronger admitted it.
    - ``Conflict``: it is finished, has no wait, or is past the point where this could be done; ``str()`` says which.
    - ``StoreUnavailable``: the database cannot be written.
    """

    def __init__(
        self, database: Database, clock: Clock, wake: Callable[[], None], *, cap: int = DEFAULT_CAP_SECONDS
    ) -> None:
        """Keep the ports; ``cap`` is the operator's, in seconds."""
        self._database = database
        self._clock = clock
        self._wake = wake
        self._cap = cap

    def on(self, database: Database) -> Self:
        """Return the same control on another database: one that adds to what each transaction does."""
        return type(self)(database, self._clock, self._wake, cap=self._cap)

    async def extend(
        self, operation_id: str, actor: Actor, *, seconds: int, project_id: str | None
    ) -> Operation:
        """Give the guest ``seconds`` in all, from when it was first asked, as a request's ``timeout`` does.

        More than the operator's cap is cut to it. Raises ``Invalid`` for a time below 1, and ``Conflict`` for one
        that is less than the guest has.
        """
        return await self._tell(Command.EXTEND, operation_id, actor, project_id, seconds=seconds)

    async def escalate(self, operation_id: str, actor: Actor, *, project_id: str | None) -> Operation:
        """End the guest's time now and take its power, whatever was chosen for its deadline."""
        return await self._tell(Command.ESCALATE, operation_id, actor, project_id)

    async def cancel(self, operation_id: str, actor: Actor, *, project_id: str | None) -> Operation:
        """End the wait and leave the instance as it is; the operation then ends as ``cancelled``.

        A guest that was asked cannot be unasked: the operation's message says so. A cancel that reaches the agent
        after the guest's time was up is too late, and the message of the finished operation says that.
        """
        return await self._tell(Command.CANCEL, operation_id, actor, project_id)

    async def _tell(
        self,
        command: Command,
        operation_id: str,
        actor: Actor,
        project_id: str | None,
        *,
        seconds: int | None = None,
    ) -> Operation:
        def work(connection: sa.Connection) -> Operation:
            return self._write(
                connection, command, operation_id, actor, project_id=project_id, seconds=seconds
            )

        operation = await self._database.write(work)
        self._wake()
        return operation

    def _write(
        self,
        connection: sa.Connection,
        command: Command,
        operation_id: str,
        actor: Actor,
        *,
        project_id: str | None,
        seconds: int | None,
    ) -> Operation:
        for _attempt in range(_ATTEMPTS):
            operation = operations.get(connection, operation_id)
            instance = None if operation is None else instances.get(connection, operation.instance_id)
            if operation is None or instance is None or project_id not in {None, instance.project_id}:
                raise NotFound(f"Operation {operation_id} could not be found.")
            order = control.order(
                command,
                operation,
                actor.kind,
                held=bool(instance.hold_blocks),
                seconds=seconds,
                cap=self._cap,
            )
            if order is None:
                return operation
            told = operations.give_order(
                connection, operation, order, unheld=command in control.HOLD_REFUSES, project_id=project_id
            )
            if told is None:
                continue
            operations.record(
                connection,
                at=self._clock.now(),
                event="ordered",
                actor=actor,
                instance_id=operation.instance_id,
                operation_id=operation.id,
                action=operation.action,
                detail={"command": command.value, "number": order.number, "seconds": order.seconds},
            )
            post_order(connection, told)
            return told
        raise Conflict(f"Operation {operation_id} changed at the same moment; try again.")


def order_message_id(operation: Operation) -> str | None:
    """Name the message of the operation's standing order; None when it was given none."""
    return None if operation.order is None else f"{operation.id}.{operation.order.number}"


def post_order(connection: sa.Connection, operation: Operation) -> None:
    """Leave the operation's standing order in the outbox, if there is one."""
    message_id = order_message_id(operation)
    if message_id is not None:
        operations.post(
            connection, control_subject(operation.host), message_id, msgspec.json.encode(operation.order)
        )
