"""An image store of files, as an agent sees it."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Final

from stateward.agent.driver import DriverError

#: Where the first table of these tests' qcow2 images is, and bytes that are enough for one.
QCOW2_TABLE: Final = 65536


class FolderImages:
    """Images are the files of a folder; any id is that of a queued image until it has a file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    async def path(self, image_id: str) -> Path:
        """Return the image's file."""
        path = self.folder / image_id
        if not path.exists():
            msg = f"There is no image {image_id}."
            raise DriverError(msg)
        return path

    async def store(self, image_id: str, path: Path) -> None:
        """Link to the file, unless the image has one."""
        target = self.folder / image_id
        if target.exists():
            return
        if not path.exists():
            msg = f"There is no file {path}."
            raise DriverError(msg)
        target.hardlink_to(path)


def qcow2_header(virtual_size: int) -> bytes:
    """Return how a qcow2 image of so many bytes begins; its first table takes ``QCOW2_TABLE`` bytes more."""
    entries = -(-virtual_size // (QCOW2_TABLE * 8192))
    header = struct.pack(">4sIQIIQIIQ", b"QFI\xfb", 2, 0, 0, 16, virtual_size, 0, entries, QCOW2_TABLE)
    return header.ljust(QCOW2_TABLE, b"\0")
