"""What an instance and its guest are before a row of the action table is carried out on them, derived from it."""

from __future__ import annotations

from typing import Final

import msgspec

from stateward.agent.simulated import SimulatedDriver
from stateward.domain.actions import ACTIONS, BY_KEY, CREATE, Action, Role, key
from stateward.domain.locks import ActorKind
from stateward.domain.records import GuestSpec
from stateward.domain.states import Observed, VmState
from stateward.domain.verdicts import VERDICTS
from tests.crash.stack import Plane, actor

#: What brings an active instance into a state; ERROR is a word only, and DELETED is the end.
_WAY: Final = {
    VmState.RESCUED: ("rescue", Observed.RUNNING),
    VmState.SHELVED: ("shelve", Observed.SHUTOFF),
    VmState.SOFT_DELETED: ("delete_soft", Observed.SHUTOFF),
    VmState.STOPPED: ("stop", Observed.SHUTOFF),
    VmState.PAUSED: ("pause", Observed.PAUSED),
    VmState.SUSPENDED: ("suspend", Observed.SUSPENDED),
    VmState.DELETED: ("forceDelete", Observed.MISSING),
}


class Beginning(msgspec.Struct, frozen=True):
    """A row, the recorded state it begins in, and what the guest is then; None for one that is not there yet."""

    row: Action
    vm_state: VmState | None
    observed: Observed

    def __str__(self) -> str:
        """Name it."""
        return f"{key(self.row)} of {self.vm_state or 'nothing'}, {self.observed}"


def beginnings() -> list[Beginning]:
    """Return those of every row that an agent works on.

    What a request can ask for begins with the guest as recorded, what the arbiter asks for with each deviation that
    its table has the row for.
    """
    found: list[Beginning] = []
    for row in ACTIONS:
        if not row.is_operation:
            continue
        if row is CREATE:
            found.append(Beginning(row, None, Observed.MISSING))
        elif row.policy.role is Role.SYSTEM:
            found.extend(
                Beginning(row, verdict.expected, verdict.observed)
                for verdict in VERDICTS
                if verdict.action == key(row) and verdict.expected in _WAY.keys() | {VmState.ACTIVE}
            )
        else:
            natural = {state: observed for state, (_key, observed) in _WAY.items()} | {
                VmState.ACTIVE: Observed.RUNNING,
                VmState.ERROR: Observed.RUNNING,
            }
            found.extend(
                Beginning(row, state, natural[state]) for state in sorted(row.when) if state in natural
            )
    return list(dict.fromkeys(found))


async def begin(plane: Plane, beginning: Beginning, words: str) -> str:
    """Make an instance that is so and return its id."""
    world = plane.world
    admitted = await plane.create(words)
    instance = await plane.finished(admitted.operation.id)
    assert instance.vm_state is VmState.ACTIVE
    vm_state = beginning.vm_state
    if vm_state is VmState.ERROR:
        await plane.immediate.reset_state(instance.id, actor(ActorKind.ADMIN), to=VmState.ERROR)
    elif vm_state is not None and vm_state in _WAY:
        # By force: a guest that takes its time has it in the test.
        way = "stop_force" if _WAY[vm_state][0] == "stop" else _WAY[vm_state][0]
        admitted = await plane.admission.admit(BY_KEY[way], instance.id, actor())
        assert (await plane.finished(admitted.operation.id)).vm_state is vm_state
    hypervisor = world.hypervisor
    if hypervisor.guest(instance.id).observed is not beginning.observed or vm_state is VmState.DELETED:
        await _deviate(plane, instance.id, beginning.observed)
    return instance.id


async def _deviate(plane: Plane, instance_id: str, observed: Observed) -> None:
    """Make a guest be something else, behind everybody's back."""
    hypervisor = plane.world.hypervisor
    if hypervisor.guest(instance_id).spec is None:
        await _make(plane, instance_id)
    match hypervisor.guest(instance_id).observed:
        case Observed.SHUTOFF | Observed.SUSPENDED:
            hypervisor.start(instance_id)
        case Observed.PAUSED:
            hypervisor.resume(instance_id)
        case _:
            pass
    match observed:
        case Observed.SHUTOFF:
            hypervisor.destroy(instance_id)
        case Observed.PAUSED:
            hypervisor.pause(instance_id)
        case Observed.SUSPENDED:
            hypervisor.save(instance_id)
        case Observed.CRASHED:
            hypervisor.crash(instance_id, kept=True)
        case _:
            pass
    assert hypervisor.guest(instance_id).observed is observed


async def _make(plane: Plane, instance_id: str) -> None:
    """Bring back the guest of a deleted instance, as a restored host would."""
    instance = await plane.world.instance(instance_id)
    spec = GuestSpec(
        instance_id=instance.id,
        domain_name=instance.domain_name,
        display_name=instance.name,
        project_id=instance.project_id,
        vcpus=1,
        memory=64,
        disk=1,
        image=instance.image,
    )
    driver = SimulatedDriver(plane.world.hypervisor)
    await driver.open(lambda _instance_id: None)
    await driver.prepare_disk(spec)
    await driver.define(spec)
    await driver.close()
