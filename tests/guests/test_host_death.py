"""A host dies while its guests run on, and comes back: two real hypervisors on one shared folder (R14, ADR 0020).

The dangerous case is told from its beginning to its end: the agent is gone, so that nobody stops the guests, and each
of them holds a disk that another machine could open.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Final

import libvirt
import msgspec
import pytest
import pytest_asyncio

from stateward.agent.lease import Lease
from stateward.domain.actions import BY_KEY
from stateward.domain.bodies import RebootOptions
from stateward.domain.evacuation import MoveState, PlanState
from stateward.domain.hosts import Condition, Frozen
from stateward.domain.locks import LockKind, OperationClass
from stateward.domain.states import Observed, VmState
from stateward.operations.stacking import LockWish
from stateward.store import strays
from tests.guests.conftest import TinyImages
from tests.guests.machine import table
from tests.guests.pair import ADMIN, Pair
from tests.guests.processes import Processes, watched
from tests.guests.tale import Tale

pytestmark = [pytest.mark.asyncio, pytest.mark.guests, pytest.mark.slow, pytest.mark.timeout(600)]

#: A folder in memory, where there is one: seconds of silence are counted here, and a disk could hold everybody up.
_MEMORY: Final = Path("/dev/shm")

#: By each guest's name: the plan's line, and where its guest is in the end, as what.
PLANNED: Final = {
    "web": ("evacuate", "beta", MoveState.DONE),
    "locked": (None, None, MoveState.LEFT),
    "stopped": ("evacuate_stopped", "beta", MoveState.DONE),
    "saved": ("evacuate_stopped", "beta", MoveState.DONE),
}
ENDS: Final = {
    "web": ("beta", VmState.ACTIVE, {"beta": Observed.RUNNING}),
    "locked": ("alpha", VmState.STOPPED, {"alpha": Observed.SHUTOFF}),
    "stopped": ("beta", VmState.STOPPED, {"beta": Observed.SHUTOFF}),
    "saved": ("beta", VmState.STOPPED, {"beta": Observed.SHUTOFF}),
    "other": ("beta", VmState.ACTIVE, {"beta": Observed.RUNNING}),
    "new": ("alpha", VmState.ACTIVE, {"alpha": Observed.RUNNING}),
}


@pytest.fixture
def home() -> Iterator[Path]:
    """Give a folder with a path short enough for sockets."""
    path = Path(tempfile.mkdtemp(prefix="stateward-", dir=_MEMORY if _MEMORY.is_dir() else None))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest_asyncio.fixture
async def pair(home: Path, images: TinyImages) -> AsyncIterator[Pair]:
    """Give both machines, up."""
    pair = Pair(home, images)
    try:
        await pair.start()
        yield pair
    finally:
        await pair.stop()


async def begin(tale: Tale) -> None:
    """Four guests on alpha, one of which gets no answer to its power button, and one on beta."""
    pair = tale.pair
    await tale.make("web", "alpha", "stateward.acpi=ignore")
    await tale.make("locked", "alpha")
    await tale.make("stopped", "alpha")
    await tale.make("saved", "alpha")
    await tale.make("other", "beta")
    for each in tale.ids.values():
        await pair.settled(each)
    for name in ("stopped", "saved"):
        await pair.plane.admission.admit(BY_KEY["stop_force"], tale.ids[name], ADMIN)
    wish = LockWish(kind=LockKind.ADMIN, holder="an operator", name="no starts", blocks=OperationClass.START)
    await pair.plane.locking.place(tale.ids["locked"], ADMIN, wish, overtake=False, project_id=None)
    for name in ("stopped", "saved"):
        await pair.settled(tale.ids[name])
    await pair.says(tale.ids["web"], "boot 1", "up")
    # It is in the journal, and would start the guest as soon as that is off.
    options = RebootOptions(type="SOFT", timeout=600)
    await pair.plane.admission.admit(BY_KEY["reboot_soft"], tale.ids["web"], ADMIN, body=options)
    await pair.says(tale.ids["web"], "boot 1", "up", "power button pressed")


async def die(tale: Tale) -> Processes:
    """Alpha's agent dies, and its guests run on until the fence has them; one is started on beta then."""
    pair, web = tale.pair, tale.ids["web"]
    async with watched(web) as processes:
        (before,) = processes.look()
        await pair.kill_agent("alpha")
        assert processes.look() == {before}
        await pair.becomes("alpha", Condition.FENCED)
        assert (processes.look(), (await pair.row(web)).host) == (frozenset(), "alpha")

        plan = await tale.planned()
        # Nothing is done before somebody has agreed.
        assert (plan.state, processes.look()) == (PlanState.PLANNED, frozenset())
        await tale.carry_out(plan)
        await pair.says(web, "boot 1", "power button pressed", "boot 2", "up")
        (after,) = processes.look()
    assert processes.seen == [{before}, frozenset(), {after}]
    return processes


