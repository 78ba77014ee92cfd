"""Nova's ``evacuate``: what it is answered by microversion, and when a disk may be lost."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa

from stateward.domain.states import VmState
from stateward.store.tables import HOSTS
from tests.table.front import DEAD, Front


async def evacuate(front: Front, server: str, v: int, **options: Any) -> tuple[int, Any, list[str]]:
    """Ask for it as an admin; return the status, the body and what was admitted."""
    answer = await front("POST", f"/servers/{server}/action", {"evacuate": options}, by="admin", v=v)
    return answer.status, answer.body, [each.action for each in await front.desk.operations(server)]


@pytest.mark.parametrize(
    ("v", "state", "action"),
    [
        (14, VmState.ACTIVE, "evacuate"),
        (94, VmState.ERROR, "evacuate"),
        (94, VmState.STOPPED, "evacuate_stopped"),
        (95, VmState.ACTIVE, "evacuate_off"),
        (104, VmState.STOPPED, "evacuate_stopped"),
    ],
)
async def test_from_shared_storage(front: Front, v: int, state: VmState, action: str) -> None:
    """Answered with nothing from 2.14 on, and left off from 2.95 on."""
    server = await front.add(state, host=DEAD)
    assert await evacuate(front, server, v) == (200, None, [action])
    assert (await front.desk.row(server)).host in {"h", "g"}


async def test_a_password_until_2_13(front: Front) -> None:
    """Nova makes one up; here it is told, and goes nowhere."""
    server = await front.add(VmState.ACTIVE, host=DEAD)
    status, body, actions = await evacuate(front, server, 13, onSharedStorage=True)
    assert (status, list(body), actions) == (200, ["adminPass"], ["evacuate"])


async def test_a_disk_that_is_on_the_dead_host(front: Front) -> None:
    """It is made anew only for who said so: the request until 2.13, or the server itself."""
    await front.desk.database.write(lambda c: c.execute(sa.update(HOSTS).values(shared=False)))
    server = await front.add(VmState.ACTIVE, host=DEAD)
    for v, options in ((14, {}), (13, {"onSharedStorage": "True"})):
        status, body, actions = await evacuate(front, server, v, **options)
        assert (status, actions) == (409, [])
        assert body["conflictingRequest"]["message"] == (
            f"Instance {server} cannot be evacuated: its disk is on the dead host dead, and what is in it would be "
            "lost"
        )
    assert (await evacuate(front, server, 13, onSharedStorage="False"))[::2] == (200, ["evacuate_anew"])
    willing = await front.add(VmState.STOPPED, host=DEAD, metadata={"stateward:evacuate": "rebuild"})
    assert (await evacuate(front, willing, 104))[::2] == (200, ["evacuate_anew_stopped"])


async def test_to_a_host_that_is_asked_for(front: Front) -> None:
    """And to none that is not there, or that it is on."""
    server = await front.add(VmState.ACTIVE, host=DEAD)
    assert (await evacuate(front, server, 94, host="mars"))[0] == 404
    assert (await evacuate(front, server, 94, host=DEAD))[0] == 400
    assert (await evacuate(front, server, 94, host="g"))[::2] == (200, ["evacuate"])
    assert (await front.desk.row(server)).host == "g"
