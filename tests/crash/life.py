"""A control plane and an agent that live now, and what an instance is when they have done what they were asked."""

from __future__ import annotations

import asyncio
import re
from typing import Final, cast

import msgspec

from stateward.agent.simulated.origins import foreign
from stateward.domain.actions import BY_KEY, CREATE, Role
from stateward.domain.locks import ActorKind
from stateward.domain.records import OperationState
from stateward.domain.verdicts import Kind, judge_instance
from stateward.operations.admission import Admitted
from tests.crash.beginnings import COMING, OPTIONS, Beginning, begin
from tests.crash.stack import Plane, World, actor, new_agent

_UUID: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")

#: What differs between two instances that were done the same to: when, and which one it was.
_NOT_COMPARED: Final = frozenset(
    {
        *("number", "domain_name", "created", "created_at", "updated_at", "launched_at", "terminated_at"),
        *("observed_seq", "observed_at", "console", "run", "halted_at", "ports", "seed", "message"),
    }
)


class End(msgspec.Struct, frozen=True, kw_only=True):
    """What can be seen of an instance when its operation is finished, but for times and ids.

    The row and the guest are compared whole, so that what is added to either is compared too.
    """

    row: object
    launched: bool
    terminated: bool
    verdict: Kind
    guest: object
    halted: bool
    operations: tuple[tuple[str, OperationState], ...]


async def end_of(world: World, instance_id: str) -> End:
    """Look at an instance."""
    instance = await world.instance(instance_id)
    guest = world.hypervisor.guest(instance_id)
    return End(
        row=_shape(instance),
        launched=instance.launched_at is not None,
        terminated=instance.terminated_at is not None,
        verdict=judge_instance(instance).kind,
        guest=_shape(guest),
        halted=guest.halted_at is not None,
        operations=tuple((each.action, each.state) for each in await world.operations(instance_id)),
    )


def differences(end: End, expected: End) -> list[str]:
    """Say where two ends differ."""
    return [
        f"{name}: {found} instead of {wanted}"
        for name in End.__struct_fields__
        for found, wanted in _differ(getattr(end, name), getattr(expected, name))
    ]


def _differ(found: object, wanted: object) -> list[tuple[object, object]]:
    if found == wanted:
        return []
    if not isinstance(found, dict) or not isinstance(wanted, dict):
        return [(found, wanted)]
    left, right = cast("dict[str, object]", found), cast("dict[str, object]", wanted)
    return [
        ({key: left.get(key)}, {key: right.get(key)})
        for key in sorted(left.keys() | right.keys())
        if left.get(key) != right.get(key)
    ]


def _shape(record: msgspec.Struct) -> object:
    """Return a record as plain values, its ids numbered in the order in which they come."""
    text = msgspec.json.encode(record).decode()
    ids = {found: f"id {number}" for number, found in enumerate(dict.fromkeys(_UUID.findall(text)))}
    return _without(msgspec.json.decode(_UUID.sub(lambda found: ids[found[0]], text)))


def _without(value: object) -> object:
    if isinstance(value, dict):
        items = cast("dict[str, object]", value).items()
        return {key: _without(each) for key, each in items if key not in _NOT_COMPARED}
    return [_without(each) for each in cast("list[object]", value)] if isinstance(value, list) else value


class Life:
    """A control plane and an agent that live now."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.plane = Plane(world)
        self.agent = new_agent(world, self.plane.bus)

    async def start(self) -> Life:
        """Begin both."""
        await self.plane.start()
        await self.agent.start()
        await asyncio.sleep(0.1)
        return self

    async def kill(self) -> None:
        """End both."""
        await self.agent.stop()
        await self.plane.kill()

    async def restart_agent(self, dead_for: float = 0.0) -> None:
        """End the agent alone, and have the next one take its place some seconds later."""
        await self.agent.stop()
        await asyncio.sleep(dead_for)
        self.agent = new_agent(self.world, self.plane.bus)
        await self.agent.start()

    async def prepare(self, beginning: Beginning, words: str) -> str | None:
        """Make the instance that the row is carried out on; None for what makes one."""
        return None if beginning.row in COMING else await begin(self.plane, beginning, words)

    async def admit(self, beginning: Beginning, instance_id: str | None, words: str) -> Admitted:
        """Admit the row's operation."""
        if instance_id is None:
            return await (self.plane.create(words) if beginning.row is CREATE else self.plane.adopt(words))
        kind = ActorKind.SYSTEM if beginning.row.policy.role is Role.SYSTEM else ActorKind.MEMBER
        options = OPTIONS.get(beginning.row.name, {})
        return await self.plane.admission.admit(beginning.row, instance_id, actor(kind), **options)


async def undisturbed(life: Life, beginning: Beginning, words: str) -> tuple[Admitted, End]:
    """Carry the operation out without a fault, and return it with the end that all others must have."""
    row = beginning.row
    admitted = await life.admit(beginning, await life.prepare(beginning, words), words)
    before = admitted.instance.vm_state
    await life.plane.finished(admitted.operation.id)
    world = life.world
    end = await end_of(world, admitted.instance.id)
    instance = await world.instance(admitted.instance.id)
    assert end.operations[-1][1] is OperationState.SUCCEEDED, (
        await world.operation(admitted.operation.id)
    ).message
    assert BY_KEY[end.operations[-1][0]] is row
    assert instance.vm_state is (row.becomes or before)
    assert row.wants is None or instance.observed is row.wants
    assert instance.task_state is None
    guest = world.hypervisor.guest(instance.id)
    # Without it a worker that is late would not be stopped, and nothing else here would show it.
    assert guest.spec is None or foreign(guest) or guest.fence == instance.fence
    assert end.verdict is Kind.AGREE or instance.vm_state is before
    return admitted, end
