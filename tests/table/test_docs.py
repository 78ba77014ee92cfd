"""What the docs say of the tables is what the tables say."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from stateward.domain.actions import ACTIONS, key
from stateward.domain.states import VmState
from stateward.domain.steps import Step
from tools import docs


@pytest.mark.parametrize("path", sorted(docs.files()), ids=lambda path: Path(path).name)
def test_the_committed_file_is_what_the_tables_give(path: Path) -> None:
    """After a change of a table, ``python tools/docs.py`` writes it anew."""
    assert path.read_text(encoding="utf-8") == docs.files()[path]


def test_everything_is_in_the_words() -> None:
    """Each action, step and state has its line."""
    lines = docs.actions_md().splitlines()
    for name in (*map(key, ACTIONS), *Step, *VmState):
        assert any(line.startswith(f"| `{name}` |") for line in lines), name


def test_every_table_is_a_table() -> None:
    """No cell holds a character that would break its row."""
    widths: list[int] = []
    for line in docs.actions_md().splitlines():
        if line.startswith("|"):
            widths.append(line.replace("\\|", "").count("|"))
        else:
            assert len(set(widths)) <= 1
            widths.clear()


def test_the_picture_is_well_formed() -> None:
    """And shows each state and each arrow's label."""
    picture = ET.fromstring(docs.states_svg())
    shown = {text.strip() for element in picture.iter() if (text := element.text) is not None}
    assert set(VmState) <= shown
    assert {label for labels in docs.edges().values() for label in labels} <= shown
