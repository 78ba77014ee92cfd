"""Every path goes through the gate: each row of the action table, and each internal actor, against each lock (R1, R2).

What is written here is written by hand, so that the table cannot agree with itself. A new row, or a new place in the
code from which an instance or its copies can be changed, has no entry here and fails.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec
import pytest
import sqlalchemy as sa

import stateward
from stateward.arbiter.reconcile import Arbiter
from stateward.arbiter.strays import Strays
from stateward.domain import admit
from stateward.domain.actions import ACTIONS, BY_KEY, CREATE, Action, Role, key
from stateward.domain.bodies import Hold
from stateward.domain.errors import Refusal, Refused
from stateward.domain.evacuation import PlanKind
from stateward.domain.hosts import Event
from stateward.domain.locks import ALL_CLASSES, ActorKind, Lock, LockKind, OperationClass, classes_of
from stateward.domain.placement import NOTHING, Rules
from stateward.domain.policies import Policies
from stateward.domain.records import (
    Actor,
    ImageFacts,
    Observation,
    Operation,
    Outcome,
    Report,
    Result,
    Target,
)
from stateward.domain.states import Cause, Observed, VmState
from stateward.domain.steps import Step
from stateward.operations import stacking
from stateward.operations.completion import Completion
from stateward.operations.dispatch import repost
from stateward.operations.expiry import Expiry
from stateward.operations.gate import admitted_row
from stateward.operations.host_moves import HostMoves, Pace
from stateward.operations.hosts import Hosts
from stateward.operations.locking import Locking
from stateward.operations.preparing import Wanted
from stateward.operations.reclaim import Reclaimer
from stateward.operations.stacking import LockWish
from stateward.store import hosts, instances, operations
from stateward.store.engine import Database
from stateward.store.host_plans import KeptPlan
from stateward.store.tables import HOSTS
from tests.arbiter.test_strays import made
from tests.operations.desk import Desk
from tests.rows import FLAVOR, NOW, actor, insert
from tests.stack import encoded

#: What a lock has to block, in words, for each row; nothing: no lock blocks it.
GUARDS: Final[dict[str, str]] = {
    "create": "",
    "delete_soft": "delete",
    "delete": "delete",
    "forceDelete": "delete",
    "restore": "start",
    "rescue": "start stop",
    "unrescue": "start stop",
    "rebuild": "start stop delete change",
    "rebuild_stopped": "start stop delete change",
    "start": "start",
    "stop": "stop",
    "stop_force": "stop",
    "reboot_soft": "start stop",
    "reboot_hard": "start stop",
    "pause": "stop",
    "unpause": "start",
    "suspend": "stop",
    "resume": "start",
    "trigger_crash_dump": "change",
    "resize": "start stop change",
    "resize_stopped": "start stop change",
    "resize_away": "start stop change",
    "resize_away_stopped": "start stop change",
    "migrate": "start stop change",
    "migrate_stopped": "start stop change",
    "confirmResize": "change",
    "confirmResize_stopped": "change",
    "revertResize": "start stop delete change",
    "revertResize_stopped": "start stop delete change",
    "shelve": "stop change",
    "shelveOffload": "stop change",
    "unshelve": "start change",
    "unshelve_offloaded": "start change",
    "createImage": "",
    "createBackup": "",
    "os-migrateLive": "change",
    "adopt_guest": "",
    "release_guest": "start stop delete change",
    "evacuate": "start",
    "evacuate_stopped": "start",
    "evacuate_off": "start",
    "evacuate_anew": "start stop delete change",
    "evacuate_anew_stopped": "start stop delete change",
    "evacuate_anew_off": "start stop delete change",
    "hold_clean": "",
    "hold_clean_as_it_is": "",
    "hold_forced": "",
    "hold_forced_as_it_is": "",
    "hold_suspend": "",
    "hold_building": "",
    "hold_suspended": "",
    "hold_offloaded": "",
    "hold_none": "",
    "lock": "",
    "unlock": "",
    "place_lock": "",
    "place_lock_overtaking": "",
    "release_lock": "",
    "reset_state": "",
    "getConsoleOutput": "",
    "get_serial_console": "",
    "get_vnc_console": "",
    "get_spice_console": "",
    "changePassword": "change",
    "update": "",
    "update_metadata": "change",
    "delete_metadata": "change",
    # A lock that a tag brought is not shaken off with it: see ``Immediate.change``.
    "update_tags": "",
    "adopt": "",
    "restore_start": "",
    "restore_resume": "",
    "restore_unpause": "",
    "restore_pause": "",
    "restore_stop": "",
    "restore_held": "",
    "restore_held_saved": "",
    "restore_off": "",
    "restore_suspend": "",
    "reap": "",
    "reap_adopted": "",
    "restore_rescue": "",
    "restore_offloaded": "",
    "restore_paused": "",
    "boot_start": "start",
    "boot_start_resized": "start",
    "boot_resume": "start",
    "boot_paused": "start",
    "boot_rescue": "start",
    "remove_stray": "",
    "halt_stray": "",
    "release_stray": "",
    "reclaim": "delete",
    "arrive": "",
    "arrive_stopped": "",
}

#: Who is behind what changes instances, and deletes copies of their disks or their projects.
REQUEST: Final = "a request"
#: A part of the gate itself, or of what writes locks.
GATE: Final = "the gate"

#: Every place from which that is done, as ``FILE FUNCTION``.
PLACES: Final[dict[str, str]] = {
    "api/compute/lifecycle.py admit.one_of": REQUEST,
    "api/compute/servers.py delete": REQUEST,
    "api/identity/credentials.py Credentials.delete.work": REQUEST,
    "api/identity/resources.py Resources.delete.work": "the deletion of projects",
    "api/images/service.py Images.delete.work": "the deletion of images",
    "api/native/adoptions.py _release": REQUEST,
    "api/native/explain.py _preflight": REQUEST,
    "arbiter/writing.py Writing.restore.work": "the arbiter",
    "arbiter/writing.py write_in": "the arbiter",
    "arbiter/strays.py Strays._put_in_error": "the arbiter of copies",
    "arbiter/strays.py Strays._write": "the arbiter of copies",
    "arbiter/turns.py Step._begin": "the restart of a host's instances",
    "operations/admission.py Admission.admit.work": GATE,
    "operations/admission.py Admission.admit_in": GATE,
    "operations/admission.py Admission.follow_in": "what follows an operation",
    "operations/adopting.py _adopt_in": REQUEST,
    "operations/adopting.py _row": REQUEST,
    "operations/gate.py admitted_row": GATE,
    "operations/gate.py first_that_fits": GATE,
    "operations/gate.py guarded": GATE,
    "operations/asking.py Asking._asked.begin": REQUEST,
    "operations/host_moves.py HostMoves._admit": "drains and evacuations of hosts",
    "operations/host_moves.py HostMoves._confirm": "drains and evacuations of hosts",
    "operations/finishing.py _give_up_image": "the end of an operation",
    "operations/finishing.py apply": "the end of an operation",
    "operations/foresight.py admit_several.one": REQUEST,
    "operations/immediate.py Immediate.change": REQUEST,
    "operations/immediate.py Immediate.change.effect": GATE,
    "operations/immediate.py Immediate.do.work": GATE,
    "operations/immediate.py Immediate.lock": REQUEST,
    "operations/immediate.py Immediate.reset_state": REQUEST,
    "operations/immediate.py Immediate.reset_state.effect": GATE,
    "operations/immediate.py Immediate.unlock": REQUEST,
    "operations/locking.py Locking._place": REQUEST,
    "operations/locking.py Locking.expire.work": "the expiry of locks",
    "operations/locking.py Locking.hold": REQUEST,
    "operations/locking.py Locking.place": REQUEST,
    "operations/locking.py Locking.release": REQUEST,
    "operations/reclaim.py Reclaimer.reclaim": "the reclaiming of deleted instances",
    "operations/room.py _now_on": GATE,
    "operations/stacking.py _restack_project": GATE,
    "operations/stacking.py release_from_project": GATE,
    "operations/stacking.py restack": GATE,
    "operations/dispatch.py repost": "recovery after a restart",
    "simulation/people.py operate": REQUEST,
}

_HERE: Final = "tests.operations.test_gate"
_KEEPING: Final = "tests.operations.test_keeping"
#: The tests that try an internal actor against each lock.
TRIED: Final[dict[str, tuple[tuple[str, str], ...]]] = {
    "the arbiter": ((_HERE, "test_the_arbiter"),),
    "the arbiter of copies": ((_HERE, "test_a_copy_on_another_host"),),
    "drains and evacuations of hosts": (
        (_HERE, "test_draining_a_host"),
        (_HERE, "test_evacuating_a_host"),
    ),
    "the deletion of images": (
        (_KEEPING, "test_a_held_instance_s_copies_stay"),
        (_KEEPING, "test_a_shelved_instance_s_disk_stays_when_its_deletion_is_blocked"),
        (_KEEPING, "test_a_locked_instance_s_copies_are_its_owner_s_to_delete"),
    ),
    "the deletion of projects": (
        (_KEEPING, "test_a_project_with_locked_instances_stays"),
        (_KEEPING, "test_a_project_with_a_lock_stays"),
        (_KEEPING, "test_a_project_with_instances_that_are_locked_otherwise_goes"),
    ),
    "the end of an operation": (
        (_KEEPING, "test_a_backup_made_before_a_hold_deletes_no_other"),
        (_KEEPING, "test_a_hold_ends_a_backup_and_leaves_the_older_ones"),
    ),
    "the expiry of locks": ((_HERE, "test_the_expiry_of_a_lock"),),
    "the reclaiming of deleted instances": ((_HERE, "test_reclaiming"),),
    "recovery after a restart": ((_HERE, "test_recovery"),),
    "the restart of a host's instances": ((_HERE, "test_restarting_a_host_s_instances"),),
    "what follows an operation": ((_HERE, "test_leaving_the_host"), (_HERE, "test_arriving")),
}


class Variant(msgspec.Struct, frozen=True, kw_only=True):
    """A lock, and where it is."""

    kind: LockKind
    words: str = "all"
    #: On the instance, on its project, or on what has its tag.
    where: str = "instance"
    sealed: bool = False
    off: bool = False

    def __str__(self) -> str:
        """Name it."""
        more = " sealed" if self.sealed else " off" if self.off else ""
        return f"{self.kind} lock against {self.words} on the {self.where}{more}"

    @property
    def blocks(self) -> OperationClass:
        """What it blocks."""
        return classes_of(self.words.split())

    def wish(self) -> LockWish:
        """Wish for it."""
        return LockWish(
            kind=self.kind,
            holder="somebody",
            name="a lock",
            blocks=self.blocks,
            sealed=self.sealed,
            off=self.off,
        )

    def place(self, connection: sa.Connection, instance_id: str, project_id: str = "p") -> None:
        """Place it."""
        if self.where == "instance":
            held = instances.hold(connection, instance_id)
            assert held is not None
            stacking.place_in(connection, held, self.wish(), NOW)
            return
        tag = "db" if self.where == "tag" else None
        stacking.place_on_project(connection, self.wish().made(NOW, project_id=project_id, tag=tag), NOW)

    def blocks_row(self, name: str, kind: ActorKind) -> bool:
        """Whether it keeps somebody from what a row does, by what is promised (R4-R6)."""
        words = GUARDS[name]
        # What is given back would lose its locks without a word.
        binds = self.kind is LockKind.HOLD or kind is not ActorKind.ADMIN or name == "release_guest"
        return binds and bool(words) and bool(self.blocks & classes_of(words.split()))


VARIANTS: Final = (
    *(
        Variant(kind=kind, words=words, where=where)
        for kind in (LockKind.OWNER, LockKind.ADMIN)
        for where, sets in (
            ("instance", ("delete", "stop", "start", "power", "change", "all")),
            ("project", ("all", "delete")),
            ("tag", ("all", "stop")),
        )
        for words in sets
    ),
    Variant(kind=LockKind.OWNER, sealed=True),
    Variant(kind=LockKind.HOLD),
    Variant(kind=LockKind.HOLD, off=True),
)
#: Those that are tried on PostgreSQL too; that the gate's conditions mean the same there has its own tests.
_ON_BOTH: Final = (
    Variant(kind=LockKind.OWNER, words="delete"),
    Variant(kind=LockKind.ADMIN, where="project"),
    Variant(kind=LockKind.HOLD, off=True),
)
#: Against each lock; ``desk`` is on the database.
each_lock: Final = pytest.mark.parametrize(
    ("lock", "database_url"),
    [(lock, "sqlite") for lock in VARIANTS] + [(lock, "postgresql") for lock in _ON_BOTH],
    indirect=["database_url"],
    ids=str,
)

ADMIN: Final = actor(ActorKind.ADMIN, project="the provider's")
_LARGE: Final = msgspec.structs.replace(FLAVOR, id="2", name="large", ram=256, disk=2)
#: What a row needs besides its instance to be admitted.
_WANTED: Final[dict[str, Wanted]] = {
    "resize": Wanted(target=Target(flavor=_LARGE)),
    "remove_stray": Wanted(host="g"),
    "release_stray": Wanted(host="g"),
    "halt_stray": Wanted(host="g"),
    "createBackup": Wanted(target=Target(backup_type="daily", rotation=1)),
}
_DISK: Final = ImageFacts(id="its disk", disk_format="qcow2")


#: No line of a plan waits for another.
_SWIFT: Final = Pace(parallel=10, per_minute=1e9)


def test_every_row_has_an_entry() -> None:
    """Written by hand: what is said here is what is meant (R2)."""
    assert sorted(GUARDS) == sorted(BY_KEY)


def _begun(connection: sa.Connection, row: Action) -> str:
    """Insert an instance in a state that a row begins in, and return its id."""
    state = min(row.when - {VmState.SHELVED_OFFLOADED}, default=VmState.SHELVED_OFFLOADED)
    return insert(
        connection,
        vm_state=state.value,
        host="" if row.places else "h" if row.evacuates is None else "dead",
        was=None if row.was is None else row.was.value,
        old_flavor=None if row.was is None else FLAVOR,
        shelved_image=_DISK if row.places else None,
        tags=("db",),
        adopted_as="theirs" if row.needs_adopted else None,
    ).id


def _refused(
    connection: sa.Connection, desk: Desk, row: Action, instance_id: str, who: Actor
) -> Refusal | None:
    """Try a row as the gate does, and undo it; return why it was refused, None when it was admitted."""
    tried = connection.begin_nested()
    try:
        if row.is_operation:
            wanted = _WANTED.get(row.name, Wanted())
            desk.admission.admit_in(connection, row, instance_id, who, wanted=wanted)
        else:
            checks = admit.conditions(row, who.kind)
            admitted_row(
                connection,
                row,
                instance_id,
                checks,
                {"updated_at": NOW},
                actor=who,
                bump_fence=False,
                now=NOW,
            )
    except Refused as refused:
        return refused.refusal
    finally:
        # The next finds the hosts' room, and the instance, as they were.
        tried.rollback()
    return None


@pytest.mark.slow
@pytest.mark.parametrize("lock", VARIANTS, ids=str)
async def test_every_row(inline_database: Database, lock: Variant) -> None:
    """Is refused to whom the lock binds if it does what the lock blocks, and admitted in every other case."""
    desk = Desk(inline_database)
    desk.open(offload=True, placement=Rules(reserved=NOTHING))
    for name in ("h", "g", "dead"):
        await desk.add_host(name)

    def work(connection: sa.Connection) -> dict[tuple[str, ActorKind], Refusal | None]:
        connection.execute(sa.update(HOSTS).values(shared=True))
        for event in (Event.SILENT, Event.CONFIRMED, Event.FENCED):
            hosts.become(connection, "dead", event, "", NOW)
        ids = {key(row): _begun(connection, row) for row in ACTIONS if row is not CREATE}
        for instance_id in ids.values() if lock.where == "instance" else [""]:
            lock.place(connection, instance_id)
        return {
            (name, kind): _refused(connection, desk, BY_KEY[name], instance_id, actor(kind))
            for name, instance_id in ids.items()
            for kind in ActorKind
            if (BY_KEY[name].policy.role is Role.SYSTEM) <= (kind is ActorKind.SYSTEM)
        }

    found = await desk.database.write(work)
    assert len(found) > 2 * len(GUARDS)
    assert found == {
        (name, kind): Refusal.LOCKED if lock.blocks_row(name, kind) else None for name, kind in found
    }


#: The doors: functions by their whole names, and methods by their own.
_FUNCTIONS: Final = frozenset(
    {
        *(
            f"stateward.store.instances.{name}"
            for name in ("guarded_update", "change_held", "touch_project", "write_locks")
        ),
        *(f"stateward.operations.gate.{name}" for name in ("guarded", "admitted_row", "first_that_fits")),
        "stateward.operations.admission.post_dispatch",
        "stateward.operations.foresight.admit_several",
        "stateward.store.images.delete",
        "stateward.store.images.delete_without_data",
        "stateward.store.identity.delete",
        "stateward.store.locks.release_expired",
    }
)
_METHODS: Final = frozenset({"admit", "admit_in", "do"})
#: Creating writes the first row and its dispatch; no lock is on what is not there.
_CREATION: Final = "operations/creation.py"


def _calls(file: Path, name: str) -> Iterator[str]:
    """Yield the functions of a file that call a door."""
    tree = ast.parse(file.read_text("utf-8"))
    module = f"stateward.{name.removesuffix('.py').replace('/', '.')}"
    known = {
        found.asname or found.name: f"{node.module}.{found.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for found in node.names
    }
    known |= {node.name: f"{module}.{node.name}" for node in tree.body if isinstance(node, ast.FunctionDef)}

    def is_door(called: ast.expr) -> bool:
        if isinstance(called, ast.Name):
            return known.get(called.id) in _FUNCTIONS
        if not isinstance(called, ast.Attribute):
            return False
        within = known.get(called.value.id) if isinstance(called.value, ast.Name) else None
        return called.attr in _METHODS if within is None else f"{within}.{called.attr}" in _FUNCTIONS

    def visit(node: ast.AST, path: tuple[str, ...]) -> Iterator[str]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Call) and is_door(child.func):
                yield f"{name} {'.'.join(path)}"
            named = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            yield from visit(child, (*path, getattr(child, "name", "")) if named else path)

    return visit(tree, ())


def test_every_place_has_an_entry() -> None:
    """Who adds a way to change instances, for a host that is drained say, says here whom it is and tries it."""
    for door in _FUNCTIONS:
        module, _, function = door.rpartition(".")
        assert callable(getattr(importlib.import_module(module), function)), door
    source = Path(stateward.__file__).parent
    found: set[str] = set()
    for file in sorted(source.rglob("*.py")):
        name = file.relative_to(source).as_posix()
        if name != _CREATION:
            found.update(_calls(file, name))
    assert found == set(PLACES)


def test_every_internal_actor_is_tried() -> None:
    """By tests that are there."""
    assert set(TRIED) == set(PLACES.values()) - {REQUEST, GATE}
    for tests in TRIED.values():
        for module, name in tests:
            assert callable(getattr(importlib.import_module(module), name))


# --------------------------------------------------------------------------------------- the internal actors


async def put(desk: Desk, lock: Variant, instance_id: str) -> None:
    """Place a lock."""
    await desk.database.write(lambda connection: lock.place(connection, instance_id))


async def done(desk: Desk, instance_id: str) -> list[str]:
    """Return what was done to an instance, oldest first."""
    return [each.action for each in sorted(await desk.operations(instance_id), key=lambda each: each.fence)]


async def end(desk: Desk, operation: Operation, outcome: Outcome = Outcome.SUCCEEDED) -> None:
    """Take an agent's word that an operation is done."""
    result = Result(
        operation_id=operation.id,
        instance_id=operation.instance_id,
        fence=operation.fence,
        outcome=outcome,
        message=None,
        observation=None,
    )
    await Completion(desk.admission, lambda _instance_id: None).handle(encoded(result))


