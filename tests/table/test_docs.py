"""What the docs say of the tables is what the tables say."""

from __future__ import annotations

import re
import tomllib
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import msgspec
import pytest

from stateward.api.native.routes import RESOURCES
from stateward.domain.actions import ACTIONS, key
from stateward.domain.states import VmState
from stateward.domain.steps import Step
from stateward.domain.verdicts import VERDICTS
from stateward.settings import Settings, load
from tests.harness import ROOT
from tools import docs
from tools.verdict_docs import verdicts_md


@pytest.mark.parametrize("path", sorted(docs.files()), ids=lambda path: Path(path).name)
def test_the_committed_file_is_what_the_tables_give(path: Path) -> None:
    """After a change of a table, ``python -m tools.docs`` writes it anew."""
    assert path.read_text(encoding="utf-8") == docs.files()[path]


def test_everything_is_in_the_words() -> None:
    """Each action, step and state has its line."""
    lines = docs.actions_md().splitlines()
    for name in (*map(key, ACTIONS), *Step, *VmState):
        assert any(line.startswith(f"| `{name}` |") for line in lines), name
    rows = [line for line in verdicts_md().splitlines() if line.endswith(" |") and "Why" not in line]
    for verdict in VERDICTS:
        expected = f"`{verdict.expected}`" + (", adopted" if verdict.adopted else "")
        assert any(
            row.startswith(f"| {expected} | `{verdict.observed}` |") and verdict.says in row for row in rows
        ), verdict


def test_every_table_is_a_table() -> None:
    """No cell holds a character that would break its row."""
    widths: list[int] = []
    for line in (docs.actions_md() + verdicts_md()).splitlines():
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


def test_every_route_of_the_native_api_is_in_its_document() -> None:
    """By its method and path."""
    text = (ROOT / "docs" / "native-api.md").read_text(encoding="utf-8")
    told = {
        f"{method} {path}" for method, path in re.findall(r"^\| `([A-Z]+) /v1(/[^`?]*)", text, re.MULTILINE)
    }
    assert told == {f"{method} {path}" for path, methods in RESOURCES.items() for method in methods}


def test_every_setting_is_in_its_document() -> None:
    """The example there can be served with, and leaves nothing out."""
    text = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    example = tomllib.loads(text.partition("```toml\n")[2].partition("```")[0])
    settings = msgspec.convert(example, Settings)
    assert missing(settings, example) == []


def test_the_example_of_policies_can_be_served_with(tmp_path: Path) -> None:
    """It makes sense as a whole, and to the last rule."""
    text = (ROOT / "docs" / "policies.md").read_text(encoding="utf-8")
    path = tmp_path / "stateward.toml"
    path.write_text(text.partition("```toml\n")[2].partition("```")[0])
    policies = load(path, {}).made_policies()
    assert sorted(policies.named) == ["careful", "keep-on"]
    assert (policies.hosts, policies.default) == ({"alpha": "careful"}, "careful")


def missing(settings: msgspec.Struct, example: dict[str, Any]) -> list[str]:
    """Return the names that an example of settings leaves out; of several tables of a kind each has some."""
    found: list[str] = []
    for field in msgspec.structs.fields(settings):
        if field.encode_name not in example:
            found.append(field.encode_name)
            continue
        value, said = getattr(settings, field.name), example[field.encode_name]
        if isinstance(value, msgspec.Struct):
            found += missing(value, said)
        elif isinstance(value, tuple) and value and isinstance(value[0], msgspec.Struct):
            found += missing(value[0], {name: each for table in said for name, each in table.items()})
    return found
