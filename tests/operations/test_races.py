"""Two requests for one instance at once: each pair has one outcome, whatever comes first."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import looptime
import pytest
import pytest_asyncio
import sqlalchemy as sa

from stateward.agent.driver import DriverError
from stateward.bus.memory import Disorder
from stateward.domain.actions import BY_KEY, alternatives
from stateward.domain.bodies import ShutdownOptions
from stateward.domain.errors import Refusal, Refused
from stateward.domain.records import FlavorFacts, ImageFacts, Instance, Target
from stateward.domain.states import Observed, TaskState, VmState
from stateward.operations.admission import Admitted
from stateward.operations.creation import create
from stateward.operations.preparing import Wanted
from stateward.store import claims, hosts
from stateward.store.claims import Claim, Purpose
from stateward.store.engine import Database
from stateward.store.tables import INSTANCES
from tests.operations.desk import Desk
from tests.rows import actor
from tests.stack import Stack, new_instance

on_virtual_time = pytest.mark.looptime

LARGE: Final = FlavorFacts(id="2", name="large", vcpus=1, ram=65, disk=2)
LARGER: Final = FlavorFacts(id="3", name="larger", vcpus=1, ram=66, disk=3)
OTHER: Final = ImageFacts(id="other", disk_format="qcow2")


@pytest_asyncio.fixture(params=[1, 2], ids="disorder-{}".format)
async def stack(
    request: pytest.FixtureRequest, inline_database: Database, swift_folder: Path
) -> AsyncIterator[Stack]:
    """Give a running stack, behind a bus that misbehaves in one of two ways."""
    stack = Stack(inline_database, swift_folder, Disorder(seed=request.param, duplicate=0.5))
    with looptime.enabled(strict=True):
        await stack.start()
    yield stack
    with looptime.enabled(strict=True):
        await stack.stop()


async def ask(stack: Stack | Desk, action: str, server: str, **wanted: Target) -> Admitted:
    return await stack.admission.admit(
        alternatives(action) if action != "delete" else BY_KEY["delete"],
        server,
        actor(),
        wanted=Wanted(**wanted),  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    )


async def refused(stack: Stack, action: str, server: str, **wanted: Target) -> str:
    with pytest.raises(Refused) as found:
        await ask(stack, action, server, **wanted)
    assert found.value.refusal is Refusal.WRONG_TASK_STATE
    return str(found.value.facts["task_state"])


async def held(stack: Stack | Desk, server: str) -> dict[Purpose, Claim]:
    return await stack.database.read(lambda connection: claims.of_instance(connection, server))


async def is_gone(stack: Stack, server: str) -> None:
    """Check that nothing is left of an instance: no guest, no disk, no kept one, no room."""
    row = await stack.until(server, lambda row: row.vm_state is VmState.DELETED)
    assert (row.task_state, row.operation_id) == (None, None)
    await asyncio.sleep(1)
    assert stack.hypervisor.guest(server).blank
    assert await held(stack, server) == {}
    (host,) = await stack.database.read(hosts.every)
    assert (host.claims, host.claimed.memory) == (0, 0)


@pytest.mark.parametrize("others", [1, 9])
async def test_resizes_at_once(desk: Desk, others: int) -> None:
    """One is admitted, and it alone holds room; the others hear what is in flight."""
    await desk.add_host("a")
    server = (await create(desk.admission, new_instance(), actor(), reservation_id="r")).instance.id
    await desk.change(server, {"vm_state": "active", "task_state": None, "operation_id": None})
    flavors = [LARGE, LARGER] * 5
    results = await asyncio.gather(
        *(ask(desk, "resize", server, target=Target(flavor=flavor)) for flavor in flavors[: others + 1]),
        return_exceptions=True,
    )
    (admitted,) = [each for each in results if isinstance(each, Admitted)]
    losers = [each for each in results if isinstance(each, Refused)]
    assert [each.facts["task_state"] for each in losers] == [TaskState.RESIZE_PREP] * others
    ram = admitted.operation.params["target"]["flavor"]["ram"]
    found = await held(desk, server)
    assert {purpose: claim.room.memory for purpose, claim in found.items()} == {
        Purpose.HOME: 64,
        Purpose.MOVE: ram,
    }


async def test_unshelvings_at_once(desk: Desk) -> None:
    """One finds a host and claims its room; the others claim nothing."""
    await desk.add_host("a")
    server = await desk.add(vm_state="shelved_offloaded", host="", shelved_image=OTHER)
    results = await asyncio.gather(*(ask(desk, "unshelve", server) for _ in range(8)), return_exceptions=True)
    assert len([each for each in results if isinstance(each, Admitted)]) == 1
    assert len([each for each in results if isinstance(each, Refused)]) == 7
    assert list(await held(desk, server)) == [Purpose.HOME]
    (host,) = await desk.database.read(hosts.every)
    assert host.claims == 1


@on_virtual_time
@pytest.mark.parametrize("call", ["prepare_disk", "define", "power_on"])
async def test_a_delete_during_a_create(stack: Stack, call: str) -> None:
    """The delete overtakes it, wherever it is; nothing of the half-made guest is left."""
    hang = stack.hypervisor.hang_next(call)
    made = await create(stack.admission, new_instance(), actor(), reservation_id="r")
    server = made.instance.id
    await hang.reached.wait()
    await ask(stack, "delete", server)
    hang.release()
    await is_gone(stack, server)
    assert await stack.history(server) == ["create superseded", "delete succeeded"]


@on_virtual_time
@pytest.mark.parametrize("call", ["power_off", "keep_disk", "grow_disk", "define", "power_on"])
async def test_a_delete_during_a_resize(stack: Stack, call: str) -> None:
    """The delete overtakes it: the guest, its disk and the one that was kept are gone, and both rooms are free."""
    server = await stack.create()
    hang = stack.hypervisor.hang_next(call)
    await ask(stack, "resize", server, target=Target(flavor=LARGE))
    await hang.reached.wait()
    assert set(await held(stack, server)) == {Purpose.HOME, Purpose.MOVE}
    await ask(stack, "delete", server)
    assert set(await held(stack, server)) == {Purpose.HOME}
    hang.release()
    await is_gone(stack, server)
    assert await stack.history(server) == ["create succeeded", "resize superseded", "delete succeeded"]


@on_virtual_time
@pytest.mark.parametrize("forced", [False, True])
async def test_a_stop_during_a_snapshot(stack: Stack, *, forced: bool) -> None:
    """Refused, forced or not: an image of half a disk helps nobody. It can be stopped a moment later."""
    server = await stack.create()
    hang = stack.hypervisor.hang_next("snapshot")
    await ask(stack, "createImage", server)
    await hang.reached.wait()
    with pytest.raises(Refused) as found:
        await stack.act("stop_force" if forced else "stop", server, body=ShutdownOptions(force=forced))
    assert str(found.value) == (
        f"Cannot 'stop' instance {server} while it is in task_state {TaskState.IMAGE_SNAPSHOT}"
    )
    assert stack.guest(server) is Observed.RUNNING
    hang.release()
    assert (await stack.idle(server)).vm_state is VmState.ACTIVE
    assert (await stack.do("stop", server)).vm_state is VmState.STOPPED


@on_virtual_time
async def test_a_delete_during_a_snapshot(stack: Stack) -> None:
    """The delete overtakes it; no image is left that would wait for its data for ever."""
    server = await stack.create()
    hang = stack.hypervisor.hang_next("snapshot")
    await ask(stack, "createImage", server)
    await hang.reached.wait()
    await ask(stack, "delete", server)
    hang.release()
    await is_gone(stack, server)
    assert await stack.history(server) == ["create succeeded", "createImage superseded", "delete succeeded"]


@on_virtual_time
@pytest.mark.parametrize("call", ["power_off", "discard_disk", "prepare_disk", "power_on"])
async def test_a_delete_during_a_rebuild(stack: Stack, call: str) -> None:
    """The delete overtakes it: no disk that the rebuild makes afterwards stays."""
    server = await stack.create()
    hang = stack.hypervisor.hang_next(call)
    await ask(stack, "rebuild", server, target=Target(image=OTHER))
    await hang.reached.wait()
    await ask(stack, "delete", server)
    hang.release()
    await is_gone(stack, server)


@on_virtual_time
async def test_a_rebuild_during_a_delete(stack: Stack) -> None:
    """Refused: a delete that was accepted is carried out."""
    server = await stack.create()
    hang = stack.hypervisor.hang_next("power_off")
    await ask(stack, "delete", server)
    await hang.reached.wait()
    assert await refused(stack, "rebuild", server, target=Target(image=OTHER)) == TaskState.DELETING
    hang.release()
    await is_gone(stack, server)


@on_virtual_time
@pytest.mark.parametrize("call", ["prepare_disk", "define", "power_on"])
async def test_a_delete_during_an_unshelving(stack: Stack, call: str) -> None:
    """The delete overtakes it, and removes what was made on the host that was found for it."""
    server = await stack.create()
    await stack.do("shelve", server)
    await stack.until(server, lambda row: row.vm_state is VmState.SHELVED_OFFLOADED)
    hang = stack.hypervisor.hang_next(call)
    await ask(stack, "unshelve", server)
    await hang.reached.wait()
    assert await refused(stack, "unshelve", server) == TaskState.UNSHELVING
    await ask(stack, "delete", server)
    hang.release()
    await is_gone(stack, server)


@on_virtual_time
async def test_a_delete_during_a_shelving(stack: Stack) -> None:
    """The delete overtakes it, and nothing is offloaded afterwards."""
    server = await stack.create()
    hang = stack.hypervisor.hang_next("snapshot")
    await ask(stack, "shelve", server)
    await hang.reached.wait()
    await ask(stack, "delete", server)
    hang.release()
    await is_gone(stack, server)
    assert await stack.history(server) == ["create succeeded", "shelve superseded", "delete succeeded"]


@on_virtual_time
async def test_an_unshelving_that_cannot_be_done_is_undone(stack: Stack) -> None:
    """What it made on the host is removed, the room given back, and it can be unshelved again."""
    server = await stack.create()
    await stack.do("shelve", server)
    await stack.until(server, offloaded)
    stack.hypervisor.fail_next("power_on", DriverError("no power"))
    unshelve = (await ask(stack, "unshelve", server)).operation
    await stack.until(server, lambda row: row.fence > unshelve.fence and offloaded(row))
    assert (await stack.history(server))[-2:] == ["unshelve_offloaded failed", "restore_offloaded succeeded"]
    assert stack.hypervisor.guest(server).blank
    assert await held(stack, server) == {}
    assert (await stack.do("unshelve_offloaded", server)).vm_state is VmState.ACTIVE
    assert stack.guest(server) is Observed.RUNNING


@on_virtual_time
async def test_what_could_not_be_removed_is_not_taken_for_the_next_copy(stack: Stack) -> None:
    """A removal that fails once the guest is forgotten leaves a disk that nobody misses, and that grows old."""
    server = await stack.create()
    await stack.do("shelve", server)
    first = (await stack.until(server, offloaded)).shelved_image
    stack.hypervisor.fail_next("power_on", DriverError("no power"))
    stack.hypervisor.fail_next("remove", DriverError("Input/output error"))
    removing = stack.hypervisor.hang_next("remove")
    unshelve = (await ask(stack, "unshelve", server)).operation
    await removing.reached.wait()
    stack.hypervisor.undefine(server)
    removing.release()
    await stack.until(server, lambda row: row.fence > unshelve.fence and row.task_state is None)
    await asyncio.sleep(60)
    assert (await stack.history(server))[-2:] == ["unshelve_offloaded failed", "restore_offloaded failed"]
    assert first is not None
    assert stack.hypervisor.guest(server).disk_image == first.id
    # Meanwhile it lived elsewhere, and was shelved there.
    newer = sa.update(INSTANCES).where(INSTANCES.c.id == server).values(shelved_image=OTHER)
    await stack.database.write(lambda connection: connection.execute(newer))
    assert (await stack.do("unshelve_offloaded", server)).vm_state is VmState.ACTIVE
    assert stack.hypervisor.guest(server).disk_image == OTHER.id


def offloaded(row: Instance) -> bool:
    return (row.vm_state, row.task_state, row.host) == (VmState.SHELVED_OFFLOADED, None, "")
