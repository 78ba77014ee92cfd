"""The folder with the images' data: a file is there under its image's id when it is whole, and never before.

Data come in under another name, are hashed as they are written, are on the disk before the file gets its name,
and the name is on the disk before anybody is told.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import threading
import uuid
from pathlib import Path
from typing import IO, Final

import msgspec

#: Bytes that uploads leave free: the database is likely to be on the same disk and must go on working.
RESERVE: Final = 64 * 1024 * 1024
#: Of a file that is being written; no image's id ends so.
_PART: Final = ".part"
#: The hypervisor runs as a user of its own and reads links to these files.
_FILE_MODE: Final = 0o644
_FOLDER_MODE: Final = 0o711


class Written(msgspec.Struct, frozen=True):
    """What was written: bytes, and MD5 and SHA-512 in hexadecimal."""

    size: int
    checksum: str
    hash_value: str


class Incoming:
    """Data on their way into a file. Its methods block; they may be called from any thread, one at a time or not."""

    def __init__(self, folder: Path, name: str) -> None:
        """Write to ``name`` in a folder, which need not be there yet."""
        self._folder = folder
        self._target = folder / name
        self._part = folder / f"{uuid.uuid4()}{_PART}"
        self._file: IO[bytes] | None = None
        self._size = 0
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._sha512 = hashlib.sha512()
        self._linked = False
        self._finished = False
        self._discarded = False
        # A request that is cancelled leaves a write running in its thread: what clears up must wait for it.
        self._busy = threading.Lock()

    def expect(self, size: int) -> None:
        """Refuse what cannot fit before anything of it is written.

        Raises:
            OSError: ENOSPC.
        """
        make_folder(self._folder)
        if shutil.disk_usage(self._folder).free < size + RESERVE:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def link(self, source: Path) -> bool:
        """Be a second name of a file that is whole; what is written after that is known to be there, and only hashed.

        False where the file systems do not let it.

        Raises:
            OSError: the disk is full or broken.
        """
        with self._busy:
            self._refuse_discarded()
            make_folder(self._folder)
            try:
                self._part.hardlink_to(source)
            except OSError as error:
                if error.errno not in {errno.EXDEV, errno.EPERM, errno.EMLINK}:
                    raise
                return False
            self._part.chmod(_FILE_MODE)
            self._file = self._part.open("rb", buffering=0)
            self._linked = True
            return True

    def write(self, data: bytes) -> None:
        """Add a piece.

        Raises:
            OSError: the disk is full or broken.
        """
        with self._busy:
            file = self._open(len(data))
            rest = memoryview(b"" if self._linked else data)
            while rest:
                rest = rest[file.write(rest) :]
            self._md5.update(data)
            self._sha512.update(data)
            self._size += len(data)

    def finish(self) -> Written:
        """Bring it all to the disk and give the file its name.

        Raises:
            OSError: the disk is full or broken.
        """
        with self._busy:
            file = self._open(0)
            os.fsync(file.fileno())
            file.close()
            self._part.replace(self._target)
            self._finished = True
            sync_folder(self._folder)
            return Written(self._size, self._md5.hexdigest(), self._sha512.hexdigest())

    def discard_part(self) -> None:
        """Remove what was written, if it is not finished; nothing is written after this."""
        with self._busy:
            self._discarded = True
            if self._file is not None:
                self._file.close()
            self._part.unlink(missing_ok=True)

    def discard_target(self) -> None:
        """Remove the file as well, if it was finished."""
        with self._busy:
            if self._finished:
                self._target.unlink(missing_ok=True)

    def _open(self, size: int) -> IO[bytes]:
        """Return the open file, which is there from the first piece on."""
        self._refuse_discarded()
        if self._linked and self._file is not None:
            return self._file
        self.expect(size)
        if self._file is None:
            self._file = open_new(self._part)
        return self._file

    def _refuse_discarded(self) -> None:
        if self._discarded:
            raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))


def open_new(path: Path) -> IO[bytes]:
    """Open a file that is not there yet, unbuffered: what ``write`` has not refused is with the kernel."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _FILE_MODE)
    return os.fdopen(descriptor, "wb", buffering=0)


def make_folder(folder: Path) -> None:
    """Make the folder if it is not there."""
    folder.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)


def sync_folder(folder: Path) -> None:
    """Bring the folder's names to the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep(folder: Path, keep: frozenset[str]) -> None:
    """Remove what a crash has left: unfinished files, and those of images that are gone; others are not touched."""
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        if path.name not in keep and _is_ours(path.name):
            path.unlink()


def _is_ours(name: str) -> bool:
    try:
        return str(uuid.UUID(name.removesuffix(_PART))) == name.removesuffix(_PART)
    except ValueError:
        return False
