"""Legal holds and breaking the glass, on both databases (R6, R7)."""

from __future__ import annotations

from typing import Any

import msgspec
import psycopg
import pytest
import sqlalchemy as sa

from stateward.arbiter.reconcile import Arbiter
from stateward.domain.actions import BY_KEY, WAYS, Action, key
from stateward.domain.bodies import Hold
from stateward.domain.errors import Conflict, Forbidden, Invalid, NotFound, Refusal, Refused
from stateward.domain.locks import ALL_CLASSES, ActorKind, Lock, LockKind
from stateward.domain.records import Instance, OperationState, Outcome, Result
from stateward.domain.shutdown import AtDeadline
from stateward.domain.states import TaskState, VmState
from stateward.domain.verdicts import Kind
from stateward.operations import finishing, gate, stacking
from stateward.operations.admission import Admitted
from stateward.operations.locking import Locking
from stateward.operations.overriding import Overriding
from stateward.operations.preparing import Wanted
from stateward.operations.stacking import LockWish
from stateward.store.overrides import Override
from tests.operations.desk import Desk
from tests.rows import NOW, actor

ADMIN = actor(ActorKind.ADMIN, project="the provider's", request="req-2")
SECOND = msgspec.structs.replace(ADMIN, user_id="another admin")


async def hold(desk: Desk, instance_id: str, **body: Any) -> Admitted:
    wanted = msgspec.convert({"reason": "Case 7.", **body}, Hold)
    return await Locking(desk.admission, desk.immediate, lambda: None).hold(instance_id, ADMIN, wanted)


async def stack(desk: Desk, instance_id: str) -> list[Lock]:
    row = await desk.row(instance_id)
    return await desk.database.read(lambda connection: stacking.stack_of(connection, row))


async def refusal(desk: Desk, action: str, instance_id: str, kind: ActorKind) -> Refusal | None:
    """Return why an action is refused; None when it is admitted."""
    try:
        await desk.admit(action, instance_id, kind)
    except Refused as error:
        return error.refusal
    return None


async def finish(desk: Desk, admitted: Admitted, outcome: Outcome = Outcome.SUCCEEDED) -> None:
    """Take an agent's word that an operation is done."""
    operation = admitted.operation
    result = Result(
        operation_id=operation.id,
        instance_id=operation.instance_id,
        fence=operation.fence,
        outcome=outcome,
        message=None,
        observation=None,
    )
    row = await desk.row(operation.instance_id)
    await desk.database.write(
        lambda connection: finishing.apply(connection, operation, row, result, desk.clock.now())
    )


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("task_state", [None, *TaskState])
async def test_a_hold_is_placed_over_everything(desk: Desk, way: str, task_state: TaskState | None) -> None:
    """Whatever is in flight is overtaken; from then on nobody is admitted to anything that a lock can block (R6)."""
    instance_id = await desk.add()
    before = await desk.admit("stop", instance_id)
    if task_state is not None:
        await desk.change(instance_id, {"task_state": task_state.value})
    else:
        await desk.change(instance_id, {"task_state": None, "operation_id": None})
    admitted = await hold(desk, instance_id, shutdown=way)
    assert admitted.operation.action == key(WAYS[way][0])
    assert (await desk.operation(before.operation.id)).state is OperationState.SUPERSEDED
    row = await desk.row(instance_id)
    assert (row.hold_blocks, row.kept_off, row.locked_by) == (ALL_CLASSES, way != "none", "admin")
    assert row.fence == before.operation.fence + 1
    assert row.operation_id == (None if way == "none" else admitted.operation.id)
    (lock,) = await stack(desk, instance_id)
    assert lock == admitted.placed
    assert (lock.kind, lock.reason, lock.holder, lock.off) == (
        LockKind.HOLD,
        "Case 7.",
        ADMIN.user_id,
        way != "none",
    )
    assert [each.action for _s, _m, each in (await desk.outbox())[1:]] == [admitted.operation.action]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("state", sorted(set(VmState) - {VmState.DELETED}))
async def test_a_hold_is_admitted_in_every_state(desk: Desk, way: str, state: VmState) -> None:
    """And what the instance comes to be is what the row says; an image on no host needs no agent."""
    host = "" if state is VmState.SHELVED_OFFLOADED else "h"
    instance_id = await desk.add(vm_state=state.value, host=host)
    admitted = await hold(desk, instance_id, shutdown=way)
    action = BY_KEY[admitted.operation.action]
    assert state in action.when
    if host:
        assert admitted.operation.finished_at is None
        await finish(desk, admitted)
    else:
        assert admitted.operation.state is OperationState.SUCCEEDED
    row = await desk.row(instance_id)
    assert (row.vm_state, row.task_state) == (action.becomes or state, None)
    assert row.held