async def test_the_arbiter_without_a_lock(desk: Desk) -> None:
    """Asks a guest to shut down that was started behind its back: what the locks below change."""
    instance_id = await desk.add(vm_state="stopped", observed="running")
    await Arbiter(desk.admission).reconcile(instance_id)
    assert await done(desk, instance_id) == ["restore_stop"]


@each_lock
async def test_the_arbiter(desk: Desk, lock: Variant) -> None:
    """Brings back what a lock protects; a guest that is locked off loses its power, and no held one is started."""
    stopped = await desk.add(vm_state="stopped", observed="running", tags=("db",))
    active = await desk.add(observed="shutoff", tags=("db",))
    for instance_id in (stopped, active) if lock.where == "instance" else (stopped,):
        await put(desk, lock, instance_id)
    arbiter = Arbiter(desk.admission)
    for instance_id in (stopped, active):
        await arbiter.reconcile(instance_id)
    held = lock.kind is LockKind.HOLD
    assert await done(desk, stopped) == ["restore_off"]
    assert await done(desk, active) == ["adopt" if held else "restore_start"]
    assert (await desk.row(active)).vm_state is (VmState.STOPPED if held else VmState.ACTIVE)


@each_lock
async def test_a_copy_on_another_host(desk: Desk, lock: Variant) -> None:
    """Is halted, lock or no lock: two that run are worse; and it is nobody's older copy where a hold keeps all (R6)."""
    instance_id = await desk.add(fence=5, tags=("db",))

    def history(connection: sa.Connection) -> None:
        for host, fence in (("g", 4), ("h", 5)):
            operations.insert(connection, made(instance_id, host, fence))

    await desk.database.write(history)
    await put(desk, lock, instance_id)
    copy = Observation(instance_id=instance_id, observed=Observed.RUNNING, cause=Cause.OTHER, seq=1, at=NOW)
    await Strays(desk.admission, Policies()).judge("g", copy)
    assert (await done(desk, instance_id))[-1] == "halt_stray"
    held = lock.kind is LockKind.HOLD
    assert (await desk.row(instance_id)).vm_state is (VmState.ERROR if held else VmState.ACTIVE)


