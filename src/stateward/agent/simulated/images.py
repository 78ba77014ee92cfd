"""What a simulated host finds wrong with an image: it needs its header only, and takes what has none for a good one."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from stateward.agent.disk_image import QCOW2_MAGIC, check_room, usable_image
from stateward.agent.driver import DriverError, ImageFiles
from stateward.domain.records import ImageFacts

_GIB: Final = 1024**3


async def check_image(images: ImageFiles, image: ImageFacts, disk: int) -> None:
    """Refuse an image that is not there, that ends too early, or that is larger than a disk in GiB (0: any size).

    Raises:
        DriverError: in the words of a real host.
    """
    path = await images.path(image.id)
    if image.disk_format != "qcow2" or _begins_like_qcow2(path):
        found = usable_image(path, image.disk_format)
        if path.stat().st_size < found.least:
            raise DriverError("The image is broken, upload it again: the file ends too early.")
        check_room(found.virtual_size, disk * _GIB)


def _begins_like_qcow2(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(QCOW2_MAGIC)) == QCOW2_MAGIC
