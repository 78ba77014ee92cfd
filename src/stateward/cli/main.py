"""The command ``stateward``."""

from __future__ import annotations

import errno
import importlib
import os
import sys
from collections.abc import Mapping
from typing import Any, Final

import click

from stateward import __version__
from stateward.cli.group import Group

#: Loaded when they are asked for: a look at an operation need not wait for a whole server's libraries.
_COMMANDS: Final[Mapping[str, str]] = {
    "adopt": "stateward.cli.adopt",
    "audit": "stateward.cli.audit",
    "event": "stateward.cli.event",
    "explain": "stateward.cli.explain",
    "hold": "stateward.cli.hold",
    "host": "stateward.cli.host",
    "lock": "stateward.cli.lock",
    "operation": "stateward.cli.operation",
    "override": "stateward.cli.override",
    "policy": "stateward.cli.policy",
    "release": "stateward.cli.release",
    "serve": "stateward.cli.serve",
    "simulate": "stateward.cli.simulate",
    "usage": "stateward.cli.usage",
    "webhook": "stateward.cli.webhook",
}


#: What a file says that takes no more. A pipe that nobody reads is click's: status 1, and silence.
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})


class _Commands(Group):
    """The commands, each named as in its module."""

    def main(self, *args: Any, **options: Any) -> Any:
        """Run a command; when what it writes to takes no more, say so in one line."""
        try:
            return super().main(*args, **options)
        except OSError as error:
            # That of a file which was opened has its name.
            if error.errno not in _FULL or error.filename is not None:
                raise
            # Or Python would try to write the rest when it ends, and complain itself.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            click.echo(f"stateward: The output cannot be written: {error.strerror}.", err=True)
            sys.exit(1)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = getattr(importlib.import_module(_COMMANDS[cmd_name]), cmd_name)
        return command


@click.group(
    cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.version_option(__version__, prog_name="stateward")
def main() -> None:
    """Keep every VM instance in the state it is supposed to be in."""