@each_lock
async def test_restarting_a_host_s_instances(desk: Desk, lock: Variant) -> None:
    """Starts what nobody has locked against being started, also when the lock came after the plan (R14)."""
    await desk.add_host("h")
    await desk.database.write(lambda connection: hosts.note_boot(connection, "h", "one", 1, NOW))
    before, after = [await desk.add(tags=("db",)) for _ in range(2)]
    off = tuple(
        Observation(instance_id=each, observed=Observed.SHUTOFF, cause=Cause.OTHER, seq=10, at=NOW)
        for each in (before, after)
    )
    inventory = Report(host="h", complete=True, observations=off, seq=10, at=NOW, boot_id="two")
    arbiter = Arbiter(desk.admission)
    if lock.where == "instance":
        await put(desk, lock, before)
    await arbiter.intake.take(inventory)
    await put(desk, lock, after)
    await arbiter.boots.step("h")
    blocked = bool(lock.blocks & OperationClass.START)
    assert [await done(desk, each) for each in (before, after)] == [
        ["adopt" if blocked else "boot_start"]
    ] * 2
    state = VmState.STOPPED if blocked else VmState.ACTIVE
    assert [(await desk.row(each)).vm_state for each in (before, after)] == [state] * 2


@each_lock
async def test_reclaiming(desk: Desk, lock: Variant) -> None:
    """Leaves what anybody has locked against being deleted, and that alone (R1, R6)."""
    instance_id = await desk.add(vm_state="soft-delete", terminated_at=NOW, tags=("db",))
    await put(desk, lock, instance_id)
    desk.clock.at = NOW + 200
    kept = bool(lock.blocks & OperationClass.DELETE)
    assert await Reclaimer(desk.admission, 100.0).reclaim() == ([] if kept else [instance_id])
    assert await done(desk, instance_id) == ([] if kept else ["reclaim"])


