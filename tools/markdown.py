"""Markdown, as far as the generated docs need it."""

from __future__ import annotations

from collections.abc import Iterable


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a table; a bar in a cell does not end it."""
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |" for cells in lines
    )


def code(values: Iterable[str]) -> str:
    """Return values as they are typed, in a row."""
    return ", ".join(f"`{value}`" for value in values)
