"""Locks and holds on real guests: against the server's death, its customers, ``virsh`` and a libvirtd that hangs."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
import pytest_asyncio

from stateward.agent.libvirt.daemons import LibvirtPlace, own
from stateward.domain.states import Observed
from stateward.guest.build import MEMORY
from tests.compat.clients import OpenStack, openstack
from tests.crash.real import real_guests, tiny_image, virsh
from tests.guests.conftest import TinyImages
from tests.guests.told import ANSWERED, FREEZE, FROZEN, RELEASED, VARIABLE, Line, tell, told
from tests.harness import Admin, Answer, ServerProcess, until

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.guests,
    pytest.mark.slow,
    pytest.mark.timeout(600),
]

#: Seconds that a loaded machine may take for anything.
LONG: Final = 120.0
#: Of the race: each takes a guest's boot and its end, which libvirt takes two seconds for where nothing but software
#: runs it. There are fifty with simulated guests.
TRIALS: Final = 6
CLIENTS: Final = 4
REASON: Final = "under investigation"
UPTIME: Final = "stateward-guest: uptime "
#: What an overtaken operation may still do: look, for the observation that its result carries.
LOOK: Final = "get"


class Telling(msgspec.Struct, frozen=True):
    """A server that tells of its driver's calls."""

    #: The file that it tells in.
    path: Path
    place: LibvirtPlace
    #: Its admin, and a customer.
    users: tuple[Admin, Admin]
    image: str


async def users_of(server: ServerProcess) -> tuple[Admin, Admin]:
    """Wait for the host, and return the admin and a customer."""
    admin = Admin(server, await server.log_in("admin"))
    await admin.hosts_up()
    await admin.make_flavor("smallest", ram=MEMORY)
    return admin, Admin(server, await server.log_in("demo"))


class Guest:
    """One real guest: its owner, the admin of the cloud, and virsh."""

    def __init__(self, place: LibvirtPlace, admin: Admin, owner: Admin) -> None:
        self.place = place
        self.admin = admin
        self.owner = owner
        self.id = ""

    async def make(self, image: str) -> None:
        """Make it, running."""
        body = {"server": {"name": "web", "imageRef": image, "flavorRef": "smallest", "networks": "none"}}
        made = await self.owner.ask("POST", "/compute/v2.1/servers", body)
        assert made.status == 202, made
        self.id = made.body["server"]["id"]
        await self.becomes("active")

    async def unmake(self) -> None:
        """Delete it, and wait until it is gone."""
        await self.do("forceDelete", by=self.admin)

        async def look() -> bool | None:
            return None if await self.admin.servers() else True

        await until(look, seconds=LONG, says=lambda: f"it stays; {self.admin.server.tail()}")

    async def act(self, name: str, body: Any = None, *, by: Admin | None = None) -> Answer:
        """Ask for an action, as the owner unless somebody else is named."""
        path = f"/compute/v2.1/servers/{self.id}/action"
        return await (by or self.owner).ask("POST", path, {name: body})

    async def do(self, name: str, body: Any = None, *, by: Admin | None = None) -> None:
        """Ask for an action that is admitted."""
        answer = await self.act(name, body, by=by)
        assert answer.status == 202, answer

    async def becomes(self, state: str) -> dict[str, Any]:
        """Wait until nothing is in flight; it is in this state then."""
        server = (await self.admin.settled(seconds=LONG))[self.id]
        assert server["OS-EXT-STS:vm_state"] == state, server
        return server

    async def native(self, method: str, path: str, body: Any = None) -> Answer:
        """Ask ``/v1`` for something of it, as the admin."""
        return await self.admin.ask(method, f"/v1/instances/{self.id}/{path}", body)

    async def hold(self, shutdown: str = "forced", **more: Any) -> dict[str, Any]:
        """Place a hold and return its answer."""
        answer = await self.native("POST", "holds", {"reason": REASON, "shutdown": shutdown, **more})
        assert answer.status == 202, answer
        body: dict[str, Any] = answer.body
        return body

    async def release(self, hold: str) -> None:
        """Release a hold."""
        answer = await self.native("DELETE", f"holds/{hold}")
        assert answer.status == 204, answer

    async def seen(self) -> Observed:
        """Say how it is, by virsh."""
        return (await real_guests(self.place.uri))[self.id]

    async def says(self) -> list[str]:
        """Return the lines of its console."""
        answer = await self.act("os-getConsoleOutput", {}, by=self.admin)
        assert answer.status == 200, answer
        output: str = answer.body["output"]
        return output.splitlines()

    async def uptimes(self) -> list[int]:
        """Return the seconds that it said it has been up, without the last line, which may be half of one."""
        said = (await self.says())[:-1]
        return [int(line.removeprefix(UPTIME)) for line in said if line.startswith(UPTIME)]

    async def goes_on(self, count: int) -> list[int]:
        """Wait until it has said how long it has been up more often than so many times."""

        async def look() -> list[int] | None:
            found = await self.uptimes()
            return found if len(found) > count else None

        return await until(
            look, seconds=LONG, says=lambda: f"the guest says no more; {self.admin.server.tail()}"
        )

    async def operations(self) -> list[dict[str, Any]]:
        """Return what was done to it, newest first."""
        answer = await self.admin.ask("GET", f"/v1/operations?instance={self.id}")
        assert answer.status == 200, answer
        found: list[dict[str, Any]] = answer.body["operations"]
        return found

    async def done(self, action: str, count: int) -> dict[str, Any]:
        """Wait until an action was carried out so often; return its last operation."""

        async def look() -> dict[str, Any] | None:
            found = [each for each in await self.operations() if each["action"] == action and each["final"]]
            return found[0] if len(found) >= count else None

        return await until(look, seconds=LONG, says=lambda: f"no {action}; {self.admin.server.tail()}")