async def planned(desk: Desk, host: str, kind: PlanKind) -> None:
    """Plan for a host, and have that approved."""

    def plan_id(_connection: sa.Connection, plan: KeptPlan) -> str:
        return plan.id

    acts = Hosts(desk.admission)
    drains = kind is PlanKind.DRAIN
    made = await acts.plan(host, ADMIN, kind, then=plan_id, begin=drains)
    if not drains:
        await acts.approve(host, made, ADMIN, then=plan_id)


@each_lock
async def test_draining_a_host(desk: Desk, lock: Variant) -> None:
    """Shuts down what nobody has locked against it, also when the lock came after the plan."""
    await desk.add_host("h")
    before, after = [await desk.add(tags=("db",)) for _ in range(2)]
    if lock.where == "instance":
        await put(desk, lock, before)
        await planned(desk, "h", PlanKind.DRAIN)
        await put(desk, lock, after)
    else:
        await planned(desk, "h", PlanKind.DRAIN)
        await put(desk, lock, before)
    await HostMoves(desk.admission, _SWIFT).look()
    blocked = bool(lock.blocks & OperationClass.STOP)
    assert [await done(desk, each) for each in (before, after)] == [[] if blocked else ["stop"]] * 2


@each_lock
async def test_evacuating_a_host(desk: Desk, lock: Variant) -> None:
    """Starts elsewhere what nobody has locked against being started, also when the lock came after the plan."""
    desk.open(offload=True, placement=Rules(reserved=NOTHING))
    for name in ("dead", "g"):
        await desk.add_host(name)

    def fenced(connection: sa.Connection) -> None:
        connection.execute(sa.update(HOSTS).values(shared=True))
        for event in (Event.SILENT, Event.CONFIRMED, Event.FENCED):
            hosts.become(connection, "dead", event, "", NOW)

    await desk.database.write(fenced)
    before, after = [await desk.add(host="dead", tags=("db",)) for _ in range(2)]
    if lock.where == "instance":
        await put(desk, lock, before)
    await planned(desk, "dead", PlanKind.EVACUATE)
    await put(desk, lock, after)
    await HostMoves(desk.admission, _SWIFT).look()
    blocked = bool(lock.blocks & OperationClass.START)
    assert [await done(desk, each) for each in (before, after)] == [[] if blocked else ["evacuate"]] * 2


