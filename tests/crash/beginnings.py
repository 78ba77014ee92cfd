"""What an instance and its guest are before a row of the action table is carried out on them, derived from it."""

from __future__ import annotations

import functools
import itertools
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final

import msgspec
import sqlalchemy as sa

from stateward.agent.simulated import SimulatedDriver, guests
from stateward.domain.actions import ACTIONS, ADOPT, AFTER_BOOT, BY_KEY, CREATE, Action, Role, key
from stateward.domain.actions.row import Disk
from stateward.domain.admit import conditions, explain
from stateward.domain.errors import Refused
from stateward.domain.hosts import Event
from stateward.domain.locks import ActorKind
from stateward.domain.records import GuestSpec, Target
from stateward.domain.states import ON_NO_HOST, Cause, Observed, VmState
from stateward.domain.verdicts import VERDICTS
from stateward.domain.verdicts.alternatives import alternatives
from stateward.operations.admission import Admitted
from stateward.operations.preparing import Wanted
from stateward.store import hosts
from stateward.store.tables import HOSTS, INSTANCES, OUTBOX
from tests.crash.stack import FLAVOR, HOST, Plane, actor

#: What an admission needs besides the row and the instance, by the action's name.
OPTIONS: Final[dict[str, dict[str, Any]]] = {
    **{row.name: {"wanted": Wanted(host=HOST)} for row in ACTIONS if row.places or row.evacuates},
    "resize": {
        "wanted": Wanted(
            target=Target(flavor=msgspec.structs.replace(FLAVOR, id="2", name="large", ram=128, disk=2))
        )
    },
    "createBackup": {"wanted": Wanted(target=Target(backup_type="daily", rotation=1))},
}

#: The rows by which an instance comes to be there.
COMING: Final = (CREATE, ADOPT)

#: States in which an instance can be while a row's operation runs, and never when it is admitted.
_PASSING: Final = frozenset({VmState.BUILDING})


class Beginning(msgspec.Struct, frozen=True):
    """A row, the recorded state it begins in, and what the guest is then."""

    row: Action
    #: None for one that is not there yet.
    vm_state: VmState | None
    #: None: as the state has it.
    observed: Observed | None

    def __str__(self) -> str:
        """Name it."""
        return f"{key(self.row)} of {self.vm_state or 'nothing'}" + (
            f", {self.observed}" if self.observed else ""
        )


def beginnings() -> list[Beginning]:
    """Return those of every row that an agent works on.

    What a request can ask for begins with the guest as recorded, what the arbiter asks for with each deviation that
    its table has the row for; what else the control plane asks for begins as a request does.
    """
    found: list[Beginning] = []
    for row in ACTIONS:
        names = {key(row)} | {restore for restore, boot in AFTER_BOOT.items() if boot == key(row)}
        deviations = [
            (verdict.expected, verdict.observed) for verdict in VERDICTS if verdict.action in names
        ] or _by_policy(names)
        # Copies elsewhere need a second host (tests/arbiter/test_strays.py).
        if not row.is_operation or row.elsewhere:
            continue
        if row in COMING:
            found.append(Beginning(row, None, None))
        elif deviations:
            found.extend(Beginning(row, expected, observed) for expected, observed in deviations)
        else:
            # An instance on no host is deleted in the transaction that admits that: no agent works on it.
            agents = frozenset(VmState) if row.places else frozenset(VmState) - ON_NO_HOST
            states = (row.when - _PASSING) & agents
            # What has no state of its own to begin in overtakes what brings the instance on its way.
            found.extend(Beginning(row, state, None) for state in sorted(states or row.when))
    return list(dict.fromkeys(found))


def _by_policy(names: set[str]) -> list[tuple[VmState, Observed]]:
    """Return the deviations in which only a policy asks for one of these actions."""
    return [
        (expected, observed)
        for expected, observed in itertools.product(VmState, Observed)
        if names & set(alternatives(expected, observed, Cause.OTHER).actions)
    ]


def ways(to: VmState) -> Iterator[tuple[Action, ...]]:
    """Return the ways by which requests bring a new instance into a state, the shortest first.

    Nothing is known of what rows demand besides a state; a way that is not admitted is no way.
    """
    queue = deque[tuple[VmState, tuple[Action, ...], frozenset[VmState]]](
        [(VmState.ACTIVE, (), frozenset({VmState.ACTIVE}))]
    )
    while queue:
        state, way, passed = queue.popleft()
        if state is to:
            yield way
            continue
        for row in ACTIONS:
            # What leaves its host is on its way to another one, where no agent is.
            by_request = row.is_operation and row.policy.role is not Role.SYSTEM and not row.leaves
            # What is evacuated is where no agent is.
            by_request = by_request and row not in COMING and row.evacuates is None
            if by_request and state in row.when and row.becomes is not None and row.becomes not in passed:
                queue.append((row.becomes, (*way, row), passed | {row.becomes}))


