"""What an image says of itself in its header, read without any program: a hostile one can name files of the host's."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Final

import msgspec

from stateward.agent.driver import DriverError

#: What a qcow2 image begins with.
QCOW2_MAGIC: Final = b"QFI\xfb"

#: magic, version, backing file offset, backing file size, cluster bits, virtual size, encryption, and how many
#: entries of 8 bytes the first table has, and where.
_QCOW2_HEADER: Final = struct.Struct(">4sIQIIQIIQ")
#: Bytes that the name of the backing file has at most, by the format.
_QCOW2_BACKING_LIMIT: Final = 1023
_QCOW2_FEATURES: Final = struct.Struct(">Q")
_QCOW2_FEATURES_AT: Final = 72
#: The first version that has them.
_QCOW2_WITH_FEATURES: Final = 3
_QCOW2_EXTERNAL_DATA: Final = 1 << 2


class DiskImage(msgspec.Struct, frozen=True, kw_only=True):
    """What an image's own header says."""

    #: Bytes.
    virtual_size: int
    #: Bytes that the file must have to hold its first table; without that a disk of zeros would be read.
    least: int
    #: Whether it names another file of the host's, which QEMU would open and show to the guest.
    refers: bool


def read_image(path: Path, disk_format: str) -> DiskImage:
    """Read an image's header; not with ``qemu-img info``, which opens the files that a hostile image names.

    Raises:
        DriverError: it is of a format that instances are not made from, or not of the one it is said to be.
        OSError: it cannot be read.
    """
    if disk_format == "raw":
        return DiskImage(virtual_size=path.stat().st_size, least=0, refers=False)
    if disk_format != "qcow2":
        raise DriverError(
            f"Instances are made from qcow2 and raw images, not {disk_format}. Convert the image first."
        )
    with path.open("rb") as file:
        head = file.read(_QCOW2_FEATURES_AT + _QCOW2_FEATURES.size)
    if len(head) < _QCOW2_HEADER.size or not head.startswith(QCOW2_MAGIC):
        raise DriverError("The image is said to be qcow2 and is not. Upload it again with its right format.")
    _, version, backing, _, _, size, _, entries, table = _QCOW2_HEADER.unpack_from(head)
    features = 0
    if version >= _QCOW2_WITH_FEATURES and len(head) >= _QCOW2_FEATURES_AT + _QCOW2_FEATURES.size:
        (features,) = _QCOW2_FEATURES.unpack_from(head, _QCOW2_FEATURES_AT)
    return DiskImage(
        virtual_size=size,
        least=table + 8 * entries,
        refers=backing != 0 or bool(features & _QCOW2_EXTERNAL_DATA),
    )


def backing_name(disk: Path) -> str | None:
    """Return the last part of the name of the file that a disk of ours is an overlay over; None: over none.

    Raises:
        OSError: it cannot be read.
    """
    with disk.open("rb") as file:
        head = file.read(_QCOW2_HEADER.size)
        if len(head) < _QCOW2_HEADER.size or not head.startswith(QCOW2_MAGIC):
            return None
        _, _, at, length, *_ = _QCOW2_HEADER.unpack(head)
        file.seek(at)
        name = os.fsdecode(file.read(min(length, _QCOW2_BACKING_LIMIT))) if at else ""
    return Path(name).name or None


def usable_image(path: Path, disk_format: str) -> DiskImage:
    """Read the header of an image from outside, which a disk is to be made over.

    Raises:
        DriverError: as ``read_image``, and when it refers to another file.
        OSError: it cannot be read.
    """
    image = read_image(path, disk_format)
    if image.refers:
        raise DriverError(
            "The image refers to another file, which would be read from this host. "
            "Flatten it (qemu-img convert) and upload it again."
        )
    return image


def check_room(virtual_size: int, room: int) -> None:
    """Refuse an image that a flavor's disk has no room for; both in bytes, and 0 is room for any.

    Raises:
        DriverError: it is larger (Nova's own words, and what to do).
    """
    if 0 < room < virtual_size:
        raise DriverError(
            "Flavor's disk is too small for requested image. "
            f"Flavor disk is {room} bytes, image is {virtual_size} bytes. "
            "Take a larger flavor, or a smaller image."
        )
