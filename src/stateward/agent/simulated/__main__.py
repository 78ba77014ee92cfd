"""Acts on the guests of a folder behind the back of the server that drives them: ``FOLDER VERB [ID]``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from stateward.agent.driver import DriverError
from stateward.agent.simulated.hypervisor import SimulatedHypervisor

_ON_A_GUEST: Final[Mapping[str, Callable[[SimulatedHypervisor, str], None]]] = {
    "destroy": SimulatedHypervisor.destroy,
    "crash": SimulatedHypervisor.crash,
    "pause": SimulatedHypervisor.pause,
    "resume": SimulatedHypervisor.resume,
    "save": SimulatedHypervisor.save,
    "start": SimulatedHypervisor.start,
    "undefine": SimulatedHypervisor.undefine,
    "shutdown": SimulatedHypervisor.guest_shutdown,
}


def _list(hypervisor: SimulatedHypervisor) -> None:
    for guest in hypervisor.guests():
        if guest.spec is not None:
            sys.stdout.write(f"{guest.id} {guest.observed} {guest.cause} {guest.spec.display_name}\n")


_ON_THE_HOST: Final[Mapping[str, Callable[[SimulatedHypervisor], None]]] = {
    "list": _list,
    "reboot-host": SimulatedHypervisor.reboot_host,
    "unavailable": SimulatedHypervisor.unavailable,
    "available": SimulatedHypervisor.available,
}


def main(arguments: list[str] | None = None) -> int:
    """Do what the command line says; return the exit status, 1 when that cannot be done to the guest."""
    parser = argparse.ArgumentParser(
        prog="python -m stateward.agent.simulated",
        description="Act on simulated guests behind the server's back.",
    )
    parser.add_argument("folder", type=Path, help="the folder that the guests live in")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb in _ON_A_GUEST:
        verbs.add_parser(verb).add_argument("id", help="the guest's instance id")
    for verb in _ON_THE_HOST:
        verbs.add_parser(verb)
    asked = parser.parse_args(arguments)
    if not asked.folder.is_dir():
        parser.error(f"{asked.folder} is not a folder")
    hypervisor = SimulatedHypervisor(asked.folder)
    try:
        if asked.verb in _ON_A_GUEST:
            _ON_A_GUEST[asked.verb](hypervisor, asked.id)
        else:
            _ON_THE_HOST[asked.verb](hypervisor)
    except DriverError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    finally:
        hypervisor.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