async def come_back(tale: Tale) -> str:
    """Alpha's power returns, and somebody starts what is defined there; return what came of the first."""
    pair = tale.pair
    await pair.power_returns("alpha")
    uri = pair.sides["alpha"].machine.uri
    there = await tale.there()
    assert {name: there[name].get("alpha") for name in PLANNED} == dict.fromkeys(PLANNED, Observed.SHUTOFF)
    with pytest.raises(libvirt.libvirtError) as refused:
        await asyncio.to_thread(_start, uri, tale.ids["web"])
    await tale.locked_out("alpha", "web")
    await asyncio.to_thread(_start, uri, tale.ids["stopped"])
    await asyncio.to_thread(_start, uri, tale.ids["saved"], then_save=True)
    assert tale.memory() == [f"{tale.domains['saved']}.save"]
    there = await tale.there()
    assert there["web"] == {"alpha": Observed.SHUTOFF, "beta": Observed.RUNNING}
    assert there["stopped"] == {"alpha": Observed.RUNNING, "beta": Observed.SHUTOFF}
    assert there["saved"] == {"alpha": Observed.SUSPENDED, "beta": Observed.SHUTOFF}
    await pair.start_agent("alpha")
    await pair.becomes("alpha", lambda host: host.condition is Condition.UP and host.frozen is None)
    return str(refused.value)


def _start(uri: str, instance_id: str, *, then_save: bool = False) -> None:
    connection = libvirt.open(uri)
    try:
        domain = connection.lookupByUUIDString(instance_id)
        domain.create()
        if then_save:
            domain.managedSave(0)
    finally:
        connection.close()


async def test_a_host_dies_and_its_guests_run_on(pair: Pair) -> None:
    """Fenced, evacuated and back: no guest runs twice, none boots another disk, and the host can be used again."""
    tale = Tale(pair)
    await begin(tale)
    running = Processes(tale.ids["other"]).look()
    processes = await die(tale)
    plan = await tale.plan()
    assert plan is not None
    assert await tale.moves(plan) == PLANNED
    left = await pair.look(lambda connection: strays.on(connection, "alpha"))
    assert {each.instance_id for each in left} == {tale.ids[name] for name in ("web", "stopped", "saved")}

    refused = await come_back(tale)
    assert await pair.look(lambda connection: strays.on(connection, "alpha")) == []
    # As after any boot: it ran, and a lock keeps it from being started.
    await pair.until(lambda: _is(pair, tale.ids["locked"], VmState.STOPPED))
    await tale.make("new", "alpha")
    await pair.settled(tale.ids["new"])

    there, rows = await tale.there(), {name: await pair.row(each) for name, each in tale.ids.items()}
    seen = {name: (row.host, row.vm_state, there[name]) for name, row in rows.items()}
    disks = {
        name: (pair.shared / "instances" / each / "disk.qcow2").is_file() for name, each in tale.ids.items()
    }
    histories = {name: await pair.history(each) for name, each in tale.ids.items()}
    lives, fenced = await tale.lives(), tale.fenced()
    boots = [
        line.removeprefix("stateward-guest: ") for line in pair.said(tale.ids["web"]) if ": boot " in line
    ]
    print(  # noqa: T201 (asked for: with -s it is seen)
        table(
            "A host that died while its guests ran on:",
            ("guest", "plan", "record", "", "hypervisors", "done, last"),
            [
                (
                    name,
                    PLANNED.get(name, ("", "", ""))[0] or "",
                    *seen[name][:2],
                    ", ".join(f"{host} {state}" for host, state in there[name].items()),
                    histories[name][-1],
                )
                for name in ENDS
            ],
        ),
        *(f"{at:6.2f} s  {action}: {says}" for at, action, says in lives),
        *(f"{at:6.2f} s  the fence: {host}: {len(killed)} processes" for at, host, killed in fenced),
        f"web: {boots}, {len(processes.seen)} different accounts of its machines in {processes.looks} looks",
        f"started by hand on alpha: {refused}",
        sep="\n",
    )
    assert seen == ENDS
    assert disks == dict.fromkeys(ENDS, True)
    assert boots == ["boot 1", "boot 2"]
    # When it was made, and by hand: what the agent had begun with it before it died is over.
    assert (tale.starts("web"), tale.starts("locked"), tale.memory()) == (2, 1, [])
    assert Processes(tale.ids["other"]).look() == running
    assert [action for _at, action, _says in lives] == ["suspect", "dead", "fenced", "returned", "up"]
    assert histories["web"] == [
        "create on alpha: succeeded",
        "reboot_soft on alpha: superseded",
        "evacuate on beta: succeeded",
    ]
    # The fence ended when all were gone, before the host counted as fenced, before anything was begun elsewhere.
    ((at, host, killed),) = fenced
    domains = {tale.domains[name] for name in ("web", "locked")}
    assert (host, killed & domains, {"libvirtd", "virtlogd"} - killed) == ("alpha", domains, set())
    assert lives[1][0] < at < lives[2][0]