@pytest.fixture(scope="module")
def settings(place: LibvirtPlace, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Give the words by which a server drives the session's libvirtd."""
    path = tmp_path_factory.mktemp("settings") / "settings.toml"
    path.write_text(f'[[host]]\nname = "one"\nuri = "{place.uri}"\n')
    return "--config", str(path)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def telling(
    place: LibvirtPlace,
    images: TinyImages,
    settings: tuple[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[Telling]:
    """Run a server that tells of its driver's calls."""
    folder = tmp_path_factory.mktemp("told")
    path = folder / "told"
    program = (sys.executable, "-X", "faulthandler", "-m", "tests.guests.told")
    async with ServerProcess(folder, settings, program=program, environment={VARIABLE: str(path)}) as server:
        users = await users_of(server)
        image = await tiny_image(users[0], images.files, shutdown=1)
        yield Telling(path, place, users, image)
        await server.stop()
        assert server.faults() == []


@pytest_asyncio.fixture(loop_scope="module")
async def guest(telling: Telling) -> AsyncIterator[Guest]:
    """Give a running guest of it, which is deleted at the end."""
    found = Guest(telling.place, *telling.users)
    await found.make(telling.image)
    yield found
    await found.unmake()


async def test_a_locking_suspend_outlives_the_server_and_keeps_everybody_out(
    place: LibvirtPlace, images: TinyImages, settings: tuple[str, str], tmp_path: Path
) -> None:
    """Killed 50 ms after its answer, it is suspended and locked after all; unlocked, the guest goes on (R7)."""
    async with ServerProcess(tmp_path, settings) as server:
        guest = Guest(place, *await users_of(server))
        await guest.make(await tiny_image(guest.admin, images.files, shutdown=60, words="stateward.uptime=1"))
        before = await guest.goes_on(1)

        await guest.do("suspend", {"lock": {"reason": REASON}})
        await asyncio.sleep(0.05)
        await server.kill()
        await server.start()
        await guest.admin.hosts_up()
        found = await guest.becomes("suspended")
        assert (found["locked"], found["locked_reason"]) == (True, REASON)
        assert await guest.seen() is Observed.SUSPENDED

        with openstack(server, "stateward") as client:
            await keeps_out(guest, client)
            await started_behind_its_back(guest, "restore_suspend", Observed.SUSPENDED)
            client("server unlock web")
            said = await guest.uptimes()
            client("server resume web")
            await guest.becomes("active")
            after = await guest.goes_on(len(said))
        # Booted again it would begin anew.
        assert after[: len(before)] == before
        assert after == sorted(set(after))
        assert Counter(await guest.says())["stateward-guest: up"] == 1
        await held_by_the_provider(guest)
        await guest.unmake()
        await server.stop()
        assert server.faults() == []


async def keeps_out(guest: Guest, client: OpenStack) -> None:
    """Have the customer's own command refused, with who locked it and why."""
    for command in ("reboot", "reboot --hard", "start", "resume", "delete"):
        said = client.refused(f"server {command} web")
        assert f"Instance {guest.id} is locked. It was locked by user " in said, said
        assert f": {REASON}" in said, said
    assert await guest.seen() is Observed.SUSPENDED


async def started_behind_its_back(guest: Guest, action: str, off: Observed) -> dict[str, Any]:
    """Start it by virsh: it is off again, and that is told."""
    times = sum(each["action"] == action for each in await guest.operations())
    await virsh(guest.place.uri, "start", guest.id)
    operation = await guest.done(action, times + 1)
    assert (operation["state"], operation["actor"]["kind"]) == ("succeeded", "system")
    assert await guest.seen() is off
    return operation


async def held_by_the_provider(guest: Guest) -> None:
    """Shut down cleanly and kept off, until the glass is broken or the hold released (R6)."""
    asked = "stateward-guest: power button pressed"
    assert asked not in await guest.says()
    held = await guest.hold("clean", timeout=60)
    assert held["confirmed"] is True
    await guest.becomes("stopped")
    assert await guest.seen() is Observed.SHUTOFF
    said = await guest.says()
    assert said.index(asked) < said.index("stateward-guest: powered off")

    told = await started_behind_its_back(guest, "restore_off", Observed.SHUTOFF)
    assert told["message"] == "The guest is locked off and was started outside Stateward; its power is taken."
    assert (await guest.act("os-start", by=guest.admin)).status == 409
    lock = held["hold"]["id"]
    override = await guest.native("POST", "overrides", {"lock": lock, "reason": "to copy its disk"})
    assert override.status == 201, override
    await guest.do("os-start", by=guest.admin)
    await guest.becomes("active")
    assert await guest.seen() is Observed.RUNNING
    # That was the one operation.
    assert (await guest.act("os-stop", by=guest.admin)).status == 409
    await guest.release(lock)
    await guest.do("os-stop", {"force": True})
    await guest.becomes("stopped")
    assert await guest.seen() is Observed.SHUTOFF


async def test_no_call_to_libvirt_begins_after_the_answer_of_a_hold(telling: Telling, guest: Guest) -> None:
    """Four clients stop and start in a loop; after the hold's answer only the hold's own operation calls (B1)."""
    dice = random.Random(1)
    holds: list[str] = []
    answers = Counter[int]()
    for _ in range(TRIALS):
        over = asyncio.Event()
        clients = [asyncio.create_task(stop_and_start(guest, over, answers)) for _ in range(CLIENTS)]
        await asyncio.sleep(dice.uniform(0.1, 1.0))
        held = await guest.hold()
        assert held["confirmed"] is True
        holds.append(held["operation"]["id"])
        await guest.becomes("stopped")
        over.set()
        await asyncio.gather(*clients)
        assert await guest.seen() is Observed.SHUTOFF
        tell(telling.path, Line(RELEASED, holds[-1]))
        await guest.release(held["hold"]["id"])
        await guest.do("os-start")
        await guest.becomes("active")
    lines = told(telling.path)
    late = [
        line
        for hold in holds
        for line in lines[lines.index(Line(ANSWERED, hold)) + 1 : lines.index(Line(RELEASED, hold))]
        if line.operation not in {None, hold}
    ]
    assert late == []
    assert set(answers) == {202, 409}


async def stop_and_start(guest: Guest, over: asyncio.Event, answers: Counter[int]) -> None:
    """Be one of the clients, whose last request is answered."""
    while not over.is_set():
        for name, body in (("os-stop", {"force": True}), ("os-start", None)):
            answers[(await guest.act(name, body)).status] += 1
            await asyncio.sleep(0.02)


@pytest.mark.parametrize(("method", "action"), [("power_on", "os-start"), ("power_off", "os-stop")])
async def test_a_hold_while_libvirtd_hangs(
    telling: Telling, guest: Guest, folder: Path, method: str, action: str
) -> None:
    """It is answered in time, without the host's word; when libvirtd goes on, the guest ends off and held."""
    if action == "os-start":
        await guest.do("os-stop", {"force": True})
        await guest.becomes("stopped")
    # An earlier test may have had it begun anew.
    (_log, libvirtd) = (await own(folder / "host")).started
    frozen = telling.path.with_name(FROZEN)
    telling.path.with_name(FREEZE).write_text(f"{method} {libvirtd}")
    try:
        await guest.do(action)

        async def look() -> bool | None:
            return frozen.exists() or None

        await until(look, seconds=LONG, says=lambda: f"no {method}; {guest.admin.server.tail()}")
        held = await guest.hold()
    finally:
        os.kill(libvirtd, signal.SIGCONT)
    frozen.unlink()
    assert held["confirmed"] is False
    server = await guest.becomes("stopped")
    assert (server["locked"], server["OS-EXT-STS:power_state"]) == (True, 4)
    assert await guest.seen() is Observed.SHUTOFF
    of_hold, overtaken = (await guest.operations())[:2]
    assert (of_hold["id"], of_hold["state"]) == (held["operation"]["id"], "succeeded")
    assert (overtaken["action"], overtaken["state"]) == (action.removeprefix("os-"), "superseded")
    # It was told so while its call hung, and made no other but the look that its result carries.
    lines = told(telling.path)
    after = lines[lines.index(Line(method, overtaken["id"])) + 1 :]
    assert [line.what for line in after if line.operation == overtaken["id"]] == [LOOK]
    await guest.release(held["hold"]["id"])
