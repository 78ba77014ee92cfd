"""Every script of tests/scenarios shows exactly what it expects: a trap, and why this outcome is right."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

from stateward.cli.simulate import different
from stateward.simulation.engine import play
from stateward.simulation.script import parse

FOLDER: Final = Path(__file__).parent.parent / "scenarios"
SCRIPTS: Final = sorted(FOLDER.glob("*/*.scenario"))
#: Played before every commit too.
QUICK: Final = frozenset({"verdicts/crash", "messages/any-order", "locks/held-crash"})


def name_of(path: Path) -> str:
    return path.relative_to(FOLDER).with_suffix("").as_posix()


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=name_of(path), marks=[] if name_of(path) in QUICK else [pytest.mark.slow])
        for path in SCRIPTS
    ],
)
def test_a_scenario(path: Path) -> None:
    script = parse(path.read_text(encoding="utf-8"))
    assert script.expected is not None
    assert "\n".join(different(script.expected, play(script))) == ""


def test_there_are_enough_of_them() -> None:
    """And each says what trap it is before it says anything else."""
    assert len(SCRIPTS) >= 120
    texts = {name_of(path): path.read_text(encoding="utf-8") for path in SCRIPTS}
    assert {name for name, text in texts.items() if not text.startswith("# ")} == set()
    assert {name_of(path) for path in SCRIPTS} >= QUICK
