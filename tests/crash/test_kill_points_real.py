"""Real guests, and a server that is killed before and after each durable step of what is done to them (B3).

The points are derived from the rows' steps. As many guests as fit are brought to a point each, side by side, and
the server is killed once under all of them.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

from stateward.agent.libvirt.daemons import LibvirtPlace
from stateward.domain.actions import BY_KEY
from stateward.domain.states import Observed, VmState
from stateward.guest.build import MEMORY, GuestFiles
from tests.crash.doomed import REACHED, VARIABLE
from tests.crash.points import Point, When, points
from tests.crash.real import real_guests, tiny_image
from tests.crash.truth import broken_records
from tests.harness import Admin, ServerProcess, until
from tests.wires import accepted

pytestmark = [pytest.mark.asyncio, pytest.mark.guests, pytest.mark.slow, pytest.mark.timeout(900)]

#: The rows, by their keys, and what asks for them; a delete is no action of the API's.
ASKED: Final[dict[str, object]] = {
    "stop": {"os-stop": None},
    "suspend": {"suspend": None},
    "resize": {"resize": {"flavorRef": "larger"}},
    "rescue": {"rescue": {}},
    "shelve": {"shelve": None},
    "delete": None,
}
#: Guests at a time: their processors are emulated.
AT_ONCE: Final = 12
#: Seconds a guest gets to shut down, in vain: it is still booting.
SHUTDOWN: Final = 2
#: Seconds in which what goes on under emulation has come somewhere.
PATIENCE: Final = 120

SETTINGS: Final = """
[placement]
cpu_ratio = 1000.0
[shelve]
offload = false
[[host]]
name = "real"
driver = "libvirt"
uri = "{uri}"
"""


class Cell(msgspec.Struct, frozen=True):
    """A row that is done to a guest of its own, and where the server is killed."""

    key: str
    point: Point

    def __str__(self) -> str:
        """Name it."""
        return f"{self.key} {self.point}"


CELLS: Final = [
    Cell(key, point)
    for key in ASKED
    for point in points(BY_KEY[key])
    if point.when in {When.BEFORE, When.AFTER}
]


async def test_killed_at_each_step_of_real_guests(
    folder: Path, place: LibvirtPlace, tiny_guest: GuestFiles
) -> None:
    """Started again, the server ends what it had begun: by its own account, the database's and virsh's."""
    began = time.monotonic()
    (folder / "settings.toml").write_text(SETTINGS.format(uri=place.uri))
    doom = folder / "doom"
    doom.mkdir()
    program = (sys.executable, "-X", "faulthandler", "-m", "tests.crash.doomed")
    arguments = ("--config", str(folder / "settings.toml"))
    async with ServerProcess(folder, arguments, program=program, environment={VARIABLE: str(doom)}) as server:
        admin = Admin(server, await server.log_in("admin"))
        image = await tiny_image(admin, tiny_guest, shutdown=SHUTDOWN)
        await admin.make_flavor("smallest", ram=MEMORY)
        await admin.make_flavor("larger", ram=2 * MEMORY)
        await admin.hosts_up()
        wrong: list[str] = []
        for first in range(0, len(CELLS), AT_ONCE):
            cells = CELLS[first : first + AT_ONCE]
            ids = await asyncio.gather(*(make(admin, image) for _ in cells))
            made = await admin.settled(seconds=PATIENCE)
            assert [(made[each]["status"], made[each].get("fault")) for each in ids] == [
                ("ACTIVE", None)
            ] * len(ids)
            for cell, server_id in zip(cells, ids, strict=True):
                (doom / server_id).write_text(str(cell.point))
                await ask(admin, server_id, cell.key)
            await all_reached(doom, dict(zip(ids, cells, strict=True)))
            await server.kill()
            for file in doom.iterdir():
                file.unlink()
            await server.start()
            await admin.hosts_up()
            await admin.settled(seconds=PATIENCE)
            servers, guests = await admin.servers(), await real_guests(place.uri)
            for cell, server_id in zip(cells, ids, strict=True):
                wrong += [
                    f"{cell}: {each}" for each in untrue(cell, servers.get(server_id), guests, server_id)
                ]
            wrong += broken_records(server.data / "stateward.db", calls_outlive=True)
            for server_id in ids:
                if server_id in servers:
                    await ask(admin, server_id, "forceDelete")
            await until(lambda: gone(admin), seconds=PATIENCE, says=lambda: "the guests stay")
        await server.stop()
        assert not wrong, "\n".join(wrong)
        assert server.faults() == []
    print(f"\n{len(CELLS)} real guests, each killed at a step of its own, {time.monotonic() - began:.1f} s")  # noqa: T201


def untrue(
    cell: Cell, server: dict[str, Any] | None, guests: Mapping[str, Observed], server_id: str
) -> list[str]:
    """Compare what the row says with the API's account and virsh's."""
    row = BY_KEY[cell.key]
    assert row.becomes is not None
    state = VmState.DELETED if server is None else VmState(server["OS-EXT-STS:vm_state"])
    found = (state, guests.get(server_id, Observed.MISSING))
    fault = "" if server is None else server.get("fault", {}).get("message", "")
    return [] if found == (row.becomes, row.wants) else [f"{found} {fault}"]


async def make(admin: Admin, image: str) -> str:
    """Ask for a server and return its id."""
    body = {"server": {"name": "a", "imageRef": image, "flavorRef": "smallest", "networks": "none"}}
    answer = await admin.ask("POST", "/compute/v2.1/servers", body)
    assert answer.status == 202, answer
    server_id: str = answer.body["server"]["id"]
    return server_id


async def ask(admin: Admin, server_id: str, key: str) -> None:
    """Ask for what a row does."""
    path = f"/compute/v2.1/servers/{server_id}"
    if key == "delete":
        answer = await admin.ask("DELETE", path)
    else:
        answer = await admin.ask("POST", f"{path}/action", ASKED.get(key, {key: None}))
    assert answer.status == accepted(BY_KEY[key].name), answer


async def all_reached(doom: Path, cells: Mapping[str, Cell]) -> None:
    """Wait until all operations are at their points."""

    def left() -> list[str]:
        # By the files' names alone: the server renames them while they are looked at.
        return [str(cells[file.name]) for file in doom.iterdir() if file.suffix != REACHED]

    async def look() -> bool | None:
        return None if left() else True

    await until(look, seconds=PATIENCE, says=lambda: f"not at their points: {left()}")


async def gone(admin: Admin) -> bool | None:
    """Say whether no server is left."""
    return None if await admin.servers() else True
