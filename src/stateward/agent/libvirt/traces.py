"""Traces of guests past libvirtd's lists: QEMU's processes, definitions on the disk, and another connection (B5).

A libvirtd that restarts, or whose connection is broken, may list guests wrong; what it runs shows in the machine all
the same. Where something cannot be told it is left open, and never taken for "not there".
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence, Set as AbstractSet
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import libvirt

from stateward.agent.libvirt import guests
from stateward.domain.states import Observed
from stateward.domain.sweeps import Trace

#: Where libvirt keeps the definitions of QEMU's guests: the system's, below the root that its daemon sees, which need
#: not be ours; and each user's own.
_SYSTEM: Final = Path("etc/libvirt/qemu")
_SESSION: Final = Path.home() / ".config/libvirt/qemu"

#: The daemons that run QEMU's guests.
_DAEMONS: Final = frozenset({"libvirtd", "virtqemud"})

_PROCESSES: Final = Path("/proc")
_UUID: Final = re.compile(r"<uuid>([0-9a-fA-F-]{36})</uuid>")


def find(instance_ids: AbstractSet[str], uri: str, processes: Path = _PROCESSES) -> dict[str, Trace]:
    """Look on this machine for guests, by instance.

    Args:
        instance_ids: which.
        uri: libvirt's name for the hypervisor; on another machine nothing can be told of its guests from here.
        processes: the kernel's folder of processes.
    """
    where = urlsplit(uri)
    running, daemons = _running(processes) if not where.hostname else (frozenset[str](), [])
    places = [_SESSION] if where.path == "/session" else [each / "root" / _SYSTEM for each in daemons]
    # Where no daemon can be seen, neither can be what it runs.
    defined = _defined(places) if daemons else None
    return {
        each: Trace(
            process=each in running if daemons else None, defined=None if defined is None else each in defined
        )
        for each in instance_ids
    }


def ask(connection: libvirt.virConnect, instance_ids: Sequence[str]) -> dict[str, Observed]:
    """Say how guests are, each asked for by itself."""
    return {each: guests.get(connection, each).observed for each in instance_ids}


def _running(processes: Path) -> tuple[frozenset[str], list[Path]]:
    """Return the uuids that processes of QEMU were started with, and the processes of libvirt's daemons."""
    found: set[str] = set()
    daemons: list[Path] = []
    for process, words in _commands(processes):
        if Path(words[0]).name in _DAEMONS:
            daemons.append(process)
        with contextlib.suppress(ValueError, IndexError):
            found.add(words[words.index("-uuid") + 1])
    return frozenset(found), daemons


def _commands(processes: Path) -> Iterator[tuple[Path, list[str]]]:
    for each in processes.glob("[0-9]*"):
        # One that ends while it is looked at is not there.
        with contextlib.suppress(OSError):
            yield each, (each / "cmdline").read_bytes().decode(errors="replace").split("\0")


def _defined(places: Sequence[Path]) -> frozenset[str] | None:
    """Return the uuids of what is defined on the disk; None where there is no such place, or one cannot be read."""
    found: set[str] = set()
    there = 0
    for place in places:
        try:
            files = [each for each in place.iterdir() if each.suffix == ".xml"]
            for each in files:
                match = _UUID.search(each.read_text(errors="replace"))
                if match is not None:
                    found.add(match[1].lower())
        except FileNotFoundError:
            continue
        except OSError:
            return None
        there += 1
    return frozenset(found) if there else None