async def _is(pair: Pair, instance_id: str, state: VmState) -> bool | None:
    row = await pair.row(instance_id)
    return True if (row.vm_state, row.task_state) == (state, None) else None


async def test_a_fence_that_only_says_so(pair: Pair) -> None:
    """The guest runs on where it is: its disk is locked, and it is the old copy that is kept until somebody decides."""
    tale = Tale(pair)
    web = await tale.make("web", "alpha")
    await pair.settled(web)
    (pair.folder / "fence.py").write_text("print('done, as far as anybody knows')")
    processes = Processes(web)
    (before,) = processes.look()
    await pair.kill_agent("alpha")
    plan = await tale.planned()
    await tale.carry_out(plan)
    row = await pair.row(web)
    assert await tale.moves(plan) == {"web": ("evacuate", "beta", MoveState.FAILED)}
    assert (row.host, row.vm_state) == ("beta", VmState.ERROR)
    await tale.locked_out("beta", "web")
    assert processes.look() == {before}
    assert await tale.there() == {"web": {"alpha": Observed.RUNNING, "beta": Observed.SHUTOFF}}

    await pair.start_agent("alpha")

    async def off() -> bool | None:
        there = await tale.there()
        return True if there["web"] == {"alpha": Observed.SHUTOFF, "beta": Observed.SHUTOFF} else None

    await pair.until(off)
    assert processes.look() == frozenset()
    assert (await pair.host("alpha")).condition is Condition.RETURNED
    await pair.plane.admission.admit(BY_KEY["reboot_hard"], web, ADMIN)
    assert (await pair.settled(web)).vm_state is VmState.ACTIVE
    await pair.becomes("alpha", Condition.UP)
    assert await tale.there() == {"web": {"beta": Observed.RUNNING}}
    assert len(processes.look()) == 1


async def test_a_host_that_only_its_network_has_lost(pair: Pair) -> None:
    """It renews its lease: it is never declared dead, and its guests run on as if nothing were."""
    tale = Tale(pair)
    web = await tale.make("web", "alpha")
    await pair.settled(web)
    running = Processes(web).look()
    assert len(running) == 1
    pair.sides["alpha"].wire.cut()
    await pair.becomes("alpha", Condition.SUSPECT)
    first, since = _counter(pair), time.monotonic()

    async def waited() -> bool | None:
        # Renewed all the time, for longer than it would be good without.
        over = time.monotonic() - since > 2 * pair.settings.death.lease_seconds
        return True if over and _counter(pair) - first >= 6 else None

    await pair.until(waited)
    host = await pair.host("alpha")
    assert (host.condition, host.frozen, await tale.plan()) == (Condition.SUSPECT, Frozen.SILENT, None)
    pair.sides["alpha"].wire.mend()
    await pair.becomes("alpha", lambda host: host.condition is Condition.UP and host.frozen is None)
    assert not (pair.folder / "fence.log").exists()
    assert [action for _at, action, _says in await tale.lives()] == ["suspect", "up"]
    ((_at, _action, alert),) = await pair.trail("alert")
    assert alert["says"] == (
        "Host alpha is silent. Whether it renews its lease is known in 10 s. If it is dead, say so: "
        "stateward host confirm --dead alpha"
    )
    assert Processes(web).look() == running
    assert await pair.history(web) == ["create on alpha: succeeded"]
    assert await tale.there() == {"web": {"alpha": Observed.RUNNING}}


def _counter(pair: Pair) -> int:
    return msgspec.json.decode((pair.leases / "alpha.lease").read_bytes(), type=Lease).counter
