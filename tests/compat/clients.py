"""The real ``openstack`` client, kept running: one that starts for each command takes a second longer every time."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import msgspec

from tests.process import environment_of

#: Runs what the console script runs, once for each line. A process is always of one cloud: osc-lib keeps the
#: connection of its first command.
_LOOP = """
import contextlib, io, json, sys
from openstackclient.shell import main
asked, answers = sys.stdin, sys.stdout
sys.stdin = io.StringIO()
for line in asked:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main(json.loads(line))
        except SystemExit as end:
            status = end.code
    answers.write(json.dumps([status, out.getvalue(), err.getvalue()]) + "\\n")
    answers.flush()
"""


class Found(Protocol):
    """A server, by its data folder."""

    @property
    def data(self) -> Path:
        """Where its ``clouds.yaml`` is."""
        ...


class Ran(msgspec.Struct, frozen=True, array_like=True):
    """What a command did."""

    status: int
    out: str
    err: str


class OpenStack:
    """One user's client."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def run(self, *words: str) -> Ran:
        """Run a command to its end, whatever that is."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(words) + "\n")
        self._process.stdin.flush()
        return msgspec.json.decode(self._process.stdout.readline(), type=Ran)

    def __call__(self, line: str, *words: str) -> str:
        """Run a command that must succeed, the line's words and then the others; return what it printed."""
        ran = self.run(*line.split(" "), *words)
        assert ran.status == 0, (line, words, ran)
        return ran.out

    def json(self, line: str, *words: str) -> Any:
        """Run a command that must succeed, and return what it printed as JSON."""
        return json.loads(self(line, *words, "-f", "json"))

    def refused(self, line: str, *words: str) -> str:
        """Run a command that must fail, and return what it said."""
        ran = self.run(*line.split(" "), *words)
        assert (ran.status, ran.out) == (1, ""), (line, words, ran)
        return ran.err


@contextmanager
def openstack(
    served: Found, cloud: str, environment: Mapping[str, str] | None = None
) -> Generator[OpenStack]:
    """Give the client of a user of ``clouds.yaml``; ``environment``: more of its process's."""
    with subprocess.Popen(
        [sys.executable, "-c", _LOOP],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment_of(served.data) | {"OS_CLOUD": cloud} | dict(environment or {}),
    ) as process:
        yield OpenStack(process)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(timeout=30) == 0
