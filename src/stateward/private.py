"""Files that only their owner may read, written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path


def make_private(path: Path) -> None:
    """Make a file's mode 0600, and an empty one where none is: SQLite gives its other files the same mode."""
    path.touch(mode=0o600)
    path.chmod(0o600)


def write_private(path: Path, text: str) -> None:
    """Write a file of mode 0600; killed half-way, the old one is still there."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
