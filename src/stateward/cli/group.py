"""A group of commands."""

from __future__ import annotations

from typing import Final

import click

#: Characters of what a list says of a command: all of its first sentence.
_SENTENCE: Final = 500


class Group(click.Group):
    """A group whose list says of each command its first sentence, in several lines where it is long."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list; click's own cuts each sentence off at the end of the line."""
        found = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl(
                [(name, each.get_short_help_str(_SENTENCE)) for name, each in found if each is not None]
            )