async def test_a_deleted_instance_is_not_held(desk: Desk) -> None:
    """There is nothing left to hold."""
    instance_id = await desk.add(vm_state="deleted")
    with pytest.raises(Refused) as error:
        await hold(desk, instance_id)
    assert error.value.refusal is Refusal.NOT_FOUND


async def test_what_an_image_says_does_not_leave_a_held_guest_on(desk: Desk) -> None:
    """At the deadline of a hold the power is taken, whatever the owner or the image chose."""
    instance_id = await desk.add(metadata={"os_shutdown_at_deadline": "fail", "os_shutdown_timeout": "7"})
    admitted = await hold(desk, instance_id)
    shutdown = (await desk.outbox())[0][2].shutdown
    assert shutdown is not None
    assert (shutdown.at_deadline, shutdown.seconds) == (AtDeadline.FORCE, 7)
    assert admitted.operation.action == "hold_clean"


@pytest.mark.parametrize("kind", ActorKind)
@pytest.mark.parametrize(
    "action", [name for name, row in BY_KEY.items() if row.guarded and VmState.STOPPED in row.when]
)
async def test_nobody_passes_a_hold(desk: Desk, action: str, kind: ActorKind) -> None:
    """Neither the owner, nor an admin, nor Stateward itself (R6)."""
    instance_id = await desk.add(vm_state="stopped")
    await finish(desk, await hold(desk, instance_id))
    if BY_KEY[action].is_operation:
        assert await refusal(desk, action, instance_id, kind) is Refusal.LOCKED


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_nothing_changes_between_two_rows_of_one_hold(
    desk: Desk, database_url: sa.URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is being started is not shut down by the row for what is off, where its memory is to be saved."""
    instance_id = await desk.add(vm_state=VmState.STOPPED)
    address = database_url.render_as_string(hide_password=False).replace("+psycopg", "")
    first, tried = gate.admitted_row, list[str | None]()

    def watched(connection: sa.Connection, row: Action, *arguments: Any, **options: Any) -> Instance:
        tried.append(row.label)
        with psycopg.connect(address) as other, pytest.raises(psycopg.errors.LockNotAvailable):
            other.execute("SELECT FROM instances WHERE id = %s FOR UPDATE NOWAIT", (instance_id,))
        return first(connection, row, *arguments, **options)

    monkeypatch.setattr(gate, "admitted_row", watched)
    await hold(desk, instance_id, shutdown="suspend")
    assert tried == ["suspend", "clean"]


async def test_a_hold_is_released_by_naming_it(desk: Desk) -> None:
    """By an admin; no unlock takes it, and other locks hold on."""
    instance_id = await desk.add()
    await desk.immediate.lock(instance_id, actor(), reason="Mine.", project_id=None)
    held = await hold(desk, instance_id, name="case 7", ticket="T-1")
    for _ in range(3):
        await desk.immediate.unlock(instance_id, ADMIN, project_id=None)
    assert await stack(desk, instance_id) == [held.placed]
    locking = Locking(desk.admission, desk.immediate, lambda: None)
    with pytest.raises(Forbidden):
        await locking.release(instance_id, held.placed.id, actor(), reason=None, project_id=None)
    await locking.release(instance_id, held.placed.id, SECOND, reason="Closed.", project_id=None)
    row = await desk.row(instance_id)
    assert (row.held, row.kept_off, row.locked) == (False, False, False)


async def test_two_holds(desk: Desk) -> None:
    """The second switches off again what an override let run; each is released by itself; a name is used once."""
    instance_id = await desk.add()
    first = await hold(desk, instance_id, name="case 7")
    with pytest.raises(Conflict, match="You have a lock named 'case 7' on instance"):
        await hold(desk, instance_id, name="case 7")
    assert (await desk.row(instance_id)).operation_id == first.operation.id
    second = await hold(desk, instance_id, name="case 8", shutdown="none")
    locking = Locking(desk.admission, desk.immediate, lambda: None)
    await locking.release(instance_id, first.placed.id, ADMIN, reason=None, project_id=None)
    row = await desk.row(instance_id)
    assert (row.held, row.kept_off) == (True, False)
    assert [each.id for each in await stack(desk, instance_id)] == [second.placed.id]


@pytest.mark.parametrize("action", ["suspend", "stop"])
async def test_suspend_and_lock_are_one_request(desk: Desk, action: str) -> None:
    """Locked from the moment it is admitted; refused, there is no lock either (R7)."""
    instance_id = await desk.add()
    wish = LockWish(kind=LockKind.OWNER, holder="u", reason="Mine.")
    admitted = await desk.admit(action, instance_id, wanted=Wanted(lock=wish))
    assert admitted.instance == await desk.row(instance_id)
    assert (admitted.instance.owner_blocks, admitted.instance.locked_reason) == (ALL_CLASSES, "Mine.")
    assert await refusal(desk, "delete", instance_id, ActorKind.MEMBER) is Refusal.LOCKED
    other = await desk.add(vm_state="stopped")
    with pytest.raises(Refused) as error:
        await desk.admit(action, other, wanted=Wanted(lock=wish))
    assert error.value.refusal is Refusal.WRONG_VM_STATE
    assert await stack(desk, other) == []


async def held_and_stopped(desk: Desk) -> tuple[str, Lock]:
    instance_id = await desk.add()
    admitted = await hold(desk, instance_id)
    await finish(desk, admitted)
    return instance_id, admitted.placed


async def ask(desk: Desk, instance_id: str, lock: str, *, second: bool = False, **more: Any) -> Override:
    glass = Overriding(desk.admission, second_admin=second)
    return await glass.ask(instance_id, lock, ADMIN, reason="The court asked.", **more)


async def test_the_glass_is_broken_for_one_operation(desk: Desk) -> None:
    """Of the admin who asked, on that lock; the hold holds for everybody else, and after it (R6)."""
    instance_id, lock = await held_and_stopped(desk)
    assert await refusal(desk, "start", instance_id, ActorKind.ADMIN) is Refusal.LOCKED
    override = await ask(desk, instance_id, lock.id)
    assert (override.left, override.expires_at) == (1, None)
    assert await refusal(desk, "start", instance_id, ActorKind.MEMBER) is Refusal.LOCKED
    with pytest.raises(Refused):
        await desk.admission.admit(BY_KEY["start"], instance_id, SECOND)
    started = await desk.admission.admit(BY_KEY["start"], instance_id, ADMIN)
    await finish(desk, started)
    with pytest.raises(Refused) as error:
        await desk.admission.admit(BY_KEY["stop"], instance_id, ADMIN)
    assert error.value.refusal is Refusal.LOCKED
    events = [(event, action) for event, action, _detail in await desk.audit()]
    assert ("override_asked", None) in events
    assert events.index(("override_used", "start")) + 1 == events.index(("admitted", "start"))


async def test_what_the_glass_was_broken_for_runs(desk: Desk) -> None:
    """The hold holds on, but does not keep off what was let run by its override; the arbiter leaves it (R6)."""
    instance_id, lock = await held_and_stopped(desk)
    await ask(desk, instance_id, lock.id, uses=2)
    await desk.admission.admit((BY_KEY["rebuild_stopped"],), instance_id, ADMIN)
    assert (await desk.row(instance_id)).kept_off
    await desk.change(instance_id, {"task_state": None})
    await finish(desk, await desk.admission.admit(BY_KEY["start"], instance_id, ADMIN))
    await desk.change(instance_id, {"observed": "running"})
    row = await desk.row(instance_id)
    assert (row.vm_state, row.held, row.kept_off) == (VmState.ACTIVE, True, False)
    assert [each.off for each in await stack(desk, instance_id)] == [False]
    verdict = await Arbiter(desk.admission).reconcile(instance_id)
    assert verdict is not None
    assert verdict.kind is Kind.AGREE
    # Until somebody places another one.
    again = await hold(desk, instance_id, shutdown="forced")
    assert again.instance.kept_off


@pytest.mark.parametrize(
    ("ways", "action"),
    [
        (("clean",), "restore_held"),
        (("forced", "none"), "restore_held"),
        (("suspend",), "restore_held_saved"),
        (("forced", "suspend", "none"), "restore_held_saved"),
        (("suspend", "forced"), "restore_held"),
    ],
)
@pytest.mark.parametrize("state", ["active", "paused"])
async def test_what_a_hold_could_not_do_is_done_as_the_newest_wanted(
    desk: Desk, ways: tuple[str, ...], action: str, state: str
) -> None:
    """The power alone is never taken of a guest whose memory shall be kept (R6)."""
    instance_id = await desk.add(vm_state=state, observed="running" if state == "active" else "paused")
    for way in ways:
        await finish(desk, await hold(desk, instance_id, shutdown=way), Outcome.FAILED)
    await Arbiter(desk.admission).reconcile(instance_id)
    newest = max(await desk.operations(instance_id), key=lambda each: each.fence)
    assert (newest.action, newest.actor_kind) == (action, ActorKind.SYSTEM)


async def test_an_operation_that_is_refused_uses_nothing_up(desk: Desk) -> None:
    """The glass is whole again when what it was broken for was not admitted."""
    instance_id, lock = await held_and_stopped(desk)
    await ask(desk, instance_id, lock.id)
    with pytest.raises(Refused) as error:
        await desk.admission.admit(BY_KEY["suspend"], instance_id, ADMIN)
    assert error.value.refusal is Refusal.WRONG_VM_STATE
    await desk.admission.admit(BY_KEY["start"], instance_id, ADMIN)


async def test_one_operation_is_one_whichever_of_its_rows_it_is_admitted_by(desk: Desk) -> None:
    """Rebuilding has a row for what runs and one for what is off: trying the first uses nothing up."""
    instance_id, lock = await held_and_stopped(desk)
    await ask(desk, instance_id, lock.id, uses=2)
    rows = (BY_KEY["rebuild"], BY_KEY["rebuild_stopped"])
    await finish(desk, await desk.admission.admit(rows, instance_id, ADMIN))
    await desk.admission.admit(BY_KEY["start"], instance_id, ADMIN)
    used = [action for event, action, _detail in await desk.audit() if event == "override_used"]
    assert used == ["rebuild_stopped", "start"]
    with pytest.raises(Refused) as error:
        await desk.admission.admit(BY_KEY["stop"], instance_id, ADMIN)
    assert error.value.refusal is Refusal.LOCKED


async def test_the_glass_is_broken_for_a_while(desk: Desk) -> None:
    """As many operations as come; from its last second on, none."""
    instance_id, lock = await held_and_stopped(desk)
    override = await ask(desk, instance_id, lock.id, seconds=60)
    assert (override.left, override.expires_at) == (None, NOW + 60)
    desk.clock.at = NOW + 59
    for action in ("start", "stop", "start"):
        await finish(desk, await desk.admission.admit(BY_KEY[action], instance_id, ADMIN))
    desk.clock.at = NOW + 60
    with pytest.raises(Refused):
        await desk.admission.admit(BY_KEY["stop"], instance_id, ADMIN)


async def test_every_lock_that_binds_must_be_named(desk: Desk) -> None:
    """Passing one of two holds passes nothing."""
    instance_id, lock = await held_and_stopped(desk)
    other = (await hold(desk, instance_id, name="case 8", shutdown="none")).placed
    await ask(desk, instance_id, lock.id)
    with pytest.raises(Refused):
        await desk.admission.admit(BY_KEY["start"], instance_id, ADMIN)
    await ask(desk, instance_id, other.id)
    await desk.admission.admit(BY_KEY["start"], instance_id, ADMIN)


async def test_a_second_admin(desk: Desk) -> None:
    """Where that is wanted the leave is good when another one agrees, and one person is not two."""
    instance_id, lock = await held_and_stopped(desk)
    override = await ask(desk, instance_id, lock.id, second=True)
    glass = Overriding(desk.admission, second_admin=True)
    with pytest.raises(Refused):
        await desk.admission.admit(BY_KEY["start"], instance_id, ADMIN)
    with pytest.raises(Forbidden, match="stateward:overrides:approve:own"):
        await glass.approve(override.id, ADMIN)
    assert (await desk.audit())[-1] == (
        "refused",
        "approve_override",
        {"why": "Policy doesn't allow stateward:overrides:approve:own to be performed."},
    )
    approved = await glass.approve(override.id, SECOND)
    assert (approved.approved_by, approved.approved_at) == (SECOND.user_id, NOW)
    with pytest.raises(Conflict, match="a second administrator has agreed already"):
        await glass.approve(override.id, SECOND)
    with pytest.raises(NotFound):
        await glass.approve("nothing", SECOND)
    await desk.admission.admit(BY_KEY["start"], instance_id, ADMIN)


async def test_an_override_of_what_is_not_there(desk: Desk) -> None:
    """A lock that is gone, one that does not bind admins, an instance that never was, and numbers that mean nothing."""
    instance_id, lock = await held_and_stopped(desk)
    own = await desk.immediate.lock(instance_id, actor(), reason=None, project_id=None)
    assert own.admitted.instance.owner_blocks == ALL_CLASSES
    (owner,) = [each for each in await stack(desk, instance_id) if each.kind is LockKind.OWNER]
    with pytest.raises(Conflict, match="does not bind administrators; there is nothing to override"):
        await ask(desk, instance_id, owner.id)
    with pytest.raises(NotFound, match="has no lock gone; it may have been released"):
        await ask(desk, instance_id, "gone")
    with pytest.raises(Refused):
        await ask(desk, "nothing", lock.id)
    wrong: list[dict[str, Any]] = [{"uses": 0}, {"seconds": 0}, {"uses": 1, "seconds": 1}]
    for more in wrong:
        with pytest.raises(Invalid):
            await ask(desk, instance_id, lock.id, **more)
