"""What is written to takes no more, or nobody reads it: one line at most, and never a traceback."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.process import command

_SIMULATE = ("policy", "simulate", "--expected", "active", "--observed", "missing", "--config", os.devnull)


def test_a_disk_that_is_full() -> None:
    """It is said in one line, whatever was to be written and however."""
    for words in (_SIMULATE, (*_SIMULATE, "-f", "json"), ("--help",), ("policy", "--help")):
        with Path("/dev/full").open("wb") as full:
            done = subprocess.run(
                command(*words), stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=60
            )
        says = "stateward: The output cannot be written: No space left on device.\n"
        assert (done.returncode, done.stderr) == (1, says), words


def test_a_pipe_that_nobody_reads() -> None:
    """As of ``head``: nothing is said."""
    for words in (_SIMULATE, ("--help",)):
        reads, writes = os.pipe()
        os.close(reads)
        try:
            done = subprocess.run(
                command(*words), stdout=writes, stderr=subprocess.PIPE, text=True, check=False, timeout=60
            )
        finally:
            os.close(writes)
        assert (done.returncode, done.stderr) == (1, ""), words
