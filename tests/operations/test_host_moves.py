"""Plans that are carried out: at their rate, once, and from wherever a killed process had come."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa

from stateward.domain.actions import Action
from stateward.domain.evacuation import PROPERTY, PlanKind, PlanState
from stateward.domain.events import EVENT_TYPES
from stateward.domain.hosts import Event
from stateward.domain.locks import ActorKind
from stateward.domain.placement import NOTHING, Rules
from stateward.domain.records import Outcome, Result
from stateward.operations.admission import Admitted
from stateward.operations.completion import Completion
from stateward.operations.host_moves import HostMoves, Pace
from stateward.operations.hosts import Hosts
from stateward.store import host_plans, hosts
from stateward.store.engine import Database, StoreUnavailable
from stateward.store.host_plans import KeptMove, KeptPlan
from stateward.store.tables import HOSTS
from tests.operations.desk import Desk
from tests.rows import NOW, actor
from tests.stack import FailingDatabase, encoded

ADMIN = actor(ActorKind.ADMIN)
SWIFT = Pace(parallel=2, per_minute=1e12)


async def evacuating(
    desk: Desk, count: int, *, shared: bool = True, wish: str = "evacuate"
) -> tuple[list[str], str]:
    """Have a host be fenced with so many instances, and its plan approved; return their ids, and the plan's."""
    desk.open(offload=True, placement=Rules(reserved=NOTHING))
    for name in ("dead", "x"):
        await desk.add_host(name)
    ids = [
        await desk.add(host="dead", name=f"web{number}", metadata={PROPERTY: wish}) for number in range(count)
    ]

    def fenced(connection: sa.Connection) -> None:
        connection.execute(sa.update(HOSTS).values(shared=shared))
        for event in (Event.SILENT, Event.CONFIRMED, Event.FENCED):
            hosts.become(connection, "dead", event, "", NOW)

    await desk.database.write(fenced)

    def plan_id(_connection: sa.Connection, plan: KeptPlan) -> str:
        return plan.id

    acts = Hosts(desk.admission)
    made = await acts.plan("dead", ADMIN, PlanKind.EVACUATE, then=plan_id)
    await acts.approve("dead", made, ADMIN, then=plan_id)
    return ids, made


async def states(desk: Desk, plan_id: str) -> list[str]:
    return [each.state.value for each in await desk.database.read(lambda c: host_plans.moves(c, plan_id))]


async def end(desk: Desk, instance_id: str, outcome: Outcome = Outcome.SUCCEEDED) -> None:
    """Have an instance's operation end, if it has one."""
    row = await desk.row(instance_id)
    if row.task_state is None or row.operation_id is None:
        return
    result = Result(
        operation_id=row.operation_id,
        instance_id=instance_id,
        fence=row.fence,
        outcome=outcome,
        message="No.",
        observation=None,
    )
    await Completion(desk.admission, lambda _id: None).handle(encoded(result))


async def test_so_many_at_a_time(desk: Desk) -> None:
    """The next when one has ended, however; the plan is over with its last line."""
    ids, plan_id = await evacuating(desk, 3)
    moves = HostMoves(desk.admission, SWIFT)
    assert await moves.look() is True
    assert await states(desk, plan_id) == ["admitted", "admitted", "waiting"]
    await moves.look()
    assert await states(desk, plan_id) == ["admitted", "admitted", "waiting"]
    await end(desk, ids[0], Outcome.FAILED)
    await moves.look()
    assert await states(desk, plan_id) == ["failed", "admitted", "admitted"]
    await end(desk, ids[1])
    await end(desk, ids[2])
    await moves.look()
    assert await states(desk, plan_id) == ["failed", "done", "done"]
    plan = await desk.database.read(lambda c: host_plans.get(c, plan_id))
    assert plan is not None
    assert plan.state is PlanState.DONE
    assert await moves.look() is False


async def test_customers_are_told_no_names(desk: Desk) -> None:
    """The host's and the plan's are in the audit trail, and nowhere else that a customer looks."""
    (instance_id,), plan_id = await evacuating(desk, 1)
    await HostMoves(desk.admission, SWIFT).look()
    (operation,) = await desk.operations(instance_id)
    assert operation.message == "The provider empties its host."
    assert plan_id not in operation.request_id
    (detail,) = [detail for event, _, detail in await desk.audit() if event == "admitted"]
    assert (detail["why"], detail["host"], detail["plan"]) == (operation.message, "dead", plan_id)
    (shown,) = [row.shown for row in EVENT_TYPES if "admitted" in row.records]
    assert {"host", "plan"} & set(shown or ()) == set()


