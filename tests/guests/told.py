"""A server that tells of each call of its driver as it begins: ``python -m tests.guests.told …``.

The file in ``TOLD`` gets a line for each, in their order, and one for each hold at the moment of its answer. A file
beside it, named ``freeze``, has a method and the process id of a libvirtd, which is stopped the moment before an
operation next calls that method: so the call is in flight and does not come back.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any, Final
from unittest import mock

import msgspec

from stateward.agent.driver import Driver, ImageFiles
from stateward.api.native import locks
from stateward.cli.main import main
from stateward.server import Server
from stateward.settings import HostSettings
from tests.calls import telling

VARIABLE: Final = "TOLD"
FREEZE, FROZEN = "freeze", "frozen"
ANSWERED: Final = "answered"
#: What a test tells itself, before it releases a hold.
RELEASED: Final = "released"
#: Seconds that a hold waits for its host where libvirtd is not stopped: the usual few are a person's, and a loaded
#: machine takes longer to start a guest.
PATIENCE: Final = 120.0


class Line(msgspec.Struct, frozen=True):
    """One line: a method of the driver, or ``answered`` or ``released``, and the operation that it is of."""

    what: str
    operation: str | None


def told(path: Path) -> list[Line]:
    """Read what was told."""
    return [msgspec.json.decode(line, type=Line) for line in path.read_text().splitlines()]


def tell(path: Path, line: Line) -> None:
    """Add a line; several processes may."""
    with path.open("ab", buffering=0) as file:
        file.write(msgspec.json.encode(line) + b"\n")


def serve_and_tell(path: Path) -> None:
    """Run the command ``stateward``."""
    freeze, frozen = path.with_name(FREEZE), path.with_name(FROZEN)
    wait_for_host, usual = locks._confirmed, locks._CONFIRM_SECONDS  # pyright: ignore[reportPrivateUsage]

    def begins(what: str, operation: str | None) -> None:
        tell(path, Line(what, operation))
        if operation is not None and freeze.exists():
            method, process = freeze.read_text().split()
            if method == what:
                os.kill(int(process), signal.SIGSTOP)
                freeze.rename(frozen)

    class Telling(Server):
        async def _driver(self, host: HostSettings, folder: Path, images: ImageFiles) -> Driver:
            return telling(await super()._driver(host, folder, images), begins)

    async def confirmed(call: Any, admitted: Any) -> bool:
        seconds = usual if frozen.exists() else PATIENCE
        with mock.patch.object(locks, "_CONFIRM_SECONDS", seconds):
            answer = await wait_for_host(call, admitted)
        tell(path, Line(ANSWERED, admitted.operation.id))
        return answer

    with (
        mock.patch("stateward.cli.serve.Server", Telling),
        mock.patch.object(locks, "_confirmed", confirmed),
    ):
        main()


if __name__ == "__main__":
    serve_and_tell(Path(os.environ[VARIABLE]))