@each_lock
async def test_recovery(desk: Desk, lock: Variant) -> None:
    """Sends again what was in flight when a lock came, which does not undo it; what a hold ended stays ended (B1)."""
    instance_id = await desk.add(tags=("db",))
    stop = (await desk.admit("stop", instance_id)).operation
    await put(desk, lock, instance_id)
    expected = ["stop"]
    if lock.kind is LockKind.HOLD:
        locking = Locking(desk.admission, desk.immediate, lambda: None)
        await locking.hold(instance_id, ADMIN, Hold(reason="Case 7.", shutdown="forced"))
        expected = ["hold_forced"]

    def restarted(connection: sa.Connection) -> int:
        connection.execute(sa.text("DELETE FROM outbox"))
        return repost(connection)

    assert await desk.database.write(restarted) == 1
    assert [dispatch.action for _subject, _id, dispatch in await desk.outbox()] == expected
    finished = (await desk.operation(stop.id)).finished_at
    assert (finished is not None) is (lock.kind is LockKind.HOLD)


@each_lock
async def test_the_expiry_of_a_lock(desk: Desk, lock: Variant) -> None:
    """Frees nothing that another lock blocks, and nothing before its time."""
    instance_id = await desk.add(tags=("db",))
    locking = Locking(desk.admission, desk.immediate, lambda: None)
    soon = LockWish(kind=LockKind.OWNER, holder="u", name="soon", expires_at=NOW + 10)
    await locking.place(instance_id, actor(), soon, overtake=False, project_id=None)
    await put(desk, lock, instance_id)
    expiry = Expiry(desk.database, desk.clock, warning=0)
    desk.clock.at = NOW + 9
    await expiry.look(locking)
    assert (await desk.row(instance_id)).owner_blocks == ALL_CLASSES
    desk.clock.at = NOW + 10
    await expiry.look(locking)
    row = await desk.row(instance_id)
    blocks = {
        LockKind.OWNER: row.owner_blocks,
        LockKind.ADMIN: row.admin_blocks,
        LockKind.HOLD: row.hold_blocks,
    }
    assert blocks == {kind: lock.blocks if kind is lock.kind else OperationClass(0) for kind in LockKind}
    left: list[Lock] = await desk.database.read(lambda connection: stacking.stack_of(connection, row))
    assert [each.name for each in left] == ["a lock"]


