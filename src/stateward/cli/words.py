"""Operations in words and tables, for people."""

from __future__ import annotations

import datetime as dt
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

_STYLES = {
    "accepted": "cyan",
    "running": "cyan",
    "succeeded": "green",
    "failed": "red",
    "superseded": "yellow",
    "cancelled": "yellow",
}
#: Wider than any table: what is not read by people must not be cut.
_UNCUT = 100_000


def terminal() -> Console:
    """Return the terminal, with its width and colours, unless NO_COLOR is set."""
    return Console(highlight=False)


def write(shown: Table) -> None:
    """Write a table; colours, and lines that are folded to a width, are for terminals only."""
    if sys.stdout.isatty():
        terminal().print(shown)
        return
    plain = Console(highlight=False, width=_UNCUT, no_color=True, force_terminal=False)
    with plain.capture() as captured:
        plain.print(shown)
    click.echo("\n".join(line.rstrip() for line in captured.get().splitlines()))


def printable(value: object) -> str:
    """Write a value without what would act on a terminal: some of it comes from guests."""
    text = "" if value is None else str(value)
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in text)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """Make a table; states are coloured."""
    made = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for column in made.columns:
        column.overflow = "fold"
    made.columns[0].no_wrap = True
    for row in rows:
        made.add_row(*(Text(printable(each), style=_STYLES.get(str(each), "")) for each in row))
    return made


def row(operation: dict[str, Any]) -> tuple[object, ...]:
    """Return the cells of a list."""
    return (
        operation["id"],
        operation["instance_name"],
        operation["action"],
        operation["state"],
        operation["actor"]["kind"],
        operation["started_at"][:19] + "Z",
        waits(operation) or operation["message"],
    )


COLUMNS = ("ID", "Server", "Action", "State", "By", "Started", "Says")


def fields(operation: dict[str, Any]) -> list[tuple[str, object]]:
    """Return everything of one operation, by name."""
    shutdown, progress = operation["shutdown"], operation["progress"]
    found: list[tuple[str, object]] = [
        (name, operation[name]) for name in ("id", "action", "state", "message", "notice")
    ]
    found += [
        ("server", f"{operation['instance_name']} ({operation['instance_id']})"),
        ("project", operation["project_id"]),
        ("by", f"{operation['actor']['kind']} {operation['actor']['user_id'] or ''}".rstrip()),
        ("request", operation["request_id"]),
        ("host", operation["host"]),
        ("started", operation["started_at"]),
        ("finished", operation["finished_at"]),
    ]
    if shutdown is not None:
        found.append(
            (
                "shutdown",
                (
                    f"{shutdown['seconds']} s ({shutdown['seconds_from']}), then "
                    f"{shutdown['at_deadline']} ({shutdown['at_deadline_from']})"
                ),
            )
        )
    if progress is not None:
        found.append(
            ("step", f"{progress['step']} ({progress['number']} of {progress['of']}): {progress['says']}")
        )
        if progress["signalled"]:
            found.append(("guest asked", f"{progress['signalled_at']} by {progress['signalled_by']}"))
    if operation["order"] is not None:
        found.append(("told to", order(operation)))
    if waits(operation):
        found.append(("now", waits(operation)))
    return [(name, value) for name, value in found if value is not None]


def order(operation: dict[str, Any]) -> str:
    """Say what an operation was told last; nothing when nothing."""
    told = operation["order"]
    if told is None:
        return ""
    return f"{told['command']}" + (f" to {told['seconds']} s" if told["seconds"] is not None else "")


def title(operation: dict[str, Any]) -> str:
    """Name an operation."""
    return printable(f"{operation['action']} of {operation['instance_name']}")


def waits(operation: dict[str, Any], *, left: float | None = None) -> str:
    """Say what an unfinished operation is at, with ``left`` seconds left if that is known better."""
    progress = operation["progress"]
    if operation["final"]:
        return ""
    if progress is None:
        return "waits for its host"
    words = f"step {progress['number']} of {progress['of']} ({progress['step']})"
    if progress["waits_for"] is not None:
        words += f", waits for the {progress['waits_for']}"
    seconds = progress["seconds_left"] if left is None else left
    if seconds is not None:
        words += f", {seconds:.0f} s left"
    if progress["signalled"]:
        words += ", the guest was asked"
    return words + (f", told to {order(operation)}" if order(operation) else "")


def ended(operation: dict[str, Any]) -> str:
    """Say how an operation ended, and after how long."""
    began, end = (dt.datetime.fromisoformat(operation[name]) for name in ("started_at", "finished_at"))
    words = f"{title(operation)} {operation['state']} after {(end - began).total_seconds():.1f} s"
    return words + (f": {printable(operation['message'])}" if operation["message"] else "")
