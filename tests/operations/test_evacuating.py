"""Evacuating: only off a host that is fenced, and the one that died is to be rid of what it had."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from stateward.domain.actions import BY_KEY
from stateward.domain.errors import Refusal, Refused
from stateward.domain.hosts import Event
from stateward.domain.locks import ActorKind
from stateward.domain.placement import NOTHING, Room, Rules
from stateward.domain.records import Outcome, Result
from stateward.domain.states import Observed, TaskState, VmState
from stateward.operations.completion import Completion
from stateward.operations.creation import create
from stateward.operations.placing import Place
from stateward.operations.preparing import Wanted
from stateward.store import hosts, strays
from stateward.store.strays import Stray
from stateward.store.tables import HOSTS
from tests.operations.desk import Desk
from tests.rows import NOW, actor
from tests.stack import encoded, new_instance

ADMIN = actor(ActorKind.ADMIN)
ROWS = (BY_KEY["evacuate"], BY_KEY["evacuate_stopped"])


@pytest.fixture(autouse=True)
def _rules(desk: Desk) -> None:
    desk.admission.placement = Rules(reserved=NOTHING)


class Dying:
    """Hosts ``dead``, ``x`` and ``y``, with an active instance on the first."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.id = ""
        self._completion = Completion(desk.admission, lambda _instance_id: None)

    async def begin(self, *, shared: bool = True) -> None:
        for name in ("dead", "x", "y"):
            await self.desk.add_host(name)
        await self.desk.database.write(lambda c: c.execute(sa.update(HOSTS).values(shared=shared)))
        new = new_instance(place=Place(host="dead"))
        made = await create(self.desk.admission, new, actor(), reservation_id="r")
        self.id = made.instance.id
        await self.end()

    async def dies(self, *events: Event, host: str = "dead") -> None:
        """Have things become of a host."""

        def work(connection: sa.Connection) -> None:
            for event in events:
                assert hosts.become(connection, host, event, "", NOW)

        await self.desk.database.write(work)

    async def end(self, outcome: Outcome = Outcome.SUCCEEDED) -> None:
        """End the operation that was dispatched last."""
        _subject, _message_id, dispatch = (await self.desk.outbox())[-1]
        result = Result(
            operation_id=dispatch.operation_id,
            instance_id=self.id,
            fence=dispatch.fence,
            outcome=outcome,
            message=None if outcome is Outcome.SUCCEEDED else "No.",
            observation=None,
        )
        await self._completion.handle(encoded(result))

    async def claimed(self) -> dict[str, Room]:
        found = await self.desk.database.read(hosts.every)
        return {host.name: host.claimed for host in found if host.claimed != Room()}

    async def strays(self) -> list[Stray]:
        return await self.desk.database.read(lambda c: strays.on(c, "dead"))


@pytest.fixture
async def dying(desk: Desk) -> Dying:
    """Give a host that is about to die."""
    found = Dying(desk)
    await found.begin()
    return found


FENCED = (Event.SILENT, Event.CONFIRMED, Event.FENCED)


@pytest.mark.parametrize("events", [FENCED[:0], FENCED[:1], FENCED[:2], (*FENCED, Event.HEARD)])
async def test_only_off_a_host_that_is_fenced(dying: Dying, events: tuple[Event, ...]) -> None:
    """Neither of one that is silent, nor of one that is said to be dead, nor of one that is back."""
    await dying.dies(*events)
    before = await dying.desk.row(dying.id)
    with pytest.raises(Refused) as refused:
        await dying.desk.admission.admit(ROWS, dying.id, ADMIN)
    assert refused.value.refusal is Refusal.NOT_FENCED
    assert await dying.desk.row(dying.id) == before
    assert await dying.strays() == []


async def test_it_is_made_elsewhere(dying: Dying) -> None:
    """With a higher fence and room claimed there; what was in flight is over, and the dead host has a stray."""
    await dying.desk.admission.admit(BY_KEY["reboot_hard"], dying.id, ADMIN)
    await dying.dies(*FENCED)
    admitted = await dying.desk.admission.admit(ROWS, dying.id, ADMIN)
    row = admitted.instance
    assert (row.host, row.task_state, row.observed) == ("x", TaskState.REBUILDING, Observed.UNKNOWN)
    assert await dying.claimed() == {"x": Room(vcpus=1, memory=64)}
    assert await dying.strays() == [Stray(host="dead", instance_id=dying.id, fence=row.fence)]
    assert {each.action: each.state.value for each in await dying.desk.operations(dying.id)} == {
        "create": "succeeded",
        "reboot_hard": "superseded",
        "evacuate": "accepted",
    }
    assert (await dying.desk.outbox())[-1][0] == "operations.x"
    await dying.end()
    row = await dying.desk.row(dying.id)
    assert (row.vm_state, row.task_state, row.host) == (VmState.ACTIVE, None, "x")


async def test_one_that_cannot_be_made(dying: Dying) -> None:
    """It is in error where it should have been, with room there; the dead host keeps its stray."""
    await dying.dies(*FENCED)
    await dying.desk.admission.admit(ROWS, dying.id, ADMIN)
    await dying.end(Outcome.FAILED)
    row = await dying.desk.row(dying.id)
    assert (row.vm_state, row.host) == (VmState.ERROR, "x")
    assert await dying.claimed() == {"x": Room(vcpus=1, memory=64)}
    assert len(await dying.strays()) == 1


async def test_the_host_that_is_asked_for(dying: Dying) -> None:
    """Or none."""
    await dying.dies(*FENCED)
    with pytest.raises(Refused) as refused:
        await dying.desk.admission.admit(ROWS, dying.id, ADMIN, wanted=Wanted(host="dead"))
    assert refused.value.refusal is Refusal.NO_VALID_HOST
    admitted = await dying.desk.admission.admit(ROWS, dying.id, ADMIN, wanted=Wanted(host="y"))
    assert admitted.instance.host == "y"


async def test_a_disk_that_is_on_the_dead_host(desk: Desk) -> None:
    """It is lost only by a row that says so."""
    dying = Dying(desk)
    await dying.begin(shared=False)
    await dying.dies(*FENCED)
    with pytest.raises(Refused) as refused:
        await desk.admission.admit(ROWS, dying.id, ADMIN)
    assert refused.value.refusal is Refusal.DISK_IS_THERE
    admitted = await desk.admission.admit(BY_KEY["evacuate_anew"], dying.id, ADMIN)
    assert admitted.instance.host == "x"


async def test_twice_off_hosts_that_died_one_after_the_other(dying: Dying) -> None:
    """Each is to be rid of what it had; a stray that was noted before is so by the newer fence."""
    await dying.dies(*FENCED)
    await dying.desk.admission.admit(ROWS, dying.id, ADMIN)
    await dying.dies(*FENCED, host="x")
    admitted = await dying.desk.admission.admit(ROWS, dying.id, ADMIN)
    assert admitted.instance.host == "y"
    found = await dying.desk.database.read(lambda c: [*strays.on(c, "dead"), *strays.on(c, "x")])
    assert [(each.host, each.fence) for each in found] == [
        ("dead", admitted.instance.fence - 1),
        ("x", admitted.instance.fence),
    ]