async def test_what_is_refused_takes_no_time(desk: Desk) -> None:
    """A line that begins nothing does not count among so many a minute."""
    ids, plan_id = await evacuating(desk, 3)
    for instance_id in ids[:2]:
        await desk.change(instance_id, {"vm_state": "deleted"})
    moves = HostMoves(desk.admission, Pace(parallel=2, per_minute=1))
    await moves.look()
    assert await states(desk, plan_id) == ["refused", "refused", "admitted"]


@pytest.mark.parametrize(
    ("shared", "wish", "then", "says"),
    [
        (True, "evacuate", {"host": "x"}, "It is not on this host any more."),
        (
            True,
            "evacuate",
            {"metadata": {PROPERTY: "stay"}},
            "Since the plan was made that has changed: it stays, as its metadata says.",
        ),
        (
            False,
            "rebuild",
            {"metadata": {}},
            "Since the plan was made that has changed: its disk is on that host.",
        ),
    ],
    ids=["it has left", "its owner has it stay", "its owner would not lose its disk"],
)
async def test_what_a_line_was_made_by_has_changed(
    desk: Desk, *, shared: bool, wish: str, then: Mapping[str, Any], says: str
) -> None:
    """It may have waited for an hour: nothing is done to the instance, and the others go on."""
    ids, plan_id = await evacuating(desk, 2, shared=shared, wish=wish)
    await desk.change(ids[0], then)
    before = await desk.row(ids[0])
    await HostMoves(desk.admission, SWIFT).look()
    assert await states(desk, plan_id) == ["refused", "admitted"]
    moves = await desk.database.read(lambda c: host_plans.moves(c, plan_id))
    assert moves[0].message == says
    assert await desk.row(ids[0]) == before
    assert await desk.operations(ids[0]) == []


async def test_a_line_s_fault_keeps_no_other_waiting(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is tried again, and takes nobody's place."""
    ids, plan_id = await evacuating(desk, 3)
    admit_in = desk.admission.admit_in

    def fails(
        connection: sa.Connection, action: Action, instance_id: str, *rest: Any, **more: Any
    ) -> Admitted:
        if instance_id == ids[0]:
            raise RuntimeError
        return admit_in(connection, action, instance_id, *rest, **more)

    moves = HostMoves(desk.admission, SWIFT)
    with monkeypatch.context() as broken:
        broken.setattr(desk.admission, "admit_in", fails)
        await moves.look()
        assert await states(desk, plan_id) == ["waiting", "admitted", "admitted"]
    await end(desk, ids[1])
    await moves.look()
    assert await states(desk, plan_id) == ["admitted", "done", "admitted"]


async def test_a_plan_s_fault_keeps_no_other_waiting(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither what cannot even be read."""
    _ids, plan_id = await evacuating(desk, 1)
    whole = await desk.database.read(lambda c: host_plans.get(c, plan_id))
    assert whole is not None
    broken, moves = msgspec.structs.replace(whole, id="broken"), host_plans.moves

    def lines(connection: sa.Connection, plan_id: str) -> list[KeptMove]:
        if plan_id == broken.id:
            raise RuntimeError
        return moves(connection, plan_id)

    def approved(_connection: sa.Connection, _state: PlanState) -> list[KeptPlan]:
        return [broken, whole]

    monkeypatch.setattr(host_plans, "in_state", approved)
    monkeypatch.setattr(host_plans, "moves", lines)
    await HostMoves(desk.admission, SWIFT).look()
    assert await states(desk, plan_id) == ["admitted"]


async def test_a_plan_that_was_given_up(desk: Desk) -> None:
    """What was begun goes on, and nothing else begins."""
    _ids, plan_id = await evacuating(desk, 3)
    moves = HostMoves(desk.admission, SWIFT)
    await moves.look()
    await Hosts(desk.admission).cancel("dead", ADMIN, PlanKind.EVACUATE, then=lambda _c: None)
    assert await moves.look() is False
    assert await states(desk, plan_id) == ["admitted", "admitted", "waiting"]


@pytest.mark.parametrize("after", range(9))
async def test_killed_at_any_write(inline_database: Database, after: int) -> None:
    """The next life goes on: every instance is evacuated once, and the plan comes to its end."""
    failing = FailingDatabase(inline_database)
    desk = Desk(failing)
    ids, plan_id = await evacuating(desk, 3)
    failing.fails(1, after=after)
    for _ in range(8):
        try:
            # Each life knows only what is written.
            await HostMoves(desk.admission, SWIFT).look()
            for instance_id in ids:
                await end(desk, instance_id)
        except StoreUnavailable:
            continue
    assert failing.failures == 0
    assert await states(desk, plan_id) == ["done"] * 3
    for instance_id in ids:
        assert [each.action for each in await desk.operations(instance_id)] == ["evacuate"]
