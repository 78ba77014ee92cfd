"""Worlds of the tests in this process, and how many cells of the crash matrix ran."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from stateward.agent.libvirt.daemons import LibvirtPlace, own, stop_own
from stateward.guest.build import GuestFiles, build
from tests.crash.cells import RAN


@pytest.fixture
def folder() -> Iterator[Path]:
    """Give a folder with a path short enough for libvirt's sockets."""
    path = Path(tempfile.mkdtemp(prefix="stateward-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest_asyncio.fixture
async def place(folder: Path) -> AsyncIterator[LibvirtPlace]:
    """Give a libvirtd that outlives the servers."""
    home = folder / "host"
    yield await own(home)
    await stop_own(home)


@pytest_asyncio.fixture
async def tiny_guest(request: pytest.FixtureRequest) -> GuestFiles:
    """Give the tiny guest's files, made once and kept over sessions."""
    cache = request.config.cache
    assert cache is not None
    return await build(cache.mkdir("tiny-guest"), print)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many cells ran."""
    if RAN:
        counts = ", ".join(f"{count} {dimension}" for dimension, count in sorted(RAN.items()))
        terminalreporter.write_line(
            f"crash matrix: {RAN.total()} cells ran (row x step or driver call x fault): {counts}; none skipped"
        )