@each_lock
@pytest.mark.parametrize("kind", [ActorKind.MEMBER, ActorKind.ADMIN])
async def test_leaving_the_host(desk: Desk, lock: Variant, kind: ActorKind) -> None:
    """What is shelved stays on its host when a lock that binds who shelved it came meanwhile."""
    instance_id = await desk.add(tags=("db",))
    shelve = (await desk.admit("shelve", instance_id, kind)).operation
    await put(desk, lock, instance_id)
    await end(desk, shelve)
    stays = lock.blocks_row("shelveOffload", kind)
    assert (await desk.row(instance_id)).vm_state is VmState.SHELVED
    assert await done(desk, instance_id) == (["shelve"] if stays else ["shelve", "shelveOffload"])


@each_lock
async def test_arriving(desk: Desk, lock: Variant) -> None:
    """What has left its host arrives, or would be on none; a hold ends the move where it is."""
    desk.open(offload=True, placement=Rules(reserved=NOTHING))
    await desk.add_host("h")
    await desk.add_host("g")
    instance_id = await desk.add(tags=("db",))
    move = (await desk.admit("migrate", instance_id, ActorKind.ADMIN)).operation
    expected = ["migrate", "arrive"]
    if lock.kind is LockKind.HOLD:
        locking = Locking(desk.admission, desk.immediate, lambda: None)
        way = Hold(reason="Case 7.", shutdown="clean" if lock.off else "none")
        await locking.hold(instance_id, ADMIN, way)
        expected = ["migrate", "hold_clean" if lock.off else "hold_none"]
    else:
        await put(desk, lock, instance_id)
    await end(desk, move)
    assert await done(desk, instance_id) == expected
    dispatched = [dispatch for _subject, _id, dispatch in await desk.outbox()]
    assert [each.action for each in dispatched] == expected
    assert (Step.POWER_ON in dispatched[-1].steps) is (lock.kind is not LockKind.HOLD)
