"""Tables on a terminal: words stay whole, however narrow it is."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from stateward.cli.host import COLUMNS
from stateward.cli.words import fit, table

HOST = ("h1", "nova", "up", "yes", "yes", "no: maintenance", 12, "64 of 128", "4000 of 262144", "40 of 10000")
TEXT = "The guest went off though nobody asked for it; it is started again."


def lines(columns: tuple[str, ...], *rows: tuple[object, ...], width: int) -> list[str]:
    """Write a table on a terminal of a width."""
    console = Console(width=width, file=io.StringIO(), highlight=False, color_system=None)
    made = table(columns, rows)
    fit(made, console)
    with console.capture() as captured:
        console.print(made)
    return [line.rstrip() for line in captured.get().splitlines()]


def test_wide_enough() -> None:
    """Nothing is folded, and nothing is spread."""
    assert lines(("ID", "Says"), ("1", TEXT), ("22", ""), width=200) == ["ID  Says", f"1   {TEXT}", "22"]


def test_long_text_is_folded_at_words() -> None:
    """What is short stays as it is."""
    assert lines(("ID", "State", "Says"), ("a" * 36, "failed", TEXT), width=80) == [
        "ID                                    State   Says",
        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa  failed  The guest went off though nobody",
        "                                              asked for it; it is started again.",
    ]


@pytest.mark.parametrize("width", [20, 60, 70, 80, 100])
def test_no_word_is_cut(width: int) -> None:
    """The table is wider than the terminal where its words are."""
    words = {word for line in lines(COLUMNS, HOST, width=width) for word in line.split()}
    assert words == {word for cell in (*COLUMNS, *HOST) for word in str(cell).split()}


def test_a_text_without_spaces_is_cut() -> None:
    """It would make every line as long."""
    found = lines(("ID", "Says"), ("1", "x" * 200), width=80)
    assert [len(line) for line in found] == [8, 80, 80, 52]
