"""The disks that a flavor gives a guest besides its root disk: an empty one, and one to swap to.

They are raw files with holes for what was never written, named in Nova's order: the empty disk is ``vdb``, the swap
disk comes after it. The empty one has no file system (Nova's has, by the operator's choice); the swap disk is ready
to be used.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Final

import msgspec

from stateward.domain.records import GuestSpec

_MIB: Final = 1024**2
_GIB: Final = 1024**3

_PAGE: Final = 4096
#: Version, the last page's number, and how many pages are bad; it comes after room for a boot sector.
_SWAP_HEADER: Final = struct.Struct("<III")
_SWAP_HEADER_AT: Final = 1024
_SWAP_MAGIC: Final = b"SWAPSPACE2"

_EPHEMERAL: Final = "ephemeral0.raw"
_SWAP: Final = "swap.raw"
#: The names of all there can be.
EXTRA_DISKS: Final = (_EPHEMERAL, _SWAP)


class ExtraDisk(msgspec.Struct, frozen=True, kw_only=True):
    """A disk besides the root disk."""

    #: The guest's name for it.
    device: str
    path: Path
    #: Bytes.
    size: int
    swap: bool = False


def extra_disks(spec: GuestSpec, home: Path) -> list[ExtraDisk]:
    """Return an instance's further disks, whose files are in its folder."""
    found: list[ExtraDisk] = []
    if spec.ephemeral:
        found.append(ExtraDisk(device="vdb", path=home / _EPHEMERAL, size=spec.ephemeral * _GIB))
    if spec.swap:
        device = "vdc" if found else "vdb"
        found.append(ExtraDisk(device=device, path=home / _SWAP, size=spec.swap * _MIB, swap=True))
    return found


def write(disk: ExtraDisk, path: Path) -> None:
    """Write a disk's file under a name. Blocking.

    Raises:
        OSError: it cannot be written.
    """
    with path.open("wb") as file:
        file.truncate(disk.size)
        if disk.swap:
            file.seek(_SWAP_HEADER_AT)
            file.write(_SWAP_HEADER.pack(1, disk.size // _PAGE - 1, 0))
            file.seek(_PAGE - len(_SWAP_MAGIC))
            file.write(_SWAP_MAGIC)
