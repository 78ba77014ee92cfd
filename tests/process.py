"""The command ``stateward`` as a process of its own, as people run it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import msgspec

#: The programs of this Python's environment.
PROGRAMS = Path(sys.executable).parent


class Served(msgspec.Struct, frozen=True, kw_only=True):
    """A server that is ready."""

    address: str
    data: Path
    process: subprocess.Popen[str]

    @property
    def environment(self) -> dict[str, str]:
        """The environment in which clients find it."""
        return environment_of(self.data)


def environment_of(data: Path) -> dict[str, str]:
    """Return the environment in which clients find the server on a data folder."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OS_")}
    return kept | {"OS_CLIENT_CONFIG_FILE": str(data / "clouds.yaml")}


def command(*words: str | Path) -> list[str]:
    """Return the command line of ``stateward`` with these words."""
    return [str(PROGRAMS / "stateward"), *map(str, words)]


@contextmanager
def serving(data: Path, *words: str) -> Generator[Served]:
    """Serve on a free port until the block ends; then the server must go when it is told to, and cleanly.

    Its host is a simulated one unless a configuration is among the words.
    """
    driver = () if "--config" in words else ("--driver", "simulated")
    line = command("serve", "--data", data, "--listen", "127.0.0.1:0", *driver, *words)
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            said = process.stdout.readline()
            ready = re.match(r"stateward is ready on (?P<address>\S+) ", said)
            assert ready is not None, said
            yield Served(address=ready["address"], data=data, process=process)
            process.terminate()
            assert process.wait(timeout=30) == 0
        finally:
            process.kill()
