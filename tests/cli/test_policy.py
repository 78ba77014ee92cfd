"""``stateward policy`` without a server; with one it is tried in ``test_lock``."""

from __future__ import annotations

from pathlib import Path

import click.testing
import msgspec
import pytest

from stateward.cli.main import main

SETTINGS = """
[policies]
default = "careful"

[[policy.careful.rule]]
expected = "active"
observed = "crashed"
verdict = "alert"

[[policy.loose.rule]]
expected = "paused"
observed = "shutoff"
cause = "host"
verdict = "restore"
"""


def run(tmp_path: Path, *words: str, settings: str = SETTINGS) -> click.testing.Result:
    """Ask a file of settings."""
    path = tmp_path / "stateward.toml"
    path.write_text(settings)
    done = click.testing.CliRunner().invoke(
        main, ["policy", "simulate", *words, "--config", str(path)], prog_name="stateward"
    )
    assert done.exception is None or isinstance(done.exception, SystemExit)
    return done


def test_a_table(tmp_path: Path) -> None:
    """A line for each thing that follows."""
    done = run(tmp_path, "--expected", "paused", "--observed", "shutoff", "--policy", "loose")
    assert done.exit_code == 0
    head, *lines = done.stdout.splitlines()
    assert head.split() == ["Cause", "Verdict", "Then", "Decided", "by", "Why"]
    assert [line.split()[-1] for line in lines][-1] == "restore_paused."
    host = lines[-1].split()
    assert host[:8] == ["host", "restore", "restore_paused", "policy", "loose", "(instance),", "rule", "1"]
    assert sum("policy" in line for line in lines) == 1


def test_json(tmp_path: Path) -> None:
    done = run(tmp_path, "--expected", "active", "--observed", "crashed", "--held", "-f", "json")
    assert done.exit_code == 0
    said = msgspec.json.decode(done.stdout)
    assert said["trial"]["held"] is True
    assert [each["verdict"] for each in said["outcomes"]] == ["adopt"]


@pytest.mark.parametrize(
    ("settings", "words", "status", "says"),
    [
        (
            SETTINGS,
            ("--policy", "x"),
            1,
            "stateward: There is no policy called x. There are: careful, loose.\n",
        ),
        (
            SETTINGS.replace("active", "deleted"),
            (),
            1,
            (
                "stateward: The settings cannot be used: policy careful, rule 1: what is done with an instance "
                "recorded as deleted and seen crashed cannot be changed by a policy.\n"
            ),
        ),
        (
            SETTINGS.replace('"careful"', '"nobody"'),
            (),
            1,
            (
                "stateward: The settings cannot be used: policies.default names the policy nobody, which is not there; "
                "there are: careful, loose.\n"
            ),
        ),
        ("[policy.a]\nrules = 1", (), 1, "unknown field"),
        (
            SETTINGS,
            ("--copy", "older"),
            1,
            "stateward: A copy is seen as duplicate; leave copy out where crashed is seen.\n",
        ),
        (SETTINGS, ("--cause", "x"), 2, "Invalid value for '--cause'"),
    ],
)
def test_what_cannot_be_asked(
    tmp_path: Path, settings: str, words: tuple[str, ...], status: int, says: str
) -> None:
    """A sentence and a status, never a traceback."""
    done = run(tmp_path, "--expected", "active", "--observed", "crashed", *words, settings=settings)
    assert done.exit_code == status
    assert says in done.stderr
    assert done.stdout == ""
