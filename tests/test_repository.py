"""What must hold of the checkout itself, and that no other tool looks at."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Final

import pytest

import stateward

ROOT: Final = Path(__file__).parent.parent
LOCKS: Final = ("requirements-build.lock", "requirements.lock", "requirements-dev.lock")
PIN: Final = re.compile(r"^(?P<name>[a-z0-9][a-z0-9._-]*)==(?P<version>[^ \\]+)", re.MULTILINE)
LONGEST_MODULE: Final = 500


def pins(lock: str) -> dict[str, str]:
    text = (ROOT / lock).read_text(encoding="utf-8")
    return {pin["name"]: pin["version"] for pin in PIN.finditer(text)}


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_pins_hashes_and_names_no_place(lock: str) -> None:
    """A lock says what to install, not from where: a fresh machine asks whichever index it is set up for."""
    for line in (ROOT / lock).read_text(encoding="utf-8").splitlines():
        assert re.match(r"[a-z0-9]|    --hash=sha256:[0-9a-f]{64}|    #", line), line
        assert "://" not in line
        assert "--index-url" not in line
        assert "--find-links" not in line
        assert " @ " not in line


@pytest.mark.parametrize("lower", LOCKS[:-1])
def test_the_development_lock_holds_the_same_versions(lower: str) -> None:
    """Otherwise the tests would run on other libraries than the servers do."""
    assert pins(lower)
    assert pins(lower).items() <= pins("requirements-dev.lock").items()


def test_the_package_and_its_metadata_agree_on_the_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == stateward.__version__


def test_no_module_is_too_long_to_read() -> None:
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for path in (ROOT / "src").rglob("*.py")
        # A migration has as many lines as there are columns; nobody divides a schema by them.
        if path.parent.name != "versions"
    }
    assert {path: length for path, length in lengths.items() if length > LONGEST_MODULE} == {}
