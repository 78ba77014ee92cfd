"""An initramfs as the kernel reads it: a cpio archive of the "newc" kind, the same bytes for the same content."""

from __future__ import annotations

import gzip
import stat
from collections.abc import Iterable
from typing import Final

import msgspec

_ALIGNMENT: Final = 4


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """A file, folder or device of the archive; ``mode`` has its type and its permissions."""

    name: str
    mode: int
    content: bytes = b""
    #: A device's major and minor number.
    device: tuple[int, int] = (0, 0)


def folder(name: str) -> Entry:
    """Return a folder that everybody may read."""
    return Entry(name=name, mode=stat.S_IFDIR | 0o755)


def file(name: str, content: bytes, permissions: int = 0o644) -> Entry:
    """Return a regular file."""
    return Entry(name=name, mode=stat.S_IFREG | permissions, content=content)


def character_device(name: str, major: int, minor: int) -> Entry:
    """Return a character device that its owner may use."""
    return Entry(name=name, mode=stat.S_IFCHR | 0o600, device=(major, minor))


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % _ALIGNMENT)


def _record(number: int, entry: Entry) -> bytes:
    name = entry.name.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    # inode, mode, uid, gid, links, mtime, size, its device's major and minor, its own, length of name, checksum
    numbers = (number, entry.mode, 0, 0, links, 0, len(entry.content), 0, 0, *entry.device, len(name), 0)
    head = b"070701" + b"".join(b"%08x" % each for each in numbers)
    return _padded(head + name) + _padded(entry.content)


def archive(entries: Iterable[Entry]) -> bytes:
    """Return the compressed archive."""
    records = [_record(number, entry) for number, entry in enumerate(entries, start=1)]
    trailer = _record(0, Entry(name="TRAILER!!!", mode=0))
    return gzip.compress(b"".join(records) + trailer, mtime=0)
