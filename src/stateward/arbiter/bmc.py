"""The power of a host, as its baseboard management controller says, and the taking of it: a witness and a fence.

Controllers speak Redfish or IPMI, each vendor's in its own way. Libraries know those ways, but wait without an end and
keep threads: they run in a program of their own (``bmc_program``), which is killed when it takes too long.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Final, Literal

import msgspec

from stateward.arbiter.programs import run
from stateward.arbiter.witnesses import Evidence, FenceFailed, Word
from stateward.domain.hosts import Power, PowerSaid
from stateward.settings import BmcSettings
from stateward.threads import on_thread

#: Not from the folder that the server happens to be started in: what is there would be given the password.
_PROGRAM: Final = (sys.executable, "-P", "-m", "stateward.arbiter.bmc_program")
#: Seconds that the program may need besides those that it gives the controller.
_SLACK: Final = 2.0


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What the program is asked, on its standard input."""

    controller: BmcSettings
    password: str
    act: Literal["look", "off"]
    #: In which the power must be off.
    seconds: float


class Bmc:
    """A host's controller."""

    def __init__(self, controller: BmcSettings, *, look_seconds: float, off_seconds: float) -> None:
        """Use this one, for so many seconds at most a time."""
        self._controller = controller
        self._look_seconds = look_seconds
        self._off_seconds = off_seconds

    async def power(self) -> PowerSaid:
        """Ask whether the host has power."""
        return await self._ask("look", self._look_seconds)

    async def ask(self, host: str, since: float) -> Evidence:
        """Say that a host without power is dead; one that has power may be or not."""
        del host, since
        said = await self._ask("look", self._look_seconds)
        return Evidence(word=Word.DEAD if said.power is Power.OFF else Word.UNKNOWN, says=said.says)

    async def fence(self, host: str) -> str:
        """Take the power, and wait until the controller says that it is off."""
        del host
        said = await self._ask("off", self._off_seconds)
        if said.power is not Power.OFF:
            raise FenceFailed(said.says)
        return said.says

    async def _ask(self, act: Literal["look", "off"], seconds: float) -> PowerSaid:
        said = self._controller
        try:
            async with asyncio.timeout(seconds):
                password = await on_thread(Path(said.password_file).read_text, "utf-8")
        except (OSError, UnicodeDecodeError) as error:
            why = "it is not text" if isinstance(error, UnicodeDecodeError) else error.strerror or "no answer"
            says = (
                f"The password of its management controller cannot be read from {said.password_file}: {why}."
            )
            return PowerSaid(power=Power.UNKNOWN, says=says)
        request = Request(controller=said, password=password.strip(), act=act, seconds=seconds)
        ended = await run(_PROGRAM, seconds + _SLACK, given=msgspec.json.encode(request), errors=False)
        try:
            return msgspec.json.decode(ended.output, type=PowerSaid)
        except msgspec.DecodeError:
            says = f"Its management controller at {said.address} could not be asked ({ended.how})."
            return PowerSaid(power=Power.UNKNOWN, says=says)
