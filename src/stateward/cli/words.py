"""Operations in words and tables, for people."""

from __future__ import annotations

import datetime as dt
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import click
from rich.console import Console
from rich.measure import Measurement
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
#: Spaces between two columns.
_BETWEEN = 2
#: A word that is longer is cut on a terminal: it is no word, but somebody's text without a space.
_LONGEST_WORD = 60


def terminal() -> Console:
    """Return the terminal, with its width and colours, unless NO_COLOR is set."""
    return Console(highlight=False)


def write(shown: Table) -> None:
    """Write a table; colours, and lines that are folded to a width, are for terminals only."""
    if sys.stdout.isatty():
        console = terminal()
        fit(shown, console)
        console.print(shown)
        return
    plain = Console(highlight=False, width=_UNCUT, no_color=True, force_terminal=False)
    with plain.capture() as captured:
        plain.print(shown)
    click.echo("\n".join(line.rstrip() for line in captured.get().splitlines()))


def fit(shown: Table, console: Console) -> None:
    """Give a table's columns widths by which no word is cut, and the terminal more than it has if they need it."""
    room = console.width - _BETWEEN * (len(shown.columns) - 1)
    least, most = list[int](), list[int]()
    for column in shown.columns:
        sizes = [
            Measurement.get(console, console.options.update_width(_UNCUT), cell)
            for cell in (Text(str(column.header)), *column.cells)
        ]
        most.append(max(size.maximum for size in sizes))
        words = max(size.minimum for size in sizes)
        least.append(most[-1] if column.no_wrap else min(words, _LONGEST_WORD))
    widths, left = least.copy(), room - sum(least)
    # What needs least is given first: one long text shall not fold all that is short.
    order = sorted(range(len(widths)), key=lambda number: most[number] - least[number])
    for done, number in enumerate(order):
        more = min(most[number] - least[number], max(left, 0) // (len(order) - done))
        widths[number] += more
        left -= more
    for column, width in zip(shown.columns, widths, strict=True):
        column.width = width
    console.width = max(console.width, sum(widths) + _BETWEEN * (len(widths) - 1))


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