async def begin(plane: Plane, beginning: Beginning, words: str) -> str:
    """Make an instance that is so and return its id.

    Raises:
        AssertionError: there is no way to begin the row.
    """
    if beginning.vm_state is None:
        raise ValueError(beginning)
    if beginning.vm_state is VmState.BUILDING:
        return await _undispatched(plane, lambda: plane.create(words))
    # ERROR is a word only: nothing leads there but an admin, or a failure.
    error = beginning.vm_state is VmState.ERROR
    tried: list[str] = []
    for way in ways(VmState.ACTIVE if error else beginning.vm_state):
        instance_id = await _go(plane, way, words, adopted=beginning.row.needs_adopted)
        if instance_id is None:
            tried.append(_said(way))
            continue
        if error:
            await plane.immediate.reset_state(instance_id, actor(ActorKind.ADMIN), to=VmState.ERROR)
        if beginning.vm_state in ON_NO_HOST and not beginning.row.places and not beginning.observed:
            await _undispatched(plane, functools.partial(_unshelve, plane, instance_id))
        if beginning.observed is not None:
            await _deviate(plane, instance_id, beginning.observed)
        if beginning.row.evacuates is not None:
            await _bury(plane, instance_id, beginning.row.evacuates)
        if await _refused(plane, beginning.row, instance_id) is None:
            return instance_id
        tried.append(_said(way))
    raise AssertionError(
        f"No way leads to the beginning '{beginning}'. Tried: {tried}. If an action on the way needs more than its "
        "row says, name it in OPTIONS of tests/crash/beginnings.py."
    )


async def _unshelve(plane: Plane, instance_id: str) -> Admitted:
    options = OPTIONS["unshelve"]
    return await plane.admission.admit(BY_KEY["unshelve_offloaded"], instance_id, actor(), **options)


async def _undispatched(plane: Plane, admit: Callable[[], Awaitable[Admitted]]) -> str:
    """Admit an operation that no agent hears of, and return its instance's id."""
    plane.dispatching = False
    admitted = await admit()
    await plane.world.database.write(lambda connection: connection.execute(sa.delete(OUTBOX)))
    plane.dispatching = True
    return admitted.instance.id


def _said(way: tuple[Action, ...]) -> str:
    return " > ".join(key(row) for row in way) or "create"


async def _refused(plane: Plane, row: Action, instance_id: str) -> Refused | None:
    """Say why the row is not admitted; None when it is."""
    kind = ActorKind.SYSTEM if row.policy.role is Role.SYSTEM else ActorKind.MEMBER
    return explain(conditions(row, kind), row, await plane.world.instance(instance_id))


async def _go(plane: Plane, way: tuple[Action, ...], words: str, *, adopted: bool) -> str | None:
    admitted = await (plane.adopt(words) if adopted else plane.create(words))
    instance = await plane.finished(admitted.operation.id)
    for row in way:
        try:
            admitted = await plane.admission.admit(
                row, instance.id, actor(ActorKind.ADMIN), **OPTIONS.get(row.name, {})
            )
        except Refused:
            return None
        instance = await plane.finished(admitted.operation.id)
        assert instance.vm_state is row.becomes, f"{key(row)}: {instance.fault}"
    return instance.id


async def _bury(plane: Plane, instance_id: str, disk: Disk) -> None:
    """Have an instance be on a host that was fenced; a shared disk is where the guest will be."""

    def work(connection: sa.Connection) -> None:
        hosts.register(connection, "dead", "nova", shared=True)
        for event in (Event.SILENT, Event.CONFIRMED, Event.FENCED):
            hosts.become(connection, "dead", event, "", 0.0)
        connection.execute(sa.update(HOSTS).values(shared=True))
        connection.execute(sa.update(INSTANCES).where(INSTANCES.c.id == instance_id).values(host="dead"))

    await plane.world.database.write(work)
    gone = guests.forget if disk is Disk.SHARED else guests.remove
    plane.world.hypervisor.change(instance_id, lambda guest, _: gone(guests.power_off(guest)))


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
    """Bring back the guest of an instance that has none, as a restored host would."""
    instance = await plane.world.instance(instance_id)
    if not instance.host:
        # As a placing leaves it that failed.
        where = sa.update(INSTANCES).where(INSTANCES.c.id == instance_id).values(host=HOST)
        await plane.world.database.write(lambda connection: connection.execute(where))
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
