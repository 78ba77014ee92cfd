"""The command ``stateward``."""

from __future__ import annotations

import click

from stateward import __version__
from stateward.cli.serve import serve


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="stateward")
def main() -> None:
    """Keep every VM instance in the state it is supposed to be in."""


main.add_command(serve)
