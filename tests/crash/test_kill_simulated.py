"""A server is killed again and again while its guests change; after each start, everything is true (B3)."""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from stateward.domain.states import Observed
from tests.crash.fleet import Fleet, Kind
from tests.crash.truth import check_everything, simulated_guests
from tests.harness import STATEWARD, Admin, ServerProcess

pytestmark = pytest.mark.asyncio

ZONE = "simulated"
#: How guests behave, and how many of them there are: quick ones, slow ones, such that do not hear the power button
#: while they boot, and such that never do.
GUESTS = {
    "stateward.shutdown=0": 6,
    "stateward.shutdown=0.4": 8,
    "stateward.boot=0.3 stateward.shutdown=0.1": 3,
    "stateward.acpi=ignore": 3,
}
SETTINGS = f"""
[[host]]
name = "h"
zone = "{ZONE}"
driver = "simulated"
"""


async def kinds(admin: Admin) -> Sequence[Kind]:
    """Make what servers of each behaviour are made from; a second is all that a guest gets to shut down."""
    flavor = await admin.make_flavor("quick", ram=64)
    return [
        Kind(
            zone=ZONE,
            image=await admin.make_image(words, {"os_command_line": words, "os_shutdown_timeout": "1"}),
            flavor=flavor,
            count=count,
        )
        for words, count in GUESTS.items()
    ]


async def kill_again_and_again(
    folder: Path, *, kills: int, seed: int, program: Sequence[str] = STATEWARD, seconds: float = 30.0
) -> Path:
    """Do it, with the checks after each start; return the folder of the hypervisor."""
    (folder / "settings.toml").write_text(SETTINGS)
    dice = random.Random(seed)
    began = time.monotonic()
    asked, starts = 0, list[float]()
    arguments = ("--config", str(folder / "settings.toml"))
    async with ServerProcess(folder, arguments, program=program) as server:
        admin = Admin(server, await server.log_in("admin"))
        fleet = Fleet(
            server, kinds=await kinds(admin), member=await server.log_in("demo"), admin=admin.login, seed=seed
        )
        hypervisor = server.data / "hosts" / "h"

        async def guests() -> Mapping[str, Observed]:
            return simulated_guests(hypervisor)

        await admin.hosts_up()
        await fleet.fill()
        for _ in range(kills):
            await fleet.work(clients=6, answers=dice.randint(1, 150))
            asked += len(fleet.accepted)
            if dice.random() < 0.3:
                # Once more, on its way up or while it is still finishing what the first life had begun.
                await server.start_in_vain(dice.uniform(0.1, 1.2))
            await server.start()
            starts.append(server.took)
            await admin.hosts_up()
            await check_everything(admin, fleet, guests, seconds=seconds)
        await server.stop()
        assert server.faults() == []
    print(  # noqa: T201
        f"\n{kills} kills, {asked} accepted requests, {time.monotonic() - began:.1f} s; "
        f"a start took {max(starts):.1f} s at most"
    )
    return hypervisor


@pytest.mark.parametrize(
    ("kills", "seed"),
    [(4, 1), pytest.param(30, 2, marks=[pytest.mark.slow, pytest.mark.timeout(900)])],
)
async def test_killed_while_guests_change(tmp_path: Path, kills: int, seed: int) -> None:
    """Twenty guests, every action, a kill at a random moment: what was accepted ends, and states and locks are true."""
    hypervisor = await kill_again_and_again(tmp_path, kills=kills, seed=seed)
    # The hypervisor's own account in another process, as an operator would ask for it; nothing ran meanwhile.
    listing = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "stateward.agent.simulated", str(hypervisor), "list"),
        stdout=asyncio.subprocess.PIPE,
    )
    listed = (await listing.communicate())[0].decode().splitlines()
    told = {line.split()[0]: Observed(line.split()[1]) for line in listed}
    assert told == simulated_guests(hypervisor)
    assert told


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("fault", "seconds", "says"),
    [
        # Waits in vain for what was forgotten.
        ("no-repost", 8, "still in a task state"),
        # Everything ends, and is wrong then: a slow machine must not be convicted instead.
        ("journal-first", 120, "its guest|where user_id"),
    ],
)
async def test_a_forgetful_server_is_convicted(tmp_path: Path, fault: str, seconds: float, says: str) -> None:
    """The checks find what they are there to find, in servers that do not survive being killed."""
    program = (sys.executable, "-m", "tests.crash.forgetful", fault)
    with pytest.raises(AssertionError, match=says):
        await kill_again_and_again(tmp_path, kills=30, seed=3, program=program, seconds=seconds)
