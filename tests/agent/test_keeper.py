"""The keeper: it ends as its command does, and is the parent of what that leaves behind until there is nothing left."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from stateward.agent.libvirt import keeper

PROGRAM: Final = (sys.executable, "-I", "-S", keeper.__file__)


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*PROGRAM, *command], capture_output=True, text=True, timeout=30, check=False)


@pytest.mark.parametrize(
    ("script", "status"), [("exit 0", 0), ("exit 3", 3), ("kill -9 $$", 137), ("echo no >&2; exit 1", 1)]
)
def test_it_ends_as_its_command_does(script: str, status: int) -> None:
    """With what the command says, which whoever started it reads to its end."""
    ended = run("sh", "-c", script)
    assert (ended.returncode, ended.stderr) == (status, "no\n" if status == 1 else "")


def test_a_command_that_is_not_there() -> None:
    """As a shell tells it."""
    assert run("/no/such/program").returncode == 127


def test_it_is_the_parent_of_what_is_left_behind(tmp_path: Path) -> None:
    """A daemon's child is the keeper's when the daemon lets go of it, and the keeper ends with the last of them."""
    fifo, said = tmp_path / "fifo", tmp_path / "pid"
    os.mkfifo(fifo)
    # The background process waits until the FIFO is written to.
    ended = run("sh", "-c", f'setsid sh -c "read word < {fifo}" >/dev/null 2>&1 & echo $! > {said}')
    assert ended.returncode == 0
    orphan = int(said.read_text())
    parent = next(
        int(line.split()[1])
        for line in Path(f"/proc/{orphan}/status").read_text().splitlines()
        if line.startswith("PPid:")
    )
    assert os.fsencode(keeper.__file__) in Path(f"/proc/{parent}/cmdline").read_bytes().split(b"\0")
    watching = os.pidfd_open(parent)
    try:
        fifo.write_text("end\n")
        # The keeper's own end is told by its descriptor; it comes after the orphan was buried.
        assert _ended(watching)
        assert not Path(f"/proc/{orphan}").exists()
    finally:
        os.close(watching)


def _ended(process: int) -> bool:
    ready, _, _ = select.select([process], [], [], 20)
    return bool(ready)
