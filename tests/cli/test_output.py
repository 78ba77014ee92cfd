"""What is written is whole, or one line says why it cannot be: never a traceback."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from stateward.cli.main import main
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


@pytest.mark.parametrize("group", [(), ("webhook",), ("override",), ("host",), ("policy",)])
def test_no_list_of_commands_is_cut(group: tuple[str, ...]) -> None:
    """Each command's first sentence is there whole, on a screen of 80 columns."""
    shown = CliRunner().invoke(main, [*group, "--help"], terminal_width=80)
    assert shown.exit_code == 0
    assert "..." not in shown.stdout.split("Commands:")[1]
