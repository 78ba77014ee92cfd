"""Management controllers: IPMI as OpenIPMI's simulator speaks it, whose power is a process; and whatever may go wrong.

What is said of Redfish is tested on a real machine in ``tests/guests/test_redfish.py``.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from asyncio.subprocess import Process
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
import pytest
import pytest_asyncio

from stateward.arbiter.bmc import Bmc
from stateward.arbiter.bmc_program import Refused, meant
from stateward.arbiter.witnesses import Evidence, FenceFailed, FirstThatWorks, Word
from stateward.domain.hosts import Power, PowerSaid
from stateward.settings import BmcSettings
from tests.harness import until

GUID = UUID("a1234567-89ab-cdef-a123-456789abcdef")

#: A controller with one user and one machine, which has power from the beginning.
_LAN = """\
name "machine"
set_working_mc 0x20
  startlan 1
    addr 127.0.0.1 {port}
    priv_limit admin
    allowed_auths_admin none md2 md5 straight
    guid {guid}
  endlan
  user 2 true "stateward" "secret" operator 10
  chassis_control "{folder}/chassis"
"""
#: Its machine: a process; asked ``get power``, or told ``set power 0``.
_CHASSIS = """\
#!/bin/sh
case "$*" in
'get power') if kill -0 {pid} 2>/dev/null; then echo power:1; else echo power:0; fi ;;
'set power 0') kill -KILL {pid} ;;
*) exit 1 ;;
esac
"""
_MC = "mc_setbmc 0x20\nmc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02 persist_sdr\nmc_enable 0x20\n"


class Machine:
    """A controller and the process that is its machine."""

    def __init__(self, folder: Path, port: int, process: Process) -> None:
        self.folder = folder
        self.address = f"ipmi://127.0.0.1:{port}"
        self._process = process

    def settings(self, **changes: Any) -> BmcSettings:
        """Return what lets one in."""
        said = BmcSettings(
            address=self.address, user="stateward", password_file=str(self.folder / "password"), uuid=GUID
        )
        return msgspec.structs.replace(said, **changes)

    def runs(self) -> bool:
        """Say whether the machine does."""
        return self._process.returncode is None


def bmc(settings: BmcSettings, *, seconds: float = 20.0) -> Bmc:
    return Bmc(settings, look_seconds=seconds, off_seconds=seconds)


@contextlib.asynccontextmanager
async def running(*command: str) -> AsyncGenerator[Process]:
    """Run a program until the block ends."""
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


@pytest_asyncio.fixture
async def machine(tmp_path: Path) -> AsyncIterator[Machine]:
    """Give a machine that has power."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    (tmp_path / "lan").write_text(_LAN.format(port=port, guid=GUID.hex, folder=tmp_path))
    (tmp_path / "emulated").write_text(_MC)
    (tmp_path / "password").write_text("secret\n")
    async with running("sleep", "3600") as process:
        (tmp_path / "chassis").write_text(_CHASSIS.format(pid=process.pid))
        (tmp_path / "chassis").chmod(0o700)
        made = Machine(tmp_path, port, process)
        files = ("-c", f"{tmp_path}/lan", "-f", f"{tmp_path}/emulated", "-s", f"{tmp_path}/state")
        async with running("ipmi_sim", "-n", *files):

            async def answers() -> bool | None:
                said = await bmc(made.settings()).power()
                return True if said.power is Power.ON else None

            await until(answers, seconds=30.0, says=lambda: "the controller does not answer")
            yield made


async def test_the_power_is_taken(machine: Machine) -> None:
    """It is off when the fence returns, nothing runs then, and doing it again does nothing more."""
    controller = bmc(machine.settings())
    says = f"Its management controller at {machine.address} says that its power is"
    assert await controller.ask("h", 1.0) == Evidence(word=Word.UNKNOWN, says=f"{says} on.")
    assert await controller.fence("h") == f"{says} off."
    assert not machine.runs()
    assert await controller.fence("h") == f"{says} off."
    assert await controller.ask("h", 2.0) == Evidence(word=Word.DEAD, says=f"{says} off.")
    assert await controller.power() == PowerSaid(power=Power.OFF, says=f"{says} off.")


