"""What ``explain`` says of an instance whose host has booted (R14, B6)."""

from __future__ import annotations

import functools

import pytest
import sqlalchemy as sa

from stateward.arbiter.boots import Boots
from stateward.domain.boots import Pace
from stateward.domain.hosts import FROZEN_SAYS, Frozen
from stateward.domain.policies import NO_POLICIES
from stateward.store import hosts
from tests.api.native.bench import Api
from tests.rows import NOW


def _boot(connection: sa.Connection, *, seq: int, boot_id: str) -> None:
    hosts.note_boot(connection, "h", boot_id, seq, NOW)


async def explained(api: Api, instance_id: str) -> str:
    answer = await api("GET", f"/v1/instances/{instance_id}/explain")
    assert answer.status == 200
    assert answer.body["seen"]["decided_by"] is None
    said: str = answer.body["seen"]["verdict"]
    return said


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ("active", "Its host has rebooted, and it is started again when its turn comes."),
        (
            "rescued",
            (
                "Its host has rebooted, and a lock keeps it from being started: it stays off. "
                "Release the lock and reboot it hard, or go on with it."
            ),
        ),
    ],
)
async def test_why_it_is_off(api: Api, state: str, says: str) -> None:
    """Until its host is known whole, while it waits for its turn, and when a lock keeps it off."""
    await api.desk.add_host("h")
    blocks = {"owner_blocks": 1, "locked_by": "owner"} if state == "rescued" else {}
    instance_id = await api.desk.add(vm_state=state, observed="shutoff", **blocks)
    boots = Boots(api.desk.admission, NO_POLICIES, Pace(), api.desk.compared.append)
    for seq, boot_id in ((1, "one"), (2, "two")):
        await api.desk.database.write(functools.partial(_boot, seq=seq, boot_id=boot_id))
    assert await explained(api, instance_id) == (
        "The machine has booted; its instances are judged once its whole inventory is known."
    )
    await api.desk.database.write(lambda connection: boots.judge_in(connection, "h", "two"))
    assert await explained(api, instance_id) == says


@pytest.mark.parametrize("why", Frozen)
async def test_why_it_is_not_judged(api: Api, why: Frozen) -> None:
    """What is told of the host is the provider's: its name, and how many other instances are there."""
    await api.desk.add_host("h")
    instance_id = await api.desk.add()
    says = "7 of 10 instances would change. stateward host confirm h"
    await api.desk.database.write(lambda connection: hosts.freeze(connection, "h", why, says, NOW))
    assert await explained(api, instance_id) == FROZEN_SAYS[why]
    seen = (await api("GET", f"/v1/instances/{instance_id}/explain", by="admin")).body["seen"]
    assert (seen["verdict"], seen["decided_by"]) == (says, None)
