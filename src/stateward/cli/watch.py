"""Following an operation to its end: a bar that counts the guest's time on a terminal, plain lines elsewhere."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import Final

import click
from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from stateward.cli.client import Client, Operation, Unreachable
from stateward.cli.words import ended, terminal, title, waits

#: Seconds for which a server that went away is tried again: a restart's.
_PATIENCE: Final = 120.0
_AGAIN: Final = 0.5
_BAR: Final = 40


def watch(client: Client, operation_id: str, *, as_json: bool = False) -> Operation:
    """Follow an operation and return it as it ended.

    Raises:
        Failed: it cannot be followed.
        Unreachable: the server does not come back.
    """
    found = _changes(client, operation_id)
    if as_json:
        return _last(found, _json_line)
    if not sys.stdout.isatty():
        return _last(found, _line)
    bar = _Bar()
    with Live(get_renderable=bar.render, console=terminal(), refresh_per_second=10, transient=True):
        operation = _last(found, bar.update)
    click.echo(ended(operation))
    return operation


def _last(found: Iterator[Operation], tell: Callable[[Operation], None]) -> Operation:
    operation: Operation = {}
    for operation in found:
        tell(operation)
    return operation


def _json_line(operation: Operation) -> None:
    click.echo(json.dumps(operation))


def _line(operation: Operation) -> None:
    click.echo(ended(operation) if operation["final"] else f"{title(operation)}: {waits(operation)}")


def _changes(client: Client, operation_id: str) -> Iterator[Operation]:
    """Give an operation after each change until its end, over restarts of the server."""
    heard = time.monotonic()
    told = False
    while True:
        try:
            for operation in client.follow(operation_id):
                yield operation
                heard, told = time.monotonic(), False
                if operation["final"]:
                    return
        except Unreachable:
            if time.monotonic() - heard > _PATIENCE:
                raise
        if not told:
            click.echo(
                "stateward: the server does not answer; the operation goes on, and so does this", err=True
            )
            told = True
        time.sleep(_AGAIN)


class _Bar:
    """What is shown of an operation at any moment; made anew several times a second."""

    def __init__(self) -> None:
        """Begin without an operation."""
        self._operation: Operation | None = None
        self._at = 0.0

    def update(self, operation: Operation) -> None:
        """Show an operation as it is now."""
        self._at = time.monotonic()
        self._operation = operation

    def render(self) -> RenderableType:
        """Draw it, with the seconds counted on since it was told."""
        operation = self._operation
        if operation is None:
            return Text("…")
        progress, passed = operation["progress"], time.monotonic() - self._at
        left = None if progress is None else progress["seconds_left"]
        line = Table.grid(padding=(0, 1))
        if left is None:
            line.add_row(Text(title(operation), "bold"), ProgressBar(total=None, width=_BAR, pulse=True))
            return Group(line, Text(waits(operation)))
        left = max(0.0, left - passed)
        total = _seconds(operation) or left
        bar = ProgressBar(total=max(total, 0.1), completed=max(0.0, total - left), width=_BAR)
        count = f"{max(0.0, total - left):.0f} of {total:.0f} s"
        line.add_row(Text(title(operation), "bold"), bar, Text(count))
        hints = f"stateward operation extend|cancel|escalate {operation['id']}"
        return Group(line, Text(waits(operation, left=left)), Text(hints, "dim"))


def _seconds(operation: Operation) -> float | None:
    """Return the seconds that the guest gets in all; None when that is not known."""
    told = operation["order"]
    if told is not None and told["seconds"] is not None:
        return float(told["seconds"])
    shutdown = operation["shutdown"]
    return None if shutdown is None else float(shutdown["seconds"])