async def test_who_is_not_let_in(machine: Machine) -> None:
    """A wrong password, and another machine than the one that was meant: nothing is taken, and it is said why."""
    (machine.folder / "wrong").write_text("guess")
    at = f"Its management controller at {machine.address} cannot be asked:"
    wrong = bmc(machine.settings(password_file=str(machine.folder / "wrong")))
    with pytest.raises(FenceFailed) as refused:
        await wrong.fence("h")
    assert str(refused.value) == f"{at} Incorrect password provided."
    other = UUID(int=1)
    with pytest.raises(FenceFailed) as refused:
        await bmc(machine.settings(uuid=other)).fence("h")
    assert str(refused.value) == f"{at} it says that its machine is {GUID.hex}, and not {other}."
    missing = bmc(machine.settings(password_file=str(machine.folder / "none")))
    assert (await missing.ask("h", 1.0)).word is Word.UNKNOWN
    assert "cannot be read" in (await missing.power()).says
    assert machine.runs()


@pytest.mark.parametrize("scheme", ["ipmi", "http"])
async def test_nobody_answers(tmp_path: Path, scheme: str) -> None:
    """A controller that is silent, or takes connections and says nothing, keeps nobody longer than the time given."""
    (tmp_path / "password").write_text("secret")
    kind = socket.SOCK_DGRAM if scheme == "ipmi" else socket.SOCK_STREAM
    with socket.socket(socket.AF_INET, kind) as silent:
        silent.bind(("127.0.0.1", 0))
        if scheme == "http":
            silent.listen(9)
        address = f"{scheme}://127.0.0.1:{silent.getsockname()[1]}"
        settings = BmcSettings(address=address, user="u", password_file=str(tmp_path / "password"))
        loop = asyncio.get_running_loop()
        began = loop.time()
        evidence = await bmc(settings, seconds=0.5).ask("h", 1.0)
        assert evidence.word is Word.UNKNOWN
        assert evidence.says.startswith(f"Its management controller at {address} ")
        assert loop.time() - began < 8.0


async def test_nobody_is_there(tmp_path: Path) -> None:
    """It is said why, without what libraries say around it."""
    (tmp_path / "password").write_text("secret")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"https://127.0.0.1:{free.getsockname()[1]}"
        said = await bmc(
            BmcSettings(address=address, user="u", password_file=str(tmp_path / "password"))
        ).power()
    assert said.power is Power.UNKNOWN
    assert said.says == f"Its management controller at {address} cannot be asked: Connection refused."


class Said:
    """A machine of a controller that has several."""

    def __init__(self, said: str | None) -> None:
        self.uuid = said


def test_whose_power_is_not_certain() -> None:
    """Two machines that say no uuid, or the same one, are two; nobody's power is taken by chance."""
    one = Said(str(GUID).upper())
    assert meant(GUID, [Said(None), one]) is one
    assert meant(None, [one]) is one
    for wanted, machines, says in (
        (None, [Said(None), Said(None)], "it manages 2 machines: say which by its uuid"),
        (None, [], "it manages 0 machines"),
        (GUID, [one, Said(str(GUID))], f"and more than one {GUID}"),
        (GUID, [Said(None)], f"and not {GUID}"),
    ):
        with pytest.raises(Refused, match=says):
            meant(wanted, machines)


class Way:
    """A fence that works or not."""

    def __init__(self, *, works: bool) -> None:
        self.works = works
        self.tried = 0

    async def fence(self, host: str) -> str:
        """Try it."""
        self.tried += 1
        if not self.works:
            raise FenceFailed(f"The way to {host} is closed.")
        return "It is done."


async def test_ways_are_tried_in_their_order() -> None:
    """The next one only when the one before has failed; all that was tried is said when none works."""
    first, second, third = Way(works=False), Way(works=True), Way(works=True)
    assert await FirstThatWorks(first, second, third).fence("h") == "It is done."
    assert [each.tried for each in (first, second, third)] == [1, 1, 0]
    with pytest.raises(FenceFailed, match=r"^The way to h is closed\. The way to h is closed\.$"):
        await FirstThatWorks(first, Way(works=False)).fence("h")
