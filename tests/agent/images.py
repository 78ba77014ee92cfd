"""An image store of files, as an agent sees it."""

from __future__ import annotations

from pathlib import Path

from stateward.agent.driver import DriverError


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
